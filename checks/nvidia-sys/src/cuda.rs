//! The CUDA driver: devices, memory, streams and events.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::path::Path;
use std::ptr::NonNull;
use std::rc::Rc;

use crate::library::{CallError, LoadError, Loaded, Of, calls, constant};

const NAME: &str = "libcuda.so.1";
const ADVICE: &str =
    "it is part of NVIDIA's driver, which has to be installed and loaded on this node";

/// `CUDA_SUCCESS` and `CUDA_ERROR_NOT_READY`.
const SUCCESS: c_int = 0;
const NOT_READY: c_int = 600;

/// `CUDA_ERROR_ECC_UNCORRECTABLE` and `CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED`.
const ECC_UNCORRECTABLE: c_int = 214;
const ALREADY_ENABLED: c_int = 704;

/// Errors after which the device or what ran on it has failed (`CUresult` of cuda.h): ECC_UNCORRECTABLE, NVLINK_UNCORRECTABLE,
/// ILLEGAL_ADDRESS, LAUNCH_TIMEOUT, those of a kernel from HARDWARE_STACK_ERROR to LAUNCH_FAILED, and UNKNOWN.
const OF_DEVICE: &[c_int] = &[
    ECC_UNCORRECTABLE,
    220,
    700,
    702,
    714,
    715,
    716,
    717,
    718,
    719,
    999,
];

/// `CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK`.
const PERFORMANCE_RANK: c_int = 1;

/// A stream that keeps the order with copies and fills, which run in the default one (`CU_STREAM_DEFAULT`).
const STREAM_DEFAULT: c_uint = 0;
const EVENT_DEFAULT: c_uint = 0;

const NAME_BYTES: c_int = 128;
const BDF_BYTES: c_int = 32;

pub(crate) type RawStream = *mut c_void;
type RawEvent = *mut c_void;
type RawContext = *mut c_void;
/// An address on a device.
type Address = u64;

calls! {
    /// The driver's calls that are used here.
    Calls {
        init = "cuInit" (c_uint);
        version = "cuDriverGetVersion" (*mut c_int);
        error_name = "cuGetErrorName" (c_int, *mut *const c_char);
        error_text = "cuGetErrorString" (c_int, *mut *const c_char);
        count = "cuDeviceGetCount" (*mut c_int);
        device = "cuDeviceGet" (*mut c_int, c_int);
        name = "cuDeviceGetName" (*mut c_char, c_int, c_int);
        uuid = "cuDeviceGetUuid" (*mut [u8; 16], c_int);
        bdf = "cuDeviceGetPCIBusId" (*mut c_char, c_int, c_int);
        retain = "cuDevicePrimaryCtxRetain" (*mut RawContext, c_int);
        release = "cuDevicePrimaryCtxRelease_v2" (c_int);
        set_current = "cuCtxSetCurrent" (RawContext);
        memory = "cuMemGetInfo_v2" (*mut usize, *mut usize);
        allocate = "cuMemAlloc_v2" (*mut Address, usize);
        free = "cuMemFree_v2" (Address);
        allocate_host = "cuMemAllocHost_v2" (*mut *mut c_void, usize);
        free_host = "cuMemFreeHost" (*mut c_void);
        to_device = "cuMemcpyHtoD_v2" (Address, *const c_void, usize);
        to_host = "cuMemcpyDtoH_v2" (*mut c_void, Address, usize);
        fill = "cuMemsetD32_v2" (Address, c_uint, usize);
        copy = "cuMemcpyDtoDAsync_v2" (Address, Address, usize, RawStream);
        copy_peer = "cuMemcpyPeerAsync" (Address, RawContext, Address, RawContext, usize, RawStream);
        can_access = "cuDeviceCanAccessPeer" (*mut c_int, c_int, c_int);
        between = "cuDeviceGetP2PAttribute" (*mut c_int, c_int, c_int, c_int);
        enable_access = "cuCtxEnablePeerAccess" (RawContext, c_uint);
        stream = "cuStreamCreate" (*mut RawStream, c_uint);
        destroy_stream = "cuStreamDestroy_v2" (RawStream);
        event = "cuEventCreate" (*mut RawEvent, c_uint);
        destroy_event = "cuEventDestroy_v2" (RawEvent);
        record = "cuEventRecord" (RawEvent, RawStream);
        query = "cuEventQuery" (RawEvent);
        elapsed = "cuEventElapsedTime" (*mut f32, RawEvent, RawEvent);
    }
}

