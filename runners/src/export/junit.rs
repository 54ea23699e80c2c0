//! JUnit XML, as CI systems read it (the schema of Jenkins' xunit plugin): a suite for each node, a case for each check.
//!
//! A *fail* is a failure. An *error* or *unknown* is an error: nobody looked, or nobody knows. A check that was left out is
//! skipped. A *warn* is a success with a word on standard output.

use std::borrow::Cow;

use dhc_thresholds::{Report, Status};
use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesEnd, BytesStart, BytesText, Event};

use super::cases::{Case, Suite, suites};

/// The document.
pub(super) fn document(report: &Report) -> String {
    let mut xml = Xml(Writer::new_with_indent(Vec::new(), b' ', 2));
    xml.put(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)));
    let suites = suites(report);
    let all = || suites.iter().flat_map(|suite| &suite.cases);
    let time = seconds(report.run.duration_ms);
    let mut counts = counts(all());
    counts.extend([("name", "dhc".to_owned()), ("time", time)]);
    xml.open("testsuites", &counts);
    for suite in &suites {
        of_suite(&mut xml, suite, report);
    }
    xml.close("testsuites");
    xml.text()
}

fn of_suite(xml: &mut Xml, suite: &Suite<'_>, report: &Report) {
    let mut attributes = vec![
        ("name", suite.name.to_owned()),
        ("timestamp", report.run.started_at.clone()),
    ];
    attributes.extend(counts(suite.cases.iter()));
    let all_ms: u64 = suite.cases.iter().map(|case| case.duration_ms).sum();
    attributes.push(("time", seconds(all_ms)));
    if let Some(node) = suite.node {
        attributes.push(("hostname", node.name.clone()));
    }
    xml.open("testsuite", &attributes);
    properties(xml, suite, report);
    for case in &suite.cases {
        of_case(xml, suite, case);
    }
    xml.close("testsuite");
}

fn properties(xml: &mut Xml, suite: &Suite<'_>, report: &Report) {
    let mut properties = vec![
        ("dhc.run", report.run.id.as_str()),
        ("dhc.version", &report.run.dhc),
        ("dhc.level", &report.run.level),
        ("dhc.table", &report.judged_by.instance_type),
    ];
    if let Some(node) = suite.node {
        properties.push(("dhc.status", node.status.word()));
        properties.push(("dhc.action", node.action.word()));
        let identity = &node.identity;
        let known = [
            ("dhc.instance_id", &identity.instance_id),
            ("dhc.instance_type", &identity.instance_type),
            ("dhc.boot_id", &identity.boot_id),
        ];
        properties.extend(
            known
                .iter()
                .filter_map(|(key, value)| Some((*key, value.as_deref()?))),
        );
    }
    xml.open("properties", &[]);
    for (name, value) in properties {
        let attributes = [("name", name.to_owned()), ("value", value.to_owned())];
        xml.empty("property", &attributes);
    }
    xml.close("properties");
}

fn of_case(xml: &mut Xml, suite: &Suite<'_>, case: &Case<'_>) {
    let attributes = [
        ("name", case.name.to_owned()),
        ("classname", format!("dhc.{}", suite.name)),
        ("time", seconds(case.duration_ms)),
    ];
    let element = match case.status {
        Status::Pass => return xml.empty("testcase", &attributes),
        Status::Warn => "system-out",
        Status::Skip => "skipped",
        Status::Unknown | Status::Error => "error",
        Status::Fail => "failure",
    };
    xml.open("testcase", &attributes);
    let message = ("message", case.summary.clone());
    match case.status {
        Status::Pass | Status::Skip => xml.empty(element, &[message]),
        Status::Warn => xml.leaf(element, &[], &case.details()),
        Status::Unknown | Status::Error | Status::Fail => {
            let kind = case.fault().unwrap_or(case.status.word());
            xml.leaf(
                element,
                &[("type", kind.to_owned()), message],
                &case.details(),
            );
        }
    }
    xml.close("testcase");
}

/// The numbers of cases that every level of the document gives.
fn counts<'a>(cases: impl Iterator<Item = &'a Case<'a>> + Clone) -> Vec<(&'static str, String)> {
    let count = |wanted: &[Status]| {
        let those = cases.clone().filter(|case| wanted.contains(&case.status));
        those.count().to_string()
    };
    vec![
        ("tests", cases.clone().count().to_string()),
        ("failures", count(&[Status::Fail])),
        ("errors", count(&[Status::Error, Status::Unknown])),
        ("skipped", count(&[Status::Skip])),
    ]
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

/// XML that grows in memory, which cannot fail.
struct Xml(Writer<Vec<u8>>);

impl Xml {
    fn put(&mut self, event: Event<'_>) {
        self.0
            .write_event(event)
            .expect("memory takes what is written to it");
    }

    fn open(&mut self, name: &str, attributes: &[(&str, String)]) {
        self.put(Event::Start(element(name, attributes)));
    }

    fn empty(&mut self, name: &str, attributes: &[(&str, String)]) {
        self.put(Event::Empty(element(name, attributes)));
    }

    fn leaf(&mut self, name: &str, attributes: &[(&str, String)], text: &str) {
        self.open(name, attributes);
        self.put(Event::Text(BytesText::new(&plain(text))));
        self.close(name);
    }

    fn close(&mut self, name: &str) {
        self.put(Event::End(BytesEnd::new(name)));
    }

    fn text(self) -> String {
        String::from_utf8_lossy(&self.0.into_inner()).into_owned() + "\n"
    }
}

fn element<'a>(name: &'a str, attributes: &[(&str, String)]) -> BytesStart<'a> {
    let mut element = BytesStart::new(name);
    for (key, value) in attributes {
        element.push_attribute((*key, plain(value).as_ref()));
    }
    element
}

/// The text without the characters that no XML document may hold, however they are written (XML 1.0, `Char`).
fn plain(text: &str) -> Cow<'_, str> {
    let forbidden = |c: char| !matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    if text.contains(forbidden) {
        return Cow::Owned(text.replace(forbidden, "\u{fffd}"));
    }
    Cow::Borrowed(text)
}
