//! Why a move cannot work, found before anything starts. All reasons at once, each with what to do.

use std::collections::BTreeMap;

use pollux_raft::{NodeHealth, Verdict};
use pollux_state::{
    ClusterState,
    id::NodeId,
    node::Node,
    vm::{Phase, Vm},
};

use crate::api::ApiError;

pub(super) fn check(
    state: &ClusterState,
    vm: &Vm,
    to: &Node,
    health: Option<&BTreeMap<NodeId, NodeHealth>>,
) -> Result<(), ApiError> {
    let reasons = reasons(state, vm, to, health);
    if reasons.is_empty() {
        return Ok(());
    }
    let message = format!("VM {} cannot move to {}: {}", vm.spec.name, to.name, reasons.join("; "));
    Err(ApiError::conflict(message).todo("`pollux node show` tells what a node has; nothing was started"))
}

fn reasons(state: &ClusterState, vm: &Vm, to: &Node, health: Option<&BTreeMap<NodeId, NodeHealth>>) -> Vec<String> {
    let mut reasons = Vec::new();
    let owner = match &vm.phase {
        Phase::Running { owner } => *owner,
        Phase::Stopped { .. } => {
            reasons.push("it does not run (a stopped VM is started elsewhere with `pollux vm start --node`)".into());
            return reasons;
        }
        Phase::Moving { op, .. } | Phase::Arriving { op, .. } => {
            reasons.push(format!("operation {op} is moving it already"));
            return reasons;
        }
    };
    if owner.node == to.id {
        reasons.push("it is there already".into());
        return reasons;
    }
    if to.incarnation.0 == 0 {
        reasons.push(format!("the daemon of {} has never been started", to.name));
        return reasons;
    }
    if health.and_then(|health| health.get(&to.id)).is_some_and(|health| health.verdict == Verdict::Down) {
        reasons.push(format!("{} is down", to.name));
    }
    let Some(from) = state.nodes.get(&owner.node) else { return reasons };
    if !from.facts.tracking_refused.is_empty() {
        reasons.push(format!("its memory cannot be tracked on {}: {}", from.name, from.facts.tracking_refused));
    }
    if to.facts.qemu.is_empty() {
        reasons.push(format!("{} has no QEMU", to.name));
    } else if from.facts.qemu != to.facts.qemu {
        let (here, there) = (&from.facts.qemu, &to.facts.qemu);
        reasons.push(format!("the QEMU builds differ: {here} on {}, {there} on {}", from.name, to.name));
    }
    if from.facts.accelerator != to.facts.accelerator {
        let (here, there) = (&from.facts.accelerator, &to.facts.accelerator);
        reasons.push(format!("{} runs guests by {here}, {} by {there}", from.name, to.name));
    }
    for nic in &vm.spec.nics {
        if !to.facts.bridges.contains(&nic.bridge) {
            reasons.push(format!("{} had no bridge {} when its daemon started", to.name, nic.bridge));
        }
    }
    if vm.spec.memory_mib > to.facts.memory_mib {
        let (needs, has) = (vm.spec.memory_mib, to.facts.memory_mib);
        reasons.push(format!("it needs {needs} MiB of memory, {} has {has} MiB in all", to.name));
    }
    reasons
}
