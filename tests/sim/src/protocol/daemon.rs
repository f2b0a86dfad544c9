//! The model of a daemon: how it starts, and what it does with the log. How it ends: [`super::ending`].
//!
//! Three things here are the shell's duty in the product too: no core exists before the daemon's life is committed; a daemon
//! that sees a later life of its own node ends itself; a core is dropped only when it is idle and the log says nothing of its
//! node any more.

use std::collections::{BTreeMap, VecDeque};

use pollux_state::{
    ClusterState, Command,
    id::{Incarnation, NodeId, OpId, Owner, VmId},
    node::Facts,
    vm::{Phase, Vm},
};
use pollux_vm::{Event, Limits, View, VmCore};

use super::{
    Control, Time,
    agenda::{Process, Task},
    log::Log,
    run::address,
    world::{Daemon, Part, World},
};

/// The limits of the product, in proportion to the pace of this world.
pub(super) const LIMITS: Limits =
    Limits { connect_ms: 300, sure_ms: 100, decide_ms: 150, restart_ms: 10, restart_ms_max: 100 };

impl World {
    /// The daemon of a node is started. What it knows of the log may be older than what its earlier process knew.
    pub(super) fn start(&mut self, node: usize) {
        if self.nodes[node].daemon.is_some() {
            return;
        }
        let serial = self.serial();
        let daemon = Daemon {
            serial,
            stopped: None,
            leaving: false,
            backlog: VecDeque::new(),
            life: None,
            applying: false,
            parts: BTreeMap::new(),
            open: BTreeMap::new(),
            reads: Vec::new(),
            greetings: Vec::new(),
        };
        if self.rng.chance(300) {
            let known = self.rng.below(self.nodes[node].applied + 1);
            self.nodes[node].state = ClusterState::default();
            self.nodes[node].applied = 0;
            self.apply_up_to(node, known);
        }
        let host = &mut self.nodes[node];
        host.daemon = Some(daemon);
        let (id, applied) = (host.id, host.applied);
        self.say(format_args!("{id} starts a daemon (process {serial}), which knows the log up to {applied}"));
        let process = Process { node, serial };
        self.ask_for_life(process);
        self.expect_apply(process);
    }

    /// What a daemon does first: reads which life it follows, and has its own committed.
    pub(super) fn ask_for_life(&mut self, process: Process) {
        let Process { node, .. } = process;
        let after = self.log.state.nodes.get(&self.nodes[node].id).map(|node| node.incarnation).unwrap_or_default();
        let command = Command::StartIncarnation { after, address: address(node), facts: Facts::default() };
        self.propose(process, None, command);
    }

    pub(super) fn begin_life(&mut self, process: Process, incarnation: Incarnation) {
        let node = self.nodes[process.node].id;
        self.say(format_args!("{node} begins its life {incarnation}"));
        if let Some(daemon) = self.daemon(process) {
            daemon.life = Some(Owner { node, incarnation });
        }
        self.tell_all(process);
    }

    pub(super) fn pass_on(&mut self, process: Process, task: Task) {
        let Some(daemon) = self.daemon(process) else { return };
        if daemon.stopped.is_some() {
            daemon.backlog.push_back(task);
            return;
        }
        self.perform(process, task);
    }

    pub(super) fn perform(&mut self, process: Process, task: Task) {
        match task {
            Task::Apply => self.apply(process),
            Task::Answer { id, about, applied } => self.answered(process, id, about, applied),
            Task::Retry { id } => self.send_proposal(process, id),
            Task::ReadReply { vm, ticket, began, index } => self.read_replied(process, vm, ticket, began, index),
            Task::ReadRetry { vm, ticket } => self.send_read(process, vm, ticket),
            Task::LeaderLost => self.leader_lost(process),
            Task::Tick(vm) => {
                if let Some(part) = self.part(process, vm) {
                    part.tick = None;
                    self.tell(process, vm, Event::Tick);
                }
            }
            Task::Keep { vm, keeper } => self.keep_on(process, vm, keeper),
            Task::Machine { vm, machine, work } => self.work(process, vm, machine, work),
            Task::Gone { vm, machine } => self.gone(process, vm, machine),
            Task::Send { vm, session, pages } => self.send_pages(process, vm, session, pages),
            Task::Session { vm, session, event } => {
                if self.part(process, vm).is_some_and(|part| part.session == Some(session)) {
                    self.tell(process, vm, event);
                }
            }
            Task::Deliver { session, to, wire } => self.delivered(session, to, wire),
            Task::Lost { session, to } => self.session_lost(session, to),
            Task::LeaveAnyway => self.leave_anyway(process),
        }
    }

    fn leader_lost(&mut self, process: Process) {
        let now = self.now;
        for vm in self.vms_of(process) {
            if let Some(part) = self.part(process, vm) {
                part.doubt = now;
                self.tell(process, vm, Event::LeaderLost);
            }
        }
    }

