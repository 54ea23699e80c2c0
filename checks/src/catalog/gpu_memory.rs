//! `gpu-memory`: errors of the GPUs' memory, and what the GPUs have done about them.

use std::collections::BTreeMap;

use dhc_thresholds::{Hardware, Metric, Role, Subject, Unit};
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, RetirementCause};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::sys_exports::field_id::{
    NVML_FI_DEV_REMAPPED_COR, NVML_FI_DEV_REMAPPED_FAILURE, NVML_FI_DEV_REMAPPED_PENDING,
    NVML_FI_DEV_REMAPPED_UNC,
};
use nvml_wrapper::{Device, Nvml};

use super::gpu::{Usual, ask, budget, divided, for_each_gpu};
use crate::check::{Budget, CheckError, Company, InstanceCheck, Recorder, Spec, Task};
use crate::foresight::Cause;
use crate::host::Host;
use crate::host::nvml::{self, Reading};

const ECC: Metric = Metric::new(
    "gpu.ecc.mode",
    Unit::State,
    Role::Required,
    "whether memory is protected: enabled, disabled or unsupported",
    "gpu.mode",
);
const VOLATILE: Metric = Metric::new(
    "gpu.ecc.volatile_uncorrected",
    Unit::Count,
    Role::Judged,
    "uncorrected memory errors since the driver was loaded",
    "gpu.memory.uncorrectable_now",
);
const AGGREGATE: Metric = Metric::new(
    "gpu.ecc.aggregate_uncorrected",
    Unit::Count,
    Role::Judged,
    "uncorrected memory errors in the GPU's life",
    "gpu.memory.uncorrectable",
);
const VOLATILE_CORRECTED: Metric = Metric::new(
    "gpu.ecc.volatile_corrected",
    Unit::Count,
    Role::Context,
    "corrected memory errors since the driver was loaded",
    "gpu.memory.uncorrectable_now",
);
const SRAM_THRESHOLD: Metric = Metric::new(
    "gpu.sram.threshold_exceeded",
    Unit::State,
    Role::Judged,
    "whether the GPU itself says that its SRAM has too many errors: yes or no",
    "gpu.memory.sram_threshold",
);
const SRAM_VOLATILE: Metric = Metric::new(
    "gpu.sram.volatile_uncorrected",
    Unit::Count,
    Role::Judged,
    "uncorrected SRAM errors since the driver was loaded",
    "gpu.memory.uncorrectable_now",
);
const SRAM_AGGREGATE: Metric = Metric::new(
    "gpu.sram.aggregate_uncorrected",
    Unit::Count,
    Role::Context,
    "uncorrected SRAM errors in the GPU's life",
    "gpu.memory.uncorrectable",
);
const REMAP_PENDING: Metric = Metric::new(
    "gpu.remap.pending",
    Unit::State,
    Role::Judged,
    "whether a row remap waits for a reset: yes or no",
    "gpu.memory.remap_pending",
);
const REMAP_FAILED: Metric = Metric::new(
    "gpu.remap.failed",
    Unit::State,
    Role::Judged,
    "whether a row could not be remapped: yes or no",
    "gpu.memory.remap_failed",
);
const REMAPPED_UNCORRECTED: Metric = Metric::new(
    "gpu.remap.rows_uncorrected",
    Unit::Count,
    Role::Context,
    "rows remapped because of uncorrected errors",
    "gpu.memory.worn",
);
const REMAPPED_CORRECTED: Metric = Metric::new(
    "gpu.remap.rows_corrected",
    Unit::Count,
    Role::Context,
    "rows remapped because of corrected errors",
    "gpu.memory.worn",
);
const BANKS_EXHAUSTED: Metric = Metric::new(
    "gpu.remap.banks_exhausted",
    Unit::Count,
    Role::Context,
    "banks of memory without a spare row left, whose next bad row cannot be remapped",
    "gpu.memory.worn",
);
const REPAIR_PENDING: Metric = Metric::new(
    "gpu.repair.pending",
    Unit::State,
    Role::Judged,
    "whether a repair of a memory channel or of a TPC waits for a reset: yes or no",
    "gpu.needs_reset",
);
const RETIRED: Metric = Metric::new(
    "gpu.retired.pages",
    Unit::Count,
    Role::Judged,
    "memory pages retired for uncorrected or repeated corrected errors (GPUs before Ampere)",
    "gpu.memory.worn",
);
const RETIRED_PENDING: Metric = Metric::new(
    "gpu.retired.pending",
    Unit::State,
    Role::Judged,
    "whether a page retirement waits for a reset: yes or no",
    "gpu.memory.remap_pending",
);

