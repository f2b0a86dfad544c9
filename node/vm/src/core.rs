//! The core itself: what it remembers, how an event is taken in, and what holds after every step.

use alloc::{vec, vec::Vec};
use core::mem;

use pollux_state::{
    Command, Outcome,
    detector::DOWN_AFTER_MS,
    id::{Generation, OpId, Owner, VmId},
    limits::LOST_AFTER_MS,
    text::plain,
    vm::{Desired, Phase, StopCause},
};

use crate::{
    Millis,
    event::{Effect, Effects, Event, Ticket},
    role::{Discarding, Idle, Role, Turn},
    view::{Seen, View},
};

/// After a refused proposal the view must have caught up and this much time must have passed before another is made:
/// each one is an entry in everybody's log.
const REFUSED_PAUSE_MS: u64 = 500;
/// No event makes the core change its role more often than this; more is a defect, not a busy day.
const TURNS_MAX: usize = 8;

/// How long the core waits for others. All are about others being dead; none makes anything run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For the target to say that it is ready, and for the source to connect, in milliseconds.
    pub connect_ms: u64,
    /// What the log said counts as current for so long after it was asked, in milliseconds. Longer than one attempt at a
    /// read may take (2 s), shorter than anybody could decide that this node is gone.
    pub sure_ms: u64,
    /// From handing over until the source proposes to give up, in milliseconds.
    pub decide_ms: u64,
    /// First pause after a failed start, doubled with each further one, in milliseconds.
    pub restart_ms: u64,
    /// Longest such pause, in milliseconds.
    pub restart_ms_max: u64,
}

impl Limits {
    /// As they are on real hosts.
    pub const USUAL: Self =
        Self { connect_ms: 60_000, sure_ms: 2_500, decide_ms: 5_000, restart_ms: 1_000, restart_ms_max: 60_000 };
}

// No answer is believed for so long that its node could be given up meanwhile.
const _: () = assert!(Limits::USUAL.sure_ms < DOWN_AFTER_MS && DOWN_AFTER_MS < LOST_AFTER_MS);

impl Default for Limits {
    fn default() -> Self {
        Self::USUAL
    }
}

/// A proposal without an answer yet: its outcome is unknown (DESIGN, rule 2).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ask {
    ticket: Ticket,
    command: Command,
    since: Millis,
}

/// The log was asked at `since`, or later, and said this.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sure {
    generation: Generation,
    phase: Phase,
    since: Millis,
    /// The question that was answered so.
    ticket: Ticket,
}

/// What one node does about one VM. Made when the VM first concerns the node, dropped when nothing of it is left there.
#[derive(Debug)]
pub struct VmCore {
    pub(crate) me: Owner,
    pub(crate) vm: VmId,
    pub(crate) limits: Limits,
    pub(crate) now: Millis,
    pub(crate) view: View,
    pub(crate) role: Role,
    /// The generation for which the gate is open, as far as the effects so far say.
    gate: Option<Generation>,
    /// The kernel's fence ran out while the gate was open.
    fenced: bool,
    asks: Vec<Ask>,
    last_ticket: Ticket,
    /// No proposal before this moment: one was refused.
    hold_until: Millis,
    /// The read under way that will make the view certain.
    confirm: Option<Ticket>,
    /// What a read or an answer of the log has shown to be current (DESIGN, rule 3). Ages: a process that was stopped, or
    /// an answer that was repeated, may be about a time long ago.
    sure: Option<Sure>,
    /// How long the last read took: what a commit costs.
    pub(crate) quorum_ms: u32,
    /// By how many percent the guest is slowed down, as far as the effects so far say.
    throttle: u8,
    /// A move in which this node's part as a target has failed, before its guest could act: why.
    pub(crate) spoiled: Option<(OpId, alloc::string::String)>,
    /// The move that an earlier life of this daemon was the target of and certainly never let act.
    pub(crate) untouched: Option<OpId>,
    /// When a leader was last lost or found. Before, nobody may have been there to tell others' words to.
    pub(crate) led_since: Millis,
    /// This daemon is about to end.
    pub(crate) leaving: bool,
}

