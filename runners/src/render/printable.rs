//! Text that is safe to print: what tools and hosts said must not steer a terminal.

use dhc_thresholds::Report;
use serde_json::Value;

/// The same text with every character that steers a terminal spelled out, all but line breaks. Colours are no exception: what
/// is written black on black is hidden. So text has to come here before dhc colours it.
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The same text on one line: a line break of a tool's or a host's must not begin a line that looks like dhc's own.
pub(super) fn one_line(text: &str) -> String {
    text.trim_end().replace('\n', "\\n")
}

/// The same report with nothing in it that steers a terminal, whatever field it stands in.
pub(super) fn printable_report(report: &Report) -> Report {
    let mut document = serde_json::to_value(report).expect("a report is a JSON document");
    clean(&mut document);
    serde_json::from_value(document).expect("no word of a report's own form steers a terminal")
}

fn clean(value: &mut Value) {
    match value {
        Value::String(text) => *text = printable(text),
        Value::Array(values) => values.iter_mut().for_each(clean),
        Value::Object(fields) => {
            for (name, mut value) in std::mem::take(fields) {
                clean(&mut value);
                fields.insert(printable(&name), value);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Control characters, and those that turn the direction of writing round (Unicode, UAX #9).
fn steers(c: char) -> bool {
    (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::{one_line, printable};

    #[test]
    fn lines_stay_and_nothing_that_steers() {
        let plain = "naïve – 漢\n";
        assert_eq!(printable(plain), plain);
        assert_eq!(printable("\u{1b}[8mhidden"), "\\u{1b}[8mhidden");
        assert_eq!(
            printable("\u{1b}[2J\u{1b}]0;title\u{7}\r\u{9b}1A\u{202e}x"),
            "\\u{1b}[2J\\u{1b}]0;title\\u{7}\\r\\u{9b}1A\\u{202e}x"
        );
    }

    #[test]
    fn a_line_break_inside_a_message_begins_no_line() {
        assert_eq!(one_line("bad\nh1: PASS\n"), "bad\\nh1: PASS");
    }
}
