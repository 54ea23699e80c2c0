//! dhc's metrics in a real Prometheus, scraped through a real node exporter; the dashboard's queries and the alert rules on
//! what is there. Both run on ports of 127.0.0.1 that are free, and end with the test.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs and look at what they leave"
)]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::Dhc;
use common::gpu_cluster::EightNodes;
use dhc_fixtures::FakeNode;
use serde_json::Value;

/// How long the two programs may take to start and to see what they are to see, on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

const CONFIG: &str = "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [RULES]\n\
                      scrape_configs: [{job_name: node, static_configs: [{targets: ['127.0.0.1:PORT']}]}]\n";

/// A program that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct Site {
    folder: tempfile::TempDir,
    port: u16,
    _servers: [Server; 2],
}

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(path)
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn server(program: &str, log: &Path, args: &[String]) -> Server {
    let log = std::fs::File::create(log).unwrap();
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn();
    Server(child.unwrap_or_else(|error| panic!("{program}: {error}; .ci/setup tests installs it")))
}

impl Site {
    /// A node exporter that reads the `.prom` files of `pages`, and a Prometheus that scrapes it and knows the alert rules.
    fn up(pages: &Path) -> Site {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (exporter_port, port) = (free_port(), free_port());
        let config = CONFIG
            .replace(
                "RULES",
                deploy("prometheus/dhc.rules.yml").to_str().unwrap(),
            )
            .replace("PORT", &exporter_port.to_string());
        std::fs::write(path("prometheus.yml"), config).unwrap();
        let exporter = server(
            "prometheus-node-exporter",
            &path("exporter.log"),
            &[
                "--collector.disable-defaults".to_owned(),
                "--collector.textfile".to_owned(),
                format!("--collector.textfile.directory={}", pages.display()),
                format!("--web.listen-address=127.0.0.1:{exporter_port}"),
            ],
        );
        let prometheus = server(
            "prometheus",
            &path("prometheus.log"),
            &[
                format!("--config.file={}", path("prometheus.yml").display()),
                format!("--storage.tsdb.path={}", path("data").display()),
                format!("--web.listen-address=127.0.0.1:{port}"),
            ],
        );
        Site {
            folder,
            port,
            _servers: [exporter, prometheus],
        }
    }

    fn logs(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join(name));
        format!("{:?}\n{:?}", read("exporter.log"), read("prometheus.log"))
    }

    /// What Prometheus' HTTP API answers; nothing while it does not.
    fn ask(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(
            stream,
            "GET /api/v1/{path} HTTP/1.0\r\nHost: localhost\r\n\r\n"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    fn query(&self, expression: &str) -> Option<Value> {
        let encoded: String = expression
            .bytes()
            .map(|byte| format!("%{byte:02x}"))
            .collect();
        self.ask(&format!("query?query={encoded}"))
    }

    /// The samples of a query, once there are any.
    fn samples(&self, expression: &str) -> Vec<Value> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let answer = self.query(expression).unwrap_or_default();
            match answer["data"]["result"].as_array() {
                Some(samples) if !samples.is_empty() => return samples.clone(),
                // Nobody says when a scrape is over.
                _ => std::thread::sleep(Duration::from_millis(200)),
            }
        }
        panic!("no samples of {expression}; {}", self.logs())
    }
}

/// The pages of a node with a link down, of a Neuron node, of this machine over tcp, and of a cluster with a slow node.
fn pages(folder: &Path) {
    let to = |name: &str| format!("prometheus={}", folder.join(name).display());
    let bad = Dhc::on(FakeNode::of("p5.48xlarge-link-down"));
    assert_eq!(
        bad.run(&["--check", "nvlink,host", "--export", &to("node.prom")])
            .exit,
        2
    );
    let tcp = FakeNode::plain().file("/proc/sys/kernel/hostname", "other\n");
    let args = [
        "--check",
        "fabric-loopback",
        "--set",
        "fabric-loopback.provider=tcp",
    ];
    let export = to("other.prom");
    let outcome = Dhc::on(tcp).run(&[&args[..], &["--export", &export]].concat());
    assert!(
        !outcome
            .check("fabric-loopback")
            .record
            .measurements
            .is_empty()
    );
    let cluster = EightNodes::up().run(&["--export", &to("cluster.prom")]);
    assert_eq!(cluster.exit, 2, "{}", cluster.stderr);
}

