//! `disk-stress`: a disk gives back what it has acknowledged, and how fast it is.

mod content;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use dhc_thresholds::{Kind, Metric, Role, Subject, Unit};
use rustix::io::Errno;

use self::content::{Fault, Label};
use crate::check::{
    Budget, CheckError, Company, InstanceCheck, OptionSpec, Recorder, Spec, Task, Values,
};
use crate::foresight::Cause;
use crate::host::scratch::{self, PAGE_BYTES, Pages, Place, Scratch};
use crate::host::vector::mixed;
use crate::host::{Host, load};

const WRONG: Metric = Metric {
    name: "disk.stress.wrong",
    unit: Unit::Count,
    about: "pages of 4 KiB that were read otherwise than they had been written and synced",
    role: Role::Required,
    fault: "disk.corrupts",
};
const ERRORS: Metric = Metric {
    name: "disk.stress.errors",
    unit: Unit::Count,
    about: "reads, writes and syncs that the disk answered with an error; the first one ends the test of its directory",
    role: Role::Required,
    fault: "disk.errors",
};
const WRITE_BANDWIDTH: Metric = Metric {
    name: "disk.stress.write_bandwidth",
    unit: Unit::GigabytesPerSecond,
    about: "writing 1 MiB after 1 MiB in order, one at a time, without the page cache, the sync at the end included",
    role: Role::Judged,
    fault: "disk.slow",
};
const READ_BANDWIDTH: Metric = Metric {
    name: "disk.stress.read_bandwidth",
    unit: Unit::GigabytesPerSecond,
    about: "reading 1 MiB after 1 MiB in order, one at a time, without the page cache",
    role: Role::Judged,
    fault: "disk.slow",
};
const READ_P50: Metric = latency(
    "disk.stress.read_p50",
    "half of the reads of 4 KiB at random places, one at a time, took less than this",
);
const READ_P99: Metric = latency(
    "disk.stress.read_p99",
    "99 of 100 reads of 4 KiB at random places, one at a time, took less than this",
);
const READ_MAX: Metric = latency(
    "disk.stress.read_max",
    "the longest read of 4 KiB at a random place",
);
const WRITE_P50: Metric = latency(
    "disk.stress.write_p50",
    "half of the writes of 4 KiB at random places, one at a time, took less than this",
);
const WRITE_P99: Metric = latency(
    "disk.stress.write_p99",
    "99 of 100 writes of 4 KiB at random places, one at a time, took less than this",
);
const WRITE_MAX: Metric = latency(
    "disk.stress.write_max",
    "the longest write of 4 KiB at a random place",
);

const fn latency(name: &'static str, about: &'static str) -> Metric {
    Metric::new(name, Unit::Microseconds, Role::Context, about, "disk.slow")
}

static SPEC: Spec = Spec {
    name: "disk-stress",
    about: "directories on disks: write, sync, read back and verify without the page cache; bandwidth and latency",
    explain: "\
Makes a file in each of the directories, writes it in blocks of 1 MiB, syncs it, reads it back and compares every byte,
again and again for half of the time. Every page says where it belongs and which write it is from, so a lost write, one
that went to another place, and flipped bits are told apart. Then single pages are written and read at random places
for the latencies. Nothing goes through the page cache, so what is read comes from the disk (or its own cache).

The file has no name, or loses it before anything is written, so nothing is left behind however dhc ends. A directory
is not measured, which makes the verdict unknown, where less than a tenth of the file system would stay free, where the
file system is in memory, or where it knows no direct I/O. Name directories on local disks: on a network file system a
fault may be the server's, so it asks for a person to look and accuses no node. ZFS before 2.3 accepts direct I/O and
uses its cache all the same.",
    metrics: &[
        &WRONG,
        &ERRORS,
        &WRITE_BANDWIDTH,
        &READ_BANDWIDTH,
        &READ_P50,
        &READ_P99,
        &READ_MAX,
        &WRITE_P50,
        &WRITE_P99,
        &WRITE_MAX,
    ],
    needs: None,
    tags: &["stress", "long"],
    company: Company::Alone,
    options: &[SECONDS, MIB, DIRECTORIES],
};

const SECONDS: OptionSpec = OptionSpec {
    name: "seconds",
    default: "10",
    values: Values::Number(1..=86_400),
    about: "how long each directory is tested",
};

const MIB: OptionSpec = OptionSpec {
    name: "mib",
    default: "256",
    values: Values::Number(1..=1 << 20),
    about: "size of the file in MiB",
};

