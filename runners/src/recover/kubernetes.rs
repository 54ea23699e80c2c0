//! Nodes of a Kubernetes cluster, in the words of Amazon SageMaker HyperPod: labels, an annotation, a taint and a condition.
//!
//! All through `kubectl get --raw` and `kubectl replace --raw`, so that credentials are kubectl's affair. A node is read whole
//! and written whole with the `resourceVersion` that it was read with, so the API server refuses what would overwrite somebody
//! else's change. The condition is written first, as evidence; labels, annotation and taint follow in one write, which is the
//! act.

use std::collections::BTreeMap;
use std::time::Duration;

use dhc_checks::check::chain;
use dhc_checks::host::{Command, Ended, Host};
use jiff::{Timestamp, Unit};
use serde_json::{Map, Value, json};

use super::plan::Step;
use super::policy::Labels;
use super::scheduler::{By, Scheduler, SchedulerError, Standing, node_name};
use crate::machine::Machine;

/// How long the API server may take to answer, and kubectl to come to an end.
const ANSWER: &str = "--request-timeout=10s";
const DEADLINE: Duration = Duration::from_secs(15);

/// How often a write is tried while others write the node too: its kubelet does, every few seconds.
const ATTEMPTS: usize = 5;

/// How the message of our faults begins.
const OURS: &str = "dhc:";

/// The names that HyperPod knows ("Resilience-related Kubernetes labels by SageMaker HyperPod").
const HEALTH: &str = "sagemaker.amazonaws.com/node-health-status";
const DEEP_CHECK: &str = "sagemaker.amazonaws.com/deep-health-check-status";
const FAULT_TYPES: &str = "sagemaker.amazonaws.com/fault-types";
const FAULT_REASONS: &str = "sagemaker.amazonaws.com/fault-reasons";
const FAULT_DETAILS: &str = "sagemaker.amazonaws.com/fault-details";
const SCHEDULABLE: &str = "Schedulable";
const UNSCHEDULABLE: &str = "Unschedulable";

/// Taints by which Kubernetes itself says that a node does not answer or lacks something: nobody's mark.
const OF_KUBERNETES: &[&str] = &[
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/network-unavailable",
];

/// The fault type of a class that the policy has none for.
const TYPE_UNKNOWN: &str = "NodeUnhealthy";

/// The most faults in the annotation, and the most characters in each message.
const DETAILS_MAX: usize = 16;
const MESSAGE_MAX: usize = 300;

/// What kubectl needs of dhc's environment to find the cluster and its credentials.
const ENVIRONMENT: &[&str] = &[
    "HOME",
    "KUBECONFIG",
    "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_SERVICE_PORT",
    "HTTPS_PROXY",
    "NO_PROXY",
    "AWS_",
];

/// A Kubernetes cluster.
#[derive(Debug)]
pub(super) struct Kubernetes<'a> {
    host: &'a Host,
    labels: &'a Labels,
    environment: BTreeMap<String, String>,
}

impl<'a> Kubernetes<'a> {
    /// The cluster that this host's kubectl reaches, and how the policy asks it for actions.
    pub(super) fn new(
        host: &'a Host,
        labels: &'a Labels,
        environment: &BTreeMap<String, String>,
    ) -> Self {
        let needed = |name: &String| {
            ENVIRONMENT
                .iter()
                .any(|known| name == known || (known.ends_with('_') && name.starts_with(known)))
        };
        let environment = environment.iter().filter(|(name, _)| needed(name));
        Kubernetes {
            host,
            labels,
            environment: environment
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        }
    }

    fn read(&self, name: &str) -> Result<Node, SchedulerError> {
        let command = Command::new("kubectl", DEADLINE).args(["get", "--raw", &path(name)]);
        let what = format!("Kubernetes does not tell how {name} stands");
        self.ask(name, &what, command)
    }

    /// Replaces the node, or its subresource `status`; the answer is the node as it is then.
    fn write(&self, node: &Node, subresource: &str) -> Result<Node, SchedulerError> {
        let command = Command::new("kubectl", DEADLINE)
            // Before 1.21 kubectl asks for the schema of everything unless it is told not to.
            .args(["replace", "--validate=false", "--filename=-", "--raw"])
            .arg(path(&node.name) + subresource)
            .input(node.object.to_string());
        let what = format!(
            "Kubernetes did not change {}{}",
            node.name,
            subresource.replace('/', "'s ")
        );
        self.ask(&node.name, &what, command)
    }

