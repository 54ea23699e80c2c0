//! Metrics for Prometheus, in the text format that the node exporter's textfile collector reads ("Exposition formats" of
//! Prometheus' documentation, version 0.0.4).
//!
//! Units are base units: seconds, bytes a second, hertz, ratios. Where two values would be one sample, the worse one stands. A
//! status is a set of states, one of which is 1. Labels come from closed sets and from the hardware; neither run ids nor
//! messages are among them, nor are time stamps on samples, which the collector refuses. Every sample names the level and its page, so that the pages of a quick and of a long run, and that
//! of a cluster, can lie side by side, and none takes back what another says.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dhc_checks::catalog::cluster_node;
use dhc_thresholds::{
    Action, At, CheckReport, Ending, Finding, Kind, Measurement, NodeReport, Report, SearchReport,
    Status, Subject, Unit, Value,
};
use jiff::Timestamp;

use super::Times;

const LAST_SUCCESS: &str = "dhc_last_success_timestamp_seconds";

/// Names and values of labels, in the order in which they are written.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// The page. `name` tells it from other pages that the same exporter reads. `before` is the page that it takes the place of:
/// what it says of the last success of a node that does not pass now is kept.
pub(super) fn page(
    report: &Report,
    times: Times,
    name: Option<&str>,
    before: Option<&str>,
) -> String {
    let mut common = vec![("level", report.run.level.as_str())];
    common.extend(name.map(|name| ("page", name)));
    let mut page = Page::new(&common);
    of_run(&mut page, report, times);
    for node in &report.nodes {
        of_node(&mut page, report, node);
        let labels = node_labels(node);
        let about = "When the last run ended, whatever came out.";
        let ended = seconds(times.ended);
        page.gauge("dhc_last_run_timestamp_seconds", about, &labels, ended);
        let succeeds = node.status <= Status::Warn && report.complete;
        let kept = || before.and_then(|before| page.in_page(before, LAST_SUCCESS, &labels));
        if let Some(last) = if succeeds { Some(ended) } else { kept() } {
            let about = "When the last run ended that was complete and in which the node passed or was merely warned of.";
            page.gauge(LAST_SUCCESS, about, &labels, last);
        }
    }
    if let Some(cluster) = &report.cluster {
        for check in &cluster.checks {
            of_check(&mut page, &Labels::new(), check);
        }
        for search in &cluster.searches {
            of_search(&mut page, search);
        }
    }
    page.text()
}

fn of_run(page: &mut Page, report: &Report, times: Times) {
    let built = vec![("version", env!("CARGO_PKG_VERSION"))];
    page.gauge(
        "dhc_build_info",
        "The dhc that wrote this page.",
        &built,
        1.0,
    );
    let none = Labels::new();
    let about = "Whether everything that was planned has run to its end.";
    page.gauge("dhc_run_complete", about, &none, flag(report.complete));
    let about = "How long the run took.";
    let duration = report.run.duration_ms as f64 / 1e3;
    page.gauge("dhc_run_duration_seconds", about, &none, duration);
    let about = "Until when recovery tooling may act on the result.";
    let expires = seconds(times.expires);
    page.gauge("dhc_run_expires_timestamp_seconds", about, &none, expires);
    let about = "The greatest status of all nodes, and of the nodes together.";
    page.states("dhc_run_status", about, &none, report.status);
}

fn of_node(page: &mut Page, report: &Report, node: &NodeReport) {
    let labels = node_labels(node);
    let identity = &node.identity;
    let mut info = labels.clone();
    info.push((
        "instance_type",
        identity.instance_type.as_deref().unwrap_or(""),
    ));
    info.push(("region", identity.region.as_deref().unwrap_or("")));
    info.push(("table", &report.judged_by.instance_type));
    page.gauge(
        "dhc_node_info",
        "Who the node is, and by which table it is judged.",
        &info,
        1.0,
    );
    let about = "The greatest status of the node's checks.";
    page.states("dhc_node_status", about, &labels, node.status);
    for check in &node.checks {
        of_check(page, &labels, check);
    }
    for fault in &node.faults {
        let mut labels = labels.clone();
        labels.push(("device", device(&fault.finding.subject)));
        labels.push(("fault_class", &fault.class));
        let about = "Findings that are worse than a pass, by fault class and device.";
        page.add("dhc_device_faults", about, &labels, 1.0);
        if fault.action != Action::None {
            labels.push(("action", fault.action.word()));
            let about = "What should be done about a fault; advice, never an order.";
            page.gauge("dhc_recommended_action_info", about, &labels, 1.0);
        }
    }
}

