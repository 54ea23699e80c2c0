//! `cpu-stress`: every core computes values whose answers are known.

mod kernels;

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dhc_thresholds::{Kind, Metric, Role, Subject, Unit};

use self::kernels::{Known, Seeded};
use crate::check::{
    Budget, CheckError, Company, InstanceCheck, OptionSpec, Recorder, Spec, Task, Values,
};
use crate::foresight::Cause;
use crate::format::sysfs;
use crate::host::load;
use crate::host::vector::mixed;

const WRONG: Metric = Metric {
    name: "cpu.stress.wrong",
    unit: Unit::Count,
    about: "computations of one CPU that gave another answer than the known one, or than most other CPUs",
    role: Role::Required,
    fault: "cpu.corrupts",
};
const DISAGREED: Metric = Metric {
    name: "cpu.stress.disagreed",
    unit: Unit::Count,
    about: "computations on which the CPUs disagreed without a majority that says who is wrong",
    role: Role::Judged,
    fault: "cpu.corrupts",
};
const SPEED: Metric = Metric {
    name: "cpu.stress.speed",
    unit: Unit::Percent,
    about: "computations of one CPU in a second of its own time, as a share of the median of all CPUs",
    role: Role::Context,
    fault: "cpu.slow",
};
const ROUNDS: Metric = Metric {
    name: "cpu.stress.rounds",
    unit: Unit::Count,
    about: "how many times one CPU computed everything",
    role: Role::Context,
    fault: "cpu.slow",
};
const VECTOR: Metric = Metric {
    name: "cpu.stress.vector",
    unit: Unit::State,
    about: "the widest vector unit that was exercised: AVX-512, AVX2, NEON or none",
    role: Role::Context,
    fault: "cpu.corrupts",
};

static SPEC: Spec = Spec {
    name: "cpu-stress",
    about: "every core computes what has a known answer: integers, floating point, vectors, AES, SHA; a wrong one is named",
    explain: "\
A core that computes wrong and says nothing ruins a training run without a trace. Each CPU gets a thread that stays on
it and computes, again and again: numbers of the Mersenne twister and of a generator that divides (their 10,000th
numbers stand in ISO C++), a chaotic chain of floating point operations (its answer was computed ahead with whole
numbers alone), AES (FIPS 197, NIST's Monte Carlo test), SHA-256 (FIPS 180-4), and the same chaotic chain on each vector
unit that the CPU has: AVX2, AVX-512, NEON. Beside these, every CPU computes the same things from beginnings that
differ in each round, and the CPUs are compared with one another, since many faults show with some numbers only. After some
thousand rounds they begin anew, and every CPU has to give its own answers again.

A wrong answer names the CPU. Where CPUs disagree and there are too few for a majority, all of them together are named.
A CPU that is online and that this process may not use is not measured, so the verdict is unknown then: run dhc
outside of a job's cpuset. Speed is compared between CPUs, by the processor time that each one had, so other work on
the node matters little. All threads run at the lowest priority. Units that the CPU lacks are named in a note; nothing
passes for them.",
    metrics: &[&WRONG, &DISAGREED, &SPEED, &ROUNDS, &VECTOR],
    needs: None,
    tags: &["stress", "long"],
    company: Company::Alone,
    options: &[SECONDS],
};

const SECONDS: OptionSpec = OptionSpec {
    name: "seconds",
    default: "30",
    values: Values::Number(1..=86_400),
    about: "how long every CPU computes",
};

/// A CPU that was wrong this often needs no more of it.
const WRONG_ENOUGH: u64 = 16;

/// How many rounds differ from one another. Their answers are kept, to compare the CPUs with one another in the end; a CPU that
/// has done them all begins anew, and has to give the same answers again.
const ROUNDS_KEPT: usize = 2048;

/// What starting a thread on each of some hundred CPUs takes, and the last round of each.
const AROUND: Duration = Duration::from_secs(2);

/// The check.
pub(super) struct CpuStress;

impl InstanceCheck for CpuStress {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, options: &BTreeMap<String, String>) -> Budget {
        let expected = SECONDS.seconds_in(options) + AROUND;
        Budget {
            expected,
            // Where other work has the CPUs, a round at the lowest priority may take long.
            deadline: expected * 2 + Duration::from_secs(30),
        }
    }

    fn foresees(&self) -> &'static [Cause] {
        &[Cause::SilentCorruption, Cause::Cpu]
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let length = Duration::from_secs(task.number(&SPEC, SECONDS.name)?);
        let cpus = cpus(task, record)?;
        let work = Work {
            known: kernels::known(),
            seeded: kernels::seeded(),
        };
        load::stand_back();
        work.tell_units(record)?;
        record.progress(format!("{} CPUs compute", cpus.len()))?;
        stress(&work, &cpus, length, record)
    }
}