    fn ask(&self, name: &str, what: &str, command: Command) -> Result<Node, SchedulerError> {
        let mut command = command.arg(ANSWER);
        for (key, value) in &self.environment {
            command = command.env(key, value);
        }
        let what = what.to_owned();
        let output = match self.host.exec(&command) {
            Ok(output) => output,
            Err(error) => {
                let said = chain(&error);
                return Err(SchedulerError::NoAnswer { what, said });
            }
        };
        if output.ended == Ended::Exited(0) && !output.stdout.is_truncated() {
            return Node::parse(name, &output.stdout.kept()).ok_or(SchedulerError::Refused {
                what,
                said: format!("the answer is not the node {name}"),
            });
        }
        let said = output.stderr.last_words();
        let said = match said.trim() {
            "" => output.ended.to_string(),
            said => format!("{said} ({})", output.ended),
        };
        let is_no_answer = [
            "The connection to the server",
            "Unable to connect to the server",
            "Client.Timeout",
            "request canceled",
            "context deadline exceeded",
            "(ServiceUnavailable)",
        ]
        .iter()
        .any(|sign| said.contains(sign));
        Err(if is_no_answer || output.ended == Ended::TimedOut {
            SchedulerError::NoAnswer { what, said }
        } else {
            SchedulerError::Refused { what, said }
        })
    }

    /// Writes the changed node, anew as long as others write it at the same time and leave it standing as it was seen to.
    fn change(
        &self,
        name: &str,
        seen: Option<&Standing>,
        change: impl Fn(&mut Node) -> Changes,
    ) -> Result<(), SchedulerError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let mut node = self.read(name)?;
            if seen.is_some_and(|seen| *seen != node.standing(self.labels)) {
                return Err(SchedulerError::Refused {
                    what: format!("{name} is not touched"),
                    said: "somebody has changed how it stands just now".to_owned(),
                });
            }
            match change(&mut node).write(self, node) {
                Err(SchedulerError::Refused { said, .. })
                    if said.contains("(Conflict)") && attempts < ATTEMPTS => {}
                done => return done,
            }
        }
    }

    fn fault_type(&self, class: &str) -> &str {
        self.labels.fault_type(class).unwrap_or(TYPE_UNKNOWN)
    }
}

/// What is to be changed on a node, in the order of writing.
struct Changes {
    conditions: Vec<Value>,
    /// The node's labels, annotations and taints, as they are to be.
    metadata: Metadata,
}

struct Metadata {
    set: Vec<(&'static str, String)>,
    removed: &'static [&'static str],
    details: Option<String>,
    is_tainted: bool,
}

impl Changes {
    fn write(self, kubernetes: &Kubernetes<'_>, mut node: Node) -> Result<(), SchedulerError> {
        for condition in self.conditions {
            node.set_condition(condition);
        }
        // Its answer has the new resourceVersion.
        let mut node = kubernetes.write(&node, "/status")?;
        node.set_metadata(self.metadata);
        kubernetes.write(&node, "").map(drop)
    }
}

