//! DCGM's errors: numbers, severities and categories.
//!
//! The table is data, `dcgm_errors.tsv`, which names its sources. New numbers come with every release, so a number that
//! the table does not have is judged by the severity that stands beside it in the document.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::Grade;

const TABLE: &str = include_str!("../dcgm_errors.tsv");

/// The fault class by which the table marks errors that tell of a test that could not do its work.
const COULD_NOT_RUN: &str = "check.could_not_run";

static KNOWN: LazyLock<BTreeMap<u32, KnownError>> =
    LazyLock::new(|| parse(TABLE).expect("the table that is compiled in is read by a test"));

/// One thing that DCGM found.
#[derive(Clone, Debug, PartialEq)]
pub struct DcgmError {
    /// Its number; releases before 3.2 print none.
    pub id: Option<u32>,
    /// The severity that the document states, else the table's.
    pub severity: Severity,
    /// The category that the document states, else the table's.
    pub category: Category,
    /// DCGM's own words.
    pub text: String,
}

impl DcgmError {
    /// The error with this number, with what the document states beside it. What is not stated or not known to any
    /// release comes from the table.
    pub fn new(
        id: Option<u32>,
        severity: Option<u32>,
        category: Option<u32>,
        text: String,
    ) -> Self {
        let known = id.and_then(KnownError::find);
        DcgmError {
            id,
            severity: severity
                .and_then(Severity::of_number)
                // DCGM's own words for "no error" are not believed of an error.
                .filter(|severity| *severity != Severity::None)
                .or(known.map(|known| known.severity))
                .unwrap_or(Severity::Unknown),
            category: category
                .and_then(Category::of_number)
                .or(known.map(|known| known.category))
                .unwrap_or(Category::None),
            text,
        }
    }

    /// What the table says of this number.
    pub fn known(&self) -> Option<&'static KnownError> {
        self.id.and_then(KnownError::find)
    }

    /// How grave it is.
    pub fn grade(&self) -> Grade {
        match (self.severity, self.known().and_then(|known| known.fault)) {
            (_, Some(COULD_NOT_RUN)) => Grade::CouldNotRun,
            // Other processes on the GPU are a matter of configuration, although DCGM asks for a reset.
            (Severity::Reset, Some("dcgm.config")) => Grade::Config,
            (severity, _) => severity.grade(),
        }
    }

    /// The fault class: the error's own, or the one of its severity.
    pub fn fault(&self) -> &'static str {
        let own = self.known().and_then(|known| known.fault);
        own.unwrap_or_else(|| self.grade().fault())
    }

    /// The error on one line for people: number, name, severity and DCGM's words.
    pub fn line(&self) -> String {
        let name = match (self.id, self.known()) {
            (Some(id), Some(known)) => format!("DCGM error {id} {}", known.name),
            (Some(id), None) => format!("DCGM error {id}"),
            (None, _) => "DCGM error without a number".to_owned(),
        };
        let (severity, category) = (self.severity.word(), self.category.word());
        format!(
            "{name} (severity {severity}, category {category}): {}",
            self.text
        )
    }
}

/// An error of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownError {
    /// Its number.
    pub id: u32,
    /// Its name without `DCGM_FR_`.
    pub name: &'static str,
    /// Its severity in the newest release that the table covers.
    pub severity: Severity,
    /// Its category.
    pub category: Category,
    /// The first release that has it.
    pub since: &'static str,
    /// Its fault class, where that is nearer than its severity's.
    pub fault: Option<&'static str>,
}

impl KnownError {
    /// The error with this number.
    pub fn find(id: u32) -> Option<&'static KnownError> {
        KNOWN.get(&id)
    }

    /// Every error, by number.
    pub fn all() -> impl Iterator<Item = &'static KnownError> {
        KNOWN.values()
    }
}

/// `dcgmErrorSeverity_t` since 3.3.0; before, severities were numbered otherwise and were not printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// 0: no error.
    None,
    /// 1: can do work, is to be watched.
    Monitor,
    /// 2: cannot do work, is to be taken out.
    Isolate,
    /// 3: DCGM does not know.
    Unknown,
    /// 4: somebody has to look.
    Triage,
    /// 5: a matter of configuration.
    Config,
    /// 6: drain and reset the GPU.
    Reset,
}

impl Severity {
    const ALL: [Severity; 7] = [
        Severity::None,
        Severity::Monitor,
        Severity::Isolate,
        Severity::Unknown,
        Severity::Triage,
        Severity::Config,
        Severity::Reset,
    ];

