//! The node that dhc stands on: its name, its type, and what hardware shows itself there.

use std::collections::{BTreeMap, BTreeSet};

use dhc_checks::host::{Host, PciKind};
use dhc_thresholds::{Hardware, Identity, Table};

use crate::tables;

/// Names the instance type where nothing on the node does.
const TYPE_VARIABLE: &str = "DHC_INSTANCE_TYPE";

/// What the node is.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its host name, or what `DHC_NODE_NAME` says that it is called.
    pub name: String,
    /// What else it is called; the instance type as far as it was detected.
    pub identity: Identity,
    /// The instance type that firmware names, whatever the environment or the user says.
    pub firmware_type: Option<String>,
    is_ec2: bool,
    /// What hardware shows itself on the PCI bus and in sysfs, or may be there, since nobody can read whether it is. Matters
    /// only where the instance type is not known.
    pub there: BTreeSet<Hardware>,
    /// Why it is not known what is there, if it is not.
    pub unread: Vec<String>,
}

impl Machine {
    /// Looks at the node. What cannot be read stays unknown: nothing here decides about health.
    ///
    /// `environment` are the variables of dhc's own environment.
    pub fn look(host: &Host, environment: &BTreeMap<String, String>) -> Machine {
        let word = |path: &str| host.text(path).ok().filter(|text| !text.is_empty());
        let dmi = |name: &str| word(&format!("/sys/class/dmi/id/{name}"));
        let vendor = dmi("sys_vendor").unwrap_or_default();
        let firmware_type = dmi("product_name").filter(|name| names_a_type(name));
        let (instance_type, instance_type_from) =
            instance_type(&vendor, firmware_type.as_deref(), environment);
        let identity = Identity {
            // On EC2 the asset tag of the board is the instance id, so that nobody has to ask the metadata service.
            instance_id: dmi("board_asset_tag").filter(|tag| tag.starts_with("i-")),
            instance_type,
            instance_type_from,
            contradicting_type: None,
            region: region(environment),
            boot_id: word("/proc/sys/kernel/random/boot_id"),
            hardware_serial: dmi("product_serial").or_else(|| dmi("product_uuid")),
            kernel: word("/proc/sys/kernel/osrelease"),
        };
        // In a container the host name is the container's, and Kubernetes may know the node by yet another.
        let told = environment
            .get("DHC_NODE_NAME")
            .filter(|name| !name.is_empty());
        let name = told
            .cloned()
            .or_else(|| word("/proc/sys/kernel/hostname"))
            .unwrap_or_else(|| "localhost".to_owned());
        let (there, unread) = there(host);
        Machine {
            name: host_name(&name),
            identity,
            firmware_type,
            is_ec2: vendor == "Amazon EC2",
            there,
            unread,
        }
    }

    /// Sees whether firmware names another instance type than the user or the table by which the node is judged, keeps that in
    /// the identity and says so. Firmware is believed where dhc knows the type that it names, and on EC2, where it always names
    /// the type; a table where its type is a built-in one, since people give their own tables names of their own.
    pub fn contradiction(&mut self, table: &Table) -> Option<String> {
        let identity = &mut self.identity;
        let firmware = self.firmware_type.as_ref()?;
        if !self.is_ec2 && tables::built_in_table(firmware).is_err() {
            return None;
        }
        let is_known = !table.is_generic() && tables::built_in_table(&table.instance_type).is_ok();
        let by_table = is_known.then_some(("the threshold table", table.instance_type.as_str()));
        let from = identity.instance_type_from.as_deref().unwrap_or_default();
        let by_user = identity.instance_type.as_deref().map(|named| (from, named));
        let (who, named) = [by_user, by_table]
            .into_iter()
            .flatten()
            .find(|(_, named)| !tables::same_type(named, firmware))?;
        let said = format!(
            "{who} says that this is a `{named}`, but the DMI product name says `{firmware}`: what is due of the one is held \
             against the other, so faults that are found may be none"
        );
        identity.contradicting_type = Some(firmware.clone());
        Some(said)
    }
}

