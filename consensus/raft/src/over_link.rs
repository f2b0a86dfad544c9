//! The consensus layer on pollux-link: calls out, calls in.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use pollux_link::{CallError as LinkError, Class, DialError, Endpoint, Fault, NotSent, Peer, To};
use pollux_state::id::NodeId;
use pollux_wire::{fault, handshake::Verdict};

use crate::{
    consensus::{Config, Consensus, StartError},
    message::{CallError, Network},
    serve::Refusal,
};

/// The fault of a request that was understood and is not allowed, whoever is asked.
pub const FAULT_NOT_ALLOWED: u16 = fault::SERVICE_FIRST;

#[async_trait]
impl Network for Endpoint {
    async fn call(
        &self,
        node: NodeId,
        address: SocketAddr,
        method: u16,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let to = To { node, address };
        Self::call(self, &to, Class::Consensus, method, body, deadline).await.map_err(|error| {
            let text = in_words(&error);
            match error {
                _ if not_admitted(&error) => CallError::NotAdmitted(text),
                LinkError::NotSent { .. } | LinkError::TooLarge { .. } | LinkError::Refused { .. } => {
                    CallError::NotSent(text)
                }
                LinkError::Fault { fault, .. } if says_no(fault.code) => CallError::Fault(text),
                // Whatever else went wrong there may have gone wrong after the entry was in the log.
                LinkError::Fault { .. } | LinkError::Unknown { .. } => CallError::Unknown(text),
            }
        })
    }
}

/// Whether the other side says that this node is no part of the cluster any more.
fn not_admitted(error: &LinkError) -> bool {
    match error {
        LinkError::Refused { fault, .. } => fault.code == fault::NOT_ADMITTED,
        LinkError::NotSent { reason: NotSent::Dial(dialled), .. } => {
            let first = if let DialError::BackingOff { last } = dialled { last } else { dialled };
            matches!(first, DialError::Refused { verdict: Verdict::NotAdmitted, .. })
        }
        LinkError::NotSent { .. }
        | LinkError::TooLarge { .. }
        | LinkError::Fault { .. }
        | LinkError::Unknown { .. } => false,
    }
}

/// Whether a fault means that nothing was done, and that asking again will not change that.
fn says_no(code: u16) -> bool {
    matches!(code, FAULT_NOT_ALLOWED | fault::MALFORMED | fault::METHOD)
}

/// An error with what caused it, in one line.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::NoSuchMethod(_) => fault::METHOD,
            Refusal::Garbled(_) => fault::MALFORMED,
            Refusal::NotAllowed(_) => FAULT_NOT_ALLOWED,
            Refusal::Stopped(_) => fault::INTERNAL,
        };
        Self::new(code, refusal.to_string())
    }
}

impl Consensus {
    /// Starts this node's consensus layer. Its calls go out through `endpoint`; the endpoint's service must bring those of
    /// class [`Class::Consensus`] that come in to [`serve`](Self::serve), and answer [`fault::CLOSING`] until it can.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config, endpoint: Endpoint) -> Result<Self, StartError> {
        Self::start_on(config, Arc::new(endpoint)).await
    }

    /// Answers a call of another node's consensus layer: the methods in [`pollux_wire::method::CONSENSUS`].
    ///
    /// # Errors
    /// A [`Fault`] when the request makes no sense, is not allowed to this peer, or this node has stopped.
    pub async fn serve(&self, peer: Peer, method: u16, body: Bytes) -> Result<Bytes, Fault> {
        Ok(self.answer(peer.node, method, &body).await?)
    }
}
