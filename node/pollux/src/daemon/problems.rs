//! What is wrong with the cluster, worst first, and what to do about it.

use std::collections::BTreeMap;

use pollux_api::{Health, NodeRole, NodeView, Problem};
use pollux_raft::Status;
use pollux_state::{
    ClusterState,
    id::{NodeId, VmId},
    vm::{Desired, Phase, StopCause},
};

use super::{backend::problem, forward::Troubles};

/// Fewer voters than this do not survive the loss of one.
const SAFE_VOTERS: usize = 3;

pub(super) fn of(state: &ClusterState, status: &Status, nodes: &[NodeView], quorum: bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(failure) = &status.failure {
        let todo = "see the daemon's log; start it again when the cause is gone";
        problems.push(problem(format!("this node's consensus has failed: {failure}"), todo));
    }
    if !quorum {
        let voters = status.voters.iter().filter_map(|voter| state.name_of(*voter));
        let todo = format!(
            "bring back enough of the voters ({}), or the network between them; VMs go on running meanwhile",
            voters.collect::<Vec<_>>().join(", ")
        );
        problems.push(problem("no majority of the voters can be reached: nothing can be changed", todo));
    }
    for node in nodes {
        let silent = node.silent_ms.unwrap_or_default() / 1000;
        let name = &node.name;
        match node.health {
            Health::Alive | Health::Suspect | Health::Down if node.incarnation == 0 => problems.push(problem(
                format!("node {name} has joined and its daemon never started"),
                format!("start it (`pollux node run` there), or give it up: `pollux node remove {name}`"),
            )),
            Health::Down => problems.push(problem(
                format!("node {} is down: nothing heard from it for {silent} s", node.name),
                format!(
                    "start its daemon, or look at the network to {}; if the host is gone for good, see `pollux node remove \
                     --help`",
                    node.address
                ),
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
                format!(
                    "bring {} back: {again}, and nowhere else; if the host is lost for good, see `pollux vm release --help`",
                    node.name
                ),
            ));
        }
        match (&vm.phase, vm.desired) {
            (Phase::Stopped { cause: StopCause::StartFailed(why) }, Desired::Running) => problems.push(problem(
                format!("VM {name} does not start ({} attempts): {why}", vm.failed_starts),
                "mend what it names; it is tried again by itself",
            )),
            (Phase::Stopped { .. }, Desired::Running) if down(vm.home).is_some() => problems.push(problem(
                format!(
                    "VM {name} is to be started on node {}, which is down",
                    down(vm.home).map_or("", |it| &it.name)
                ),
                format!("bring it back, or start the VM elsewhere: `pollux vm start {name} --node NODE`"),
            )),
            (Phase::Arriving { .. }, _) => problems.push(problem(
                format!("VM {name} was handed over and its target has not said yet that it runs"),
                format!("if that lasts, bring the target back; if it is lost, see `pollux vm takeback {name} --help`"),
            )),
            (Phase::Stopped { .. } | Phase::Running { .. } | Phase::Moving { .. }, _) => {}
        }
    }
    problems.extend(of_voters(nodes, quorum));
    problems.extend(of_versions(nodes));
    if quorum && !state.nodes.values().any(|node| node.authority) {
        let todo = "put the backup of the founder's `authority/` on a node (docs/operations.md, \"The CA's key\")";
        problems.push(problem("no node holds the cluster's CA key: no host can join", todo));
    }
    problems
}

/// What a node tells of its guests: those that stand still although they may run, and those whose firmware's variables are not saved.
pub(super) fn of_guests(state: &ClusterState, told: Troubles) -> Vec<Problem> {
    let named = |(vm, why): (VmId, String)| Some((state.vms.get(&vm)?.spec.name.as_str(), why));
    let waits = |(name, why): (&str, String)| {
        let what =
            format!("VM {name} stands still, for a disk does not take what it writes or does not give it: {why}");
        problem(
            what,
            "mend what it names (`pollux pool list` tells what is free); nothing is lost, and it goes on by itself",
        )
    };
    let unsaved = |(name, why): (&str, String)| {
        let what = format!("VM {name} runs, and what its firmware wrote is in its node's memory only: {why}");
        problem(
            what,
            "mend what it names, and it is saved by itself; until then move the VM if it has to leave its node, for a start anew \
             does without",
        )
    };
    let waiting = told.waits.into_iter().filter_map(named).map(waits);
    waiting.chain(told.unsaved.into_iter().filter_map(named).map(unsaved)).collect()
}