/// The driver, loaded and not yet initialised.
#[derive(Clone)]
pub struct Driver(Rc<Calls>);

impl Driver {
    /// Loads the library at `path`, or the system's.
    ///
    /// # Errors
    /// When it or one of its calls is missing.
    pub fn load(path: Option<&Path>) -> Result<Driver, LoadError> {
        Ok(Driver(Rc::new(Calls::find(Loaded::open(
            path, NAME, ADVICE,
        )?)?)))
    }

    /// Initialises the driver, which may take seconds and hangs where a GPU does.
    ///
    /// # Errors
    /// What it answers, such as that there is no device.
    pub fn initialise(&self) -> Result<(), CallError> {
        // SAFETY: the only value of the flags.
        self.check("cuInit", unsafe { (self.0.init)(0) })
    }

    /// The greatest version of CUDA that the driver knows: major and minor.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn version(&self) -> Result<(u32, u32), CallError> {
        let mut version = 0;
        // SAFETY: a place for one number.
        self.check("cuDriverGetVersion", unsafe {
            (self.0.version)(&raw mut version)
        })?;
        let version = u32::try_from(version).unwrap_or(0);
        Ok((version / 1_000, version % 1_000 / 10))
    }

    /// How many devices this process may use.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn count(&self) -> Result<u32, CallError> {
        let mut count = 0;
        // SAFETY: a place for one number.
        self.check("cuDeviceGetCount", unsafe {
            (self.0.count)(&raw mut count)
        })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// The device at this place.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn device(&self, ordinal: u32) -> Result<Device, CallError> {
        let wanted = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        let mut raw = 0;
        let mut uuid = [0; 16];
        // SAFETY: places of the types that the calls write, texts with their sizes.
        unsafe {
            self.check("cuDeviceGet", (self.0.device)(&raw mut raw, wanted))?;
            self.check("cuDeviceGetUuid", (self.0.uuid)(&raw mut uuid, raw))?;
            Ok(Device {
                ordinal,
                raw,
                name: self.text("cuDeviceGetName", self.0.name, NAME_BYTES, raw)?,
                bdf: self
                    .text("cuDeviceGetPCIBusId", self.0.bdf, BDF_BYTES, raw)?
                    .to_ascii_lowercase(),
                uuid: format_uuid(uuid),
            })
        }
    }

    /// A text about a device.
    ///
    /// # Safety
    /// `call` writes no more than the size that it is given, and ends the text in nul.
    unsafe fn text(
        &self,
        name: &'static str,
        call: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int,
        bytes: c_int,
        device: c_int,
    ) -> Result<String, CallError> {
        let mut text = vec![0_u8; usize::try_from(bytes).unwrap_or(0)];
        // SAFETY: the size is that of the buffer.
        self.check(name, unsafe {
            call(text.as_mut_ptr().cast(), bytes, device)
        })?;
        let end = text.iter().position(|byte| *byte == 0);
        text.truncate(end.unwrap_or(0));
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), CallError> {
        if code == SUCCESS {
            return Ok(());
        }
        let text = |of: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = std::ptr::null();
            // SAFETY: the call writes a pointer to a constant text, or null for a number that it does not know.
            unsafe {
                of(code, &raw mut text);
                constant(text).unwrap_or_else(|| "unknown error".to_owned())
            }
        };
        let text = format!("{}, {}", text(self.0.error_name), text(self.0.error_text));
        Err(CallError {
            call,
            code,
            text,
            of: if OF_DEVICE.contains(&code) {
                Of::TheDevice
            } else {
                Of::TheCall
            },
        })
    }
}

impl CallError {
    /// Whether the driver says that memory of the device lost what it held: an error that ECC could not correct.
    pub fn is_uncorrectable(&self) -> bool {
        self.call.starts_with("cu") && self.code == ECC_UNCORRECTABLE
    }
}

/// A device as the outside knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its place among those that this process may use.
    pub ordinal: u32,
    /// Its name, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Its PCI address, such as `0000:53:00.0`.
    pub bdf: String,
    /// Its UUID in NVML's form.
    pub uuid: String,
    raw: c_int,
}

