//! The node that dhc stands on: its name, its type, and what hardware shows itself there.

use std::collections::{BTreeMap, BTreeSet};

use dhc_checks::host::{Host, ReadError};
use dhc_thresholds::{Hardware, Identity};

use crate::tables;

const NVIDIA: &str = "0x10de";

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
    /// What hardware shows itself on the PCI bus and in sysfs. Matters only where the instance type is not known.
    pub there: BTreeSet<Hardware>,
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
        Machine {
            name: host_name(&name),
            identity,
            firmware_type,
            is_ec2: vendor == "Amazon EC2",
            there: there(host),
        }
    }

    /// Sees whether firmware names another instance type than the user did, keeps that in the identity and says so. Firmware is
    /// believed where dhc knows the type that it names, and on EC2, where it always names the type.
    pub fn contradiction(&mut self) -> Option<String> {
        let identity = &mut self.identity;
        let (named, firmware) = (
            identity.instance_type.as_ref()?,
            self.firmware_type.as_ref()?,
        );
        let is_believed = self.is_ec2 || tables::built_in_table(firmware).is_ok();
        if !is_believed || tables::same_type(named, firmware) {
            return None;
        }
        identity.contradicting_type = Some(firmware.clone());
        Some(format!(
            "{} says that this is a `{named}`, but the DMI product name says `{firmware}`: what is due of the one is held \
             against the other, so faults that are found may be none",
            identity.instance_type_from.as_deref().unwrap_or_default()
        ))
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

fn there(host: &Host) -> BTreeSet<Hardware> {
    let mut there = BTreeSet::new();
    let functions = host.list("/sys/bus/pci/devices").unwrap_or_default();
    for bdf in functions {
        let word = |file: &str| host.text(format!("/sys/bus/pci/devices/{bdf}/{file}"));
        let (vendor, class) = (word("vendor"), word("class"));
        // Where one does not answer others may not either, and each would cost its whole time limit. The `host` check names
        // them.
        if let (Err(ReadError::Blocked { .. }), _) | (_, Err(ReadError::Blocked { .. })) =
            (&vendor, &class)
        {
            break;
        }
        let (vendor, class) = (vendor.unwrap_or_default(), class.unwrap_or_default());
        // PCI class 03xxxx is a display controller: every NVIDIA GPU, with or without a display.
        if vendor == NVIDIA && class.starts_with("0x03") {
            there.insert(Hardware::NvidiaGpu);
            there.insert(Hardware::NvlinkPerGpu);
        }
    }
    for card in host.rdma_devices().unwrap_or_default().known {
        there.insert(if card.is_efa {
            Hardware::Efa
        } else {
            Hardware::RdmaNic
        });
    }
    let neuron = host
        .list("/sys/devices/virtual/neuron_device")
        .unwrap_or_default();
    if neuron.iter().any(|name| name.starts_with("neuron")) {
        there.insert(Hardware::NeuronDevice);
        there.insert(Hardware::NeuronCore);
    }
    there
}
