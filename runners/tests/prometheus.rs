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
use dhc_fixtures::{FakeNode, GpuLibraries};
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

/// The pages of a node with a link down, of one under load, of this machine over tcp and in its memory, and of a cluster with a slow node.
fn pages(folder: &Path) {
    let to = |name: &str| format!("prometheus={}", folder.join(name).display());
    // The last success is from the run before.
    let export = to("dhc.prom");
    let well = Dhc::on(FakeNode::p5_48xlarge()).run(&["--check", "nvlink", "--export", &export]);
    assert_eq!(well.exit, 0, "{}", well.stderr);
    let bad = Dhc::on(FakeNode::of("p5.48xlarge-link-down"));
    assert_eq!(
        bad.run(&["--check", "nvlink,host", "--export", &export])
            .exit,
        2
    );
    under_load(folder, &to("stress.prom"));
    let tcp = FakeNode::plain().file("/proc/sys/kernel/hostname", "other\n");
    let args = [
        "--check",
        "fabric-loopback,memory-stress",
        "--set",
        "fabric-loopback.provider=tcp",
        "--set",
        "memory-stress.seconds=1",
        "--set",
        "memory-stress.percent=1",
    ];
    let export = to("other.prom");
    let outcome = Dhc::on(tcp).run(&[&args[..], &["--export", &export]].concat());
    for check in ["fabric-loopback", "memory-stress"] {
        let record = &outcome.check(check).record;
        assert!(!record.measurements.is_empty(), "{record:?}");
    }
    let cluster = EightNodes::up().run(&["--export", &to("cluster.prom")]);
    assert_eq!(cluster.exit, 2, "{}", cluster.stderr);
}

/// A node whose GPUs, the fake ones, are loaded, under another name than the one with the link down.
fn under_load(folder: &Path, export: &str) {
    let libraries = folder.join("libraries");
    std::fs::create_dir(&libraries).unwrap();
    let fakes = GpuLibraries::in_folder(&libraries, 8)
        .memory_mib(32)
        .takes_ms(20, 2);
    let mut args = vec![
        "--check".to_owned(),
        "gpu-stress,gpu-pairs,nvlink".to_owned(),
    ];
    for setting in [
        format!("gpu-stress.libcuda={}", fakes.cuda().display()),
        format!("gpu-stress.libcublas={}", fakes.cublas().display()),
        format!("gpu-pairs.libcuda={}", fakes.cuda().display()),
        "gpu-stress.seconds=1".to_owned(),
        "gpu-stress.size=64".to_owned(),
        "gpu-pairs.mib=1".to_owned(),
    ] {
        args.extend(["--set".to_owned(), setting]);
    }
    args.extend(["--export".to_owned(), export.to_owned()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let node = FakeNode::p5_48xlarge().file("/proc/sys/kernel/hostname", "loaded\n");
    let outcome = Dhc::on(node).run(&args);
    for check in ["gpu-stress", "gpu-pairs"] {
        let measured = &outcome.check(check).record.measurements;
        assert!(!measured.is_empty(), "{}", outcome.stderr);
    }
}

/// The unit that Grafana calls the values of a metric by, from the end of its name ("Metric and label naming" of Prometheus'
/// documentation; Grafana, `packages/grafana-data/src/valueFormats/categories.ts`).
fn unit_of(metric: &str) -> Option<&'static str> {
    let units = [
        ("_bytes_per_second", "Bps"),
        ("_flop_per_second", "flops"),
        ("_seconds", "s"),
        ("_watts", "watt"),
        ("_celsius", "celsius"),
        ("_hertz", "hertz"),
        ("_ratio", "percentunit"),
        ("_probability", "percentunit"),
    ];
    let mut units = units.into_iter();
    units.find_map(|(end, unit)| metric.ends_with(end).then_some(unit))
}

/// The selectors of series in an expression: a name with what stands in braces behind it.
fn selectors(expression: &str) -> Vec<&str> {
    let names = expression.match_indices(['d', 'n']).filter(|(at, _)| {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let begins = !expression[..*at].ends_with(is_word);
        begins
            && ["dhc_", "node_textfile_"]
                .iter()
                .any(|begin| expression[*at..].starts_with(begin))
    });
    let whole = |(at, _): (usize, &str)| {
        let rest = &expression[at..];
        let name = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let name = name.unwrap_or(rest.len());
        match rest[name..].starts_with('{') {
            true => &rest[..rest.find('}').unwrap() + 1],
            false => &rest[..name],
        }
    };
    names.map(whole).collect()
}

#[test]
fn every_panel_shows_its_figures_in_the_unit_that_they_are_exported_in() {
    let text = std::fs::read_to_string(deploy("grafana/dhc.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut seen = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str();
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            for metric in metric_names(expression) {
                assert_eq!(unit, unit_of(&metric), "{}: {metric}", panel["title"]);
                seen.extend(unit);
            }
        }
    }
    assert_eq!(seen.len(), 7, "{seen:?}");
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
    assert!(expressions.len() >= 45);
    for expression in expressions {
        let answer = site.query(&expression).unwrap();
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        let samples = answer["data"]["result"].as_array().unwrap();
        assert!(!samples.is_empty(), "{expression} finds nothing");
    }

    // What the alerts look at is there, with the labels that they ask for.
    let groups = site.ask("rules").unwrap()["data"]["groups"].clone();
    let rules = groups[0]["rules"].as_array().unwrap();
    assert!(rules.len() >= 7, "{rules:?}");
    for rule in rules {
        let expression = rule["query"].as_str().unwrap();
        assert_eq!(rule["health"], "ok", "{rule}");
        let all = selectors(expression);
        assert!(!all.is_empty(), "{expression}");
        for selector in all {
            let found = site.query(selector).unwrap()["data"]["result"].clone();
            assert_ne!(found, Value::Array(Vec::new()), "{selector} finds nothing");
        }
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
