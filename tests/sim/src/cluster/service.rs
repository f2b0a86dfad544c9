//! What a simulated node does for its peers: hands calls and streams on as the daemon does.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use pollux_link::{Class, Fault, JoinReply, JoinRequest, Peer, RecvStream, Roles, SendStream, Service};
use pollux_state::id::NodeId;
use pollux_wire::{
    codec, fault,
    limits::Limit,
    method::{CONSENSUS, VM_CONTROL, VM_PAGES},
};

use super::node::Place;

/// The service of one life of a node. It finds the daemon in its place, from where a crash takes it.
pub(super) struct Reception(pub(super) Arc<Place>);

#[async_trait]
impl Service for Reception {
    fn allowed(&self, method: u16) -> Roles {
        if CONSENSUS.contains(&method) { Roles::All } else { Roles::None }
    }

    fn allowed_session(&self, kind: u16) -> Roles {
        match kind {
            VM_CONTROL | VM_PAGES => Roles::Members,
            _ => Roles::None,
        }
    }

    fn admits(&self, node: NodeId) -> bool {
        self.0.daemon().is_none_or(|daemon| daemon.consensus.admits(node))
    }

    async fn call(&self, peer: Peer, _class: Class, method: u16, body: Bytes) -> Result<Bytes, Fault> {
        match self.0.daemon() {
            Some(daemon) => daemon.consensus.serve(peer, method, body).await,
            None => Err(Fault::new(fault::BUSY, "the daemon is starting; try again")),
        }
    }

    async fn session(&self, peer: Peer, kind: u16, header: Bytes, mut send: SendStream, recv: RecvStream) {
        let Some(vms) = self.0.daemon().and_then(|daemon| daemon.vms) else { return };
        match kind {
            VM_CONTROL => {
                if let Ok(greeting) = codec::decode(&header, Limit::Control) {
                    vms.control(peer, greeting, send, recv).await;
                }
            }
            VM_PAGES => {
                if let Ok(greeting) = codec::decode(&header, Limit::Control) {
                    let _ = send.finish();
                    vms.pages(peer, greeting, recv).await;
                }
            }
            _ => {}
        }
    }

    async fn join(&self, _from: SocketAddr, _request: JoinRequest) -> Result<JoinReply, Fault> {
        Err(Fault::new(fault::ASK_ANOTHER, "nodes are members from the start here"))
    }
}
