//! The envelopes of a line of the kernel: a record of `/dev/kmsg`, `dmesg` in its modes, syslog.

/// The message of a line of the kernel without its envelope; `None` if somebody else wrote it.
pub(super) fn kernel_message(line: &str) -> Option<&str> {
    let line = line.trim_end_matches('\r');
    if let Some((head, message)) = line.split_once(';')
        && let Some(priority) = kmsg_priority(head)
    {
        return (priority >> 3 == 0).then_some(message);
    }
    if let Some((head, rest)) = line.strip_prefix('<').and_then(|rest| rest.split_once('>')) {
        let priority: u32 = head.parse().ok()?;
        return (priority >> 3 == 0).then(|| without_stamp(rest));
    }
    // dmesg --decode: `kern  :err   : [  1.0] text`.
    if let Some((facility, rest)) = line
        .split_once(':')
        .filter(|(word, _)| is_facility(word.trim_end()))
    {
        let (_, rest) = rest.split_once(": ").or_else(|| rest.split_once(':'))?;
        return (facility.trim_end() == "kern")
            .then(|| without_stamp(without_iso(rest.trim_start())));
    }
    if let Some(message) = syslog_message(line) {
        return message;
    }
    Some(without_stamp(without_iso(line)))
}

/// The priority of a `/dev/kmsg` record's head: `6,1234,567890,-`.
fn kmsg_priority(head: &str) -> Option<u32> {
    let mut fields = head.split(',');
    let priority = fields.next()?.parse().ok()?;
    let numbers = [fields.next()?, fields.next()?];
    let numeric = numbers
        .iter()
        .all(|field| !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_digit()));
    (numeric && fields.next().is_some()).then_some(priority)
}

/// The sequence number of a `/dev/kmsg` record: how many came before it in this boot.
pub(super) fn kmsg_sequence(line: &str) -> Option<u64> {
    let (head, _) = line.split_once(';')?;
    kmsg_priority(head)?;
    head.split(',').nth(1)?.parse().ok()
}

/// When a `/dev/kmsg` record was written, in microseconds since the boot.
pub(super) fn kmsg_microseconds(line: &str) -> Option<u64> {
    let (head, _) = line.split_once(';')?;
    kmsg_priority(head)?;
    head.split(',').nth(2)?.parse().ok()
}

fn is_facility(word: &str) -> bool {
    matches!(
        word,
        "kern"
            | "user"
            | "mail"
            | "daemon"
            | "auth"
            | "syslog"
            | "lpr"
            | "news"
            | "local0"
            | "authpriv"
    )
}

/// `Nov 23 22:34:19 host kernel: text` or `2026-11-23T22:34:19+00:00 host kernel: text`: `Some(None)` if the line is of
/// this shape and another program wrote it, `None` if it is not of this shape.
fn syslog_message(line: &str) -> Option<Option<&str>> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let stamp_words = if MONTHS.iter().any(|month| line.starts_with(month)) {
        3
    } else if is_iso_stamp(line.split(' ').next()?) {
        1
    } else {
        return None;
    };
    let mut rest = line;
    for _ in 0..=stamp_words {
        rest = rest.trim_start().split_once(' ')?.1;
    }
    let (tag, message) = rest.split_once(": ")?;
    if tag.contains(' ') {
        return None;
    }
    Some((tag == "kernel").then(|| without_stamp(message)))
}

fn is_iso_stamp(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.len() >= 19
        && bytes[4] == b'-'
        && bytes[7] == b'-'
        && (bytes[10] == b'T' || bytes[10] == b' ')
}

/// A text without an ISO time stamp in front, as `dmesg --time-format iso` writes it.
fn without_iso(text: &str) -> &str {
    match text.split_once(' ') {
        Some((stamp, rest)) if is_iso_stamp(stamp) => rest.trim_start(),
        _ => text,
    }
}

/// A text without `[  123.456789]` in front. Continued lines are indented and have none.
fn without_stamp(text: &str) -> &str {
    let text = text.trim_start();
    match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((stamp, rest)) if stamp.bytes().any(|byte| byte.is_ascii_digit()) => rest.trim_start(),
        _ => text,
    }
}
