//! NVIDIA's management library: loaded at run time, and the calls that nvml-wrapper has no safe or no right form of.

use std::mem::size_of;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings as sys;

use super::Host;

/// Why NVML cannot be used. None of these says that a GPU is broken.
#[derive(Debug, thiserror::Error)]
pub enum NvmlUnavailable {
    /// The library is not there.
    #[error("NVML is not installed ({0}); install the NVIDIA driver")]
    NotInstalled(String),
    /// This program has no loader.
    #[error(
        "NVML cannot be loaded: this dhc is a static build, which loads no library; use a dynamic one for this check"
    )]
    Static,
    /// The kernel module is not loaded.
    #[error(
        "the NVIDIA kernel module is not loaded; load it (modprobe nvidia) and look into the kernel's log if it refuses"
    )]
    DriverNotLoaded,
    /// Library and kernel module do not fit each other.
    #[error(
        "NVML and the NVIDIA kernel module are of different versions; reboot after an update of the driver"
    )]
    VersionMismatch,
    /// Something else.
    #[error("NVML refused to start")]
    Refused(#[source] NvmlError),
}

/// The answer of a call to NVML, told apart by what it says about the GPU.
#[derive(Debug, PartialEq)]
pub enum Reading<T> {
    /// A value.
    Value(T),
    /// This model or driver does not have it, which is no fault.
    Unsupported,
    /// It could not be read.
    Failed(String),
}

impl<T> Reading<T> {
    /// With what `f` makes of the value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Reading<U> {
        match self {
            Reading::Value(value) => Reading::Value(f(value)),
            Reading::Unsupported => Reading::Unsupported,
            Reading::Failed(why) => Reading::Failed(why),
        }
    }

    /// What an answer means.
    pub fn of(answer: Result<T, NvmlError>) -> Self {
        match answer {
            Ok(value) => Reading::Value(value),
            Err(
                NvmlError::NotSupported
                | NvmlError::FunctionNotFound
                | NvmlError::FailedToLoadSymbol(_),
            ) => Reading::Unsupported,
            Err(error) => Reading::Failed(error.to_string()),
        }
    }
}

/// Whether a GPU has joined its NVLink fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fabric {
    /// 0 not supported, 1 not started, 2 in progress, 3 completed.
    pub state: u32,
    /// How joining ended, as a return code of NVML.
    pub status: u32,
    /// The cluster; all zero where the fabric ends at the node.
    pub cluster: [u8; 16],
    /// The clique within the cluster.
    pub clique: u32,
    /// Bits about its health, see nvml.h at `NVML_GPU_FABRIC_HEALTH_MASK`.
    pub health_mask: u32,
    /// 0 not reported, 1 healthy, 2 unhealthy, 3 limited.
    pub health_summary: u8,
}

/// The GPU's own judgement of its SRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sram {
    /// Whether its threshold of uncorrected errors is exceeded.
    pub threshold_exceeded: bool,
    /// Uncorrected errors since the driver was loaded: parity and SEC-DED together.
    pub volatile_uncorrected: u64,
    /// Uncorrected errors in the GPU's life.
    pub aggregate_uncorrected: u64,
}

impl Host {
    /// NVML, initialised.
    ///
    /// # Errors
    /// See [`NvmlUnavailable`].
    pub fn nvml(&self) -> Result<Nvml, NvmlUnavailable> {
        if cfg!(target_feature = "crt-static") {
            return Err(NvmlUnavailable::Static);
        }
        let loaded = match &self.nvml {
            Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
            // The versioned name alone is part of the driver; the other one belongs to the development files.
            None => Nvml::builder()
                .lib_path("libnvidia-ml.so.1".as_ref())
                .init(),
        };
        loaded.map_err(|error| match error {
            NvmlError::LibloadingError(error) => NvmlUnavailable::NotInstalled(error.to_string()),
            NvmlError::LibraryNotFound => {
                NvmlUnavailable::NotInstalled("its own libraries are missing".to_owned())
            }
            NvmlError::DriverNotLoaded => NvmlUnavailable::DriverNotLoaded,
            NvmlError::LibRmVersionMismatch => NvmlUnavailable::VersionMismatch,
            error => NvmlUnavailable::Refused(error),
        })
    }
}

