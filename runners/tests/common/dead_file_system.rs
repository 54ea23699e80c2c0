//! A file system that never answers, as a network file system does whose server is gone.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Mounts a file system on its only argument whose server never answers, and takes it away after its input has ended.
const SERVER: &str = r#"import ctypes, os, sys
server, place = os.open("/dev/fuse", os.O_RDWR), sys.argv[1].encode()
libc = ctypes.CDLL(None, use_errno=True)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % server
if libc.mount(b"dead", place, b"fuse", 0, options):
    sys.exit("cannot mount: " + os.strerror(ctypes.get_errno()))
print("mounted", flush=True)
sys.stdin.read()
libc.umount2(place, 2)
"#;

/// The file system; it goes away with this.
pub(crate) struct DeadFileSystem(Child);

impl DeadFileSystem {
    /// Mounts it on a directory that is there.
    pub(crate) fn on(place: &Path) -> DeadFileSystem {
        let is_root = rustix::process::geteuid().is_root();
        let mut server = Command::new(if is_root { "python3" } else { "sudo" });
        if !is_root {
            server.args(["-n", "python3"]);
        }
        let mut server = server
            .args(["-c", SERVER])
            .arg(place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The line and its end, which an unbuffered Python writes one after the other.
        let mut said = [0; "mounted\n".len()];
        let mounted = server.stdout.take().unwrap().read_exact(&mut said);
        mounted.expect("this test mounts a file system: run it as root or with sudo");
        DeadFileSystem(server)
    }
}

impl Drop for DeadFileSystem {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}
