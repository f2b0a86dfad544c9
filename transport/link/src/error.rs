//! What can go wrong between two nodes, and for a call the one thing a caller must know: whether it may have been executed.

use std::{io, net::SocketAddr, time::Duration};

use pollux_wire::{
    handshake::Verdict,
    id::{ClusterId, NodeId},
};

use crate::{service::Fault, stream::StreamError, tls::TlsError};

/// An endpoint could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken or not of this host.
    #[error("cannot listen on {address} (UDP)")]
    Socket {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The identity cannot be used for TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A connection could not be opened. Nothing was sent over it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// Nobody answered.
    #[error("nobody answers at {address} (UDP, waited {waited:?}): is pollux running there, and is the port open?")]
    Unreachable {
        /// Where.
        address: SocketAddr,
        /// For how long.
        waited: Duration,
    },
    /// It failed a moment ago; the next attempt is not due yet.
    #[error("the last attempt failed and the next is not due yet: {last}")]
    BackingOff {
        /// How it failed.
        last: Box<DialError>,
    },
    /// The node there belongs to another cluster.
    #[error("the node at {address} belongs to {}, this node to cluster {ours}", theirs.map_or("another cluster".to_owned(), |id| format!("cluster {id}")))]
    WrongCluster {
        /// Where.
        address: SocketAddr,
        /// The cluster of this node.
        ours: ClusterId,
        /// The cluster it claims, if it said so.
        theirs: Option<ClusterId>,
    },
    /// Another node answers at that address.
    #[error("at {address} answers {}, not {expected}: was the address given to another host?", found.map_or("somebody else".to_owned(), |id| id.to_string()))]
    WrongNode {
        /// Where.
        address: SocketAddr,
        /// Whom this node meant.
        expected: NodeId,
        /// Who it claims to be, if it said so.
        found: Option<NodeId>,
    },
    /// The other side speaks another version.
    #[error("the node at {address} speaks protocol version {theirs}, this node speaks {ours}: upgrade the older one")]
    Version {
        /// Where.
        address: SocketAddr,
        /// What this node speaks.
        ours: u8,
        /// What the other speaks.
        theirs: u8,
    },
    /// The other side does not want this node.
    #[error("the node at {address} refuses this node: {verdict}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// Why.
        verdict: Verdict,
    },
    /// Whatever answers, it does not speak the protocol.
    #[error("what answers at {address} does not speak the Pollux protocol: {detail}")]
    NotPollux {
        /// Where.
        address: SocketAddr,
        /// What it did instead.
        detail: String,
    },
    /// The connection broke while it was set up.
    #[error("the connection to {address} broke while it was set up: {detail}")]
    Broken {
        /// Where.
        address: SocketAddr,
        /// How.
        detail: String,
    },
    /// As many peers as there may be.
    #[error("this node already talks to {max} peers, which is as many as it may: forget one first")]
    TooManyPeers {
        /// The limit.
        max: usize,
    },
    /// The caller's time was over first.
    #[error("the connection to {address} was not open in time")]
    Deadline {
        /// Where.
        address: SocketAddr,
    },
    /// The endpoint is closed.
    #[error("this endpoint is closed")]
    Closing,
}

/// A call did not come back with an answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Surely not executed: it was never completely sent.
    #[error("call {method} did not reach {node}")]
    NotSent {
        /// Whom it was for.
        node: NodeId,
        /// Which method.
        method: u16,
        /// Why.
        #[source]
        reason: NotSent,
    },
    /// Surely not executed: larger than the method allows.
    #[error("call {method} has {size_bytes} bytes, more than the {limit_bytes} it may have")]
    TooLarge {
        /// Which method.
        method: u16,
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Surely not executed: the receiver refused it before its service saw it.
    #[error("{node} refused call {method}: {fault}")]
    Refused {
        /// Who refused.
        node: NodeId,
        /// Which method.
        method: u16,
        /// Why.
        fault: Fault,
    },
    /// It was sent and no answer came: it may or may not have been executed, now or later.
    #[error("the outcome of call {method} to {node} is unknown")]
    Unknown {
        /// Whom it was for.
        node: NodeId,
        /// Which method.
        method: u16,
        /// Why.
        #[source]
        reason: Unknown,
    },
    /// The service answered that it failed.
    #[error("{node} failed at call {method}: {fault}")]
    Fault {
        /// Who.
        node: NodeId,
        /// Which method.
        method: u16,
        /// How.
        fault: Fault,
    },
}

impl CallError {
    /// Whether it may have been executed although no answer came.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }

    /// Whether it has surely not been executed. A fault says neither: the service was asked, what it did before it failed
    /// is for the fault's code to say.
    #[must_use]
    pub const fn is_surely_not_executed(&self) -> bool {
        matches!(self, Self::NotSent { .. } | Self::TooLarge { .. } | Self::Refused { .. })
    }
}

/// Why something was not sent.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotSent {
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// Not all of it was on its way in time.
    #[error("not all of it was on its way within {0:?}")]
    Deadline(Duration),
    /// The connection was lost before all of it was on its way.
    #[error("the connection was lost before all of it was on its way")]
    Lost(#[source] StreamError),
}

/// Why an outcome is unknown.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unknown {
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// The connection was lost, or the receiver gave up, before the answer was there.
    #[error("the connection was lost before the answer came")]
    Lost(#[source] StreamError),
    /// The answer makes no sense.
    #[error("the answer is malformed")]
    Malformed,
    /// The answer is larger than it may be.
    #[error("the answer has {size_bytes} bytes, more than the {limit_bytes} it may have")]
    TooLarge {
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
}

/// A session could not be opened. The service at the other side may have seen it begin and end, unless it was refused.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No connection.
    #[error("session {kind} did not reach {node}")]
    Dial {
        /// Whom it was for.
        node: NodeId,
        /// Which kind.
        kind: u16,
        /// Why.
        #[source]
        source: DialError,
    },
    /// The header is larger than it may be.
    #[error("the header of session {kind} has {size_bytes} bytes, more than the {limit_bytes} it may have")]
    TooLarge {
        /// Which kind.
        kind: u16,
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The receiver refused it before its service saw it.
    #[error("{node} refused session {kind}: {fault}")]
    Refused {
        /// Who refused.
        node: NodeId,
        /// Which kind.
        kind: u16,
        /// Why.
        fault: Fault,
    },
    /// Not open in time.
    #[error("session {kind} to {node} was not open within {deadline:?}")]
    Deadline {
        /// Whom it was for.
        node: NodeId,
        /// Which kind.
        kind: u16,
        /// The time it had.
        deadline: Duration,
    },
    /// The connection was lost while the session was opened.
    #[error("session {kind} to {node} was lost while it was opened")]
    Lost {
        /// Whom it was for.
        node: NodeId,
        /// Which kind.
        kind: u16,
        /// How.
        #[source]
        source: StreamError,
    },
    /// The answer makes no sense.
    #[error("{node} answered session {kind} with something malformed")]
    Malformed {
        /// Who.
        node: NodeId,
        /// Which kind.
        kind: u16,
    },
}
