//! The systems that move the guest.

mod certificates;
pub(crate) mod command;
mod peer;
mod pollux;
pub(crate) mod qemu;

use anyhow::Result;
use clap::ValueEnum;
use tokio::runtime::Handle;

use crate::{case::Case, stage::Stage};

/// Longest time a move may stand still, for every system, in milliseconds. Pollux's default.
const BUDGET_MS: u32 = 300;
/// What the guest's machine is, for every system. Pollux's defaults.
pub(crate) const MACHINE: &str = "pc-q35-7.2";
pub(crate) const CPU: &str = "qemu64";
pub(crate) const VCPUS: &str = "1";

/// A system that moves guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum System {
    /// Pollux.
    Pollux,
    /// QEMU's own pre-copy over plain TCP.
    #[value(name = "qemu-precopy-tcp")]
    PrecopyTcp,
    /// QEMU's own pre-copy over several connections, encrypted.
    #[value(name = "qemu-multifd-tls")]
    MultifdTls,
}

impl System {
    /// In the order in which they take turns.
    pub(crate) const ALL: [Self; 3] = [Self::Pollux, Self::PrecopyTcp, Self::MultifdTls];
    pub(crate) const PEERS: [Self; 2] = [Self::PrecopyTcp, Self::MultifdTls];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pollux => "pollux",
            Self::PrecopyTcp => "qemu-precopy-tcp",
            Self::MultifdTls => "qemu-multifd-tls",
        }
    }

    /// Starts the guest of a case on the source. It may not have booted yet.
    pub(crate) fn start<'a>(self, stage: &'a Stage, runtime: &'a Handle, case: Case) -> Result<Box<dyn Mover + 'a>> {
        Ok(match self {
            Self::Pollux => Box::new(pollux::Vm::create(stage, case)?),
            Self::PrecopyTcp => Box::new(peer::Pair::start(stage, runtime, case, peer::Way::Tcp)?),
            Self::MultifdTls => Box::new(peer::Pair::start(stage, runtime, case, peer::Way::MultifdTls)?),
        })
    }
}

/// A guest that one of the systems runs.
pub(crate) trait Mover {
    /// Moves it from source to target: from the wish to the answer that it is done, with whatever has to be started at the
    /// target. Returns the pause as the hypervisor reports it, in milliseconds.
    fn migrate(&mut self) -> Result<f64>;

    /// Ends the guest. When this returns, nothing of it runs.
    fn end(self: Box<Self>) -> Result<()>;
}
