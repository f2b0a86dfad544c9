//! Stock QEMU as the CPU and the devices of one VM. Nothing outside this package knows that it is QEMU.
//!
//! The [`Spawner`] is one permanent thread per daemon that starts every QEMU: as an unprivileged, sandboxed child that
//! dies with the daemon, its memory, sockets and files handed over as descriptors. A [`Child`] is such a process, from
//! start to exit. A [`Machine`] is a child with its control socket ([`Qmp`]) and its serial port ([`Console`]): what the
//! VM's actor drives. Commands go in; [`MachineEvent`]s, device state and console bytes come out. It ends when QEMU
//! exits or the machine is dropped, which kills it.
//!
//! Every machine starts paused: a fresh one runs its first instruction, and an incoming one its next, when
//! [`Machine::cont`] is called, and never before.

mod boot;
mod capabilities;
pub mod cgroup;
mod child;
mod console;
mod execute;
mod facts;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg_attr(not(target_arch = "x86_64"), path = "inject_other.rs")]
mod inject;
mod launch;
mod machine;
mod qmp;
mod spawner;
mod state;
mod sys;
mod throttle;
mod uefi;

pub use boot::Boot;
pub use capabilities::{AskError, Lack, what_is_missing};
pub use cgroup::{Group, GroupError, Groups};
pub use child::{Child, Exit, ExitStatus, STDERR_TAIL_BYTES, Tracking};
pub use console::{CONSOLE_RING_BYTES, Console};
pub use facts::{FactError, QemuVersion, kvm_usable, qemu_version, tsc};
pub use inject::TrackingRefused;
pub use launch::{Accelerator, DISKS_MAX, DiskFd, FirmwareFd, Identity, Launch, NICS_MAX, NicFd, Role, TrackingWish};
pub use machine::{Machine, MachineEvent, SlowDownError, StartError, Status};
pub use qmp::{Event, Pending, Qmp, QmpError};
pub use spawner::{SpawnError, Spawner};
pub use state::{LoadError, STATE_BYTES_MAX, SaveError};
pub use throttle::{ThrottleError, sweep as sweep_throttles};
pub use uefi::{Uefi, UefiError, are_variables};