impl Scheduler for Kubernetes<'_> {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn look(&self, node: &str) -> Result<Standing, SchedulerError> {
        Ok(self.read(node_name(node)?)?.standing(self.labels))
    }

    fn words(&self, step: &Step) -> Option<String> {
        self.labels.status.get(&step.action)?;
        let (class, run, action) = (step.class(), step.run(), step.action);
        Some(format!("{OURS}{class}:{run}:{action}"))
    }

    fn is_here(&self, node: &str, here: &Machine) -> Result<bool, SchedulerError> {
        Ok(self.read(node_name(node)?)?.is(here))
    }

    fn mark(
        &self,
        step: &Step,
        words: &str,
        seen: &Standing,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        let name = node_name(&step.node)?;
        let status = self.labels.status.get(&step.action);
        let status = status.map_or(UNSCHEDULABLE, String::as_str);
        let (fault_type, reason) = (self.fault_type(step.class()), camel(step.class()));
        let message = message(&format!("{words} {}", step.why));
        let now = rfc3339(now);
        let fault = |class: &str, message: &str| json!({"timestamp": now, "type": self.fault_type(class), "reason": camel(class), "message": message});
        let mut details = vec![fault(step.class(), &message)];
        let others = step
            .causes
            .iter()
            .filter(|cause| cause.fault != step.class());
        details.extend(others.take(DETAILS_MAX - 1).map(|cause| {
            let said = format!("{OURS}{}:{} {}", cause.fault, cause.run, cause.message);
            fault(&cause.fault, &self::message(&said))
        }));
        let details = Value::from(details).to_string();
        self.change(name, Some(seen), |_| Changes {
            conditions: vec![condition(fault_type, "True", &reason, &message, &now)],
            metadata: Metadata {
                set: vec![
                    (HEALTH, status.to_owned()),
                    (DEEP_CHECK, "Failed".to_owned()),
                    (FAULT_TYPES, fault_type.to_owned()),
                    (FAULT_REASONS, reason.clone()),
                ],
                removed: &[],
                details: Some(details.clone()),
                is_tainted: true,
            },
        })
    }

    fn give_back(&self, node: &str, now: Timestamp) -> Result<String, SchedulerError> {
        let now = rfc3339(now);
        let said = "dhc ran the checks again that had failed, and they passed";
        self.change(node_name(node)?, None, |node| {
            // A later mark may have been of another type than the one before.
            let conditions = node.our_conditions(self.labels);
            let well = |kind: &String| condition(kind, "False", "Recovered", said, &now);
            Changes {
                conditions: conditions.iter().map(well).collect(),
                metadata: Metadata {
                    set: vec![
                        (HEALTH, SCHEDULABLE.to_owned()),
                        (DEEP_CHECK, "Passed".to_owned()),
                    ],
                    removed: &[FAULT_TYPES, FAULT_REASONS],
                    details: None,
                    is_tainted: false,
                },
            }
        })?;
        Ok("given back".to_owned())
    }
}

/// A node as the API server has it.
struct Node {
    name: String,
    object: Value,
}

impl Node {
    fn parse(name: &str, json: &[u8]) -> Option<Node> {
        let object: Value = serde_json::from_slice(json).ok()?;
        let is_it = object["metadata"]["name"] == name && object["spec"].is_object();
        is_it.then(|| Node {
            name: name.to_owned(),
            object,
        })
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.object["metadata"]["labels"][key].as_str()
    }

    /// Whether it is this machine, by the cloud's name for it or else by its boot, which containers of one host share.
    fn is(&self, here: &Machine) -> bool {
        let boot = self.object["status"]["nodeInfo"]["bootID"].as_str();
        let cloud = self.object["spec"]["providerID"].as_str();
        let cloud = cloud.and_then(|id| Some(id.rsplit_once('/')?.1));
        match (cloud, here.identity.instance_id.as_deref()) {
            (Some(cloud), Some(instance)) => cloud == instance,
            _ => boot.is_some() && boot == here.identity.boot_id.as_deref(),
        }
    }

    /// The types of the conditions that say what dhc has found wrong.
    fn our_conditions(&self, labels: &Labels) -> Vec<String> {
        let all = self.object["status"]["conditions"].as_array();
        let text = |condition: &'_ Value, key: &str| condition[key].as_str().map(str::to_owned);
        let ours = all.into_iter().flatten().filter(|condition| {
            let says = text(condition, "message").is_some_and(|said| said.starts_with(OURS));
            says && condition["status"] == "True"
        });
        ours.filter_map(|condition| text(condition, "type"))
            .filter(|kind| kind == TYPE_UNKNOWN || labels.has_fault_type(kind))
            .collect()
    }

    fn taints(&self) -> impl Iterator<Item = &Value> {
        self.object["spec"]["taints"]
            .as_array()
            .into_iter()
            .flatten()
    }