const DIRECTORIES: OptionSpec = OptionSpec {
    name: "directories",
    default: "",
    values: Values::Directories(DIRECTORIES_MAX),
    about: "directories on the disks to test, such as /opt/dlami/nvme:/data; where dhc keeps its results if empty",
};

/// Directories are tested one after the other; no node has as many disks.
const DIRECTORIES_MAX: usize = 64;

/// The block of the bandwidths, as most tools have it.
const BLOCK_PAGES: usize = 256;

/// Pages that are written and read at random places, at most: enough for the 99th of a hundred to be a hundred pages.
const RANDOM_MAX: u64 = 10_000;

/// Of a file system, this share stays free.
const STAYS_FREE_PERCENT: u64 = 10;

/// The check.
pub(super) struct DiskStress;

impl InstanceCheck for DiskStress {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, options: &BTreeMap<String, String>) -> Budget {
        let directories = options
            .get(DIRECTORIES.name)
            .map_or(1, |list| list.split(':').count());
        let directories = u32::try_from(directories.min(DIRECTORIES_MAX)).unwrap_or(1);
        let expected = (SECONDS.seconds_in(options) + Duration::from_secs(1)) * directories;
        Budget {
            expected,
            // A sync may have to wait for all that others have written.
            deadline: expected * 2 + Duration::from_secs(60),
        }
    }

    fn foresees(&self) -> &'static [Cause] {
        &[Cause::Disk]
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let length = Duration::from_secs(task.number(&SPEC, SECONDS.name)?);
        let size = task.number(&SPEC, MIB.name)? << 20;
        let directories = directories(task)?;
        load::stand_back();
        for directory in directories {
            let subject = Subject::new(Kind::Disk, directory.display().to_string());
            record.progress(format!("{subject} is written and read back"))?;
            match prepare(&task.host, &directory, size) {
                Ok((file, place)) => {
                    let run = mixed(begun());
                    let tested = test(&file, size, run, length);
                    tell(tested, place, &subject, record)?;
                }
                Err(why) => record.gap(&WRONG, subject, why)?,
            }
        }
        Ok(())
    }
}

fn directories(task: &Task) -> Result<Vec<PathBuf>, CheckError> {
    let named = task.directories(&SPEC, DIRECTORIES.name)?;
    if !named.is_empty() {
        return Ok(named);
    }
    let state = task.state.clone().map(|state| vec![state]);
    state.ok_or_else(|| {
        let why = "no directory is known; name some with --set disk-stress.directories";
        CheckError::Unavailable(why.to_owned())
    })
}

/// What tells this run from others.
fn begun() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanoseconds = since.unwrap_or_default().as_nanos() as u64;
    nanoseconds ^ u64::from(std::process::id()).rotate_right(16)
}

/// The file to test with, or why there is none.
fn prepare(host: &Host, directory: &Path, size: u64) -> Result<(Scratch, Place), String> {
    // The directory is on the machine that dhc runs on, simulated or not.
    let own = Host {
        root: "/".into(),
        ..host.clone()
    };
    let space = own.space(directory).map_err(|error| error.to_string())?;
    if space.is_read_only {
        return Err("its file system is read-only; name another directory".to_owned());
    }
    let stays_free = space.total_bytes / 100 * STAYS_FREE_PERCENT;
    if space.free_bytes < stays_free.saturating_add(size) {
        return Err(format!(
            "a file of {} MiB would leave less than {STAYS_FREE_PERCENT} % of its file system free ({} of {} MiB are free \
             now); free some, or set a smaller disk-stress.mib",
            size >> 20,
            space.free_bytes >> 20,
            space.total_bytes >> 20
        ));
    }
    let place = scratch::place(directory).map_err(|error| error.to_string())?;
    if place == Place::Memory {
        return Err(
            "its file system is in memory, so there is no disk to test; name another directory"
                .to_owned(),
        );
    }
    match Scratch::make(directory, size) {
        Ok(file) => Ok((file, place)),
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Err(
            "its file system knows no direct I/O, so what is read back would come from memory; name another directory"
                .to_owned(),
        ),
        Err(error) => Err(format!("no file can be made in it: {error}")),
    }
}

