//! What this node does about VMs: one [actor](self) per VM that concerns it, and what they share.
//!
//! [`Vms`] is started by the daemon once its incarnation is committed and a linearizable read has shown the state to be
//! current (DESIGN, rules 1 and 3). It watches the applied state, keeps an actor for every VM that concerns this node, and
//! hands the streams of moves to them. When it is shut down, every machine of this node ends.

mod actor;
mod clock;
mod console;
mod fitness;
pub mod hold;
pub mod host;
mod incoming;
mod marks;
mod naming;
mod outgoing;
mod pages;
pub mod qemu;
mod registry;
mod sample;
mod stopwatch;
pub mod turns;
mod worker;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pollux_link::Endpoint;
use pollux_raft::Consensus;
use pollux_state::{
    UnixMs,
    id::{OpId, Owner},
};
use pollux_vm::{Limits, Millis};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::budget::Budget;

pub use actor::Status;
pub use clock::Clock;
pub use console::{Attached, CONSOLES_MAX, Changes, ConsolePort};
pub(crate) use fitness::{FIRMWARE, MTU};
pub use marks::Marks;
pub use registry::Vms;
pub use sample::drop_all as take_probe;

/// What all actors of a node share.
pub struct Shared {
    /// This life of this node's daemon.
    pub me: Owner,
    /// Makes machines.
    pub host: Arc<dyn host::Host>,
    /// The log.
    pub consensus: Consensus,
    /// The way to other nodes.
    pub endpoint: Endpoint,
    /// What all bulk work of this node together may send.
    pub bulk: Arc<Budget>,
    /// Which standbys have certainly not acted.
    pub marks: Marks,
    /// How long the cores wait for others.
    pub limits: Limits,
    /// Every task of every actor.
    pub tasks: TaskTracker,
    /// The cores' clock.
    pub clock: Clock,
    /// Moves whenever something the API shows has changed.
    pub changes: watch::Sender<u64>,
    /// Where new ids come from.
    pub minter: Minter,
}

impl Shared {
    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Does work beside the actor, under the span of whoever asks for it.
    fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) {
        self.tasks.spawn(work.in_current_span());
    }

    fn mint(&self) -> OpId {
        self.minter.mint()
    }
}

/// Makes ids. Seeded by the simulator, by the operating system otherwise.
pub struct Minter(Mutex<StdRng>);

impl Minter {
    /// Ids that nobody can foretell.
    #[must_use]
    pub fn random() -> Self {
        Self(Mutex::new(StdRng::from_entropy()))
    }

    /// The same ids for the same seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    /// A new id.
    pub fn mint(&self) -> OpId {
        let mut bytes = [0; 16];
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut bytes);
        OpId(bytes)
    }

    /// Bytes for a secret or an address.
    pub fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Now, by this host's wall clock, for people.
pub(crate) fn wall_ms() -> UnixMs {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}
