//! Why a move cannot work, found before anything starts: every reason at once. And what it would cost, where it can.
//!
//! What the log knows is looked up, what only the target's host knows is asked there, of its daemon as it is now.

use std::collections::BTreeMap;

use pollux_api::{ApiError, ForecastView, Obstacle, TargetView};
use pollux_raft::{NodeHealth, Verdict};
use pollux_state::{
    ClusterState,
    id::NodeId,
    node::Node,
    operation::{Along, MoveWishes},
    vm::{Desired, Phase, Vm, VmSpec},
};
use pollux_vm::{
    convergence::{Sample, plan},
    pages::PAGE_BYTES,
};

use super::{
    forward,
    run::Daemon,
    storage::{self, Plan, Wish},
};
use crate::vm::{FIRMWARE, MTU};

/// What the leader thinks of the nodes; `None`: it could not be asked.
pub(super) type Health = Option<BTreeMap<NodeId, NodeHealth>>;

/// Refuses a move that cannot work. Which volumes go along with one that can.
pub(super) async fn check(
    daemon: &Daemon,
    state: &ClusterState,
    vm: &Vm,
    to: &Node,
    health: &Health,
    wish: &Wish,
) -> Result<Vec<Along>, ApiError> {
    let (mut obstacles, plan) =
        futures::future::join(obstacles(daemon, state, vm, to, health), storage::plan(daemon, state, vm, to.id, wish))
            .await;
    obstacles.extend(plan.obstacles);
    if obstacles.is_empty() {
        return Ok(plan.along);
    }
    let reasons: Vec<String> = obstacles.into_iter().map(|obstacle| obstacle.what).collect();
    let message = format!("VM {} cannot move to {}: {}", vm.spec.name, to.name, reasons.join("; "));
    let name = &vm.spec.name;
    Err(ApiError::conflict(message)
        .todo(format!("nothing was started; `pollux vm migrate {name} --dry-run` tells which nodes could take it")))
}

/// Refuses a start on a node that has no firmware for it, or whose bridges do not carry what the guest's cards would tell it: it would
/// talk, and the large frames of its answers would be lost. What else may be missing there is found by the start itself.
pub(super) async fn startable(
    daemon: &Daemon,
    state: &ClusterState,
    spec: &VmSpec,
    on: NodeId,
) -> Result<(), ApiError> {
    let asks = spec.firmware().is_some() || spec.nics.iter().any(|nic| nic.told_mtu().is_some());
    if !asks {
        return Ok(());
    }
    let found = forward::can_run(daemon, state, on, spec).await.unwrap_or_default();
    let of = |about: &str| found.iter().filter(|it| it.about == about).map(|it| it.what.clone()).collect::<Vec<_>>();
    let (missing, narrow) = (of(FIRMWARE), of(MTU));
    let todo = match (missing.is_empty(), narrow.is_empty()) {
        (true, true) => return Ok(()),
        (true, false) => "nothing was changed; raise the MTU there, or create the VM with a smaller --mtu",
        (false, _) => "nothing was changed; `pollux node show NODE` tells which nodes have UEFI firmware",
    };
    let (name, node) = (&spec.name, state.name_of(on).map_or_else(|| on.to_string(), str::to_owned));
    let why = [missing, narrow].concat().join("; ");
    Err(ApiError::conflict(format!("VM {name} cannot run on {node}: {why}")).todo(todo))
}

/// Everything that stands in the way of `vm` moving to `to` now.
pub(super) async fn obstacles(
    daemon: &Daemon,
    state: &ClusterState,
    vm: &Vm,
    to: &Node,
    health: &Health,
) -> Vec<Obstacle> {
    let mut found: Vec<Obstacle> = of_phase(state, vm, to).into_iter().collect();
    let reachable = of_peer(to, health);
    let silent = reachable.is_some();
    found.extend(reachable);
    let owner = vm.phase.owner().and_then(|owner| state.nodes.get(&owner.node));
    if let Some(from) = owner.filter(|from| from.id != to.id) {
        found.extend(of_pair(from, to));
        found.extend(of_firmware(&vm.spec, from, to));
    }
    // Of its own host the owner has found the VM to fit.
    if !silent && owner.is_none_or(|from| from.id != to.id) {
        match forward::can_run(daemon, state, to.id, &vm.spec).await {
            // One that stays stopped needs no memory now.
            Some(there) => found.extend(there.into_iter().filter(|it| owner.is_some() || it.about != "memory")),
            None => found.push(Obstacle::new("peer", format!("the daemon of {} does not answer", to.name))),
        }
    }
    found
}

fn of_phase(state: &ClusterState, vm: &Vm, to: &Node) -> Option<Obstacle> {
    let what = match (&vm.phase, state.waiting_move_of(vm.id)) {
        (_, Some(waiting)) => format!("operation {waiting} waits to move it"),
        (Phase::Stopped { .. }, None) if vm.desired == Desired::Running => "it is to be started".into(),
        (Phase::Stopped { .. }, None) if vm.home == to.id => "it is at home there already".into(),
        (Phase::Stopped { .. }, None) => return None,
        (Phase::Moving { op, .. } | Phase::Arriving { op, .. }, None) => format!("operation {op} is moving it already"),
        (Phase::Running { owner }, None) if owner.node == to.id => "it is there already".into(),
        (Phase::Running { owner }, None) => {
            if !state.lives(*owner) {
                "its node's daemon was started again and has yet to start it".into()
            } else if vm.desired != Desired::Running {
                "it is to be stopped".into()
            } else {
                return None;
            }
        }
    };
    Some(Obstacle::new("phase", what))
}