/// How many voters may be lost before the rest is no majority; `None`: it is none already, or nobody says who lives.
pub(super) fn margin(nodes: &[NodeView]) -> Option<u64> {
    let voters = nodes.iter().filter(|node| node.role == NodeRole::Voter);
    let (living, all) = voters.fold((0, 0), |(living, all), node| {
        (living + u64::from(matches!(node.health, Health::Alive | Health::Suspect)), all + 1)
    });
    living.checked_sub(all / 2 + 1)
}

fn of_voters(nodes: &[NodeView], quorum: bool) -> Option<Problem> {
    let voters: Vec<&NodeView> = nodes.iter().filter(|node| node.role == NodeRole::Voter).collect();
    let started = nodes.iter().filter(|node| node.incarnation > 0).count();
    if !quorum {
        return None;
    }
    let dead: Vec<&str> =
        voters.iter().filter(|node| node.health == Health::Down).map(|node| node.name.as_str()).collect();
    if margin(nodes) == Some(0) && !dead.is_empty() {
        return Some(problem(
            format!(
                "{} of {} voters are alive: the loss of one more stops every change",
                voters.len() - dead.len(),
                voters.len()
            ),
            format!("bring back {}; another node that is well takes its vote by itself", dead.join(", ")),
        ));
    }
    if voters.len().is_multiple_of(2) {
        return Some(problem(
            format!("an even number of nodes votes ({}): one more to lose, and no more that may be lost", voters.len()),
            "wait: it becomes odd by itself as soon as another node is well and has the log",
        ));
    }
    if started >= SAFE_VOTERS && voters.len() < SAFE_VOTERS {
        return Some(problem(
            format!("only {} of {started} nodes votes: its loss stops every change", voters.len()),
            "wait until two others are well and have the log; see that their daemons run",
        ));
    }
    None
}

fn of_versions(nodes: &[NodeView]) -> Option<Problem> {
    let mut by_version: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in nodes.iter().filter(|node| node.incarnation > 0) {
        by_version.entry(&node.version).or_default().push(&node.name);
    }
    let each = by_version.iter().map(|(version, names)| format!("{version} on {}", names.join(", ")));
    (by_version.len() > 1).then(|| {
        let what = format!("the nodes run different versions of pollux: {}", each.collect::<Vec<_>>().join("; "));
        problem(what, "bring them to one version, host by host; move VMs away before a daemon is restarted")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(health: &[Health]) -> Vec<NodeView> {
        let node = |(at, health): (usize, &Health)| NodeView {
            name: format!("n{}", at + 1),
            health: *health,
            ..crate::api::fake::node()
        };
        health.iter().enumerate().map(node).collect()
    }

    #[test]
    fn how_many_more_may_be_lost_is_counted_from_those_that_live() {
        use Health::{Alive, Down, Suspect, Unknown};
        let cases: [(&[Health], Option<u64>); 6] = [
            (&[Alive], Some(0)),
            (&[Alive, Alive, Alive], Some(1)),
            (&[Alive, Suspect, Down], Some(0)),
            (&[Alive, Down, Down], None),
            (&[Alive, Alive, Alive, Alive, Down], Some(1)),
            (&[Unknown, Unknown, Unknown], None),
        ];
        for (health, expected) in cases {
            assert_eq!(margin(&nodes(health)), expected, "{health:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_voters_is_said_once_and_with_names() {
        use Health::{Alive, Down};
        assert_eq!(of_voters(&nodes(&[Alive, Alive, Alive]), true), None);
        assert_eq!(of_voters(&nodes(&[Alive]), true), None, "one node is what one node can be");
        let no_margin = of_voters(&nodes(&[Alive, Alive, Down]), true).expect("a problem");
        assert!(no_margin.what.starts_with("2 of 3 voters") && no_margin.todo.contains("n3"), "{no_margin:?}");
        let even = of_voters(&nodes(&[Alive, Alive]), true).expect("a problem");
        assert!(even.what.contains("even"), "{even:?}");
    }

    #[test]
    fn nodes_of_different_versions_are_named() {
        let mut nodes = nodes(&[Health::Alive, Health::Alive, Health::Alive]);
        assert_eq!(of_versions(&nodes), None);
        nodes[2].version = "0.2.0".into();
        let skew = of_versions(&nodes).expect("a problem").what;
        assert!(skew.contains("0.1.0 on n1, n2") && skew.contains("0.2.0 on n3"), "{skew}");
    }
}