fn of_check(page: &mut Page, owner: &Labels<'_>, check: &CheckReport) {
    let mut labels = owner.clone();
    labels.push(("check", &check.check));
    page.states(
        "dhc_check_status",
        "What is known after the check.",
        &labels,
        check.status,
    );
    if !matches!(check.record.ending, Ending::Skipped { .. }) {
        let duration = check.record.duration_ms as f64 / 1e3;
        page.gauge(
            "dhc_check_duration_seconds",
            "How long the check ran.",
            &labels,
            duration,
        );
    }
    for measured in &check.record.measurements {
        if measured.metric == cluster_node::PROBABILITY.name
            && let Some(percent) = measured.value.number()
        {
            let about = "How likely the node is to be the cause of the failed groups it was in.";
            page.gauge("dhc_node_fault_probability", about, owner, percent / 100.0);
        }
        busbw(page, &labels, measured);
        let quantity = Quantity::of(measured.unit);
        if quantity.is_some_and(|quantity| quantity.is_kept_unjudged(&measured.at)) {
            let Measurement {
                metric,
                subject,
                value,
                unit,
                at,
                ..
            } = measured;
            figure(page, &labels, (metric, subject, at), *unit, value);
        }
    }
    let mut margins: BTreeMap<&str, f64> = BTreeMap::new();
    for finding in &check.findings {
        let of = (finding.metric.as_str(), &finding.subject, &finding.at);
        if let Some(value) = &finding.value {
            figure(page, &labels, of, finding.unit, value);
        }
        bound(page, &labels, finding);
        if let Some(margin) = margin(finding) {
            let least = margins.entry(&finding.metric).or_insert(margin);
            *least = least.min(margin);
        }
    }
    for (metric, least) in margins {
        let mut labels = labels.clone();
        labels.push(("metric", metric));
        let about = "How far the worst value of a metric is on the good side of its bound, as a share of the bound; \
                     negative beyond it.";
        page.gauge("dhc_check_margin_ratio", about, &labels, least);
    }
}

/// The bus bandwidth of a collective at one message size.
fn busbw(page: &mut Page, labels: &Labels<'_>, measured: &Measurement) {
    let (true, Some(bytes), Some((quantity, value))) = (
        measured.metric.ends_with(".busbw"),
        measured.at.bytes,
        base(measured.unit, &measured.value),
    ) else {
        return;
    };
    let bytes = bytes.to_string();
    let mut labels = labels.clone();
    labels.push(("message_bytes", &bytes));
    let about = "Bus bandwidth of an all-reduce by message size.";
    let name = "dhc_allreduce_busbw_bytes_per_second";
    page.worst(name, about, &labels, value, quantity.worse());
}

/// Something that was measured: by which metric, of what, under which conditions.
type Of<'a> = (&'a str, &'a Subject, &'a At);

/// A figure that was judged or should have been, or that says in which state the machine was meanwhile.
fn figure(page: &mut Page, labels: &Labels<'_>, of: Of<'_>, unit: Unit, value: &Value) {
    let Some((quantity, value)) = base(unit, value) else {
        return;
    };
    let (metric, subject, at) = of;
    let bytes = at.bytes.map(|bytes| bytes.to_string()).unwrap_or_default();
    let mut labels = labels.clone();
    labels.extend(conditions(metric, at, &bytes));
    labels.push(("device", device(subject)));
    labels.push(("subject", whole_name(subject)));
    let (name, about) = quantity.family();
    page.worst(name, about, &labels, value, quantity.worse());
}

/// The bound that a figure was held against.
fn bound(page: &mut Page, labels: &Labels<'_>, finding: &Finding) {
    let Some(bound) = &finding.bound else {
        return;
    };
    let Some((quantity, value)) = base(finding.unit, &bound.value) else {
        return;
    };
    let bytes = finding.at.bytes.map(|bytes| bytes.to_string());
    let bytes = bytes.unwrap_or_default();
    let mut labels = labels.clone();
    labels.extend(conditions(&finding.metric, &finding.at, &bytes));
    labels.push(("rule", &bound.rule));
    // Of several bounds the one that is kept by the fewest.
    let tightest = match bound.rule.ends_with("_below") {
        true => f64::max,
        false => f64::min,
    };
    let about = "The bound that decided.";
    page.worst(quantity.bounds(), about, &labels, value, tightest);
}

fn conditions<'a>(metric: &'a str, at: &'a At, bytes: &'a str) -> Labels<'a> {
    let provider = at.provider.as_deref().unwrap_or("");
    vec![
        ("metric", metric),
        ("message_bytes", bytes),
        ("provider", provider),
    ]
}

