//! The model of the links between nodes: sessions of a control stream and page streams, each in order, none of them reliable
//! as a whole. A session that lost something is dead: nothing more arrives, and its ends find out in their own time, or one
//! of them never does.

use pollux_state::{
    id::{Generation, OpId, Owner, VmId},
    operation::MoveReport,
    vm::Phase,
};
use pollux_vm::Event;

use super::{
    Time,
    agenda::{Happening, Process, Task},
    world::World,
};

/// Page streams of a session. A page always takes the same one, so that its versions stay in order.
pub(super) const STREAMS: usize = 2;

/// One end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Target,
}

/// What travels.
#[derive(Debug, Clone)]
pub(super) enum Wire {
    Greeting,
    Ready,
    Refused(String),
    Pages(Vec<(usize, u64)>),
    Complete { frames: u64, device: u64, report: MoveReport },
    Abandon(String),
}

/// The connection of one move.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) vm: VmId,
    pub(super) op: OpId,
    pub(super) generation: Generation,
    /// As of which the source saw the move.
    index: u64,
    pub(super) from: Owner,
    pub(super) source: Process,
    pub(super) target: Process,
    broken: bool,
    /// When the last message of each stream arrives: page streams, control, and the way back.
    cursors: [Time; STREAMS + 2],
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) complete: Option<(u64, u64, MoveReport)>,
}

impl Session {
    pub(super) fn has(&self, process: Process) -> bool {
        self.source == process || self.target == process
    }

    fn process(&self, end: End) -> Process {
        match end {
            End::Source => self.source,
            End::Target => self.target,
        }
    }
}

impl World {
    pub(super) fn connect(&mut self, source: Process, vm: VmId, op: OpId, to: Owner, generation: Generation) {
        let id = self.serial();
        let target = self.node_of(to.node);
        let serial = self.nodes[target].daemon.as_ref().map(|daemon| daemon.serial).unwrap_or_default();
        let index = self.nodes[source.node].applied;
        let target = Process { node: target, serial };
        let Some(from) = self.daemon(source).and_then(|daemon| daemon.life) else { return };
        let Some(part) = self.part(source, vm) else { return };
        let leftover = part.session.replace(id);
        part.pending = u64::MAX;
        if let Some(machine) = part.machine.as_mut() {
            machine.dirty = Some(0);
        }
        if let Some(old) = leftover {
            self.violate(format!("{vm} begins a move with the connection {old} of another (rule 18)"));
        }
        let session = Session {
            vm,
            op,
            generation,
            index,
            from,
            source,
            target,
            broken: false,
            cursors: [0; STREAMS + 2],
            sent: 0,
            received: 0,
            complete: None,
        };
        self.sessions.insert(id, session);
        self.send(id, End::Target, STREAMS, Wire::Greeting);
    }

