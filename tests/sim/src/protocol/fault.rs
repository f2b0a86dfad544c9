//! What goes wrong. Each seed draws its own temper: which faults there are, and how often, so that rare combinations are
//! common in some runs.

use pollux_state::id::VmId;

use super::{
    Time,
    agenda::{Happening, Healing, Process, Task, Work},
    fence::LOST_AFTER_MS,
    guest::State,
    world::{NODES, World},
};
use crate::Rng;

/// A node hears of no leader at most so long after there is none.
pub(super) const LEADERLESS_MS: Time = 50;

/// How a run goes wrong. Chances are out of a thousand.
#[derive(Debug, Clone)]
pub(super) struct Temper {
    /// Longest time between two faults.
    fault_ms: Time,
    /// Longest time between two deeds of users.
    pub(super) user_ms: Time,
    /// Longest time between two requests to a guest.
    pub(super) traffic_ms: Time,
    /// A proposal, an answer or a read is lost.
    pub(super) lose: u64,
    /// A proposal is on its way for long.
    pub(super) delay: u64,
    /// A daemon dies between two effects.
    pub(super) crash_between: u64,
    pub(super) fail_launch: u64,
    pub(super) fail_load: u64,
    pub(super) fail_hand_over: u64,
    /// A step of a move draws faults upon its nodes, in the moments in which they matter most.
    ambush: u64,
    faults: Vec<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Crash,
    Leave,
    PowerCut,
    Stop,
    Suspend,
    KillMachine,
    PowerOff,
    CutLink,
    BreakSession,
    Partition,
    QuorumLost,
    Lazy,
}

const KINDS: [Kind; 12] = [
    Kind::Crash,
    Kind::Leave,
    Kind::PowerCut,
    Kind::Stop,
    Kind::Suspend,
    Kind::KillMachine,
    Kind::PowerOff,
    Kind::CutLink,
    Kind::BreakSession,
    Kind::Partition,
    Kind::QuorumLost,
    Kind::Lazy,
];

impl Temper {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let some = |rng: &mut Rng, permille| if rng.chance(600) { permille } else { 0 };
        Self {
            fault_ms: rng.pick(&[60, 150, 400, 1_500]),
            user_ms: rng.pick(&[60, 120, 300]),
            traffic_ms: rng.pick(&[4, 12, 30]),
            lose: some(rng, 60),
            delay: some(rng, 40),
            crash_between: some(rng, 3),
            fail_launch: some(rng, 60),
            fail_load: some(rng, 100),
            fail_hand_over: some(rng, 50),
            ambush: rng.pick(&[0, 150, 400]),
            faults: KINDS.into_iter().filter(|_| rng.chance(600)).collect(),
        }
    }
}

