//! What the daemon shows to Prometheus: looked up when it is asked for, counted as it happens.

use std::{sync::Arc, time::Duration};

use pollux_api::Runtime;
use pollux_link::Class;
use pollux_raft::Role;
use pollux_state::vm::{Desired, Phase, StopCause, Vm};

use super::{forward, run::Daemon, storage, views};
use crate::metrics::{self, KnownMoves, PHASES, RUNTIMES, Raft, Sample};

/// How often what was recorded is summed up although nobody asks, in milliseconds.
const UPKEEP_MS: u64 = 10_000;

/// Counts what this node hears of for as long as it lives: its moves as the log tells them, and who leads.
pub(super) async fn count(daemon: Arc<Daemon>) {
    let mut known = KnownMoves::default();
    let (mut applied, mut leader) = (daemon.consensus.watch(), daemon.consensus.leader());
    let mut led = None;
    let me = daemon.identity.node();
    let mut upkeep = tokio::time::interval(Duration::from_millis(UPKEEP_MS));
    loop {
        let view = applied.borrow_and_update().clone();
        // A log that has not been read far enough to know its cluster knows no moves either.
        if view.state.cluster.is_some() {
            metrics::count_moves(&mut known, metrics::moves_from(&view.state, me));
        }
        let leads = *leader.borrow_and_update();
        if leads.is_some() && leads != led {
            led = leads;
            metrics::leader_changed();
        }
        tokio::select! {
            Ok(()) = applied.changed() => {}
            Ok(()) = leader.changed() => {}
            // What was recorded waits one by one until somebody looks, or this.
            _ = upkeep.tick() => daemon.metrics.run_upkeep(),
        }
    }
}

/// All figures as text, as of now.
pub(super) async fn render(daemon: &Daemon) -> String {
    let sample = look(daemon).await;
    sample.set();
    metrics::ordered(&format!("{}\n\n{}", daemon.metrics.render(), sample.storage()))
}

async fn look(daemon: &Daemon) -> Sample {
    let (state, status) = (daemon.consensus.watch().borrow().state.clone(), daemon.consensus.status());
    let me = daemon.identity.node();
    let mut sample = Sample {
        version: env!("CARGO_PKG_VERSION").into(),
        frames: daemon.host.frames().await,
        machines: daemon.host.machines() as u64,
        link: daemon.endpoint.counters(),
        under_way: metrics::moves_from(&state, me).filter(|(_, ended)| ended.is_none()).count() as u64,
        raft: Raft {
            term: status.term,
            leads: status.role == Role::Leader,
            has_leader: status.leader.is_some(),
            voters: status.voters.len() as u64,
            last: status.last_log.unwrap_or_default(),
            applied: status.applied.unwrap_or_default(),
            snapshot: status.snapshot.unwrap_or_default(),
            touched_ms: status.touched_ms,
            counts: status.counts,
        },
        ..Sample::default()
    };
    if let Some(node) = state.nodes.get(&me) {
        sample.qemu.clone_from(&node.facts.qemu);
        sample.accelerator.clone_from(&node.facts.accelerator);
        sample.incarnation = node.incarnation.0;
    }
    for vm in state.vms.values() {
        *sample.phases.entry(phase(vm)).or_default() += 1;
        let start_failed = matches!(vm.phase, Phase::Stopped { cause: StopCause::StartFailed(_) });
        sample.failing += u64::from(start_failed && vm.desired == Desired::Running);
        if vm.phase.owner().is_some_and(|owner| owner.node == me) {
            let status = daemon.vms().and_then(|vms| vms.status(vm.id));
            let waits = forward::trouble_here(daemon, vm.id).is_some();
            if let Some(word) = runtime(views::runtime(status.as_ref(), waits)) {
                *sample.runtimes.entry(word).or_default() += 1;
            }
            sample.progress.extend(status.and_then(|status| status.progress).map(|(progress, _)| progress));
        }
    }
    storage::measure(daemon, &state, &mut sample).await;
    for (class, word) in [(Class::Consensus, "consensus"), (Class::Bulk, "bulk")] {
        let others = state.nodes.keys().filter(|node| **node != me);
        let connected = others.filter(|node| daemon.endpoint.path(**node, class).is_some()).count() as u64;
        sample.peers.insert(word, connected);
    }
    sample
}

fn phase(vm: &Vm) -> &'static str {
    let at = match vm.phase {
        Phase::Stopped { .. } => 0,
        Phase::Running { .. } => 1,
        Phase::Moving { .. } => 2,
        Phase::Arriving { .. } => 3,
    };
    PHASES[at]
}

/// The word for it; `None`: it is not known.
fn runtime(runtime: Runtime) -> Option<&'static str> {
    let at = match runtime {
        Runtime::None => 0,
        Runtime::Starting => 1,
        Runtime::Running => 2,
        Runtime::Paused => 3,
        Runtime::Sending => 4,
        Runtime::Saving => 5,
        Runtime::Receiving => 6,
        Runtime::Stopping => 7,
        Runtime::Fenced => 8,
        Runtime::Unknown => return None,
    };
    Some(RUNTIMES[at])
}
