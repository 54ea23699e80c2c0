//! Recovery as text: what would be done, what was done, and what is known of a node.

use comfy_table::Cell;
use dhc_thresholds::Action;

use super::{Paper, status_cell, table};
use crate::recover::{Attempts, Done, Event, Outcome, Plan};

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
            Cell::new(
                step.held
                    .as_ref()
                    .or(step.noted.as_ref())
                    .map_or("", String::as_str),
            ),
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
            let word = match done.outcome {
                Outcome::Held => "not done",
                outcome if outcome.is_done() => "done",
                _ => "NOT DONE",
            };
            format!("{}: {} {word}: {}\n", done.node, done.action, done.what)
        })
        .collect()
}

/// A machine, the name that it had last, how often it was marked, and what for lately.
pub type Offender = (String, String, usize, Attempts);

/// The machines that were marked most often.
pub fn offenders(offenders: &[Offender], paper: Paper) -> String {
    if offenders.is_empty() {
        return "nothing was done to any machine yet\n".to_owned();
    }
    let mut table = table(paper);
    table.set_header([
        "marked",
        "machine",
        "node",
        "reboots 2 h",
        "reboots 24 h",
        "replaced 24 h",
    ]);
    for (machine, node, times, attempts) in offenders {
        table.add_row([
            times.to_string(),
            machine.clone(),
            node.clone(),
            attempts.reboots_2h.to_string(),
            attempts.reboots_24h.to_string(),
            attempts.replacements_24h.to_string(),
        ]);
    }
    format!("{table}\n")
}

/// The same for programs.
pub fn offenders_json(offenders: &[Offender]) -> String {
    let all = offenders.iter().map(|(machine, node, times, attempts)| {
        serde_json::json!({"machine": machine, "node": node, "marked": times, "attempts": attempts})
    });
    format!("{:#}\n", serde_json::Value::from_iter(all))
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
