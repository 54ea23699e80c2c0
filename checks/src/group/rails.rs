//! Rails: the network cards that a launch may use, in the words of each communication library.
//!
//! A rail is the same card on every node. All variables are set at once, since each library reads its own: Open MPI's TCP
//! and openib transports (`btl_tcp_if_include`, `btl_openib_if_include`), UCX (`UCX_NET_DEVICES`), libfabric's tcp and efa
//! providers (`FI_TCP_IFACE`, which takes one interface; `FI_EFA_IFACE`, since libfabric 2.0) and NCCL
//! (`NCCL_SOCKET_IFNAME`, `NCCL_IB_HCA`; `=` asks for the exact name). A library that knows none of them uses whatever it
//! likes, and then no rail differs from another.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name of an interface (`IFNAMSIZ` of Linux, without the end) and of an RDMA device.
const INTERFACE_MAX: usize = 15;
const DEVICE_MAX: usize = 63;

/// Beginnings of the names that drivers and rdma-core give to RDMA devices; what begins otherwise is an interface.
const OF_RDMA: &[&str] = &[
    "mlx4_", "mlx5_", "rdma", "roce", "efa_", "bnxt_re", "irdma", "hfi1_", "erdma_", "mana_",
    "qedr", "hns_",
];

/// What a name may be put before, to say that it is an RDMA device whatever it looks like.
const RDMA: &str = "rdma:";

/// A network card by the name that it has on every node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Card {
    /// A network interface, such as `eth1`.
    Interface(String),
    /// An RDMA device, such as `mlx5_1` or `rdmap16s27`.
    Rdma(String),
}

impl Card {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Card::Interface(name) | Card::Rdma(name) => name,
        }
    }
}

/// Why a name is no card.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` cannot be a network card; write the names of interfaces (`eth0,eth1`) or of RDMA devices (`mlx5_0,mlx5_1`), \
     with `rdma:` before an RDMA device whose name does not tell"
)]
pub struct NoCard(String);

impl FromStr for Card {
    type Err = NoCard;

    fn from_str(text: &str) -> Result<Card, NoCard> {
        let told = text.strip_prefix(RDMA);
        let name = told.unwrap_or(text);
        let is_rdma = told.is_some() || OF_RDMA.iter().any(|start| name.starts_with(start));
        let longest = if is_rdma { DEVICE_MAX } else { INTERFACE_MAX };
        // Commas, colons and signs mean something to the libraries.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || name.len() > longest || !name.chars().all(plain) {
            return Err(NoCard(text.chars().take(100).collect()));
        }
        Ok(if is_rdma {
            Card::Rdma(name.to_owned())
        } else {
            Card::Interface(name.to_owned())
        })
    }
}

/// The variables that confine every library to these cards; none for no cards, which leaves the choice to the library.
pub(super) fn environment(cards: &[Card]) -> Vec<(&'static str, String)> {
    let names = |rdma: bool, after: &str| {
        let of_kind = cards
            .iter()
            .filter(|card| matches!(card, Card::Rdma(_)) == rdma);
        let names: Vec<String> = of_kind
            .map(|card| format!("{}{after}", card.name()))
            .collect();
        names.join(",")
    };
    let (interfaces, devices) = (names(false, ""), names(true, ""));
    let mut variables = Vec::new();
    if !interfaces.is_empty() {
        variables.push(("OMPI_MCA_btl_tcp_if_include", interfaces.clone()));
        variables.push(("NCCL_SOCKET_IFNAME", format!("={interfaces}")));
        variables.push(("UCX_NET_DEVICES", interfaces.clone()));
        if cards.len() == 1 {
            variables.push(("FI_TCP_IFACE", interfaces));
        }
    }
    if !devices.is_empty() {
        variables.push(("OMPI_MCA_btl_openib_if_include", devices.clone()));
        variables.push(("NCCL_IB_HCA", format!("={devices}")));
        variables.push(("FI_EFA_IFACE", devices));
        let ports = names(true, ":1");
        variables.retain(|(name, _)| *name != "UCX_NET_DEVICES");
        variables.push(("UCX_NET_DEVICES", ports));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_interfaces_from_rdma_devices() {
        let card = |name: &str| name.parse::<Card>().unwrap();
        assert_eq!(card("eth1"), Card::Interface("eth1".to_owned()));
        assert_eq!(card("ibp24s0"), Card::Interface("ibp24s0".to_owned()));
        assert_eq!(card("rdma:ibp24s0"), Card::Rdma("ibp24s0".to_owned()));
        assert_eq!(card("mlx5_0"), Card::Rdma("mlx5_0".to_owned()));
        assert_eq!(card("rdmap16s27"), Card::Rdma("rdmap16s27".to_owned()));
    }

    #[test]
    fn what_a_library_would_read_as_more_than_a_name_is_refused() {
        for name in [
            "",
            "^eth0",
            "eth0,eth1",
            "mlx5_0:1",
            "=eth0",
            "-x",
            "a b",
            "an-interface-name-too-long",
        ] {
            assert!(name.parse::<Card>().is_err(), "{name}");
        }
    }

    #[test]
    fn every_library_is_confined_in_its_own_words() {
        let cards = |names: &[&str]| -> Vec<Card> {
            names.iter().map(|name| name.parse().unwrap()).collect()
        };
        let variables = environment(&cards(&["eth1"]));
        assert!(variables.contains(&("OMPI_MCA_btl_tcp_if_include", "eth1".to_owned())));
        assert!(variables.contains(&("NCCL_SOCKET_IFNAME", "=eth1".to_owned())));
        let variables = environment(&cards(&["mlx5_0", "mlx5_1"]));
        assert!(variables.contains(&("NCCL_IB_HCA", "=mlx5_0,mlx5_1".to_owned())));
        assert!(variables.contains(&("UCX_NET_DEVICES", "mlx5_0:1,mlx5_1:1".to_owned())));
        assert_eq!(environment(&[]), []);
    }
}
