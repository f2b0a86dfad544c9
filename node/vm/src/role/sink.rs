//! The target of a move: gathers a copy, wants the right to run it, and gives it back if it cannot.

use alloc::{format, string::String};

use pollux_state::{
    Command,
    id::{Generation, OpId, Owner},
    operation::MoveReport,
    vm::Phase,
};

use crate::{
    Millis,
    core::VmCore,
    event::{Effect, Effects, Event},
    role::{Role, Running, Turn},
};

/// Why a daemon that ends takes no part in a move to it.
pub(super) const LEAVING: &str = "the daemon of the target node ends";

#[derive(Debug)]
pub(crate) struct Sink {
    op: OpId,
    from: Owner,
    /// The generation at which the source owns the VM.
    generation: Generation,
    since: Millis,
    ready: bool,
    connected: bool,
    received: Option<(MoveReport, Millis)>,
    loading: bool,
    loaded: bool,
    /// It is being recorded that the guest may act.
    committing: bool,
    committed: bool,
    failed: Option<String>,
}

impl Sink {
    pub(crate) fn new(op: OpId, from: Owner, generation: Generation, since: Millis) -> Self {
        Self {
            op,
            from,
            generation,
            since,
            ready: false,
            connected: false,
            received: None,
            loading: false,
            loaded: false,
            committing: false,
            committed: false,
            failed: None,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match (self.received.is_some(), self.loaded) {
            (false, _) => "receiving",
            (true, false) => "loading",
            (true, true) => "deciding",
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "what does not concern a target is dropped")]
    pub(crate) fn take_in(&mut self, event: Event) {
        match event {
            Event::MachineReady => self.ready = true,
            Event::SourceConnected => self.connected = true,
            Event::MachineFailed(why) => self.failed = Some(format!("the target could not make a standby: {why}")),
            Event::MachineEnded(why) => self.failed = Some(format!("the target's standby ended: {why}")),
            Event::LoadFailed(why) => self.failed = Some(format!("the target could not load the device state: {why}")),
            Event::Loaded => self.loaded = true,
            Event::CommittedToRun => self.committed = true,
            Event::CommitToRunFailed(why) => {
                self.failed = Some(format!("the target could not record that the guest runs: {why}"));
            }
            Event::AllReceived { report, at } => self.received = Some((report, at)),
            // With everything here, the source is not needed any more.
            Event::SessionLost(why) if self.received.is_none() => {
                self.failed = Some(format!("the connection to the source was lost: {why}"));
            }
            Event::PeerAbandoned(why) if self.received.is_none() => self.failed = Some(why),
            _ => {}
        }
    }

    pub(crate) fn step(mut self, core: &mut VmCore, fx: &mut Effects) -> Turn {
        let me = core.me;
        let Some(seen) = core.view.vm.clone() else { return self.leave(core, fx, "the VM was deleted") };
        if self.due(core).is_some_and(|due| core.now >= due) {
            let late = if self.ready { "the source did not connect" } else { "the target's standby was not ready" };
            self.failed.get_or_insert_with(|| format!("{late} in time"));
        }
        if core.leaving {
            self.failed.get_or_insert_with(|| LEAVING.into());
        }
        match seen.phase {
            Phase::Moving { op, from, to } if op == self.op && to == me => {
                assert_eq!((from, seen.generation), (self.from, self.generation), "a move keeps its source");
                // The source may not be there to do it.
                if seen.cancel && self.received.is_none() {
                    self.failed.get_or_insert_with(|| "cancelled".into());
                }
                if let Some(why) = self.failed.take() {
                    return self.spoil(core, fx, why);
                }
                if self.received.is_some() {
                    if !self.loading {
                        self.loading = true;
                        fx.push(Effect::Load);
                    }
                    let (expect, incarnation) = (self.generation, me.incarnation);
                    core.ask(fx, Command::Switchover { vm: core.vm, op, expect, incarnation });
                }
                Turn::Stay(Role::Sink(self))
            }
            Phase::Arriving { op, to, .. } if op == self.op && to == me => {
                assert_eq!(seen.generation, self.generation.next(), "a switchover raises the generation by one");
                if let Some(why) = self.failed.take() {
                    return self.spoil(core, fx, why);
                }
                let (report, received) = self.received.clone().expect("nobody but this core proposes its switchover");
                if self.loaded && core.sure(fx) {
                    if !self.committing {
                        self.committing = true;
                        fx.push(Effect::CommitToRun { op });
                    }
                    if !self.committed {
                        return Turn::Stay(Role::Sink(self));
                    }
                    core.resume(fx, seen.generation);
                    fx.push(Effect::Disconnect { reason: "the guest runs at the target".into() });
                    let running = Running::arrived(seen.generation, op, report, received, self.since);
                    return Turn::Go(Role::Running(running));
                }
                Turn::Stay(Role::Sink(self))
            }
            Phase::Stopped { .. } | Phase::Running { .. } | Phase::Moving { .. } | Phase::Arriving { .. } => {
                self.leave(core, fx, "the move is over")
            }
        }
    }

    /// This node's part has failed before its guest could act. What the log has decided or will decide, the idle role
    /// answers: it aborts the move, or gives the VM back.
    fn spoil(self, core: &mut VmCore, fx: &mut Effects, why: String) -> Turn {
        core.spoiled = Some((self.op, why.clone()));
        self.leave(core, fx, &why)
    }

    fn leave(self, core: &mut VmCore, fx: &mut Effects, why: &str) -> Turn {
        fx.push(Effect::Disconnect { reason: why.into() });
        core.discard(fx)
    }

    /// Until then the standby must wait and its source be connected. Of a connection that is lost later the core is told.
    fn due(&self, core: &VmCore) -> Option<Millis> {
        (self.received.is_none() && !(self.ready && self.connected)).then_some(self.since + core.limits.connect_ms)
    }

    pub(crate) fn deadline(&self, core: &VmCore) -> Option<Millis> {
        self.due(core).filter(|_| self.failed.is_none())
    }
}
