//! The source of a move: rounds while the guest runs, then pause and hand over, then wait for the log.
//!
//! ```text
//!   Connecting -> Sending <-> Scanning -> Probing -> Pausing -> HandingOver -> Deciding
//!                     ^                      | quorum slow
//!                     `----------------------'
//! ```
//! A warm move pauses first: `Connecting -> Probing -> Pausing -> Sending -> Scanning -> HandingOver`, with one round.
//!
//! From `Pausing` on the guest stands still, and only the log makes it run again: here, if the move was aborted or given
//! back; nowhere else from this copy. From any stage the move may turn out to be over; `Source::over` is the one way out.

use alloc::{format, string::String};

use pollux_state::{
    Command,
    id::{Generation, OpId, Owner},
    operation::MoveReport,
    vm::{Desired, Phase, StopCause},
};

use crate::{
    Millis,
    convergence::{self, Forecast, Verdict},
    core::VmCore,
    event::{Effect, Effects, Event, MovePhase, Progress, RoundReport},
    pages::PAGE_BYTES,
    role::{Releasing, Role, Running, Turn},
    view::Seen,
};

/// The commit may take this part of the blackout budget (DESIGN, section 6).
const QUORUM_SHARE: u64 = 4;
/// How often a quorum that is too slow is waited for, a round in between.
const SLOW_QUORUM_ROUNDS_MAX: u32 = 10;

#[derive(Debug)]
pub(crate) struct Source {
    op: OpId,
    to: Owner,
    generation: Generation,
    began: Millis,
    budget_ms: u64,
    /// The guest stands still from the beginning.
    warm: bool,
    /// The guest may be slowed down.
    may_throttle: bool,
    throttle: u8,
    throttle_refused: Option<String>,
    stage: Stage,
    forecast: Forecast,
    progress: Progress,
    report: MoveReport,
    slow_quorum_rounds: u32,
    /// News of the round under way that was not shown yet: what was sent of it, and how many pages are left.
    under_way: Option<(RoundReport, u64)>,
    /// A pause was asked for: the guest may stand still from here on.
    pausing: bool,
    paused: bool,
    /// The shell is saving the device state; the guest cannot be continued before it is done.
    handing_over: bool,
    disconnected: bool,
    off: bool,
    ended: Option<String>,
    /// Why this side wants the move to be off.
    abort: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting {
        connected: bool,
    },
    Sending {
        round: u32,
        landed: Option<RoundReport>,
    },
    Scanning {
        round: u32,
        sent: RoundReport,
        pending: Option<u64>,
    },
    /// How long does a commit take just now?
    Probing {
        round: u32,
        took_ms: Option<u32>,
    },
    Pausing,
    HandingOver {
        since: Millis,
    },
    /// The target has, or will have, every byte.
    Deciding {
        since: Millis,
    },
}

