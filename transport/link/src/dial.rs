//! Connections that this node opens: one for each peer and class, opened when first needed, kept, and opened again after a
//! loss. Callers share one attempt. The attempt runs on a task of the endpoint, so that a caller with little patience does
//! not keep starting what it never sees finished.
//!
//! ```text
//!              need                    opened
//!   (nothing) ──────> Dialling ─────────────────────> Open
//!       ^                │ ^  need, pause over          │ need, and the connection is gone
//!       │ forget  failed │ │                            │
//!       │                v │                            │
//!       └───────────── Resting                Dialling <┘
//! ```

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};

use pollux_wire::{handshake::Hello, id::NodeId};
use serde::Serialize;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use crate::{
    certificate::{Claims, server_name},
    endpoint::Shared,
    error::DialError,
    explain::{Destination, explain, explain_greeting},
    greet,
    service::Class,
    tls::Record,
    transport,
};

/// The pause after the first failed attempt; it doubles with each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest pause between attempts at a consensus connection: well below an election timeout.
const PAUSE_CONSENSUS_MAX: Duration = Duration::from_millis(400);
/// The longest pause between attempts at a bulk connection.
const PAUSE_BULK_MAX: Duration = Duration::from_secs(2);

/// Whom to reach, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct To {
    /// The node. Whoever answers must prove to be it.
    pub node: NodeId,
    /// Where it listens. A connection that is already open is used even if it leads elsewhere: it leads to this node.
    pub address: SocketAddr,
}

/// How a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PathStats {
    /// Where the peer is.
    pub address: SocketAddr,
    /// The round trip as last estimated, microseconds.
    pub rtt_us: u64,
    /// Sent in UDP datagrams.
    pub sent_bytes: u64,
    /// Received in UDP datagrams.
    pub received_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets taken for lost.
    pub lost_packets: u64,
    /// Bytes taken for lost.
    pub lost_bytes: u64,
    /// What may be under way before the next acknowledgement.
    pub window_bytes: u64,
    /// The largest datagram that the path carries.
    pub mtu_bytes: u16,
}

type Outcome = Option<Result<quinn::Connection, DialError>>;

/// What there is to one peer in one class.
pub(crate) enum State {
    Dialling { outcome: watch::Receiver<Outcome>, failures: u32 },
    Open(quinn::Connection),
    Resting { failures: u32, until: Instant, address: SocketAddr, last: DialError },
}

enum Step {
    Use(quinn::Connection),
    Join(watch::Receiver<Outcome>),
    Rest(Instant, DialError),
}

/// The connection to a peer, opened if need be.
pub(crate) async fn connection(
    shared: &Arc<Shared>,
    to: &To,
    class: Class,
    until: Instant,
) -> Result<quinn::Connection, DialError> {
    loop {
        match step(shared, to, class)? {
            Step::Use(connection) => return Ok(connection),
            Step::Join(mut outcome) => {
                let finished = timeout_at(until, outcome.wait_for(Option::is_some)).await;
                let late = || DialError::Deadline { address: to.address };
                // The sender is dropped without an outcome only when the endpoint closes.
                let outcome = finished.map_err(|_| late())?.map_err(|_| DialError::Closing)?.clone();
                return outcome.unwrap_or(Err(DialError::Closing));
            }
            Step::Rest(due, last) if due >= until => return Err(DialError::BackingOff { last: Box::new(last) }),
            Step::Rest(due, _) => tokio::select! {
                () = sleep_until(due) => {}
                () = shared.stop.cancelled() => return Err(DialError::Closing),
            },
        }
    }
}

fn step(shared: &Arc<Shared>, to: &To, class: Class) -> Result<Step, DialError> {
    if shared.stop.is_cancelled() {
        return Err(DialError::Closing);
    }
    let mut peers = shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
    let failures = match peers.get(&(to.node, class)) {
        Some(State::Open(connection)) if connection.close_reason().is_none() => {
            return Ok(Step::Use(connection.clone()));
        }
        Some(State::Dialling { outcome, .. }) => return Ok(Step::Join(outcome.clone())),
        Some(State::Resting { until, address, last, .. }) if *until > Instant::now() && *address == to.address => {
            return Ok(Step::Rest(*until, last.clone()));
        }
        Some(State::Resting { failures, address, .. }) if *address == to.address => *failures,
        Some(State::Open(_) | State::Resting { .. }) => 0,
        None if peers.len() >= shared.limits.peers * 2 => {
            return Err(DialError::TooManyPeers { max: shared.limits.peers });
        }
        None => 0,
    };
    let (sender, outcome) = watch::channel(None);
    peers.insert((to.node, class), State::Dialling { outcome: outcome.clone(), failures });
    drop(peers);
    shared.tasks.spawn(attempt(shared.clone(), *to, class, sender));
    Ok(Step::Join(outcome))
}