/// The instance type from evidence on the node alone, and which evidence it was.
fn instance_type(
    vendor: &str,
    firmware_type: Option<&str>,
    environment: &BTreeMap<String, String>,
) -> (Option<String>, Option<String>) {
    if let Some(named) = named_in(environment) {
        return (
            Some(named.to_owned()),
            Some(format!("environment variable {TYPE_VARIABLE}")),
        );
    }
    let from = firmware_type.map(|_| format!("DMI product name (vendor `{vendor}`)"));
    (firmware_type.map(str::to_owned), from)
}

/// The instance type that the user names in dhc's environment.
pub fn named_in(environment: &BTreeMap<String, String>) -> Option<&str> {
    let named = environment.get(TYPE_VARIABLE).map(String::as_str);
    named.filter(|name| !name.is_empty())
}

/// Azure and Google put the same product name on every virtual machine; it names no type.
fn names_a_type(product: &str) -> bool {
    ![
        "",
        "Virtual Machine",
        "Google Compute Engine",
        "None",
        "To Be Filled By O.E.M.",
    ]
    .contains(&product)
}

/// The region, from the variables that AWS's own tools go by.
fn region(environment: &BTreeMap<String, String>) -> Option<String> {
    let named = ["AWS_REGION", "AWS_DEFAULT_REGION"].map(|name| environment.get(name));
    let mut named = named.into_iter().flatten();
    named.find(|name| !name.is_empty()).cloned()
}

/// A host name that can stand anywhere: what a name may not hold is replaced.
fn host_name(name: &str) -> String {
    if dhc_checks::host::valid_host_name(name) {
        return name.to_owned();
    }
    let plain: String = name
        .chars()
        .take(253)
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' || c == '-' {
                c
            } else {
                '-'
            }
        })
        .collect();
    if dhc_checks::host::valid_host_name(&plain) {
        plain
    } else {
        format!("x{plain}").chars().take(253).collect()
    }
}

/// What hardware shows itself, and what cannot be read and so may be there.
fn there(host: &Host) -> (BTreeSet<Hardware>, Vec<String>) {
    const GPU: &[Hardware] = &[Hardware::NvidiaGpu, Hardware::NvlinkPerGpu];
    const NEURON: &[Hardware] = &[Hardware::NeuronDevice, Hardware::NeuronCore];
    const EFA: &[Hardware] = &[Hardware::Efa];
    // An InfiniBand or RoCE card is one that has an RDMA device: many cards on the bus carry no more than Ethernet.
    const ON_THE_BUS: [(PciKind, &[Hardware]); 3] = [
        (PciKind::Gpu, GPU),
        (PciKind::Efa, EFA),
        (PciKind::Neuron, NEURON),
    ];
    let mut there = BTreeSet::new();
    let mut unread = Vec::new();
    match host.pci_cards() {
        Ok(cards) => {
            for (kind, hardware) in ON_THE_BUS {
                let unknown = cards.unknown(kind).map(|(_, error)| error.to_string());
                let unknown: Vec<String> = unknown.collect();
                if cards.known(kind).next().is_some() || !unknown.is_empty() {
                    there.extend(hardware);
                }
                unread.extend(unknown);
            }
        }
        Err(error) if error.is_absent() => {}
        Err(error) => {
            there.extend(ON_THE_BUS.into_iter().flat_map(|(_, hardware)| hardware));
            unread.push(error.to_string());
        }
    }
    let cards = host.rdma_devices();
    let errors = match &cards {
        Ok(cards) => cards.unknown.iter().collect(),
        Err(error) => vec![error],
    };
    if !errors.is_empty() {
        there.extend([Hardware::Efa, Hardware::RdmaNic]);
        unread.extend(errors.into_iter().map(ToString::to_string));
    }
    for card in cards.unwrap_or_default().known {
        there.insert(if card.is_efa {
            Hardware::Efa
        } else {
            Hardware::RdmaNic
        });
    }
    match host.list("/sys/devices/virtual/neuron_device") {
        Ok(names) if names.iter().any(|name| name.starts_with("neuron")) => there.extend(NEURON),
        Ok(_) => {}
        Err(error) if error.is_absent() => {}
        Err(error) => {
            there.extend(NEURON);
            unread.push(error.to_string());
        }
    }
    (there, unread)
}