static SPEC: Spec = Spec {
    name: "gpu-memory",
    about: "no uncorrected memory errors, no row remap or page retirement that waits or failed, on any GPU",
    explain: "\
Reads what each GPU counts about its memory: uncorrected errors since the driver was loaded and in its life, the GPU's own
judgement of its SRAM, and what it did about errors: rows remapped (Ampere and later) or pages retired (before). A remap that
waits for a reset is cleared by one; a remap that failed, or SRAM beyond its threshold, means that the GPU has to go. What a
model does not have is left out; what cannot be read, or what one GPU does not tell and others of its model do, is unknown.",
    metrics: &[
        &ECC,
        &VOLATILE,
        &AGGREGATE,
        &VOLATILE_CORRECTED,
        &SRAM_THRESHOLD,
        &SRAM_VOLATILE,
        &SRAM_AGGREGATE,
        &REMAP_PENDING,
        &REMAP_FAILED,
        &REMAPPED_UNCORRECTED,
        &REMAPPED_CORRECTED,
        &BANKS_EXHAUSTED,
        &REPAIR_PENDING,
        &RETIRED,
        &RETIRED_PENDING,
    ],
    needs: Some(Hardware::NvidiaGpu),
    tags: &["gpu", "quick"],
    company: Company::Welcome,
    options: &[],
};

/// The check.
pub(super) struct GpuMemory;

impl InstanceCheck for GpuMemory {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn budget(&self, options: &BTreeMap<String, String>) -> Budget {
        budget(options)
    }

    fn foresees(&self) -> &'static [Cause] {
        &[Cause::AcceleratorMemory, Cause::AcceleratorSram]
    }

    fn measure(&self, task: &Task, record: &mut Recorder<'_>) -> Result<(), CheckError> {
        ask(task, &SPEC, record, questions)
    }
}

fn questions(_: &Host, nvml: &Nvml, record: &mut Recorder<'_>) -> Result<(), CheckError> {
    for_each_gpu(nvml, record, |index, gpu, usual, record| {
        let subject = Subject::gpu(index);
        match gpu {
            Ok(gpu) => of_gpu(nvml, &gpu, &subject, usual, record),
            // gpu-count says what is wrong with the GPU; here only its memory is unknown.
            Err(error) => record.gap(&ECC, subject, error.to_string()),
        }
    })
}

fn of_gpu(
    nvml: &Nvml,
    gpu: &Device<'_>,
    subject: &Subject,
    usual: &mut Usual,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let (word, protected) = match Reading::of(gpu.is_ecc_enabled()) {
        Reading::Value(mode) if mode.currently_enabled => ("enabled", true),
        Reading::Value(_) => ("disabled", false),
        Reading::Unsupported => ("unsupported", false),
        Reading::Failed(why) => return record.gap(&ECC, subject.clone(), why),
    };
    record.measure(&ECC, subject.clone(), word)?;
    if word == "unsupported" {
        usual.tells_not(&ECC, subject);
    } else {
        usual.tells(&ECC, subject);
    }
    // Without protection nothing is counted, and drivers say so in the words for what a model does not have.
    if protected {
        errors(nvml, gpu, subject, usual, record)?;
    }
    remapped(nvml, gpu, subject, usual, record)?;
    retired(gpu, subject, usual, record)
}

