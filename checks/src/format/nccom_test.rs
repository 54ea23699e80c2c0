//! What `nccom-test` prints: a table of message sizes, or the reason why there is none.
//!
//! Shape: AWS Neuron SDK, "NCCOM-TEST User Guide". The columns are named in a header line and vary with options; a row
//! can hold a failure instead of figures; the last line is the average, or how many errors there were.
//!
//! Its `GB/s` are 2³⁰ bytes a second, unlike nccl-tests' (1 GiB in 41,806 us is printed as 23.92): hence
//! [`GibibytesPerSecond`].

/// How many rows are read; a sweep from 8 B to 64 GiB in powers of two has 34.
const ROWS_MAX: usize = 10_000;

/// 2³⁰ bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct GibibytesPerSecond(pub f64);

impl GibibytesPerSecond {
    /// In 10⁹ bytes a second.
    pub fn gigabytes_per_second(self) -> f64 {
        self.0 * 1.073_741_824
    }
}

/// One message size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Message size in bytes.
    pub bytes: u64,
    /// Average time of one operation in microseconds.
    pub time_us: f64,
    /// Algorithm bandwidth: bytes over time.
    pub algbw: GibibytesPerSecond,
    /// Bus bandwidth: what a link carries.
    pub busbw: GibibytesPerSecond,
}

/// A message size that could not be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRow {
    /// Message size in bytes.
    pub bytes: u64,
    /// What stands in place of the figures.
    pub said: String,
}

/// A table that came to its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The sizes that were measured.
    pub rows: Vec<Row>,
    /// The sizes that were not.
    pub failed: Vec<FailedRow>,
}

/// Why there is no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NccomError {
    /// Nothing was printed.
    #[error("nccom-test printed nothing")]
    Empty,
    /// There is no header line; this was said instead.
    #[error("nccom-test printed no table but `{0}`")]
    NoTable(String),
    /// The table has neither an average nor an error count at its end.
    #[error("the table of nccom-test has no last line, so it was cut short after {rows} rows")]
    CutShort {
        /// Rows before the cut.
        rows: usize,
    },
    /// A row cannot be read.
    #[error("nccom-test printed a row that is not one: `{0}`")]
    Malformed(String),
}

/// Where the columns are that matter.
struct Columns {
    all: usize,
    size: usize,
    time: usize,
    algbw: usize,
    busbw: usize,
}

/// Reads the table (all tables, where several streams ran).
///
/// # Errors
/// When there is none, it is cut short, or a row makes no sense; never a shorter table instead.
pub fn read(text: &str) -> Result<Table, NccomError> {
    if text.trim().is_empty() {
        return Err(NccomError::Empty);
    }
    let mut table = Table::default();
    let mut columns: Option<Columns> = None;
    let mut ended = false;
    let mut lines = 0;
    for line in text.lines() {
        if let Some(header) = columns_of(line) {
            columns = Some(header);
            ended = false;
            continue;
        }
        let Some(columns) = &columns else { continue };
        if line.trim_start().starts_with("Avg bus bandwidth:") || errors_found(line).is_some() {
            ended = true;
            continue;
        }
        if !line.trim_start().starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        lines += 1;
        if ended || lines > ROWS_MAX {
            return Err(NccomError::Malformed(quote(line)));
        }
        row(line, columns, &mut table)?;
    }
    match columns {
        None => Err(NccomError::NoTable(quote(text.trim()))),
        Some(_) if !ended => Err(NccomError::CutShort { rows: lines }),
        Some(_) => Ok(table),
    }
}

fn columns_of(line: &str) -> Option<Columns> {
    let names: Vec<&str> = line.split_whitespace().collect();
    let place = |wanted: &[&str]| names.iter().position(|name| wanted.contains(name));
    Some(Columns {
        all: names.len(),
        size: place(&["size(B)"])?,
        time: place(&["time:avg(us)", "time(us)", "time:p50(us)"])?,
        algbw: place(&["algbw(GB/s)"])?,
        busbw: place(&["busbw(GB/s)"])?,
    })
}

/// `1 errors found - test failed`
fn errors_found(line: &str) -> Option<u64> {
    line.trim().split_once(" errors found")?.0.parse().ok()
}

