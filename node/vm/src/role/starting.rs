//! The VM was claimed; its machine is being made from nothing.

use alloc::string::String;

use pollux_state::{
    id::Generation,
    vm::{Desired, StopCause},
};

use crate::{
    core::VmCore,
    event::{Effects, Event},
    role::{Releasing, Role, Running, Turn},
};

#[derive(Debug)]
pub(crate) struct Starting {
    generation: Generation,
    ready: bool,
    failed: Option<String>,
}

impl Starting {
    pub(crate) fn new(generation: Generation) -> Self {
        Self { generation, ready: false, failed: None }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "what does not concern a start is dropped")]
    pub(crate) fn take_in(&mut self, event: Event) {
        match event {
            Event::MachineReady => self.ready = true,
            Event::MachineFailed(why) | Event::MachineEnded(why) => self.failed = Some(why),
            _ => {}
        }
    }

    pub(crate) fn step(self, core: &mut VmCore, fx: &mut Effects) -> Turn {
        let Some(seen) = core.owned(self.generation) else { return core.discard(fx) };
        if let Some(why) = self.failed {
            return Turn::Go(Role::Releasing(Releasing::new(self.generation, StopCause::StartFailed(why))));
        }
        if matches!(seen.desired, Desired::Stopped { .. }) {
            return Turn::Go(Role::Releasing(Releasing::new(self.generation, StopCause::Operator)));
        }
        if self.ready && core.sure(fx) {
            core.resume(fx, self.generation);
            return Turn::Go(Role::Running(Running::started(self.generation)));
        }
        Turn::Stay(Role::Starting(self))
    }
}
