//! NCCL: a communicator over ranks, and its all-reduce.

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::cuda::{Context, DeviceMemory, Event, RawStream, Stream};
use crate::library::{CallError, LoadError, Loaded, Of, calls, constant};

const NAME: &str = "libnccl.so.2";
const ADVICE: &str = "install NCCL 2 on this node (package libnccl2), or name the library that your jobs use with --set nccl-allreduce.libnccl=PATH";

/// The size of a unique id (`NCCL_UNIQUE_ID_BYTES`).
pub const UNIQUE_ID_BYTES: usize = 128;

/// `ncclResult_t`.
const SUCCESS: c_int = 0;
const UNHANDLED_CUDA_ERROR: c_int = 1;
const SYSTEM_ERROR: c_int = 2;
const INTERNAL_ERROR: c_int = 3;
const REMOTE_ERROR: c_int = 6;
const IN_PROGRESS: c_int = 7;

/// `ncclFloat32` of `ncclDataType_t` and `ncclSum` of `ncclRedOp_t`.
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

/// How long a wait spins before it sleeps in between, and how often it asks whether the communicator is broken.
const SPIN: Duration = Duration::from_millis(1);
const NAP: Duration = Duration::from_micros(50);
const ASK: Duration = Duration::from_millis(100);

type RawComm = *mut c_void;

/// What the ranks of a communicator have in common; made by one of them and told to all.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId(pub [u8; UNIQUE_ID_BYTES]);

calls! {
    /// NCCL's calls that are used here.
    Calls {
        version = "ncclGetVersion" (*mut c_int);
        unique_id = "ncclGetUniqueId" (*mut UniqueId);
        join = "ncclCommInitRank" (*mut RawComm, c_int, UniqueId, c_int);
        destroy = "ncclCommDestroy" (RawComm);
        abort = "ncclCommAbort" (RawComm);
        asynchronous = "ncclCommGetAsyncError" (RawComm, *mut c_int);
        all_reduce = "ncclAllReduce" (*const c_void, *mut c_void, usize, c_int, c_int, RawComm, RawStream);
    }
}

/// NCCL, loaded.
#[derive(Clone)]
pub struct Nccl {
    calls: Rc<Calls>,
    error_text: unsafe extern "C" fn(c_int) -> *const c_char,
    /// What it said last; since 2.13.
    last_words: Option<unsafe extern "C" fn(RawComm) -> *const c_char>,
}

/// A version of NCCL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Two, for as long as the library is `libnccl.so.2`.
    pub major: u32,
    /// The minor version.
    pub minor: u32,
    /// The patch.
    pub patch: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// `NCCL_VERSION_CODE`: two digits for the minor version from 2.9 on, one before.
    fn of_code(code: u32) -> Version {
        let step = if code < 10_000 { 1_000 } else { 10_000 };
        Version {
            major: code / step,
            minor: code % step / 100,
            patch: code % 100,
        }
    }
}

impl Nccl {
    /// Loads the library at `path`, or the one that the system's loader finds. The `NCCL_` variables have to be set before.
    ///
    /// # Errors
    /// When it or one of its calls is missing.
    pub fn load(path: Option<&Path>) -> Result<Nccl, LoadError> {
        let library = Loaded::open(path, NAME, ADVICE)?;
        // SAFETY: the types are those of nccl.h, and `calls` holds the library.
        let (error_text, last_words) = unsafe {
            (
                library.call("ncclGetErrorString")?,
                library.call("ncclGetLastError").ok(),
            )
        };
        Ok(Nccl {
            error_text,
            last_words,
            calls: Rc::new(Calls::find(library)?),
        })
    }

    /// Its version.
    ///
    /// # Errors
    /// What it answers.
    pub fn version(&self) -> Result<Version, CallError> {
        let mut code = 0;
        // SAFETY: a place for one number.
        let result = unsafe { (self.calls.version)(&raw mut code) };
        self.check("ncclGetVersion", result, std::ptr::null_mut())?;
        Ok(Version::of_code(u32::try_from(code).unwrap_or(0)))
    }

    /// A new id, whose maker others can reach from now on.
    ///
    /// # Errors
    /// What NCCL answers, such as that there is no network interface.
    pub fn unique_id(&self) -> Result<UniqueId, CallError> {
        let mut id = UniqueId([0; UNIQUE_ID_BYTES]);
        // SAFETY: a place for one id.
        let result = unsafe { (self.calls.unique_id)(&raw mut id) };
        self.check("ncclGetUniqueId", result, std::ptr::null_mut())?;
        Ok(id)
    }