fn of_peer(to: &Node, health: &Health) -> Option<Obstacle> {
    if to.incarnation.0 == 0 {
        return Some(Obstacle::new("peer", format!("the daemon of {} has never been started", to.name)));
    }
    let health = health.as_ref()?.get(&to.id)?;
    (health.verdict == Verdict::Down)
        .then(|| Obstacle::new("peer", format!("{} is down: not heard of for {} s", to.name, health.silent_ms / 1000)))
}

/// What two hosts must have in common for a guest to go from one to the other.
fn of_pair(from: &Node, to: &Node) -> Vec<Obstacle> {
    let mut found = Vec::new();
    if !from.facts.tracking_refused.is_empty() {
        let why = &from.facts.tracking_refused;
        found.push(Obstacle::new("tracking", format!("its memory cannot be tracked on {}: {why}", from.name)));
    }
    let (here, there) = (&from.facts.qemu, &to.facts.qemu);
    if there.is_empty() {
        found.push(Obstacle::new("qemu", format!("{} has no QEMU", to.name)));
    } else if here != there {
        let text = format!("the QEMU builds differ: {here} on {}, {there} on {}", from.name, to.name);
        found.push(Obstacle::new("qemu", text));
    }
    let (here, there) = (&from.facts.accelerator, &to.facts.accelerator);
    if here != there {
        let text = format!("{} runs guests by {here}, {} by {there}", from.name, to.name);
        found.push(Obstacle::new("cpu", text));
    }
    if let (Some(here), Some(there)) = (from.facts.tsc(), to.facts.tsc())
        && !there.takes(here.khz)
    {
        let text = format!(
            "the guest's clock counts at {} kHz, {}'s processors at {} kHz and they cannot be made to count otherwise",
            here.khz, to.name, there.khz
        );
        found.push(Obstacle::new("tsc", text));
    }
    found
}

/// A guest that boots by UEFI has the firmware in its memory, and gets it again from its host at each reset: it has to be the same. That
/// there is none at all the target says itself.
fn of_firmware(spec: &VmSpec, from: &Node, to: &Node) -> Option<Obstacle> {
    spec.firmware()?;
    let (here, there) = (from.facts.uefi()?, to.facts.uefi()?);
    (here != there).then(|| {
        let text = format!(
            "the UEFI firmware differs: build {here} on {}, {there} on {}; bring the package ovmf to one version",
            from.name, to.name
        );
        Obstacle::new(FIRMWARE, text)
    })
}

/// One line of the answer to "could it move there?". A forecast is made when `wishes` say how it would be moved.
pub(super) async fn target(
    daemon: &Daemon,
    state: &ClusterState,
    vm: &Vm,
    to: &Node,
    health: &Health,
    (wishes, wish): (Option<&MoveWishes>, &Wish),
) -> TargetView {
    let (mut obstacles, Plan { disks, obstacles: of_disks, .. }) =
        futures::future::join(obstacles(daemon, state, vm, to, health), storage::plan(daemon, state, vm, to.id, wish))
            .await;
    obstacles.extend(of_disks);
    let (node, fits) = (to.name.clone(), obstacles.is_empty());
    let mut view = TargetView { node, fits, obstacles, forecast: None, no_forecast: None, disks };
    let (Some(wishes), Phase::Running { owner }) = (wishes, &vm.phase) else { return view };
    if !view.fits {
        return view;
    }
    match forward::sample(daemon, state, owner.node, (vm.id, to.id)).await {
        Ok(sample) => view.forecast = Some(forecast(sample, wishes)),
        Err(why) => view.no_forecast = Some(why),
    }
    view
}

fn forecast(mut sample: Sample, wishes: &MoveWishes) -> ForecastView {
    if let Some(bandwidth) = wishes.bandwidth {
        let copied = bandwidth.saturating_mul(1000) / sample.wire_permille.max(1);
        sample.bytes_per_s = sample.bytes_per_s.min(copied);
    }
    if wishes.warm {
        // It stands still: nothing is written, and all of it is the pause.
        sample.dirty_pages_per_s = 0;
    }
    let mut plan = plan(&sample, u64::from(wishes.blackout_ms_max), wishes.throttle);
    if wishes.warm {
        plan.blackout_ms = plan.total_ms;
    }
    let page = PAGE_BYTES as u64;
    ForecastView {
        converges: plan.stalls.is_none(),
        why_not: plan.stalls,
        rounds: plan.rounds,
        total_ms: plan.total_ms,
        wire_bytes: plan.wire_bytes,
        blackout_ms: plan.blackout_ms,
        throttle_percent: plan.throttle_percent,
        memory_bytes: sample.pages * page,
        dirty_bytes_per_s: sample.dirty_pages_per_s * page,
        copy_bytes_per_s: sample.bytes_per_s,
    }
}