impl Source {
    pub(crate) fn new(op: OpId, to: Owner, generation: Generation, seen: &Seen, now: Millis) -> Self {
        Self {
            op,
            to,
            generation,
            began: now,
            budget_ms: seen.wishes.map_or(0, |wishes| u64::from(wishes.blackout_ms_max)),
            warm: seen.wishes.is_some_and(|wishes| wishes.warm),
            may_throttle: seen.wishes.is_some_and(|wishes| wishes.throttle),
            throttle: 0,
            throttle_refused: None,
            stage: Stage::Connecting { connected: false },
            forecast: Forecast::default(),
            progress: Progress::default(),
            report: MoveReport::default(),
            slow_quorum_rounds: 0,
            under_way: None,
            pausing: false,
            paused: false,
            handing_over: false,
            disconnected: false,
            off: false,
            ended: None,
            abort: None,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.stage {
            Stage::Sending { .. } | Stage::Scanning { .. } if self.warm => "suspended",
            Stage::Connecting { .. } | Stage::Sending { .. } | Stage::Scanning { .. } | Stage::Probing { .. } => {
                "running"
            }
            Stage::Pausing | Stage::HandingOver { .. } => "handing over",
            Stage::Deciding { .. } => "handed over",
        }
    }

    pub(crate) fn take_in(&mut self, now: Millis, event: Event) {
        match (event, &mut self.stage) {
            (Event::PeerReady, Stage::Connecting { connected }) => *connected = true,
            (Event::RoundLanded(report), Stage::Sending { landed, .. }) => *landed = Some(report),
            (Event::RoundUnderWay { sent, left_pages }, Stage::Sending { landed: None, .. }) => {
                self.under_way = Some((sent, left_pages));
            }
            (Event::Scanned { pending_pages }, Stage::Scanning { pending, .. }) => *pending = Some(pending_pages),
            (Event::Paused, _) => self.paused = true,
            (Event::HandedOver, stage) => {
                self.handing_over = false;
                *stage = Stage::Deciding { since: now };
            }
            (Event::HandOverFailed(why), _) => {
                self.handing_over = false;
                self.fail(format!("the source could not hand over: {why}"));
            }
            (Event::PeerRefused(why), _) => self.fail(why),
            (Event::SessionLost(why), _) => self.fail(format!("the connection to the target was lost: {why}")),
            (Event::NotThrottled(why), _) => {
                self.may_throttle = false;
                self.throttle_refused = Some(why);
            }
            (Event::GuestOff, _) => self.off = true,
            (Event::MachineEnded(why), _) => self.ended = Some(why),
            _ => {}
        }
    }

    pub(crate) fn confirmed(&mut self, now_took_ms: u32) {
        if let Stage::Probing { took_ms, .. } = &mut self.stage {
            *took_ms = Some(now_took_ms);
        }
    }

    fn fail(&mut self, why: String) {
        self.abort.get_or_insert(why);
    }

    pub(crate) fn step(self, core: &mut VmCore, fx: &mut Effects) -> Turn {
        if self.pausing && self.paused {
            core.gate_is_closed();
        }
        let me = core.me;
        let Some(seen) = core.view.vm.clone() else { return self.lost(core, fx) };
        match &seen.phase {
            Phase::Moving { op, .. } if *op == self.op && seen.generation == self.generation => {
                self.drive(core, fx, &seen)
            }
            Phase::Arriving { op, from, .. } if *op == self.op && *from == me => {
                // The target won. This copy stays, paused and whole, until it runs there or is given back (rule 17).
                assert!(self.paused, "{} was won by {} while its source ran", core.vm, self.to);
                Turn::Stay(Role::Source(self))
            }
            // Also when the next move of it has begun already: this one is over first.
            Phase::Running { owner } | Phase::Moving { from: owner, .. } if *owner == me => {
                self.over(core, fx, seen.generation)
            }
            Phase::Stopped { .. } | Phase::Running { .. } | Phase::Moving { .. } | Phase::Arriving { .. } => {
                self.lost(core, fx)
            }
        }
    }

    /// The right to run is somewhere else: what is left here is worth nothing.
    fn lost(mut self, core: &mut VmCore, fx: &mut Effects) -> Turn {
        self.disconnect(fx, "the move is over");
        core.discard(fx)
    }

    /// The move is over and the VM is ours: aborted (same generation) or given back (a higher one).
    fn over(mut self, core: &mut VmCore, fx: &mut Effects, generation: Generation) -> Turn {
        self.disconnect(fx, "the move is off");
        if let Some(turn) = self.guest_over(core, generation) {
            return turn;
        }
        if !self.pausing {
            assert_eq!(generation, self.generation, "{} was given back to a source that still ran it", core.vm);
            return Turn::Go(Role::Running(Running::again(generation, true)));
        }
        // What was begun must end first: QEMU continues only when it is paused and done saving.
        if self.paused && !self.handing_over && core.sure(fx) {
            core.resume(fx, generation);
            return Turn::Go(Role::Running(Running::again(generation, false)));
        }
        Turn::Stay(Role::Source(self))
    }

    fn guest_over(&mut self, core: &VmCore, generation: Generation) -> Option<Turn> {
        let releasing = if let Some(why) = self.ended.take() {
            Releasing::new(generation, StopCause::QemuEnded(why))
        } else if self.off {
            let asked = core.view.vm.as_ref().is_some_and(|seen| matches!(seen.desired, Desired::Stopped { .. }));
            Releasing::off(generation, if asked { StopCause::Operator } else { StopCause::GuestPowerOff })
        } else {
            return None;
        };
        Some(Turn::Go(Role::Releasing(releasing)))
    }

    /// The move is on.
    fn drive(mut self, core: &mut VmCore, fx: &mut Effects, seen: &Seen) -> Turn {
        let handed_over = matches!(self.stage, Stage::Deciding { .. });
        // Once the target has everything, the guest is alive there whatever becomes of this machine.
        // Whether it has is still to be heard when the machine ends in that moment.
        let word_comes = self.handing_over && matches!(self.stage, Stage::HandingOver { .. }) && !self.off;
        if !handed_over
            && !word_comes
            && let Some(turn) = self.guest_over(core, self.generation)
        {
            self.disconnect(fx, "the guest ended at the source");
            return turn;
        }
        if seen.cancel {
            self.fail("cancelled".into());
        } else if matches!(seen.desired, Desired::Stopped { .. }) {
            self.fail("the VM is to be stopped".into());
        }
        if self.overdue(core) {
            let what = match self.stage {
                Stage::Deciding { .. } => "take over",
                Stage::HandingOver { .. } => "take in the last pages",
                Stage::Connecting { .. }
                | Stage::Sending { .. }
                | Stage::Scanning { .. }
                | Stage::Probing { .. }
                | Stage::Pausing => "get ready",
            };
            self.fail(format!("the target did not {what} in time"));
        }
        // With nothing left here the guest is alive at the target or nowhere: only the target's silence ends the move.
        let alive_there = self.ended.is_some() && (handed_over || word_comes);
        if alive_there && !(self.overdue(core) && core.sure(fx)) {
            core.unask(fx, |command| matches!(command, Command::AbortMove { .. }));
            return Turn::Stay(Role::Source(self));
        }
        if let Some(reason) = self.abort.clone() {
            self.disconnect(fx, &reason);
            core.ask(fx, Command::AbortMove { vm: core.vm, op: self.op, expect: self.generation, reason });
            return Turn::Stay(Role::Source(self));
        }
        self.advance(core, fx);
        if self.abort.is_some() {
            // `advance` found it hopeless: say so at once.
            return Turn::Go(Role::Source(self));
        }
        Turn::Stay(Role::Source(self))
    }

    /// One stage on, if what it waited for is there.
    fn advance(&mut self, core: &mut VmCore, fx: &mut Effects) {
        match self.stage {
            Stage::Connecting { connected: true } if self.warm => {
                // Nobody stands still for a cluster that cannot decide.
                self.stage = Stage::Probing { round: 0, took_ms: None };
                core.read(fx);
            }
            Stage::Connecting { connected: true } => {
                core.read(fx);
                self.send(fx, 1);
            }
            Stage::Sending { round, landed: Some(report) } => {
                self.account(report);
                fx.push(Effect::Scan);
                self.stage = Stage::Scanning { round, sent: report, pending: None };
            }
            // Nothing was written: what little the devices may have goes with the rest.
            Stage::Scanning { pending: Some(_), .. } if self.warm => {
                self.show(fx, MovePhase::SwitchingOver);
                self.hand_over(core, fx);
            }
            Stage::Scanning { round, sent, pending: Some(pending) } => self.judge(core, fx, round, sent, pending),
            Stage::Probing { round, took_ms: Some(took_ms) } => self.probed(core, fx, round, took_ms),
            Stage::Pausing if self.paused && self.warm => self.send(fx, 1),
            Stage::Pausing if self.paused => self.hand_over(core, fx),
            Stage::Sending { landed: None, .. } => self.show_round(fx),
            Stage::Connecting { .. } | Stage::Scanning { .. } | Stage::Pausing | Stage::HandingOver { .. } => {}
            // Nothing, unless the read was given up with a lost leader.
            Stage::Probing { took_ms: None, .. } => core.read(fx),
            Stage::Deciding { .. } => self.show(fx, MovePhase::Deciding),
        }
    }

    fn pause(&mut self, core: &mut VmCore, fx: &mut Effects, phase: MovePhase) {
        self.stage = Stage::Pausing;
        self.pausing = true;
        self.show(fx, phase);
        // A slow guest would be slow to stop; and if it comes back, it comes back whole.
        core.throttle(fx, 0);
        fx.push(Effect::Pause);
    }

    fn hand_over(&mut self, core: &VmCore, fx: &mut Effects) {
        self.handing_over = true;
        self.stage = Stage::HandingOver { since: core.now };
        fx.push(Effect::HandOver { report: self.report.clone() });
    }

    fn send(&mut self, fx: &mut Effects, round: u32) {
        self.stage = Stage::Sending { round, landed: None };
        self.under_way = None;
        self.report.rounds = round;
        self.progress.round = round;
        self.show(fx, MovePhase::Copying);
        fx.push(Effect::SendRound { round });
    }

    /// Where the round under way stands. The totals are counted when it has landed.
    fn show_round(&mut self, fx: &mut Effects) {
        let Some((sent, left_pages)) = self.under_way.take() else { return };
        self.progress.memory_bytes = (self.report.pages + sent.pages) * PAGE_BYTES as u64;
        self.progress.wire_bytes = self.report.wire_bytes + sent.wire_bytes;
        self.progress.pending_pages = left_pages;
        let real = sent.pages.saturating_sub(sent.zero_pages) * PAGE_BYTES as u64;
        self.progress.bytes_per_s = (real * 1000).checked_div(sent.took_ms).unwrap_or(0);
        self.show(fx, MovePhase::Copying);
    }

    fn account(&mut self, sent: RoundReport) {
        self.report.pages += sent.pages;
        self.report.zero_pages += sent.zero_pages;
        self.report.wire_bytes += sent.wire_bytes;
        self.progress.memory_bytes = self.report.pages * PAGE_BYTES as u64;
        self.progress.wire_bytes = self.report.wire_bytes;
    }

    fn judge(&mut self, core: &mut VmCore, fx: &mut Effects, round: u32, sent: RoundReport, pending: u64) {
        let commit_ms = u64::from(core.quorum_ms);
        let patience = convergence::patience(self.may_throttle, self.throttle);
        let verdict = self.forecast.after_round(round, sent, pending, commit_ms, self.budget_ms, patience);
        self.progress.pending_pages = pending;
        self.progress.dirty_pages_per_s = self.forecast.dirty_pages_per_s();
        self.progress.bytes_per_s = self.forecast.bytes_per_s();
        self.progress.predicted_blackout_ms = self.forecast.blackout_ms(pending, commit_ms);
        match verdict {
            Verdict::SwitchOver => {
                self.stage = Stage::Probing { round, took_ms: None };
                self.show(fx, MovePhase::Copying);
                core.read(fx);
            }
            Verdict::Again => self.send(fx, round + 1),
            Verdict::Stalled(why) => match convergence::slower(self.throttle).filter(|_| self.may_throttle) {
                Some(percent) => {
                    self.throttle = percent;
                    self.progress.throttle_percent = percent;
                    self.report.throttle_percent = percent;
                    core.throttle(fx, percent);
                    self.send(fx, round + 1);
                }
                None => self.fail(self.advice(&why)),
            },
        }
    }

    /// Why it does not converge, and what would help.
    fn advice(&self, why: &str) -> String {
        let predicted = self.progress.predicted_blackout_ms;
        if let Some(refused) = &self.throttle_refused {
            return format!("{why}; {refused}");
        }
        match self.throttle {
            0 => format!(
                "{why}; try again when the guest is calmer, or allow --max-blackout {predicted}ms, or --allow-throttle"
            ),
            percent => format!(
                "{why}, although it was slowed down by {percent} %; try again when it is calmer, or allow --max-blackout \
                 {predicted}ms"
            ),
        }
    }

    fn probed(&mut self, core: &mut VmCore, fx: &mut Effects, round: u32, took_ms: u32) {
        if self.warm {
            return self.pause(core, fx, MovePhase::Copying);
        }
        if u64::from(took_ms) * QUORUM_SHARE <= self.budget_ms {
            return self.pause(core, fx, MovePhase::SwitchingOver);
        }
        self.slow_quorum_rounds += 1;
        if self.slow_quorum_rounds > SLOW_QUORUM_ROUNDS_MAX {
            self.fail(format!(
                "the cluster takes {took_ms} ms to agree, more than a quarter of the {} ms of blackout allowed",
                self.budget_ms
            ));
        } else {
            self.send(fx, round + 1);
        }
    }

    fn show(&mut self, fx: &mut Effects, phase: MovePhase) {
        self.progress.phase = phase;
        fx.push(Effect::Progress(self.progress));
    }

    fn disconnect(&mut self, fx: &mut Effects, reason: &str) {
        if !self.disconnected {
            self.disconnected = true;
            fx.push(Effect::Disconnect { reason: reason.into() });
        }
    }

    fn overdue(&self, core: &VmCore) -> bool {
        self.due(core).is_some_and(|due| core.now >= due)
    }

    fn due(&self, core: &VmCore) -> Option<Millis> {
        match self.stage {
            Stage::Connecting { connected: false } => Some(self.began + core.limits.connect_ms),
            // Nothing here is in a hurry, and a target without a leader can say nothing.
            Stage::Deciding { since } if self.ended.is_some() => {
                Some(since.max(core.led_since) + core.limits.decide_ms)
            }
            Stage::Deciding { since } => Some(since + core.limits.decide_ms),
            Stage::HandingOver { since } => Some(since + core.limits.decide_ms + self.budget_ms),
            Stage::Connecting { .. }
            | Stage::Sending { .. }
            | Stage::Scanning { .. }
            | Stage::Probing { .. }
            | Stage::Pausing => None,
        }
    }

    pub(crate) fn deadline(&self, core: &VmCore) -> Option<Millis> {
        self.due(core).filter(|_| self.abort.is_none() || self.ended.is_some())
    }
}