/// `GPU-8-4-4-4-12`, as NVML and nvidia-smi write it.
fn format_uuid(bytes: [u8; 16]) -> String {
    let mut text = String::from("GPU");
    for part in [0..4, 4..6, 6..8, 8..10, 10..16] {
        text.push('-');
        for byte in &bytes[part] {
            text.push_str(&format!("{byte:02x}"));
        }
    }
    text
}

/// A number that a library counts in its own type; what does not fit is refused by the library itself.
pub(crate) fn number(number: usize) -> c_int {
    c_int::try_from(number).unwrap_or(c_int::MAX)
}

struct Primary {
    driver: Driver,
    device: c_int,
    raw: RawContext,
}

impl Drop for Primary {
    fn drop(&mut self) {
        // SAFETY: it was retained once.
        unsafe { (self.driver.0.release)(self.device) };
    }
}

/// The primary context of a device. A thread may open several; each object that is made from one works on its device.
#[derive(Clone)]
pub struct Context(Rc<Primary>);

impl Context {
    /// Opens the device.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn open(driver: &Driver, device: &Device) -> Result<Context, CallError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for one handle.
        driver.check("cuDevicePrimaryCtxRetain", unsafe {
            (driver.0.retain)(&raw mut raw, device.raw)
        })?;
        let primary = Primary {
            driver: driver.clone(),
            device: device.raw,
            raw,
        };
        let context = Context(Rc::new(primary));
        context.enter()?;
        Ok(context)
    }

    /// Makes it the one that calls of this thread work in.
    pub(crate) fn enter(&self) -> Result<(), CallError> {
        // SAFETY: the handle is retained as long as `self` lives.
        let code = unsafe { (self.calls().set_current)(self.0.raw) };
        self.check("cuCtxSetCurrent", code)
    }

    /// How this device reaches the memory of another one.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn way_to(&self, other: &Context) -> Result<Way, CallError> {
        let (mut direct, mut rank) = (0, 0);
        let (here, there) = (self.0.device, other.0.device);
        // SAFETY: places for one number each, and devices of this driver.
        unsafe {
            let code = (self.calls().can_access)(&raw mut direct, here, there);
            self.check("cuDeviceCanAccessPeer", code)?;
            let code = (self.calls().between)(&raw mut rank, PERFORMANCE_RANK, here, there);
            self.check("cuDeviceGetP2PAttribute", code)?;
        }
        Ok(if direct == 0 {
            Way::ThroughHost
        } else {
            Way::Direct { rank }
        })
    }

    /// Lets this device reach the memory of another one directly.
    ///
    /// # Errors
    /// What the driver answers; that it is so already is none.
    pub fn enable_access(&self, other: &Context) -> Result<(), CallError> {
        self.enter()?;
        // SAFETY: both contexts are alive, and zero is the only value of the flags.
        match unsafe { (self.calls().enable_access)(other.0.raw, 0) } {
            ALREADY_ENABLED => Ok(()),
            code => self.check("cuCtxEnablePeerAccess", code),
        }
    }

    /// Free and total memory of the device in bytes.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn memory(&self) -> Result<(u64, u64), CallError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: places for two numbers.
        self.check("cuMemGetInfo", unsafe {
            (self.calls().memory)(&raw mut free, &raw mut total)
        })?;
        Ok((free as u64, total as u64))
    }

    fn calls(&self) -> &Calls {
        &self.0.driver.0
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), CallError> {
        self.0.driver.check(call, code)
    }
}

/// How one device reaches the memory of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By itself, over NVLink or PCIe. Pairs of equal rank have equal ways (cuda.h).
    Direct {
        /// The driver's rank of the way's performance.
        rank: c_int,
    },
    /// The driver copies by way of the host's memory.
    ThroughHost,
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for u32 {}
}

/// A number of 32 bits of which every pattern of bits is one.
pub trait Element: Copy + sealed::Sealed {
    /// Its bits.
    fn bits(self) -> u32;
}

