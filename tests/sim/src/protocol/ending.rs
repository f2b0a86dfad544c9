//! How a daemon ends: it dies, or it ends in order and says before what only this life of it can say. Its QEMUs end with it
//! either way (docs/adr/0004).

use pollux_state::id::VmId;
use pollux_vm::Event;

use super::{
    Control, Time,
    agenda::{Process, Task},
    world::{Daemon, World},
};

/// How long a daemon that ends waits for the log to take what it has to say, in proportion to the product's patience.
const LEAVE_MS: Time = 100;

impl World {
    /// The daemon dies, and its QEMUs with it. What it sent before may still arrive, or not.
    pub(super) fn crash(&mut self, node: usize) {
        let Some(daemon) = self.nodes[node].daemon.take() else { return };
        self.host_wakes(node);
        let id = self.nodes[node].id;
        self.say(format_args!("{id} loses its daemon (process {})", daemon.serial));
        let process = Process { node, serial: daemon.serial };
        let ids: Vec<u64> =
            self.sessions.iter().filter(|(_, session)| session.has(process)).map(|(id, _)| *id).collect();
        for id in ids {
            self.hang_up(id, process);
        }
    }

    /// The daemon of a node is asked to end.
    pub(super) fn leave(&mut self, node: usize) {
        let ready = |daemon: &&mut Daemon| daemon.stopped.is_none() && !daemon.leaving && daemon.life.is_some();
        let Some(daemon) = self.nodes[node].daemon.as_mut().filter(ready) else { return };
        daemon.leaving = true;
        let process = Process { node, serial: daemon.serial };
        let vms: Vec<VmId> = daemon.parts.keys().copied().collect();
        self.say(format_args!("process {} is asked to end", process.serial));
        for vm in vms {
            if self.owes(process, vm) {
                self.tell(process, vm, Event::Leaving);
            }
        }
        self.put_to(process, LEAVE_MS, Task::LeaveAnyway);
    }

    /// The log did not take in time what it had to say.
    pub(super) fn leave_anyway(&mut self, process: Process) {
        self.crash(process.node);
        self.restart_after_leaving(process.node);
    }

    /// What owes nobody an answer ends at once, the daemon after all.
    pub(super) fn let_leave(&mut self) {
        for process in self.processes() {
            let Some(daemon) = self.daemon(process).filter(|daemon| daemon.leaving && daemon.stopped.is_none()) else {
                continue;
            };
            let vms: Vec<VmId> = daemon.parts.keys().copied().collect();
            for vm in vms {
                if !self.owes(process, vm) {
                    self.let_go(process, vm);
                }
            }
            if self.daemon(process).is_some_and(|daemon| daemon.parts.is_empty()) {
                self.left(process);
            }
        }
    }

    fn owes(&mut self, process: Process, vm: VmId) -> bool {
        let silent = self.settings.control == Some(Control::SilentLeaving);
        !silent && self.part(process, vm).is_some_and(|part| part.core.owes_an_answer())
    }

    fn let_go(&mut self, process: Process, vm: VmId) {
        let Some(daemon) = self.daemon(process) else { return };
        let session = daemon.parts.remove(&vm).and_then(|part| part.session);
        daemon.open.retain(|_, open| open.about.is_none_or(|(about, _)| about != vm));
        daemon.reads.retain(|read| read.vm != vm);
        if let Some(session) = session {
            self.hang_up(session, process);
        }
    }

    /// It has said everything.
    fn left(&mut self, process: Process) {
        self.oracle.left += 1;
        let records = self.nodes[process.node].records.values_mut();
        records.filter(|record| record.by == process.serial).for_each(|record| record.in_order = true);
        self.crash(process.node);
        self.restart_after_leaving(process.node);
    }

    /// Mostly for a new host: its kernel was replaced, for one.
    fn restart_after_leaving(&mut self, node: usize) {
        if self.rng.chance(600) {
            self.nodes[node].boot += 1;
        }
        self.restart_some_time(node);
    }

    fn hang_up(&mut self, session: u64, process: Process) {
        if self.rng.chance(500) {
            self.sever_later(session, process);
        } else {
            self.sever(session, Some(process));
        }
    }
}