    /// The severity with this number, or `None` where no release has it.
    pub fn of_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// DCGM's name for it.
    pub const fn word(self) -> &'static str {
        match self {
            Severity::None => "NONE",
            Severity::Monitor => "MONITOR",
            Severity::Isolate => "ISOLATE",
            Severity::Unknown => "UNKNOWN",
            Severity::Triage => "TRIAGE",
            Severity::Config => "CONFIG",
            Severity::Reset => "RESET",
        }
    }

    fn grade(self) -> Grade {
        match self {
            Severity::Monitor => Grade::Monitor,
            Severity::Isolate => Grade::Isolate,
            Severity::Triage => Grade::Triage,
            Severity::Config => Grade::Config,
            Severity::Reset => Grade::Reset,
            Severity::None | Severity::Unknown => Grade::Unclassified,
        }
    }
}

impl Grade {
    /// The fault class of a result of this grade, where its errors name no nearer one.
    pub const fn fault(self) -> &'static str {
        match self {
            Grade::Isolate => "dcgm.isolate",
            Grade::Reset => "dcgm.reset",
            Grade::Triage | Grade::Unclassified => "dcgm.triage",
            Grade::Config => "dcgm.config",
            Grade::Monitor => "dcgm.monitor",
            Grade::CouldNotRun | Grade::NotRun | Grade::Skip | Grade::Pass => COULD_NOT_RUN,
        }
    }
}

/// `dcgmErrorCategory_t`, since 3.3.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the words are DCGM's own and it explains them no further"
)]
pub enum Category {
    None,
    PerfThreshold,
    PerfViolation,
    SoftwareConfig,
    SoftwareLibrary,
    SoftwareXid,
    SoftwareCuda,
    SoftwareEud,
    SoftwareOther,
    HardwareThermal,
    HardwareMemory,
    HardwareNvlink,
    HardwareNvswitch,
    HardwarePcie,
    HardwarePower,
    HardwareOther,
    InternalOther,
}

impl Category {
    /// In the order of DCGM's numbers, with DCGM's names.
    const ALL: [(Category, &'static str); 17] = [
        (Category::None, "NONE"),
        (Category::PerfThreshold, "PERF_THRESHOLD"),
        (Category::PerfViolation, "PERF_VIOLATION"),
        (Category::SoftwareConfig, "SOFTWARE_CONFIG"),
        (Category::SoftwareLibrary, "SOFTWARE_LIBRARY"),
        (Category::SoftwareXid, "SOFTWARE_XID"),
        (Category::SoftwareCuda, "SOFTWARE_CUDA"),
        (Category::SoftwareEud, "SOFTWARE_EUD"),
        (Category::SoftwareOther, "SOFTWARE_OTHER"),
        (Category::HardwareThermal, "HARDWARE_THERMAL"),
        (Category::HardwareMemory, "HARDWARE_MEMORY"),
        (Category::HardwareNvlink, "HARDWARE_NVLINK"),
        (Category::HardwareNvswitch, "HARDWARE_NVSWITCH"),
        (Category::HardwarePcie, "HARDWARE_PCIE"),
        (Category::HardwarePower, "HARDWARE_POWER"),
        (Category::HardwareOther, "HARDWARE_OTHER"),
        (Category::InternalOther, "INTERNAL_OTHER"),
    ];

    /// The category with this number, or `None` where no release has it.
    pub fn of_number(number: u32) -> Option<Self> {
        let (category, _) = Self::ALL.get(usize::try_from(number).ok()?)?;
        Some(*category)
    }

    /// DCGM's name for it.
    pub fn word(self) -> &'static str {
        let found = Self::ALL.iter().find(|(category, _)| *category == self);
        found.map_or("NONE", |(_, word)| word)
    }
}