/// Every expression of the dashboard's panels, with its variables standing for everything.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    targets
        .map(|target| {
            let mut expression = target["expr"].as_str().unwrap().to_owned();
            for name in ["level", "node", "collective", "metric"] {
                expression = expression.replace(&format!("${name}"), ".*");
            }
            assert!(!expression.contains('$'), "{expression}");
            expression
        })
        .collect()
}

/// The names of metrics in a text: all words that begin as ours or the node exporter's do.
fn metric_names(text: &str) -> BTreeSet<String> {
    let no_word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    let words = text
        .split(no_word)
        .filter(|word| word.starts_with("dhc_") || word.starts_with("node_textfile_"));
    words.map(str::to_owned).collect()
}

#[test]
fn prometheus_sees_the_failed_check_and_the_dashboard_asks_for_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    pages(folder.path());
    let site = Site::up(folder.path());

    let failed = site.samples("dhc_check_status{status=\"fail\",check=\"nvlink\"} == 1");
    assert_eq!(failed.len(), 1, "{failed:?}");
    let labels = &failed[0]["metric"];
    assert_eq!(
        (&labels["node"], &labels["instance_id"], &labels["level"]),
        (
            &"ip-10-0-1-7".into(),
            &"i-0a1b2c3d4e5f60718".into(),
            &"instance".into()
        )
    );
    let slow = site.samples("dhc_recommended_action_info{level=\"cluster\",action=\"reboot\"}");
    assert_eq!(slow[0]["metric"]["node"], "n5");
    // The exporter took every page, several of one level side by side.
    let refused = site.samples("node_textfile_scrape_error");
    assert_eq!(refused[0]["value"][1], "0", "{}", site.logs());
    assert!(!site.logs().contains("collected before"), "{}", site.logs());

    let text = std::fs::read_to_string(deploy("grafana/dhc.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let known = site.ask("label/__name__/values").unwrap();
    let known: BTreeSet<String> = serde_json::from_value(known["data"].clone()).unwrap();
    let rules = std::fs::read_to_string(deploy("prometheus/dhc.rules.yml")).unwrap();
    let asked: BTreeSet<String> = metric_names(&text)
        .union(&metric_names(&rules))
        .cloned()
        .collect();
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert!(asked.len() > 10 && unknown.is_empty(), "{unknown:?}");

    let expressions = expressions(&dashboard);
    assert!(expressions.len() >= 20);
    for expression in expressions {
        let answer = site.query(&expression).unwrap();
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        let samples = answer["data"]["result"].as_array().unwrap();
        assert!(!samples.is_empty(), "{expression} finds nothing");
    }

    // The alert of the failed node fires, and that of a run that is too old does not.
    let alert = site.samples("ALERTS{alertname=\"DhcNodeFails\",node=\"ip-10-0-1-7\"}");
    assert_eq!(alert[0]["metric"]["alertstate"], "firing");
    let old = site.query("ALERTS{alertname=\"DhcRunTooOld\"}").unwrap();
    assert_eq!(old["data"]["result"], Value::Array(Vec::new()));
}

#[test]
fn promtool_accepts_the_alert_rules() {
    let output = Command::new("promtool")
        .args(["check", "rules"])
        .arg(deploy("prometheus/dhc.rules.yml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_daily_run_is_too_old_after_two_days_and_a_weekly_one_after_two_weeks() {
    let too_old = |page: &str, hours: u32| {
        let folder = tempfile::tempdir().unwrap();
        let rules = deploy("prometheus/dhc.rules.yml");
        let test = format!(
            "rule_files: [{}]\ntests:\n- interval: 1h\n  input_series:\n  \
             - series: dhc_last_run_timestamp_seconds{{node=\"n1\",level=\"instance\",page=\"{page}\"}}\n    \
               values: 0x400\n  promql_expr_test:\n  \
             - expr: count(ALERTS{{alertname=\"DhcRunTooOld\"}})\n    eval_time: {hours}h\n    \
               exp_samples: [{{value: 1}}]\n",
            rules.display()
        );
        let file = folder.path().join("test.yml");
        std::fs::write(&file, test).unwrap();
        let output = Command::new("promtool")
            .args(["test", "rules"])
            .arg(&file)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let said = said + &String::from_utf8_lossy(&output.stdout);
        // Whatever else is wrong with the test is not an alert that is silent.
        assert!(
            output.status.success() || said.contains("got: nil"),
            "{said}"
        );
        output.status.success()
    };
    assert_eq!([too_old("dhc", 49), too_old("dhc", 51)], [false, true]);
    assert_eq!(
        [too_old("weekly", 337), too_old("weekly", 339)],
        [false, true]
    );
}
