//! Recovery on Kubernetes by the built program and the real `kubectl` (any from 1.20 on), against an API server of ours that
//! knows nodes and nothing else and keeps every request. Never yet against a real API server.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start the program and look at what it left"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use common::{Dhc, enforced_policy};
use dhc_fixtures::FakeNode;
use serde_json::{Value, json};
use tiny_http::{Header, Method, Request, Response, Server};

/// How the API server behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    /// It refuses to change anything.
    Forbids,
    /// Somebody else writes the node before each of the first so many writes.
    Contended(u64),
    /// Somebody cordons the node before the first write.
    Overtaken,
    /// It takes requests and answers none.
    Hangs,
    /// It answers with something else.
    Babbles,
}

/// A write: `PUT path body`.
struct Write {
    path: String,
    body: Value,
}

struct State {
    node: Value,
    mood: Mood,
    writes: Vec<Write>,
    /// Requests that were neither a look at the node nor a write.
    others: Vec<String>,
    /// Requests that wait for an answer for ever.
    hanging: Vec<Request>,
}

/// An API server with one node, and a kubeconfig that leads to it.
struct Api {
    state: Arc<Mutex<State>>,
    server: Arc<Server>,
    folder: tempfile::TempDir,
}

impl Api {
    fn with(node: Value, mood: Mood) -> Api {
        let server = Arc::new(Server::http("127.0.0.1:0").unwrap());
        let state = Arc::new(Mutex::new(State {
            node,
            mood,
            writes: Vec::new(),
            others: Vec::new(),
            hanging: Vec::new(),
        }));
        let (answering, kept) = (Arc::clone(&server), Arc::clone(&state));
        std::thread::spawn(move || {
            for request in answering.incoming_requests() {
                answer(request, &mut kept.lock().unwrap());
            }
        });
        let api = Api {
            state,
            folder: tempfile::tempdir().unwrap(),
            server,
        };
        let address = api.server.server_addr().to_ip().unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "dhc", "user": {"token": "t0ken"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "dhc"}}],
        });
        std::fs::write(api.path("kubeconfig"), kubeconfig.to_string()).unwrap();
        api
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn node(&self) -> Value {
        self.state().node.clone()
    }

    /// A policy for Kubernetes that is meant.
    fn policy(&self, built_in: &str) -> PathBuf {
        let text = enforced_policy(built_in);
        let text = text.replace("scheduler = \"slurm\"", "scheduler = \"kubernetes\"");
        let path = self.path(&format!("{built_in}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// What dhc finds on this machine, which Kubernetes knows as n1.
    fn result(&self, machine: &str) -> PathBuf {
        let dhc = Dhc::on(FakeNode::of(machine).file("/proc/sys/kernel/random/boot_id", "b1\n"));
        let mut run = dhc.command("run", &["--format", "json", "--check", "gpu-count,nvlink"]);
        let outcome = common::outcome(run.env("DHC_NODE_NAME", "n1").output().unwrap());
        assert_eq!(outcome.report.nodes[0].name, "n1");
        let path = self.path(&format!("{machine}.json"));
        std::fs::write(&path, serde_json::to_vec(&outcome.report).unwrap()).unwrap();
        path
    }

    fn apply(&self, policy: &Path, result: &Path) -> (i32, Value) {
        let output = self.recover("apply", policy, result);
        let applied = serde_json::from_slice(&output.stdout);
        let applied: Value = applied.unwrap_or_else(|error| panic!("{error}: {output:?}"));
        (output.status.code().unwrap(), applied["nodes"].clone())
    }

    fn recover(&self, what: &str, policy: &Path, result: &Path) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dhc"));
        command
            .args(["recover", what, "--format", "json", "--policy"])
            .arg(policy);
        command.arg("--history").arg(self.path("history.sqlite"));
        command.arg("--log").arg(self.path("recover.log"));
        command
            .env("KUBECONFIG", self.path("kubeconfig"))
            .env("HOME", self.folder.path());
        command.arg(result).output().unwrap()
    }

    /// `dhc recover verify` on n1, which is well after its reboot.
    fn verify(&self, policy: &Path, result: &Path) -> Output {
        let node = FakeNode::of(SOUND).file("/proc/sys/kernel/random/boot_id", "b2\n");
        self.verify_on(node, "n1", policy, result)
    }

    /// `dhc recover verify` of n1 on a machine of this name.
    fn verify_on(&self, node: FakeNode, name: &str, policy: &Path, result: &Path) -> Output {
        let dhc = Dhc::on(node);
        let mut verify = dhc.command("recover", &["verify"]);
        verify.args(
            (name != "n1")
                .then_some(["--node", "n1"])
                .into_iter()
                .flatten(),
        );
        verify.arg("--tools").arg(kubectl_folder());
        verify.arg("--policy").arg(policy);
        verify.arg("--history").arg(self.path("history.sqlite"));
        verify.env("DHC_NODE_NAME", name);
        verify
            .env("KUBECONFIG", self.path("kubeconfig"))
            .arg(result);
        verify.output().unwrap()
    }

    fn history(&self) -> Vec<String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dhc"));
        command.args(["history", "n1", "--format", "json", "--history"]);
        let output = command.arg(self.path("history.sqlite")).output().unwrap();
        let events: Value = serde_json::from_slice(&output.stdout).unwrap();
        let events = events.as_array().unwrap().iter();
        let kinds = events.map(|event| event["what"].as_str().unwrap().to_owned());
        let mut kinds: Vec<String> = kinds.filter(|what| what != "seen").collect();
        kinds.dedup();
        kinds
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.unblock();
    }
}

