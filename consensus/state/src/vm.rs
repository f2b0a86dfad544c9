//! VMs, and who may run each.

use alloc::{string::String, vec::Vec};
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    UnixMs,
    id::{Generation, MacAddr, NodeId, OpId, Owner, VmId, VolumeId},
    limits::NIC_MTU_DEFAULT,
};

/// What the user asked for. Fixed for the life of the VM in this version, but for its disks, which change while it is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Unique in the cluster: 1 to 40 of `a-z 0-9 -`, starting with a letter.
    pub name: String,
    /// Guest RAM in MiB, 32 to 1,048,576.
    pub memory_mib: u64,
    /// 1 to 64.
    pub vcpus: u32,
    /// Absolute path of the kernel image; the same on every node that is to run the VM. Empty: the firmware boots from the first
    /// of `disks`.
    pub kernel: String,
    /// Absolute path of the initial RAM disk; empty: none.
    pub initrd: String,
    /// Kernel command line.
    pub append: String,
    /// At most 8.
    pub nics: Vec<Nic>,
    /// QEMU machine type with its version, such as `pc-q35-7.2`.
    pub machine: String,
    /// QEMU CPU model from the cluster's baseline.
    pub cpu: String,
    /// Start it again by itself when its node's daemon ended while it ran.
    pub autostart: bool,
    /// Its volumes, at most 8, in the order in which the guest sees them; among them the one with its firmware's variables, which the
    /// guest does not see as a disk.
    pub disks: Vec<Disk>,
}

/// A volume as a VM has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Which. Nobody else's.
    pub volume: VolumeId,
    /// What for.
    pub role: DiskRole,
}

/// What a VM has a volume for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskRole {
    /// A disk of the guest's.
    Data,
    /// The variables of its UEFI firmware. A VM that has none boots by a BIOS, or from a kernel.
    Firmware,
}

impl Disk {
    /// A volume as a disk of the guest's.
    #[must_use]
    pub const fn data(volume: VolumeId) -> Self {
        Self { volume, role: DiskRole::Data }
    }

    /// A volume for the firmware's variables.
    #[must_use]
    pub const fn firmware(volume: VolumeId) -> Self {
        Self { volume, role: DiskRole::Firmware }
    }
}

impl VmSpec {
    /// The disks that the guest sees, in its order. Without a kernel the firmware boots from the first.
    pub fn data_disks(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().filter(|disk| disk.role == DiskRole::Data)
    }

    /// The volume with the variables of its UEFI firmware, if that is what it boots by.
    #[must_use]
    pub fn firmware(&self) -> Option<VolumeId> {
        self.disks.iter().find(|disk| disk.role == DiskRole::Firmware).map(|disk| disk.volume)
    }
}

/// One virtio network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Stable for the life of the VM.
    pub mac: MacAddr,
    /// Name of the bridge it is attached to, on every node.
    pub bridge: String,
    /// Largest frame, without its header, in bytes: 1,280 to 9,000.
    pub mtu: u32,
}

impl Nic {
    /// The MTU that the guest is told by its card. Ethernet's own goes without saying: a device that tells it is another one to a
    /// guest, and a bridge that carries less has always been the guest's own affair.
    #[must_use]
    pub fn told_mtu(&self) -> Option<u32> {
        (self.mtu != NIC_MTU_DEFAULT).then_some(self.mtu)
    }
}

/// What the user wants of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// It should run, on its `home`.
    Running,
    /// It should not run. `force`: do not ask the guest first.
    Stopped {
        /// Pull the plug instead of pressing the power button.
        force: bool,
    },
}

