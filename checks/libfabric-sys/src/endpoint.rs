//! An endpoint with memory of its own that sends and receives tagged messages.

use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};

use crate::library::{Device, FabricError};
use crate::sys;

/// The longest address that a provider may have; EFA's has 32 bytes, a socket's 28.
const ADDRESS_MAX: usize = 256;

/// `FI_ADDR_UNSPEC` of the headers, which casts and so is no constant to bindgen.
const ADDRESS_UNSPECIFIED: sys::fi_addr_t = u64::MAX;

/// Completions that are taken at a time.
const BATCH: usize = 16;

/// An endpoint's address, as another endpoint of the same provider needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(Vec<u8>);

/// A finished operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The message from this slot has left.
    Sent(usize),
    /// A message has arrived in this slot.
    Received(usize),
}

/// An endpoint on a device, open until it is dropped.
///
/// Its memory is divided into slots of one size; half of them are for sending, half for receiving. Operations are
/// started on slots and end with [`Endpoint::poll`].
pub struct Endpoint {
    // Closed in this order: an endpoint before what it is bound to, and those before their domain and fabric.
    endpoint: Fid<sys::fid_ep>,
    region: Option<Fid<sys::fid_mr>>,
    queue: Fid<sys::fid_cq>,
    addresses: Fid<sys::fid_av>,
    _domain: Fid<sys::fid_domain>,
    _fabric: Fid<sys::fid_fabric>,
    memory: Vec<u8>,
    slot_bytes: usize,
    slots: usize,
    /// One for each operation that can be under way: providers may keep state there until it ends.
    contexts: Box<[sys::fi_context2]>,
    peer: sys::fi_addr_t,
    ready: Vec<Completion>,
    library: crate::Library,
}

// SAFETY: libfabric's objects may move between threads; FI_THREAD_DOMAIN only forbids to use those of one domain in two
// threads at once, which `&mut self` rules out, since each `Endpoint` has a domain of its own.
unsafe impl Send for Endpoint {}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Endpoint({} slots of {} bytes)",
            self.slots, self.slot_bytes
        )
    }
}

impl Endpoint {
    /// Opens an endpoint on `device` with `slots` slots of `slot_bytes` bytes to send from and as many to receive into.
    ///
    /// # Errors
    /// What libfabric answers.
    pub fn open(device: &Device, slots: usize, slot_bytes: usize) -> Result<Endpoint, FabricError> {
        let library = device.library().clone();
        let info = device.info.raw;
        let check = |call, code| library.check(call, code);
        let mut memory = vec![0_u8; 2 * slots * slot_bytes];
        // SAFETY: these are libfabric's inline calls, as its headers define them: each object's table of operations was
        // filled by the provider, `info` and the attributes outlive the calls, and each new object is handed to a `Fid`
        // that closes it. The memory outlives its registration, since fields are dropped in the order of declaration.
        unsafe {
            let mut fabric = null_mut();
            check(
                "fi_fabric",
                library
                    .exports
                    .fi_fabric((*info).fabric_attr, &raw mut fabric, null_mut()),
            )?;
            let fabric = Fid::new(fabric);
            let mut domain = null_mut();
            let open = (*fabric.ops())
                .domain
                .ok_or_else(|| library.error("fi_domain", libc::ENOSYS))?;
            check(
                "fi_domain",
                open(fabric.raw(), info, &raw mut domain, null_mut()),
            )?;
            let domain: Fid<sys::fid_domain> = Fid::new(domain);
            let operations = domain.ops();

            let mut attributes: sys::fi_cq_attr = std::mem::zeroed();
            attributes.format = sys::FI_CQ_FORMAT_TAGGED;
            attributes.size = 4 * slots.max(64);
            attributes.wait_obj = sys::FI_WAIT_NONE;
            let mut queue = null_mut();
            let open = (*operations)
                .cq_open
                .ok_or_else(|| library.error("fi_cq_open", libc::ENOSYS))?;
            check(
                "fi_cq_open",
                open(
                    domain.raw(),
                    &raw mut attributes,
                    &raw mut queue,
                    null_mut(),
                ),
            )?;
            let queue: Fid<sys::fid_cq> = Fid::new(queue);

            let mut attributes: sys::fi_av_attr = std::mem::zeroed();
            attributes.type_ = sys::FI_AV_UNSPEC;
            attributes.count = 1;
            let mut addresses = null_mut();
            let open = (*operations)
                .av_open
                .ok_or_else(|| library.error("fi_av_open", libc::ENOSYS))?;
            check(
                "fi_av_open",
                open(
                    domain.raw(),
                    &raw mut attributes,
                    &raw mut addresses,
                    null_mut(),
                ),
            )?;
            let addresses: Fid<sys::fid_av> = Fid::new(addresses);

            let mut endpoint = null_mut();
            let open = (*operations)
                .endpoint
                .ok_or_else(|| library.error("fi_endpoint", libc::ENOSYS))?;
            check(
                "fi_endpoint",
                open(domain.raw(), info, &raw mut endpoint, null_mut()),
            )?;
            let endpoint: Fid<sys::fid_ep> = Fid::new(endpoint);
            let both = u64::from(sys::FI_TRANSMIT) | u64::from(sys::FI_RECV);
            endpoint.bind(&library, queue.fid(), both)?;
            endpoint.bind(&library, addresses.fid(), 0)?;
            let control = (*endpoint.fid_ops())
                .control
                .ok_or_else(|| library.error("fi_enable", libc::ENOSYS))?;
            check(
                "fi_enable",
                control(endpoint.fid(), sys::FI_ENABLE.cast_signed(), null_mut()),
            )?;

            let mode = (*(*info).domain_attr).mr_mode;
            let local = mode & sys::FI_MR_LOCAL.cast_signed() != 0;
            let region = if local {
                Some(register(&library, &domain, &mut memory)?)
            } else {
                None
            };
            Ok(Endpoint {
                endpoint,
                region,
                queue,
                addresses,
                _domain: domain,
                _fabric: fabric,
                memory,
                slot_bytes,
                slots,
                contexts: (0..2 * slots).map(|_| std::mem::zeroed()).collect(),
                peer: ADDRESS_UNSPECIFIED,
                ready: Vec::new(),
                library,
            })
        }
    }