/// As an API server answers for `/api/v1/nodes/n1` and its `/status`: the whole node, or a `Status` with the reason.
fn answer(mut request: Request, state: &mut State) {
    let path = request.url().split('?').next().unwrap().to_owned();
    let mut body = String::new();
    request.as_reader().read_to_string(&mut body).unwrap();
    let failure = |code: u16, reason: &str, message: &str| {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, "code": code,
        });
        (code, status)
    };
    let (code, body) = match (request.method(), path.as_str()) {
        _ if state.mood == Mood::Hangs => return state.hanging.push(request),
        (_, "/api/v1/nodes/n1") if state.mood == Mood::Babbles => (200, json!({"kind": "Pod"})),
        (Method::Get, "/api/v1/nodes/n1") => (200, state.node.clone()),
        (Method::Get, path) if resources(path).is_some() => (200, resources(path).unwrap()),
        (Method::Put, _) if state.mood == Mood::Forbids => failure(
            403,
            "Forbidden",
            "nodes \"n1\" is forbidden: User \"dhc\" cannot update resource \"nodes/status\"",
        ),
        (Method::Put, "/api/v1/nodes/n1" | "/api/v1/nodes/n1/status") => {
            match state.mood {
                Mood::Contended(writes) if writes > 0 => {
                    state.mood = Mood::Contended(writes - 1);
                    touch(&mut state.node);
                }
                Mood::Overtaken => {
                    state.mood = Mood::Well;
                    state.node["spec"]["unschedulable"] = true.into();
                    touch(&mut state.node);
                }
                Mood::Well | Mood::Contended(_) | Mood::Forbids | Mood::Hangs | Mood::Babbles => {}
            }
            let body: Value = serde_json::from_str(&body).unwrap();
            if body["metadata"]["resourceVersion"] == state.node["metadata"]["resourceVersion"] {
                // The subresource changes the status alone, and the node everything else.
                let status = path.ends_with("/status");
                for part in ["metadata", "spec", "status"] {
                    if (part == "status") == status {
                        state.node[part] = body[part].clone();
                    }
                }
                touch(&mut state.node);
                state.writes.push(Write { path, body });
                (200, state.node.clone())
            } else {
                failure(
                    409,
                    "Conflict",
                    "Operation cannot be fulfilled on nodes \"n1\": the object has been modified",
                )
            }
        }
        (_, path) if path.starts_with("/api/v1/nodes/") => {
            failure(404, "NotFound", "nodes \"n2\" not found")
        }
        (method, path) => {
            state.others.push(format!("{method} {path}"));
            failure(404, "NotFound", "there is nothing here")
        }
    };
    let json = Header::from_bytes("Content-Type", "application/json").unwrap();
    let response = Response::from_string(body.to_string()).with_status_code(code);
    drop(request.respond(response.with_header(json)));
}

