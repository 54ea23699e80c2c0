//! What `nccom-test` prints: a table of message sizes, or the reason why there is none.
//!
//! Shape: AWS Neuron SDK, "NCCOM-TEST User Guide". The columns are named in a header line and vary with options; a row
//! can hold a failure instead of figures; the last line is the average, or how many errors there were.
//!
//! What its `GB/s` means changed with its versions: 2³⁰ bytes a second (1 GiB in 41,806 us printed as 23.92) or 10⁹
//! (512 KiB in 23.11 us printed as 22.69), both under the same heading. So a bandwidth is computed here from bytes and
//! time, and the printed one only has to agree with it in one of the two units.
//!
//! With `--report-to-json-file` it also writes the rows that it could measure into a file, with the column headings as
//! keys.

use serde_json::Value;

use super::{json, quote};
use crate::collective;

/// How many rows are read; a sweep from 8 B to 64 GiB in powers of two has 34.
const ROWS_MAX: usize = 10_000;

/// The headings that matter; that of the time changed when percentiles came.
const SIZE: &str = "size(B)";
const TIMES: [&str; 2] = ["time:avg(us)", "time(us)"];
const ALGBW: &str = "algbw(GB/s)";
const BUSBW: &str = "busbw(GB/s)";

/// One message size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Message size in bytes.
    pub bytes: u64,
    /// Average time of one operation in microseconds.
    pub time_us: f64,
    /// The algorithm bandwidth as it is printed, in whatever unit.
    pub printed_algbw: f64,
    /// The bus bandwidth as it is printed, in the same unit, where the table has one.
    pub printed_busbw: Option<f64>,
}

impl Row {
    /// Algorithm bandwidth in 10⁹ bytes a second: bytes over time.
    pub fn algbw_gb_per_s(&self) -> f64 {
        collective::algbw_gb_per_s(self.bytes, self.time_us)
    }

    /// Bus bandwidth of an all-reduce over `ranks` in 10⁹ bytes a second: what each rank's link carries, `2(n − 1)/n`
    /// times the algorithm bandwidth (nccl-tests, `doc/PERFORMANCE.md`).
    pub fn all_reduce_busbw_gb_per_s(&self, ranks: u32) -> f64 {
        collective::all_reduce_busbw_gb_per_s(self.algbw_gb_per_s(), ranks)
    }

    /// Whether the printed algorithm bandwidth is that of the row in one of the two units, as exactly as it is printed: with
    /// two digits behind the point, from a time that was itself rounded.
    fn is_sound(&self) -> bool {
        let decimal = self.algbw_gb_per_s();
        let close =
            |computed: f64| (self.printed_algbw - computed).abs() <= 0.006 + 0.02 * computed;
        decimal.is_finite() && (close(decimal) || close(decimal / 1.073_741_824))
    }

    /// Whether the printed bandwidths can be those of an all-reduce over so many ranks: the one is the other times
    /// `2(n − 1)/n`, as exactly as two digits behind the point tell.
    pub fn is_of_ranks(&self, ranks: u32) -> bool {
        let computed = collective::all_reduce_busbw_gb_per_s(self.printed_algbw, ranks);
        self.printed_busbw
            .is_none_or(|printed| (printed - computed).abs() <= 0.016 + 0.002 * computed)
    }
}

/// A message size that could not be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRow {
    /// Message size in bytes.
    pub bytes: u64,
    /// What stands in place of the figures, or behind them.
    pub said: String,
    /// Whether the operation came to its end and `--check` found its result wrong; otherwise the tool could not run it.
    pub is_wrong: bool,
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
    /// It counts more errors than rows with one.
    #[error("nccom-test found {0} errors that stand in no row of its table")]
    Errors(u64),
    /// Bytes over time is not the bandwidth that is printed beside them.
    #[error("size, time and algbw contradict each other in this row of nccom-test: `{0}`")]
    Contradiction(String),
    /// Its JSON file cannot be read.
    #[error("the JSON file of nccom-test cannot be read: {0}")]
    Json(String),
    /// Its JSON file has no rows where they should be.
    #[error(
        "the JSON file of nccom-test holds no list `results` of rows with `size(B)`, a time and `algbw(GB/s)`"
    )]
    NoResults,
    /// Its JSON file tells another story than its table.
    #[error("nccom-test wrote other rows into its JSON file than it printed")]
    TwoStories,
}

