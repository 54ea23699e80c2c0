//! What `all_reduce_perf` of nccl-tests prints: a table of message sizes between lines of NCCL, MPI and the launcher.
//!
//! Source: nccl-tests, `src/common.cu`. Columns are named in a header line and differ by version: an `error` that is a
//! greatest difference (up to 2.11), then a `#wrong` that counts elements; `redop` and `root` come and go; more columns may
//! follow each half. Every line may carry a launcher's prefix, and log shippers lose the `#`. A table has come to its end
//! only when both of its last lines are there. `GB` is 10⁹ bytes, and the average over all sizes says nothing that could be
//! judged, since it depends on which sizes were run.

use std::collections::BTreeSet;

use super::quote;
use crate::collective;

/// How many rows are read.
const ROWS_MAX: usize = 10_000;

/// One message size, the slower of the out-of-place and the in-place half.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Message size in bytes.
    pub bytes: u64,
    /// Time of one operation in microseconds.
    pub time_us: f64,
    /// What the tool itself makes bus bandwidth of algorithm bandwidth by, and how far rounding may put that off.
    pub bus_factor: Option<(f64, f64)>,
    /// Elements that were wrong; `None` where the version or the call does not count them.
    pub wrong: Option<u64>,
}

impl Row {
    /// Algorithm bandwidth in 10⁹ bytes a second: bytes over time.
    pub fn algbw_gb_per_s(&self) -> f64 {
        collective::algbw_gb_per_s(self.bytes, self.time_us)
    }

    /// Bus bandwidth of an all-reduce over `ranks` in 10⁹ bytes a second: `algbw · 2(n − 1)/n`.
    pub fn all_reduce_busbw_gb_per_s(&self, ranks: u32) -> f64 {
        collective::all_reduce_busbw_gb_per_s(self.algbw_gb_per_s(), ranks)
    }
}

/// A table that came to its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The sizes, in order.
    pub rows: Vec<Row>,
    /// Results out of bounds, as the tool itself counts them over all sizes.
    pub out_of_bounds: u64,
    /// Devices that it lists; it cuts long lists.
    pub devices: usize,
    /// What NCCL says of the network that it uses, if it was asked to (`NCCL_DEBUG=INFO`).
    pub network: Option<String>,
}

/// Why there is no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NcclTestsError {
    /// Nothing was printed.
    #[error("it printed nothing")]
    Empty,
    /// It says itself why it stopped.
    #[error("it stopped: `{0}`")]
    Stopped(String),
    /// There is no header line.
    #[error("it printed no table; its last line is `{0}`")]
    NoTable(String),
    /// One of the last two lines is missing.
    #[error("its table has no end after {rows} rows: it was cut short or failed")]
    CutShort {
        /// Rows before the cut.
        rows: usize,
    },
    /// A row cannot be read.
    #[error("it printed a row that is not one: `{0}`")]
    Malformed(String),
    /// Several processes printed one each, as if each were alone.
    #[error(
        "it printed several tables, as all_reduce_perf does that was not built with MPI: build it with MPI=1, or leave out \
         engine=all_reduce_perf"
    )]
    SeveralTables,
    /// Bytes over time is not the bandwidth beside them.
    #[error("size, time and algbw contradict each other in this row: `{0}`")]
    Contradiction(String),
}

/// Where the columns are that matter.
struct Columns {
    all: usize,
    /// Time, algbw, busbw and wrong of each half.
    halves: Vec<[usize; 4]>,
    counts_wrong: bool,
}

/// Reads the table.
///
/// # Errors
/// When there is none, it is cut short, or a row makes no sense; never a shorter table instead.
pub fn read(text: &str) -> Result<Table, NcclTestsError> {
    if text.trim().is_empty() {
        return Err(NcclTestsError::Empty);
    }
    let mut table = Table::default();
    let mut columns: Option<Columns> = None;
    let mut ranks: BTreeSet<u32> = BTreeSet::new();
    let (mut bounds, mut average) = (false, false);
    for line in text.lines() {
        let line = without_prefix(line);
        if let Some(stopped) = stopped(line) {
            return Err(NcclTestsError::Stopped(stopped));
        }
        let plain = line.trim_start_matches('#').trim();
        if let Some(header) = columns_of(plain) {
            if columns.replace(header).is_some() {
                return Err(NcclTestsError::SeveralTables);
            }
        } else if let Some(rest) = plain.strip_prefix("Out of bounds values :") {
            let count = rest
                .split_whitespace()
                .next()
                .and_then(|word| word.parse().ok());
            table.out_of_bounds = count.ok_or_else(|| NcclTestsError::Malformed(quote(line)))?;
            bounds = true;
        } else if plain.starts_with("Avg bus bandwidth") {
            average = true;
        } else if plain.starts_with("Rank ") && plain.contains(" device ") {
            let rank = plain.split_whitespace().nth(1);
            let rank = rank.and_then(|rank| rank.parse::<u32>().ok());
            if rank.is_some_and(|rank| !ranks.insert(rank)) {
                return Err(NcclTestsError::SeveralTables);
            }
            table.devices += 1;
        } else if let Some((_, network)) = plain.split_once("NCCL INFO ") {
            if network.starts_with("Using network") || network.contains("Selected provider is") {
                table.network.get_or_insert_with(|| quote(network));
            }
        } else if let Some(columns) = &columns
            && line.trim_start().starts_with(|c: char| c.is_ascii_digit())
            && let Some(row) = row(line, columns)?
        {
            if table.rows.len() >= ROWS_MAX {
                return Err(NcclTestsError::Malformed(quote(line)));
            }
            table.rows.push(row);
        }
    }
    match columns {
        None => Err(NcclTestsError::NoTable(quote(
            text.trim().lines().last().unwrap_or(""),
        ))),
        Some(_) if !bounds || !average => Err(NcclTestsError::CutShort {
            rows: table.rows.len(),
        }),
        Some(_) => Ok(table),
    }
}

