//! Nothing of the VM is on this node: is there something to begin, or something left by an earlier life of the daemon?

use alloc::string::String;

use pollux_state::{
    Command,
    id::{OpId, Owner},
    vm::{Desired, Phase, StopCause},
};

use crate::{
    Millis,
    core::VmCore,
    event::{Effect, Effects},
    role::{Role, Sink, Starting, Turn, sink::LEAVING},
    view::Seen,
};

/// Why an earlier life of this daemon cannot go on with a move.
const RESTARTED: &str = "the daemon of the target node was restarted";

#[derive(Debug)]
pub(crate) struct Idle {
    /// When it became so; the pause after failed starts counts from here.
    since: Millis,
    /// When it saw first that an earlier life was moving the VM away.
    moving: Option<Millis>,
}

impl Idle {
    pub(crate) fn new(since: Millis) -> Self {
        Self { since, moving: None }
    }

    pub(crate) fn step(mut self, core: &mut VmCore, fx: &mut Effects) -> Turn {
        let Some(seen) = core.view.vm.clone() else { return Turn::Stay(Role::Idle(self)) };
        let me = core.me;
        match seen.phase {
            Phase::Stopped { .. } => {
                let wanted = seen.desired == Desired::Running && seen.home == me.node;
                if wanted && seen.ready && core.now >= self.not_before(core, &seen) {
                    claim(core, fx, &seen);
                }
            }
            Phase::Running { owner } | Phase::Moving { from: owner, .. } if owner == me => {
                if core.sure(fx) {
                    fx.push(Effect::Launch { standby: false, generation: seen.generation });
                    return Turn::Go(Role::Starting(Starting::new(seen.generation)));
                }
            }
            // The target of a move may have everything by now, and be about to say so; one that has not gives up by itself.
            // Without a leader it can say nothing: at the end there must be one.
            Phase::Moving { from: owner, .. } if owner.node == me.node && !self.waited_for_target(core, fx) => {
                self.moving.get_or_insert(core.now);
                let own = |command: &Command| matches!(command, Command::Claim { .. } | Command::Release { .. });
                core.unask(fx, own);
            }
            Phase::Running { owner } | Phase::Moving { from: owner, .. } if owner.node == me.node => {
                // The guest died with the earlier life.
                if seen.autostart && seen.desired == Desired::Running && seen.home == me.node {
                    claim(core, fx, &seen);
                } else {
                    release(core, fx, &seen);
                }
            }
            Phase::Moving { op, from, to } if to == me => return self.become_target(core, fx, &seen, op, from),
            Phase::Moving { op, to, .. } if to.node == me.node => abort(core, fx, &seen, op, RESTARTED.into()),
            Phase::Arriving { op, to, .. } if to == me => {
                // It was won, and the copy is gone before it ran: only a spoiled target comes here.
                let reason = core.spoiled.clone().filter(|(spoiled, _)| *spoiled == op).map(|(_, reason)| reason);
                let reason = reason.expect("a target that let its guest act stays in its role");
                give_back(core, fx, &seen, op, reason);
            }
            Phase::Arriving { op, to, .. } if to.node == me.node => {
                if core.untouched == Some(op) {
                    give_back(core, fx, &seen, op, RESTARTED.into());
                } else {
                    // The earlier life may have let the guest act: an older copy of it must not act again.
                    release(core, fx, &seen);
                }
            }
            Phase::Running { .. } | Phase::Moving { .. } | Phase::Arriving { .. } => {}
        }
        Turn::Stay(Role::Idle(self))
    }

    fn become_target(self, core: &mut VmCore, fx: &mut Effects, seen: &Seen, op: OpId, from: Owner) -> Turn {
        let spoiled = core.spoiled.clone().filter(|(spoiled, _)| *spoiled == op).map(|(_, reason)| reason);
        if let Some(reason) = spoiled.or(core.leaving.then(|| LEAVING.into())) {
            abort(core, fx, seen, op, reason);
            return Turn::Stay(Role::Idle(self));
        }
        fx.push(Effect::Admit { op, from, generation: seen.generation });
        fx.push(Effect::Launch { standby: true, generation: seen.generation });
        Turn::Go(Role::Sink(Sink::new(op, from, seen.generation, core.now)))
    }

    /// When a start may be tried again. Always from the newest record: a user's start ends the pause.
    fn not_before(&self, core: &VmCore, seen: &Seen) -> Millis {
        self.since + backoff_ms(core, seen.failed_starts)
    }

    pub(crate) fn deadline(&self, core: &VmCore) -> Option<Millis> {
        let seen = core.view.vm.as_ref()?;
        match seen.phase {
            Phase::Stopped { .. } => Some(self.not_before(core, seen)),
            Phase::Moving { from, .. } if from.node == core.me.node && from != core.me => {
                Some(self.waits_for_target(core)).filter(|at| core.now < *at)
            }
            Phase::Running { .. } | Phase::Moving { .. } | Phase::Arriving { .. } => None,
        }
    }

    fn waited_for_target(&self, core: &mut VmCore, fx: &mut Effects) -> bool {
        core.now >= self.waits_for_target(core) && core.sure(fx)
    }

    fn waits_for_target(&self, core: &VmCore) -> Millis {
        self.moving.unwrap_or(core.now).max(core.led_since) + core.limits.decide_ms
    }
}

fn backoff_ms(core: &VmCore, failures: u32) -> u64 {
    match failures {
        0 => 0,
        some => (core.limits.restart_ms << (some - 1).min(16)).min(core.limits.restart_ms_max),
    }
}

fn claim(core: &mut VmCore, fx: &mut Effects, seen: &Seen) {
    core.ask(fx, Command::Claim { vm: core.vm, expect: seen.generation, incarnation: core.me.incarnation });
}

fn release(core: &mut VmCore, fx: &mut Effects, seen: &Seen) {
    let incarnation = core.me.incarnation;
    let cause = StopCause::DaemonEnded;
    core.ask(fx, Command::Release { vm: core.vm, expect: seen.generation, incarnation, cause });
}

fn abort(core: &mut VmCore, fx: &mut Effects, seen: &Seen, op: OpId, reason: String) {
    core.ask(fx, Command::AbortMove { vm: core.vm, op, expect: seen.generation, reason });
}

fn give_back(core: &mut VmCore, fx: &mut Effects, seen: &Seen, op: OpId, reason: String) {
    core.ask(fx, Command::GiveBack { vm: core.vm, op, expect: seen.generation, reason });
}
