//! The memory of a guest on its way: rounds at the source, pages at the target, and the requests of the outside client that
//! make the guest write.

use pollux_state::{id::VmId, operation::MoveReport};
use pollux_vm::{Event, event::RoundReport};

use super::{
    Control, Time,
    agenda::{Happening, Process, Task, Work},
    guest::{State, numbers},
    link::{End, STREAMS, Wire},
    world::World,
};

/// Parts in which a round is sent, so that the guest writes in between.
const PARTS: usize = 4;

impl World {
    /// The outside client asks for a count: whatever runs under the VM's name hears it, as on a network.
    pub(super) fn traffic(&mut self, vm: VmId) {
        if !self.log.state.vms.contains_key(&vm) {
            return;
        }
        let pause = if self.calm { self.soon(20, 60) } else { self.soon(2, self.temper.traffic_ms) };
        self.put(pause, Happening::Traffic(vm));
        for process in self.processes() {
            if self.nodes[process.node].suspended_since.is_some() {
                continue;
            }
            let others: Vec<usize> = (0..self.soon(0, 3)).map(|_| self.rng.index(1 << 16)).collect();
            let mut version = self.version;
            let Some(machine) = self.machine(process, vm).filter(|machine| machine.state == State::Runs) else {
                continue;
            };
            machine.count(&others, &mut version);
            self.version = version;
            self.flush(process, vm);
        }
    }

    /// The gate, and behind it the fence, look at what the guest sent, unless the process is stopped.
    pub(super) fn flush(&mut self, process: Process, vm: VmId) {
        let clocks = self.clocks(process.node);
        let Some(daemon) = self.daemon(process).filter(|daemon| daemon.stopped.is_none()) else { return };
        let Some(life) = daemon.life else { return };
        let Some(machine) = self.machine(process, vm) else { return };
        let (gate, passes) = (machine.gate, machine.fence.passes(clocks));
        machine.let_out |= gate.is_some() && passes && !machine.frames.is_empty();
        for frame in std::mem::take(&mut machine.frames) {
            match gate {
                Some(generation) if passes => self.emitted(vm, life, generation, frame),
                Some(_) => self.oracle.fenced += 1,
                None => self.oracle.dropped += 1,
            }
        }
    }

    pub(super) fn send_round(&mut self, process: Process, vm: VmId) {
        let Some(part) = self.part(process, vm) else { return };
        let pages = std::mem::take(&mut part.pending);
        let Some(session) = part.session else { return };
        let took: Vec<Time> = (0..PARTS).map(|_| self.soon(1, 6)).collect();
        let mut at = 0;
        for (place, delay) in took.into_iter().enumerate() {
            at += delay;
            let pages = numbers(pages).filter(|page| page * PARTS / 64 == place).fold(0, |set, page| set | 1 << page);
            self.put_to(process, at, Task::Send { vm, session, pages });
        }
        let report = RoundReport {
            pages: u64::from(pages.count_ones()),
            zero_pages: 0,
            wire_bytes: u64::from(pages.count_ones()) * 4096,
            took_ms: at + 1,
        };
        self.put_to(process, at + 1, Task::Session { vm, session, event: Event::RoundLanded(report) });
    }

    pub(super) fn send_pages(&mut self, process: Process, vm: VmId, session: u64, pages: u64) {
        let Some(part) = self.part(process, vm).filter(|part| part.session == Some(session)) else { return };
        let Some(machine) = part.machine.as_ref().filter(|machine| machine.alive()) else { return };
        let contents: Vec<(usize, u64)> = numbers(pages).map(|page| (page, machine.guest.pages[page])).collect();
        for stream in 0..STREAMS {
            let batch: Vec<_> = contents.iter().copied().filter(|(page, _)| page % STREAMS == stream).collect();
            if batch.is_empty() {
                continue;
            }
            if let Some(session) = self.sessions.get_mut(&session) {
                session.sent += 1;
            }
            self.send(session, End::Target, stream, Wire::Pages(batch));
        }
    }

    pub(super) fn scan(&mut self, process: Process, vm: VmId) {
        let forget = self.settings.control == Some(Control::ForgetOnePage);
        let delay = self.soon(1, 4);
        let Some(part) = self.part(process, vm) else { return };
        let found =
            part.machine.as_mut().and_then(|machine| machine.dirty.as_mut().map(std::mem::take)).unwrap_or_default();
        part.pending |= if forget { found & found.wrapping_sub(1) } else { found };
        let pending_pages = u64::from(part.pending.count_ones());
        if let Some(session) = part.session {
            self.put_to(process, delay, Task::Session { vm, session, event: Event::Scanned { pending_pages } });
        }
    }

    pub(super) fn hand_over(&mut self, process: Process, vm: VmId, report: MoveReport) {
        let fails = self.mishap(self.temper.fail_hand_over);
        let Some(part) = self.part(process, vm) else { return };
        let Some(machine) = part.machine.as_mut() else { return };
        let ready = machine.alive() && !fails;
        let (Some(session), true) = (part.session, ready) else {
            return self.tell(process, vm, Event::HandOverFailed("saving was not possible".into()));
        };
        if machine.state == State::Runs {
            return self.violate(format!("{vm} is handed over while its guest runs (rule 17)"));
        }
        let pages = std::mem::take(&mut part.pending) | machine.dirty.take().unwrap_or_default();
        let device = machine.guest.device;
        self.send_pages(process, vm, session, pages);
        let frames = self.sessions.get(&session).map(|session| session.sent).unwrap_or_default();
        self.send(session, End::Target, STREAMS, Wire::Complete { frames, device, report });
        let (op, up_ms) = (self.sessions.get(&session).map(|session| session.op), self.log.up_ms(self.now));
        self.oracle.handed.extend(op.map(|op| (op, up_ms)));
        self.machine_does(process, vm, (0, 20), Work::HandedOver);
        self.ambush(vm);
        self.ambush_at(vm, process.node);
    }

    pub(super) fn take_pages(&mut self, process: Process, id: u64, pages: &[(usize, u64)]) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.received += 1;
        let (vm, named) = (session.vm, (session.op, session.from, session.generation));
        let Some(part) = self.part(process, vm) else { return };
        let admitted = part.admitted;
        let Some(machine) = part.machine.as_mut() else { return };
        let untouched = machine.standby && !machine.acted;
        for (page, content) in pages {
            machine.guest.pages[*page] = *content;
        }
        if !untouched || admitted != Some(named) {
            self.violate(format!("{vm} takes pages of {named:?} where it admitted {admitted:?} (rule 4)"));
        }
        self.all_received(process, id);
    }

    pub(super) fn take_complete(&mut self, process: Process, id: u64, complete: (u64, u64, MoveReport)) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.complete = Some(complete);
        }
        self.all_received(process, id);
    }

    fn all_received(&mut self, process: Process, id: u64) {
        let at = self.core_time(process.node);
        let Some(session) = self.sessions.get(&id) else { return };
        let Some((frames, device, report)) = session.complete.clone() else { return };
        if session.received != frames {
            return;
        }
        let (vm, op) = (session.vm, session.op);
        if let Some(part) = self.part(process, vm) {
            part.device = Some(device);
        }
        self.check_arrival(process, vm, op);
        self.tell(process, vm, Event::AllReceived { report, at });
        self.rush(process, vm);
    }
}