impl VmCore {
    /// A core for `vm` in the daemon's life `me`. `untouched`: the move whose standby an earlier life had not yet let run,
    /// where that is certain.
    #[must_use]
    pub fn new(me: Owner, vm: VmId, limits: Limits, untouched: Option<OpId>) -> Self {
        Self {
            me,
            vm,
            limits,
            now: 0,
            view: View::NOTHING,
            role: Role::Idle(Idle::new(0)),
            gate: None,
            fenced: false,
            asks: vec![],
            last_ticket: Ticket(0),
            hold_until: 0,
            confirm: None,
            sure: None,
            quorum_ms: 0,
            throttle: 0,
            spoiled: None,
            untouched,
            led_since: 0,
            leaving: false,
        }
    }

    /// Takes in one event and says what is to be done about it.
    ///
    /// # Panics
    /// When a rule of section 4 is about to be broken: that is a defect, and stopping is safe where going on is not.
    #[must_use]
    pub fn on(&mut self, now: Millis, event: Event) -> Effects {
        let mut fx = Effects::new();
        self.now = self.now.max(now);
        self.take_in(event);
        self.settle(&mut fx);
        self.check();
        fx
    }

    /// When [`Event::Tick`] is wanted, if no event comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Millis> {
        let role = self.role.deadline(self);
        // A refused proposal is made again only after its pause; nothing else would wake the core then.
        let hold = (self.hold_until > self.now).then_some(self.hold_until);
        [role, hold].into_iter().flatten().filter(|at| *at > self.now).min()
    }

    /// Nothing of the VM is on this node, and nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.role, Role::Idle(_)) && self.asks.is_empty()
    }

    /// A move comes here, its guest has not been let run, and only this life can say so for certain: the log has not decided what
    /// becomes of it.
    #[must_use]
    pub fn owes_an_answer(&self) -> bool {
        let phase = self.view.vm.as_ref().map(|seen| &seen.phase);
        let comes_here = matches!(phase, Some(Phase::Moving { to, .. } | Phase::Arriving { to, .. }) if *to == self.me);
        comes_here && matches!(self.role, Role::Sink(_) | Role::Discarding(_) | Role::Idle(_))
    }

    /// What it is doing, in a word, for people.
    #[must_use]
    pub fn doing(&self) -> &'static str {
        self.role.name()
    }

    /// The generation whose frames may leave this node now.
    #[must_use]
    pub fn gate(&self) -> Option<Generation> {
        self.gate
    }

    /// The kernel lets nothing pass until the log has been asked again, although the gate is open.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// The question whose answer made the view certain: by it the kernel's fence is unlocked.
    #[must_use]
    pub fn proof(&self) -> Option<Ticket> {
        self.sure.as_ref().map(|sure| sure.ticket)
    }

    /// The newest state it knows.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all the others are the role's")]
    fn take_in(&mut self, event: Event) {
        match event {
            Event::Decided(view) => {
                // An answer may have been ahead of the local copy of the log; the log never goes back.
                if view.index >= self.view.index {
                    self.learn(view);
                }
            }
            Event::Answered { ticket, index, outcome } => self.answered(ticket, index, &outcome),
            Event::Confirmed { ticket, began, took_ms } => {
                if self.confirm.take_if(|asked| *asked == ticket).is_some() {
                    self.quorum_ms = took_ms;
                    self.be_sure(began, ticket);
                    self.role.confirmed(took_ms);
                }
            }
            // A read that was begun before proves nothing about the time after.
            Event::LeaderLost => {
                (self.sure, self.confirm) = (None, None);
                self.led_since = self.now;
            }
            Event::Leaving => self.leaving = true,
            // Nor does one that was answered before the sleep.
            Event::FenceExpired => {
                (self.sure, self.confirm) = (None, None);
                self.fenced = self.gate.is_some();
            }
            Event::Tick => {}
            other => self.role.take_in(self.now, other),
        }
    }

    fn learn(&mut self, view: View) {
        self.view = view;
        self.sure.take_if(|sure| !self.view.vm.as_ref().is_some_and(|seen| sure.is_of(seen)));
    }

    fn answered(&mut self, ticket: Ticket, index: u64, outcome: &Outcome) {
        let Some(at) = self.asks.iter().position(|ask| ask.ticket == ticket) else { return };
        let ask = self.asks.remove(at);
        match outcome {
            Outcome::Owned(generation) => {
                if index >= self.view.index
                    && let Some(seen) = &mut self.view.vm
                    && seen.decide(self.me, *generation, &ask.command)
                {
                    self.view.index = index;
                    // From when it was first proposed: the answer to one that was repeated tells of the time it took effect.
                    self.be_sure(ask.since, ticket);
                }
            }
            Outcome::Refused(_) => self.hold_until = self.now + REFUSED_PAUSE_MS,
            Outcome::Done
            | Outcome::Joined(_)
            | Outcome::Incarnation(_)
            | Outcome::Created(_)
            | Outcome::Accepted(_)
            | Outcome::PoolAdded(_)
            | Outcome::VolumeCreated(_)
            | Outcome::ReplicaAdded(_)
            | Outcome::Set(_) => {}
        }
    }

    /// Moves the role towards the view until it rests.
    fn settle(&mut self, fx: &mut Effects) {
        // First, or a proposal that has become pointless would stand in the way of its successor.
        self.withdraw_moot(fx);
        for _ in 0..TURNS_MAX {
            let role = mem::replace(&mut self.role, Role::Discarding(Discarding));
            match role.step(self, fx) {
                Turn::Stay(role) => {
                    self.role = role;
                    // Whichever way a move ended, the guest has its speed back.
                    if !matches!(self.role, Role::Source(_)) {
                        self.throttle(fx, 0);
                    }
                    return self.unlock(fx);
                }
                Turn::Go(role) => self.role = role,
            }
        }
        panic!("{} changes its role for ever: {:?} with {:?}", self.vm, self.role, self.view);
    }

    /// Proposals that compare a generation which has passed, or are part of a move that is over, can only be refused now.
    fn withdraw_moot(&mut self, fx: &mut Effects) {
        let current = self.view.vm.as_ref().map(|seen| seen.generation);
        let moving = self.view.vm.as_ref().and_then(|seen| seen.phase.moving()).map(|(op, _, _)| op);
        self.asks.retain(|ask| {
            let moot = ask.command.compares().is_some_and(|(_, expect)| Some(expect) != current)
                || ask.command.move_of().is_some_and(|op| Some(op) != moving);
            if moot {
                fx.push(Effect::Withdraw { ticket: ask.ticket });
            }
            !moot
        });
    }

    /// What must hold after every step. Stays on in release.
    fn check(&self) {
        assert!(
            self.throttle == 0 || matches!(self.role, Role::Source(_)),
            "{} is slowed down by {} % and does not move",
            self.vm,
            self.throttle
        );
        if let Some(generation) = self.gate {
            let seen = self.view.vm.as_ref();
            assert!(
                seen.is_some_and(|seen| seen.owned_by(self.me) && seen.generation == generation),
                "the gate of {} is open for {generation} on {}, but the log says {seen:?} (rule 1)",
                self.vm,
                self.me,
            );
        }
    }

    /// What the view says was shown by the log, which was asked `ticket` at `since`.
    fn be_sure(&mut self, since: Millis, ticket: Ticket) {
        let sure = |seen: &Seen| Sure { generation: seen.generation, phase: seen.phase.clone(), since, ticket };
        self.sure = self.view.vm.as_ref().map(sure);
    }

    /// A guest that the kernel shut off while this process slept goes on once the log has said again that it may.
    fn unlock(&mut self, fx: &mut Effects) {
        self.fenced &= self.gate.is_some();
        if self.fenced && self.sure(fx) {
            self.fenced = false;
            fx.push(Effect::Unlock);
        }
    }

    fn is_sure(&self) -> bool {
        let (Some(sure), Some(seen)) = (&self.sure, &self.view.vm) else { return false };
        sure.is_of(seen) && self.now.saturating_sub(sure.since) <= self.limits.sure_ms
    }

    // What roles may do.

    /// Proposes `command` unless the same is open already or one was refused just now.
    pub(crate) fn ask(&mut self, fx: &mut Effects, command: Command) {
        let command = bounded(command);
        let open = |ask: &Ask| {
            mem::discriminant(&ask.command) == mem::discriminant(&command) && ask.command.move_of() == command.move_of()
        };
        if self.now < self.hold_until || self.asks.iter().any(open) {
            return;
        }
        let ticket = self.ticket();
        self.asks.push(Ask { ticket, command: command.clone(), since: self.now });
        fx.push(Effect::Propose { ticket, command });
    }

    /// Does not insist any more on proposals of this kind.
    pub(crate) fn unask(&mut self, fx: &mut Effects, given_up: impl Fn(&Command) -> bool) {
        for ask in self.asks.extract_if(.., |ask| given_up(&ask.command)) {
            fx.push(Effect::Withdraw { ticket: ask.ticket });
        }
    }

    /// Is the view certain to be current? If not, asks for a read that makes it so.
    pub(crate) fn sure(&mut self, fx: &mut Effects) -> bool {
        if !self.is_sure() {
            self.read(fx);
        }
        self.is_sure()
    }

    /// Begins a read, unless one is under way.
    pub(crate) fn read(&mut self, fx: &mut Effects) {
        if self.confirm.is_none() {
            let ticket = self.ticket();
            self.confirm = Some(ticket);
            fx.push(Effect::Confirm { ticket });
        }
    }

    /// Lets the guest act. The one place that opens the gate.
    pub(crate) fn resume(&mut self, fx: &mut Effects, generation: Generation) {
        assert!(self.is_sure(), "resuming {} on a stale view (rule 3)", self.vm);
        (self.gate, self.fenced) = (Some(generation), false);
        fx.push(Effect::Resume { generation });
    }

    /// Slows the guest down, or gives it its speed back.
    pub(crate) fn throttle(&mut self, fx: &mut Effects, percent: u8) {
        if self.throttle != percent {
            self.throttle = percent;
            fx.push(Effect::Throttle { percent });
        }
    }

    /// After [`Effect::Pause`] was done.
    pub(crate) fn gate_is_closed(&mut self) {
        self.gate = None;
    }

    /// Shuts the guest off from the world at once.
    pub(crate) fn close_gate(&mut self, fx: &mut Effects) {
        if self.gate.take().is_some() {
            fx.push(Effect::CloseGate);
        }
    }

    /// Ends the machine, whatever state it is in.
    pub(crate) fn discard(&mut self, fx: &mut Effects) -> Turn {
        self.close_gate(fx);
        fx.push(Effect::Discard);
        Turn::Go(Role::Discarding(Discarding))
    }

    /// The VM's record if this daemon owns it at `generation`.
    pub(crate) fn owned(&self, generation: Generation) -> Option<&Seen> {
        self.view.vm.as_ref().filter(|seen| seen.owned_by(self.me) && seen.generation == generation)
    }

    fn ticket(&mut self) -> Ticket {
        self.last_ticket.0 += 1;
        self.last_ticket
    }
}

