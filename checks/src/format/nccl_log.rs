//! What NCCL says of itself with `NCCL_DEBUG=INFO`: its version, the network that it chose, and the way of each channel.
//!
//! Lines: `HOST:PID:THREAD [DEVICE] NCCL INFO TEXT`, `[TIME] HOST:PID:THREAD [DEVICE] FILE:LINE NCCL WARN TEXT`. Sources: NCCL
//! 2.32, the texts of the library itself; aws-ofi-nccl, whose plugin is called `AWS Libfabric` up to 1.13 and `Libfabric`
//! since, and writes `Selected Provider` up to 1.9 and `Selected provider` since. The plugin's name does not tell what lies
//! below it: libfabric falls back to TCP without a word of NCCL, so the provider counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::quote;

/// How many kinds of ways and how many warnings are kept: what is told of them has to fit into one line of a rank.
const WAYS_MAX: usize = 8;
const WARNINGS_MAX: usize = 3;

/// How much of a name is kept.
const NAME_CHARS: usize = 32;

/// What a log says of how the ranks reach each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transport {
    /// NCCL's version and the CUDA that it was built with: `2.27.3+cuda12.8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The network in NCCL's words: `Libfabric`, `IB`, `Socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The provider of libfabric below it: `efa`, `tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The version of aws-ofi-nccl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// The version of libfabric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libfabric: Option<String>,
    /// Whether NVLink SHARP (NVLS) is set up.
    #[serde(default)]
    pub nvls: bool,
    /// Channels by their way, as NCCL names it: `P2P/CUMEM`, `SHM/direct`, `NET/Libfabric/GDRDMA`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub channels: BTreeMap<String, u32>,
}

/// A log that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// How the ranks reach each other.
    pub transport: Transport,
    /// The first warnings, in NCCL's words.
    pub warnings: Vec<String>,
}

impl Transport {
    /// One word for the network between nodes: `efa`, `ib`, `socket`, `libfabric-PROVIDER`, or the name of another plugin;
    /// `None` where the log does not tell it.
    pub fn network_word(&self) -> Option<String> {
        let network = self.network.as_deref()?.to_lowercase();
        if network.contains("libfabric") {
            // What libfabric carries is known by its provider alone.
            return self.provider.as_ref().map(|provider| {
                if provider == "efa" {
                    provider.clone()
                } else {
                    format!("libfabric-{provider}")
                }
            });
        }
        Some(match network.as_str() {
            "ib" => "ib".to_owned(),
            "socket" => "socket".to_owned(),
            // NVIDIA's own plugin for InfiniBand names itself with its version: `IBext_v8`.
            other if other.starts_with("ibext") => "ib".to_owned(),
            other => other.replace(' ', "-"),
        })
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "network {}",
            self.network.as_deref().unwrap_or("not told")
        )?;
        for (what, said) in [
            ("provider", &self.provider),
            ("aws-ofi-nccl", &self.plugin),
            ("libfabric", &self.libfabric),
        ] {
            if let Some(said) = said {
                write!(f, ", {what} {said}")?;
            }
        }
        if self.nvls {
            f.write_str(", NVLS")?;
        }
        for (way, count) in &self.channels {
            write!(f, ", {count} x {way}")?;
        }
        Ok(())
    }
}

/// Reads a log, or as much of one as there is. What is no line of NCCL is passed over.
pub fn read(text: &str) -> Log {
    let mut log = Log::default();
    for line in text.lines() {
        if let Some((_, said)) = line.split_once("NCCL WARN ") {
            if log.warnings.len() < WARNINGS_MAX {
                log.warnings.push(quote(said.trim()));
            }
        } else if let Some((_, said)) = line.split_once("NCCL INFO ") {
            take(&mut log.transport, said.trim());
        }
    }
    log
}

fn take(transport: &mut Transport, said: &str) {
    let after = |mark: &str| said.split_once(mark).map(|(_, rest)| rest);
    if let Some(version) = said.strip_prefix("NCCL version ") {
        transport.version = word(version);
    } else if let Some(network) = said.strip_prefix("Using network ") {
        transport.network = Some(name(network)).filter(|name| !name.is_empty());
    } else if let Some(rest) =
        after("NET/OFI Selected provider is ").or_else(|| after("NET/OFI Selected Provider is "))
    {
        transport.provider = word(rest).map(|word| word.trim_end_matches(',').to_lowercase());
    } else if let Some(rest) =
        after("NET/OFI Initializing aws-ofi-nccl ").or_else(|| after("NET/OFI Using aws-ofi-nccl "))
    {
        transport.plugin = word(rest);
    } else if let Some(rest) = after("NET/OFI Using Libfabric version ") {
        transport.libfabric = word(rest);
    } else if said.starts_with("Connected NVLS tree") || said.starts_with("NVLS comm ") {
        transport.nvls = true;
    } else if let Some((_, way)) = said.split_once(" via ")
        && (said.starts_with("Channel ")
            || said.starts_with("Ring ")
            || said.starts_with("CollNet "))
    {
        let way = way_of(way);
        let known = transport.channels.len();
        match transport.channels.get_mut(&way) {
            Some(count) => *count = count.saturating_add(1),
            None if known < WAYS_MAX && !way.is_empty() => {
                transport.channels.insert(way, 1);
            }
            None => {}
        }
    }
}