impl World {
    /// One fault now, and the next is set.
    pub(super) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let pause = self.soon(5, self.temper.fault_ms);
        self.put(pause, Happening::Fault);
        let node = self.rng.index(NODES);
        self.strike(node);
    }

    /// A step of a move of `vm` was decided: trouble for its nodes may follow at once.
    pub(super) fn ambush(&mut self, vm: VmId) {
        let moving = self.log.state.vms.get(&vm).and_then(|vm| vm.phase.moving());
        let Some((_, from, to)) = moving.filter(|_| self.mishap(self.temper.ambush)) else { return };
        for _ in 0..self.soon(1, 3) {
            let delay = if self.rng.chance(500) { self.soon(0, 20) } else { self.soon(0, 100) };
            let owner = self.rng.pick(&[from, to, to]);
            let node = self.node_of(owner.node);
            self.put(delay, Happening::Trouble(vm, node));
        }
    }

    /// The same for one of its nodes alone, within the moments that follow.
    pub(super) fn ambush_at(&mut self, vm: VmId, node: usize) {
        if self.mishap(self.temper.ambush) {
            let delay = self.soon(0, 10);
            self.put(delay, Happening::Trouble(vm, node));
        }
    }

    /// What an ambush does: a fault of this run's kinds, or one that is aimed.
    pub(super) fn trouble(&mut self, vm: VmId, node: usize) {
        let kills = self.temper.faults.contains(&Kind::KillMachine);
        match self.rng.below(100) {
            0..25 if kills && !self.calm => {
                let process = self.processes().into_iter().find(|process| process.node == node);
                process.into_iter().for_each(|process| self.kill_machine_of(process, vm));
            }
            25..30 if !self.calm => self.cancel_move(node, vm),
            _ => self.strike(node),
        }
    }

    /// A fault of this run's kinds befalls a node.
    pub(super) fn strike(&mut self, node: usize) {
        let kinds = self.temper.faults.clone();
        if self.calm || kinds.is_empty() {
            return;
        }
        let kind = self.rng.pick(&kinds);
        let other = self.rng.index(NODES);
        match kind {
            Kind::Crash => {
                self.crash(node);
                self.restart_some_time(node);
            }
            Kind::Leave => self.leave(node),
            Kind::PowerCut => {
                self.crash(node);
                self.nodes[node].boot += 1;
                self.restart_some_time(node);
            }
            Kind::Stop => self.stop(node),
            Kind::Suspend => self.suspend(node),
            Kind::KillMachine => self.kill_machine(node),
            Kind::PowerOff => self.power_off(node),
            Kind::CutLink => self.cut_link(node, other),
            Kind::BreakSession => self.break_session(),
            Kind::Partition => self.partition(node),
            Kind::QuorumLost => self.lose_quorum(),
            Kind::Lazy => {
                self.nodes[node].lazy = true;
                self.heal_later(50, 800, Healing::Promptness(node));
            }
        }
    }

    pub(super) fn restart_some_time(&mut self, node: usize) {
        self.heal_later(10, 500, Healing::Start(node));
    }

    fn heal_later(&mut self, least: Time, most: Time, healing: Healing) {
        let delay = self.soon(least, most);
        self.put(delay, Happening::Heal(healing));
    }

    fn stop(&mut self, node: usize) {
        if let Some(process) = self.fall_asleep(node) {
            self.say(format_args!("process {} is stopped", process.serial));
        }
    }

    /// The whole host: its daemon, its guests, its kernel's timers.
    fn suspend(&mut self, node: usize) {
        if self.fall_asleep(node).is_some() {
            let id = self.nodes[node].id;
            self.say(format_args!("{id} is suspended"));
            self.nodes[node].suspended_since = Some(self.now);
        }
    }

    /// For a nap, or for so long that an operator may give it up.
    fn fall_asleep(&mut self, node: usize) -> Option<Process> {
        let now = self.now;
        let daemon = self.nodes[node].daemon.as_mut().filter(|daemon| daemon.stopped.is_none())?;
        daemon.stopped = Some(now);
        let process = Process { node, serial: daemon.serial };
        let (least, most) = if self.rng.chance(600) { (10, LOST_AFTER_MS) } else { (LOST_AFTER_MS, 4 * LOST_AFTER_MS) };
        self.heal_later(least, most, Healing::Wake(process));
        Some(process)
    }

    /// A suspended host goes on, or ends; `true`: it was one.
    pub(super) fn host_wakes(&mut self, node: usize) -> bool {
        let now = self.now;
        let host = &mut self.nodes[node];
        let since = host.suspended_since.take();
        host.suspended += since.map_or(0, |since| now - since);
        since.is_some()
    }

    fn machines(&self, node: usize) -> Vec<(Process, VmId)> {
        let Some(daemon) = &self.nodes[node].daemon else { return Vec::new() };
        let process = Process { node, serial: daemon.serial };
        let with = daemon.parts.iter().filter(|(_, part)| part.machine.as_ref().is_some_and(|it| it.alive()));
        with.map(|(vm, _)| (process, *vm)).collect()
    }

    fn kill_machine(&mut self, node: usize) {
        let machines = self.machines(node);
        if machines.is_empty() {
            return;
        }
        let (process, vm) = self.rng.pick(&machines);
        self.kill_machine_of(process, vm);
    }

    fn kill_machine_of(&mut self, process: Process, vm: VmId) {
        let delay = self.soon(0, 20);
        let Some(machine) = self.machine(process, vm).filter(|machine| machine.alive()) else { return };
        machine.state = State::Dead;
        let serial = machine.serial;
        self.say(format_args!("the machine of {vm} in process {} is killed", process.serial));
        self.put_to(process, delay, Task::Machine { vm, machine: serial, work: Work::Ended });
    }

    fn power_off(&mut self, node: usize) {
        let machines = self.machines(node);
        if machines.is_empty() {
            return;
        }
        let (process, vm) = self.rng.pick(&machines);
        let delay = self.soon(0, 20);
        let Some(machine) = self.machine(process, vm).filter(|machine| machine.state == State::Runs) else { return };
        machine.state = State::Off;
        let serial = machine.serial;
        self.say(format_args!("the guest of {vm} in process {} switches itself off", process.serial));
        self.put_to(process, delay, Task::Machine { vm, machine: serial, work: Work::Off });
    }

    fn cut_link(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        self.say(format_args!("the link from node-{} to node-{} is cut", from + 1, to + 1));
        self.cut[from][to] = true;
        self.heal_later(20, 500, Healing::Link(from, to));
        if self.rng.chance(600) {
            self.cut[to][from] = true;
            self.heal_later(20, 500, Healing::Link(to, from));
        }
    }

    fn break_session(&mut self) {
        if let Some(id) = self.sessions.keys().next_back().copied() {
            self.say(format_args!("the connection {id} breaks"));
            self.sever(id, None);
        }
    }

    fn partition(&mut self, node: usize) {
        if !self.nodes[node].linked {
            return;
        }
        let id = self.nodes[node].id;
        self.say(format_args!("{id} loses the quorum"));
        self.nodes[node].linked = false;
        self.leader_changed_at(node);
        self.heal_later(20, 600, Healing::Rejoin(node));
    }

    fn lose_quorum(&mut self) {
        if self.log.down {
            return;
        }
        self.say(format_args!("there is no quorum"));
        self.log.lose_leader(self.now);
        (0..NODES).for_each(|node| self.leader_changed_at(node));
        self.heal_later(20, 300, Healing::Quorum);
    }

    /// That a leader is gone is heard late; that there is one, before anything can be asked of it.
    fn leader_changed_at(&mut self, node: usize) {
        let led = self.nodes[node].linked && !self.log.down;
        let delay = if led { 0 } else { self.soon(0, LEADERLESS_MS) };
        if let Some(process) = self.processes().into_iter().find(|process| process.node == node) {
            self.put_to(process, delay, Task::LeaderLost);
        }
    }

    pub(super) fn heal(&mut self, healing: Healing) {
        match healing {
            Healing::Start(node) => self.start(node),
            Healing::Wake(process) => self.wake(process),
            Healing::Rejoin(node) => {
                self.nodes[node].linked = true;
                self.leader_changed_at(node);
                self.processes().into_iter().for_each(|process| self.expect_apply(process));
            }
            Healing::Quorum => {
                self.log.find_leader(self.now);
                (0..NODES).for_each(|node| self.leader_changed_at(node));
                self.processes().into_iter().for_each(|process| self.expect_apply(process));
            }
            Healing::Link(from, to) => self.cut[from][to] = false,
            Healing::Promptness(node) => self.nodes[node].lazy = false,
        }
    }

    /// What the guests sent meanwhile meets the gate as it was left, or what waited is dealt with first: chance decides.
    fn wake(&mut self, process: Process) {
        let Some(daemon) = self.daemon(process).filter(|daemon| daemon.stopped.is_some()) else { return };
        daemon.stopped = None;
        let backlog = std::mem::take(&mut daemon.backlog);
        let vms: Vec<VmId> = daemon.parts.keys().copied().collect();
        self.say(format_args!("process {} goes on", process.serial));
        let frames_first = self.rng.chance(500);
        if self.host_wakes(process.node) {
            vms.iter().for_each(|vm| self.keep(process, *vm));
        }
        if frames_first {
            vms.iter().for_each(|vm| self.flush(process, *vm));
        }
        for task in backlog {
            self.pass_on(process, task);
        }
        vms.iter().for_each(|vm| self.flush(process, *vm));
    }

    /// Faults stop, and what they broke works again.
    pub(super) fn calm_down(&mut self) {
        self.calm = true;
        self.say(format_args!("faults are over"));
        self.cut = [[false; NODES]; NODES];
        self.heal(Healing::Quorum);
        for node in 0..NODES {
            self.heal(Healing::Promptness(node));
            self.heal(Healing::Rejoin(node));
            self.start(node);
        }
        for process in self.processes() {
            self.wake(process);
            self.expect_apply(process);
        }
    }
}
