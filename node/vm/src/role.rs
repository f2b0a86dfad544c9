//! What a node is doing about a VM: one file per role, with the data that role needs and nothing else.
//!
//! A role takes in the events that concern it, and steps: it compares itself with the view and stays or becomes another.
//! Events of a role that has passed (a late `RoundLanded`) are dropped here.

mod idle;
mod releasing;
mod running;
mod sink;
mod source;
mod starting;

pub(crate) use idle::Idle;
pub(crate) use releasing::Releasing;
pub(crate) use running::Running;
pub(crate) use sink::Sink;
pub(crate) use source::Source;
pub(crate) use starting::Starting;

use crate::{
    Millis,
    core::VmCore,
    event::{Effects, Event},
};

/// What a node is doing about a VM.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one per VM, and it is moved only when it changes")]
pub(crate) enum Role {
    /// Nothing of it is here.
    Idle(Idle),
    /// It was claimed; its machine is being made.
    Starting(Starting),
    /// Its guest runs here.
    Running(Running),
    /// Its guest runs here, or is paused, while it moves away.
    Source(Source),
    /// A copy of it is being gathered here.
    Sink(Sink),
    /// Its guest is over; the log must agree before its machine goes.
    Releasing(Releasing),
    /// Its machine is being ended.
    Discarding(Discarding),
}

/// Its machine is being ended; nothing else happens until it is gone (DESIGN, rule 18).
#[derive(Debug)]
pub(crate) struct Discarding;

/// What a step leads to.
#[derive(Debug)]
pub(crate) enum Turn {
    /// The role rests as it is.
    Stay(Role),
    /// Another role, which steps at once.
    Go(Role),
}

impl Role {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Idle(_) => "idle",
            Self::Starting(_) => "starting",
            Self::Running(running) => running.name(),
            Self::Source(source) => source.name(),
            Self::Sink(sink) => sink.name(),
            Self::Releasing(_) => "stopping",
            Self::Discarding(_) => "ending",
        }
    }

    pub(crate) fn step(self, core: &mut VmCore, fx: &mut Effects) -> Turn {
        match self {
            Self::Idle(idle) => idle.step(core, fx),
            Self::Starting(starting) => starting.step(core, fx),
            Self::Running(running) => running.step(core, fx),
            Self::Source(source) => source.step(core, fx),
            Self::Sink(sink) => sink.step(core, fx),
            Self::Releasing(releasing) => releasing.step(core, fx),
            Self::Discarding(Discarding) => Turn::Stay(Self::Discarding(Discarding)),
        }
    }

    pub(crate) fn take_in(&mut self, now: Millis, event: Event) {
        match self {
            Self::Starting(starting) => starting.take_in(event),
            Self::Running(running) => running.take_in(event),
            Self::Source(source) => source.take_in(now, event),
            Self::Sink(sink) => sink.take_in(event),
            Self::Discarding(Discarding) => {
                if event == Event::Gone {
                    *self = Self::Idle(Idle::new(now));
                }
            }
            Self::Releasing(releasing) => releasing.take_in(&event),
            Self::Idle(_) => {}
        }
    }

    /// A read of the log is done; it took this long.
    pub(crate) fn confirmed(&mut self, took_ms: u32) {
        if let Self::Source(source) = self {
            source.confirmed(took_ms);
        }
    }

    pub(crate) fn deadline(&self, core: &VmCore) -> Option<Millis> {
        match self {
            Self::Idle(idle) => idle.deadline(core),
            Self::Source(source) => source.deadline(core),
            Self::Sink(sink) => sink.deadline(core),
            Self::Running(running) => running.deadline(),
            Self::Starting(_) | Self::Releasing(_) | Self::Discarding(_) => None,
        }
    }
}