async fn attempt(shared: Arc<Shared>, to: To, class: Class, sender: watch::Sender<Outcome>) {
    let waited = transport::dial_max(class);
    let result = tokio::select! {
        () = shared.stop.cancelled() => return,
        result = timeout(waited, open(&shared, &to, class)) => {
            result.unwrap_or(Err(DialError::Unreachable { address: to.address, waited }))
        }
    };
    settle(&shared, &to, class, &result);
    sender.send_replace(Some(result));
}

fn settle(shared: &Shared, to: &To, class: Class, result: &Result<quinn::Connection, DialError>) {
    let mut peers = shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(state) = peers.get_mut(&(to.node, class)) else { return }; // Forgotten meanwhile.
    match result {
        Ok(connection) => {
            shared.counting.connections_dialled.add();
            *state = State::Open(connection.clone());
        }
        Err(error) => {
            shared.counting.dials_failed.add();
            let failures = match state {
                State::Dialling { failures, .. } => failures.saturating_add(1),
                State::Open(_) | State::Resting { .. } => 1,
            };
            tracing::debug!(node = %to.node, address = %to.address, ?class, failures, %error, "could not connect");
            let until = Instant::now() + pause(class, failures);
            *state = State::Resting { failures, until, address: to.address, last: error.clone() };
        }
    }
}

fn pause(class: Class, failures: u32) -> Duration {
    let max = match class {
        Class::Consensus => PAUSE_CONSENSUS_MAX,
        Class::Bulk => PAUSE_BULK_MAX,
    };
    PAUSE_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(max)
}

async fn open(shared: &Shared, to: &To, class: Class) -> Result<quinn::Connection, DialError> {
    let identity = &shared.identity;
    let record = Record::default();
    let destination =
        Destination { address: to.address, cluster: identity.cluster(), node: Some(to.node), record: record.clone() };
    let broken = |detail: String| DialError::Broken { address: to.address, detail };

    let crypto = shared.tls.client(record).map_err(|error| broken(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport::dialling(shared.closing.clone(), class));
    let connection = shared
        .quinn()
        .ok_or(DialError::Closing)?
        .connect_with(config, to.address, &server_name(identity.cluster(), to.node))
        .map_err(|error| broken(error.to_string()))?
        .await
        .map_err(|error| explain(&error, &destination))?;

    // TLS has compared the server name; this compares the identity itself.
    let claims = verified_claims(&connection);
    if claims.as_ref().is_none_or(|claims| claims.node != to.node || claims.cluster != identity.cluster()) {
        connection.close(1_u32.into(), b"not the node that was meant");
        let found = claims.map(|claims| claims.node);
        return Err(DialError::WrongNode { address: to.address, expected: to.node, found });
    }

    let hello = Hello {
        version: shared.version,
        purpose: greet::purpose(class),
        cluster: identity.cluster(),
        node: identity.node(),
    };
    let answer = greet::greet(&connection, hello).await;
    explain_greeting(answer, &connection, &destination)?;
    Ok(connection)
}

/// What the other side's certificate says, which TLS has verified.
pub(crate) fn verified_claims(connection: &quinn::Connection) -> Option<Claims> {
    let chain = connection.peer_identity()?.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    Claims::read(chain.first()?).ok()
}

pub(crate) fn path(shared: &Shared, node: NodeId, class: Class) -> Option<PathStats> {
    let peers = shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(State::Open(connection)) = peers.get(&(node, class)) else { return None };
    if connection.close_reason().is_some() {
        return None;
    }
    let stats = connection.stats();
    Some(PathStats {
        address: canonical(connection.remote_address()),
        rtt_us: u64::try_from(stats.path.rtt.as_micros()).unwrap_or(u64::MAX),
        sent_bytes: stats.udp_tx.bytes,
        received_bytes: stats.udp_rx.bytes,
        sent_packets: stats.path.sent_packets,
        lost_packets: stats.path.lost_packets,
        lost_bytes: stats.path.lost_bytes,
        window_bytes: stats.path.cwnd,
        mtu_bytes: stats.path.current_mtu,
    })
}

pub(crate) fn forget(shared: &Shared, node: NodeId) {
    let mut peers = shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
    for class in [Class::Consensus, Class::Bulk] {
        if let Some(State::Open(connection)) = peers.remove(&(node, class)) {
            connection.close(0_u32.into(), b"forgotten");
        }
    }
}

/// An IPv4 address as such, also when it came over a dual-stack socket.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_bounded() {
        assert_eq!(pause(Class::Bulk, 1), Duration::from_millis(50));
        assert_eq!(pause(Class::Bulk, 3), Duration::from_millis(200));
        assert_eq!(pause(Class::Bulk, u32::MAX), PAUSE_BULK_MAX);
        assert_eq!(pause(Class::Consensus, 9), PAUSE_CONSENSUS_MAX);
    }
}