/// Whether the GPU has joined its NVLink fabric.
///
/// # Errors
/// What NVML answers.
#[expect(unsafe_code, reason = "nvml-wrapper has no safe form of this call")]
pub fn fabric(nvml: &Nvml, gpu: &Device<'_>) -> Result<Fabric, NvmlError> {
    let call = nvml
        .lib()
        .nvmlDeviceGetGpuFabricInfoV
        .as_ref()
        .map_err(|_| NvmlError::FunctionNotFound)?;
    // Drivers before 560 know version 2 alone, which is the beginning of version 3 (nvml.h).
    let versions = [
        size_of::<sys::nvmlGpuFabricInfo_v3_t>() as u32 | 3 << 24,
        size_of::<sys::nvmlGpuFabricInfo_v2_t>() as u32 | 2 << 24,
    ];
    let mut answer = NvmlError::NotSupported;
    for version in versions {
        // SAFETY: all fields are integers, for which zero is a value; the handle is of this library; NVML writes no more
        // than the size that `version` names, which is at most that of the structure.
        let (code, info) = unsafe {
            let mut info: sys::nvmlGpuFabricInfoV_t = std::mem::zeroed();
            info.version = version;
            (call(gpu.handle(), &raw mut info), info)
        };
        match code {
            sys::nvmlReturn_enum_NVML_SUCCESS => {
                return Ok(Fabric {
                    state: u32::from(info.state),
                    status: info.status,
                    cluster: info.clusterUuid,
                    clique: info.cliqueId,
                    health_mask: info.healthMask,
                    health_summary: if version == versions[0] {
                        info.healthSummary
                    } else {
                        0
                    },
                });
            }
            sys::nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH => {}
            code => {
                answer = error(code);
                break;
            }
        }
    }
    Err(answer)
}

/// The GPU's own judgement of its SRAM.
///
/// # Errors
/// What NVML answers.
#[expect(unsafe_code, reason = "nvml-wrapper has no safe form of this call")]
pub fn sram(nvml: &Nvml, gpu: &Device<'_>) -> Result<Sram, NvmlError> {
    let call = nvml
        .lib()
        .nvmlDeviceGetSramEccErrorStatus
        .as_ref()
        .map_err(|_| NvmlError::FunctionNotFound)?;
    // SAFETY: as for `fabric`.
    let (code, status) = unsafe {
        let mut status: sys::nvmlEccSramErrorStatus_t = std::mem::zeroed();
        status.version = size_of::<sys::nvmlEccSramErrorStatus_t>() as u32 | 1 << 24;
        (call(gpu.handle(), &raw mut status), status)
    };
    nvml_wrapper::error::nvml_try(code)?;
    Ok(Sram {
        threshold_exceeded: status.bThresholdExceeded != 0,
        volatile_uncorrected: status
            .volatileUncParity
            .saturating_add(status.volatileUncSecDed),
        aggregate_uncorrected: status
            .aggregateUncParity
            .saturating_add(status.aggregateUncSecDed),
    })
}

/// A numeric field of a GPU, or of one of its links where the field has a scope (nvml.h, `NVML_FI_*`).
///
/// nvml-wrapper asks for fields without a scope, so that it knows the fields of the first link alone.
///
/// # Errors
/// What NVML answers to the call or for the field; a field that is not a whole number is an unexpected variant.
#[expect(
    unsafe_code,
    reason = "nvml-wrapper has no form of this call with a scope"
)]
pub fn field(nvml: &Nvml, gpu: &Device<'_>, id: u32, scope: u32) -> Result<u64, NvmlError> {
    let call = nvml
        .lib()
        .nvmlDeviceGetFieldValues
        .as_ref()
        .map_err(|_| NvmlError::FunctionNotFound)?;
    // SAFETY: all fields are integers or a union of numbers, for which zero is a value; the handle is of this library,
    // and NVML is told that there is one field to fill in.
    let (code, field) = unsafe {
        let mut field: sys::nvmlFieldValue_t = std::mem::zeroed();
        field.fieldId = id;
        field.scopeId = scope;
        (call(gpu.handle(), 1, &raw mut field), field)
    };
    nvml_wrapper::error::nvml_try(code)?;
    nvml_wrapper::error::nvml_try(field.nvmlReturn)?;
    let unexpected = || NvmlError::UnexpectedVariant(field.valueType);
    // SAFETY: `valueType` says which member of the union NVML has written.
    unsafe {
        match field.valueType {
            sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT => Ok(field.value.uiVal.into()),
            sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG => Ok(field.value.ulVal),
            sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG => Ok(field.value.ullVal),
            sys::nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_LONG_LONG => {
                u64::try_from(field.value.sllVal).map_err(|_| unexpected())
            }
            sys::nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT => {
                u64::try_from(field.value.siVal).map_err(|_| unexpected())
            }
            _ => Err(unexpected()),
        }
    }
}

