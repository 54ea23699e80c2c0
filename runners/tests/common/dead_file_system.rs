//! A file system that never answers, as a network file system does whose server is gone.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Mounts a file system on its first argument whose server never answers, and takes it away after its input has ended. With
/// `takes` as its second argument the server answers that it is there (FUSE_INIT of the kernel's `fuse.h`, protocol 7.31) and
/// takes every request after that.
const SERVER: &str = r#"import ctypes, os, struct, sys, threading
server, place, takes = os.open("/dev/fuse", os.O_RDWR), sys.argv[1].encode(), "takes" in sys.argv
libc = ctypes.CDLL(None, use_errno=True)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % server
if libc.mount(b"dead", place, b"fuse", 0, options):
    sys.exit("cannot mount: " + os.strerror(ctypes.get_errno()))
def take():
    unique = struct.unpack_from("<IIQ", os.read(server, 1 << 20))[2]
    answer = struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 4096, 0, 0, 0, 0)
    os.write(server, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)
    while os.read(server, 1 << 20):
        pass
if takes:
    threading.Thread(target=take, daemon=True).start()
print("mounted", flush=True)
sys.stdin.read()
libc.umount2(place, 2)
os._exit(0)
"#;

/// The file system; it goes away with this.
pub(crate) struct DeadFileSystem(Child);

impl DeadFileSystem {
    /// Mounts it on a directory that is there. Who waits for it can still be killed.
    pub(crate) fn on(place: &Path) -> DeadFileSystem {
        DeadFileSystem::mount(place, &[])
    }

    /// The same, and its server has taken the requests that it does not answer: who waits for one and is killed is in
    /// uninterruptible sleep from then on, until the file system goes away (`request_wait_answer` of the kernel's
    /// `fs/fuse/dev.c`).
    pub(crate) fn that_holds_processes(place: &Path) -> DeadFileSystem {
        DeadFileSystem::mount(place, &["takes"])
    }

    fn mount(place: &Path, how: &[&str]) -> DeadFileSystem {
        let is_root = rustix::process::geteuid().is_root();
        let mut server = Command::new(if is_root { "python3" } else { "sudo" });
        if !is_root {
            server.args(["-n", "python3"]);
        }
        let mut server = server
            .args(["-c", SERVER])
            .arg(place)
            .args(how)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The line and its end, which an unbuffered Python writes one after the other.
        let mut said = [0; "mounted\n".len()];
        let mounted = server.stdout.take().unwrap().read_exact(&mut said);
        mounted.expect(
            "this test mounts a file system: run it as root or with sudo, where there is /dev/fuse",
        );
        DeadFileSystem(server)
    }
}

impl Drop for DeadFileSystem {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}
