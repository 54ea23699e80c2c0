//! Which transport carried the messages, from what this process holds open when the work is done.
//!
//! What MPI was told to use, and what it says it prefers, is not what it used: it falls back in silence. What a process
//! holds open cannot be talked about: connections to other hosts, RDMA devices, segments shared with its neighbours. That
//! works with every MPI. Transports that were opened and not used are seen as well, so the words say *held*, not *used
//! alone*; which components Open MPI loaded stands beside them.

use std::collections::BTreeSet;
use std::path::Path;

/// How much of the description travels.
const SEEN_MAX: usize = 300;

/// State of an established connection (Linux, `include/net/tcp_states.h`).
const ESTABLISHED: &str = "01";

/// Devices that messages pass, by the beginning of their path, and their word in results.
const DEVICES: &[(&str, &str)] = &[("/dev/hfi1", "opa"), ("/dev/cxi", "cxi")];
const VERBS: &str = "/dev/infiniband/uverbs";

/// What can have carried messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Transport {
    /// In the words of results, sorted.
    pub(crate) words: Vec<String>,
    /// For people: how many connections, which devices, which components.
    pub(crate) seen: String,
}

/// Looks at this process; `root` is where `/proc` and `/sys` are.
pub(crate) fn look(root: &Path) -> Transport {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let open = std::fs::read_dir(root.join("proc/self/fd"));
    let open: Vec<String> = open
        .into_iter()
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .collect();
    let driver = |device: &str| {
        let link = root.join(format!("sys/class/infiniband_verbs/{device}/device/driver"));
        let link = std::fs::read_link(link).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    };
    let connections = read("proc/self/net/tcp") + &read("proc/self/net/tcp6");
    what_carries(&open, &connections, &read("proc/self/maps"), &driver)
}

fn what_carries(
    open: &[String],
    connections: &str,
    maps: &str,
    driver: &dyn Fn(&str) -> Option<String>,
) -> Transport {
    let mut words = BTreeSet::new();
    let mut seen = Vec::new();
    let peers = peers(open, connections);
    if peers > 0 {
        words.insert("tcp");
        seen.push(format!("connections to other hosts: {peers}"));
    }
    for path in open.iter().collect::<BTreeSet<_>>() {
        if path.starts_with(VERBS) {
            let device = path.trim_start_matches("/dev/infiniband/");
            let driver = driver(device).unwrap_or_else(|| "unknown".to_owned());
            words.insert(if driver == "efa" { "efa" } else { "verbs" });
            seen.push(format!("{device} (driver {driver})"));
        }
        if let Some((_, word)) = DEVICES.iter().find(|(device, _)| path.starts_with(device)) {
            words.insert(word);
            seen.push(path.clone());
        }
    }
    let segments = segments(maps);
    if segments > 0 {
        words.insert("shm");
        seen.push(format!("shared segments: {segments}"));
    }
    for (what, names) in components(maps) {
        seen.push(format!(
            "{what} {}",
            names.into_iter().collect::<Vec<_>>().join(" ")
        ));
    }
    Transport {
        words: words.into_iter().map(str::to_owned).collect(),
        seen: seen.join(", ").chars().take(SEEN_MAX).collect(),
    }
}

/// How many of the open sockets are connections to another host. Lines of `/proc/net/tcp`: `sl local remote state ...`
/// with addresses in hexadecimal, the socket's inode as the tenth field.
fn peers(open: &[String], connections: &str) -> usize {
    let socket = |path: &String| {
        let inode = path.strip_prefix("socket:[")?.strip_suffix(']')?;
        Some(inode.to_owned())
    };
    let sockets: BTreeSet<String> = open.iter().filter_map(socket).collect();
    let address = |end: &str| end.split(':').next().unwrap_or_default().to_owned();
    let is_peer = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, ESTABLISHED, _, _, _, _, _, inode, ..] = fields[..] else {
            return false;
        };
        // Launchers talk to their ranks over this host's own addresses.
        sockets.contains(inode) && address(local) != address(remote)
    };
    connections.lines().filter(is_peer).count()
}

