//! The page for people: what a keyboard, a screen reader and somebody in a hurry need of it. It was looked at in Chromium, light
//! and dark; these tests keep what can be kept of that.
#![expect(clippy::unwrap_used, reason = "tests look at what is there or fail")]

mod common;

use common::Dhc;
use common::gpu_cluster::EightNodes;
use dhc_fixtures::FakeNode;
use dhc_runners::render::html;
use dhc_thresholds::{NodeReport, Report};

/// The text between two marks, for each time that they stand in the page.
fn between<'a>(page: &'a str, start: &str, end: &str) -> Vec<&'a str> {
    let parts = page.split(start).skip(1);
    parts.map(|part| part.split(end).next().unwrap()).collect()
}

fn link_down() -> Report {
    let dhc = Dhc::on(FakeNode::of("p5.48xlarge-link-down"));
    dhc.run(&["--check", "nvlink,dcgm-diag,gpu-count"]).report
}

#[test]
fn a_page_has_landmarks_headings_and_headers_that_say_what_they_head() {
    for report in [link_down(), EightNodes::up().run(&[]).report] {
        let page = html::page(&report);
        assert!(page.starts_with("<!DOCTYPE html>\n<html lang=\"en\">"));
        for one in [
            "<header>",
            "<main>",
            "<nav aria-label=",
            "<h1>",
            "class=\"skip-link\" href=\"#verdicts\"",
        ] {
            assert_eq!(page.matches(one).count(), 1, "{one}");
        }
        for header in between(&page, "<th ", ">") {
            assert!(
                header.starts_with("scope=\"col\"") || header.starts_with("scope=\"row\""),
                "{header}"
            );
        }
        assert_eq!(
            page.matches("<table").count(),
            page.matches("<caption>").count()
        );
        // What scrolls can be reached and has a name.
        let scrolling = between(&page, "<div class=\"scroll\"", ">");
        assert!(!scrolling.is_empty());
        for region in scrolling {
            assert!(
                region.contains("role=\"region\"") && region.contains("tabindex=\"0\""),
                "{region}"
            );
        }
        // Every link leads somewhere, and every id stands once.
        for target in between(&page, "href=\"#", "\"") {
            assert_eq!(
                page.matches(&format!("id=\"{target}\"")).count(),
                1,
                "{target}"
            );
        }
        for opened in [
            "table", "details", "section", "ul", "dl", "svg", "p", "td", "tr",
        ] {
            let (begins, ends) = (format!("<{opened}"), format!("</{opened}>"));
            let begun = between(&page, &begins, ">")
                .into_iter()
                .zip(page.match_indices(&begins));
            let begun = begun.filter(|(rest, _)| rest.is_empty() || rest.starts_with(' '));
            assert_eq!(begun.count(), page.matches(&ends).count(), "{opened}");
        }
    }
}

#[test]
fn nothing_is_told_by_colour_alone() {
    let page = html::page(&link_down());
    for (status, sign) in [("fail", "✗"), ("pass", "✓"), ("error", "?"), ("skip", "–")] {
        let badge = format!(
            "<span class=\"badge {status}\"><span aria-hidden=\"true\">{sign}</span> {status}</span>"
        );
        assert!(page.contains(&badge), "{status}");
    }
    let page = html::page(&EightNodes::up().run(&[]).report);
    for cell in between(&page, "<td class=\"failed\"", "</td>") {
        assert!(
            cell.contains("✗") && cell.contains("<span class=\"hidden\"> failed</span>"),
            "{cell}"
        );
    }
}

#[test]
fn a_chart_has_a_title_a_description_its_floor_and_its_figures_in_a_table() {
    let page = html::page(&EightNodes::up().run(&[]).report);
    let charts = between(&page, "<svg role=\"img\"", "</svg>");
    assert_eq!(charts.len(), 1);
    assert!(charts[0].contains("<title id=") && charts[0].contains("<desc id="));
    assert!(
        charts[0].contains("The plateau has to reach 440 GB/s."),
        "{}",
        charts[0]
    );
    assert!(charts[0].contains(">floor 440 GB/s</text>"));
    let rest = page.split("</svg>").nth(1).unwrap();
    assert!(
        rest.contains("<th scope=\"row\">1 GiB</th><td class=\"number\">833.3347</td>"),
        "{rest}"
    );
}

#[test]
fn a_fault_class_says_once_what_to_do() {
    let page = html::page(&link_down());
    let verdicts = page.split("<h2 id=\"part-1\"").next().unwrap();
    assert_eq!(
        verdicts
            .matches("drain and reboot the node; a link that stays down means replace")
            .count(),
        1
    );
    assert!(verdicts.contains("and 1 more of it"));
}

/// The page of a thousand nodes begins with the three that matter and stays small enough for any browser.
#[test]
fn a_thousand_nodes_do_not_bury_the_three_that_are_ill() {
    let mut report = EightNodes::up().run(&[]).report;
    let find = |name: &str| -> NodeReport {
        let mut nodes = report.nodes.iter();
        nodes.find(|node| node.name == name).unwrap().clone()
    };
    let (well, ill) = (find("n1"), find("n5"));
    report.nodes = (0..1000)
        .map(|number| NodeReport {
            name: format!("ip-10-0-{}-{}", number / 250, number % 250),
            ..if [5, 410, 777].contains(&number) {
                ill.clone()
            } else {
                well.clone()
            }
        })
        .collect();
    let all: Vec<String> = report.nodes.iter().map(|node| node.name.clone()).collect();
    let cluster = report.cluster.as_mut().unwrap();
    for wave in &mut cluster.searches[0].waves {
        for group in &mut wave.groups {
            group.nodes.clone_from(&all);
        }
    }
    let page = html::page(&report);
    assert!(page.len() < 300_000, "{} bytes", page.len());
    let verdicts = page.split("<details>").next().unwrap();
    for name in ["ip-10-0-0-5", "ip-10-0-1-160", "ip-10-0-3-27"] {
        assert!(
            verdicts.contains(&format!("<th scope=\"row\">{name}</th>")),
            "{name}"
        );
    }
    assert!(page.contains("997 nodes: nothing is held against them"));
    assert!(page.contains("933 nodes more stand in the JSON result"));
}
