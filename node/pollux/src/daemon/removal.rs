//! Removing a node, and releasing what a lost one owned: what the API's verbs put to the log, in which order.
//!
//! Each step is an entry of its own that compares what the operator saw, and each may be made again: whoever is interrupted
//! between two of them repeats the command.

use std::{sync::Arc, time::Duration};

use pollux_api::{ApiError, Lost, ReleaseVm, RemoveNode, RemovedView, VmView};
use pollux_raft::Removal;
use pollux_state::{
    ClusterState, Command,
    id::{Generation, Incarnation, NodeId},
    node::Node,
    vm::{Phase, Vm},
};

use super::{
    backend::{Api, node_named, vm_named},
    run::{Daemon, RunError},
};

/// How long a node that was removed waits until the log does not need its vote any more, in milliseconds.
const LET_GO_MS_MAX: u64 = 10_000;

impl Api {
    pub(super) async fn release(&self, name: &str, request: ReleaseVm) -> Result<VmView, ApiError> {
        let vm = vm_named(&*self.state().await, name)?.id;
        let expect = Generation(request.generation);
        self.propose(Command::ReleaseLost { vm, expect, operator: request.operator }).await?;
        self.named_vm(name).await
    }

    pub(super) async fn remove(&self, name: &str, request: RemoveNode) -> Result<RemovedView, ApiError> {
        let state = self.state().await;
        let node = node_named(&state, name)?;
        self.keeps_the_authority(&state, node).await?;
        let heir = heir(&state, node.id, self.0.identity.node())
            .ok_or_else(|| ApiError::conflict(format!("{name} is the last node; a cluster ends with its directory")))?;
        let mut view = RemovedView { node: node.name.clone(), id: node.id.0, ..RemovedView::default() };
        let lost = request.lost.is_some();
        if let Some(lost) = request.lost {
            self.clear(&state, node.id, lost, &mut view).await.map_err(|error| after(&view, error))?;
        }
        let inherited = state.vms.values().filter(|vm| vm.home == node.id).map(|vm| vm.spec.name.clone());
        view.inherited = inherited.collect();
        view.heir = state.name_of(heir).unwrap_or_default().to_owned();
        let command = Command::RemoveNode { node: node.id, after: Incarnation(request.incarnation), heir, lost };
        self.propose(command).await.map_err(|error| after(&view, error))?;
        Ok(view)
    }

    /// Only who holds the CA's key admits nodes. One that is alive can hand a copy on; what is lost is lost.
    async fn keeps_the_authority(&self, state: &ClusterState, node: &Node) -> Result<(), ApiError> {
        let only = node.authority && !state.nodes.values().any(|other| other.authority && other.id != node.id);
        let health = self.health().await.unwrap_or_default();
        let alive = health.get(&node.id).is_some_and(|health| health.verdict != pollux_raft::Verdict::Down);
        if !only || !alive {
            return Ok(());
        }
        let why = format!("{} alone holds the cluster's CA key: without it nobody could join any more", node.name);
        Err(ApiError::conflict(why).todo(
            "copy its `authority/` to the state directory of another node and restart that daemon first \
             (docs/operations.md, \"The CA's key\")",
        ))
    }

    /// Takes everything out of a lost node's hands that the operator saw in them.
    async fn clear(
        &self,
        state: &ClusterState,
        node: NodeId,
        lost: Lost,
        view: &mut RemovedView,
    ) -> Result<(), ApiError> {
        let Lost { operator, vms: seen } = lost;
        let owned: Vec<&Vm> =
            state.vms.values().filter(|vm| vm.phase.owner().is_some_and(|owner| owner.node == node)).collect();
        if let Some(unseen) = owned.iter().find(|vm| seen.get(&vm.spec.name) != Some(&vm.generation.0)) {
            let why = format!("VM {} changed hands since you looked; nothing was done", unseen.spec.name);
            return Err(ApiError::conflict(why).todo("look again (`pollux vm list`), then repeat this"));
        }
        for vm in owned {
            let (id, expect, operator, name) = (vm.id, vm.generation, operator.clone(), vm.spec.name.clone());
            match vm.phase {
                // Its source has a whole copy, which goes on where it was paused.
                Phase::Arriving { from, .. } if from.node != node && state.lives(from) => {
                    self.propose(Command::TakeBack { vm: id, expect, operator }).await?;
                    view.taken_back.push(name);
                }
                Phase::Stopped { .. } | Phase::Running { .. } | Phase::Moving { .. } | Phase::Arriving { .. } => {
                    self.propose(Command::ReleaseLost { vm: id, expect, operator }).await?;
                    view.released.push(name);
                }
            }
        }
        Ok(())
    }
}

/// Where stopped VMs of `node` have their home from then on: where the operator is, or else on the oldest node that started.
fn heir(state: &ClusterState, node: NodeId, here: NodeId) -> Option<NodeId> {
    let others = || state.nodes.values().filter(|other| other.id != node);
    let here = others().find(|other| other.id == here);
    let started = || others().find(|other| other.incarnation != Incarnation::default());
    here.or_else(started).or_else(|| others().next()).map(|other| other.id)
}

/// The same error, saying what was done before it.
fn after(view: &RemovedView, mut error: ApiError) -> ApiError {
    let done: Vec<&str> = view.released.iter().chain(&view.taken_back).map(String::as_str).collect();
    if !done.is_empty() {
        error.message = format!("{} ({} released before that)", error.message, done.join(", "));
    }
    error
}

/// Ends when this node was removed: why the daemon must end, too.
pub(super) async fn removal(daemon: &Arc<Daemon>) -> RunError {
    let name = daemon.identity.name().to_owned();
    let how = match daemon.consensus.removed().await {
        Removal::Decided => "the cluster decided it".to_owned(),
        Removal::Told(by) => format!("another node does not admit it any more ({by})"),
    };
    tracing::error!(
        node = name,
        how,
        "this node was removed from the cluster: its VMs end now, and so does this daemon"
    );
    RunError::Removed { name, how }
}

/// The last thing a removed node does for the cluster: it stays until its vote is not needed to let it go.
pub(super) async fn leave(daemon: &Daemon) {
    if !daemon.consensus.let_go(Duration::from_millis(LET_GO_MS_MAX)).await {
        tracing::warn!(
            "this node's vote may still be needed; if the cluster has no quorum now, start this daemon again"
        );
    }
}