/// Who holds the right to run the VM. See the picture in the crate's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nobody.
    Stopped {
        /// Why it does not run.
        cause: StopCause,
    },
    /// `owner`, alone. Its QEMU may still be starting.
    Running {
        /// Who.
        owner: Owner,
    },
    /// `from`, while `to` gathers a copy.
    Moving {
        /// The operation.
        op: OpId,
        /// The source.
        from: Owner,
        /// The target.
        to: Owner,
    },
    /// `to`, which has every byte but has not said yet that the guest runs. `from` keeps its copy, paused and whole.
    Arriving {
        /// The operation.
        op: OpId,
        /// The source.
        from: Owner,
        /// The target.
        to: Owner,
    },
}

impl Phase {
    /// Who may let effects of the VM out, if anybody.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        match self {
            Self::Stopped { .. } => None,
            Self::Running { owner } => Some(*owner),
            Self::Moving { from, .. } => Some(*from),
            Self::Arriving { to, .. } => Some(*to),
        }
    }

    /// The move under way, if there is one: operation, source, target.
    #[must_use]
    pub fn moving(&self) -> Option<(OpId, Owner, Owner)> {
        match self {
            Self::Moving { op, from, to } | Self::Arriving { op, from, to } => Some((*op, *from, *to)),
            Self::Stopped { .. } | Self::Running { .. } => None,
        }
    }
}

/// Why a VM does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// Created and never started.
    New,
    /// The guest switched itself off.
    GuestPowerOff,
    /// A user asked for it.
    Operator,
    /// Its node's daemon ended (or the whole host), and its QEMU with it.
    DaemonEnded,
    /// QEMU ended although nobody asked: what was seen.
    QemuEnded(String),
    /// QEMU could not be started: what was seen.
    StartFailed(String),
    /// An operator declared its host lost: who, and which.
    HostLost(String),
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped { cause } => write!(f, "stopped: {cause}"),
            Self::Running { owner } => write!(f, "running in {owner}"),
            Self::Moving { from, to, .. } => write!(f, "moving from {from} to {to}"),
            Self::Arriving { from, to, .. } => write!(f, "arriving in {to} from {from}"),
        }
    }
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("it never ran"),
            Self::GuestPowerOff => f.write_str("the guest switched itself off"),
            Self::Operator => f.write_str("a user asked for it"),
            Self::DaemonEnded => f.write_str("its node's daemon ended"),
            Self::QemuEnded(seen) => write!(f, "QEMU ended unasked: {seen}"),
            Self::StartFailed(seen) => write!(f, "it could not be started: {seen}"),
            Self::HostLost(who) => write!(f, "its host was lost: {who}"),
        }
    }
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Minted at creation, never reused.
    pub id: VmId,
    /// What the user asked for.
    pub spec: VmSpec,
    /// What the user wants of it now.
    pub desired: Desired,
    /// Where it is to be started; follows completed moves.
    pub home: NodeId,
    /// The fencing number.
    pub generation: Generation,
    /// Who may run it.
    pub phase: Phase,
    /// Starts that came to nothing in a row, which decides how long its node waits before the next. One more for
    /// [`StopCause::StartFailed`], and for [`StopCause::QemuEnded`] within [`crate::limits::STEADY_RUN_MS`]; begun anew by a
    /// user's start, a steady run, an orderly stop and a completed move. A claim alone proves nothing and keeps it.
    pub failed_starts: u32,
    /// When `phase` last changed.
    pub since: UnixMs,
    /// When it was created.
    pub created: UnixMs,
}

impl Vm {
    /// The move `op` has switched over: the target owns the VM, and has not said yet that it runs.
    #[must_use]
    pub fn has_switched_over(&self, op: OpId) -> bool {
        matches!(self.phase, Phase::Arriving { op: arriving, .. } if arriving == op)
    }

    /// Hands the right to run on. The only place that writes `phase` and `generation`: the generation rises by one exactly
    /// when [`Phase::owner`] changes, and never otherwise. Called where its volumes' generations rise with it.
    pub(crate) fn enter(&mut self, phase: Phase, at: UnixMs) -> Generation {
        if self.phase.owner() != phase.owner() {
            self.generation = self.generation.next();
        }
        self.phase = phase;
        self.since = at;
        self.generation
    }
}
