//! What is wrong with the cluster, worst first, and what to do about it.

use pollux_raft::Status;
use pollux_state::{
    ClusterState,
    id::NodeId,
    vm::{Desired, Phase, StopCause},
};

use super::backend::problem;
use crate::api::types::{Health, NodeView, Problem};

/// Fewer voters than this do not survive the loss of one.
const SAFE_VOTERS: usize = 3;

pub(super) fn of(state: &ClusterState, status: &Status, nodes: &[NodeView], quorum: bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(failure) = &status.failure {
        let todo = "see the daemon's log; start it again when the cause is gone";
        problems.push(problem(format!("this node's consensus has failed: {failure}"), todo));
    }
    if !quorum {
        let todo = "bring back enough of the voters, or the network between them; VMs go on running meanwhile";
        problems.push(problem("no majority of the voters can be reached: nothing can be changed", todo));
    }
    for node in nodes {
        let silent = node.silent_ms.unwrap_or_default() / 1000;
        match node.health {
            Health::Down => problems.push(problem(
                format!("node {} is down: nothing heard from it for {silent} s", node.name),
                format!("start its daemon, or look at the network to {}", node.address),
            )),
            Health::Suspect => problems.push(problem(
                format!("node {} is overdue: nothing heard from it for {silent} s", node.name),
                "wait a moment; if it stays so, look at its load and network",
            )),
            Health::Alive | Health::Unknown => {}
        }
        if node.incarnation > 0 && node.tracking != "ok" {
            problems.push(problem(
                format!("VMs cannot be moved away from node {}: {}", node.name, node.tracking),
                "mend what it names and start its daemon again",
            ));
        }
        // What it merely does less well is told by `node show`.
        if let Some(lack) = state.nodes.get(&NodeId(node.id)).and_then(|node| node.facts.lack("fence")) {
            let todo = "mend what it names and start its daemon again";
            problems.push(problem(format!("node {}: {lack}", node.name), todo));
        }
    }
    let down = |id: NodeId| nodes.iter().find(|node| node.id == id.0 && node.health == Health::Down);
    for vm in state.vms.values() {
        let name = &vm.spec.name;
        if let Phase::Running { owner } | Phase::Moving { from: owner, .. } = vm.phase
            && let Some(node) = down(owner.node)
        {
            let again =
                if vm.spec.autostart { "it is started afresh when that daemon is back" } else { "it stays off" };
            problems.push(problem(
                format!("VM {name} was on node {}, which is down", node.name),
                format!("bring {} back: {again}, and nowhere else", node.name),
            ));
        }
        match (&vm.phase, vm.desired) {
            (Phase::Stopped { cause: StopCause::StartFailed(why) }, Desired::Running) => problems.push(problem(
                format!("VM {name} does not start ({} attempts): {why}", vm.failed_starts),
                "mend what it names; it is tried again by itself",
            )),
            (Phase::Arriving { .. }, _) => problems.push(problem(
                format!("VM {name} was handed over and its target has not said yet that it runs"),
                format!("if that lasts, bring the target back; if it is lost, see `pollux vm takeback {name} --help`"),
            )),
            (Phase::Stopped { .. } | Phase::Running { .. } | Phase::Moving { .. }, _) => {}
        }
    }
    if state.nodes.len() >= SAFE_VOTERS && status.voters.len() < SAFE_VOTERS {
        problems.push(problem(
            format!("only {} nodes vote: the loss of one stops every change", status.voters.len()),
            "wait until the third node has caught up; see that its daemon runs",
        ));
    }
    problems
}