/// The CPUs that can be measured. Those that are online and not open to this process are a gap.
fn cpus(task: &Task, record: &mut Recorder<'_>) -> Result<Vec<usize>, CheckError> {
    let allowed = load::allowed_cpus().map_err(|errno| {
        CheckError::Unavailable(format!(
            "the kernel does not say which CPUs dhc may use: {errno}"
        ))
    })?;
    let all = Subject::new(Kind::Cpu, "cpus");
    let online = task.host.text("/sys/devices/system/cpu/online");
    let online = online.map(|list| sysfs::list_length(&list));
    let closed = match online {
        Ok(Some(online)) => online.saturating_sub(allowed.len() as u64),
        Ok(None) => {
            let why = "`/sys/devices/system/cpu/online` is not a list of CPUs";
            record.gap(&WRONG, all, why)?;
            return Ok(allowed);
        }
        Err(error) => {
            record.gap(&WRONG, all, error.to_string())?;
            return Ok(allowed);
        }
    };
    if closed > 0 {
        let why = format!(
            "{closed} CPUs that are online may not be used by this process (affinity or cpuset), so nothing is known of \
             them; run dhc outside of a job, or in one that has the whole node"
        );
        record.gap(&WRONG, all, why)?;
    }
    Ok(allowed)
}

/// What every CPU computes.
struct Work {
    known: Vec<Known>,
    seeded: Vec<Seeded>,
}

/// What one CPU did.
#[derive(Default)]
struct Done {
    rounds: u64,
    /// The processor time that the rounds took.
    time: Duration,
    wrong: u64,
    /// The units that gave wrong answers.
    units: Vec<&'static str>,
    /// The answers to the seeded computations, round after round.
    answers: Vec<Vec<u64>>,
}

/// Lets every CPU work for `length` and records what each one did as soon as it is done.
fn stress(
    work: &Work,
    cpus: &[usize],
    length: Duration,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let end = Instant::now() + length;
    let (sender, done) = mpsc::channel();
    let done = std::thread::scope(|scope| {
        for cpu in cpus.iter().copied() {
            let sender = sender.clone();
            scope.spawn(move || {
                let done = load::stay_on(cpu).map(|()| work.until(end));
                // The receiver is gone only where the runner is, and then nobody listens.
                drop(sender.send((cpu, done)));
            });
        }
        drop(sender);
        let mut all = BTreeMap::new();
        for (cpu, done) in done {
            match done {
                Ok(done) if done.wrong > 0 => {
                    record.add(done.accusation(cpu, "gave wrong answers"))?;
                    all.insert(cpu, done);
                }
                Ok(done) => {
                    all.insert(cpu, done);
                }
                Err(errno) => {
                    let why = format!("no thread can be put on it: {errno}");
                    record.gap(&WRONG, subject(cpu), why)?;
                }
            }
        }
        Ok(all)
    })?;
    tell(work, done, record)
}

fn subject(cpu: usize) -> Subject {
    Subject::new(Kind::Cpu, format!("cpu{cpu}"))
}

