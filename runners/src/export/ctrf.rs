//! Common Test Report Format (ctrf.io, its JSON schema), where our own words stand in `extra`.
//!
//! A *warn* is passed, and says so in `rawStatus`. An *error* or *unknown* is `other`: neither passed nor failed.

use dhc_thresholds::{Report, Status};
use serde_json::{Value, json};

use super::Times;
use super::cases::{Case, Suite, suites};

/// The edition of the format that this is written by.
const SPEC_VERSION: &str = "0.0.0";

/// The document.
pub(super) fn document(report: &Report, times: Times) -> String {
    let suites = suites(report);
    let cases = || suites.iter().flat_map(|suite| &suite.cases);
    let count = |word: &str| cases().filter(|case| status(case.status) == word).count();
    let tests: Vec<Value> = suites
        .iter()
        .flat_map(|suite| suite.cases.iter().map(|case| test(suite, case)))
        .collect();
    let run = &report.run;
    let document = json!({
        "reportFormat": "CTRF",
        "specVersion": SPEC_VERSION,
        "timestamp": run.started_at,
        "generatedBy": "dhc",
        "results": {
            "tool": { "name": "dhc", "version": run.dhc },
            "summary": {
                "tests": tests.len(),
                "passed": count("passed"),
                "failed": count("failed"),
                "skipped": count("skipped"),
                "pending": 0,
                "other": count("other"),
                "suites": suites.len(),
                "start": times.started.as_millisecond(),
                "stop": times.ended.as_millisecond(),
                "duration": run.duration_ms,
            },
            "tests": tests,
            "extra": {
                "schema": report.schema,
                "run": run.id,
                "level": run.level,
                "status": report.status,
                "complete": report.complete,
                "expires_at": run.expires_at,
                "judged_by": report.judged_by,
            },
        },
    });
    format!("{document:#}\n")
}

fn test(suite: &Suite<'_>, case: &Case<'_>) -> Value {
    let mut extra = json!({});
    if let Some(check) = case.check {
        extra["action"] = json!(check.action);
        extra["fault_class"] = json!(case.fault());
    }
    if let Some(node) = suite.node {
        extra["instance_id"] = json!(node.identity.instance_id);
        extra["boot_id"] = json!(node.identity.boot_id);
    }
    let mut test = json!({
        "name": case.name,
        "status": status(case.status),
        "rawStatus": case.status.word(),
        "duration": case.duration_ms,
        "suite": [suite.name],
        "message": case.summary,
        "extra": extra,
    });
    if case.status > Status::Pass {
        test["trace"] = json!(case.details());
    }
    test
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Skip => "skipped",
        Status::Pass | Status::Warn => "passed",
        Status::Unknown | Status::Error => "other",
        Status::Fail => "failed",
    }
}