/// Where the columns are that matter.
struct Columns {
    all: usize,
    size: usize,
    time: usize,
    algbw: usize,
    busbw: Option<usize>,
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
    let mut errors = 0;
    let mut lines = 0;
    for line in text.lines() {
        if let Some(header) = columns_of(line) {
            columns = Some(header);
            ended = false;
            continue;
        }
        let Some(columns) = &columns else { continue };
        errors += errors_found(line).unwrap_or(0);
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
        // It says so in numbers, wherever the words of the failure stand.
        Some(_) if errors > table.failed.len() as u64 => Err(NccomError::Errors(errors)),
        Some(_) => Ok(table),
    }
}

/// Reads the JSON file of `--report-to-json-file` and holds it against the table that was printed in the same run.
///
/// # Errors
/// When it is not such a file, or its rows are not those of the table.
pub fn compare(file: &[u8], table: &Table) -> Result<(), NccomError> {
    let document = json::document(file).map_err(|error| NccomError::Json(error.to_string()))?;
    let results = document
        .get("results")
        .and_then(Value::as_array)
        .ok_or(NccomError::NoResults)?;
    let rows: Option<Vec<Row>> = results.iter().map(json_row).collect();
    let rows = rows.ok_or(NccomError::NoResults)?;
    // Times are the same text in both places, so they are compared exactly; bandwidths are rounded in one of them.
    let told = |rows: &[Row]| -> Vec<(u64, f64)> {
        rows.iter().map(|row| (row.bytes, row.time_us)).collect()
    };
    if told(&rows) == told(&table.rows) {
        Ok(())
    } else {
        Err(NccomError::TwoStories)
    }
}

fn json_row(row: &Value) -> Option<Row> {
    let time = TIMES.iter().find_map(|name| row.get(*name)?.as_f64())?;
    let found = Row {
        bytes: row.get(SIZE)?.as_u64()?,
        time_us: time,
        printed_algbw: row.get(ALGBW)?.as_f64()?,
        printed_busbw: row.get(BUSBW).and_then(Value::as_f64),
    };
    found.is_sound().then_some(found)
}

