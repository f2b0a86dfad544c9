//! What this node does for its peers: hands calls and streams to whom they belong.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use bytes::Bytes;
use pollux_link::{Class, Fault, Peer, RecvStream, Roles, SendStream, Service};
use pollux_state::id::NodeId;
use pollux_vm::message::{Greeting, ProbeGreeting, StreamGreeting};
use pollux_wire::{
    codec, fault,
    join::{JoinReply, JoinRequest},
    limits::Limit,
    method::{CONSENSUS, CONSOLE, FORWARD, REPLICA, VM_CONTROL, VM_PAGES, VM_PROBE},
};

use super::{admission, console, forward, run::Daemon};
use crate::vm::take_probe;

/// The service of a daemon. The endpoint is bound before the rest of the daemon exists; until then peers are told to come
/// back.
#[derive(Default)]
pub(super) struct Reception {
    daemon: OnceLock<Arc<Daemon>>,
}

impl Reception {
    pub(super) fn open(&self, daemon: Arc<Daemon>) {
        // Only the daemon's start opens it.
        let _ = self.daemon.set(daemon);
    }

    fn daemon(&self) -> Result<&Arc<Daemon>, Fault> {
        self.daemon.get().ok_or_else(|| Fault::new(fault::BUSY, "the daemon is starting; try again"))
    }
}

#[async_trait]
impl Service for Reception {
    fn allowed(&self, method: u16) -> Roles {
        match method {
            FORWARD => Roles::All,
            method if CONSENSUS.contains(&method) => Roles::All,
            _ => Roles::None,
        }
    }

    fn allowed_session(&self, kind: u16) -> Roles {
        match kind {
            // A witness runs no VMs.
            VM_CONTROL | VM_PAGES | VM_PROBE | CONSOLE | REPLICA => Roles::Members,
            _ => Roles::None,
        }
    }

    fn admits(&self, node: NodeId) -> bool {
        self.daemon.get().is_none_or(|daemon| daemon.consensus.admits(node))
    }

    async fn call(&self, peer: Peer, _class: Class, method: u16, body: Bytes) -> Result<Bytes, Fault> {
        let daemon = self.daemon()?;
        match method {
            FORWARD => forward::answer(daemon, &body).await,
            method => daemon.consensus.serve(peer, method, body).await,
        }
    }

    async fn session(&self, peer: Peer, kind: u16, header: Bytes, mut send: SendStream, recv: RecvStream) {
        let Some(daemon) = self.daemon.get() else { return };
        let (Some(vms), Some(volumes)) = (daemon.vms(), daemon.volumes()) else { return };
        match kind {
            REPLICA => volumes.session(peer, &header, send, recv).await,
            CONSOLE => console::answer(daemon.clone(), &header, recv, send).await,
            VM_CONTROL => match codec::decode::<Greeting>(&header, Limit::Control) {
                Ok(greeting) => vms.control(peer, greeting, send, recv).await,
                Err(error) => tracing::warn!(peer = %peer.node, %error, "a move's greeting is malformed"),
            },
            VM_PAGES => match codec::decode::<StreamGreeting>(&header, Limit::Control) {
                Ok(greeting) => {
                    // Nothing is said back on a page stream. An orderly end, for a reset would take the acceptance with it.
                    let _ = send.finish();
                    vms.pages(peer, greeting, recv).await;
                }
                Err(error) => tracing::warn!(peer = %peer.node, %error, "a page stream's greeting is malformed"),
            },
            VM_PROBE => match codec::decode::<ProbeGreeting>(&header, Limit::Control) {
                Ok(greeting) => take_probe(greeting, send, recv).await,
                Err(error) => tracing::warn!(peer = %peer.node, %error, "a probe's greeting is malformed"),
            },
            _ => {}
        }
    }

    async fn join(&self, from: SocketAddr, request: JoinRequest) -> Result<JoinReply, Fault> {
        let daemon = self.daemon()?;
        tracing::info!(%from, name = request.name, "a node asks to join");
        let by = daemon.identity.node();
        admission::admit(&daemon.consensus, daemon.authority.as_ref(), daemon.minter(), by, request).await
    }
}
