//! How much memory a check may take: what the kernel has to spare, within the limits of this process's own group.

use std::path::Path;

use super::{Host, ReadError};
use crate::format::sysfs;

/// The memory controller of both versions of control groups: where its tree is mounted, and its files.
const CONTROLLERS: &[Controller] = &[
    Controller {
        name: "",
        mount: "/sys/fs/cgroup",
        limit: "memory.max",
        used: "memory.current",
        reclaimable: "inactive_file",
    },
    Controller {
        name: "memory",
        mount: "/sys/fs/cgroup/memory",
        limit: "memory.limit_in_bytes",
        used: "memory.usage_in_bytes",
        reclaimable: "total_inactive_file",
    },
];

/// Groups within groups that are followed upwards; batch systems and container runtimes make about eight.
const DEPTH_MAX: usize = 32;

struct Controller {
    /// What `/proc/self/cgroup` calls it.
    name: &'static str,
    mount: &'static str,
    limit: &'static str,
    used: &'static str,
    /// The line of `memory.stat` with the file pages that are counted as used and given back for the asking.
    reclaimable: &'static str,
}

impl Host {
    /// The bytes that a process may take before others are pushed out or killed.
    ///
    /// Memory is always that of the machine that dhc runs on, so a simulated one can only have less.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn memory_available(&self) -> Result<u64, ReadError> {
        let path = Path::new("/proc/meminfo");
        let text = self.text(path)?;
        let free = sysfs::mem_available_kib(&text).ok_or_else(|| ReadError::Malformed {
            path: path.to_owned(),
            found: text
                .lines()
                .next()
                .unwrap_or_default()
                .escape_default()
                .to_string(),
            expected: "a file with a line MemAvailable",
        })?;
        let free = free.saturating_mul(1024);
        let grouped = self.left_in_groups().map_or(free, |left| left.min(free));
        if self.root == Path::new("/") {
            return Ok(grouped);
        }
        let real = Host {
            root: "/".into(),
            ..self.clone()
        };
        Ok(real.memory_available()?.min(grouped))
    }

    /// What the tightest of the control groups around this process has left; `None` where none has a limit.
    fn left_in_groups(&self) -> Option<u64> {
        let groups = self.text("/proc/self/cgroup").ok()?;
        let of = |controller: &Controller| {
            let path = groups.lines().find_map(|line| {
                let (_, line) = line.split_once(':')?;
                let (names, path) = line.split_once(':')?;
                names
                    .split(',')
                    .any(|name| name == controller.name)
                    .then(|| path.trim_start_matches('/').to_owned())
            })?;
            let up = Path::new(&path).ancestors().take(DEPTH_MAX);
            up.filter_map(|group| self.left_in(controller, group)).min()
        };
        CONTROLLERS.iter().filter_map(of).min()
    }

    fn left_in(&self, controller: &Controller, group: &Path) -> Option<u64> {
        let folder = Path::new(controller.mount).join(group);
        // `max`, or no file at all in the topmost group, is no limit.
        let limit = self.number(folder.join(controller.limit)).ok()?;
        let used = self.number(folder.join(controller.used)).ok()?;
        let stat = self.text(folder.join("memory.stat")).unwrap_or_default();
        let reclaimable = stat.lines().find_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            (name == controller.reclaimable).then(|| bytes.parse().ok())?
        });
        let used = used.saturating_sub(reclaimable.unwrap_or(0));
        Some(limit.saturating_sub(used))
    }
}

#[cfg(test)]
mod tests {
    use dhc_fixtures::FakeNode;

    use super::*;

    fn available(node: &FakeNode) -> u64 {
        let host = Host {
            root: node.root(),
            ..Host::of_this_machine(&std::collections::BTreeMap::new())
        };
        host.memory_available().unwrap()
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn no_more_is_available_than_the_kernel_has_to_spare() {
        let node = FakeNode::plain().file(
            "/proc/meminfo",
            "MemTotal: 999999 kB\nMemAvailable: 2048 kB\n",
        );
        assert_eq!(available(&node), 2 * MIB);
    }

    #[test]
    fn the_tightest_group_around_the_process_decides() {
        let grouped = |groups: &str| {
            FakeNode::plain()
                .file(
                    "/proc/meminfo",
                    "MemTotal: 999999 kB\nMemAvailable: 102400 kB\n",
                )
                .file("/proc/self/cgroup", groups)
        };
        let two = grouped("0::/slurm/job7\n")
            .file("/sys/fs/cgroup/slurm/memory.max", format!("{}\n", 30 * MIB))
            .file(
                "/sys/fs/cgroup/slurm/memory.current",
                format!("{}\n", 26 * MIB),
            )
            .file(
                "/sys/fs/cgroup/slurm/memory.stat",
                format!("anon 4096\ninactive_file {}\n", 6 * MIB),
            )
            .file("/sys/fs/cgroup/slurm/job7/memory.max", "max\n")
            .file("/sys/fs/cgroup/slurm/job7/memory.current", "4096\n");
        assert_eq!(available(&two), 10 * MIB);
        let one = grouped("8:pids:/\n4:memory:/docker/c1\n0::/\n")
            .file(
                "/sys/fs/cgroup/memory/docker/c1/memory.limit_in_bytes",
                format!("{}\n", 5 * MIB),
            )
            .file(
                "/sys/fs/cgroup/memory/docker/c1/memory.usage_in_bytes",
                format!("{MIB}\n"),
            );
        assert_eq!(available(&one), 4 * MIB);
        // A group that has used more than it may has nothing left.
        let over = one.file(
            "/sys/fs/cgroup/memory/docker/c1/memory.usage_in_bytes",
            format!("{}\n", 9 * MIB),
        );
        assert_eq!(available(&over), 0);
    }
}
