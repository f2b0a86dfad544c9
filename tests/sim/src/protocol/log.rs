//! The model of the replicated log: one sequence, which nodes apply in order and late, and through which they propose and
//! read when they reach the quorum.

use std::fmt;

use pollux_state::{
    ClusterState, Command, Outcome, Proposal,
    id::{OpId, VmId},
    invariant,
    vm::{Desired, Phase},
};
use pollux_vm::{Event, Ticket};

use super::{
    Time,
    agenda::{Happening, Moment, Process, Task},
    world::{Open, Read, World},
};

/// How long a daemon waits for an answer before it repeats its proposal or read.
const ANSWER_MS: (Time, Time) = (40, 90);

/// The sequence, and the state as of its end: the truth, which no node knows.
#[derive(Default)]
pub(super) struct Log {
    pub(super) entries: Vec<Proposal>,
    pub(super) state: ClusterState,
    /// There is no leader.
    pub(super) down: bool,
    /// For how long there was none in all, without the time since the last was lost, and when that was.
    down_ms: Time,
    down_since: Option<Time>,
}

/// An outcome as the trace tells it.
pub(super) struct Told<'a>(pub(super) &'a Outcome);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Outcome::Refused(refusal) = self.0 { write!(f, "refused: {refusal}") } else { write!(f, "{:?}", self.0) }
    }
}

impl Log {
    pub(super) fn index(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn lose_leader(&mut self, now: Time) {
        self.down = true;
        self.down_since.get_or_insert(now);
    }

    pub(super) fn find_leader(&mut self, now: Time) {
        self.down = false;
        self.down_ms += self.down_since.take().map_or(0, |since| now - since);
    }

    /// For how long there was a leader until `now`, in all.
    pub(super) fn up_ms(&self, now: Time) -> Time {
        now - self.down_ms - self.down_since.map_or(0, |since| now - since)
    }
}

impl World {
    /// A core's proposal, or the daemon's own, begins to be repeated.
    pub(super) fn propose(&mut self, process: Process, about: Option<(VmId, Ticket)>, command: Command) {
        let id = OpId(self.rng.bytes());
        let at = self.now;
        if let Some((vm, ticket)) = about {
            self.note(process, vm, ticket);
        }
        self.note_abort(process, &command);
        if let Some(daemon) = self.daemon(process) {
            daemon.open.insert(id, Open { about, at, command });
            self.send_proposal(process, id);
        }
    }

    pub(super) fn send_proposal(&mut self, process: Process, id: OpId) {
        let by = self.nodes[process.node].id;
        let Some(open) = self.daemon(process).and_then(|daemon| daemon.open.get(&id)) else { return };
        let proposal = Proposal { id, by, at: open.at, command: open.command.clone() };
        let patience = self.soon(ANSWER_MS.0, ANSWER_MS.1);
        self.put_to(process, patience, Task::Retry { id });
        if self.mishap(self.temper.lose) {
            self.say(format_args!("a proposal of {by} is lost"));
            return;
        }
        let delay = self.leader_delay();
        self.put(delay, Happening::Append { proposal, sender: process.node, from: Some(process) });
    }

    /// Mostly a moment, now and then an age.
    pub(super) fn leader_delay(&mut self) -> Time {
        if self.mishap(self.temper.delay) { self.soon(50, 1_500) } else { self.soon(1, 5) }
    }

    pub(super) fn append_arrives(&mut self, proposal: Proposal, sender: usize, from: Option<Process>) {
        if self.log.down || !self.nodes[sender].linked {
            return;
        }
        let id = proposal.id;
        let applied = self.append(proposal);
        let Some(process) = from else { return };
        let about = self.daemon(process).and_then(|daemon| daemon.open.get(&id)).and_then(|open| open.about);
        if self.mishap(self.temper.lose) {
            self.say(format_args!("the answer is lost"));
        } else {
            let delay = self.soon(1, 5);
            self.put_to(process, delay, Task::Answer { id, about, applied });
        }
    }

    /// Adds an entry to the sequence: the moment at which things are decided.
    pub(super) fn append(&mut self, proposal: Proposal) -> pollux_state::Applied {
        let index = self.log.index() + 1;
        let before = self.log.state.clone();
        let applied = self.log.state.apply_with(&self.settings.rules, index, &proposal);
        let outcome = Told(&applied.outcome);
        self.say(format_args!("log {index}: {} {:?} => {outcome}", proposal.by, proposal.command));
        if self.settings.check_state {
            let step = invariant::check(&before, &self.log.state, &proposal, &applied.outcome);
            if let Err(violation) = step.and_then(|()| self.log.state.check()) {
                self.violate(format!("the state machine: {violation}"));
            }
        }
        let repeated = before.outcomes.contains_key(&proposal.id);
        if !repeated && !matches!(applied.outcome, Outcome::Refused(_)) {
            self.decided(&before, &proposal);
            self.check_survival(&before, &proposal.command);
        }
        self.log.entries.push(proposal);
        for process in self.processes() {
            self.expect_apply(process);
        }
        applied
    }