    fn standing(&self, labels: &Labels) -> Standing {
        let another = |state: &str, words: String| Standing::Marked {
            state: state.to_owned(),
            words,
            by: By::Another,
        };
        if self.object["spec"]["unschedulable"] == true {
            return another("cordoned", "kubectl cordon".to_owned());
        }
        let foreign = self.taints().find(|taint| {
            let key = taint["key"].as_str().unwrap_or_default();
            taint["effect"] != "PreferNoSchedule"
                && key != HEALTH
                && !OF_KUBERNETES.contains(&key)
                && !labels.allows_taint(key)
        });
        if let Some(taint) = foreign {
            let text = |key: &str| taint[key].as_str().unwrap_or_default();
            let words = format!("{}={}:{}", text("key"), text("value"), text("effect"));
            return another("tainted", words);
        }
        let health = self.label(HEALTH).filter(|health| *health != SCHEDULABLE);
        let is_tainted = self.taints().any(|taint| taint["key"] == HEALTH);
        if health.is_none() && !is_tainted {
            return Standing::InService;
        }
        let state = health.unwrap_or("tainted");
        match self.our_words(health, labels) {
            Some((words, run)) => Standing::Marked {
                state: state.to_owned(),
                words,
                by: By::Dhc { run },
            },
            None => another(state, format!("{HEALTH}={state}")),
        }
    }

    /// The words of dhc's mark, from the annotation that it leaves, and its run. They vouch for the label that they ask for and
    /// for no other, which somebody may have set later.
    fn our_words(&self, health: Option<&str>, labels: &Labels) -> Option<(String, String)> {
        let details = self.object["metadata"]["annotations"][FAULT_DETAILS].as_str()?;
        let details: Value = serde_json::from_str(details).ok()?;
        let (words, _) = details[0]["message"].as_str()?.split_once(' ')?;
        let parts: Vec<&str> = words.strip_prefix(OURS)?.split(':').collect();
        let [_, run, action] = parts[..] else {
            return None;
        };
        let mut asked = labels.status.iter();
        let (_, asked) = asked.find(|(known, _)| known.word() == action)?;
        let is_it = health.is_none_or(|health| health == asked);
        is_it.then(|| (words.to_owned(), run.to_owned()))
    }

    fn set_condition(&mut self, condition: Value) {
        let conditions = &mut self.object["status"]["conditions"];
        let mut all = conditions.as_array().cloned().unwrap_or_default();
        match all
            .iter_mut()
            .find(|known| known["type"] == condition["type"])
        {
            Some(known) => *known = condition,
            None => all.push(condition),
        }
        *conditions = all.into();
    }

    fn set_metadata(&mut self, changes: Metadata) {
        let labels = object(&mut self.object["metadata"]["labels"]);
        for (key, value) in changes.set {
            labels.insert(key.to_owned(), value.into());
        }
        for key in changes.removed {
            labels.remove(*key);
        }
        let annotations = object(&mut self.object["metadata"]["annotations"]);
        match changes.details {
            Some(details) => annotations.insert(FAULT_DETAILS.to_owned(), details.into()),
            None => annotations.remove(FAULT_DETAILS),
        };
        let mut taints: Vec<Value> = self.taints().cloned().collect();
        taints.retain(|taint| taint["key"] != HEALTH);
        if changes.is_tainted {
            taints.push(json!({"key": HEALTH, "value": UNSCHEDULABLE, "effect": "NoSchedule"}));
        }
        self.object["spec"]["taints"] = taints.into();
    }
}

/// The object in this place, made if there is none.
fn object(place: &mut Value) -> &mut Map<String, Value> {
    if !place.is_object() {
        *place = json!({});
    }
    place.as_object_mut().expect("it was made an object")
}

fn condition(fault_type: &str, status: &str, reason: &str, message: &str, now: &str) -> Value {
    json!({
        "type": fault_type,
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    })
}

fn path(name: &str) -> String {
    format!("/api/v1/nodes/{name}")
}

/// A fault class as Kubernetes wants a reason: `gpu.memory.remap_failed` is `GpuMemoryRemapFailed`.
fn camel(class: &str) -> String {
    let words = class.split(|c: char| !c.is_ascii_alphanumeric());
    words
        .filter_map(|word| {
            let (first, rest) = word.split_at_checked(1)?;
            Some(first.to_ascii_uppercase() + rest)
        })
        .collect()
}

/// One line of text without control characters.
fn message(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(MESSAGE_MAX).map(plain).collect()
}

/// The time as Kubernetes writes it: to the second.
fn rfc3339(at: Timestamp) -> String {
    at.round(Unit::Second).unwrap_or(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_class_becomes_a_reason() {
        assert_eq!(camel("gpu.memory.remap_failed"), "GpuMemoryRemapFailed");
        assert_eq!(camel("unknown"), "Unknown");
    }
}
