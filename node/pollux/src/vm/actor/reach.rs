//! How an actor is reached, and what it shows.

use std::sync::Arc;

use pollux_link::{Peer, RecvStream, SendStream};
use pollux_state::{UnixMs, id::Generation};
use pollux_vm::{
    Event,
    event::Progress,
    message::{Greeting, StreamGreeting},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::super::host::{Guest, Log};

/// What reaches an actor.
pub(in crate::vm) enum Mail {
    /// For the core.
    Event(Event),
    /// For the core, from a session of a move: dropped when that session is not the current one any more.
    Session { number: u64, event: Event },
    /// For the core, of what was done to one machine: dropped when that is not the current one any more.
    Machine { number: u64, event: Event },
    /// The worker tells the guest to stand still at this moment.
    Pausing(Instant),
    /// The worker made this machine.
    Guest(Arc<dyn Guest>),
    /// The worker ended it.
    GuestGone,
    /// The source of a move wants in.
    Control { peer: Peer, greeting: Greeting, send: SendStream, recv: RecvStream },
    /// One of its page streams.
    Pages { peer: Peer, greeting: StreamGreeting, recv: RecvStream },
}

/// What the API shows of an actor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// A word, such as `running` or `receiving`.
    pub doing: &'static str,
    /// Whether its frames may leave this node now, and of which generation.
    pub gate: Option<Generation>,
    /// Where its move stands, if it is the source of one, and since when by this host's clock.
    pub progress: Option<(Progress, UnixMs)>,
}

/// The channels by which the rest of the daemon reaches an actor.
#[derive(Clone)]
pub(in crate::vm) struct Handle {
    pub(in crate::vm) post: mpsc::Sender<Mail>,
    pub(in crate::vm) status: watch::Receiver<Status>,
    pub(in crate::vm) guest: watch::Receiver<Option<Arc<dyn Guest>>>,
    pub(in crate::vm) log: watch::Receiver<Log>,
    /// How many consoles are attached.
    pub(in crate::vm) attached: Arc<watch::Sender<u64>>,
}

impl Handle {
    /// What the guest wrote to its console, also if it does not run now.
    pub(in crate::vm) fn log(&self) -> Log {
        self.guest.borrow().as_ref().map_or_else(|| self.log.borrow().clone(), |guest| guest.log())
    }
}