    /// Joins the communicator of this id as one of so many ranks, on the device of `context`. Waits for all of them.
    ///
    /// # Errors
    /// What NCCL answers.
    pub fn join(
        &self,
        context: &Context,
        id: UniqueId,
        ranks: u32,
        rank: u32,
    ) -> Result<Communicator, CallError> {
        let number = |number: u32| c_int::try_from(number).unwrap_or(c_int::MAX);
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for one handle; the context is current on this thread, which is the only one that has it.
        let result = unsafe { (self.calls.join)(&raw mut raw, number(ranks), id, number(rank)) };
        self.check("ncclCommInitRank", result, std::ptr::null_mut())?;
        Ok(Communicator {
            nccl: self.clone(),
            _context: context.clone(),
            raw,
            broken: false,
        })
    }

    fn check(&self, call: &'static str, code: c_int, comm: RawComm) -> Result<(), CallError> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: both return a constant text or null; the last words are those of this thread where there is no communicator.
        let (text, last) = unsafe {
            (
                constant((self.error_text)(code)),
                self.last_words.and_then(|call| constant(call(comm))),
            )
        };
        let text = text.unwrap_or_else(|| "unknown error".to_owned());
        let last = last.filter(|last| !last.trim().is_empty());
        Err(CallError {
            call,
            code,
            text: last.map_or(text.clone(), |last| format!("{text}: {}", last.trim())),
            of: match code {
                // A system error is most often a connection that the other end closed (nccl.h: a call to the system failed).
                REMOTE_ERROR | SYSTEM_ERROR => Of::AnotherRank,
                UNHANDLED_CUDA_ERROR | INTERNAL_ERROR => Of::TheDevice,
                _ => Of::TheCall,
            },
        })
    }
}

/// This rank's part in a communicator.
pub struct Communicator {
    nccl: Nccl,
    /// Outlives the communicator.
    _context: Context,
    raw: RawComm,
    broken: bool,
}

impl Communicator {
    /// Puts an all-reduce into the stream: the sum over all ranks of what they send, element by element.
    ///
    /// # Errors
    /// What NCCL answers.
    ///
    /// # Panics
    /// When the two are not of one length.
    pub fn all_reduce(
        &mut self,
        send: &DeviceMemory<f32>,
        sum: &mut DeviceMemory<f32>,
        stream: &Stream,
    ) -> Result<(), CallError> {
        assert_eq!(send.len(), sum.len(), "an all-reduce keeps the length");
        // SAFETY: both are on this rank's device and so long, and they and the stream are alive; `wait` comes before
        // anything reads or drops them, or the process ends.
        let result = unsafe {
            (self.nccl.calls.all_reduce)(
                send.pointer(),
                sum.pointer(),
                send.len(),
                FLOAT32,
                SUM,
                self.raw,
                stream.raw,
            )
        };
        let checked = self.nccl.check("ncclAllReduce", result, self.raw);
        self.broken |= checked.is_err();
        checked
    }

    /// Waits until the device has come to a mark behind an all-reduce. Where another rank is gone, the device would wait
    /// without end, so NCCL is asked now and then whether its communicator is still whole.
    ///
    /// # Errors
    /// What NCCL or the device says went wrong.
    pub fn wait(&mut self, mark: &Event) -> Result<(), CallError> {
        let begun = Instant::now();
        let mut asked = begun;
        loop {
            match mark.is_reached() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    self.broken = true;
                    return Err(error);
                }
            }
            if asked.elapsed() >= ASK {
                asked = Instant::now();
                self.is_whole()?;
            }
            if begun.elapsed() < SPIN {
                std::thread::yield_now();
            } else {
                std::thread::sleep(NAP);
            }
        }
    }

    fn is_whole(&mut self) -> Result<(), CallError> {
        let mut state = SUCCESS;
        // SAFETY: the handle is alive, and there is a place for one number.
        let result = unsafe { (self.nccl.calls.asynchronous)(self.raw, &raw mut state) };
        let code = if result == SUCCESS { state } else { result };
        if code == IN_PROGRESS {
            return Ok(());
        }
        let checked = self.nccl.check("ncclCommGetAsyncError", code, self.raw);
        self.broken |= checked.is_err();
        checked
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: the handle is alive and not used again. Destroying waits for what is under way, which never ends on a
        // communicator that is broken; aborting ends it.
        unsafe {
            if self.broken {
                (self.nccl.calls.abort)(self.raw);
            } else {
                (self.nccl.calls.destroy)(self.raw);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_code_is_read_in_both_of_its_forms() {
        assert_eq!(Version::of_code(23_203).to_string(), "2.32.3");
        assert_eq!(Version::of_code(21_805).to_string(), "2.18.5");
        assert_eq!(Version::of_code(2_804).to_string(), "2.8.4");
    }
}
