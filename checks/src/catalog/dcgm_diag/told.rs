//! What a diagnosis of DCGM says, put as measurements. Pure.
//!
//! Each error is a measurement of its own, with the fault class that its number or severity gives it. A test that did
//! not test is never a measurement: where the level promises the test it is a gap, else a remark.

use std::fmt;

use dhc_thresholds::{Action, Faults, Kind, Measurement, Subject};

use super::names::Names;
use super::{Level, TEST_RESULT};
use crate::format::dcgmi::{self, DcgmError, Diagnosis, Entity, Grade, SOFTWARE, TestResult};

/// The tests that each level runs in every release, with the first level that has them (NVIDIA/DCGM,
/// `nvvs/src/NvidiaValidationSuite.cpp`). The others (`eud`, `nvbandwidth`, `nccl_tests`, …) depend on the release, on
/// packages or on the user, and may be left out without a gap.
const PROMISED: [(u8, &str); 9] = [
    (1, SOFTWARE),
    (2, "memory"),
    (2, "pcie"),
    (3, "diagnostic"),
    (3, "memory_bandwidth"),
    (3, "targeted_stress"),
    (3, "targeted_power"),
    (4, "memtest"),
    (4, "pulse_test"),
];

/// One thing that follows from a diagnosis.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Told {
    /// DCGM tested it, and said this.
    Measured(Measurement),
    /// The level promises the test, and DCGM did not do it.
    Untested {
        /// The test of which device.
        subject: Subject,
        /// Why, as far as DCGM says.
        why: String,
    },
    /// A test that the level does not promise was not done.
    LeftOut(String),
}

/// All that follows from `diagnosis` of a run at `level`, in DCGM's order.
pub(super) fn told(diagnosis: &Diagnosis, names: &Names, level: Level) -> Vec<Told> {
    let results = diagnosis.results.iter();
    let mut told: Vec<Told> = results
        .flat_map(|result| of_result(result, names, level))
        .collect();
    told.extend(not_mentioned(diagnosis, names, level));
    told
}

fn of_result(result: &TestResult, names: &Names, level: Level) -> Vec<Told> {
    let subject = subject(result, names);
    match result.grade() {
        Grade::Pass => vec![measured(subject, Grade::Pass)],
        grade @ (Grade::Skip | Grade::NotRun) => {
            let word = if grade == Grade::Skip {
                "skipped"
            } else {
                "not run"
            };
            let errors = result.errors.iter().map(|error| error.text.as_str());
            let info = result.info.iter().map(String::as_str);
            let reasons: Vec<&str> = errors.chain(info).collect();
            let why = if reasons.is_empty() {
                format!("DCGM has {word} it and does not say why")
            } else {
                format!("DCGM has {word} it: {}", reasons.join("; "))
            };
            vec![if promised(&result.test, level) {
                Told::Untested { subject, why }
            } else {
                Told::LeftOut(format!("{subject}: {why}"))
            }]
        }
        grade if result.errors.is_empty() => {
            let detail = "DCGM says that it failed and does not say of what";
            let measurement = TEST_RESULT.of(subject, grade.word());
            vec![Told::Measured(
                measurement.fault(grade.fault()).detail(detail),
            )]
        }
        _ => {
            let mut errors: Vec<&DcgmError> = Vec::new();
            for error in &result.errors {
                if !errors.contains(&error) {
                    errors.push(error);
                }
            }
            errors
                .into_iter()
                .map(|error| of_error(&subject, error))
                .collect()
        }
    }
}

fn of_error(subject: &Subject, error: &DcgmError) -> Told {
    match error.grade() {
        Grade::CouldNotRun => Told::Untested {
            subject: subject.clone(),
            why: format!("the test could not do its work: {}", error.line()),
        },
        grade => {
            let measurement = TEST_RESULT.of(subject.clone(), grade.word());
            Told::Measured(measurement.fault(error.fault()).detail(error.line()))
        }
    }
}