/// The device that a subject is or belongs to; whole nodes and groups of them are none, and their names know no bounds.
fn device(subject: &Subject) -> &str {
    match is_of_a_device(subject) {
        true => subject.device(),
        false => "",
    }
}

/// The whole name of a device, or of the part of one: of a link, or of the way from one GPU to another.
fn whole_name(subject: &Subject) -> &str {
    match is_of_a_device(subject) {
        true => &subject.name,
        false => "",
    }
}

fn is_of_a_device(subject: &Subject) -> bool {
    match subject.kind {
        Kind::Node | Kind::Group => false,
        Kind::Gpu
        | Kind::Nvlink
        | Kind::Nic
        | Kind::NeuronDevice
        | Kind::NeuronCore
        | Kind::Cpu
        | Kind::Memory
        | Kind::Disk
        | Kind::Pci
        | Kind::Nvswitch
        | Kind::Provider => true,
    }
}

/// The margin, where it is one: a share of a bound that is not zero, of a value that may be more or less than it.
fn margin(finding: &Finding) -> Option<f64> {
    let bound = finding.bound.as_ref()?;
    let shares = ["fail_below", "fail_above", "warn_below", "warn_above"];
    let is_share = shares.contains(&bound.rule.as_str()) && bound.value.number()? != 0.0;
    finding.margin.filter(|_| is_share)
}

fn of_search(page: &mut Page, search: &SearchReport) {
    let labels = vec![("check", search.check.as_str())];
    let about = "Waves of groups until it was known who is to blame.";
    page.gauge(
        "dhc_localise_waves",
        about,
        &labels,
        search.waves.len() as f64,
    );
    for group in search.waves.iter().flat_map(|wave| &wave.groups) {
        let mut labels = labels.clone();
        labels.push(("outcome", &group.outcome));
        page.add(
            "dhc_localise_groups",
            "Groups that were measured.",
            &labels,
            1.0,
        );
    }
    let mut labels = labels;
    labels.push(("conclusion", &search.conclusion));
    let about = "What the search came to.";
    page.gauge("dhc_localise_conclusion_info", about, &labels, 1.0);
}

fn node_labels(node: &NodeReport) -> Labels<'_> {
    let instance_id = node.identity.instance_id.as_deref();
    vec![
        ("node", node.name.as_str()),
        ("instance_id", instance_id.unwrap_or("")),
    ]
}

/// What a unit measures, as far as it is exported.
#[derive(Clone, Copy)]
enum Quantity {
    Bandwidth,
    Time,
    Arithmetic,
    Power,
    Temperature,
    Frequency,
}

impl Quantity {
    fn of(unit: Unit) -> Option<Quantity> {
        match unit {
            Unit::GigabytesPerSecond | Unit::GigabitsPerSecond => Some(Quantity::Bandwidth),
            Unit::Microseconds | Unit::Seconds => Some(Quantity::Time),
            Unit::TeraflopsPerSecond => Some(Quantity::Arithmetic),
            Unit::Watts => Some(Quantity::Power),
            Unit::Celsius => Some(Quantity::Temperature),
            Unit::Megahertz => Some(Quantity::Frequency),
            Unit::Count
            | Unit::GigatransfersPerSecond
            | Unit::Lanes
            | Unit::Bytes
            | Unit::Mebibytes
            | Unit::Percent
            | Unit::State => None,
        }
    }

    /// The name of its samples, and what they are.
    const fn family(self) -> (&'static str, &'static str) {
        match self {
            Quantity::Bandwidth => (
                "dhc_check_bandwidth_bytes_per_second",
                "A bandwidth that a check measured.",
            ),
            Quantity::Time => ("dhc_check_latency_seconds", "A time that a check measured."),
            Quantity::Arithmetic => (
                "dhc_check_flop_per_second",
                "Floating-point operations a second that a check measured.",
            ),
            Quantity::Power => ("dhc_check_power_watts", "Power that a check measured."),
            Quantity::Temperature => (
                "dhc_check_temperature_celsius",
                "A temperature that a check measured.",
            ),
            Quantity::Frequency => (
                "dhc_check_frequency_hertz",
                "A clock frequency that a check measured.",
            ),
        }
    }

