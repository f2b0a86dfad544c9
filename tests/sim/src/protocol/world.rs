//! Everything there is, and how time passes.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use pollux_state::{
    ClusterState, Command,
    id::{Generation, NodeId, OpId, Owner, VmId},
};
use pollux_vm::{Ticket, VmCore};

use super::{
    Settings, Time,
    agenda::{Agenda, Happening, Moment, Process, Task},
    fault::Temper,
    guest::Machine,
    link::Session,
    log::Log,
    oracle::Oracle,
};
use crate::{Rng, trace::Trace};

/// Nodes of the cluster.
pub(super) const NODES: usize = 3;
/// VMs there are at first, and again after one was deleted.
pub(super) const VMS: usize = 4;

/// See the module.
pub(super) struct World {
    pub(super) settings: Settings,
    pub(super) now: Time,
    pub(super) rng: Rng,
    pub(super) agenda: Agenda,
    pub(super) trace: Trace,
    pub(super) temper: Temper,
    pub(super) log: Log,
    pub(super) nodes: Vec<Node>,
    pub(super) sessions: BTreeMap<u64, Session>,
    /// `cut[a][b]`: nothing gets from node a to node b.
    pub(super) cut: [[bool; NODES]; NODES],
    pub(super) oracle: Oracle,
    /// Faults are over.
    pub(super) calm: bool,
    /// The first rule that was seen broken.
    pub(super) violation: Option<String>,
    pub(super) created: u64,
    /// Source of page contents that were never there before.
    pub(super) version: u64,
    serials: u64,
}

/// A host.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) daemon: Option<Daemon>,
    /// Its copy of the state, as of `applied`.
    pub(super) state: ClusterState,
    pub(super) applied: u64,
    /// For how long it was suspended, up to the last time that it woke.
    pub(super) suspended: Time,
    /// It is suspended: its daemon and its guests stand still, and so do its kernel's timers.
    pub(super) suspended_since: Option<Time>,
    /// Reaches the quorum.
    pub(super) linked: bool,
    /// Applies what was committed long after the others.
    pub(super) lazy: bool,
    /// Rises with each start of the host.
    pub(super) boot: u64,
    /// On its disk: the last move it was the target of.
    pub(super) records: BTreeMap<VmId, Record>,
}

/// What a target keeps on disk about a move.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) op: OpId,
    /// The guest may have acted.
    pub(super) committed_to_run: bool,
    /// The process that wrote it.
    pub(super) by: u64,
    /// The host's boot at which it did.
    pub(super) boot: u64,
    /// That process ended in order: what it had to say of the move, the log had taken.
    pub(super) in_order: bool,
}

/// A process of a daemon. Its QEMUs die with it.
pub(super) struct Daemon {
    pub(super) serial: u64,
    /// By SIGSTOP, or with its host, since then.
    pub(super) stopped: Option<Time>,
    /// It ends in order, once the log has taken what only this life can say.
    pub(super) leaving: bool,
    /// What waits for it to go on.
    pub(super) backlog: VecDeque<Task>,
    /// The life it was given.
    pub(super) life: Option<Owner>,
    pub(super) applying: bool,
    pub(super) parts: BTreeMap<VmId, Part>,
    /// Proposals without an answer.
    pub(super) open: BTreeMap<OpId, Open>,
    pub(super) reads: Vec<Read>,
    /// Sessions whose target has not made up its mind.
    pub(super) greetings: Vec<u64>,
}

/// A proposal that is repeated until it is answered or withdrawn.
pub(super) struct Open {
    pub(super) about: Option<(VmId, Ticket)>,
    pub(super) at: Time,
    pub(super) command: Command,
}

/// A read of the log that is repeated until it succeeds.
pub(super) struct Read {
    pub(super) vm: VmId,
    pub(super) ticket: Ticket,
    /// When the attempt that succeeded began, what it took, and how far the log must be applied.
    pub(super) reached: Option<(Moment, Time, u64)>,
}