    /// The endpoint's own address.
    ///
    /// # Errors
    /// What libfabric answers.
    pub fn address(&self) -> Result<Address, FabricError> {
        let mut address = vec![0_u8; ADDRESS_MAX];
        let mut length = address.len();
        // SAFETY: the provider writes at most `length` bytes and stores how many the address has.
        let code = unsafe {
            let manager = (*self.endpoint.raw()).cm.as_ref();
            let getname = manager.and_then(|manager| manager.getname);
            let getname = getname.ok_or_else(|| self.library.error("fi_getname", libc::ENOSYS))?;
            getname(
                self.endpoint.fid(),
                address.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        self.library.check("fi_getname", code)?;
        address.truncate(length);
        Ok(Address(address))
    }

    /// Names the endpoint that all messages go to and come from.
    ///
    /// # Errors
    /// What libfabric answers.
    pub fn connect(&mut self, peer: &Address) -> Result<(), FabricError> {
        let mut handle = ADDRESS_UNSPECIFIED;
        // SAFETY: one address is inserted, and its handle is stored in `handle`.
        let inserted = unsafe {
            let insert = (*self.addresses.ops()).insert;
            let insert = insert.ok_or_else(|| self.library.error("fi_av_insert", libc::ENOSYS))?;
            insert(
                self.addresses.raw(),
                peer.0.as_ptr().cast(),
                1,
                &raw mut handle,
                0,
                null_mut(),
            )
        };
        if inserted != 1 {
            return Err(self.library.error(
                "fi_av_insert",
                if inserted < 0 {
                    -inserted
                } else {
                    libc::EINVAL
                },
            ));
        }
        self.peer = handle;
        Ok(())
    }

    /// How many slots there are for each direction.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The memory of a slot to send from.
    pub fn outgoing(&mut self, slot: usize) -> &mut [u8] {
        let start = slot * self.slot_bytes;
        &mut self.memory[start..start + self.slot_bytes]
    }

    /// The memory of a slot to receive into.
    pub fn incoming(&mut self, slot: usize) -> &mut [u8] {
        let start = (self.slots + slot) * self.slot_bytes;
        &mut self.memory[start..start + self.slot_bytes]
    }

    /// Starts to send the first `bytes` bytes of a slot; false if the provider is busy and has to be polled first.
    ///
    /// # Errors
    /// What libfabric answers.
    ///
    /// # Panics
    /// When there is no such slot or it is shorter.
    pub fn send(&mut self, slot: usize, bytes: usize, tag: u64) -> Result<bool, FabricError> {
        assert!(
            slot < self.slots && bytes <= self.slot_bytes,
            "a message fits into its slot"
        );
        let descriptor = self.descriptor();
        let context = (&raw mut self.contexts[slot]).cast();
        let memory: *const c_void = self.outgoing(slot).as_ptr().cast();
        // SAFETY: memory and context live as long as the endpoint, longer than the operation.
        let code = unsafe {
            let send = (*(*self.endpoint.raw()).tagged).send;
            let send = send.ok_or_else(|| self.library.error("fi_tsend", libc::ENOSYS))?;
            send(
                self.endpoint.raw(),
                memory,
                bytes,
                descriptor,
                self.peer,
                tag,
                context,
            )
        };
        self.started("fi_tsend", code)
    }

    /// Starts to receive up to `bytes` bytes with this tag into a slot; false if the provider is busy.
    ///
    /// # Errors
    /// What libfabric answers.
    ///
    /// # Panics
    /// When there is no such slot or it is shorter.
    pub fn receive(&mut self, slot: usize, bytes: usize, tag: u64) -> Result<bool, FabricError> {
        assert!(
            slot < self.slots && bytes <= self.slot_bytes,
            "a message fits into its slot"
        );
        let descriptor = self.descriptor();
        let context = (&raw mut self.contexts[self.slots + slot]).cast();
        let memory: *mut c_void = self.incoming(slot).as_mut_ptr().cast();
        // SAFETY: as for `send`.
        let code = unsafe {
            let receive = (*(*self.endpoint.raw()).tagged).recv;
            let receive = receive.ok_or_else(|| self.library.error("fi_trecv", libc::ENOSYS))?;
            receive(
                self.endpoint.raw(),
                memory,
                bytes,
                descriptor,
                self.peer,
                tag,
                0,
                context,
            )
        };
        self.started("fi_trecv", code)
    }

    /// Drives the provider and returns one finished operation, if there is one.
    ///
    /// # Errors
    /// What libfabric answers, or what an operation ended with.
    pub fn poll(&mut self) -> Result<Option<Completion>, FabricError> {
        if let Some(completion) = self.ready.pop() {
            return Ok(Some(completion));
        }
        // SAFETY: the queue was opened with FI_CQ_FORMAT_TAGGED, so it writes entries of this type, `BATCH` at most.
        let (entries, count) = unsafe {
            let mut entries: [sys::fi_cq_tagged_entry; BATCH] = std::mem::zeroed();
            let read = (*self.queue.ops()).read;
            let read = read.ok_or_else(|| self.library.error("fi_cq_read", libc::ENOSYS))?;
            let count = read(self.queue.raw(), entries.as_mut_ptr().cast(), BATCH);
            (entries, count)
        };
        if count == -(libc::EAGAIN as isize) || count == 0 {
            return Ok(None);
        }
        let Ok(count) = usize::try_from(count) else {
            return Err(self.failure(i32::try_from(count.saturating_neg()).unwrap_or(libc::EIO)));
        };
        // The oldest one last, since `pop` takes the last.
        for entry in entries[..count.min(BATCH)].iter().rev() {
            let completion = self.completion(entry.op_context)?;
            self.ready.push(completion);
        }
        Ok(self.ready.pop())
    }

    /// Which operation a context belongs to.
    fn completion(&self, context: *mut c_void) -> Result<Completion, FabricError> {
        let first = self.contexts.as_ptr() as usize;
        let offset = (context as usize).wrapping_sub(first);
        let index = offset / size_of::<sys::fi_context2>();
        if index >= self.contexts.len() {
            return Err(FabricError {
                call: "fi_cq_read",
                code: libc::EIO,
                text: "a completion of an operation that was never started".to_owned(),
            });
        }
        Ok(if index < self.slots {
            Completion::Sent(index)
        } else {
            Completion::Received(index - self.slots)
        })
    }

    /// What the operation at the head of the error queue failed of.
    fn failure(&self, code: i32) -> FabricError {
        if code != libc::EAGAIN && code != sys::FI_EAVAIL.cast_signed() {
            return self.library.error("fi_cq_read", code);
        }
        // SAFETY: an empty entry asks for no provider's data; the provider fills it in.
        let error = unsafe {
            let mut entry: sys::fi_cq_err_entry = std::mem::zeroed();
            let read = (*self.queue.ops()).readerr;
            let count = read.map_or(0, |read| read(self.queue.raw(), &raw mut entry, 0));
            if count > 0 { entry.err } else { code }
        };
        self.library.error("message", error)
    }

    fn started(&self, call: &'static str, code: isize) -> Result<bool, FabricError> {
        if code == -(libc::EAGAIN as isize) {
            return Ok(false);
        }
        let code = i32::try_from(code).unwrap_or(-libc::EIO);
        self.library.check(call, code).map(|()| true)
    }

    fn descriptor(&self) -> *mut c_void {
        // SAFETY: the region lives as long as the endpoint.
        self.region
            .as_ref()
            .map_or(null_mut(), |region| unsafe { (*region.raw()).mem_desc })
    }
}

/// Registers memory for sending and receiving.
///
/// # Safety
/// The memory must live longer than what is returned.
unsafe fn register(
    library: &crate::Library,
    domain: &Fid<sys::fid_domain>,
    memory: &mut [u8],
) -> Result<Fid<sys::fid_mr>, FabricError> {
    let access = u64::from(sys::FI_SEND) | u64::from(sys::FI_RECV);
    let mut region = null_mut();
    // SAFETY: the provider filled the table; the arguments are those of `fi_mr_reg`.
    unsafe {
        let register = (*(*domain.raw()).mr)
            .reg
            .ok_or_else(|| library.error("fi_mr_reg", libc::ENOSYS))?;
        let (start, length) = (memory.as_ptr().cast(), memory.len());
        let code = register(
            domain.fid(),
            start,
            length,
            access,
            0,
            0,
            0,
            &raw mut region,
            null_mut(),
        );
        library.check("fi_mr_reg", code)?;
        Ok(Fid::new(region))
    }
}

/// An object of libfabric that is closed with its owner.
struct Fid<T>(NonNull<T>);

impl<T> Fid<T> {
    /// # Safety
    /// `raw` was just opened by libfabric, and its first field is a `struct fid`, as in all of libfabric's objects.
    unsafe fn new(raw: *mut T) -> Self {
        Fid(NonNull::new(raw).expect("libfabric returns an object when it returns success"))
    }

    fn raw(&self) -> *mut T {
        self.0.as_ptr()
    }

    fn fid(&self) -> *mut sys::fid {
        self.raw().cast()
    }

    fn fid_ops(&self) -> *mut sys::fi_ops {
        // SAFETY: the first field is a `struct fid`, whose table the provider filled.
        unsafe { (*self.fid()).ops }
    }

    fn bind(
        &self,
        library: &crate::Library,
        to: *mut sys::fid,
        flags: u64,
    ) -> Result<(), FabricError> {
        // SAFETY: both are open objects of the same domain.
        let code = unsafe {
            let bind = (*self.fid_ops())
                .bind
                .ok_or_else(|| library.error("fi_ep_bind", libc::ENOSYS))?;
            bind(self.fid(), to, flags)
        };
        library.check("fi_ep_bind", code)
    }
}

impl<T> Drop for Fid<T> {
    fn drop(&mut self) {
        // SAFETY: opened by libfabric, closed once. An object that does not let itself be closed is left to the end of
        // the process, which is the end of the check.
        unsafe {
            if let Some(close) = (*self.fid_ops()).close {
                close(self.fid());
            }
        }
    }
}

/// The objects whose table of operations is used.
macro_rules! operations {
    ($($object:ident: $table:ident),*) => {
        $(impl Fid<sys::$object> {
            fn ops(&self) -> *mut sys::$table {
                // SAFETY: the provider filled the table when it opened the object.
                unsafe { (*self.raw()).ops }
            }
        })*
    };
}
operations!(fid_fabric: fi_ops_fabric, fid_domain: fi_ops_domain, fid_cq: fi_ops_cq, fid_av: fi_ops_av);
