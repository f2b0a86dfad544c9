//! A VM as it is, and what can be asked of one that exists.

use serde::{Deserialize, Serialize};

use crate::DiskView;

/// What the user wants of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// It should run.
    Running,
    /// It should not.
    Stopped,
}

/// Who has the right to run a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nobody.
    Stopped,
    /// One node; its QEMU may still be starting.
    Running,
    /// The source, while the target gathers a copy.
    Moving,
    /// The target, which has not said yet that the guest runs.
    Arriving,
}

/// What the owning node is doing with the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// There is no QEMU for it.
    None,
    /// QEMU is being started.
    Starting,
    /// The guest runs.
    Running,
    /// The guest runs, but its daemon slept or its start took long: nothing leaves until the log was asked again.
    Fenced,
    /// The guest stands still: its right to run is being asked for.
    Paused,
    /// The guest runs while its memory is copied to another node.
    Sending,
    /// The guest stands still for the switchover.
    Saving,
    /// A copy is being gathered or loaded here.
    Receiving,
    /// The guest was asked to switch itself off, or QEMU is being ended.
    Stopping,
    /// The owning node could not be asked.
    #[serde(other)]
    Unknown,
}

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicView {
    /// Its address, stable for the life of the VM.
    pub mac: String,
    /// The bridge it is attached to on every node.
    pub bridge: String,
    /// Largest frame, without its header, in bytes.
    pub mtu: u32,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmView {
    /// Its number, never reused.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// What the user wants of it.
    pub desired: Desired,
    /// Who has the right to run it.
    pub phase: Phase,
    /// The node that has.
    pub node: Option<String>,
    /// The other end of a move under way: the target while moving, the source while arriving.
    pub peer: Option<String>,
    /// Where it is started.
    pub home: String,
    /// The fencing number.
    pub generation: u64,
    /// What the owning node is doing with it.
    pub runtime: Runtime,
    /// Why the guest stands still although it may run: a request of a disk failed, is kept, and is issued again by itself.
    #[serde(default)]
    pub trouble: Option<String>,
    /// What its UEFI firmware has written and is in the memory of its node only: why. The guest runs and does not know; what was written is
    /// saved by itself once that is mended, and moves along, but a VM that is started anew before does not have it.
    #[serde(default)]
    pub unsaved: Option<String>,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Processors.
    pub vcpus: u32,
    /// Network cards.
    pub nics: Vec<NicView>,
    /// Its volumes, in the order in which the guest sees them.
    #[serde(default)]
    pub disks: Vec<DiskView>,
    /// The volume with the variables of its UEFI firmware; `null`: it boots by a BIOS, or from a kernel.
    #[serde(default)]
    pub firmware: Option<String>,
    /// Kernel image, a path on every node; empty: the firmware boots from the first of `disks`.
    pub kernel: String,
    /// Initial RAM disk; empty: none.
    pub initrd: String,
    /// Kernel command line.
    pub append: String,
    /// QEMU machine type.
    pub machine: String,
    /// QEMU CPU model.
    pub cpu: String,
    /// Started again by itself when its node's daemon ended.
    pub autostart: bool,
    /// When `phase` last changed.
    pub since: u64,
    /// When it was created.
    pub created: u64,
    /// Why it does not run, while stopped.
    pub stop_cause: Option<String>,
    /// Attempts to start it that failed in a row.
    pub failed_starts: u32,
    /// The operation under way.
    pub operation: Option<String>,
}

/// What a VM wrote to its serial console.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmLog {
    /// Where in all that was ever written `bytes` ends.
    pub next: u64,
    /// What was written, as the guest wrote it.
    pub bytes: Vec<u8>,
}

/// Start a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartVm {
    /// On this node from now on; without it where it was last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// Stop a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// Pull the plug instead of pressing the power button.
    #[serde(default)]
    pub force: bool,
}

/// Give a VM back to the source of a move whose target is dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeBack {
    /// Who says that the target is dead; recorded.
    pub operator: String,
    /// The generation the operator saw; any other means that something happened since, and the request is refused.
    pub generation: u64,
}

/// Release a VM whose owner's host is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseVm {
    /// Who says that the host is off; recorded.
    pub operator: String,
    /// The generation the operator saw; any other means that something happened since, and the request is refused.
    pub generation: u64,
}