/// A gap for each promised test of which the document says nothing, GPU by GPU.
fn not_mentioned(diagnosis: &Diagnosis, names: &Names, level: Level) -> Vec<Told> {
    let untested = |subject, why: &str| Told::Untested {
        subject,
        why: why.to_owned(),
    };
    let tests = || PROMISED.iter().filter(|(from, _)| *from <= level.number());
    let mentions = |test: &str, gpu: u32| {
        diagnosis.results.iter().any(|result| {
            let node = test == SOFTWARE && result.entity == Entity::Node;
            result.test == test && (node || result.entity == Entity::Gpu(gpu))
        })
    };
    let mut told = Vec::new();
    for &gpu in &diagnosis.gpus {
        let missing = tests().filter(|(_, test)| !mentions(test, gpu));
        told.extend(missing.map(|(_, test)| {
            let subject = Subject::new(Kind::Gpu, format!("{}/{test}", names.gpu(gpu)));
            untested(subject, "DCGM says nothing of this test on this GPU")
        }));
    }
    let (listed, tested) = (diagnosis.gpu_device_ids.len(), diagnosis.gpus.len());
    if level.number() > 1 && tested == 0 {
        told.push(untested(Subject::node(), "DCGM tested no GPU"));
    } else if level.number() > 1 && listed > tested {
        let why = format!("DCGM lists {listed} GPUs and says something of only {tested} of them");
        told.push(untested(Subject::node(), &why));
    }
    told
}

fn promised(test: &str, level: Level) -> bool {
    PROMISED
        .iter()
        .any(|(from, name)| *from <= level.number() && *name == test)
}

fn measured(subject: Subject, grade: Grade) -> Told {
    Told::Measured(TEST_RESULT.of(subject, grade.word()))
}

/// `gpu3/memory`, `node/software/persistence_mode`.
fn subject(result: &TestResult, names: &Names) -> Subject {
    let (kind, device) = match result.entity {
        Entity::Node => (Kind::Node, "node".to_owned()),
        Entity::Gpu(id) => (Kind::Gpu, names.gpu(id).name),
        Entity::Cpu(id) => (Kind::Cpu, format!("cpu{id}")),
        Entity::Other {
            group: NVSWITCH,
            id,
        } => (Kind::Nvswitch, format!("nvswitch{id}")),
        Entity::Other { group, id } => (Kind::Node, format!("node/entity{group}.{id}")),
    };
    let test = &result.test;
    let name = match &result.row {
        None => format!("{device}/{test}"),
        Some(row) => format!("{device}/{test}/{}", dcgmi::plain(row)),
    };
    Subject::new(kind, name)
}

/// `DCGM_FE_SWITCH` of `dcgm_field_entity_group_t`.
const NVSWITCH: u32 = 3;

/// The line that SageMaker HyperPod's deep health check logs of a run, in its words (AWS's documentation of the
/// instance log): whoever reads HyperPod's log can read ours.
#[derive(Debug)]
pub(super) struct Summary<'a> {
    level: Level,
    diagnosis: &'a Diagnosis,
    replacement_required: bool,
    reboot_required: bool,
}

impl<'a> Summary<'a> {
    /// The summary of a run. HyperPod knows two remedies: what asks for a reset is cleared by a reboot.
    pub(super) fn new(level: Level, diagnosis: &'a Diagnosis, told: &[Told]) -> Self {
        let actions: Vec<Action> = told
            .iter()
            .filter_map(|told| match told {
                Told::Measured(measurement) => measurement.fault.as_deref(),
                Told::Untested { .. } | Told::LeftOut(_) => None,
            })
            .map(|class| Faults::built_in().action(class))
            .collect();
        let asked = |wanted: &[Action]| actions.iter().any(|action| wanted.contains(action));
        Summary {
            level,
            diagnosis,
            replacement_required: asked(&[Action::Replace]),
            reboot_required: asked(&[Action::Reset, Action::Reboot]),
        }
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown =
            |version: &Option<String>| version.clone().unwrap_or_else(|| "unknown".to_owned());
        write!(
            f,
            "DCGM diagnostic health summary: dcgmCheckLevel: {} dcgmVersion: {} gpuDriverVersion: {}, \
             gpuDeviceIds: [{}] replacementRequired: {} rebootRequired:{}",
            self.level.number(),
            unknown(&self.diagnosis.dcgm_version),
            unknown(&self.diagnosis.driver_version),
            // HyperPod's agent prints lists as Go does: parted by blanks.
            self.diagnosis.gpu_device_ids.join(" "),
            self.replacement_required,
            self.reboot_required,
        )
    }
}

