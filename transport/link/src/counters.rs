//! What an endpoint has seen, counted since it was bound. Every refusal is counted at the side that refuses, besides being
//! an error at the side that asked.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A reading of all counters. Each only ever rises.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// All of them by name.
            fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counting {
            $(pub(crate) $name: Count,)*
        }

        impl Counting {
            pub(crate) fn read(&self) -> Counters {
                Counters { $($name: self.$name.0.load(Ordering::Relaxed),)* }
            }
        }
    };
}

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

counters! {
    /// Connections that peers opened to this endpoint.
    connections_accepted,
    /// Connections that this endpoint opened.
    connections_dialled,
    /// Attempts to open a connection that failed.
    dials_failed,
    /// Calls handed to the service.
    calls_served,
    /// Sessions handed to the service.
    sessions_served,
    /// Nodes admitted.
    joins_served,
    /// Joins that the service refused for any reason.
    joins_refused,
    /// Joins refused because of their token: unknown, expired, used, or for another name.
    bad_token,
    /// Peers that speak another version of the protocol.
    wrong_version,
    /// Peers of another cluster: their certificate leads to another authority, or their hello names another cluster.
    wrong_cluster,
    /// Peers whose hello claims something else than their certificate says.
    wrong_identity,
    /// Calls and sessions that the peer's role does not allow.
    wrong_role,
    /// Calls and sessions of nodes that are no longer part of the cluster.
    not_admitted,
    /// Connections that ought to have shown a certificate and did not.
    unauthenticated,
    /// Connections that ended before they were set up, for any other reason.
    handshakes_failed,
    /// Datagrams that belong to no connection and start none. A lower bound: of forged first packets quinn drops three in
    /// four without telling.
    garbage,
    /// Handshakes, headers or messages that mean nothing.
    malformed,
    /// Calls or sessions for which there is no method.
    unknown_method,
    /// Messages larger than they may be.
    oversize,
    /// Connections, calls or sessions refused because there were as many as there may be.
    busy,
    /// Calls given up because their time was over, at the side that serves them.
    overdue,
}

/// Those that count ordinary work.
const ORDINARY: [&str; 5] =
    ["connections_accepted", "connections_dialled", "calls_served", "sessions_served", "joins_served"];

impl Counters {
    /// What went wrong or was refused, and how often; what never happened is left out.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        self.all_refusals().filter(|(_, times)| *times > 0)
    }

    /// The same with what never happened.
    pub fn all_refusals(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        self.named().filter(|(name, _)| !ORDINARY.contains(name))
    }
}
