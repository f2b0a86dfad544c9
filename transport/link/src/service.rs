//! What an endpoint hands to the daemon: calls, sessions and joins, each from a peer whose certificate was verified.

use std::net::SocketAddr;

use async_trait::async_trait;
use bytes::Bytes;
use pollux_wire::{
    fault,
    id::NodeId,
    join::{JoinReply, JoinRequest},
};

use crate::{
    role::{Role, Roles},
    stream::{RecvStream, SendStream},
};

/// What a connection is for. Each class has its own connection, so that a bulk transfer cannot delay a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Consensus calls: small, frequent, urgent.
    Consensus,
    /// VM sessions and calls between daemons.
    Bulk,
}

/// Who is at the other end, as its certificate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The node.
    pub node: NodeId,
    /// What it may do.
    pub role: Role,
    /// Where this connection comes from; not necessarily where the node listens.
    pub address: SocketAddr,
}

/// A service's answer that it failed. `code` is one of [`pollux_wire::fault`] or the service's own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text} (fault {code})")]
pub struct Fault {
    /// What kind of failure.
    pub code: u16,
    /// What happened, to which object, and what to do.
    pub text: String,
}

impl Fault {
    /// A fault with its code.
    #[must_use]
    pub fn new(code: u16, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// A failure that has no code of its own.
    #[must_use]
    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(fault::INTERNAL, text)
    }

    /// The body could not be decoded.
    #[must_use]
    pub fn malformed(what: impl std::fmt::Display) -> Self {
        Self::new(fault::MALFORMED, format!("the body of the call is malformed: {what}"))
    }
}

/// What the daemon does for its peers. The endpoint has checked role, size and admission before any of these is called.
///
/// Each call and session runs on a task of the endpoint. A call's future is dropped when its caller's patience is over,
/// all are dropped when the endpoint closes; work that must not stop half-way belongs to an actor, not into the future.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Who may make this call.
    fn allowed(&self, method: u16) -> Roles;

    /// Who may open this kind of session.
    fn allowed_session(&self, kind: u16) -> Roles;

    /// Whether this node is still part of the cluster. A certificate outlives its node's removal; this does not.
    fn admits(&self, node: NodeId) -> bool {
        let _ = node;
        true
    }

    /// Answers a call.
    async fn call(&self, peer: Peer, class: Class, method: u16, body: Bytes) -> Result<Bytes, Fault>;

    /// Serves a session until it ends. Returning, or dropping a stream unfinished, resets it.
    async fn session(&self, peer: Peer, kind: u16, header: Bytes, send: SendStream, recv: RecvStream);

    /// Admits a node that holds a token, or refuses it with one of the token faults. Token, expiry and single use are for
    /// the cluster state to judge.
    async fn join(&self, from: SocketAddr, request: JoinRequest) -> Result<JoinReply, Fault>;
}