/// How many banks of a GPU's memory have no spare row left, so that the next bad row of theirs cannot be remapped.
///
/// # Errors
/// What NVML answers.
#[expect(unsafe_code, reason = "nvml-wrapper has no safe form of this call")]
pub fn banks_without_spare_rows(nvml: &Nvml, gpu: &Device<'_>) -> Result<u32, NvmlError> {
    let call = nvml
        .lib()
        .nvmlDeviceGetRowRemapperHistogram
        .as_ref()
        .map_err(|_| NvmlError::FunctionNotFound)?;
    // SAFETY: all fields are integers, for which zero is a value; the handle is of this library.
    let (code, histogram) = unsafe {
        let mut histogram: sys::nvmlRowRemapperHistogramValues_t = std::mem::zeroed();
        (call(gpu.handle(), &raw mut histogram), histogram)
    };
    nvml_wrapper::error::nvml_try(code)?;
    Ok(histogram.none)
}

/// Which repairs of a GPU wait for a reset: of memory channels, of TPCs.
///
/// # Errors
/// What NVML answers.
#[expect(unsafe_code, reason = "nvml-wrapper has no safe form of this call")]
pub fn repairs_pending(nvml: &Nvml, gpu: &Device<'_>) -> Result<Vec<&'static str>, NvmlError> {
    let call = nvml
        .lib()
        .nvmlDeviceGetRepairStatus
        .as_ref()
        .map_err(|_| NvmlError::FunctionNotFound)?;
    // SAFETY: as for `fabric`.
    let (code, status) = unsafe {
        let mut status: sys::nvmlRepairStatus_t = std::mem::zeroed();
        status.version = size_of::<sys::nvmlRepairStatus_t>() as u32 | 1 << 24;
        (call(gpu.handle(), &raw mut status), status)
    };
    nvml_wrapper::error::nvml_try(code)?;
    let all = [
        (status.bChannelRepairPending, "memory channel"),
        (status.bTpcRepairPending, "TPC"),
    ];
    let pending = all.into_iter().filter(|(flag, _)| *flag != 0);
    Ok(pending.map(|(_, what)| what).collect())
}

/// What is at the other end of an NVLink: 0 a GPU, 1 an IBM NPU, 2 a switch, 255 unknown.
///
/// nvml-wrapper 0.13 has this call and always answers *unknown*: it lets NVML write into a copy.
///
/// # Errors
/// What NVML answers.
#[expect(
    unsafe_code,
    reason = "nvml-wrapper's own form of this call does not return the answer"
)]
pub fn remote_kind(nvml: &Nvml, gpu: &Device<'_>, link: u32) -> Result<u32, NvmlError> {
    let call = nvml
        .lib()
        .nvmlDeviceGetNvLinkRemoteDeviceType
        .as_ref()
        .map_err(|_| NvmlError::FunctionNotFound)?;
    let mut kind = 255;
    // SAFETY: the handle is of this library, and NVML writes one number of this type.
    let code = unsafe { call(gpu.handle(), link, &raw mut kind) };
    if code == sys::nvmlReturn_enum_NVML_SUCCESS {
        Ok(kind)
    } else {
        Err(error(code))
    }
}

/// A return code as nvml-wrapper's error.
fn error(code: sys::nvmlReturn_t) -> NvmlError {
    match nvml_wrapper::error::nvml_try(code) {
        Err(error) => error,
        Ok(()) => NvmlError::Unknown,
    }
}
