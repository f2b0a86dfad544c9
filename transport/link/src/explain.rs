//! What a failed connection means. QUIC reports alert numbers and closed streams; a user needs to know whether the other
//! side is off, of another cluster, another node, or of another version.

use std::{net::SocketAddr, sync::PoisonError, time::Duration};

use pollux_wire::{
    handshake::{Answer, HandshakeError, Verdict},
    id::{ClusterId, NodeId},
};
use quinn::{ConnectionError, TransportErrorCode};

use crate::{
    error::DialError,
    greet::GreetError,
    tls::{self, Record, Rejected},
};

/// TLS alerts (RFC 8446, 6.2) that a peer sends about a certificate.
const ALERT_BAD_CERTIFICATE: u8 = 42;
const ALERT_UNKNOWN_CA: u8 = 48;
const ALERT_NO_PROTOCOL: u8 = 120;

/// Whom a dial meant.
pub(crate) struct Destination {
    pub(crate) address: SocketAddr,
    pub(crate) cluster: ClusterId,
    /// `None` when any node of the cluster will do.
    pub(crate) node: Option<NodeId>,
    pub(crate) record: Record,
}

/// What a connection error means to the side that dialled.
pub(crate) fn explain(error: &ConnectionError, to: &Destination) -> DialError {
    let address = to.address;
    if let Some(rejected) = to.record.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return explain_rejected(rejected, to);
    }
    let foreign = || DialError::WrongCluster { address, ours: to.cluster, theirs: None };
    let broken = || DialError::Broken { address, detail: error.to_string() };
    let not_pollux = || DialError::NotPollux { address, detail: error.to_string() };
    match error {
        ConnectionError::TimedOut => DialError::Unreachable { address, waited: Duration::ZERO },
        ConnectionError::LocallyClosed => DialError::Closing,
        ConnectionError::ConnectionClosed(close) => match refusal(close.error_code) {
            Refusal::Foreign => foreign(),
            Refusal::Busy => DialError::Refused { address, verdict: Verdict::Busy },
            Refusal::NoProtocol => not_pollux(),
            Refusal::OtherName | Refusal::Other => broken(),
        },
        ConnectionError::VersionMismatch | ConnectionError::TransportError(_) => not_pollux(),
        ConnectionError::ApplicationClosed(_) | ConnectionError::Reset | ConnectionError::CidsExhausted => broken(),
    }
}

fn explain_rejected(rejected: Rejected, to: &Destination) -> DialError {
    let address = to.address;
    let claimed = rejected.claims.as_ref();
    let other_cluster = claimed.is_some_and(|claims| claims.cluster != to.cluster);
    if tls::is_foreign(&rejected.error) || other_cluster {
        // One that claims our cluster and has another authority is an impostor: then its claim is not worth repeating.
        let theirs = claimed.map(|claims| claims.cluster).filter(|theirs| *theirs != to.cluster);
        return DialError::WrongCluster { address, ours: to.cluster, theirs };
    }
    match to.node {
        Some(expected) if tls::is_other_name(&rejected.error) => {
            DialError::WrongNode { address, expected, found: claimed.map(|claims| claims.node) }
        }
        Some(_) | None => DialError::NotPollux { address, detail: rejected.error.to_string() },
    }
}

/// What the answer to a greeting means to the side that dialled.
pub(crate) fn explain_greeting(
    answer: Result<Answer, GreetError>,
    connection: &quinn::Connection,
    to: &Destination,
) -> Result<(), DialError> {
    let address = to.address;
    let error = match answer {
        Ok(Answer { verdict: Verdict::Accepted, node, .. }) if to.node.is_none_or(|expected| expected == node) => {
            return Ok(());
        }
        Ok(Answer { verdict: Verdict::Accepted, node, .. }) => {
            let expected = to.node.unwrap_or_default();
            DialError::WrongNode { address, expected, found: Some(node) }
        }
        Ok(Answer { verdict: Verdict::WrongCluster, .. }) => {
            DialError::WrongCluster { address, ours: to.cluster, theirs: None }
        }
        Ok(Answer { verdict, .. }) => DialError::Refused { address, verdict },
        Err(GreetError::Handshake(HandshakeError::Version { ours, theirs })) => {
            DialError::Version { address, ours, theirs }
        }
        Err(GreetError::Handshake(error @ (HandshakeError::NotPollux | HandshakeError::Malformed))) => {
            DialError::NotPollux { address, detail: error.to_string() }
        }
        // A server that rejects our certificate says so only after our side of the handshake is complete.
        Err(GreetError::Stream(error)) => match connection.close_reason() {
            Some(reason) => explain(&reason, to),
            None => DialError::Broken { address, detail: error.to_string() },
        },
    };
    connection.close(1_u32.into(), b"refused");
    Err(error)
}

/// What the other side's transport said when it closed a connection that was not yet open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Our certificate leads to an authority that it does not know.
    Foreign,
    /// Our certificate is for another name than the one it meant.
    OtherName,
    /// It takes no more connections.
    Busy,
    /// It does not speak our protocol.
    NoProtocol,
    /// Anything else.
    Other,
}

pub(crate) fn refusal(code: TransportErrorCode) -> Refusal {
    let alert = |number| code == TransportErrorCode::crypto(number);
    if alert(ALERT_UNKNOWN_CA) {
        Refusal::Foreign
    } else if alert(ALERT_BAD_CERTIFICATE) {
        Refusal::OtherName
    } else if alert(ALERT_NO_PROTOCOL) {
        Refusal::NoProtocol
    } else if code == TransportErrorCode::CONNECTION_REFUSED {
        Refusal::Busy
    } else {
        Refusal::Other
    }
}
