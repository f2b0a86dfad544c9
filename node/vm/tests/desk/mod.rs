//! A desk at which one core works: the test plays the log, the shell and the clock, and reads what the core wants done.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by several test binaries, each of which uses a part"
)]

use pollux_state::{
    Command, Outcome, Refusal,
    id::{Generation, Incarnation, NodeId, OpId, Owner, VmId},
    operation::{MoveReport, MoveWishes},
    vm::{Desired, Phase, StopCause},
};
use pollux_vm::{Effect, Effects, Event, Limits, Ticket, View, VmCore, event::RoundReport, view::Seen};

/// The daemon whose core is tested.
pub const ME: Owner = Owner { node: NodeId(1), incarnation: Incarnation(3) };
/// The life before.
pub const ME_BEFORE: Owner = Owner { node: NodeId(1), incarnation: Incarnation(2) };
/// The other end of moves.
pub const OTHER: Owner = Owner { node: NodeId(2), incarnation: Incarnation(5) };
pub const VM: VmId = VmId(7);
pub const OP: OpId = OpId([9; 16]);
pub const NEXT_OP: OpId = OpId([10; 16]);
pub const STOPPED: Phase = Phase::Stopped { cause: StopCause::Operator };
pub const LIMITS: Limits =
    Limits { connect_ms: 60_000, sure_ms: 2_000, decide_ms: 5_000, restart_ms: 1_000, restart_ms_max: 60_000 };
/// Longer than the pause after a refusal.
pub const A_SECOND: u64 = 1_000;

pub fn moving_away(op: OpId) -> Phase {
    Phase::Moving { op, from: ME, to: OTHER }
}

pub fn coming_here(op: OpId) -> Phase {
    Phase::Moving { op, from: OTHER, to: ME }
}

pub fn running(owner: Owner) -> Phase {
    Phase::Running { owner }
}

pub struct Desk {
    pub core: VmCore,
    /// What the log says; `decided` shows it to the core.
    pub seen: Seen,
    pub now: u64,
    index: u64,
}

impl Desk {
    pub fn new() -> Self {
        Self::after_restart(None)
    }

    pub fn after_restart(untouched: Option<OpId>) -> Self {
        let seen = Seen {
            generation: Generation(4),
            phase: STOPPED,
            desired: Desired::Running,
            home: ME.node,
            autostart: true,
            failed_starts: 0,
            ready: true,
            cancel: false,
            wishes: Some(MoveWishes { blackout_ms_max: 300, bandwidth: None, throttle: false, warm: false }),
        };
        Self { core: VmCore::new(ME, VM, LIMITS, untouched), seen, now: 10_000, index: 100 }
    }

    /// A guest that runs here at generation 5.
    pub fn with_running_guest() -> Self {
        let mut desk = Self::new();
        let fx = desk.decided(4, STOPPED);
        desk.answer(&fx, Outcome::Owned(Generation(5)));
        desk.hear(Event::MachineReady);
        desk.hear(Event::Resumed);
        desk.decided(5, running(ME));
        assert_eq!((desk.core.doing(), desk.core.gate()), ("running", Some(Generation(5))));
        desk
    }

    /// The core is told something; what it shows to people is left out of what it wants.
    pub fn hear(&mut self, event: Event) -> Effects {
        let mut fx = self.core.on(self.now, event);
        fx.retain(|effect| !matches!(effect, Effect::Progress(_)));
        fx
    }

    /// The log goes on.
    pub fn decided(&mut self, generation: u64, phase: Phase) -> Effects {
        (self.seen.generation, self.seen.phase) = (Generation(generation), phase);
        self.told()
    }

    /// The log goes on, and says what `seen` says.
    pub fn told(&mut self) -> Effects {
        self.index += 1;
        let view = View { index: self.index, vm: Some(self.seen.clone()) };
        self.hear(Event::Decided(view))
    }

    /// The log answers the one proposal among `fx`, at its end.
    pub fn answer(&mut self, fx: &Effects, outcome: Outcome) -> Effects {
        let (ticket, _) = proposal(fx).expect("something was proposed");
        self.answer_to(ticket, outcome)
    }

    pub fn answer_to(&mut self, ticket: Ticket, outcome: Outcome) -> Effects {
        self.index += 1;
        self.hear(Event::Answered { ticket, index: self.index, outcome })
    }

    /// The read among `fx` is done.
    pub fn confirm(&mut self, fx: &Effects, took_ms: u32) -> Effects {
        let read =
            fx.iter().find_map(|effect| if let Effect::Confirm { ticket } = effect { Some(*ticket) } else { None });
        let (ticket, began) = (read.expect("a read was asked for"), self.now.saturating_sub(u64::from(took_ms)));
        self.hear(Event::Confirmed { ticket, began, took_ms })
    }

    /// Time passes.
    pub fn wait(&mut self, ms: u64) -> Effects {
        self.now += ms;
        self.hear(Event::Tick)
    }
}

pub fn proposal(fx: &Effects) -> Option<(Ticket, &Command)> {
    fx.iter().find_map(
        |effect| {
            if let Effect::Propose { ticket, command } = effect { Some((*ticket, command)) } else { None }
        },
    )
}

pub fn proposed(fx: &Effects) -> Option<&Command> {
    proposal(fx).map(|(_, command)| command)
}

pub fn resumes(fx: &Effects) -> bool {
    fx.iter().any(|effect| matches!(effect, Effect::Resume { .. }))
}

pub fn releases_because(fx: &Effects, expected: &StopCause) -> bool {
    matches!(proposed(fx), Some(Command::Release { cause, .. }) if cause == expected)
}

pub fn aborts_because(fx: &Effects, word: &str) -> bool {
    matches!(proposed(fx), Some(Command::AbortMove { op, reason, .. }) if *op == OP && reason.contains(word))
}

pub fn round(pages: u64, took_ms: u64) -> RoundReport {
    RoundReport { pages, zero_pages: 0, wire_bytes: pages * 4096, took_ms }
}

pub fn received(at: u64) -> Event {
    Event::AllReceived { report: MoveReport::default(), at }
}

pub fn too_late() -> Outcome {
    Outcome::Refused(Refusal::Ended(OP))
}

pub fn owned(generation: u64) -> Outcome {
    Outcome::Owned(Generation(generation))
}