/// A line without what launchers put before it: `[1,0]<stdout>:` of Open MPI, `0: ` of srun.
fn without_prefix(line: &str) -> &str {
    if let Some((tag, rest)) = line.split_once(">:")
        && tag.starts_with('[')
        && tag.contains("]<std")
    {
        return rest;
    }
    match line.split_once(": ") {
        Some((rank, rest))
            if !rank.is_empty() && rank.trim().bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            rest
        }
        _ => line,
    }
}

/// The tool's own words of failure.
fn stopped(line: &str) -> Option<String> {
    let words = [
        "Test CUDA failure",
        "Test NCCL failure",
        "Test timeout",
        "Test failure",
        "Invalid number of GPUs",
    ];
    words
        .iter()
        .any(|word| line.contains(word))
        .then(|| quote(line.trim()))
}

fn columns_of(line: &str) -> Option<Columns> {
    let names: Vec<&str> = line.split_whitespace().collect();
    if names.first() != Some(&"size") || !names.contains(&"busbw") {
        return None;
    }
    let times = names
        .iter()
        .enumerate()
        .filter(|(_, name)| matches!(**name, "time" | "cputime"));
    let halves = times.filter_map(|(time, _)| {
        let after = |wanted: &[&str]| {
            let place = names[time..]
                .iter()
                .position(|name| wanted.contains(name))?;
            Some(time + place)
        };
        let wrong = after(&["#wrong", "error"])?;
        Some([time, after(&["algbw"])?, after(&["busbw"])?, wrong])
    });
    let halves: Vec<[usize; 4]> = halves.collect();
    (!halves.is_empty()).then(|| Columns {
        all: names.len(),
        halves,
        counts_wrong: names.contains(&"#wrong"),
    })
}

/// A row; `None` for a line that only begins with a digit, such as a date.
fn row(line: &str, columns: &Columns) -> Result<Option<Row>, NcclTestsError> {
    let cells: Vec<&str> = line.split_whitespace().collect();
    let malformed = || NcclTestsError::Malformed(quote(line));
    let Some(bytes) = cells.first().and_then(|cell| cell.parse::<u64>().ok()) else {
        return Ok(None);
    };
    let half = columns
        .halves
        .get(1)
        .zip(columns.halves.first())
        .map_or(0, |(b, a)| b[0] - a[0]);
    // In-place alone leaves the first half blank, which blanks do not show.
    let only_one = cells.len() + half == columns.all;
    if cells.len() < columns.all && !only_one {
        return Err(malformed());
    }
    let halves = if only_one {
        &columns.halves[..1]
    } else {
        &columns.halves[..]
    };
    let mut slowest: Option<Row> = None;
    for [time, algbw, busbw, wrong] in halves {
        let number = |place: usize| {
            let number = cells.get(place)?.parse().ok();
            number.filter(|number: &f64| number.is_finite() && *number >= 0.0)
        };
        let (time_us, printed) = number(*time).zip(number(*algbw)).ok_or_else(malformed)?;
        let wrong = number(*wrong).filter(|_| columns.counts_wrong);
        let digit = |place: usize| cells.get(place).map_or(0.0, |cell| half_a_digit(cell));
        let (time_off, algbw_off) = (digit(*time), digit(*algbw));
        let bus = number(*busbw).filter(|_| printed > 0.0);
        let found = Row {
            bytes,
            time_us,
            // What both figures were rounded by.
            bus_factor: bus.map(|bus| {
                let factor = bus / printed;
                (factor, (digit(*busbw) + factor * algbw_off) / printed)
            }),
            wrong: wrong.map(|wrong| wrong as u64),
        };
        let computed = found.algbw_gb_per_s();
        let allowed = algbw_off + computed * (time_off / time_us + collective::EQUAL);
        if bytes > 0 && (time_us <= 0.0 || (printed - computed).abs() > allowed) {
            return Err(NcclTestsError::Contradiction(quote(line)));
        }
        // Long times are printed as `1.2e+06`: the bandwidth beside them has more digits then.
        let found = Row {
            time_us: match bytes > 0 && algbw_off / printed < time_off / time_us {
                true => bytes as f64 / printed / 1e3,
                false => time_us,
            },
            ..found
        };
        let time_us = found.time_us;
        slowest = Some(match slowest {
            Some(other) => Row {
                time_us: other.time_us.max(time_us),
                bus_factor: other.bus_factor.or(found.bus_factor),
                wrong: other.wrong.max(found.wrong),
                ..found
            },
            None => found,
        });
    }
    slowest.map(Some).ok_or_else(malformed)
}

