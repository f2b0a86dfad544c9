//! The model of the shell: carries out what a core wants done, on model machines, each part in its own time.

use std::fmt;

use pollux_state::id::{OpId, VmId};
use pollux_vm::{Effect, Event};

use super::{
    Control, Time,
    agenda::{Process, Task, Work},
    fence::Fence,
    guest::{Machine, State},
    log::Told,
    world::{Daemon, Record, World},
};

/// How long the impatient shell of a negative control waits.
const IMPATIENT_MS: Time = 60;

/// An event as the trace tells it.
struct Heard<'a>(&'a Event);

impl fmt::Display for Heard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Event::Decided(view) = self.0 {
            write!(f, "Decided {}: ", view.index)?;
            let Some(seen) = &view.vm else { return f.write_str("no such VM") };
            write!(f, "{} {}, wanted {:?}", seen.generation, seen.phase, seen.desired)
        } else if let Event::Answered { ticket, index, outcome } = self.0 {
            write!(f, "Answered {ticket:?} {index}: {}", Told(outcome))
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

impl World {
    /// Gives a core one event and does what comes of it.
    pub(super) fn tell(&mut self, process: Process, vm: VmId, event: Event) {
        let node = self.nodes[process.node].id;
        let now = self.core_time(process.node);
        if self.part(process, vm).is_none() {
            return;
        }
        self.say(format_args!("{node} {vm} < {}", Heard(&event)));
        let resumed = event == Event::Resumed;
        let Some(part) = self.part(process, vm) else { return };
        let (before, effects) = (part.core.doing(), part.core.on(now, event));
        let after = part.core.doing();
        if before != after {
            self.say(format_args!("{node} {vm} {before} -> {after}"));
        }
        for effect in effects {
            if self.part(process, vm).is_none() {
                return;
            }
            if !matches!(effect, Effect::Progress(_)) {
                self.say(format_args!("{node} {vm} > {effect:?}"));
            }
            self.carry_out(process, vm, effect);
            if self.mishap(self.temper.crash_between) {
                self.crash(process.node);
                self.restart_some_time(process.node);
            }
        }
        self.keep_or_not(process, vm, resumed);
        self.set_alarm(process, vm);
    }

    fn set_alarm(&mut self, process: Process, vm: VmId) {
        let now = self.core_time(process.node);
        let Some(part) = self.part(process, vm) else { return };
        let Some(deadline) = part.core.deadline() else { return };
        if part.tick.is_none_or(|tick| deadline < tick || tick <= now) {
            part.tick = Some(deadline);
            self.put_to(process, deadline - now, Task::Tick(vm));
        }
    }

    fn carry_out(&mut self, process: Process, vm: VmId, effect: Effect) {
        match effect {
            Effect::Launch { standby, generation } => self.launch(process, vm, (!standby).then_some(generation.0)),
            Effect::Discard => self.discard(process, vm),
            Effect::PowerButton => self.machine_does(process, vm, (1, 10), Work::Button),
            Effect::Settle => self.machine_does(process, vm, (1, 100), Work::Settled),
            Effect::Pause => self.machine_does(process, vm, (1, 5), Work::Paused),
            Effect::Resume { generation } => {
                self.check_resume(process, vm, generation);
                self.unlock(process, vm);
                if let Some(machine) = self.machine(process, vm) {
                    (machine.gate, machine.let_out) = (Some(generation), false);
                    self.machine_does(process, vm, (0, 5), Work::Continue);
                }
                self.ambush(vm);
            }
            Effect::Unlock => self.unlock(process, vm),
            Effect::CloseGate => {
                if let Some(machine) = self.machine(process, vm) {
                    machine.gate = None;
                    machine.fence.lock();
                }
            }
            Effect::Announce => self.announced(process, vm),
            Effect::Propose { ticket, command } => self.propose(process, Some((vm, ticket)), command),
            Effect::Withdraw { ticket } => {
                if let Some(daemon) = self.daemon(process) {
                    daemon.open.retain(|_, open| open.about != Some((vm, ticket)));
                }
            }
            Effect::Confirm { ticket } => {
                if let Some(Daemon { reads, .. }) = self.daemon(process) {
                    reads.push(super::world::Read { vm, ticket, reached: None });
                    self.send_read(process, vm, ticket);
                }
            }
            Effect::Connect { op, to, generation, .. } => self.connect(process, vm, op, to, generation),
            Effect::SendRound { .. } => self.send_round(process, vm),
            Effect::Scan => self.scan(process, vm),
            Effect::HandOver { report } => self.machine_does(process, vm, (2, 15), Work::HandOver { report }),
            Effect::Disconnect { reason } => self.disconnect(process, vm, &reason),
            Effect::Admit { op, from, generation } => {
                self.record(process, vm, op, false);
                if let Some(part) = self.part(process, vm) {
                    part.admitted = Some((op, from, generation));
                    part.device = None;
                }
            }
            Effect::Load => self.machine_does(process, vm, (3, 25), Work::Load),
            Effect::CommitToRun { op } => {
                let fails = self.mishap(self.temper.fail_load);
                if !fails {
                    self.record(process, vm, op, true);
                } else if let Some(machine) = self.machine(process, vm) {
                    machine.unfit = true;
                }
                self.machine_does(process, vm, (0, 3), Work::CommittedToRun { fails });
            }
            // The core itself checks that a guest has its speed back.
            Effect::Progress(_) | Effect::Throttle { .. } => {}
        }
    }

    fn record(&mut self, process: Process, vm: VmId, op: OpId, committed_to_run: bool) {
        let node = &mut self.nodes[process.node];
        let record = Record { op, committed_to_run, by: process.serial, boot: node.boot, in_order: false };
        node.records.insert(vm, record);
    }

    pub(super) fn machine_does(&mut self, process: Process, vm: VmId, within: (Time, Time), work: Work) {
        let delay = self.soon(within.0, within.1);
        if let Some(machine) = self.machine(process, vm).map(|machine| machine.serial) {
            self.put_to(process, delay, Task::Machine { vm, machine, work });
        }
    }

    fn launch(&mut self, process: Process, vm: VmId, boot: Option<u64>) {
        let serial = self.serial();
        let fails = self.mishap(self.temper.fail_launch);
        let fence = Fence::raise(self.clocks(process.node), self.settings.control);
        let Some(part) = self.part(process, vm) else { return };
        if part.machine.is_some() {
            return self.violate(format!("{vm} gets a second machine beside the first (rule 18)"));
        }
        part.machine = Some(Machine::new(serial, boot, fence));
        self.machine_does(process, vm, (3, 30), if fails { Work::Failed } else { Work::Made });
        self.reconsider_greetings(process);
    }

    fn discard(&mut self, process: Process, vm: VmId) {
        self.check_discard(process, vm);
        let delay = self.soon(1, 10);
        let Some(part) = self.part(process, vm) else { return };
        if let Some(machine) = part.machine.as_mut() {
            machine.doomed = true;
        }
        part.admitted = None;
        let machine = part.machine.as_ref().map(|machine| machine.serial);
        self.put_to(process, delay, Task::Gone { vm, machine });
    }

    pub(super) fn gone(&mut self, process: Process, vm: VmId, machine: Option<u64>) {
        let Some(part) = self.part(process, vm) else { return };
        if part.machine.as_ref().map(|machine| machine.serial) != machine {
            return self.violate(format!("{vm} got a machine while the one before was being ended (rule 18)"));
        }
        part.machine = None;
        self.tell(process, vm, Event::Gone);
    }

    /// A machine, or the part that drives it, does something.
    pub(super) fn work(&mut self, process: Process, vm: VmId, serial: u64, work: Work) {
        let Some(machine) = self.machine(process, vm).filter(|machine| machine.serial == serial) else { return };
        let dead = !machine.alive();
        match work {
            Work::Made if !dead => {
                machine.state = State::Still;
                self.tell(process, vm, Event::MachineReady);
                self.greet_back(process, vm);
            }
            Work::Failed if !dead => {
                machine.state = State::Dead;
                self.tell(process, vm, Event::MachineFailed("no memory left".into()));
            }
            Work::Ended => {
                machine.mourned = true;
                self.tell(process, vm, Event::MachineEnded("killed".into()));
                self.stop_listening(process, vm);
            }
            Work::Off if !dead => self.tell(process, vm, Event::GuestOff),
            Work::Button if machine.state == State::Runs => {
                machine.state = State::Off;
                self.machine_does(process, vm, (1, 60), Work::Off);
            }
            // A guest that stands still finds the button pressed when it goes on.
            Work::Button if !dead => self.machine_does(process, vm, (5, 20), Work::Button),
            Work::Settled => self.tell(process, vm, Event::Settled),
            Work::Paused if !dead => self.paused(process, vm),
            Work::Continue => {
                if !dead {
                    machine.acted = true;
                    if machine.state == State::Still {
                        machine.state = State::Runs;
                    }
                }
                self.machine_does(process, vm, (0, 8), Work::Continued);
            }
            Work::Continued if !dead => self.tell(process, vm, Event::Resumed),
            Work::Continued => self.ended_when_resumed(process, vm),
            Work::HandOver { report } => self.hand_over(process, vm, report),
            Work::HandedOver => {
                self.tell(process, vm, Event::HandedOver);
                self.watch_patience(process, vm);
            }
            Work::Load if !dead => self.load(process, vm),
            Work::CommittedToRun { fails: false } => self.tell(process, vm, Event::CommittedToRun),
            Work::CommittedToRun { fails: true } => {
                self.tell(process, vm, Event::CommitToRunFailed("the disk is full".into()));
            }
            Work::Impatient => self.lose_patience(process, vm),
            Work::Made | Work::Failed | Work::Off | Work::Button | Work::Paused | Work::Load => {}
        }
    }

    fn paused(&mut self, process: Process, vm: VmId) {
        self.flush(process, vm);
        let Some(machine) = self.machine(process, vm) else { return };
        if machine.state == State::Runs {
            machine.state = State::Still;
        }
        machine.gate = None;
        machine.fence.lock();
        machine.guest.device = machine.guest.digest();
        let snapshot = machine.guest.clone();
        self.oracle.paused(vm, snapshot);
        self.tell(process, vm, Event::Paused);
    }

    /// Where nothing was let out, and that can be told, nobody will ever know of what the guest may have executed.
    fn ended_when_resumed(&mut self, process: Process, vm: VmId) {
        let told = self.rng.chance(700);
        let Some(machine) = self.machine(process, vm) else { return };
        let certain = told && !machine.let_out;
        machine.unknown = !certain;
        machine.gate = None;
        machine.fence.lock();
        machine.frames.clear();
        let why = "it has ended".into();
        let event = if certain { Event::NotResumed(why) } else { Event::ResumeUnknown(why) };
        self.tell(process, vm, event);
    }

    /// The defects of [`Control::EndsOutrunResumes`] and [`Control::EndsOutrunHandOvers`]: after a machine's end, what was
    /// begun with it counts as failed.
    fn stop_listening(&mut self, process: Process, vm: VmId) {
        let why = "nobody waited".into();
        if self.settings.control == Some(Control::EndsOutrunResumes) {
            self.tell(process, vm, Event::ResumeUnknown(why));
        } else if self.settings.control == Some(Control::EndsOutrunHandOvers) {
            self.tell(process, vm, Event::HandOverFailed(why));
        }
    }

    fn load(&mut self, process: Process, vm: VmId) {
        let fails = self.mishap(self.temper.fail_load);
        let Some(part) = self.part(process, vm) else { return };
        let (Some(machine), Some(device)) = (part.machine.as_mut(), part.device) else { return };
        if fails {
            // QEMU exits when it cannot load.
            machine.state = State::Dead;
            return self.tell(process, vm, Event::LoadFailed("a section is missing".into()));
        }
        machine.loaded = true;
        machine.guest.device = device;
        self.tell(process, vm, Event::Loaded);
    }

    pub(super) fn watch_patience(&mut self, process: Process, vm: VmId) {
        if self.settings.control == Some(Control::ResumeOnTimeout) {
            self.machine_does(process, vm, (IMPATIENT_MS, IMPATIENT_MS), Work::Impatient);
        }
    }

    /// The defect of [`Control::ResumeOnTimeout`].
    fn lose_patience(&mut self, process: Process, vm: VmId) {
        let clocks = self.clocks(process.node);
        let Some(part) = self.part(process, vm) else { return };
        let waits = part.core.doing() == "handed over";
        let generation = part.core.view().vm.as_ref().map(|seen| seen.generation);
        let machine = part.machine.as_mut().filter(|machine| waits && machine.state == State::Still);
        if let (Some(machine), Some(generation)) = (machine, generation) {
            (machine.gate, machine.state) = (Some(generation), State::Runs);
            machine.fence.pry_open(clocks);
            self.say(format_args!("the source of {vm} loses its patience"));
        }
    }

    /// The defect of [`Control::ResumeBeforeCommit`].
    pub(super) fn rush(&mut self, process: Process, vm: VmId) {
        if self.settings.control != Some(Control::ResumeBeforeCommit) {
            return;
        }
        let clocks = self.clocks(process.node);
        let Some(part) = self.part(process, vm) else { return };
        let generation = part.admitted.map(|(_, _, generation)| generation.next());
        if let (Some(machine), Some(device)) = (part.machine.as_mut(), part.device) {
            (machine.loaded, machine.acted, machine.guest.device) = (true, true, device);
            (machine.gate, machine.state) = (generation, State::Runs);
            machine.fence.pry_open(clocks);
            self.say(format_args!("the target of {vm} does not wait for the log"));
        }
    }
}
