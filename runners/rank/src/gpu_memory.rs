//! The all-reduce of GPU memory, by NCCL.

use nvidia_sys::{CallError, Communicator, Context, DeviceMemory, Event, PinnedMemory, Stream};

use crate::all_reduce::{AllReduce, Outcome, count_differences};

/// How many elements are copied between host and GPU at a time, in whole patterns: much more than a copy costs by itself, and
/// little beside what is measured.
const PATTERNS_AT_A_TIME: usize = 1 << 18;

/// What this rank sends and the sum over all, on its GPU.
pub(crate) struct GpuMemory {
    // Dropped in this order: NCCL before what it works on.
    communicator: Communicator,
    begun: Event,
    ended: Event,
    stream: Stream,
    buffers: Option<[DeviceMemory<f32>; 2]>,
    staging: Option<PinnedMemory<f32>>,
    context: Context,
}

impl GpuMemory {
    pub(crate) fn new(context: &Context, communicator: Communicator) -> Result<Self, CallError> {
        Ok(GpuMemory {
            communicator,
            begun: Event::new(context)?,
            ended: Event::new(context)?,
            stream: Stream::new(context)?,
            buffers: None,
            staging: None,
            context: context.clone(),
        })
    }

    fn staging(&mut self, pattern: usize) -> Result<&mut PinnedMemory<f32>, CallError> {
        let elements = pattern * PATTERNS_AT_A_TIME;
        match &mut self.staging {
            Some(staging) => Ok(staging),
            none => Ok(none.insert(PinnedMemory::allocate(&self.context, elements, 0.0)?)),
        }
    }
}

/// The largest message that a GPU with so much free memory has room for: two buffers, and a share for NCCL and the driver.
pub(crate) fn message_bytes_max(free_bytes: u64) -> u64 {
    (free_bytes - free_bytes / 8) / 2
}

impl AllReduce for GpuMemory {
    fn prepare(&mut self, elements: usize, pattern: &[f32]) -> Outcome<()> {
        // The old ones first, or there would have to be room for both.
        self.buffers = None;
        let mut send = DeviceMemory::allocate(&self.context, elements)?;
        let staging = self.staging(pattern.len())?;
        let host = staging.elements_mut();
        for (element, value) in host.iter_mut().take(elements).zip(pattern.iter().cycle()) {
            *element = *value;
        }
        for at in (0..elements).step_by(host.len()) {
            send.write(at, &host[..host.len().min(elements - at)])?;
        }
        let mut sum = DeviceMemory::allocate(&self.context, elements)?;
        sum.fill(-1.0)?;
        self.buffers = Some([send, sum]);
        Ok(())
    }

    /// The time is that of the GPU, from mark to mark, as the launch of a kernel from the host is not the collective's.
    fn reduce(&mut self) -> Outcome<f64> {
        self.begun.record(&self.stream)?;
        let [send, sum] = self
            .buffers
            .as_mut()
            .expect("a size is prepared before it is measured");
        self.communicator.all_reduce(send, sum, &self.stream)?;
        self.ended.record(&self.stream)?;
        self.communicator.wait(&self.ended)?;
        Ok(self.ended.since_us(&self.begun)?)
    }

    fn count_wrong(&mut self, expected: &[f32]) -> Outcome<u64> {
        self.staging(expected.len())?;
        let (Some([_, sum]), Some(staging)) = (&mut self.buffers, &mut self.staging) else {
            return Ok(0);
        };
        let mut wrong = 0;
        let host = staging.elements_mut();
        for at in (0..sum.len()).step_by(host.len()) {
            let part = host.len().min(sum.len() - at);
            sum.read(at, &mut host[..part])?;
            wrong += count_differences(&host[..part], expected);
        }
        sum.fill(-1.0)?;
        Ok(wrong)
    }
}
