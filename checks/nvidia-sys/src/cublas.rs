//! cuBLAS: products of matrices.

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;
use std::rc::Rc;

use crate::cuda::{Context, DeviceMemory, RawStream, Stream, number};
use crate::library::{CallError, LoadError, Loaded, Of, calls, constant};

/// Where it is looked for: where the loader finds it, and where CUDA's own installer leaves it. Its interface is the same.
const NAMES: [&str; 4] = [
    "libcublas.so.13",
    "libcublas.so.12",
    "/usr/local/cuda/lib64/libcublas.so.13",
    "/usr/local/cuda/lib64/libcublas.so.12",
];
const ADVICE: &str = "install cuBLAS of CUDA 12 or 13 on this node (package libcublas-12-8 or the like), or name the library that your \
                      jobs use with --set gpu-stress.libcublas=PATH";

/// `cublasStatus_t`, `cublasOperation_t`, `cudaDataType_t`, `cublasComputeType_t` and `cublasGemmAlgo_t`.
const SUCCESS: c_int = 0;
const AS_IT_IS: c_int = 0;
const FLOAT16: c_int = 2;
const FLOAT32: c_int = 0;
const SUMS_IN_FLOAT32: c_int = 68;
const ALGORITHM_DEFAULT: c_int = -1;

type RawHandle = *mut c_void;

calls! {
    /// cuBLAS's calls that are used here.
    Calls {
        create = "cublasCreate_v2" (*mut RawHandle);
        destroy = "cublasDestroy_v2" (RawHandle);
        set_stream = "cublasSetStream_v2" (RawHandle, RawStream);
        multiply = "cublasGemmEx" (
            RawHandle, c_int, c_int, c_int, c_int, c_int, *const c_void, *const c_void, c_int, c_int, *const c_void,
            c_int, c_int, *const c_void, *mut c_void, c_int, c_int, c_int, c_int
        );
    }
}

/// Two halves (FP16) as they lie in memory, the first one in the low bits.
pub type HalfPair = u32;

/// cuBLAS on one device, which puts its work into one stream.
pub struct Cublas {
    calls: Rc<Calls>,
    status_text: Option<unsafe extern "C" fn(c_int) -> *const c_char>,
    /// Outlives the handle.
    context: Context,
    raw: RawHandle,
}

impl Cublas {
    /// Puts a product of square matrices, column by column in memory, into the stream: `c = a b`, or `c = c + a b` where it
    /// is to be added. Factors are FP16; products are added up in FP32.
    ///
    /// # Errors
    /// What cuBLAS answers.
    ///
    /// # Panics
    /// When a matrix is not of this size.
    pub fn multiply(
        &mut self,
        size: usize,
        a: &DeviceMemory<HalfPair>,
        b: &DeviceMemory<HalfPair>,
        c: &mut DeviceMemory<f32>,
        add: bool,
    ) -> Result<(), CallError> {
        let elements = size * size;
        assert_eq!(
            (2 * a.len(), 2 * b.len(), c.len()),
            (elements, elements, elements),
            "matrices of one size"
        );
        self.context.enter()?;
        let (one, beta) = (1.0_f32, if add { 1.0_f32 } else { 0.0 });
        let size = number(size);
        // SAFETY: the matrices are so large and on this device, scalars are of the type in which sums are made and read
        // before the call returns, and the handle is alive. Memory is freed after what is under way.
        let status = unsafe {
            (self.calls.multiply)(
                self.raw,
                AS_IT_IS,
                AS_IT_IS,
                size,
                size,
                size,
                (&raw const one).cast(),
                a.pointer(),
                FLOAT16,
                size,
                b.pointer(),
                FLOAT16,
                size,
                (&raw const beta).cast(),
                c.pointer(),
                FLOAT32,
                size,
                SUMS_IN_FLOAT32,
                ALGORITHM_DEFAULT,
            )
        };
        check(self.status_text, "cublasGemmEx", status)
    }
}

/// cuBLAS, loaded.
pub struct CublasLibrary {
    calls: Rc<Calls>,
    status_text: Option<unsafe extern "C" fn(c_int) -> *const c_char>,
}

impl CublasLibrary {
    /// Loads the library at `path`, or the first that is found.
    ///
    /// # Errors
    /// When it or one of its calls is missing.
    pub fn load(path: Option<&Path>) -> Result<CublasLibrary, LoadError> {
        let library = match path {
            Some(path) => Loaded::open(Some(path), "", ADVICE)?,
            None => first()?,
        };
        // SAFETY: the type is that of cublas_api.h, and `calls` holds the library.
        let status_text = unsafe { library.call("cublasGetStatusString") }.ok();
        Ok(CublasLibrary {
            calls: Rc::new(Calls::find(library)?),
            status_text,
        })
    }

    /// Begins on a device, with work to be put into `stream`.
    ///
    /// # Errors
    /// What cuBLAS answers, such as that it does not know the device.
    pub fn on(&self, context: &Context, stream: &Stream) -> Result<Cublas, CallError> {
        context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for one handle; the context is current.
        let status = unsafe { (self.calls.create)(&raw mut raw) };
        check(self.status_text, "cublasCreate", status)?;
        let cublas = Cublas {
            calls: Rc::clone(&self.calls),
            status_text: self.status_text,
            context: context.clone(),
            raw,
        };
        // SAFETY: both handles are alive.
        let status = unsafe { (self.calls.set_stream)(raw, stream.raw) };
        check(self.status_text, "cublasSetStream", status)?;
        Ok(cublas)
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: it was created once.
        unsafe { (self.calls.destroy)(self.raw) };
    }
}

/// The first of the names under which there is one; what is said of none is what was said of the last of the loader's.
fn first() -> Result<Loaded, LoadError> {
    let mut refusal = None;
    for name in NAMES {
        match Loaded::open(None, name, ADVICE) {
            Ok(library) => return Ok(library),
            Err(error) if !name.starts_with('/') => refusal = Some(error),
            Err(_) => {}
        }
    }
    Err(refusal.expect("there are names for the loader"))
}

fn check(
    status_text: Option<unsafe extern "C" fn(c_int) -> *const c_char>,
    call: &'static str,
    code: c_int,
) -> Result<(), CallError> {
    if code == SUCCESS {
        return Ok(());
    }
    // SAFETY: it returns a constant text or null.
    let text = status_text.and_then(|text| unsafe { constant(text(code)) });
    Err(CallError {
        call,
        code,
        text: text.unwrap_or_else(|| "see cublasStatus_t".to_owned()),
        of: Of::TheCall,
    })
}