/// What an API server says of itself, as far as the manifests need it.
fn resources(path: &str) -> Option<Value> {
    let groups = [
        ("batch", "v1"),
        ("apps", "v1"),
        ("rbac.authorization.k8s.io", "v1"),
    ];
    let list = |version: &str, kinds: &[(&str, &str, bool)]| {
        let kinds = kinds.iter().map(|(name, kind, namespaced)| {
            json!({"name": name, "kind": kind, "namespaced": namespaced, "verbs": ["get", "create", "patch"]})
        });
        let resources: Vec<Value> = kinds.collect();
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources})
    };
    Some(match path {
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"]}),
        "/apis" => {
            let groups = groups.map(|(name, version)| {
                let version =
                    json!({"groupVersion": format!("{name}/{version}"), "version": version});
                json!({"name": name, "versions": [version], "preferredVersion": version})
            });
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        "/api/v1" => list(
            "v1",
            &[
                ("namespaces", "Namespace", false),
                ("serviceaccounts", "ServiceAccount", true),
            ],
        ),
        "/apis/batch/v1" => list("batch/v1", &[("jobs", "Job", true)]),
        "/apis/apps/v1" => list("apps/v1", &[("daemonsets", "DaemonSet", true)]),
        "/apis/rbac.authorization.k8s.io/v1" => list(
            "rbac.authorization.k8s.io/v1",
            &[
                ("clusterroles", "ClusterRole", false),
                ("clusterrolebindings", "ClusterRoleBinding", false),
            ],
        ),
        _ => return None,
    })
}

