//! A VM to be.

use serde::{Deserialize, Serialize};

/// Guest memory unless the user says otherwise, in MiB.
pub const MEMORY_MIB_DEFAULT: u64 = 256;
/// Processors unless the user says otherwise.
pub const VCPUS_DEFAULT: u32 = 1;
/// The machine type unless the user says otherwise: the oldest that every supported QEMU has.
pub const MACHINE_DEFAULT: &str = "pc-q35-7.2";
/// The CPU model unless the user says otherwise: the most every supported host and TCG offer.
pub const CPU_DEFAULT: &str = "qemu64";

/// A network card to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateNic {
    /// The bridge it is attached to on every node.
    pub bridge: String,
    /// Its address; without one the cluster makes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Largest frame, without its header, in bytes; 1,500 unless it is said. Every node's bridge has to carry it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// What boots a VM that has no kernel of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// QEMU's BIOS.
    #[default]
    Bios,
    /// UEFI, whose variables are kept on a volume.
    Uefi,
}

/// A VM to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Unique: 1 to 40 of `a-z 0-9 -`, starting with a letter.
    pub name: String,
    /// Guest memory in MiB.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u64,
    /// Processors.
    #[serde(default = "default_vcpus")]
    pub vcpus: u32,
    /// Kernel image: an absolute path, the same on every node; empty: the firmware boots from the first of `volumes`.
    #[serde(default)]
    pub kernel: String,
    /// Initial RAM disk: an absolute path; empty: none.
    #[serde(default)]
    pub initrd: String,
    /// Kernel command line.
    #[serde(default)]
    pub append: String,
    /// Network cards.
    #[serde(default)]
    pub nics: Vec<CreateNic>,
    /// Volumes, in the order in which the guest sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// What boots the first of `volumes`.
    #[serde(default, skip_serializing_if = "is_bios")]
    pub firmware: Firmware,
    /// The volume that keeps the variables of UEFI firmware; without one it is made, beside the first of `volumes` and called after the
    /// VM: `NAME-firmware`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_vars: Option<String>,
    /// QEMU machine type with its version.
    #[serde(default = "default_machine")]
    pub machine: String,
    /// QEMU CPU model.
    #[serde(default = "default_cpu")]
    pub cpu: String,
    /// Start it again by itself when its node's daemon ended.
    #[serde(default = "yes")]
    pub autostart: bool,
    /// Start it now.
    #[serde(default = "yes")]
    pub start: bool,
    /// Where; without it the node that is asked decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

fn default_memory_mib() -> u64 {
    MEMORY_MIB_DEFAULT
}

fn default_vcpus() -> u32 {
    VCPUS_DEFAULT
}

fn default_machine() -> String {
    MACHINE_DEFAULT.to_owned()
}

fn default_cpu() -> String {
    CPU_DEFAULT.to_owned()
}

fn is_bios(firmware: &Firmware) -> bool {
    *firmware == Firmware::Bios
}

fn yes() -> bool {
    true
}
