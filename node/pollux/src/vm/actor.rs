//! The actor of one VM on one node: the shell around [`VmCore`].
//!
//! Started by the [registry](super::registry) when the VM first concerns this node, ended by it when nothing of the VM is
//! left here, or with the daemon. It selects one thing at a time, applies it to the core and carries the effects out;
//! whatever takes time runs in a task of its own and comes back as mail.
//!
//! ```text
//!   applied log ----- watch ------> +-------+ -- jobs ------> worker ----> machine
//!   link (a move's streams) ------> | actor | -- proposals -> consensus
//!   worker, sessions, consensus --> +-------+ -- pages -----> outgoing / incoming
//!        (mailbox, MAIL_MAX)            `------ status ------> API
//! ```
//! When it ends, the machine ends with it.

mod asking;
mod reach;

use std::{collections::HashMap, sync::Arc, time::Duration};

use pollux_raft::View as Applied;
use pollux_state::{
    UnixMs,
    id::{Generation, OpId, Owner, VmId},
    limits::FENCE_MS,
    vm::{Phase, VmSpec},
};
use pollux_vm::{Effect, Event, Millis, Ticket, View, VmCore, event::Progress, message::Greeting};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::{
    Shared,
    hold::{self, Place},
    host::{Guest, Log, Order},
    incoming::{Incoming, STREAMS_MAX},
    naming,
    outgoing::Outgoing,
    stopwatch::Stopwatch,
    worker::{self, Job, Worker},
};

pub use reach::Status;
pub(super) use reach::{Handle, Mail};

/// Letters that may wait for an actor; senders wait then.
pub(super) const MAIL_MAX: usize = 256;
/// Streams that may wait for their move to be admitted: one control stream and as many page streams as a move may have.
const EARLY_MAX: usize = STREAMS_MAX as usize + 1;
/// As long as a guest may act, the kernel is told so this often, in milliseconds. A fraction of the fence's time.
const KEEP_MS: u64 = 1_000;
// Several are late, or one is refused and asked about, before a busy host silences its guests.
const _: () = assert!(4 * KEEP_MS <= FENCE_MS);
/// The log has so long to take what a daemon that ends has to say, in milliseconds.
const LEAVE_MS: u64 = 3_000;

pub(super) struct Actor {
    vm: VmId,
    me: Owner,
    core: VmCore,
    spec: Option<VmSpec>,
    shared: Arc<Shared>,
    mail: mpsc::Receiver<Mail>,
    post: mpsc::Sender<Mail>,
    applied: watch::Receiver<Applied>,
    leader: watch::Receiver<Option<pollux_state::id::NodeId>>,
    status: watch::Sender<Status>,
    guest: watch::Sender<Option<Arc<dyn Guest>>>,
    /// What the guest wrote before its machine ended; the next one goes on from there.
    log: watch::Sender<Log>,
    worker: Worker,
    asks: HashMap<Ticket, CancellationToken>,
    /// The read under way; a newer one takes its place.
    reading: CancellationToken,
    /// Cancelled when the actor ends.
    ended: CancellationToken,
    /// Number of the current machine; what a session says of an older one is dropped.
    machine: u64,
    /// Number of the current session of a move; mail of older ones is dropped.
    session: u64,
    outgoing: Option<Outgoing>,
    incoming: Option<Incoming>,
    /// Streams of a move that is decided and not admitted yet: this node is still cleaning up after the one before.
    early: Vec<Mail>,
    stopwatch: Stopwatch,
    /// The proposal that says that a move is done here; when it is answered, the outside may be told of.
    arrival: Option<(Ticket, pollux_state::id::OpId)>,
    /// When the kernel is to be told next that the guest may act, once it runs.
    keep_at: Option<Instant>,
    progress: Option<(Progress, UnixMs)>,
}

impl Actor {
    pub(super) fn new(shared: Arc<Shared>, vm: VmId) -> (Self, Handle) {
        let (post, mail) = mpsc::channel(MAIL_MAX);
        let (status, status_seen) = watch::channel(Status::default());
        let (guest, guest_seen) = watch::channel(None);
        let (log, log_seen) = watch::channel(Log::default());
        let me = shared.me;
        let untouched = shared.marks.untouched(vm);
        let worker = Worker::start(shared.host.clone(), post.clone(), &shared.tasks);
        let applied = shared.consensus.watch();
        let leader = shared.consensus.leader();
        let actor = Self {
            vm,
            me,
            core: VmCore::new(me, vm, shared.limits, untouched),
            spec: None,
            shared,
            mail,
            post: post.clone(),
            applied,
            leader,
            status,
            guest,
            log,
            worker,
            asks: HashMap::new(),
            reading: CancellationToken::new(),
            machine: 0,
            session: 0,
            outgoing: None,
            incoming: None,
            early: Vec::new(),
            stopwatch: Stopwatch::default(),
            arrival: None,
            keep_at: None,
            ended: CancellationToken::new(),
            progress: None,
        };
        (actor, Handle { post, status: status_seen, guest: guest_seen, log: log_seen, attached: Arc::default() })
    }