/// A write by somebody else.
fn touch(node: &mut Value) {
    let version: u64 = node["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    node["metadata"]["resourceVersion"] = (version + 1).to_string().into();
}

/// A node in service, with what real ones have besides: other labels, a taint that says what it is, conditions, and a field
/// that no dhc knows.
fn node() -> Value {
    json!({
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": "n1",
            "resourceVersion": "7",
            "labels": {"kubernetes.io/hostname": "n1", "sagemaker.amazonaws.com/node-health-status": "Schedulable"},
            "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
        },
        "spec": {
            "providerID": "aws:///use1-az1/i-0a1b2c3d4e5f60718",
            "taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}],
            "fieldOfTomorrow": {"kept": true},
        },
        "status": {
            "capacity": {"nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    })
}

/// Where kubectl is.
fn kubectl_folder() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let mut folders = std::env::split_paths(&path);
    let found = folders.find(|folder| folder.join("kubectl").is_file());
    found.expect("kubectl is not installed: apt-get install kubernetes-client")
}

const LOST: &str = "p5.48xlarge-gpu-lost";
const LINK_DOWN: &str = "p5.48xlarge-link-down";
const SOUND: &str = "p5.48xlarge";
const DOMAIN: &str = "sagemaker.amazonaws.com";

#[test]
fn a_replacement_is_asked_for_in_hyperpod_s_own_words() {
    let api = Api::with(node(), Mood::Well);
    let result = api.result(LINK_DOWN);
    let (exit, nodes) = api.apply(&api.policy("hyperpod"), &result);
    assert_eq!((exit, &nodes[0]["outcome"]), (0, &"done".into()), "{nodes}");
    let after = api.node();
    let report: Value = serde_json::from_slice(&std::fs::read(&result).unwrap()).unwrap();
    let run = report["run"]["id"].as_str().unwrap();
    // The status first, then the node; each is what was there with our words in it, and nothing else.
    let state = api.state();
    let paths: Vec<&str> = state
        .writes
        .iter()
        .map(|write| write.path.as_str())
        .collect();
    assert_eq!(paths, ["/api/v1/nodes/n1/status", "/api/v1/nodes/n1"]);
    let condition = &state.writes[0].body["status"]["conditions"][1];
    let (now, message) = (
        condition["lastTransitionTime"].clone(),
        condition["message"].clone(),
    );
    let said = message.as_str().unwrap();
    assert!(
        said.starts_with(&format!(
            "dhc:nvlink.link_down:{run}:replace:b1 nvlink.link_down: "
        )),
        "{said}"
    );
    let mut expected = node();
    expected["status"]["conditions"] = json!([
        {"type": "Ready", "status": "True", "reason": "KubeletReady"},
        {
            "type": "NvidiaGPUUnhealthy", "status": "True", "reason": "NvlinkLinkDown", "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        },
    ]);
    assert_eq!(state.writes[0].body, expected);
    let details = after["metadata"]["annotations"][format!("{DOMAIN}/fault-details")].clone();
    let parsed: Value = serde_json::from_str(details.as_str().unwrap()).unwrap();
    let fault = json!({
        "timestamp": now, "type": "NvidiaGPUUnhealthy", "reason": "NvlinkLinkDown", "message": message,
    });
    assert_eq!(parsed[0], fault);
    expected["metadata"] = json!({
        "name": "n1",
        "resourceVersion": "8",
        "labels": {
            "kubernetes.io/hostname": "n1",
            "sagemaker.amazonaws.com/node-health-status": "UnschedulablePendingReplacement",
            "sagemaker.amazonaws.com/deep-health-check-status": "Failed",
            "sagemaker.amazonaws.com/fault-types": "NvidiaGPUUnhealthy",
            "sagemaker.amazonaws.com/fault-reasons": "NvlinkLinkDown",
        },
        "annotations": {
            "node.alpha.kubernetes.io/ttl": "0",
            "sagemaker.amazonaws.com/fault-details": details,
        },
    });
    expected["spec"]["taints"] = json!([
        {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
        {"key": "sagemaker.amazonaws.com/node-health-status", "value": "Unschedulable", "effect": "NoSchedule", "timeAdded": now},
    ]);
    assert_eq!(state.writes[1].body, expected);
    assert_eq!(api.history(), ["begun", "done"]);
}

#[test]
fn what_is_done_is_done_once_and_taken_back_when_the_node_passes_again() {
    let api = Api::with(node(), Mood::Well);
    let (policy, result) = (api.policy("hyperpod"), api.result(LOST));
    assert_eq!(api.apply(&policy, &result).0, 0);
    let health = format!("{DOMAIN}/node-health-status");
    assert_eq!(
        api.node()["metadata"]["labels"][&health],
        "UnschedulablePendingReboot"
    );
    let writes = api.state().writes.len();
    let (exit, again) = api.apply(&policy, &result);
    assert_eq!((exit, &again[0]["outcome"]), (0, &"held".into()));
    assert_eq!(api.state().writes.len(), writes, "it was done again");
    let output = api.verify(&policy, &result);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let mut expected = node();
    let after = api.node();
    expected["metadata"]["resourceVersion"] = after["metadata"]["resourceVersion"].clone();
    expected["metadata"]["labels"][format!("{DOMAIN}/deep-health-check-status")] = "Passed".into();
    let now = after["status"]["conditions"][1]["lastTransitionTime"].clone();
    expected["status"]["conditions"]
        .as_array_mut()
        .unwrap()
        .push(json!({
            "type": "NvidiaGPUUnhealthy", "status": "False", "reason": "Recovered",
            "message": "dhc ran the checks again that had failed, and they passed",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }));
    assert_eq!(after, expected);
    assert_eq!(api.history(), ["begun", "done", "returned"]);
}

#[test]
fn a_node_of_another_name_is_this_machine_if_kubernetes_says_so_and_else_is_left_out() {
    let boot = |boot: &str| {
        FakeNode::of(SOUND).file("/proc/sys/kernel/random/boot_id", format!("{boot}\n"))
    };
    // A machine outside of EC2 has no instance id of its own.
    let without_id = || boot("b2").file("/sys/class/dmi/id/board_asset_tag", "Default string\n");
    let cloud = "aws:///use1-az1/i-0a1b2c3d4e5f60718";
    for (what, provider, of_node, here, is_it) in [
        ("the cloud's name", Some(cloud), "b0", boot("b2"), true),
        (
            "another's name",
            Some("aws:///use1-az1/i-0n1"),
            "b2",
            boot("b2"),
            false,
        ),
        ("the boot", Some(cloud), "b2", without_id(), true),
        ("the boot alone", None, "b2", boot("b2"), true),
        ("another boot", None, "b0", boot("b2"), false),
        ("nothing", None, "", without_id(), false),
    ] {
        let api = Api::with(node(), Mood::Well);
        let (policy, result) = (api.policy("default"), api.result(LOST));
        // What a whole cluster's result says of a node does not tell which machine it is.
        let mut report: Value = serde_json::from_slice(&std::fs::read(&result).unwrap()).unwrap();
        let identity = report["nodes"][0]["identity"].as_object_mut().unwrap();
        identity.remove("instance_id");
        std::fs::write(&result, report.to_string()).unwrap();
        assert_eq!(api.apply(&policy, &result).0, 0, "{what}");
        let mut there = api.node();
        match provider {
            Some(provider) => there["spec"]["providerID"] = provider.into(),
            None => drop(there["spec"].as_object_mut().unwrap().remove("providerID")),
        }
        if !of_node.is_empty() {
            there["status"]["nodeInfo"] = json!({"bootID": of_node});
        }
        api.state().node = there;
        let output = api.verify_on(here, "box", &policy, &result);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(if is_it { 0 } else { 4 }),
            "{what}: {said}"
        );
        assert_eq!(
            said.contains("this machine is box"),
            !is_it,
            "{what}: {said}"
        );
        let is_back = api.node()["metadata"]["labels"][format!("{DOMAIN}/node-health-status")]
            == "Schedulable";
        assert_eq!(is_back, is_it, "{what}");
    }
}

#[test]
fn a_machine_that_kubernetes_does_not_tell_of_gives_back_no_node_of_another_name() {
    let api = Api::with(node(), Mood::Well);
    let (policy, result) = (api.policy("default"), api.result(LOST));
    assert_eq!(api.apply(&policy, &result).0, 0);
    let writes = api.state().writes.len();
    for mood in [Mood::Hangs, Mood::Babbles] {
        api.state().mood = mood;
        let output = api.verify_on(FakeNode::of(SOUND), "box", &policy, &result);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert_eq!(api.state().writes.len(), writes);
    }
}

#[test]
fn a_label_that_somebody_has_set_over_dhc_s_is_not_dhc_s() {
    let api = Api::with(node(), Mood::Well);
    let (policy, result) = (api.policy("hyperpod"), api.result(LOST));
    assert_eq!(api.apply(&policy, &result).0, 0);
    let health = format!("{DOMAIN}/node-health-status");
    api.state().node["metadata"]["labels"][&health] = "UnschedulablePendingReplacement".into();
    let before = api.node();
    let output = api.verify(&policy, &result);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let (exit, done) = api.apply(&policy, &api.result(LINK_DOWN));
    assert_eq!(
        (exit, &done[0]["outcome"]),
        (4, &"left_alone".into()),
        "{done}"
    );
    assert_eq!(api.node(), before);
}

#[test]
fn every_condition_that_dhc_has_set_is_taken_back_and_nobody_else_s() {
    let api = Api::with(node(), Mood::Well);
    let (policy, result) = (api.policy("hyperpod"), api.result(LOST));
    assert_eq!(api.apply(&policy, &result).0, 0);
    // What an earlier mark has left, and what another tool has found.
    for (kind, said) in [
        (
            "NetworkUnhealthy",
            "dhc:nic.missing:01M85:reboot nic.missing",
        ),
        ("NeuronUnhealthy", "no device answers"),
    ] {
        let mut state = api.state();
        let conditions = state.node["status"]["conditions"].as_array_mut().unwrap();
        conditions.push(json!({"type": kind, "status": "True", "message": said}));
    }
    let output = api.verify(&policy, &result);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let node = api.node();
    let conditions = node["status"]["conditions"].as_array().unwrap().iter();
    let bad: Vec<&Value> = conditions
        .filter(|condition| condition["status"] == "True" && condition["type"] != "Ready")
        .map(|condition| &condition["type"])
        .collect();
    assert_eq!(bad, ["NeuronUnhealthy"]);
}

#[test]
fn the_default_policy_marks_and_asks_for_nothing() {
    let api = Api::with(node(), Mood::Well);
    assert_eq!(api.apply(&api.policy("default"), &api.result(LOST)).0, 0);
    let health = format!("{DOMAIN}/node-health-status");
    assert_eq!(api.node()["metadata"]["labels"][&health], "Unschedulable");
}

/// What somebody did to a node.
type Change = fn(&mut Value);

#[test]
fn a_node_that_somebody_else_took_out_is_left_alone() {
    let foreign: [(&str, Change); 4] = [
        ("kubectl cordon", |node| {
            node["spec"]["unschedulable"] = true.into()
        }),
        ("maintenance=ann:NoExecute", |node| {
            let taints = node["spec"]["taints"].as_array_mut().unwrap();
            taints.push(json!({"key": "maintenance", "value": "ann", "effect": "NoExecute"}));
        }),
        ("node-health-status=UnschedulablePendingReboot", |node| {
            node["metadata"]["labels"][format!("{DOMAIN}/node-health-status")] =
                "UnschedulablePendingReboot".into();
        }),
        // HyperPod's own agent says why, and is not dhc.
        ("node-health-status=Unschedulable", |node| {
            node["metadata"]["labels"][format!("{DOMAIN}/node-health-status")] =
                "Unschedulable".into();
            let details = json!([{"message": "XidHardwareFailure on GPU 3"}]).to_string();
            node["metadata"]["annotations"][format!("{DOMAIN}/fault-details")] = details.into();
        }),
    ];
    for (words, change) in foreign {
        let mut node = node();
        change(&mut node);
        let api = Api::with(node.clone(), Mood::Well);
        let (exit, nodes) = api.apply(&api.policy("hyperpod"), &api.result(LOST));
        assert_eq!(
            (exit, &nodes[0]["outcome"]),
            (4, &"left_alone".into()),
            "{nodes}"
        );
        assert!(
            nodes[0]["what"].as_str().unwrap().contains(words),
            "{words}: {nodes}"
        );
        assert_eq!(api.node(), node);
    }
}

#[test]
fn a_node_that_kubernetes_itself_has_lost_can_be_marked() {
    let mut silent = node();
    let taints = silent["spec"]["taints"].as_array_mut().unwrap();
    taints.push(json!({"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}));
    let api = Api::with(silent, Mood::Well);
    assert_eq!(api.apply(&api.policy("hyperpod"), &api.result(LOST)).0, 0);
    assert_eq!(api.node()["spec"]["taints"].as_array().unwrap().len(), 3);
}

#[test]
fn a_write_that_meets_another_is_tried_again_and_overwrites_nothing() {
    let api = Api::with(node(), Mood::Contended(2));
    let (exit, nodes) = api.apply(&api.policy("hyperpod"), &api.result(LOST));
    assert_eq!((exit, &nodes[0]["outcome"]), (0, &"done".into()), "{nodes}");
    let endless = Api::with(node(), Mood::Contended(u64::MAX));
    let (exit, nodes) = endless.apply(&endless.policy("hyperpod"), &endless.result(LOST));
    assert_eq!(
        (exit, &nodes[0]["outcome"]),
        (4, &"failed".into()),
        "{nodes}"
    );
    assert!(
        nodes[0]["what"]
            .as_str()
            .unwrap()
            .contains("the object has been modified"),
        "{nodes}"
    );
    assert_eq!(endless.state().writes.len(), 0);
    assert_eq!(endless.history(), ["begun", "failed"]);
}

#[test]
fn a_node_that_is_cordoned_between_look_and_mark_is_left_to_whoever_did_it() {
    let api = Api::with(node(), Mood::Overtaken);
    let (exit, nodes) = api.apply(&api.policy("hyperpod"), &api.result(LOST));
    assert_eq!(
        (exit, &nodes[0]["outcome"]),
        (4, &"failed".into()),
        "{nodes}"
    );
    let what = nodes[0]["what"].as_str().unwrap();
    assert!(
        what.contains("somebody has changed how it stands"),
        "{what}"
    );
    assert_eq!(api.state().writes.len(), 0);
}

#[test]
fn refusals_and_silence_are_told_as_they_are_and_change_nothing() {
    let refused = |api: &Api, outcome: &str, words: &str, history: &[&str]| {
        let (exit, nodes) = api.apply(&api.policy("hyperpod"), &api.result(LOST));
        assert_eq!(
            (exit, &nodes[0]["outcome"]),
            (4, &outcome.into()),
            "{nodes}"
        );
        let what = nodes[0]["what"].as_str().unwrap();
        assert!(what.contains(words), "{what}");
        assert_eq!(api.history(), history);
        assert_eq!(api.state().writes.len(), 0);
    };
    let forbidden = Api::with(node(), Mood::Forbids);
    refused(
        &forbidden,
        "failed",
        "cannot update resource",
        &["begun", "failed"],
    );
    let mut other = node();
    other["metadata"]["name"] = "n9".into();
    refused(
        &Api::with(other, Mood::Well),
        "failed",
        "is not the node n1",
        &[],
    );
    refused(
        &Api::with(node(), Mood::Babbles),
        "failed",
        "is not the node n1",
        &[],
    );
    refused(
        &Api::with(node(), Mood::Hangs),
        "failed",
        "Kubernetes does not tell",
        &[],
    );
    let away = Api::with(node(), Mood::Well);
    let kubeconfig = std::fs::read_to_string(away.path("kubeconfig")).unwrap();
    let port = away
        .server
        .server_addr()
        .to_ip()
        .unwrap()
        .port()
        .to_string();
    // Port 1 has no listener.
    std::fs::write(away.path("kubeconfig"), kubeconfig.replace(&port, "1")).unwrap();
    refused(&away, "failed", "was refused", &[]);
}

#[test]
fn a_node_that_the_cluster_does_not_know_is_told() {
    let api = Api::with(node(), Mood::Well);
    let result = api.result(LOST);
    let text = std::fs::read_to_string(&result).unwrap();
    std::fs::write(&result, text.replace("\"n1\"", "\"n2\"")).unwrap();
    let (exit, nodes) = api.apply(&api.policy("hyperpod"), &result);
    assert_eq!(
        (exit, &nodes[0]["outcome"]),
        (4, &"failed".into()),
        "{nodes}"
    );
    let what = nodes[0]["what"].as_str().unwrap();
    assert!(what.contains("nodes \"n2\" not found"), "{what}");
}

#[test]
fn every_act_is_logged_in_hyperpod_s_shape() {
    let api = Api::with(node(), Mood::Well);
    assert_eq!(
        api.apply(&api.policy("hyperpod"), &api.result(LINK_DOWN)).0,
        0
    );
    let log = std::fs::read_to_string(api.path("recover.log")).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(log.starts_with(r#"{"level":"error","ts":"2"#), "{log}");
    let msg = lines[0]["msg"].as_str().unwrap();
    let begins = "Encountered FaultyInstance. Replace the Instance. InstanceType: p5.48xlarge. ERROR:nvlink.link_down: ";
    assert!(msg.starts_with(begins), "{msg}");
    let events: Vec<&Value> = lines.iter().map(|line| &line["event"]).collect();
    assert_eq!(events, ["begun", "done"]);
    for (key, value) in [
        ("policy", "hyperpod@2"),
        ("scheduler", "kubernetes"),
        ("node", "n1"),
        ("boot_id", "b1"),
        ("action", "replace"),
        ("fault_class", "nvlink.link_down"),
    ] {
        assert_eq!(lines[1][key], value, "{key}: {log}");
    }
}

/// The objects of a manifest as kubectl reads them, with these words in it replaced first.
fn manifest(name: &str, words: &[(&str, &str)]) -> Vec<Value> {
    let api = Api::with(node(), Mood::Well);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes");
    let mut text = std::fs::read_to_string(folder.join(name)).unwrap();
    for (from, to) in words {
        assert!(text.contains(from), "{name} has no {from}");
        text = text.replace(from, to);
    }
    let file = api.path(name);
    std::fs::write(&file, text).unwrap();
    let mut kubectl = Command::new("kubectl");
    kubectl.args([
        "create",
        "--dry-run=client",
        "--validate=false",
        "--output=json",
        "--filename",
    ]);
    kubectl
        .arg(file)
        .env("KUBECONFIG", api.path("kubeconfig"))
        .env("HOME", api.folder.path());
    let output = kubectl.output().unwrap();
    assert!(output.status.success(), "{name}: {output:?}");
    // One document after the other, or all of them in a list.
    let documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    documents
        .flat_map(|document| match document.unwrap() {
            Value::Object(list) if list["kind"] == "List" => {
                list["items"].as_array().unwrap().clone()
            }
            object => vec![object],
        })
        .collect()
}

#[test]
fn the_manifests_are_what_kubectl_takes_and_name_the_node_to_dhc() {
    let job = manifest("job.yaml", &[("THE-NODE", "n1"), ("THE-IMAGE", "dhc:test")]).remove(0);
    let daemon_set = manifest("daemonset.yaml", &[("THE-IMAGE", "dhc:test")]).remove(0);
    assert_eq!(
        (&job["kind"], &daemon_set["kind"]),
        (&"Job".into(), &"DaemonSet".into())
    );
    assert_eq!(job["spec"]["template"]["spec"]["nodeName"], "n1");
    assert_eq!(job["spec"]["backoffLimit"], 0);
    for (pod, containers) in [
        (&job["spec"]["template"]["spec"], "containers"),
        (&daemon_set["spec"]["template"]["spec"], "initContainers"),
    ] {
        let container = &pod[containers][0];
        assert_eq!(container["securityContext"]["privileged"], true);
        assert_eq!(container["image"], "dhc:test");
        let name = json!({"name": "DHC_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}});
        assert_eq!(container["env"][0], name);
        // dhc understands what it is started with, and keeps results where the host's folder is mounted.
        let words: Vec<&str> = container["command"]
            .as_array()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap())
            .collect();
        let mut asked = Command::new(env!("CARGO_BIN_EXE_dhc"));
        let asked = asked.args(&words[1..]).arg("--help").output().unwrap();
        assert!(asked.status.success(), "{words:?}: {asked:?}");
        let state = words[words.iter().position(|word| *word == "--state").unwrap() + 1];
        assert_eq!(container["volumeMounts"][0]["mountPath"], state);
        assert_eq!(pod["volumes"][0]["hostPath"]["path"], "/var/lib/dhc");
        assert_eq!(
            (&pod["hostPID"], &pod["hostNetwork"]),
            (&true.into(), &true.into())
        );
        assert_eq!(pod["automountServiceAccountToken"], false);
    }
}

#[test]
fn recovery_may_touch_nodes_and_nothing_else() {
    let objects = manifest("recovery.yaml", &[]);
    let kinds: Vec<&str> = objects
        .iter()
        .map(|object| object["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "Namespace",
            "ServiceAccount",
            "ClusterRole",
            "ClusterRoleBinding"
        ]
    );
    let rules = json!([{"apiGroups": [""], "resources": ["nodes", "nodes/status"], "verbs": ["get", "update"]}]);
    assert_eq!(objects[2]["rules"], rules);
    assert_eq!(
        objects[3]["subjects"][0]["name"],
        objects[1]["metadata"]["name"]
    );
}

#[test]
fn a_machine_that_was_started_or_exchanged_since_the_result_is_not_marked() {
    let other: [(&str, Change); 2] = [
        ("is in the boot b-new now", |node| {
            node["status"]["nodeInfo"] = json!({"bootID": "b-new"});
        }),
        ("is the machine i-0new now", |node| {
            node["spec"]["providerID"] =
                "aws:///use1-az1/sagemaker/cluster/hyperpod-x1-i-0new".into();
        }),
    ];
    for (words, change) in other {
        let mut node = node();
        change(&mut node);
        let api = Api::with(node.clone(), Mood::Well);
        let (policy, result) = (api.policy("hyperpod"), api.result(LOST));
        let (exit, nodes) = api.apply(&policy, &result);
        assert_eq!((exit, &nodes[0]["outcome"]), (0, &"held".into()), "{nodes}");
        let what = nodes[0]["what"].as_str().unwrap();
        assert!(what.contains(words), "{what}");
        assert_eq!(api.node(), node);
    }
    // The same machine and boot as Kubernetes may name it.
    let mut node = node();
    node["status"]["nodeInfo"] = json!({"bootID": "b1"});
    node["spec"]["providerID"] =
        "aws:///use1-az1/sagemaker/cluster/hyperpod-x1-i-0a1b2c3d4e5f60718".into();
    let api = Api::with(node, Mood::Well);
    let (exit, nodes) = api.apply(&api.policy("hyperpod"), &api.result(LOST));
    assert_eq!((exit, &nodes[0]["outcome"]), (0, &"done".into()), "{nodes}");
}

#[test]
fn a_replacement_that_is_asked_for_is_never_made_a_reboot_and_a_reboot_can_become_one() {
    let api = Api::with(node(), Mood::Well);
    let (policy, lost, links) = (
        api.policy("hyperpod"),
        api.result(LOST),
        api.result(LINK_DOWN),
    );
    assert_eq!(api.apply(&policy, &lost).0, 0);
    assert_eq!(api.apply(&policy, &links).0, 0);
    let health = format!("{DOMAIN}/node-health-status");
    let pending = || api.node()["metadata"]["labels"][&health].clone();
    assert_eq!(pending(), "UnschedulablePendingReplacement");
    for _ in 0..2 {
        let (exit, nodes) = api.apply(&policy, &api.result("p5.48xlarge-seven-gpus"));
        assert_eq!((exit, &nodes[0]["outcome"]), (0, &"held".into()), "{nodes}");
        assert_eq!(pending(), "UnschedulablePendingReplacement");
        std::fs::remove_file(api.path("history.sqlite")).unwrap();
    }
    // The mark stands for the reboot before it as well, whose fault has to be gone too.
    let output = api.verify(&policy, &links);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let report: Value = serde_json::from_slice(&std::fs::read(&lost).unwrap()).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains(report["run"]["id"].as_str().unwrap()),
        "{said}"
    );
}

#[test]
fn an_annotation_that_dhc_has_left_vouches_for_nobody_s_later_label() {
    for is_tainted_again in [false, true] {
        let api = Api::with(node(), Mood::Well);
        let (policy, result) = (api.policy("hyperpod"), api.result(LOST));
        assert_eq!(api.apply(&policy, &result).0, 0);
        // HyperPod reboots the node and takes back what keeps it out. Then Ann asks for a reboot, in the same words, and
        // HyperPod may taint it for that.
        let taints = node()["spec"]["taints"].clone();
        let health = format!("{DOMAIN}/node-health-status");
        {
            let node = &mut api.state().node;
            node["spec"]["taints"] = taints;
            if is_tainted_again {
                node["spec"]["taints"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({"key": health, "value": "Unschedulable", "effect": "NoSchedule"}));
            }
            assert_eq!(
                node["metadata"]["labels"][&health],
                "UnschedulablePendingReboot"
            );
        }
        let before = api.node();
        let (exit, nodes) = api.apply(&policy, &api.result(LINK_DOWN));
        assert_eq!(
            (exit, &nodes[0]["outcome"]),
            (4, &"left_alone".into()),
            "{nodes}"
        );
        let output = api.verify(&policy, &result);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert_eq!(api.node(), before);
    }
}
