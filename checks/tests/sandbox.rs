//! What a process cannot do any more once it has entered the sandbox, and what it still can. A program of its own, since
//! there is no way back.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "it tries what must be refused"
)]

use std::net::{TcpListener, UdpSocket};

use dhc_checks::host::sandbox;

fn main() {
    let file = tempfile::NamedTempFile::new().expect("a file to try to write to");
    // nextest asks each test program what it has; this one has a single test.
    if std::env::args().any(|argument| argument == "--list") {
        if !std::env::args().any(|argument| argument == "--ignored") {
            println!("what_the_sandbox_takes_away_is_gone: test");
        }
        return;
    }
    let before =
        std::thread::spawn(|| std::thread::park_timeout(std::time::Duration::from_millis(300)));
    let enforced = sandbox::enter();
    assert!(enforced.unprivileged && enforced.system_calls, "{enforced}");

    assert!(
        UdpSocket::bind("127.0.0.1:0").is_err(),
        "a socket can be made"
    );
    assert!(
        TcpListener::bind("127.0.0.1:0").is_err(),
        "a socket can be made"
    );
    assert!(
        std::process::Command::new("/bin/true").status().is_err(),
        "a program can be run"
    );
    assert!(
        std::fs::write(file.path(), "x").is_err(),
        "a file can be written to"
    );
    let new = file.path().with_extension("new");
    assert!(std::fs::File::create(new).is_err(), "a file can be made");
    let status = std::fs::read_to_string("/proc/self/status");
    if enforced.files {
        assert!(status.is_err(), "a file can be read");
    } else {
        let status = status.expect("without Landlock files can be read");
        let uid = status
            .lines()
            .find(|line| line.starts_with("Uid:"))
            .expect("the kernel tells the user");
        assert!(!uid.contains("\t0"), "still root: {uid}");
    }

    // Computing, memory, threads that were there, and talking to the runner go on.
    let memory = vec![7_u8; 8 << 20];
    assert_eq!(
        memory.iter().map(|byte| u64::from(*byte)).sum::<u64>(),
        7 * (8 << 20)
    );
    before.join().expect("a thread that was there ends well");
    println!("test what_the_sandbox_takes_away_is_gone ... ok ({enforced})");
    std::mem::forget(file);
}