/// Reads the table, or names the first line that is not of its form.
fn parse(table: &'static str) -> Result<BTreeMap<u32, KnownError>, &'static str> {
    let lines = table.lines().filter(|line| !line.starts_with('#'));
    let mut known = BTreeMap::new();
    for line in lines.skip(1) {
        let error = row(line).ok_or(line)?;
        if known.insert(error.id, error).is_some() {
            return Err(line);
        }
    }
    Ok(known)
}

fn row(line: &'static str) -> Option<KnownError> {
    let fields: Vec<&'static str> = line.split('\t').collect();
    let &[id, name, severity, category, since, fault] = fields.as_slice() else {
        return None;
    };
    Some(KnownError {
        id: id.parse().ok()?,
        name,
        severity: Severity::ALL
            .into_iter()
            .find(|known| known.word() == severity)?,
        category: Category::ALL.iter().find(|(_, word)| *word == category)?.0,
        since,
        fault: (fault != "-").then_some(fault),
    })
}

#[cfg(test)]
mod tests {
    use dhc_thresholds::{Action, Faults};

    use super::*;

    fn error(id: u32) -> DcgmError {
        DcgmError::new(Some(id), None, None, String::new())
    }

    #[test]
    fn the_table_holds_every_number_from_0_to_132() {
        let known = parse(TABLE).unwrap();
        assert_eq!(known.len(), 133);
        assert!(known.keys().copied().eq(0..133));
    }

    #[test]
    fn the_table_has_as_many_errors_of_each_severity_as_release_4_6() {
        let count = |severity| {
            KnownError::all()
                .filter(|known| known.severity == severity)
                .count()
        };
        assert_eq!(count(Severity::Isolate), 42);
        assert_eq!(count(Severity::Triage), 35);
        assert_eq!(count(Severity::Monitor), 25);
        assert_eq!(count(Severity::Config), 17);
        assert_eq!(count(Severity::Reset), 10);
        assert_eq!(count(Severity::Unknown), 4);
    }

    #[test]
    fn every_fault_class_is_one_that_has_an_action() {
        let faults = Faults::built_in();
        for known in KnownError::all() {
            let class = error(known.id).fault();
            assert!(
                faults.get(class).is_some(),
                "{} has class {class}",
                known.name
            );
        }
    }

    #[test]
    fn a_severity_asks_for_its_action() {
        let action = |id| Faults::built_in().action(error(id).fault());
        assert_eq!(action(52), Action::Replace, "FAULTY_MEMORY is ISOLATE");
        assert_eq!(action(129), Action::Reset, "NCCL_ERROR is RESET");
        assert_eq!(action(30), Action::Investigate, "LOW_BANDWIDTH is TRIAGE");
        assert_eq!(action(46), Action::Investigate, "PCIE_WIDTH is CONFIG");
        assert_eq!(action(5), Action::None, "VOLATILE_SBE_DETECTED is MONITOR");
    }

    #[test]
    fn an_error_that_names_its_own_remedy_goes_before_its_severity() {
        let action = |id| Faults::built_in().action(error(id).fault());
        assert_eq!(
            action(126),
            Action::Reboot,
            "GPU_RECOVERY_REBOOT is ISOLATE"
        );
        assert_eq!(action(120), Action::Reboot, "FALLEN_OFF_BUS is ISOLATE");
        assert_eq!(action(125), Action::Reset);
        assert_eq!(action(7), Action::Replace);
        assert_eq!(
            action(80),
            Action::Replace,
            "ROW_REMAP_FAILURE is RESET in 4.6.0"
        );
        assert_eq!(
            action(92),
            Action::Retry,
            "EUD_TIMEOUT is no verdict on the hardware"
        );
    }

    #[test]
    fn an_unknown_number_is_judged_by_its_own_severity_and_is_never_fine() {
        let unknown = |severity| DcgmError::new(Some(999), severity, None, String::new()).grade();
        assert_eq!(unknown(Some(2)), Grade::Isolate);
        assert_eq!(unknown(Some(6)), Grade::Reset);
        assert_eq!(unknown(Some(0)), Grade::Unclassified);
        assert_eq!(unknown(Some(77)), Grade::Unclassified);
        assert_eq!(unknown(None), Grade::Unclassified);
    }

    #[test]
    fn the_severity_of_the_document_goes_before_the_table() {
        let stated = DcgmError::new(Some(52), Some(1), None, String::new());
        assert_eq!(stated.grade(), Grade::Monitor);
        let impossible = DcgmError::new(Some(52), Some(0), None, String::new());
        assert_eq!(
            impossible.grade(),
            Grade::Isolate,
            "NONE is not believed of an error"
        );
    }

    #[test]
    fn a_damaged_table_is_refused_with_its_line() {
        assert_eq!(
            parse("head\n1\tA\tISOLATE\tNONE\t2.1.4\t-\nnonsense"),
            Err("nonsense")
        );
        let twice = "head\n1\tA\tISOLATE\tNONE\t2.1.4\t-\n1\tB\tRESET\tNONE\t2.1.4\t-";
        assert_eq!(parse(twice), Err("1\tB\tRESET\tNONE\t2.1.4\t-"));
    }
}