/// Shared mappings below `/dev/shm` that other processes hold too: Open MPI's, MPICH's, UCX's and libfabric's segments. The
/// process managers keep theirs there as well, and those carry no message.
fn segments(maps: &str) -> usize {
    let segment = |line: &str| {
        let mut fields = line.split_whitespace();
        let shared = fields.nth(1)?.ends_with('s');
        let path = fields.nth(3)?;
        let carries =
            path.starts_with("/dev/shm/") && !path.contains("pmix") && !path.contains("dstore");
        (shared && carries).then(|| path.to_owned())
    };
    maps.lines()
        .filter_map(segment)
        .collect::<BTreeSet<_>>()
        .len()
}

/// The components of Open MPI's layers that stayed loaded; those that it did not choose are unloaded.
fn components(maps: &str) -> Vec<(&'static str, BTreeSet<String>)> {
    let files = maps.lines().filter_map(|line| line.rsplit('/').next());
    let named = |prefix: &str| {
        let of = |file: &str| {
            let name = file.strip_prefix(prefix)?;
            Some(name.split('.').next()?.to_owned())
        };
        files.clone().filter_map(of).collect::<BTreeSet<_>>()
    };
    let all = [
        ("pml", named("mca_pml_")),
        ("mtl", named("mca_mtl_")),
        ("btl", named("mca_btl_")),
    ];
    all.into_iter()
        .filter(|(_, names)| !names.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
        0: 0100007F:9C41 0100007F:8A02 01 00000000:00000000 00:00000000 00000000     0        0 11 1 0 20 4 30 10 -1\n\
        1: 01004D0A:0400 02004D0A:9D70 01 00000000:00000000 02:000000A7 00000000     0        0 22 2 0 20 4 30 10 -1\n\
        2: 00000000:0401 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 33 1 0 100 0 0 10 0\n\
        3: 01004D0A:0400 03004D0A:9D70 01 00000000:00000000 02:000000A7 00000000     0        0 44 2 0 20 4 30 10 -1\n";
    const MAPS: &str = "7f00-7f10 r-xp 00000000 fe:00 9 /usr/lib/openmpi/mca_pml_ob1.so\n\
        7f10-7f20 r-xp 00000000 fe:00 9 /usr/lib/openmpi/mca_btl_tcp.so\n\
        7f20-7f30 rw-s 00000000 00:19 9 /dev/shm/vader_segment.h1.0.1\n\
        7f30-7f40 rw-s 00000000 00:19 9 /dev/shm/pmix-dstore.1\n";

    fn open(paths: &[&str]) -> Vec<String> {
        paths.iter().map(|path| (*path).to_owned()).collect()
    }

    fn carries(paths: &[&str], connections: &str, maps: &str, driver: &str) -> Transport {
        let driver = |_: &str| (!driver.is_empty()).then(|| driver.to_owned());
        what_carries(&open(paths), connections, maps, &driver)
    }

    #[test]
    fn only_own_connections_to_other_hosts_count() {
        let all = ["socket:[11]", "socket:[22]", "socket:[33]", "pipe:[44]"];
        let told = carries(&all, TCP, "", "");
        assert_eq!(told.words, ["tcp"]);
        assert_eq!(told.seen, "connections to other hosts: 1");
        assert_eq!(carries(&["socket:[11]"], TCP, "", ""), Transport::default());
    }

    #[test]
    fn an_efa_card_is_told_from_other_verbs_by_its_driver() {
        let device = ["/dev/infiniband/uverbs0"];
        assert_eq!(carries(&device, "", "", "efa").words, ["efa"]);
        assert_eq!(carries(&device, "", "", "mlx5_core").words, ["verbs"]);
        assert_eq!(
            carries(&device, "", "", "").seen,
            "uverbs0 (driver unknown)"
        );
    }

    #[test]
    fn segments_of_neighbours_and_components_are_seen_and_those_of_the_launcher_are_not() {
        let told = carries(&["socket:[22]"], TCP, MAPS, "");
        assert_eq!(told.words, ["shm", "tcp"]);
        assert!(told.seen.ends_with("shared segments: 1, pml ob1, btl tcp"));
    }
}