    /// An entry that changed something.
    fn decided(&mut self, before: &ClusterState, proposal: &Proposal) {
        match &proposal.command {
            Command::Release { vm, cause, .. } => self.released(before, *vm, proposal.by, cause),
            Command::SetDesired { vm, desired, .. } => self.oracle.wished(*vm, *desired),
            Command::Arrived { .. } => self.oracle.moves += 1,
            Command::GiveBack { vm, .. } => self.given_back(before, *vm),
            Command::BeginMove { vm, .. } | Command::Switchover { vm, .. } => self.ambush(*vm),
            Command::AbortMove { .. } => self.oracle.aborted += 1,
            Command::TakeBack { vm, .. } => {
                self.oracle.taken_back += 1;
                self.oracle.forgive(*vm);
            }
            Command::ReleaseLost { vm, .. } => {
                self.oracle.released_lost += 1;
                self.oracle.wished(*vm, Desired::Stopped { force: false });
            }
            Command::Claim { vm, .. } => {
                let anew = before.vms.get(vm).is_some_and(|vm| !matches!(vm.phase, Phase::Stopped { .. }));
                self.oracle.claimed(*vm, anew);
            }
            Command::CreateVm { .. } => {
                let vm = self.log.state.last_vm;
                self.put(1, Happening::Traffic(vm));
            }
            Command::Found { .. }
            | Command::HeardAgain { .. }
            | Command::AddToken { .. }
            | Command::Join { .. }
            | Command::StartIncarnation { .. }
            | Command::DeleteVm { .. }
            | Command::Cancel { .. }
            | Command::RemoveNode { .. }
            | Command::AddPool { .. }
            | Command::RemovePool { .. }
            | Command::CreateVolume { .. }
            | Command::DeleteVolume { .. }
            | Command::GrowVolume { .. }
            | Command::ReplicaMade { .. }
            | Command::ReplicaFailed { .. }
            | Command::AddReplica { .. }
            | Command::RemoveReplica { .. }
            | Command::LeaveSet { .. }
            | Command::JoinSet { .. }
            | Command::AttachVolume { .. }
            | Command::DetachVolume { .. }
            | Command::HoldVolume { .. }
            | Command::DropVolume { .. }
            | Command::BeginVolumeMove { .. }
            | Command::Compared { .. }
            | Command::EndVolumeMove { .. } => {}
        }
    }

    pub(super) fn answered(
        &mut self,
        process: Process,
        id: OpId,
        about: Option<(VmId, Ticket)>,
        applied: pollux_state::Applied,
    ) {
        if !self.nodes[process.node].linked {
            return;
        }
        let now = self.now;
        let Some(daemon) = self.daemon(process) else { return };
        let open = daemon.open.remove(&id);
        match about {
            Some((vm, ticket)) => {
                if let Some(part) = self.part(process, vm) {
                    part.shown = Some(now);
                }
                self.tell(process, vm, Event::Answered { ticket, index: applied.index, outcome: applied.outcome });
            }
            None if open.is_some() => {
                match applied.outcome.done() {
                    Ok(Outcome::Incarnation(incarnation)) => self.begin_life(process, incarnation),
                    // A late word of an earlier process came between the read and this one.
                    Err(pollux_state::Refusal::AnotherLife { .. }) => self.ask_for_life(process),
                    other => self.violate(format!("a daemon could not begin its life: {other:?}")),
                }
            }
            None => {}
        }
    }

    pub(super) fn send_read(&mut self, process: Process, vm: VmId, ticket: Ticket) {
        let waits = |read: &Read| (read.vm, read.ticket, read.reached) == (vm, ticket, None);
        if !self.daemon(process).is_some_and(|daemon| daemon.reads.iter().any(waits)) {
            return;
        }
        let patience = self.soon(ANSWER_MS.0, ANSWER_MS.1);
        self.put_to(process, patience, Task::ReadRetry { vm, ticket });
        self.note(process, vm, ticket);
        if self.mishap(self.temper.lose) {
            return;
        }
        let began = Moment { real: self.now, core: self.core_time(process.node) };
        let delay = self.soon(1, 5);
        self.put(delay, Happening::ReadAtLeader { from: process, vm, ticket, began });
    }

    pub(super) fn read_at_leader(&mut self, from: Process, vm: VmId, ticket: Ticket, began: Moment) {
        if self.log.down || !self.nodes[from.node].linked {
            return;
        }
        let (delay, index) = (self.soon(1, 5), self.log.index());
        self.put_to(from, delay, Task::ReadReply { vm, ticket, began, index });
    }

    pub(super) fn read_replied(&mut self, process: Process, vm: VmId, ticket: Ticket, began: Moment, index: u64) {
        let (linked, now) = (self.nodes[process.node].linked, self.now);
        let Some(daemon) = self.daemon(process).filter(|_| linked) else { return };
        let waiting = daemon.reads.iter_mut().find(|read| (read.vm, read.ticket, read.reached) == (vm, ticket, None));
        if let Some(read) = waiting {
            read.reached = Some((began, now - began.real, index));
            self.finish_reads(process);
        }
    }

    /// Tells cores of reads that are done and caught up with.
    pub(super) fn finish_reads(&mut self, process: Process) {
        loop {
            let applied = self.nodes[process.node].applied;
            let Some(daemon) = self.daemon(process) else { return };
            let done = |read: &Read| read.reached.is_some_and(|(_, _, index)| index <= applied);
            let Some(at) = daemon.reads.iter().position(done) else { return };
            let Read { vm, ticket, reached } = daemon.reads.remove(at);
            let (began, took, _) = reached.expect("it is done");
            if let Some(part) = self.part(process, vm) {
                part.shown = part.shown.max(Some(began.real));
            }
            let took_ms = u32::try_from(took).unwrap_or(u32::MAX);
            self.tell(process, vm, Event::Confirmed { ticket, began: began.core, took_ms });
        }
    }

    /// There is something to apply.
    pub(super) fn expect_apply(&mut self, process: Process) {
        let node = &self.nodes[process.node];
        let behind = node.applied < self.log.index();
        let lazy = node.lazy && !self.calm;
        let Some(daemon) = self.daemon(process).filter(|daemon| behind && !daemon.applying) else { return };
        daemon.applying = true;
        let delay = if lazy { self.soon(20, 400) } else { self.soon(1, 6) };
        self.put_to(process, delay, Task::Apply);
    }
}