/// A VM on a node: the core, and what the shell keeps for it.
pub(super) struct Part {
    pub(super) core: VmCore,
    pub(super) machine: Option<Machine>,
    pub(super) session: Option<u64>,
    pub(super) admitted: Option<(OpId, Owner, Generation)>,
    /// Source: pages of the next round.
    pub(super) pending: u64,
    /// Target: the device state that arrived.
    pub(super) device: Option<u64>,
    /// When it last became doubtful that the core's view is current.
    pub(super) doubt: Time,
    /// When the newest read or answer of the log began, on which the core relies.
    pub(super) shown: Option<Time>,
    pub(super) tick: Option<Time>,
    /// Who tells the fence that the guest may still act.
    pub(super) keeper: Option<u64>,
}

impl World {
    pub(super) fn new(seed: u64, settings: Settings) -> Self {
        let mut rng = Rng::new(seed);
        let temper = Temper::draw(&mut rng);
        let node = |number: usize| Node {
            id: NodeId(number as u64 + 1),
            daemon: None,
            state: ClusterState::default(),
            applied: 0,
            suspended: 0,
            suspended_since: None,
            linked: true,
            lazy: false,
            boot: 0,
            records: BTreeMap::new(),
        };
        Self {
            now: 1,
            agenda: Agenda::new(),
            trace: Trace::new(settings.print),
            log: Log::default(),
            nodes: (0..NODES).map(node).collect(),
            sessions: BTreeMap::new(),
            cut: [[false; NODES]; NODES],
            oracle: Oracle::default(),
            calm: false,
            violation: None,
            created: 0,
            version: 0,
            serials: 0,
            settings,
            rng,
            temper,
        }
    }

    /// Lets the next thing happen.
    pub(super) fn step(&mut self) {
        let (at, what) = self.agenda.next().expect("guests are asked to count for ever");
        self.now = self.now.max(at);
        match what {
            Happening::Append { proposal, sender, from } => self.append_arrives(proposal, sender, from),
            Happening::ReadAtLeader { from, vm, ticket, began } => self.read_at_leader(from, vm, ticket, began),
            Happening::To(process, task) => self.pass_on(process, task),
            Happening::Traffic(vm) => self.traffic(vm),
            Happening::User => self.user(),
            Happening::Fault => self.fault(),
            Happening::Trouble(vm, node) => self.trouble(vm, node),
            Happening::Heal(healing) => self.heal(healing),
        }
        self.let_leave();
        self.check();
    }

    pub(super) fn put(&mut self, delay: Time, what: Happening) {
        let tie = self.rng.bits();
        self.agenda.put(self.now + delay, tie, what);
    }

    pub(super) fn put_to(&mut self, process: Process, delay: Time, task: Task) {
        self.put(delay, Happening::To(process, task));
    }

    /// A delay between these, in milliseconds.
    pub(super) fn soon(&mut self, least: Time, most: Time) -> Time {
        self.rng.between(least, most)
    }

    /// Something goes wrong, which it does no more once the world is calm.
    pub(super) fn mishap(&mut self, permille: u64) -> bool {
        !self.calm && self.rng.chance(permille)
    }

    pub(super) fn serial(&mut self) -> u64 {
        self.serials += 1;
        self.serials
    }

    pub(super) fn say(&mut self, text: fmt::Arguments<'_>) {
        self.trace.line(self.now, text);
    }

    pub(super) fn violate(&mut self, what: String) {
        self.trace.line(self.now, format_args!("VIOLATION {what}"));
        self.violation.get_or_insert(what);
    }

    pub(super) fn daemon(&mut self, process: Process) -> Option<&mut Daemon> {
        self.nodes[process.node].daemon.as_mut().filter(|daemon| daemon.serial == process.serial)
    }

    pub(super) fn part(&mut self, process: Process, vm: VmId) -> Option<&mut Part> {
        self.daemon(process)?.parts.get_mut(&vm)
    }

    pub(super) fn machine(&mut self, process: Process, vm: VmId) -> Option<&mut Machine> {
        self.part(process, vm)?.machine.as_mut()
    }

    /// The live processes.
    pub(super) fn processes(&self) -> Vec<Process> {
        let process = |(node, host): (usize, &Node)| Some(Process { node, serial: host.daemon.as_ref()?.serial });
        self.nodes.iter().enumerate().filter_map(process).collect()
    }

    pub(super) fn node_of(&self, id: NodeId) -> usize {
        self.nodes.iter().position(|node| node.id == id).expect("the cluster keeps its nodes")
    }
}