    /// The name of the bounds that they are held against.
    const fn bounds(self) -> &'static str {
        match self {
            Quantity::Bandwidth => "dhc_check_threshold_bytes_per_second",
            Quantity::Time => "dhc_check_threshold_seconds",
            Quantity::Arithmetic => "dhc_check_threshold_flop_per_second",
            Quantity::Power => "dhc_check_threshold_watts",
            Quantity::Temperature => "dhc_check_threshold_celsius",
            Quantity::Frequency => "dhc_check_threshold_hertz",
        }
    }

    /// Which of two values is the worse one.
    const fn worse(self) -> fn(f64, f64) -> f64 {
        match self {
            Quantity::Bandwidth | Quantity::Arithmetic | Quantity::Frequency => f64::min,
            Quantity::Time | Quantity::Power | Quantity::Temperature => f64::max,
        }
    }

    /// Whether it says in which state the machine was, and is plotted even if nothing judges it. Times that are only kept as
    /// context are too many, and so are bandwidths of one message size each.
    const fn is_kept_unjudged(self, at: &At) -> bool {
        match self {
            Quantity::Power | Quantity::Temperature | Quantity::Frequency => true,
            Quantity::Bandwidth | Quantity::Arithmetic => at.bytes.is_none(),
            Quantity::Time => false,
        }
    }
}

/// A value in the base unit of what it measures.
fn base(unit: Unit, value: &Value) -> Option<(Quantity, f64)> {
    let quantity = Quantity::of(unit)?;
    let value = value.number()?;
    let value = match unit {
        Unit::GigabytesPerSecond => value * 1e9,
        Unit::GigabitsPerSecond => value * 1e9 / 8.0,
        Unit::Microseconds => value / 1e6,
        Unit::TeraflopsPerSecond => value * 1e12,
        Unit::Megahertz => value * 1e6,
        _ => value,
    };
    Some((quantity, value))
}

fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1e3
}

fn flag(yes: bool) -> f64 {
    if yes { 1.0 } else { 0.0 }
}

/// Families of samples by name, each sample once: the collector refuses a page in which one stands twice.
struct Page {
    /// The labels that every sample has, as they are written.
    common: String,
    families: BTreeMap<&'static str, Family>,
}

struct Family {
    about: &'static str,
    samples: BTreeMap<String, f64>,
}

impl Page {
    fn new(common: &Labels<'_>) -> Page {
        Page {
            common: written(common),
            families: BTreeMap::new(),
        }
    }

    fn gauge(&mut self, name: &'static str, about: &'static str, labels: &Labels<'_>, value: f64) {
        *self.sample(name, about, labels) = value;
    }

    /// A sample that several values may claim; the worse one has it.
    fn worst(
        &mut self,
        name: &'static str,
        about: &'static str,
        labels: &Labels<'_>,
        value: f64,
        worse: fn(f64, f64) -> f64,
    ) {
        let labels = self.labels(labels);
        let family = self.family(name, about);
        let sample = family.samples.entry(labels).or_insert(value);
        *sample = worse(*sample, value);
    }

    /// Adds to a sample.
    fn add(&mut self, name: &'static str, about: &'static str, labels: &Labels<'_>, value: f64) {
        *self.sample(name, about, labels) += value;
    }

    /// A sample for each status: 1 for the one that holds, else 0.
    fn states(&mut self, name: &'static str, about: &'static str, labels: &Labels<'_>, is: Status) {
        for status in Status::ALL {
            let mut labels = labels.clone();
            labels.push(("status", status.word()));
            self.gauge(name, about, &labels, flag(*status == is));
        }
    }

    fn sample(&mut self, name: &'static str, about: &'static str, labels: &Labels<'_>) -> &mut f64 {
        let labels = self.labels(labels);
        self.family(name, about).samples.entry(labels).or_default()
    }

    fn family(&mut self, name: &'static str, about: &'static str) -> &mut Family {
        let samples = BTreeMap::new();
        let family = Family { about, samples };
        self.families.entry(name).or_insert(family)
    }

    /// A sample of another page, if it is there and could be ours.
    fn in_page(&self, page: &str, name: &str, labels: &Labels<'_>) -> Option<f64> {
        let sample = format!("{name}{}", self.labels(labels));
        let value = page.lines().find_map(|line| line.strip_prefix(&sample))?;
        let value: f64 = value.trim().parse().ok()?;
        (value.is_finite() && value > 0.0).then_some(value)
    }

    /// Labels as they stand behind a name.
    fn labels(&self, labels: &Labels<'_>) -> String {
        let comma = if labels.is_empty() { "" } else { "," };
        format!("{{{}{comma}{}}}", self.common, written(labels))
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, family) in &self.families {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {}", family.about);
            let _ = writeln!(text, "# TYPE {name} gauge");
            for (labels, value) in &family.samples {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        }
        text
    }
}

fn written(labels: &Labels<'_>) -> String {
    let all = labels
        .iter()
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
    all.collect::<Vec<_>>().join(",")
}

/// The value of a label between its quotes. Control characters are legal there and serve nobody.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c if c.is_control() => text.push('\u{fffd}'),
            c => text.push(c),
        }
    }
    text
}
