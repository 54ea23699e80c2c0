//! The library and the devices that it offers.

use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sys;

/// Where the library is looked for, in this order: AWS's own installation before the system's, since on an EFA instance
/// the system's mostly lacks the EFA provider.
const CANDIDATES: &[&str] = &[
    "/opt/amazon/efa/lib64/libfabric.so.1",
    "/opt/amazon/efa/lib/libfabric.so.1",
    "libfabric.so.1",
];

/// The version of the interface that is asked for: 1.9 has all that is used here, and every library since then knows it.
const API_VERSION: u32 = (1 << 16) | 9;

/// How many devices are looked at.
const DEVICES_MAX: usize = 1024;

/// Why the library cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is none.
    #[error(
        "libfabric cannot be loaded ({tried}); install it (Debian: libfabric1, AWS: the EFA installer) or name it with --libfabric"
    )]
    Absent {
        /// What was tried and what the loader said.
        tried: String,
    },
    /// This program has no loader.
    #[error(
        "libfabric cannot be loaded: this dhc is a static build, which loads no library; use a dynamic one for this check"
    )]
    Static,
}

/// What libfabric answered to a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {text} ({code})")]
pub struct FabricError {
    /// The call.
    pub call: &'static str,
    /// The error number, positive.
    pub code: i32,
    /// Its text.
    pub text: String,
}

/// libfabric, loaded.
#[derive(Clone)]
pub struct Library {
    pub(crate) exports: Arc<sys::Exports>,
    path: PathBuf,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Library({})", self.path.display())
    }
}

impl Library {
    /// Loads the library at `path`, or the first that is found. `settings` are environment variables that providers
    /// read when the library is loaded, such as `FI_EFA_ENABLE_SHM_TRANSFER`; they must be set before any other thread
    /// runs that reads the environment.
    ///
    /// # Errors
    /// When no library can be loaded.
    pub fn load(path: Option<&Path>, settings: &[(&str, &str)]) -> Result<Library, LoadError> {
        if cfg!(target_feature = "crt-static") {
            return Err(LoadError::Static);
        }
        for (name, value) in settings {
            // SAFETY: the caller loads the library before it starts threads that read the environment.
            unsafe { std::env::set_var(name, value) };
        }
        let candidates: Vec<PathBuf> = match path {
            Some(path) => vec![path.to_owned()],
            None => CANDIDATES.iter().map(PathBuf::from).collect(),
        };
        let mut tried = Vec::new();
        for path in candidates {
            // SAFETY: loading libfabric runs its constructors, which is what every program that uses it does; the
            // exports have the types of its own headers.
            match unsafe { sys::Exports::new(&path) } {
                Ok(exports) => {
                    return Ok(Library {
                        exports: Arc::new(exports),
                        path,
                    });
                }
                Err(error) => tried.push(format!("{}: {error}", path.display())),
            }
        }
        Err(LoadError::Absent {
            tried: tried.join("; "),
        })
    }

    /// Where the library was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The library's version of the interface: major and minor.
    pub fn version(&self) -> (u32, u32) {
        // SAFETY: takes nothing and returns a number.
        let version = unsafe { self.exports.fi_version() };
        (version >> 16, version & 0xffff)
    }

    /// The devices that can exchange tagged messages with reliable datagram endpoints, best first as libfabric orders
    /// them; only those of `provider` if one is named. None at all is an empty list.
    ///
    /// # Errors
    /// When libfabric refuses the question itself.
    pub fn devices(&self, provider: Option<&str>) -> Result<Vec<Device>, FabricError> {
        let hints = Info::hints(self, provider)?;
        let mut list = std::ptr::null_mut();
        // SAFETY: `hints` is a structure of the library's own making; `list` receives one that `Info` frees.
        let code = unsafe {
            self.exports.fi_getinfo(
                API_VERSION,
                std::ptr::null(),
                std::ptr::null(),
                0,
                hints.raw,
                &raw mut list,
            )
        };
        // No device of the kind asked for, or no provider of that name.
        if code == -(libc::ENODATA) || code == -(libc::ENOSYS) {
            return Ok(Vec::new());
        }
        self.check("fi_getinfo", code)?;
        let all = Info {
            raw: list,
            library: self.clone(),
        };
        let mut devices = Vec::new();
        let mut next = all.raw;
        while !next.is_null() && devices.len() < DEVICES_MAX {
            // SAFETY: `next` is an element of the list that `all` keeps alive; `fi_dupinfo` copies that element alone.
            let (raw, following) = unsafe { (self.exports.fi_dupinfo(next), (*next).next) };
            if !raw.is_null() {
                devices.push(Device::new(Info {
                    raw,
                    library: self.clone(),
                }));
            }
            next = following;
        }
        Ok(devices)
    }

    pub(crate) fn check(&self, call: &'static str, code: i32) -> Result<(), FabricError> {
        if code == 0 {
            return Ok(());
        }
        Err(self.error(call, code.saturating_neg()))
    }

    pub(crate) fn error(&self, call: &'static str, code: i32) -> FabricError {
        // SAFETY: returns a pointer to a constant text for every number.
        let text = unsafe { text(self.exports.fi_strerror(code)) };
        FabricError {
            call,
            code,
            text: text.unwrap_or_default(),
        }
    }
}