#[cfg(test)]
mod tests {
    use dhc_thresholds::{Ending, Gap, Record, Status, Verdict, built_in, judge};

    use super::super::SPEC;
    use super::*;
    use crate::format::dcgmi::read;

    macro_rules! output {
        ($file:literal) => {
            include_bytes!(concat!("../../../../fixtures/outputs/dcgmi/", $file))
        };
    }

    /// What `output` of a run at `level` is judged to be.
    fn verdict(output: &[u8], level: u8) -> Verdict {
        let mut record = Record::new(SPEC.name, Ending::Finished);
        let diagnosis = read(output).unwrap();
        let names = Names::new(&diagnosis, &[]);
        for told in told(&diagnosis, &names, Level(level)) {
            match told {
                Told::Measured(measurement) => record.measurements.push(measurement),
                Told::Untested { subject, why } => record.gaps.push(Gap {
                    metric: TEST_RESULT.name.into(),
                    subject,
                    why,
                }),
                Told::LeftOut(note) => record.notes.push(note),
            }
        }
        let metrics: Vec<_> = crate::catalog::CHECKS
            .iter()
            .flat_map(|check| check.spec().metrics.iter().copied())
            .collect();
        let generic = built_in::load("generic", &metrics).unwrap().unwrap();
        judge(&record, SPEC.metrics, &generic)
    }

    /// Status, subject and action of every finding that is not a pass.
    fn findings(output: &[u8], level: u8) -> Vec<(Status, String, Action)> {
        let findings = verdict(output, level).findings.into_iter();
        findings
            .filter(|finding| finding.status != Status::Pass)
            .map(|finding| (finding.status, finding.subject.name, finding.action))
            .collect()
    }

    #[test]
    fn a_sound_run_of_every_release_passes() {
        for (output, level) in [
            (output!("2.4-r3-pass.json").as_slice(), 3),
            (output!("3.0-r1-pass.json"), 1),
            (output!("3.1-r2-pass.json"), 2),
            (output!("3.3.0-r2-pass.json"), 2),
            (output!("3.3.9-r3-pass.json"), 3),
            (output!("4.2-r4-pass.json"), 4),
            (output!("4.5-r4-pass.json"), 4),
        ] {
            assert_eq!(
                verdict(output, level).status,
                Status::Pass,
                "{:?}",
                findings(output, level)
            );
        }
    }

    #[test]
    fn a_level_that_was_not_run_as_asked_is_unknown() {
        let verdict = verdict(output!("3.3.9-r3-pass.json"), 4);
        assert_eq!(verdict.status, Status::Unknown);
        let missing = |test: &str| {
            verdict
                .findings
                .iter()
                .filter(|f| f.subject.name.ends_with(test))
                .count()
        };
        assert_eq!((missing("/memtest"), missing("/pulse_test")), (2, 2));
    }

    #[test]
    fn a_promised_test_that_was_skipped_is_untested_however_mild_the_reason() {
        let mut document: serde_json::Value =
            serde_json::from_slice(output!("4.5-r4-pass.json")).unwrap();
        let categories = document["DCGM Diagnostic"]["test_categories"].as_array_mut();
        let tests = categories.unwrap().iter_mut().flat_map(|category| {
            let tests = category["tests"].as_array_mut();
            tests.unwrap()
        });
        let pcie = tests.into_iter().find(|test| test["name"] == "pcie");
        let result = &mut pcie.unwrap()["results"][0];
        result["status"] = "Skip".into();
        result["errors"] = serde_json::json!([{
            "error_category": 1, "error_id": 40, "error_severity": 1,
            "message": "The test was skipped for thermal reasons"
        }]);
        let output = serde_json::to_vec(&document).unwrap();
        assert_eq!(
            findings(&output, 4),
            [(Status::Unknown, "gpu0/pcie".to_owned(), Action::None)]
        );
    }

