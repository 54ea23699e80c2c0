//! Recovery as text: what would be done, what was done, and what is known of a node.

use comfy_table::Cell;
use dhc_thresholds::Action;

use super::{Paper, status_cell, table};
use crate::recover::{Done, Event, Plan};

/// What would be done to which node.
pub fn plan(plan: &Plan, paper: Paper) -> String {
    let mut text = String::new();
    if plan.steps.is_empty() {
        return format!("all {} nodes passed; nothing is to be done\n", plan.nodes);
    }
    let mut table = table(paper);
    table.set_header(["node", "status", "action", "why", "but"]);
    for step in &plan.steps {
        table.add_row([
            Cell::new(&step.node),
            status_cell(step.status, paper),
            Cell::new(step.action),
            Cell::new(&step.why),
            Cell::new(step.held.as_deref().unwrap_or_default()),
        ]);
    }
    text.push_str(&format!("{table}\n\n"));
    let count = |action: Action| {
        plan.steps
            .iter()
            .filter(|step| step.acts() && step.action == action)
            .count()
    };
    let acting: Vec<String> = [Action::Reset, Action::Reboot, Action::Replace]
        .into_iter()
        .filter(|action| count(*action) > 0)
        .map(|action| format!("{action} {}", count(action)))
        .collect();
    text.push_str(&format!(
        "policy {}: {} of {} nodes did not pass; {}\n",
        plan.policy,
        plan.steps.len(),
        plan.nodes,
        if acting.is_empty() {
            "no node would be touched".to_owned()
        } else {
            acting.join(", ")
        }
    ));
    if let Some(why) = &plan.breaker {
        text.push_str(&format!("NOBODY IS TOUCHED: {why}\n"));
    }
    text
}

/// What was done.
pub fn done(all: &[Done]) -> String {
    all.iter()
        .map(|done| {
            let word = if done.done { "done" } else { "NOT DONE" };
            format!("{}: {} {word}: {}\n", done.node, done.action, done.what)
        })
        .collect()
}

/// What was seen on a node and done to it.
pub fn history(events: &[Event], paper: Paper) -> String {
    let mut table = table(paper);
    table.set_header([
        "at", "what", "action", "fault", "device", "node", "machine", "boot", "run", "policy",
    ]);
    for event in events {
        table.add_row([
            event.at.to_string(),
            format!("{:?}", event.what).to_lowercase(),
            event.action.to_string(),
            event.fault.clone(),
            event.device.clone(),
            event.node.clone(),
            event.machine.clone(),
            event.boot.clone(),
            event.run.clone(),
            event.policy.clone(),
        ]);
    }
    format!("{table}\n")
}
