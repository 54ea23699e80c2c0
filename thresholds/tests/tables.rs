//! What a threshold file may not say, and where the message points.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{SPEED, STATE};
use dhc_thresholds::{Metric, Table};
use proptest::prelude::*;

const METRICS: &[&Metric] = &[&SPEED, &STATE];

const HEAD: &str = "schema = \"dhc.thresholds/1\"\ninstance_type = \"test\"\n";

fn parse(text: &str) -> Result<Table, String> {
    Table::parse(text, "my.toml", METRICS, &|_| None).map_err(|errors| errors.to_string())
}

/// The complaint about a file that consists of a good head and `rest`, whose first line is the third.
fn complaint(rest: &str) -> String {
    parse(&format!("{HEAD}{rest}")).unwrap_err()
}

fn limit(body: &str) -> String {
    format!("[[limit]]\nmetric = \"nic.speed\"\nunit = \"GB/s\"\nsource = \"test\"\n{body}\n")
}

#[track_caller]
fn assert_says(complaint: &str, words: &[&str]) {
    for word in words {
        assert!(
            complaint.contains(word),
            "`{complaint}` does not say `{word}`"
        );
    }
}

#[test]
fn a_sound_file_is_read() {
    let table = parse(&format!("{HEAD}{}", limit("fail_below = 10"))).unwrap();
    assert_eq!(
        (table.instance_type.as_str(), table.limits.len()),
        ("test", 1)
    );
}

#[test]
fn an_unknown_key_is_refused_with_line_and_column() {
    assert_says(
        &complaint(&limit("fail_bellow = 10")),
        &["my.toml:7:1", "fail_bellow"],
    );
}

#[test]
fn an_unknown_metric_is_refused_and_the_nearest_one_named() {
    let text =
        "[[limit]]\nmetric = \"nic.sped\"\nunit = \"GB/s\"\nfail_below = 1\nsource = \"t\"\n";
    assert_says(
        &complaint(text),
        &["my.toml:4:10", "nic.sped", "did you mean `nic.speed`"],
    );
}

#[test]
fn bits_do_not_pass_for_bytes() {
    let text =
        "[[limit]]\nmetric = \"nic.speed\"\nunit = \"Gbit/s\"\nfail_below = 1\nsource = \"t\"\n";
    assert_says(
        &complaint(text),
        &["my.toml:5:8", "Gbit/s", "measured in GB/s"],
    );
}

#[test]
fn an_unknown_unit_is_refused() {
    let text =
        "[[limit]]\nmetric = \"nic.speed\"\nunit = \"Gb/s\"\nfail_below = 1\nsource = \"t\"\n";
    assert_says(&complaint(text), &["my.toml:5", "Gb/s"]);
}

#[test]
fn a_limit_that_nothing_could_break_is_refused() {
    assert_says(
        &complaint(&limit("")),
        &["my.toml:4:10", "nothing could break"],
    );
}

#[test]
fn bounds_that_contradict_each_other_are_refused() {
    for body in [
        "fail_below = 10\nfail_above = 5",
        "fail_below = 10\nwarn_below = 5",
        "fail_above = 10\nwarn_above = 50",
        "warn_below = 10\nwarn_above = 5",
        "expect = 3\nfail_below = 2",
    ] {
        assert_says(&complaint(&limit(body)), &["my.toml:4:10", "contradict"]);
    }
}

#[test]
fn a_number_for_a_word_and_a_word_for_a_number_are_refused() {
    let word =
        "[[limit]]\nmetric = \"nic.state\"\nunit = \"state\"\nfail_below = 1\nsource = \"t\"\n";
    assert_says(&complaint(word), &["my.toml:4:10", "is a word"]);
    assert_says(&complaint(&limit("one_of = [\"up\"]")), &["is a number"]);
}

#[test]
fn a_number_without_a_source_is_refused() {
    let none = "[[limit]]\nmetric = \"nic.speed\"\nunit = \"GB/s\"\nfail_below = 1\n";
    assert_says(&complaint(none), &["my.toml:3", "source"]);
    let empty =
        "[[limit]]\nmetric = \"nic.speed\"\nunit = \"GB/s\"\nfail_below = 1\nsource = \" \"\n";
    assert_says(&complaint(empty), &["my.toml:7:10", "source"]);
}

#[test]
fn the_same_limit_twice_is_refused() {
    let text = limit("fail_below = 1") + &limit("fail_below = 2");
    assert_says(&complaint(&text), &["my.toml:8:1", "stands twice"]);
}

#[test]
fn another_schema_is_refused_with_what_to_do() {
    let text = "schema = \"dhc.thresholds/2\"\ninstance_type = \"test\"\n";
    assert_says(
        &parse(text).unwrap_err(),
        &["my.toml:1:10", "dhc.thresholds/2"],
    );
}

#[test]
fn extending_a_table_that_is_not_there_is_refused() {
    assert_says(&complaint("extends = \"p99\"\n"), &["my.toml:3:11", "p99"]);
}

#[test]
fn a_senseless_number_of_nodes_is_refused() {
    for nodes in ["8..2", "0", "-1", "many", "2..3..4"] {
        let text = limit(&format!("at = {{ nodes = \"{nodes}\" }}\nfail_below = 1"));
        assert_says(&complaint(&text), &["my.toml:7", "number of nodes"]);
    }
}

#[test]
fn every_mistake_is_told_at_once() {
    let text = limit("") + "[[limit]]\nmetric = \"nic.what\"\nunit = \"GB/s\"\nsource = \"t\"\n";
    assert_says(&complaint(&text), &["nothing could break", "nic.what"]);
}

#[test]
fn an_extending_table_replaces_the_limits_it_repeats_and_keeps_the_others() {
    let base = parse(&format!(
        "{HEAD}{}{}",
        limit("fail_below = 10"),
        limit("at = { bytes = 8 }\nfail_below = 1")
    ))
    .unwrap();
    let text = format!("{HEAD}extends = \"base\"\n{}", limit("fail_below = 20"));
    let table = Table::parse(&text, "my.toml", METRICS, &|name| {
        (name == "base").then(|| base.clone())
    })
    .unwrap();
    let bounds: Vec<_> = table
        .limits
        .iter()
        .map(|limit| (limit.at.bytes, limit.describe(&table)))
        .collect();
    assert_eq!(
        bounds,
        [
            (Some(8), ">= 1 GB/s".to_owned()),
            (None, ">= 20 GB/s".to_owned())
        ]
    );
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
        drop(parse(&text));
        drop(parse(&format!("{HEAD}{text}")));
    }

    /// A sound file that is cut anywhere is refused or means no more than the whole file.
    #[test]
    fn a_cut_file_never_gains_limits(cut in 0_usize..400) {
        let whole = format!("{HEAD}{}{}", limit("fail_below = 10"), limit("at = { bytes = 8 }\nfail_below = 1"));
        let cut = cut.min(whole.len());
        if let Ok(table) = parse(&whole[..cut]) {
            prop_assert!(table.limits.len() <= 2);
        }
    }
}