fn columns_of(line: &str) -> Option<Columns> {
    let names: Vec<&str> = line.split_whitespace().collect();
    let place = |wanted: &[&str]| names.iter().position(|name| wanted.contains(name));
    Some(Columns {
        all: names.len(),
        size: place(&[SIZE])?,
        time: place(&TIMES)?,
        algbw: place(&[ALGBW])?,
        busbw: place(&[BUSBW]),
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
    let number = |column: usize| {
        let number: f64 = cells.get(column)?.parse().ok()?;
        (number.is_finite() && number >= 0.0).then_some(number)
    };
    let has = |word: &str| {
        let mut words = cells[1..].iter().map(|cell| cell.to_ascii_lowercase());
        words.any(|cell| cell.starts_with(word))
    };
    if has("fail") {
        table.failed.push(FailedRow {
            bytes,
            said: quote(&cells[1..].join(" ")),
            is_wrong: number(columns.time).is_some() || has("mismatch"),
        });
        return Ok(());
    }
    if cells.len() < columns.all {
        return Err(malformed());
    }
    let (time_us, algbw) = number(columns.time)
        .zip(number(columns.algbw))
        .ok_or_else(malformed)?;
    let printed_busbw = match columns.busbw {
        Some(column) => Some(number(column).ok_or_else(malformed)?),
        None => None,
    };
    let row = Row {
        bytes,
        time_us,
        printed_algbw: algbw,
        printed_busbw,
    };
    if !row.is_sound() {
        return Err(NccomError::Contradiction(quote(line)));
    }
    // A mismatch found by --check stands behind the figures.
    match cells.get(columns.all..).filter(|rest| !rest.is_empty()) {
        Some(rest) => table.failed.push(FailedRow {
            bytes,
            said: quote(&rest.join(" ")),
            is_wrong: true,
        }),
        None => table.rows.push(row),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEALTHY: &str = include_str!("../../../fixtures/outputs/nccom_test/allr-32-ranks.txt");
    const JSON: &str = include_str!("../../../fixtures/outputs/nccom_test/allr-32-ranks.json");
    const PERCENTILES: &str =
        include_str!("../../../fixtures/outputs/nccom_test/allr-percentiles.txt");
    const FAILED: &str = include_str!("../../../fixtures/outputs/nccom_test/failed-row.txt");
    const NO_DRIVER: &str = include_str!("../../../fixtures/outputs/nccom_test/no-driver.txt");

    #[test]
    fn a_table_is_read_with_its_columns() {
        let table = read(HEALTHY).unwrap();
        assert_eq!((table.rows.len(), table.failed.len()), (5, 0));
        let last = table.rows[4];
        assert_eq!((last.bytes, last.time_us), (1 << 30, 20_500.0));
        assert_eq!(read(PERCENTILES).unwrap().rows[0].time_us, 9.10);
    }

    #[test]
    fn a_bandwidth_is_bytes_over_time_in_whatever_unit_it_is_printed() {
        let binary = "size(B) count(elems) type time(us) algbw(GB/s) busbw(GB/s)\n\
                      1073741824 268435456 fp32 41806 23.92 47.09\nAvg bus bandwidth: 1.0GB/s\n";
        for text in [binary.to_owned(), binary.replace("23.92", "25.68")] {
            let row = read(&text).unwrap().rows[0];
            assert!((row.algbw_gb_per_s() - 25.684).abs() < 0.001);
            assert!((row.all_reduce_busbw_gb_per_s(64) - 50.565).abs() < 0.001);
        }
        for (printed, lie) in [("23.92", "205.4"), ("41806", "1e-300"), ("41806", "0")] {
            assert!(matches!(
                read(&binary.replace(printed, lie)),
                Err(NccomError::Contradiction(_))
            ));
        }
    }

    #[test]
    fn the_json_file_has_to_tell_what_the_table_tells() {
        let table = read(HEALTHY).unwrap();
        assert_eq!(compare(JSON.as_bytes(), &table), Ok(()));
        let other = JSON.replace("2105.33", "210.533");
        assert_eq!(
            compare(other.as_bytes(), &table),
            Err(NccomError::NoResults)
        );
        let shorter = Table {
            rows: table.rows[..4].to_vec(),
            failed: Vec::new(),
        };
        assert_eq!(
            compare(JSON.as_bytes(), &shorter),
            Err(NccomError::TwoStories)
        );
        for cut in 0..JSON.trim_end().len() {
            assert!(
                compare(&JSON.as_bytes()[..cut], &table).is_err(),
                "cut at {cut}"
            );
        }
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
        assert!(!table.failed[0].is_wrong);
    }

    #[test]
    fn errors_that_stand_in_no_row_are_no_pass() {
        let text = HEALTHY.replace(
            "Avg bus",
            "Failure: mismatch\n1 errors found - test failed\nAvg bus",
        );
        assert_eq!(read(&text), Err(NccomError::Errors(1)));
    }

    #[test]
    fn a_mismatch_behind_the_figures_is_a_failure() {
        let text = HEALTHY.replace("94.52\n", "94.52 ERROR: mismatch\n");
        let table = read(&text).unwrap();
        assert_eq!((table.rows.len(), table.failed.len()), (4, 1));
        assert!(table.failed[0].is_wrong);
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
            drop(compare(text.as_bytes(), &Table::default()));
            drop(read(&format!("size(B) count(elems) type time(us) algbw(GB/s) busbw(GB/s)\n{text}")));
        }
    }
}
