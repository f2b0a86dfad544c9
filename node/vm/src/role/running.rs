//! The guest runs here.

use alloc::{format, string::String};

use pollux_state::{
    Command,
    id::{Generation, OpId},
    operation::MoveReport,
    vm::{Desired, Phase, StopCause},
};

use crate::{
    Millis,
    core::VmCore,
    event::{Effect, Effects, Event},
    role::{Releasing, Role, Source, Turn},
};

/// A guest that is still booting may not see the power button being pressed. Milliseconds between two attempts.
const PRESS_AGAIN_MS: u64 = 5_000;

#[derive(Debug)]
pub(crate) struct Running {
    generation: Generation,
    /// The guest was told to run, and does.
    resumed: bool,
    /// What became of telling it to run was heard.
    answered: bool,
    /// It is new here: the bridges must learn it.
    announce: bool,
    /// It came by this move, which is to be reported done.
    arrival: Option<Arrival>,
    /// When the power button was last pressed, if a stop is under way.
    pressed: Option<Millis>,
    off: bool,
    ended: Option<String>,
    /// It was told to run and certainly did not: why.
    not_resumed: Option<String>,
}

#[derive(Debug)]
struct Arrival {
    op: OpId,
    report: MoveReport,
    /// When the last byte was in, until the pause that goes on from there is accounted for.
    received: Option<Millis>,
    began: Millis,
}

impl Running {
    /// Started from nothing.
    pub(crate) fn started(generation: Generation) -> Self {
        Self {
            generation,
            resumed: false,
            answered: false,
            announce: false,
            arrival: None,
            pressed: None,
            off: false,
            ended: None,
            not_resumed: None,
        }
    }

    /// Came by a move, of which this node was the target since `began`.
    pub(crate) fn arrived(
        generation: Generation,
        op: OpId,
        report: MoveReport,
        received: Millis,
        began: Millis,
    ) -> Self {
        let arrival = Some(Arrival { op, report, received: Some(received), began });
        Self { announce: true, arrival, ..Self::started(generation) }
    }

    /// Goes on here after a move that was not to be; `resumed`: it had never been paused.
    pub(crate) fn again(generation: Generation, resumed: bool) -> Self {
        Self { resumed, announce: !resumed, ..Self::started(generation) }
    }

    pub(crate) fn name(&self) -> &'static str {
        if self.resumed { "running" } else { "resuming" }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "what does not concern a running guest is dropped")]
    pub(crate) fn take_in(&mut self, event: Event) {
        match event {
            Event::Resumed => (self.resumed, self.answered) = (true, true),
            Event::NotResumed(why) => (self.not_resumed, self.answered) = (Some(why), true),
            Event::ResumeUnknown(why) => (self.ended, self.answered) = (Some(why), true),
            Event::GuestOff => self.off = true,
            Event::MachineEnded(why) => self.ended = Some(why),
            _ => {}
        }
    }

    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.pressed.map(|at| at + PRESS_AGAIN_MS)
    }

    pub(crate) fn step(mut self, core: &mut VmCore, fx: &mut Effects) -> Turn {
        let Some(seen) = core.owned(self.generation).cloned() else { return core.discard(fx) };
        if let Some(why) = self.not_resumed.take() {
            if let (Phase::Arriving { op, .. }, Some(_)) = (&seen.phase, &self.arrival) {
                // The source still has its copy, and nothing newer has acted: once nothing is left here, it is given back.
                core.spoiled = Some((*op, format!("the target could not let the guest run: {why}")));
                return core.discard(fx);
            }
            self.ended.get_or_insert(why);
        }
        // What became of the resume is still to come; if the guest did not run, its source has a whole copy.
        let awaited = !self.answered && self.arrival.is_some() && matches!(seen.phase, Phase::Arriving { .. });
        if let Some(why) = self.ended.take_if(|_| !awaited) {
            return Turn::Go(Role::Releasing(Releasing::new(self.generation, StopCause::QemuEnded(why))));
        }
        if self.resumed && self.announce {
            self.announce = false;
            fx.push(Effect::Announce);
        }
        if self.resumed
            && let Some(arrival) = &mut self.arrival
            && let Some(received) = arrival.received.take()
        {
            let loading = u32::try_from(core.now - received).unwrap_or(u32::MAX);
            arrival.report.pause_ms = arrival.report.pause_ms.saturating_add(loading);
            arrival.report.total_ms = core.now - arrival.began;
        }
        match (&seen.phase, &self.arrival) {
            (Phase::Arriving { op, .. }, Some(arrival)) => {
                assert_eq!(*op, arrival.op, "{} arrived by another move", core.vm);
                if self.resumed {
                    let (op, report) = (*op, arrival.report.clone());
                    core.ask(fx, Command::Arrived { vm: core.vm, op, expect: self.generation, report });
                }
            }
            (Phase::Arriving { op, .. }, None) => panic!("{} runs here but arrives by {op}", core.vm),
            (Phase::Stopped { .. } | Phase::Running { .. } | Phase::Moving { .. }, _) => self.arrival = None,
        }
        if self.off {
            let asked = matches!(seen.desired, Desired::Stopped { .. });
            let cause = if asked { StopCause::Operator } else { StopCause::GuestPowerOff };
            return Turn::Go(Role::Releasing(Releasing::off(self.generation, cause)));
        }
        match seen.desired {
            Desired::Running => self.pressed = None,
            Desired::Stopped { force: true } => {
                return Turn::Go(Role::Releasing(Releasing::new(self.generation, StopCause::Operator)));
            }
            Desired::Stopped { force: false } => {
                if self.resumed && self.pressed.is_none_or(|at| core.now >= at + PRESS_AGAIN_MS) {
                    self.pressed = Some(core.now);
                    fx.push(Effect::PowerButton);
                }
            }
        }
        if let Phase::Moving { op, to, .. } = seen.phase
            && self.resumed
        {
            let bandwidth = seen.wishes.and_then(|wishes| wishes.bandwidth);
            fx.push(Effect::Connect { op, to, generation: self.generation, bandwidth });
            return Turn::Go(Role::Source(Source::new(op, to, self.generation, &seen, core.now)));
        }
        Turn::Stay(Role::Running(self))
    }
}
