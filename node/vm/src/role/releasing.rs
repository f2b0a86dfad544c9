//! The guest is over. The log must say so before its machine goes: a stop is never mistaken for a death (DESIGN, rule 1).

use pollux_state::{
    Command,
    id::Generation,
    vm::{Phase, StopCause},
};

use crate::{
    core::VmCore,
    event::Effects,
    role::{Role, Turn},
};

#[derive(Debug)]
pub(crate) struct Releasing {
    generation: Generation,
    cause: StopCause,
}

impl Releasing {
    pub(crate) fn new(generation: Generation, cause: StopCause) -> Self {
        Self { generation, cause }
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
        let (incarnation, cause) = (me.incarnation, self.cause.clone());
        core.ask(fx, Command::Release { vm: core.vm, expect: self.generation, incarnation, cause });
        Turn::Stay(Role::Releasing(self))
    }
}
