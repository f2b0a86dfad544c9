//! Where the other nodes are, and openraft's way to them.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use openraft::{
    error::{NetworkError, RPCError, RaftError, RemoteError, Unreachable},
    network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
        VoteResponse,
    },
};
use pollux_state::id::NodeId;
use tokio::sync::watch;

use crate::{
    message::{Append, CallError, Exchange, Network, RequestVote, SnapshotPiece, ask},
    store::machine::View,
    types::{Member, TypeConfig},
};

/// The network together with what is known about addresses. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers {
    network: Arc<dyn Network>,
    view: watch::Receiver<View>,
    /// How long openraft leaves an unreachable node alone.
    backoff: Duration,
    /// What a peer said that does not admit this node any more.
    outcast: Arc<watch::Sender<Option<String>>>,
}

impl Peers {
    pub(crate) fn new(network: Arc<dyn Network>, view: watch::Receiver<View>, backoff: Duration) -> Self {
        Self { network, view, backoff, outcast: Arc::default() }
    }

    /// What a peer said that does not admit this node: to its knowledge, which is the log's, this node was removed.
    pub(crate) fn outcast(&self) -> watch::Receiver<Option<String>> {
        self.outcast.subscribe()
    }

    /// Asks `node`, at the address the applied state gives it, or else at `known`.
    pub(crate) fn ask<E: Exchange>(
        &self,
        node: NodeId,
        known: Option<SocketAddr>,
        request: &E::Request,
        deadline: Duration,
    ) -> impl Future<Output = Result<E::Reply, CallError>> + Send {
        let address = self.view.borrow().state.nodes.get(&node).map(|node| node.address).or(known);
        let outcast = Arc::clone(&self.outcast);
        async move {
            let address = address.ok_or_else(|| CallError::NotSent(format!("the address of {node} is not known")))?;
            let answer = ask::<E>(&*self.network, node, address, request, deadline).await;
            if let Err(CallError::NotAdmitted(why)) = &answer {
                outcast.send_if_modified(|known| known.is_none() && known.replace(why.clone()).is_none());
            }
            answer
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &Member) -> Peer {
        Peer { peers: self.clone(), target, address: node.address }
    }
}

/// openraft's way to one node.
pub(crate) struct Peer {
    peers: Peers,
    target: u64,
    address: SocketAddr,
}

type Failed<E> = RPCError<u64, Member, RaftError<u64, E>>;

impl Peer {
    async fn ask<E: Exchange, F: std::error::Error>(
        &self,
        request: &E::Request,
        option: &RPCOption,
    ) -> Result<E::Reply, Failed<F>> {
        let asked = self.peers.ask::<E>(NodeId(self.target), Some(self.address), request, option.hard_ttl());
        asked.await.map_err(|error| match error {
            CallError::NotSent(_) | CallError::NotAdmitted(_) => RPCError::Unreachable(Unreachable::new(&error)),
            CallError::Unknown(_) | CallError::Fault(_) => RPCError::Network(NetworkError::new(&error)),
        })
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failed<openraft::error::Infallible>> {
        self.ask::<Append, _>(&rpc, &option).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failed<openraft::error::InstallSnapshotError>> {
        let reply = self.ask::<SnapshotPiece, _>(&rpc, &option).await?;
        reply.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, RaftError::APIError(error))))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, Failed<openraft::error::Infallible>> {
        self.ask::<RequestVote, _>(&rpc, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.peers.backoff))
    }
}