/// Compares the CPUs and records what is known of each one in the end.
fn tell(
    work: &Work,
    mut done: BTreeMap<usize, Done>,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    // A CPU that is known to be wrong has no vote, and is accused already.
    let honest: Vec<usize> = done
        .iter()
        .filter(|(_, done)| done.wrong == 0)
        .map(|(cpu, _)| *cpu)
        .collect();
    let answers: Vec<&[Vec<u64>]> = honest
        .iter()
        .map(|cpu| done[cpu].answers.as_slice())
        .collect();
    let compared = compare(&answers);
    let undecided: Vec<&str> = compared
        .undecided
        .iter()
        .map(|unit| work.seeded[*unit].unit)
        .collect();
    for (place, unit) in compared.minority {
        let cpu = done
            .get_mut(&honest[place])
            .expect("it was taken from here");
        cpu.wrong += 1;
        cpu.note(work.seeded[unit].unit);
    }
    let speeds = speeds(&done);
    for (cpu, done) in &done {
        record.measure(&ROUNDS, subject(*cpu), done.rounds)?;
        if let Some(speed) = speeds.get(cpu) {
            record.measure(&SPEED, subject(*cpu), *speed)?;
        }
        if !honest.contains(cpu) {
            continue;
        }
        if done.wrong > 0 {
            record.add(done.accusation(*cpu, "gave other answers than most CPUs"))?;
        } else {
            record.measure(&WRONG, subject(*cpu), 0_u64)?;
        }
    }
    let disagreed = DISAGREED.of(Subject::new(Kind::Cpu, "cpus"), undecided.len());
    record.add(if undecided.is_empty() {
        disagreed
    } else {
        let (units, cpus) = (list(undecided), list(honest));
        disagreed.detail(format!("{units}: one of the CPUs {cpus} is wrong"))
    })
}