/// An `fi_info` that is freed with its owner.
pub(crate) struct Info {
    pub(crate) raw: *mut sys::fi_info,
    pub(crate) library: Library,
}

// SAFETY: the structure is plain memory that nothing else refers to.
unsafe impl Send for Info {}
// SAFETY: it is only read after it was made.
unsafe impl Sync for Info {}

impl Info {
    /// What is asked of a device: reliable datagram endpoints with tagged messages, and leave to register memory in
    /// whichever way the device needs.
    fn hints(library: &Library, provider: Option<&str>) -> Result<Info, FabricError> {
        // SAFETY: `fi_dupinfo(NULL)` is `fi_allocinfo`: it allocates an empty structure with all its parts.
        let raw = unsafe { library.exports.fi_dupinfo(std::ptr::null()) };
        if raw.is_null() {
            return Err(library.error("fi_allocinfo", libc::ENOMEM));
        }
        let hints = Info {
            raw,
            library: library.clone(),
        };
        let name = provider
            .map(|name| CString::new(name).map_err(|_| library.error("fi_getinfo", libc::EINVAL)))
            .transpose()?;
        // SAFETY: the library has allocated the structure with all of its parts, and frees the name with `free`.
        unsafe {
            (*raw).caps = u64::from(sys::FI_TAGGED);
            (*raw).mode = sys::FI_CONTEXT | sys::FI_CONTEXT2;
            (*(*raw).ep_attr).type_ = sys::FI_EP_RDM;
            (*(*raw).domain_attr).mr_mode = (sys::FI_MR_LOCAL
                | sys::FI_MR_ALLOCATED
                | sys::FI_MR_PROV_KEY
                | sys::FI_MR_VIRT_ADDR)
                .cast_signed();
            (*(*raw).domain_attr).threading = sys::FI_THREAD_DOMAIN;
            if let Some(name) = &name {
                (*(*raw).fabric_attr).prov_name = libc::strdup(name.as_ptr());
            }
        }
        Ok(hints)
    }
}

impl Drop for Info {
    fn drop(&mut self) {
        // SAFETY: made by the library, and nobody uses it any more.
        unsafe { self.library.exports.fi_freeinfo(self.raw) };
    }
}

/// A device (in libfabric's words a domain) as a provider offers it.
pub struct Device {
    /// The provider, such as `efa` or `tcp;ofi_rxm`.
    pub provider: String,
    /// The fabric, such as `efa`, `efa-direct` or `127.0.0.1/32`.
    pub fabric: String,
    /// The domain, such as `rdmap16s27-rdm` or `lo`.
    pub domain: String,
    /// The largest message in bytes.
    pub message_bytes_max: u64,
    /// What the provider knows of the network card, if it is one.
    pub link: Option<Link>,
    pub(crate) info: Info,
}

/// A network card as its provider describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The card's name, such as `rdmap16s27`.
    pub name: Option<String>,
    /// Its speed in bits a second.
    pub bits_per_second: u64,
    /// Its PCI address.
    pub bdf: Option<String>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Device({} {} {})",
            self.provider, self.fabric, self.domain
        )
    }
}

impl Device {
    fn new(info: Info) -> Device {
        // SAFETY: the library fills all of these parts in every structure that `fi_getinfo` returns; texts are either
        // null or end with a zero byte.
        unsafe {
            let raw = &*info.raw;
            let (fabric, domain, endpoint) = (&*raw.fabric_attr, &*raw.domain_attr, &*raw.ep_attr);
            Device {
                provider: text(fabric.prov_name).unwrap_or_default(),
                fabric: text(fabric.name).unwrap_or_default(),
                domain: text(domain.name).unwrap_or_default(),
                message_bytes_max: endpoint.max_msg_size as u64,
                link: (!raw.nic.is_null()).then(|| link(&*raw.nic)),
                info,
            }
        }
    }

    /// The library that offers the device.
    pub fn library(&self) -> &Library {
        &self.info.library
    }
}

/// # Safety
/// `nic` is one of libfabric's making.
unsafe fn link(nic: &sys::fid_nic) -> Link {
    // SAFETY: the parts of a card's description are null or valid.
    unsafe {
        let name = nic
            .device_attr
            .as_ref()
            .and_then(|device| text(device.name));
        let bits_per_second = nic.link_attr.as_ref().map_or(0, |link| link.speed as u64);
        let bus = nic
            .bus_attr
            .as_ref()
            .filter(|bus| bus.bus_type == sys::FI_BUS_PCI);
        let bdf = bus.map(|bus| {
            let pci = bus.attr.pci;
            let (domain, bus, device, function) =
                (pci.domain_id, pci.bus_id, pci.device_id, pci.function_id);
            format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
        });
        Link {
            name,
            bits_per_second,
            bdf,
        }
    }
}

/// # Safety
/// `pointer` is null or a text that ends with a zero byte.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: the caller says so.
    Some(
        unsafe { CStr::from_ptr(pointer) }
            .to_string_lossy()
            .into_owned(),
    )
}