    fn vms_of(&mut self, process: Process) -> Vec<VmId> {
        self.daemon(process).map(|daemon| daemon.parts.keys().copied().collect()).unwrap_or_default()
    }

    fn apply(&mut self, process: Process) {
        let Some(daemon) = self.daemon(process) else { return };
        daemon.applying = false;
        let linked = self.nodes[process.node].linked;
        let behind = self.log.index() - self.nodes[process.node].applied;
        if !linked || self.log.down || behind == 0 {
            return;
        }
        let some = if self.rng.chance(700) { behind } else { self.rng.between(1, behind) };
        let index = self.nodes[process.node].applied + some;
        self.apply_up_to(process.node, index);
        self.expect_apply(process);
        if self.outlived(process) {
            let id = self.nodes[process.node].id;
            self.say(format_args!("{id} sees a later life of its own and ends"));
            self.crash(process.node);
            let delay = self.soon(5, 50);
            self.put(delay, super::agenda::Happening::Heal(super::agenda::Healing::Start(process.node)));
            return;
        }
        self.tell_all(process);
        self.finish_reads(process);
        self.reconsider_greetings(process);
    }

    /// A proposal to begin a life, of an earlier process, was appended late: this process is not who the log thinks.
    fn outlived(&mut self, process: Process) -> bool {
        let life = self.daemon(process).and_then(|daemon| daemon.life);
        let node = &self.nodes[process.node];
        let current = node.state.nodes.get(&node.id).map(|node| node.incarnation);
        life.is_some_and(|life| current > Some(life.incarnation))
    }

    fn apply_up_to(&mut self, node: usize, index: u64) {
        let Log { entries, .. } = &self.log;
        let host = &mut self.nodes[node];
        let entries = entries.iter().zip(1u64..).filter(|(_, at)| (host.applied + 1..=index).contains(at));
        for (entry, at) in entries {
            host.state.apply_with(&self.settings.rules, at, entry);
        }
        host.applied = index;
    }

    /// Shows every core of a node the newest state, makes those that are needed and drops those that are not.
    pub(super) fn tell_all(&mut self, process: Process) {
        let Some(me) = self.daemon(process).and_then(|daemon| daemon.life) else { return };
        let node = &self.nodes[process.node];
        let leaving = node.daemon.as_ref().is_some_and(|daemon| daemon.leaving);
        let concern = |vm: &&Vm| concerns(vm, node.id) && !leaving;
        let mut vms: Vec<VmId> = node.state.vms.values().filter(concern).map(|vm| vm.id).collect();
        for vm in &vms {
            self.make_part(process, me, *vm);
        }
        vms.extend(self.vms_of(process));
        vms.sort_unstable();
        vms.dedup();
        for vm in vms {
            let node = &self.nodes[process.node];
            let view = View::of(&node.state, node.applied, vm);
            let concerned = node.state.vms.get(&vm).is_some_and(|vm| concerns(vm, node.id));
            self.tell(process, vm, Event::Decided(view));
            let idle = |part: &mut Part| part.core.is_idle() && part.machine.is_none();
            if !concerned
                && self.part(process, vm).is_some_and(idle)
                && let Some(daemon) = self.daemon(process)
            {
                daemon.parts.remove(&vm);
                daemon.reads.retain(|read| read.vm != vm);
            }
        }
    }

    fn make_part(&mut self, process: Process, me: Owner, vm: VmId) {
        let node = &self.nodes[process.node];
        let record = node.records.get(&vm).copied();
        let certain = record.filter(|it| !it.committed_to_run && it.by != process.serial && it.boot == node.boot);
        let mut untouched: Option<OpId> = certain.map(|record| record.op);
        if self.settings.control == Some(Control::AlwaysUntouched) {
            untouched = record.map(|record| record.op);
        } else if self.settings.control == Some(Control::NeverUntouched) {
            untouched = None;
        }
        let mut limits = LIMITS;
        let phase = node.state.vms.get(&vm).map(|vm| &vm.phase);
        let was_source = matches!(phase, Some(Phase::Moving { from, .. }) if from.node == me.node && *from != me);
        if was_source && self.settings.control == Some(Control::HastySource) {
            limits.decide_ms = 0;
        }
        if self.settings.control == Some(Control::AnswersNeverAge) {
            limits.sure_ms = Time::MAX;
        }
        let now = self.now;
        let Some(daemon) = self.daemon(process) else { return };
        daemon.parts.entry(vm).or_insert_with(|| Part {
            core: VmCore::new(me, vm, limits, untouched),
            machine: None,
            session: None,
            admitted: None,
            pending: 0,
            device: None,
            doubt: now,
            shown: None,
            tick: None,
            keeper: None,
        });
    }
}

/// Whether the log says anything of this node for this VM.
fn concerns(vm: &Vm, node: NodeId) -> bool {
    let moving = vm.phase.moving().is_some_and(|(_, from, to)| from.node == node || to.node == node);
    vm.home == node || moving || vm.phase.owner().is_some_and(|owner| owner.node == node)
}