    /// Runs until `cancel`, or until the VM does not concern this node any more.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let first = self.decided();
        self.apply(first).await;
        while !self.is_done() {
            match self.select(&cancel).await {
                Some(input) => self.take(input).await,
                None => {
                    self.leave().await;
                    break;
                }
            }
        }
        let _span = self.span().entered();
        if self.is_done()
            && let Err(error) = self.shared.marks.clear(self.vm)
        {
            tracing::warn!(%error, "the mark of a standby that is no more is still there");
        }
        self.asks.values().for_each(CancellationToken::cancel);
        self.reading.cancel();
        self.ended.cancel();
        self.disconnect("the daemon lets go of the VM");
    }

    /// A standby that has not been let run is given up while this life can still say that it has not: the next one, on a host that was
    /// started anew, could not, and its source's copy would be lost with it (DESIGN, rule 17).
    async fn leave(&mut self) {
        if !self.core.owes_an_answer() {
            return;
        }
        let given_up = async {
            self.apply(Event::Leaving).await;
            let never = CancellationToken::new();
            while self.core.owes_an_answer() {
                let Some(input) = self.select(&never).await else { return };
                self.take(input).await;
            }
        };
        if tokio::time::timeout(Duration::from_millis(LEAVE_MS), given_up).await.is_err() {
            tracing::warn!(vm = %self.vm, "the log did not take in time that this node gives up a move to it");
        }
    }

    fn is_done(&self) -> bool {
        self.core.is_idle() && !super::registry::concerns(&self.applied.borrow().state, self.vm, self.me.node)
    }

    async fn select(&mut self, cancel: &CancellationToken) -> Option<Input> {
        let deadline = self.core.deadline().map(|at| self.shared.clock.timer(at));
        let tick = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let keep = async {
            match self.keep_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // Decisions first: what mail means depends on them. The kernel's fence even before: mail could flow without end.
        tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            () = keep => Some(Input::Keep),
            // A log that has failed decides nothing more; what runs goes on (DESIGN, rule 6).
            Ok(()) = self.applied.changed() => Some(Input::Applied),
            Ok(()) = self.leader.changed() => Some(Input::Leader),
            mail = self.mail.recv() => mail.map(Input::Mail),
            () = tick => Some(Input::Tick),
        }
    }

    async fn take(&mut self, input: Input) {
        match input {
            Input::Applied => {
                let event = self.decided();
                self.apply(event).await;
            }
            Input::Leader => {
                // Any change: between two leaders there was a moment without.
                self.leader.mark_unchanged();
                self.apply(Event::LeaderLost).await;
            }
            Input::Tick => self.apply(Event::Tick).await,
            Input::Keep => {
                self.keep_at = Some(Instant::now() + Duration::from_millis(KEEP_MS));
                let kept = self.guest.borrow().as_ref().is_none_or(|guest| guest.keep());
                // Once: the read that follows takes its time, and is asked anew if its answer is too old to unlock anything.
                if !kept && !self.core.is_fenced() {
                    tracing::info!(vm = %self.vm, "the kernel lets none of its frames pass until the log was asked again");
                    self.apply(Event::FenceExpired).await;
                }
            }
            Input::Mail(Mail::Event(event)) => {
                if let Event::Answered { ticket, .. } = &event {
                    self.asks.remove(ticket);
                    if let Some((_, op)) = self.arrival.take_if(|(arrived, _)| arrived == ticket) {
                        self.listen_for_guest(op);
                    }
                }
                self.apply(event).await;
            }
            Input::Mail(Mail::Session { number, event }) => {
                if number == self.session {
                    self.apply(event).await;
                }
            }
            Input::Mail(Mail::Machine { number, event }) => {
                if number == self.machine {
                    self.apply(event).await;
                }
            }
            Input::Mail(Mail::Pausing(at)) => self.stopwatch.pauses(at),
            Input::Mail(Mail::Guest(guest)) => {
                guest.remember(&self.log.borrow());
                self.guest.send_replace(Some(guest.clone()));
                if let Some(incoming) = &mut self.incoming {
                    incoming.guest_is_ready(guest);
                }
            }
            Input::Mail(Mail::GuestGone) => {
                if let Some(guest) = self.guest.send_replace(None) {
                    self.log.send_replace(guest.log());
                }
            }
            Input::Mail(mail @ (Mail::Control { .. } | Mail::Pages { .. })) => {
                self.span().in_scope(|| self.stream(mail))
            }
        }
    }

    /// A stream of a source: to the move it belongs to, now or once that is admitted.
    fn stream(&mut self, mail: Mail) {
        let op = match &mail {
            Mail::Control { greeting, .. } => greeting.op,
            Mail::Pages { greeting, .. } => greeting.op,
            Mail::Event(_)
            | Mail::Session { .. }
            | Mail::Machine { .. }
            | Mail::Pausing(_)
            | Mail::Guest(_)
            | Mail::GuestGone => return,
        };
        let admitted = self.incoming.as_ref().is_some_and(|incoming| incoming.is_for(op));
        let decided = self.core.view().vm.as_ref().is_some_and(|seen| seen.moving(op));
        if !admitted && decided && self.early.len() < EARLY_MAX {
            return self.early.push(mail);
        }
        match (mail, &mut self.incoming) {
            (Mail::Control { peer, greeting, send, recv }, Some(incoming)) => {
                incoming.control(peer, greeting, send, recv);
            }
            (Mail::Control { send, .. }, None) => super::incoming::refuse(send, "no move is expected here"),
            (Mail::Pages { peer, greeting, recv }, Some(incoming)) => incoming.pages(peer, greeting, recv),
            // Dropping a page stream tells its source to stop.
            _ => {}
        }
    }

    /// The newest applied state as an event for the core.
    fn decided(&mut self) -> Event {
        let applied = self.applied.borrow_and_update();
        if let Some(vm) = applied.state.vms.get(&self.vm) {
            self.spec = Some(vm.spec.clone());
        }
        Event::Decided(View::of(&applied.state, applied.applied, self.vm))
    }

    fn now(&self) -> Millis {
        self.shared.clock.now()
    }

    async fn apply(&mut self, event: Event) {
        let before = self.core.view();
        let now = if let Event::Decided(view) = &event { view } else { before };
        let span = naming::span(self.vm, self.name(), before, now);
        self.apply_within(event).instrument(span).await;
    }

    fn name(&self) -> Option<&str> {
        self.spec.as_ref().map(|spec| spec.name.as_str())
    }

    /// Under which what happens outside of an event is told.
    fn span(&self) -> Span {
        naming::span(self.vm, self.name(), self.core.view(), self.core.view())
    }

    async fn apply_within(&mut self, event: Event) {
        if let Event::Decided(view) = &event {
            naming::tell_decision(self.core.view(), view);
        }
        let quiet = matches!(event, Event::Decided(_) | Event::Tick);
        if !quiet {
            tracing::debug!(doing = self.core.doing(), ?event, "event");
        }
        let resumed = event == Event::Resumed;
        let before = self.core.doing();
        let switched = {
            let of = |view: &View| view.vm.as_ref().is_some_and(|seen| matches!(seen.phase, Phase::Arriving { .. }));
            of(self.core.view()) || matches!(&event, Event::Decided(view) if of(view))
        };
        self.stopwatch.happens(&event, switched);
        let effects = self.core.on(self.now(), event);
        let doing = self.core.doing();
        if doing != before {
            tracing::info!(before, now = doing, gate = ?self.core.gate(), "role");
        }
        for effect in effects {
            tracing::debug!(?effect, "effect");
            self.stopwatch.begins(&effect);
            self.carry_out(effect).await;
        }
        match self.core.gate() {
            // At once, for an answer that came too late to unlock anything.
            Some(_) if resumed => self.keep_at = Some(Instant::now()),
            Some(_) => {}
            None => self.keep_at = None,
        }
        let gate = self.core.gate().filter(|_| !self.core.is_fenced());
        let doing = if doing == "running" && self.core.is_fenced() { "fenced" } else { doing };
        let status = Status { doing, gate, progress: self.progress };
        let changed = self.status.send_if_modified(|shown| {
            let changed = *shown != status;
            *shown = status;
            changed
        });
        if changed {
            self.shared.changed();
        }
    }

    async fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Launch { standby, generation } => self.launch(standby, generation).await,
            Effect::Discard => {
                self.disconnect("the machine is being ended");
                self.worker.queue(Job::End).await;
            }
            Effect::PowerButton => self.worker.press(),
            Effect::Settle => self.worker.queue(Job::Settle).await,
            Effect::Pause => self.worker.queue(Job::Pause).await,
            Effect::Throttle { percent } => self.worker.queue(Job::Throttle(percent)).await,
            Effect::Resume { generation } => {
                self.worker.queue(Job::Resume(generation, self.core.proof())).await;
            }
            Effect::Unlock => {
                if let (Some(guest), Some(proof)) = (&*self.guest.borrow(), self.core.proof()) {
                    guest.unlock(proof);
                }
            }
            Effect::CloseGate => {
                let guest = self.guest.borrow().clone();
                if let Some(guest) = guest {
                    guest.close_gate().await;
                }
            }
            Effect::Announce => self.worker.queue(Job::Announce).await,
            Effect::Propose { ticket, command } => self.propose(ticket, command),
            Effect::Withdraw { ticket } => {
                if let Some(ask) = self.asks.remove(&ticket) {
                    ask.cancel();
                }
            }
            Effect::Confirm { ticket } => self.confirm(ticket),
            Effect::Connect { op, to, generation, bandwidth } => self.connect(op, to, generation, bandwidth),
            Effect::SendRound { round } => {
                if let Some(outgoing) = &self.outgoing {
                    outgoing.send_round(round);
                }
            }
            Effect::Scan => {
                if let Some(outgoing) = &self.outgoing {
                    outgoing.scan();
                }
            }
            Effect::HandOver { mut report } => {
                report.parts = self.stopwatch.parts();
                match &self.outgoing {
                    Some(outgoing) => outgoing.hand_over(report, self.stopwatch.paused()),
                    None => self.fail_later(Event::HandOverFailed("the connection is gone".into())),
                }
            }
            Effect::Disconnect { reason } => self.disconnect(&reason),
            Effect::Admit { op, from, generation } => {
                if let Err(error) = self.shared.marks.make(self.vm, op) {
                    tracing::warn!(%op, %error, "the mark of an untouched standby could not be written");
                }
                self.session += 1;
                let incoming =
                    Incoming::new(self.shared.clone(), self.vm, op, from, generation, self.session, &self.post);
                self.incoming = Some(incoming);
                std::mem::take(&mut self.early).into_iter().for_each(|mail| self.stream(mail));
            }
            Effect::Load => match self.incoming.as_mut().and_then(Incoming::device_state) {
                Some(state) => self.worker.queue(Job::Load(state)).await,
                None => self.fail_later(Event::LoadFailed("the device state is not there".into())),
            },
            Effect::CommitToRun { op } => {
                let event = match self.shared.marks.clear(self.vm) {
                    Ok(()) => Event::CommittedToRun,
                    Err(error) => {
                        tracing::error!(%op, %error, "the mark of an untouched standby is still there");
                        Event::CommitToRunFailed(error.to_string())
                    }
                };
                let (post, number) = (self.post.clone(), self.session);
                self.shared.spawn(async move {
                    hold::at(Place::Run).await;
                    // An actor that is gone lets nothing run.
                    let _ = post.send(Mail::Session { number, event }).await;
                });
            }
            Effect::Progress(progress) => self.progress = Some((progress, super::wall_ms())),
        }
    }

    async fn launch(&mut self, standby: bool, generation: Generation) {
        let Some(spec) = self.spec.clone() else {
            return self.fail_later(Event::MachineFailed("the VM's description is not there".into()));
        };
        self.machine += 1;
        let (events, reports) = worker::reports();
        let order = Order { vm: self.vm, spec, generation, standby, events };
        self.worker.queue(Job::Launch { number: self.machine, order: Box::new(order), reports }).await;
    }

    fn connect(&mut self, op: OpId, to: Owner, generation: Generation, bandwidth: Option<u64>) {
        self.session += 1;
        self.progress = None;
        let Some(guest) = self.guest.borrow().clone() else {
            return self.fail_later(Event::SessionLost("the machine is gone".into()));
        };
        let greeting = Greeting {
            vm: self.vm,
            op,
            generation,
            from: self.me,
            index: self.core.view().index,
            pages: guest.memory().pages(),
            streams: super::outgoing::STREAMS,
        };
        self.outgoing = Some(Outgoing::start(
            self.shared.clone(),
            guest,
            greeting,
            to,
            bandwidth,
            (self.session, self.machine),
            &self.post,
        ));
    }

    fn disconnect(&mut self, reason: &str) {
        self.session += 1;
        self.early.clear();
        if let Some(outgoing) = self.outgoing.take() {
            outgoing.end(reason);
        }
        if let Some(incoming) = self.incoming.take() {
            incoming.end(reason);
        }
        self.progress = None;
    }

    /// Something that the actor has for itself.
    fn post_later(&self, mail: Mail) {
        let post = self.post.clone();
        self.shared.spawn(async move {
            let _ = post.send(mail).await;
        });
    }

    /// What became of an effect that could not even be begun.
    fn fail_later(&self, event: Event) {
        self.post_later(Mail::Event(event));
    }
}

enum Input {
    Applied,
    Leader,
    Keep,
    Tick,
    Mail(Mail),
}
