//! The all-reduce of host memory, by MPI itself.

use std::iter;
use std::time::Instant;

use dhc_checks::rank::Sweep;
use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::CommunicatorCollectives;

use crate::all_reduce::{AllReduce, Outcome, count_differences};

/// What this rank sends, and the sum over all.
pub(crate) struct HostMemory<'a> {
    world: &'a SimpleCommunicator,
    send: Buffer,
    sum: Buffer,
}

impl<'a> HostMemory<'a> {
    /// Every size of the sweep uses the same memory, that of its largest: fresh pages for each would be measured with it.
    pub(crate) fn new(world: &'a SimpleCommunicator, sweep: &Sweep) -> Outcome<Self> {
        let elements = usize::try_from(sweep.bytes_max / 4)?;
        Ok(HostMemory {
            world,
            send: Buffer::with_room_for(elements)?,
            sum: Buffer::with_room_for(elements)?,
        })
    }
}

impl AllReduce for HostMemory<'_> {
    fn prepare(&mut self, elements: usize, pattern: &[f32]) -> Outcome<()> {
        self.send
            .hold(pattern.iter().copied().cycle().take(elements));
        self.sum.hold(iter::repeat_n(0.0, elements));
        Ok(())
    }

    fn reduce(&mut self) -> Outcome<f64> {
        let begun = Instant::now();
        self.world.all_reduce_into(
            self.send.elements(),
            self.sum.elements_mut(),
            SystemOperation::sum(),
        );
        Ok(begun.elapsed().as_secs_f64() * 1e6)
    }

    fn count_wrong(&mut self, expected: &[f32]) -> Outcome<u64> {
        let wrong = count_differences(self.sum.elements(), expected);
        self.sum.elements_mut().fill(-1.0);
        Ok(wrong)
    }
}

/// Elements that begin on a page, as those of other benchmarks do: copying what begins beside a cache line is slower.
struct Buffer {
    storage: Vec<f32>,
    from: usize,
}

const PAGE_BYTES: usize = 4_096;

impl Buffer {
    /// The memory is only promised: pages that no size comes to are never touched.
    fn with_room_for(elements: usize) -> Outcome<Buffer> {
        let mut storage: Vec<f32> = Vec::new();
        storage
            .try_reserve_exact(elements + PAGE_BYTES / 4)
            .map_err(|error| format!("no memory for a buffer of {elements} elements: {error}"))?;
        let to_page = storage.as_ptr().align_offset(PAGE_BYTES);
        let from = to_page.min(PAGE_BYTES / 4);
        storage.resize(from, 0.0);
        Ok(Buffer { storage, from })
    }

    /// Makes it hold these and nothing else; they have to fit the room, or they would begin elsewhere.
    fn hold(&mut self, elements: impl Iterator<Item = f32>) {
        self.storage.truncate(self.from);
        self.storage.extend(elements);
    }

    fn elements(&self) -> &[f32] {
        &self.storage[self.from..]
    }

    fn elements_mut(&mut self) -> &mut [f32] {
        &mut self.storage[self.from..]
    }
}
