//! The guest is over. The log must say so before its machine goes: a stop is never mistaken for a death (DESIGN, rule 1).

use pollux_state::{
    Command,
    id::Generation,
    vm::{Desired, Phase, StopCause},
};

use crate::{
    core::VmCore,
    event::{Effect, Effects, Event},
    role::{Role, Turn},
};

#[derive(Debug)]
pub(crate) struct Releasing {
    generation: Generation,
    cause: StopCause,
    disks: Disks,
}

/// Whether its disks are fit for whoever uses them next. From [`Command::Release`] on that may be anybody, at once.
#[derive(Debug, PartialEq, Eq)]
enum Disks {
    Unsettled,
    Settling,
    /// Or not worth waiting for: something may be under way that never ends.
    Settled,
}

impl Releasing {
    /// Whatever the guest is doing.
    pub(crate) fn new(generation: Generation, cause: StopCause) -> Self {
        Self { generation, cause, disks: Disks::Settled }
    }

    /// It has switched itself off.
    pub(crate) fn off(generation: Generation, cause: StopCause) -> Self {
        Self { generation, cause, disks: Disks::Unsettled }
    }

    pub(crate) fn take_in(&mut self, event: &Event) {
        if *event == Event::Settled {
            self.disks = Disks::Settled;
        }
    }

    pub(crate) fn step(mut self, core: &mut VmCore, fx: &mut Effects) -> Turn {
        core.close_gate(fx);
        let me = core.me;
        let Some(seen) = core.view.vm.as_ref() else { return core.discard(fx) };
        let generation = seen.generation;
        match &seen.phase {
            // A move was won meanwhile: it is the target's now, unless it gives it back.
            Phase::Arriving { from, .. } if *from == me => return Turn::Stay(Role::Releasing(self)),
            // Given back, but what is left here is not worth running.
            Phase::Running { owner } | Phase::Moving { from: owner, .. }
                if *owner == me && generation > self.generation =>
            {
                self.generation = generation;
            }
            Phase::Stopped { .. } | Phase::Running { .. } | Phase::Moving { .. } | Phase::Arriving { .. } => {}
        }
        if core.owned(self.generation).is_none() {
            return core.discard(fx);
        }
        // Whoever forces it does not wait for a disk.
        if seen.desired == (Desired::Stopped { force: true }) {
            self.disks = Disks::Settled;
        }
        match self.disks {
            Disks::Unsettled => {
                self.disks = Disks::Settling;
                fx.push(Effect::Settle);
                return Turn::Stay(Role::Releasing(self));
            }
            Disks::Settling => return Turn::Stay(Role::Releasing(self)),
            Disks::Settled => {}
        }
        let (incarnation, cause) = (me.incarnation, self.cause.clone());
        core.ask(fx, Command::Release { vm: core.vm, expect: self.generation, incarnation, cause });
        Turn::Stay(Role::Releasing(self))
    }
}