/// Half of the last digit of a printed number: what it was rounded by at most. `9021.45` by 0.005, `1.2e+06` by 50000.
fn half_a_digit(cell: &str) -> f64 {
    let (digits, exponent) = cell.split_once(['e', 'E']).unwrap_or((cell, "0"));
    let decimals = digits.split_once('.').map_or(0, |(_, after)| after.len());
    let decimals = i32::try_from(decimals).unwrap_or(i32::MAX);
    let exponent: i32 = exponent.parse().unwrap_or(0);
    0.5 * 10_f64.powi(exponent.saturating_sub(decimals))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEW: &str = include_str!("../../../fixtures/outputs/nccl_tests/2.17-allreduce.txt");
    const OLD: &str = include_str!("../../../fixtures/outputs/nccl_tests/2.10-allreduce.txt");

    #[test]
    fn tables_of_new_and_old_versions_are_read() {
        let new = read(NEW).unwrap();
        assert_eq!((new.rows.len(), new.out_of_bounds, new.devices), (5, 0, 2));
        let last = new.rows[4];
        assert_eq!(
            (last.bytes, last.time_us, last.wrong),
            (1 << 30, 9021.45, Some(0))
        );
        assert!((last.all_reduce_busbw_gb_per_s(2) - 119.02).abs() < 0.01);
        assert!(new.network.unwrap().contains("provider is efa"));
        let old = read(OLD).unwrap();
        assert_eq!(
            (old.rows.len(), old.rows[2].time_us, old.rows[2].wrong),
            (3, 1604.20, None)
        );
    }

    #[test]
    fn a_long_time_of_few_digits_is_taken_from_the_bandwidth_beside_it() {
        let text = NEW.replace(" 9021.45  119.02  119.02", " 1.2e+06    0.93    0.93");
        let text = text.replace(" 9019.33  119.05  119.05", " 1.2e+06    0.93    0.93");
        assert_ne!(text, NEW);
        let row = read(&text).unwrap().rows[4];
        assert!((row.algbw_gb_per_s() - 0.93).abs() < 1e-9, "{row:?}");
    }

    #[test]
    fn the_tables_of_processes_that_are_each_alone_are_not_one_table() {
        assert_eq!(
            read(&format!("{NEW}{NEW}")),
            Err(NcclTestsError::SeveralTables)
        );
    }

    #[test]
    fn prefixes_of_launchers_and_lost_marks_change_nothing() {
        let table = read(NEW).unwrap();
        for prefix in ["[1,0]<stdout>:", "0: "] {
            let text: String = NEW
                .lines()
                .map(|line| format!("{prefix}{line}\n"))
                .collect();
            assert_eq!(read(&text).unwrap(), table, "{prefix}");
        }
        let hash = NEW.replace("\n#", "\n");
        assert_eq!(read(&hash).unwrap().rows, table.rows);
    }

    #[test]
    fn wrong_results_are_counted() {
        let text = NEW
            .replace("119.05       0\n", "119.05       17\n")
            .replace("values : 0 OK", "values : 1 FAILED");
        let table = read(&text).unwrap();
        assert_eq!((table.rows[4].wrong, table.out_of_bounds), (Some(17), 1));
    }

    #[test]
    fn what_failed_says_why() {
        let text = "# nThread 1\nip-10-0-1-7: Test NCCL failure common.cu:958 'unhandled cuda error / '\n .. ip-10-0-1-7 pid 4242: Test failure common.cu:844\n";
        assert!(
            matches!(read(text), Err(NcclTestsError::Stopped(why)) if why.contains("unhandled cuda error"))
        );
        assert_eq!(read(""), Err(NcclTestsError::Empty));
        for header in ["hello\n", "# size count busbw\n8 1 2\n"] {
            assert!(
                matches!(read(header), Err(NcclTestsError::NoTable(_))),
                "{header}"
            );
        }
    }

    #[test]
    fn a_table_cut_anywhere_is_never_taken_for_whole() {
        let end = NEW.find("# Avg bus").unwrap();
        for cut in 0..end {
            assert!(read(&NEW[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_number_makes_no_row() {
        for word in ["nan", "inf", "-1", "XXX.XX"] {
            let text = NEW.replace(" 9021.45", &format!(" {word}"));
            assert!(
                matches!(read(&text), Err(NcclTestsError::Malformed(_))),
                "{word}"
            );
        }
    }

    #[test]
    fn figures_that_contradict_each_other_are_refused() {
        let text = NEW.replace(" 9021.45  119.02", " 9021.45  952.16");
        assert!(matches!(read(&text), Err(NcclTestsError::Contradiction(_))));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,300}") {
            drop(read(&text));
            drop(read(&format!("# size count type redop root time algbw busbw #wrong time algbw busbw #wrong\n{text}")));
        }
    }
}
