//! Privileges given up before the output of a tool is read.
//!
//! A check runs as root because hardware wants it, and then reads text that a tool printed. Once the tool has ended,
//! nothing of that is needed any more: [`enter`] makes the process one that can compute, write to the runner, and nothing
//! else. Each layer is applied where the kernel has it, and what was applied is told.

use std::collections::BTreeMap;
use std::fmt;

use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetStatus};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// The user `nobody` of every Linux (nfs-utils, systemd and Debian's base-passwd agree on it).
const NOBODY: u32 = 65_534;

/// Memory that reading the largest output may take.
const MEMORY_MAX_BYTES: u64 = 2 << 30;

/// What the process has given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enforced {
    /// It runs as `nobody` (also where it never was root).
    pub unprivileged: bool,
    /// The kernel refuses it network, programs and files to write (seccomp).
    pub system_calls: bool,
    /// The kernel refuses it all files (Landlock, since Linux 5.13).
    pub files: bool,
}

impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |on: bool| if on { "on" } else { "not available" };
        write!(
            f,
            "unprivileged user {}, system call filter {}, file access filter {}",
            word(self.unprivileged),
            word(self.system_calls),
            word(self.files)
        )
    }
}

/// Gives up all that reading a text does not need, for good and for all threads.
pub fn enter() -> Enforced {
    // The order matters: each layer takes away what the ones before needed.
    let unprivileged = become_nobody();
    limit_memory();
    let files = no_files();
    let system_calls = no_network_no_programs();
    Enforced {
        unprivileged,
        system_calls,
        files,
    }
}

#[expect(
    unsafe_code,
    reason = "only the C library changes the user of all threads at once"
)]
fn become_nobody() -> bool {
    if !rustix::process::geteuid().is_root() {
        return true;
    }
    // SAFETY: these calls take numbers, and a list of length zero.
    unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(NOBODY, NOBODY, NOBODY) == 0
            && libc::setresuid(NOBODY, NOBODY, NOBODY) == 0
    }
}

fn limit_memory() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = Rlimit {
        current: Some(MEMORY_MAX_BYTES),
        maximum: Some(MEMORY_MAX_BYTES),
    };
    // A process with more address space than this already keeps what it has.
    let _ = setrlimit(Resource::As, limit);
}

/// Forbids every access to files by name; what is open stays open.
fn no_files() -> bool {
    let all = AccessFs::from_all(ABI::V5);
    let rules = Ruleset::default()
        .handle_access(all)
        .and_then(|rules| rules.create());
    let status = rules.and_then(|rules| rules.restrict_self());
    status.is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced)
}

/// Forbids sockets, programs, other processes and files to write. All else goes on: this is not meant to be exact, but to
/// leave an attacker nothing to reach.
fn no_network_no_programs() -> bool {
    let Some(program) = filter() else {
        return false;
    };
    seccompiler::apply_filter_all_threads(&program).is_ok()
}

fn filter() -> Option<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in [
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_kill,
        libc::SYS_mount,
        libc::SYS_unlinkat,
        libc::SYS_renameat2,
        libc::SYS_linkat,
        libc::SYS_symlinkat,
        libc::SYS_bpf,
        libc::SYS_io_uring_setup,
    ] {
        rules.insert(call, Vec::new());
    }
    let writing = [libc::O_WRONLY, libc::O_RDWR, libc::O_CREAT, libc::O_TRUNC];
    let opened_for = |flag: i32| {
        let flag = u64::from(flag.cast_unsigned());
        let condition = SeccompCondition::new(
            2,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(flag),
            flag,
        );
        SeccompRule::new(vec![condition.ok()?]).ok()
    };
    rules.insert(
        libc::SYS_openat,
        writing
            .into_iter()
            .map(opened_for)
            .collect::<Option<Vec<_>>>()?,
    );
    let arch = TargetArch::try_from(std::env::consts::ARCH).ok()?;
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)
        .ok()?
        .try_into()
        .ok()
}