fn row(line: &str, columns: &Columns, table: &mut Table) -> Result<(), NccomError> {
    let malformed = || NccomError::Malformed(quote(line));
    let cells: Vec<&str> = line.split_whitespace().collect();
    let bytes: u64 = cells
        .get(columns.size)
        .and_then(|cell| cell.parse().ok())
        .ok_or_else(malformed)?;
    if cells.len() > 1
        && cells[1..]
            .iter()
            .any(|cell| cell.to_ascii_lowercase().starts_with("fail"))
    {
        table.failed.push(FailedRow {
            bytes,
            said: quote(&cells[1..].join(" ")),
        });
        return Ok(());
    }
    if cells.len() < columns.all {
        return Err(malformed());
    }
    let number = |column: usize| {
        cells[column]
            .parse()
            .ok()
            .filter(|number: &f64| number.is_finite() && *number >= 0.0)
    };
    let figures = number(columns.time)
        .zip(number(columns.algbw))
        .zip(number(columns.busbw));
    let ((time_us, algbw), busbw) = figures.ok_or_else(malformed)?;
    let row = Row {
        bytes,
        time_us,
        algbw: GibibytesPerSecond(algbw),
        busbw: GibibytesPerSecond(busbw),
    };
    // A mismatch found by --check stands behind the figures.
    match cells.get(columns.all..).filter(|rest| !rest.is_empty()) {
        Some(rest) => table.failed.push(FailedRow {
            bytes,
            said: quote(&rest.join(" ")),
        }),
        None => table.rows.push(row),
    }
    Ok(())
}

fn quote(text: &str) -> String {
    text.chars()
        .take(200)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEALTHY: &str = include_str!("../../../fixtures/outputs/nccom_test/allr-32-ranks.txt");
    const PERCENTILES: &str =
        include_str!("../../../fixtures/outputs/nccom_test/allr-percentiles.txt");
    const FAILED: &str = include_str!("../../../fixtures/outputs/nccom_test/failed-row.txt");
    const NO_DRIVER: &str = include_str!("../../../fixtures/outputs/nccom_test/no-driver.txt");

    #[test]
    fn a_table_is_read_with_its_columns() {
        let table = read(HEALTHY).unwrap();
        assert_eq!((table.rows.len(), table.failed.len()), (5, 0));
        let last = table.rows[4];
        assert_eq!(
            (last.bytes, last.time_us, last.busbw),
            (1 << 30, 20_500.0, GibibytesPerSecond(94.52))
        );
        assert_eq!(
            read(PERCENTILES).unwrap().rows[0].algbw,
            GibibytesPerSecond(0.11)
        );
    }

    #[test]
    fn its_gigabytes_are_gibibytes() {
        let row = read(HEALTHY).unwrap().rows[4];
        let bytes_per_second = 1_073_741_824.0 / (row.time_us / 1e6);
        assert!((row.algbw.gigabytes_per_second() * 1e9 / bytes_per_second - 1.0).abs() < 0.001);
    }

    #[test]
    fn a_failure_inside_the_table_is_found() {
        let table = read(FAILED).unwrap();
        assert_eq!(table.rows.len(), 1);
        assert_eq!(table.failed[0].bytes, 33_554_432);
        assert!(
            table.failed[0]
                .said
                .starts_with("Failure running neuron-bench")
        );
    }

    #[test]
    fn a_mismatch_behind_the_figures_is_a_failure() {
        let text = HEALTHY.replace("94.52\n", "94.52 ERROR: mismatch\n");
        let table = read(&text).unwrap();
        assert_eq!((table.rows.len(), table.failed.len()), (4, 1));
    }

    #[test]
    fn what_is_no_table_says_what_it_is() {
        assert!(
            matches!(read(NO_DRIVER), Err(NccomError::NoTable(said)) if said.contains("Driver is not running"))
        );
        assert_eq!(read(" \n"), Err(NccomError::Empty));
    }

    #[test]
    fn two_tables_are_put_together() {
        assert_eq!(read(&format!("{HEALTHY}{HEALTHY}")).unwrap().rows.len(), 10);
    }

    #[test]
    fn a_table_cut_anywhere_is_never_taken_for_whole() {
        let end = HEALTHY.find("Avg bus").unwrap();
        for cut in 0..end {
            assert!(read(&HEALTHY[..cut]).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,300}") {
            drop(read(&text));
            drop(read(&format!("size(B) count(elems) type time(us) algbw(GB/s) busbw(GB/s)\n{text}")));
        }
    }
}
