//! The all-reduce of host memory, by MPI itself.

use std::time::Instant;

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
    pub(crate) fn new(world: &'a SimpleCommunicator) -> Self {
        let none = || Buffer::of(0, std::iter::empty());
        HostMemory {
            world,
            send: none(),
            sum: none(),
        }
    }
}

impl AllReduce for HostMemory<'_> {
    fn prepare(&mut self, elements: usize, pattern: &[f32]) -> Outcome<()> {
        self.send = Buffer::of(elements, pattern.iter().copied().cycle().take(elements));
        self.sum = Buffer::of(elements, std::iter::repeat_n(0.0, elements));
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
    fn of(count: usize, elements: impl Iterator<Item = f32>) -> Buffer {
        let mut storage: Vec<f32> = Vec::with_capacity(count + PAGE_BYTES / 4);
        let from = storage
            .as_ptr()
            .align_offset(PAGE_BYTES)
            .min(PAGE_BYTES / 4);
        storage.resize(from, 0.0);
        storage.extend(elements);
        Buffer { storage, from }
    }

    fn elements(&self) -> &[f32] {
        &self.storage[self.from..]
    }

    fn elements_mut(&mut self) -> &mut [f32] {
        &mut self.storage[self.from..]
    }
}
