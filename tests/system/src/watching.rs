//! Holding a guest to what it acknowledged, and the nodes to one emitter at a time, while a story goes on.

use std::time::Duration;

use pollux_probe::{
    instrument::Instrument,
    ledger::{Ledger, LedgerOptions, LedgerReport},
    owners::{OwnersReport, Sampler, Watched},
};

use crate::{
    census::TAP_PREFIX,
    client::Client,
    waiting::{SETTLE, until},
};

/// Connections at the same time.
const CONNECTIONS: usize = 3;
/// Requests a second on each.
const RATE: u32 = 40;
/// Longest wait for an answer before a connection counts as lost. Longer than a quorum may be away in a story.
pub const PATIENCE: Duration = Duration::from_secs(45);
/// Time between two readings of the nodes' counters.
const SAMPLE_EVERY: Duration = Duration::from_millis(2);

/// The instruments, running.
#[derive(Debug)]
pub struct Watch {
    ledger: Ledger,
    owners: Sampler,
}

/// What they saw.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The client's ledger.
    pub ledger: LedgerReport,
    /// Who emitted.
    pub owners: OwnersReport,
}

impl Watch {
    pub(crate) fn start(client: &Client, nodes: &[Watched], patience: Duration) -> Self {
        let options =
            LedgerOptions { target: client.address(), connections: CONNECTIONS, requests_per_second: RATE, patience };
        let ledger = client.within(|| Ok(Ledger::start(options))).expect("clients can be started");
        let owners = Sampler::start(nodes, TAP_PREFIX, SAMPLE_EVERY).expect("the nodes' counters can be read");
        Self { ledger, owners }
    }

    /// Waits until the clients have acknowledgements, so that there is something to lose.
    ///
    /// # Panics
    /// If the guest acknowledges nothing for long.
    #[track_caller]
    pub fn is_under_way(&self) {
        let mut acked = 0;
        until("the clients' first acknowledgements", SETTLE, || {
            acked += self.ledger.mark("first").acked;
            if acked >= CONNECTIONS as u64 { Ok(()) } else { Err(format!("{acked}")) }
        });
    }

    /// Ends a window, and tells what was seen in it.
    pub fn mark(&self, name: &str) -> Seen {
        Seen { ledger: self.ledger.mark(name), owners: self.owners.mark(name) }
    }

    /// Reads everything back that was acknowledged, and tells what was seen in all.
    #[must_use]
    pub fn finish(self) -> Seen {
        Seen { ledger: self.ledger.finish(), owners: self.owners.finish() }
    }
}

impl Seen {
    /// The guest never ended: everything acknowledged is there, on the connections that were there from the start.
    ///
    /// # Panics
    /// If it is not so.
    #[track_caller]
    pub fn nothing_lost(&self, boot: &str) {
        let ledger = &self.ledger;
        assert!(ledger.acked > 0, "nothing was acknowledged, so that nothing could be lost: {ledger:?}");
        assert_eq!(ledger.lost_acks, 0, "acknowledged requests are forgotten: {ledger:?}");
        assert_eq!(ledger.regressions, 0, "the guest's memory went back: {ledger:?}");
        assert_eq!(ledger.unverified, 0, "acknowledged values could not be read back: {ledger:?}");
        assert_eq!(ledger.tcp_resets, 0, "connections did not live: {ledger:?}");
        let boots: Vec<&str> = ledger.boot_ids.iter().map(String::as_str).collect();
        assert_eq!(boots, [boot], "more than one boot answered: {ledger:?}");
        self.one_owner();
    }

    /// No two nodes emitted frames of the guest at the same time.
    ///
    /// # Panics
    /// If they did, or if none ever emitted.
    #[track_caller]
    pub fn one_owner(&self) {
        assert_eq!(self.owners.owners_max, 1, "{:?}", self.owners);
    }
}