impl Sure {
    fn is_of(&self, seen: &Seen) -> bool {
        (self.generation, &self.phase) == (seen.generation, &seen.phase)
    }
}

impl Seen {
    /// What the log now says, as the answer to `command` of `me` shows, before the local copy of the log has it. `false`: the
    /// local copy is past what the command was made for (a repeated proposal is answered again, however much later) and
    /// knows better.
    fn decide(&mut self, me: Owner, generation: Generation, command: &Command) -> bool {
        let phase = match (command, &self.phase) {
            (Command::Claim { expect, .. }, _) if *expect == self.generation => {
                // It was granted, so it was wanted and at home then, whatever this older copy of the log says.
                (self.desired, self.home) = (Desired::Running, me.node);
                Phase::Running { owner: me }
            }
            (Command::Release { expect, cause, .. }, _) if *expect == self.generation => {
                Phase::Stopped { cause: cause.clone() }
            }
            (Command::Switchover { op: asked, .. }, Phase::Moving { op, from, to }) if op == asked => {
                Phase::Arriving { op: *op, from: *from, to: *to }
            }
            (Command::Arrived { op: asked, .. }, Phase::Arriving { op, .. }) if op == asked => {
                self.home = me.node;
                Phase::Running { owner: me }
            }
            (Command::AbortMove { op: asked, .. }, Phase::Moving { op, from, .. })
            | (Command::GiveBack { op: asked, .. }, Phase::Arriving { op, from, .. })
                if op == asked =>
            {
                Phase::Running { owner: *from }
            }
            _ => return false,
        };
        self.generation = generation;
        self.phase = phase;
        true
    }
}

/// The same with reasons as long as the log keeps them: QEMU's last words, or a peer's, could make a proposal so long that
/// nobody takes it.
fn bounded(mut command: Command) -> Command {
    if let Command::AbortMove { reason, .. }
    | Command::GiveBack { reason, .. }
    | Command::Release { cause: StopCause::QemuEnded(reason) | StopCause::StartFailed(reason), .. } = &mut command
    {
        *reason = plain(reason);
    }
    command
}