impl Element for f32 {
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Element for u32 {
    fn bits(self) -> u32 {
        self
    }
}

/// Elements on a device.
pub struct DeviceMemory<T> {
    context: Context,
    address: Address,
    elements: usize,
    kind: PhantomData<T>,
}

impl<T: Element> DeviceMemory<T> {
    /// Room for so many elements, one at least; what is in it is not known.
    ///
    /// # Errors
    /// What the driver answers, such as that it is out of memory.
    pub fn allocate(context: &Context, elements: usize) -> Result<Self, CallError> {
        context.enter()?;
        let bytes = elements.max(1).saturating_mul(size_of::<T>());
        let mut address = 0;
        // SAFETY: a place for one address.
        context.check("cuMemAlloc", unsafe {
            (context.calls().allocate)(&raw mut address, bytes)
        })?;
        Ok(DeviceMemory {
            context: context.clone(),
            address,
            elements,
            kind: PhantomData,
        })
    }

    /// How many elements it holds.
    pub fn len(&self) -> usize {
        self.elements
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.elements == 0
    }

    /// Copies elements to the device, from the element `at` on.
    ///
    /// # Errors
    /// What the driver answers.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn write(&mut self, at: usize, from: &[T]) -> Result<(), CallError> {
        self.context.enter()?;
        let address = self.part(at, from.len());
        // SAFETY: the part lies in the allocation, and the slice is as long.
        let code = unsafe {
            (self.context.calls().to_device)(address, from.as_ptr().cast(), size_of_val(from))
        };
        self.context.check("cuMemcpyHtoD", code)
    }

    /// Copies elements from the device, from the element `at` on, when all that came before on the device's streams is done.
    ///
    /// # Errors
    /// What the driver answers.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn read(&self, at: usize, to: &mut [T]) -> Result<(), CallError> {
        self.context.enter()?;
        let address = self.part(at, to.len());
        // SAFETY: the part lies in the allocation, and the slice is as long; every pattern of bits is an element.
        let code = unsafe {
            (self.context.calls().to_host)(to.as_mut_ptr().cast(), address, size_of_val(to))
        };
        self.context.check("cuMemcpyDtoH", code)
    }

    /// Sets every element.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn fill(&mut self, element: T) -> Result<(), CallError> {
        self.context.enter()?;
        // SAFETY: elements are 32 bits wide, and the allocation holds so many.
        let code =
            unsafe { (self.context.calls().fill)(self.address, element.bits(), self.elements) };
        self.context.check("cuMemsetD32", code)
    }

    /// Puts a copy of so many elements, from `from` on, to the elements from `to` on into the stream.
    ///
    /// # Errors
    /// What the driver answers.
    ///
    /// # Panics
    /// When there are not so many, or the two parts overlap.
    pub fn copy_within(
        &mut self,
        from: usize,
        to: usize,
        elements: usize,
        stream: &Stream,
    ) -> Result<(), CallError> {
        let (source, sink) = (self.part(from, elements), self.part(to, elements));
        assert!(from.abs_diff(to) >= elements, "the parts overlap");
        self.context.enter()?;
        // SAFETY: both parts lie in the allocation, which the driver frees after what is under way.
        let code = unsafe {
            (self.context.calls().copy)(sink, source, elements * size_of::<T>(), stream.raw)
        };
        self.context.check("cuMemcpyDtoDAsync", code)
    }

    /// Puts a copy of all elements of `other`, which may be on another device, into the stream, which is one of that device.
    ///
    /// # Errors
    /// What the driver answers.
    ///
    /// # Panics
    /// When the two are not of one length.
    pub fn copy_from(&mut self, other: &DeviceMemory<T>, stream: &Stream) -> Result<(), CallError> {
        assert_eq!(self.len(), other.len(), "a copy keeps the length");
        other.context.enter()?;
        // SAFETY: both are so long, and the driver frees them after what is under way; the contexts are alive.
        let code = unsafe {
            (self.context.calls().copy_peer)(
                self.address,
                self.context.0.raw,
                other.address,
                other.context.0.raw,
                self.elements * size_of::<T>(),
                stream.raw,
            )
        };
        self.context.check("cuMemcpyPeerAsync", code)
    }

    /// Where it begins, as the device counts.
    pub fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn pointer(&self) -> *mut c_void {
        self.address as *mut c_void
    }

    fn part(&self, at: usize, elements: usize) -> Address {
        let end = at.checked_add(elements);
        assert!(
            end.is_some_and(|end| end <= self.elements),
            "elements {at} and {elements} more of {}",
            self.elements
        );
        self.address + (at * size_of::<T>()) as u64
    }
}