fn list<T: ToString + Ord>(mut items: Vec<T>) -> String {
    items.sort();
    items.dedup();
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

/// How fast each CPU is, in percent of the median. A single one has no peers, and one that was stopped early no speed.
#[expect(clippy::cast_precision_loss, reason = "a percentage")]
fn speeds(done: &BTreeMap<usize, Done>) -> BTreeMap<usize, f64> {
    let each: BTreeMap<usize, f64> = done
        .iter()
        .filter(|(_, done)| done.wrong == 0 && !done.time.is_zero())
        .map(|(cpu, done)| (*cpu, done.rounds as f64 / done.time.as_secs_f64()))
        .collect();
    let mut sorted: Vec<f64> = each.values().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let (Some(low), true) = (sorted.get((sorted.len().max(1) - 1) / 2), sorted.len() > 1) else {
        return BTreeMap::new();
    };
    let median = f64::midpoint(*low, sorted[sorted.len() / 2]);
    each.into_iter()
        .map(|(cpu, rate)| (cpu, 100.0 * rate / median))
        .collect()
}

impl Work {
    /// Computes everything, round after round, until `end`; once at least.
    fn until(&self, end: Instant) -> Done {
        let mut done = Done::default();
        let begun = load::processor_time();
        for round in (0..ROUNDS_KEPT).cycle() {
            if done.rounds > 0 && (Instant::now() >= end || done.wrong >= WRONG_ENOUGH) {
                break;
            }
            for known in &self.known {
                if (known.compute)() != known.answer {
                    done.wrong += 1;
                    done.note(known.unit);
                }
            }
            // Every CPU begins a round with the same seed.
            let seed = mixed(round as u64);
            let answers = self.seeded.iter().map(|seeded| (seeded.compute)(seed));
            let answers: Vec<u64> = answers.collect();
            match done.answers.get(round).cloned() {
                Some(before) => {
                    let pairs = before.iter().zip(&answers).zip(&self.seeded);
                    for (_, seeded) in pairs.filter(|((before, now), _)| before != now) {
                        done.wrong += 1;
                        done.note(seeded.unit);
                    }
                }
                None => done.answers.push(answers),
            }
            done.rounds += 1;
        }
        done.time = load::processor_time().saturating_sub(begun);
        done
    }

    fn tell_units(&self, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        let units: Vec<&str> = self.known.iter().map(|known| known.unit).collect();
        let widest = ["AVX-512", "AVX2", "NEON"]
            .into_iter()
            .find(|unit| units.contains(unit));
        record.measure(
            &VECTOR,
            Subject::new(Kind::Cpu, "cpus"),
            widest.unwrap_or("none"),
        )?;
        record.note(format!("exercised: {}", units.join(", ")))?;
        let absent = kernels::absent();
        if absent.is_empty() {
            return Ok(());
        }
        record.note(format!(
            "not exercised, since this CPU has none: {}",
            absent.join(", ")
        ))
    }
}

impl Done {
    fn note(&mut self, unit: &'static str) {
        if !self.units.contains(&unit) {
            self.units.push(unit);
        }
    }

    fn accusation(&self, cpu: usize, what: &str) -> dhc_thresholds::Measurement {
        let detail = format!(
            "{what} in {} rounds: {}",
            self.rounds,
            self.units.join(", ")
        );
        WRONG.of(subject(cpu), self.wrong).detail(detail)
    }
}

/// Who gave other answers than most.
#[derive(Debug, Default, PartialEq, Eq)]
struct Compared {
    /// Each answer that a majority contradicts: which CPU gave it (its place), and to which computation.
    minority: Vec<(usize, usize)>,
    /// The computations to which no answer had a majority, once for each round.
    undecided: Vec<usize>,
}

/// Compares the answers of CPUs, `answers[cpu][round][computation]`; a CPU may have done fewer rounds than others.
fn compare(answers: &[&[Vec<u64>]]) -> Compared {
    let mut compared = Compared::default();
    let rounds = answers.iter().map(|rounds| rounds.len()).max().unwrap_or(0);
    for round in 0..rounds {
        let there: Vec<(usize, &[u64])> = answers
            .iter()
            .enumerate()
            .filter_map(|(cpu, rounds)| Some((cpu, rounds.get(round)?.as_slice())))
            .collect();
        let computations = there.first().map_or(0, |(_, answers)| answers.len());
        for computation in 0..computations {
            let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
            for (_, answers) in &there {
                *counts.entry(answers[computation]).or_default() += 1;
            }
            if counts.len() < 2 {
                continue;
            }
            let most = counts.iter().find(|(_, count)| **count * 2 > there.len());
            match most {
                Some((right, _)) => {
                    let wrong = there
                        .iter()
                        .filter(|(_, answers)| answers[computation] != *right);
                    let wrong = wrong.map(|(cpu, _)| (*cpu, computation));
                    compared.minority.extend(wrong);
                }
                None => compared.undecided.push(computation),
            }
        }
    }
    compared
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use dhc_thresholds::{Action, Ending, Record, Status, Table, built_in, judge};

    use super::*;
    use crate::check::Event;

    /// What the check records when the CPUs do this work for a moment.
    fn record_of(work: &Work) -> Record {
        record_of_so_long(work, Duration::from_millis(1))
    }

    fn record_of_so_long(work: &Work, length: Duration) -> Record {
        let cpus = load::allowed_cpus().unwrap();
        let mut lines = Vec::new();
        let mut recorder = Recorder::new(&SPEC, &mut lines);
        stress(work, &cpus, length, &mut recorder).unwrap();
        let mut record = Record::new(SPEC.name, Ending::Finished);
        for line in lines.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()) {
            match serde_json::from_slice(line).unwrap() {
                Event::Measurement(measurement) => record.measurements.push(measurement),
                Event::Gap(gap) => record.gaps.push(gap),
                other => panic!("{other:?}"),
            }
        }
        record
    }

    /// What holds for every machine.
    fn table() -> Table {
        let all = crate::catalog::CHECKS
            .iter()
            .flat_map(|check| check.spec().metrics);
        let metrics: Vec<&Metric> = all.copied().collect();
        built_in::load("generic", &metrics).unwrap().unwrap()
    }

    /// The findings that fail: subject, fault, action.
    fn accused(work: &Work) -> Vec<(String, String, Action)> {
        let verdict = judge(&record_of(work), SPEC.metrics, &table());
        verdict
            .findings
            .into_iter()
            .filter(|finding| finding.status == Status::Fail)
            .map(|finding| {
                let fault = finding.fault.unwrap_or_default();
                (finding.subject.name, fault, finding.action)
            })
            .collect()
    }

    fn honest() -> Work {
        Work {
            known: kernels::known(),
            seeded: kernels::seeded(),
        }
    }

    /// Answers as a CPU with a broken vector unit would: wrong on this CPU alone.
    fn lies_on(liar: usize) -> bool {
        rustix::thread::sched_getcpu() == liar
    }

    #[test]
    fn sound_cpus_are_not_accused() {
        assert_eq!(accused(&honest()), []);
    }

    #[test]
    fn a_cpu_that_gives_a_wrong_answer_is_named_and_nobody_else() {
        let liar = *load::allowed_cpus().unwrap().last().unwrap();
        let mut work = honest();
        work.known.push(Known {
            unit: "vector",
            compute: Box::new(move || vec![u8::from(lies_on(liar))]),
            answer: vec![0],
        });
        let named = (
            format!("cpu{liar}"),
            "cpu.corrupts".to_owned(),
            Action::Replace,
        );
        assert_eq!(accused(&work), [named]);
        let record = record_of(&work);
        let wrong = record
            .measurements
            .iter()
            .find(|found| found.subject.name == format!("cpu{liar}"))
            .unwrap();
        assert!(
            wrong.detail.as_ref().unwrap().contains("vector"),
            "{wrong:?}"
        );
    }

    #[test]
    fn cpus_that_disagree_without_a_majority_are_named_together() {
        let liar = *load::allowed_cpus().unwrap().last().unwrap();
        let peers = load::allowed_cpus().unwrap().len();
        let mut work = honest();
        work.seeded.push(Seeded {
            unit: "vector",
            compute: Box::new(move |seed| seed + u64::from(lies_on(liar))),
        });
        let accused = accused(&work);
        let named: Vec<&str> = accused.iter().map(|(who, ..)| who.as_str()).collect();
        match peers {
            1 => assert!(named.is_empty(), "{named:?}"),
            2 => assert_eq!(named, ["cpus"]),
            _ => assert_eq!(named, [format!("cpu{liar}")]),
        }
    }

    #[test]
    fn a_cpu_that_turns_wrong_after_all_rounds_are_known_is_named() {
        let liar = *load::allowed_cpus().unwrap().last().unwrap();
        let calls = AtomicUsize::new(0);
        let compute = move |seed| {
            let is_late = lies_on(liar) && calls.fetch_add(1, Ordering::Relaxed) >= ROUNDS_KEPT;
            seed + u64::from(is_late)
        };
        let work = Work {
            known: Vec::new(),
            seeded: vec![Seeded {
                unit: "float",
                compute: Box::new(compute),
            }],
        };
        let record = record_of_so_long(&work, Duration::from_millis(300));
        let found = record
            .measurements
            .iter()
            .find(|found| found.metric == WRONG.name && found.subject.name == format!("cpu{liar}"));
        let found = found.unwrap();
        assert!(found.value.number() > Some(0.0), "{found:?}");
    }

    #[test]
    fn the_majority_decides_who_is_wrong_and_a_tie_decides_nothing() {
        let right = vec![vec![1, 10], vec![2, 20], vec![3, 30]];
        let wrong = vec![vec![1, 10], vec![2, 99]];
        let compared = compare(&[&right, &wrong, &right]);
        assert_eq!(compared.minority, [(1, 1)]);
        assert!(compared.undecided.is_empty());
        let compared = compare(&[&right, &wrong]);
        assert_eq!((compared.minority.len(), compared.undecided), (0, vec![1]));
        assert_eq!(compare(&[&right]), Compared::default());
        assert_eq!(compare(&[]), Compared::default());
    }

    #[test]
    fn a_slow_cpu_is_seen_against_the_median() {
        let done = |rounds: u64, seconds: u64| Done {
            rounds,
            time: Duration::from_secs(seconds),
            ..Done::default()
        };
        // The third one had half the time and did half the work, which is no fault of its own.
        let all = [done(100, 10), done(100, 10), done(50, 5), done(40, 10)];
        let speeds = speeds(&all.into_iter().enumerate().collect());
        let speeds: Vec<f64> = speeds.into_values().collect();
        assert_eq!(speeds, [100.0, 100.0, 100.0, 40.0]);
    }
}