    /// Sends something on a stream (of the way there; the way back has but one).
    pub(super) fn send(&mut self, id: u64, to: End, stream: usize, wire: Wire) {
        let delay = self.soon(1, 7);
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id).filter(|session| !session.broken) else { return };
        let (from, target) = match to {
            End::Target => (session.source.node, session.target),
            End::Source => (session.target.node, session.source),
        };
        let cursor = &mut session.cursors[if to == End::Target { stream } else { STREAMS + 1 }];
        *cursor = (*cursor).max(now + delay);
        let at = *cursor;
        if self.cut[from][target.node] || self.daemon(target).is_none() {
            return self.sever(id, None);
        }
        // Several things of a stream may arrive in one moment, but in order: chance must not decide.
        self.agenda.put(at, 0, Happening::To(target, Task::Deliver { session: id, to, wire }));
    }

    pub(super) fn delivered(&mut self, id: u64, to: End, wire: Wire) {
        let Some(session) = self.sessions.get(&id).filter(|session| !session.broken) else { return };
        let (process, vm) = (session.process(to), session.vm);
        let other = session.process(if to == End::Source { End::Target } else { End::Source });
        if self.cut[other.node][process.node] {
            return self.sever(id, None);
        }
        if let Wire::Greeting = wire {
            if let Some(daemon) = self.daemon(process) {
                daemon.greetings.push(id);
            }
            return self.reconsider_greetings(process);
        }
        if self.part(process, vm).is_none_or(|part| part.session != Some(id)) {
            return;
        }
        match wire {
            Wire::Greeting => {}
            Wire::Ready => self.tell(process, vm, Event::PeerReady),
            Wire::Refused(why) => self.tell(process, vm, Event::PeerRefused(why)),
            Wire::Pages(pages) => self.take_pages(process, id, &pages),
            Wire::Complete { frames, device, report } => self.take_complete(process, id, (frames, device, report)),
            Wire::Abandon(why) => self.tell(process, vm, Event::PeerAbandoned(why)),
        }
    }

    /// A target admits the sessions it waits for, refuses those that the log knows to be over, and lets the others wait: its
    /// copy of the log may be behind.
    pub(super) fn reconsider_greetings(&mut self, process: Process) {
        let Some(daemon) = self.daemon(process) else { return };
        for id in std::mem::take(&mut daemon.greetings) {
            let Some(session) = self.sessions.get(&id).filter(|session| !session.broken) else { continue };
            let (vm, op, from, generation, index) =
                (session.vm, session.op, session.from, session.generation, session.index);
            let part = self.part(process, vm);
            let wanted = part.is_some_and(|part| {
                let fits = part.admitted == Some((op, from, generation)) && part.session.is_none();
                let fits = fits && part.machine.as_ref().is_some_and(|machine| machine.standby && !machine.acted);
                part.session = if fits { Some(id) } else { part.session };
                fits
            });
            if wanted {
                self.tell(process, vm, Event::SourceConnected);
                self.greet_back(process, vm);
                continue;
            }
            let node = &self.nodes[process.node];
            let phase = node.state.vms.get(&vm).map(|vm| &vm.phase);
            let on = matches!(phase, Some(Phase::Moving { op: current, .. }) if *current == op);
            if node.applied >= index && !on {
                self.send(id, End::Source, 0, Wire::Refused("there is no such move".into()));
            } else if let Some(daemon) = self.daemon(process) {
                daemon.greetings.push(id);
            }
        }
    }

    /// The standby waits and its source has called.
    pub(super) fn greet_back(&mut self, process: Process, vm: VmId) {
        let Some(part) = self.part(process, vm) else { return };
        let Some(id) = part.session else { return };
        let ready =
            part.machine.as_ref().is_some_and(|machine| machine.standby && machine.state == super::guest::State::Still);
        if ready && self.sessions.get(&id).is_some_and(|session| session.target == process) {
            self.send(id, End::Source, 0, Wire::Ready);
        }
    }

    /// One end hangs up, with or without a word. What is on its way then may still arrive, or not.
    pub(super) fn disconnect(&mut self, process: Process, vm: VmId, reason: &str) {
        let Some(part) = self.part(process, vm) else { return };
        part.pending = 0;
        if let Some(machine) = part.machine.as_mut() {
            machine.dirty = None;
        }
        let Some(id) = part.session.take() else { return };
        let Some(session) = self.sessions.get(&id) else { return };
        if session.source == process && self.rng.chance(500) {
            self.send(id, End::Target, STREAMS, Wire::Abandon(reason.into()));
        } else if self.rng.chance(500) {
            self.sever(id, Some(process));
            return;
        }
        self.sever_later(id, process);
    }

    pub(super) fn sever_later(&mut self, id: u64, hung_up: Process) {
        let Some(session) = self.sessions.get(&id) else { return };
        let end = if session.source == hung_up { End::Target } else { End::Source };
        let last = session.cursors.iter().copied().max().unwrap_or_default();
        let delay = self.soon(1, 40) + last.saturating_sub(self.now);
        let other = session_process(self, id, end);
        self.put_to(other, delay, Task::Lost { session: id, to: end });
    }

    /// Nothing more arrives. `gone`: the end that needs no telling.
    pub(super) fn sever(&mut self, id: u64, gone: Option<Process>) {
        let Some(session) = self.sessions.get_mut(&id).filter(|session| !session.broken) else { return };
        session.broken = true;
        let ends: Vec<End> =
            [End::Source, End::Target].into_iter().filter(|end| Some(session.process(*end)) != gone).collect();
        // At least one end finds out.
        let sure = self.rng.index(ends.len());
        for (place, end) in ends.into_iter().enumerate() {
            if place == sure || !self.mishap(200) {
                let delay = self.soon(1, 120);
                let process = session_process(self, id, end);
                self.put_to(process, delay, Task::Lost { session: id, to: end });
            }
        }
    }

    pub(super) fn session_lost(&mut self, id: u64, to: End) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.broken = true;
        let (process, vm) = (session.process(to), session.vm);
        let Some(part) = self.part(process, vm).filter(|part| part.session == Some(id)) else { return };
        part.session = None;
        self.tell(process, vm, Event::SessionLost("it timed out".into()));
    }
}

fn session_process(world: &World, id: u64, end: End) -> Process {
    world.sessions[&id].process(end)
}