/// The errors that were counted.
fn errors(
    nvml: &Nvml,
    gpu: &Device<'_>,
    subject: &Subject,
    usual: &mut Usual,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    use EccCounter::{Aggregate, Volatile};
    use MemoryError::{Corrected, Uncorrected};
    for (metric, kind, counter) in [
        (&VOLATILE, Uncorrected, Volatile),
        (&AGGREGATE, Uncorrected, Aggregate),
        (&VOLATILE_CORRECTED, Corrected, Volatile),
    ] {
        let count = gpu.total_ecc_errors(kind, counter);
        put(metric, subject, count, usual, record)?;
    }
    let Some(sram) = usual.heard(&SRAM_THRESHOLD, subject, nvml::sram(nvml, gpu), record)? else {
        return Ok(());
    };
    record.measure(
        &SRAM_THRESHOLD,
        subject.clone(),
        yes_or_no(sram.threshold_exceeded),
    )?;
    record.measure(&SRAM_VOLATILE, subject.clone(), sram.volatile_uncorrected)?;
    record.measure(&SRAM_AGGREGATE, subject.clone(), sram.aggregate_uncorrected)
}

/// Rows remapped from Ampere on, and other repairs that newer GPUs make by themselves.
fn remapped(
    nvml: &Nvml,
    gpu: &Device<'_>,
    subject: &Subject,
    usual: &mut Usual,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let field = |id| nvml::field(nvml, gpu, id, 0);
    let pending = field(NVML_FI_DEV_REMAPPED_PENDING);
    if let (Err(NvmlError::NotSupported), Some(why)) = (&pending, divided(gpu)) {
        return record.gap(&REMAP_PENDING, subject.clone(), why);
    }
    put_flag(&REMAP_PENDING, subject, pending, usual, record)?;
    let failed = field(NVML_FI_DEV_REMAPPED_FAILURE);
    put_flag(&REMAP_FAILED, subject, failed, usual, record)?;
    let exhausted = nvml::banks_without_spare_rows(nvml, gpu).map(u64::from);
    for (metric, count) in [
        (&REMAPPED_UNCORRECTED, field(NVML_FI_DEV_REMAPPED_UNC)),
        (&REMAPPED_CORRECTED, field(NVML_FI_DEV_REMAPPED_COR)),
        (&BANKS_EXHAUSTED, exhausted),
    ] {
        put(metric, subject, count, usual, record)?;
    }
    let repairs = nvml::repairs_pending(nvml, gpu);
    let Some(pending) = usual.heard(&REPAIR_PENDING, subject, repairs, record)? else {
        return Ok(());
    };
    let measurement = REPAIR_PENDING.of(subject.clone(), yes_or_no(!pending.is_empty()));
    record.add(measurement.detail(pending.join(", ")))
}

fn retired(
    gpu: &Device<'_>,
    subject: &Subject,
    usual: &mut Usual,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    let causes = [
        RetirementCause::MultipleSingleBitEccErrors,
        RetirementCause::DoubleBitEccError,
    ];
    let pages: Result<Vec<usize>, NvmlError> = causes
        .into_iter()
        .map(|cause| gpu.retired_pages(cause).map(|pages| pages.len()))
        .collect();
    let pages = pages.map(|pages| pages.iter().sum::<usize>() as u64);
    put(&RETIRED, subject, pages, usual, record)?;
    let pending = gpu.are_pages_pending_retired().map(u64::from);
    put_flag(&RETIRED_PENDING, subject, pending, usual, record)
}

fn put(
    metric: &Metric,
    subject: &Subject,
    answer: Result<u64, NvmlError>,
    usual: &mut Usual,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    match usual.heard(metric, subject, answer, record)? {
        Some(count) => record.measure(metric, subject.clone(), count),
        None => Ok(()),
    }
}

/// A flag that NVML gives as 0 or not.
fn put_flag(
    metric: &Metric,
    subject: &Subject,
    answer: Result<u64, NvmlError>,
    usual: &mut Usual,
    record: &mut Recorder<'_>,
) -> Result<(), CheckError> {
    match usual.heard(metric, subject, answer, record)? {
        Some(flag) => record.measure(metric, subject.clone(), yes_or_no(flag != 0)),
        None => Ok(()),
    }
}

fn yes_or_no(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}