/// What a disk does, which tests let go wrong.
trait Disk {
    fn write(&self, pages: &[u8], at: u64) -> io::Result<()>;
    fn read(&self, pages: &mut [u8], at: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

impl Disk for Scratch {
    fn write(&self, pages: &[u8], at: u64) -> io::Result<()> {
        Scratch::write(self, pages, at)
    }

    fn read(&self, pages: &mut [u8], at: u64) -> io::Result<()> {
        Scratch::read(self, pages, at)
    }

    fn sync(&self) -> io::Result<()> {
        Scratch::sync(self)
    }
}

/// What was seen of a disk.
#[derive(Debug, Default)]
struct Tested {
    written: Flow,
    read: Flow,
    write_latencies: Vec<Duration>,
    read_latencies: Vec<Duration>,
    wrong: u64,
    /// The first page that was wrong, and how.
    first: Option<(u64, Fault)>,
    /// What ended the test before its time: what was done, where, and the answer.
    error: Option<(String, io::Error)>,
}

/// Bytes, and the time that they took.
#[derive(Debug, Default)]
struct Flow {
    bytes: u64,
    time: Duration,
}

impl Flow {
    /// 10⁹ bytes a second; `None` where nothing flowed.
    #[expect(clippy::cast_precision_loss, reason = "a bandwidth")]
    fn gigabytes_per_second(&self) -> Option<f64> {
        (self.bytes > 0 && !self.time.is_zero())
            .then(|| self.bytes as f64 / self.time.as_secs_f64() / 1e9)
    }
}

/// Tests a file of `size` bytes for `length`.
fn test(disk: &dyn Disk, size: u64, run: u64, length: Duration) -> Tested {
    let mut tested = Tested::default();
    if let Err(error) = in_order_and_at_random(disk, size, run, length, &mut tested) {
        tested.error = Some(error);
    }
    tested
}

type Failed = (String, io::Error);

fn in_order_and_at_random(
    disk: &dyn Disk,
    size: u64,
    run: u64,
    length: Duration,
    tested: &mut Tested,
) -> Result<(), Failed> {
    let begun = Instant::now();
    let mut generation = 0;
    let mut written = 0;
    while generation == 0 || begun.elapsed() < length / 2 {
        generation += 1;
        // A disk that is too slow for the whole file is tested with the beginning of it.
        let write_until = Instant::now() + length / 4;
        let pages = write_in_order(disk, size, run, generation, write_until, tested)?;
        read_in_order(disk, pages, run, generation, tested)?;
        written = pages;
    }
    let end = begun + length;
    at_random(disk, written, run, generation, end, tested)
}

/// Writes the file from its beginning until it is full or `until`, syncs it, and says how many pages it wrote.
fn write_in_order(
    disk: &dyn Disk,
    size: u64,
    run: u64,
    generation: u64,
    until: Instant,
    tested: &mut Tested,
) -> Result<u64, Failed> {
    let mut block = Pages::new(BLOCK_PAGES);
    let mut page = 0;
    while page * (PAGE_BYTES as u64) < size && (page == 0 || Instant::now() < until) {
        let at = page * PAGE_BYTES as u64;
        for bytes in block.bytes().chunks_exact_mut(PAGE_BYTES) {
            let label = Label {
                run,
                page,
                generation,
            };
            label.write(bytes);
            page += 1;
        }
        let begun = Instant::now();
        disk.write(block.bytes(), at)
            .map_err(|error| (format!("writing at byte {at}"), error))?;
        tested.written.time += begun.elapsed();
        tested.written.bytes += block.bytes().len() as u64;
    }
    let begun = Instant::now();
    disk.sync().map_err(|error| ("syncing".to_owned(), error))?;
    tested.written.time += begun.elapsed();
    Ok(page)
}

fn read_in_order(
    disk: &dyn Disk,
    pages: u64,
    run: u64,
    generation: u64,
    tested: &mut Tested,
) -> Result<(), Failed> {
    let mut block = Pages::new(BLOCK_PAGES);
    for first in (0..pages).step_by(BLOCK_PAGES) {
        let at = first * PAGE_BYTES as u64;
        let begun = Instant::now();
        disk.read(block.bytes(), at)
            .map_err(|error| (format!("reading at byte {at}"), error))?;
        tested.read.time += begun.elapsed();
        tested.read.bytes += block.bytes().len() as u64;
        for (bytes, page) in block.bytes().chunks_exact(PAGE_BYTES).zip(first..) {
            let label = Label {
                run,
                page,
                generation,
            };
            tested.check(label, bytes);
        }
    }
    Ok(())
}

/// Writes pages at random places, syncs them, and reads them back, each until half of the time to `end` is over.
fn at_random(
    disk: &dyn Disk,
    pages: u64,
    run: u64,
    generation: u64,
    end: Instant,
    tested: &mut Tested,
) -> Result<(), Failed> {
    let mut one = Pages::new(1);
    // The last write of a page is the one that counts.
    let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
    let until = Instant::now() + end.saturating_duration_since(Instant::now()) / 2;
    for number in 0..RANDOM_MAX {
        if number > 0 && Instant::now() >= until {
            break;
        }
        let page = mixed(run ^ number) % pages;
        let label = Label {
            run,
            page,
            generation: generation + 1 + number,
        };
        label.write(one.bytes());
        let at = page * PAGE_BYTES as u64;
        let begun = Instant::now();
        disk.write(one.bytes(), at)
            .map_err(|error| (format!("writing at byte {at}"), error))?;
        tested.write_latencies.push(begun.elapsed());
        newest.insert(page, label.generation);
    }
    disk.sync().map_err(|error| ("syncing".to_owned(), error))?;
    // In the order of writing, not of places.
    let mut order: Vec<(u64, u64)> = newest.into_iter().collect();
    order.sort_by_key(|(_, generation)| *generation);
    for (number, (page, generation)) in order.into_iter().enumerate() {
        if number > 0 && Instant::now() >= end {
            break;
        }
        let at = page * PAGE_BYTES as u64;
        let begun = Instant::now();
        disk.read(one.bytes(), at)
            .map_err(|error| (format!("reading at byte {at}"), error))?;
        tested.read_latencies.push(begun.elapsed());
        let label = Label {
            run,
            page,
            generation,
        };
        tested.check(label, one.bytes());
    }
    Ok(())
}

impl Tested {
    fn check(&mut self, label: Label, page: &[u8]) {
        if let Some(fault) = label.check(page) {
            self.wrong += 1;
            self.first.get_or_insert((label.page, fault));
        }
    }
}

/// Records what was seen of one directory.
fn tell(
    mut tested: Tested,
    place: Place,
    subject: &Subject,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let of = |measurement: dhc_thresholds::Measurement| match place {
        Place::Disk | Place::Memory => measurement,
        Place::Network => measurement.fault("disk.remote"),
    };
    if tested.read.bytes > 0 {
        let wrong = of(WRONG.of(subject.clone(), tested.wrong));
        record.add(match tested.first {
            Some((page, fault)) => wrong.detail(format!("page {page} of the file: {fault}")),
            None => wrong,
        })?;
    }
    match &tested.error {
        Some((doing, error)) if accuses(error) => {
            record
                .add(of(ERRORS.of(subject.clone(), 1_u64)).detail(format!("{doing}: {error}")))?;
        }
        // A full disk, a quota: nothing that the disk is to blame for.
        Some((doing, error)) => {
            record.gap(&ERRORS, subject.clone(), format!("{doing}: {error}"))?
        }
        None => record.measure(&ERRORS, subject.clone(), 0_u64)?,
    }
    for (metric, flow) in [
        (&WRITE_BANDWIDTH, &tested.written),
        (&READ_BANDWIDTH, &tested.read),
    ] {
        if let Some(speed) = flow.gigabytes_per_second() {
            record.add(of(metric.of(subject.clone(), speed)))?;
        }
    }
    for (latencies, [p50, p99, max]) in [
        (
            &mut tested.read_latencies,
            [&READ_P50, &READ_P99, &READ_MAX],
        ),
        (
            &mut tested.write_latencies,
            [&WRITE_P50, &WRITE_P99, &WRITE_MAX],
        ),
    ] {
        latencies.sort();
        for (metric, per_cent) in [(p50, 50), (p99, 99), (max, 100)] {
            if let Some(latency) = percentile(latencies, per_cent) {
                record.measure(metric, subject.clone(), latency.as_secs_f64() * 1e6)?;
            }
        }
    }
    Ok(())
}

/// Whether an error is the disk's answer, after its own and the kernel's retries, rather than ours or the file system's
/// (Linux, block/blk-core.c, `blk_errors`).
fn accuses(error: &io::Error) -> bool {
    const OF_THE_DISK: [Errno; 6] = [
        Errno::IO,
        Errno::NODATA,
        Errno::ILSEQ,
        Errno::REMOTEIO,
        Errno::NODEV,
        Errno::NOLINK,
    ];
    Errno::from_io_error(error).is_some_and(|errno| OF_THE_DISK.contains(&errno))
}

/// The smallest of the sorted values that so many per cent do not exceed.
fn percentile(sorted: &[Duration], per_cent: usize) -> Option<Duration> {
    let rank = (sorted.len() * per_cent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// A disk that does what it is told, but for one thing.
    struct Faulty {
        content: RefCell<Vec<u8>>,
        fault: fn(&mut Vec<u8>, &[u8], usize) -> io::Result<()>,
    }

    const SIZE: usize = 2 << 20;

    impl Disk for Faulty {
        fn write(&self, pages: &[u8], at: u64) -> io::Result<()> {
            (self.fault)(&mut self.content.borrow_mut(), pages, at as usize)
        }

        fn read(&self, pages: &mut [u8], at: u64) -> io::Result<()> {
            pages.copy_from_slice(&self.content.borrow()[at as usize..][..pages.len()]);
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn tested(fault: fn(&mut Vec<u8>, &[u8], usize) -> io::Result<()>) -> Tested {
        let disk = Faulty {
            content: RefCell::new(vec![0; SIZE]),
            fault,
        };
        let mut tested = Tested::default();
        // The parts of a pass, so that no clock decides how much of the disk is tested.
        let never = Instant::now() + Duration::from_secs(3600);
        let soon = Instant::now() + Duration::from_millis(50);
        let done = write_in_order(&disk, SIZE as u64, 1, 1, never, &mut tested)
            .and_then(|pages| {
                read_in_order(&disk, pages, 1, 1, &mut tested)?;
                Ok(pages)
            })
            .and_then(|pages| at_random(&disk, pages, 1, 1, soon, &mut tested));
        tested.error = done.err();
        tested
    }

    fn honestly(content: &mut [u8], pages: &[u8], at: usize) {
        content[at..][..pages.len()].copy_from_slice(pages);
    }

    #[test]
    fn a_sound_disk_gives_back_everything() {
        let tested = tested(|content, pages, at| {
            honestly(content, pages, at);
            Ok(())
        });
        assert_eq!((tested.wrong, tested.error.is_none()), (0, true));
        assert!(tested.written.bytes >= SIZE as u64 && tested.read.bytes >= SIZE as u64);
        assert!(!tested.read_latencies.is_empty() && !tested.write_latencies.is_empty());
    }

    #[test]
    fn a_write_that_is_lost_is_found() {
        let tested = tested(|content, pages, at| {
            if at != 1 << 20 {
                honestly(content, pages, at);
            }
            Ok(())
        });
        assert_eq!(tested.first, Some((BLOCK_PAGES as u64, Fault::Zeros)));
    }

    #[test]
    fn a_write_that_is_lost_among_random_ones_is_found() {
        let tested = tested(|content, pages, at| {
            if pages.len() > PAGE_BYTES {
                honestly(content, pages, at);
            }
            Ok(())
        });
        assert!(tested.wrong > 0);
        assert!(
            matches!(tested.first, Some((_, Fault::Old(_)))),
            "{:?}",
            tested.first
        );
    }

    #[test]
    fn a_write_that_goes_to_another_place_is_found() {
        let tested = tested(|content, pages, at| {
            honestly(content, pages, if at == 1 << 20 { 0 } else { at });
            Ok(())
        });
        assert_eq!(
            tested.first,
            Some((0, Fault::OtherPlace(BLOCK_PAGES as u64)))
        );
    }

    #[test]
    fn a_bit_that_flips_is_found() {
        let tested = tested(|content, pages, at| {
            honestly(content, pages, at);
            if at == 1 << 20 {
                content[5 * PAGE_BYTES + 100] ^= 4;
            }
            Ok(())
        });
        assert!(tested.wrong > 0);
        assert!(
            matches!(tested.first, Some((5, Fault::Bits(1)))),
            "{:?}",
            tested.first
        );
    }

    #[test]
    fn only_the_disk_s_own_errors_accuse_it() {
        let failing = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        assert!(accuses(&failing(Errno::IO)) && accuses(&failing(Errno::NODATA)));
        assert!(!accuses(&failing(Errno::NOSPC)) && !accuses(&failing(Errno::DQUOT)));
        let tested = tested(|_, _, _| Err(io::Error::from_raw_os_error(Errno::IO.raw_os_error())));
        assert!(
            tested
                .error
                .is_some_and(|(doing, _)| doing == "writing at byte 0")
        );
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 50), Some(Duration::from_millis(100)));
        assert_eq!(percentile(&values, 99), Some(Duration::from_millis(198)));
        assert_eq!(percentile(&values, 100), Some(Duration::from_millis(200)));
        assert_eq!(percentile(&values[..1], 50), Some(Duration::from_millis(1)));
        assert_eq!(percentile(&[], 50), None);
    }
}