impl<T> Drop for DeviceMemory<T> {
    fn drop(&mut self) {
        // SAFETY: it was allocated once.
        unsafe { (self.context.calls().free)(self.address) };
    }
}

/// Elements on the host that the device reaches without a copy between.
pub struct PinnedMemory<T> {
    context: Context,
    start: NonNull<T>,
    elements: usize,
}

impl<T: Element> PinnedMemory<T> {
    /// So many elements, all of this value.
    ///
    /// # Errors
    /// What the driver answers, such as that it is out of memory.
    pub fn allocate(context: &Context, elements: usize, value: T) -> Result<Self, CallError> {
        context.enter()?;
        let bytes = elements.max(1).saturating_mul(size_of::<T>());
        let mut start = std::ptr::null_mut();
        // SAFETY: a place for one pointer.
        context.check("cuMemAllocHost", unsafe {
            (context.calls().allocate_host)(&raw mut start, bytes)
        })?;
        let Some(start) = NonNull::new(start.cast::<T>()) else {
            return Err(CallError {
                call: "cuMemAllocHost",
                code: SUCCESS,
                text: "no memory, and no error".to_owned(),
                of: Of::TheCall,
            });
        };
        for place in 0..elements {
            // SAFETY: within the allocation, which is aligned to pages.
            unsafe { start.add(place).write(value) };
        }
        Ok(PinnedMemory {
            context: context.clone(),
            start,
            elements,
        })
    }

    /// The elements.
    pub fn elements(&self) -> &[T] {
        // SAFETY: the allocation holds so many, all of them were set, and no call of the driver outlasts its borrow.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.elements) }
    }

    /// The elements, to be changed.
    pub fn elements_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and nobody else refers to them.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.elements) }
    }
}

impl<T> Drop for PinnedMemory<T> {
    fn drop(&mut self) {
        // SAFETY: it was allocated once.
        unsafe { (self.context.calls().free_host)(self.start.as_ptr().cast()) };
    }
}

/// A queue of work for a device.
pub struct Stream {
    context: Context,
    pub(crate) raw: RawStream,
}

impl Stream {
    /// A new queue.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn new(context: &Context) -> Result<Stream, CallError> {
        context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for one handle.
        context.check("cuStreamCreate", unsafe {
            (context.calls().stream)(&raw mut raw, STREAM_DEFAULT)
        })?;
        Ok(Stream {
            context: context.clone(),
            raw,
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: it was created once.
        unsafe { (self.context.calls().destroy_stream)(self.raw) };
    }
}

/// A mark in a stream, which knows when the device came to it.
pub struct Event {
    context: Context,
    raw: RawEvent,
}

impl Event {
    /// A new mark.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn new(context: &Context) -> Result<Event, CallError> {
        context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for one handle.
        context.check("cuEventCreate", unsafe {
            (context.calls().event)(&raw mut raw, EVENT_DEFAULT)
        })?;
        Ok(Event {
            context: context.clone(),
            raw,
        })
    }

    /// Sets the mark behind all that is in the stream now.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn record(&self, stream: &Stream) -> Result<(), CallError> {
        // SAFETY: both handles are alive.
        let code = unsafe { (self.context.calls().record)(self.raw, stream.raw) };
        self.context.check("cuEventRecord", code)
    }

    /// Whether the device has come to the mark.
    ///
    /// # Errors
    /// What went wrong on the device before.
    pub fn is_reached(&self) -> Result<bool, CallError> {
        // SAFETY: the handle is alive.
        match unsafe { (self.context.calls().query)(self.raw) } {
            NOT_READY => Ok(false),
            code => self.context.check("cuEventQuery", code).map(|()| true),
        }
    }

    /// The time between two marks that were both reached, in microseconds; the driver tells it to about half of one.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn since_us(&self, begun: &Event) -> Result<f64, CallError> {
        let mut millis = 0.0;
        // SAFETY: both handles are alive, and there is a place for one number.
        let code = unsafe { (self.context.calls().elapsed)(&raw mut millis, begun.raw, self.raw) };
        self.context.check("cuEventElapsedTime", code)?;
        Ok(f64::from(millis) * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it was created once.
        unsafe { (self.context.calls().destroy_event)(self.raw) };
    }
}
