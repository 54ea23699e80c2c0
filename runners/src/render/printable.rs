//! Text that is safe to print: what tools and hosts said must not steer a terminal.

/// The same text with every character that steers a terminal spelled out, all but line breaks and colours. (Colours alone
/// cannot hide or forge anything; everything else that begins with ESC can.)
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c == '\u{1b}'
            && let Some(colour) = colour(rest.as_str())
        {
            safe.push(c);
            safe.push_str(colour);
            rest = rest.as_str()[colour.len()..].chars();
        } else if steers(c) {
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

/// The rest of a sequence that chooses colours (ECMA-48, SGR), if the text begins with one.
fn colour(text: &str) -> Option<&str> {
    let numbers = text.strip_prefix('[')?;
    let end = numbers.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    numbers[end..].starts_with('m').then(|| &text[..end + 2])
}

/// Control characters, and those that turn the direction of writing round (Unicode, UAX #9).
fn steers(c: char) -> bool {
    (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::{one_line, printable};

    #[test]
    fn colours_and_lines_stay_and_nothing_else_that_steers() {
        let ours = "a \u{1b}[38;5;9mFAIL\u{1b}[0m\nnaïve – 漢\n";
        assert_eq!(printable(ours), ours);
        assert_eq!(
            printable("\u{1b}[2J\u{1b}]0;title\u{7}\r\u{9b}1A\u{202e}x\u{1b}[1;m\u{1b}["),
            "\\u{1b}[2J\\u{1b}]0;title\\u{7}\\r\\u{9b}1A\\u{202e}x\u{1b}[1;m\\u{1b}["
        );
    }

    #[test]
    fn a_line_break_inside_a_message_begins_no_line() {
        assert_eq!(one_line("bad\nh1: PASS\n"), "bad\\nh1: PASS");
    }
}