/// `NET/AWS Libfabric/3(12)/GDRDMA/Shared comm 0x1 nRanks 4` is one of many cards: `NET/AWS Libfabric/GDRDMA/Shared`.
fn way_of(way: &str) -> String {
    let way = way.split(" comm ").next().unwrap_or(way);
    let is_a_number = |part: &str| part.starts_with(|c: char| c.is_ascii_digit());
    let parts: Vec<&str> = way
        .trim()
        .split('/')
        .filter(|part| !is_a_number(part))
        .collect();
    name(&parts.join("/"))
}

fn word(text: &str) -> Option<String> {
    text.split_whitespace().next().map(name)
}

fn name(text: &str) -> String {
    let plain = |c: &char| matches!(c, ' '..='~') && !matches!(c, '"' | '\\');
    text.trim().chars().filter(plain).take(NAME_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &[&str]) -> Log {
        let lines: Vec<String> = lines
            .iter()
            .map(|line| format!("n1:77:78 [0] NCCL INFO {line}\n"))
            .collect();
        read(&lines.concat())
    }

    #[test]
    fn a_log_over_efa_tells_plugin_provider_and_ways() {
        let transport = log(&[
            "NCCL version 2.27.7+cuda13.0",
            "NET/OFI Initializing aws-ofi-nccl 1.17.1",
            "NET/OFI Using Libfabric version 2.3",
            "NET/OFI Selected provider is efa, fabric is efa-direct (found 32 nics)",
            "Using network Libfabric",
            "Channel 00/02 :    0   1",
            "Channel 00/0 : 0[0] -> 8[0] [send] via NET/Libfabric/0/GDRDMA",
            "Channel 01/0 : 0[0] -> 8[0] [send] via NET/Libfabric/1(4)/GDRDMA/Shared",
            "Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM",
            "Channel 01/0 : 0[0] -> 1[1] via P2P/CUMEM comm 0x5 nRanks 16",
            "Connected NVLS tree",
        ])
        .transport;
        assert_eq!(transport.network_word().as_deref(), Some("efa"));
        assert_eq!(
            transport.to_string(),
            "network Libfabric, provider efa, aws-ofi-nccl 1.17.1, libfabric 2.3, NVLS, 1 x NET/Libfabric/GDRDMA, \
             1 x NET/Libfabric/GDRDMA/Shared, 2 x P2P/CUMEM"
        );
        assert_eq!(transport.version.as_deref(), Some("2.27.7+cuda13.0"));
    }

    #[test]
    fn older_plugins_are_read_as_well() {
        let transport = log(&[
            "NET/OFI Using aws-ofi-nccl 1.5.0aws",
            "NET/OFI Selected Provider is efa (found 4 nics)",
            "Using network AWS Libfabric",
        ])
        .transport;
        assert_eq!(transport.network_word().as_deref(), Some("efa"));
        assert_eq!(transport.plugin.as_deref(), Some("1.5.0aws"));
    }

    #[test]
    fn libfabric_over_tcp_is_not_efa_and_without_a_provider_nothing_is_known() {
        let tcp = [
            "NET/OFI Selected provider is tcp, fabric is x",
            "Using network Libfabric",
        ];
        assert_eq!(
            log(&tcp).transport.network_word().as_deref(),
            Some("libfabric-tcp")
        );
        assert_eq!(log(&tcp[1..]).transport.network_word(), None);
        assert_eq!(log(&[]).transport.network_word(), None);
    }

    #[test]
    fn other_networks_have_their_words() {
        for (said, word) in [
            ("Socket", "socket"),
            ("IB", "ib"),
            ("IBext_v8", "ib"),
            ("GPUDirectTCPX_v7", "gpudirecttcpx_v7"),
        ] {
            let transport = log(&[&format!("Using network {said}")]).transport;
            assert_eq!(transport.network_word().as_deref(), Some(word));
        }
    }

    #[test]
    fn what_is_told_fits_into_one_line_of_a_rank_whatever_the_log_says() {
        let long = "\"\\\u{1f980}x".repeat(100);
        let ways = (0..20).map(|way| format!("Channel 0 : 0 -> 1 via W{way}{long}"));
        let said = [
            "NCCL version ",
            "Using network Libfabric",
            "NET/OFI Selected provider is ",
            "NET/OFI Using aws-ofi-nccl ",
            "NET/OFI Using Libfabric version ",
        ];
        let lines: Vec<String> = said
            .iter()
            .map(|said| format!("{said}{long}"))
            .chain(ways)
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let line = crate::rank::RankLine::Transport {
            rank: u32::MAX,
            transport: log(&lines).transport,
        };
        let bytes = serde_json::to_vec(&line).unwrap().len();
        assert!(bytes > 400 && bytes <= crate::rank::LINE_MAX, "{bytes}");
    }

    #[test]
    fn warnings_are_kept_and_garbage_is_passed_over() {
        let text = "[2026-11-24 10:00:00] n1:7:8 [0] misc/socket.cc:58 NCCL WARN socketStartConnect: failed\n\
                    \u{1b}[31mnoise\nNCCL INFO \nNCCL INFO Channel via \n";
        let log = read(text);
        assert_eq!(log.warnings, ["socketStartConnect: failed"]);
        assert_eq!(log.transport, Transport::default());
    }
}