    #[test]
    fn persistence_mode_off_is_a_warning_although_dcgm_prints_fail() {
        assert_eq!(
            findings(output!("4.2-r1-persistence-off.json"), 1),
            [(
                Status::Warn,
                "gpu0/software".to_owned(),
                Action::Investigate
            )]
        );
    }

    #[test]
    fn each_error_asks_for_what_its_number_or_severity_asks_for() {
        use {Action::*, Status::*};
        let findings = findings(output!("4.5-r4-fail.json"), 4);
        let of = |name: &str| {
            let found = findings.iter().find(|(_, subject, _)| subject == name);
            found.map(|(status, _, action)| (*status, *action))
        };
        assert_eq!(
            of("gpu2/software"),
            Some((Fail, Reboot)),
            "126 GPU_RECOVERY_REBOOT"
        );
        assert_eq!(of("gpu3/memory"), Some((Fail, Replace)), "52 FAULTY_MEMORY");
        assert_eq!(of("gpu0/pcie"), Some((Fail, Reboot)), "14 NVLINK_DOWN");
        assert_eq!(
            of("node/pcie"),
            Some((Fail, Investigate)),
            "100, severity TRIAGE"
        );
        assert_eq!(
            of("gpu0/targeted_stress"),
            Some((Fail, Reset)),
            "950, unknown, severity RESET"
        );
        assert_eq!(
            of("gpu1/targeted_stress"),
            Some((Fail, Investigate)),
            "951, unknown severity"
        );
        assert_eq!(
            of("gpu1/memory"),
            Some((Unknown, Action::None)),
            "56, could not run, though `Pass`"
        );
        assert_eq!(
            of("gpu0/pulse_test"),
            Some((Unknown, Action::None)),
            "promised and not mentioned"
        );
        assert_eq!(of("gpu0/nccl_tests"), Option::None, "not promised");
    }

    #[test]
    fn a_failure_without_a_number_is_a_failure_that_asks_nobody_to_replace_anything() {
        assert_eq!(
            findings(output!("2.4-r2-nvlink-down.json"), 2),
            [
                (
                    Status::Fail,
                    "node/software/persistence_mode".to_owned(),
                    Action::Investigate
                ),
                (Status::Fail, "gpu1/pcie".to_owned(), Action::Investigate),
            ]
        );
    }

    #[test]
    fn a_gpu_without_results_is_not_passed_over() {
        let findings = findings(output!("3.3.9-r3-fail.json"), 3);
        let of_gpu0 = findings
            .iter()
            .filter(|(_, subject, _)| subject.starts_with("gpu0/"));
        assert!(
            of_gpu0
                .clone()
                .all(|(status, _, _)| *status == Status::Unknown)
        );
        let tests: Vec<&str> = of_gpu0.map(|(_, subject, _)| subject.as_str()).collect();
        assert!(
            tests.contains(&"gpu0/memory") && tests.contains(&"gpu0/pcie"),
            "{tests:?}"
        );
    }

    #[test]
    fn the_summary_line_is_hyperpods() {
        let line = |output: &[u8], level| {
            let diagnosis = read(output).unwrap();
            let told = told(&diagnosis, &Names::new(&diagnosis, &[]), Level(level));
            Summary::new(Level(level), &diagnosis, &told).to_string()
        };
        assert_eq!(
            line(output!("3.1-r2-pass.json"), 2),
            "DCGM diagnostic health summary: dcgmCheckLevel: 2 dcgmVersion: 3.1.8 gpuDriverVersion: 525.125.06, \
             gpuDeviceIds: [20b0 20b0] replacementRequired: false rebootRequired:false"
        );
        assert_eq!(
            line(output!("3.3.9-r3-fail.json"), 3),
            "DCGM diagnostic health summary: dcgmCheckLevel: 3 dcgmVersion: 3.3.9 gpuDriverVersion: 535.183.01, \
             gpuDeviceIds: [2330 2330] replacementRequired: true rebootRequired:true"
        );
        assert!(line(output!("3.0-r1-pass.json"), 1).contains("dcgmVersion: unknown"));
    }
}
