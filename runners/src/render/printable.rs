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

/// The same JSON document with every character escaped that steers a terminal. Those below U+0020 are escaped in any JSON, so
/// the line breaks that are left stand between its words and not in them; all others can stand in strings alone (RFC 8259).
pub fn printable_json(document: &str) -> String {
    let mut safe = String::with_capacity(document.len());
    for c in document.chars() {
        if steers(c) {
            let units = &mut [0; 2];
            for unit in c.encode_utf16(units) {
                safe.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Control characters, those that turn the direction of writing round (Unicode, UAX #9), line breaks that are none to this
/// program, and what is there and cannot be seen.
fn steers(c: char) -> bool {
    (c.is_control() && c != '\n')
        || matches!(c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::{one_line, printable, printable_json};

    #[test]
    fn a_json_document_stays_the_same_document() {
        let text = "naïve 漢 \u{9b}31m \u{7f} \u{202e}x \u{e0041} \u{1b}[2J\n";
        let document = serde_json::to_string_pretty(&[text]).unwrap();
        let safe = printable_json(&document);
        assert_eq!(
            safe,
            "[\n  \"naïve 漢 \\u009b31m \\u007f \\u202ex \\udb40\\udc41 \\u001b[2J\\n\"\n]"
        );
        assert_eq!(serde_json::from_str::<[String; 1]>(&safe).unwrap(), [text]);
    }

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
