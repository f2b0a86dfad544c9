//! One run: the safety phase, the liveness phase, the verdict.

use std::{collections::BTreeMap, net::SocketAddr};

use pollux_state::{
    Command, Proposal, Rules,
    id::{ClusterId, OpId},
    vm::{Desired, Phase},
};

use super::{
    Control, Time,
    agenda::Happening,
    guest::State,
    world::{NODES, VMS, World},
};
use crate::{Failure, panics};

/// Steps of the liveness phase, at most.
const CALM_STEPS_MAX: u64 = 30_000;
/// The cluster must come to rest within this time.
const CALM_MS_MAX: Time = 60_000;
/// At rest it must stay for this long, without an entry in the log.
const REST_MS: Time = 2_000;
/// A guest that runs has answered within this time.
const SERVED_MS: Time = 300;

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Steps of the safety phase.
    pub steps: u64,
    /// A defect put in on purpose.
    pub control: Option<Control>,
    /// The rules of the state machine.
    pub rules: Rules,
    /// Check the state machine's own invariants too. Off for a negative control in the state machine, so that it is seen
    /// what the defect does, not only that it is there.
    pub check_state: bool,
    /// Print every line of the trace.
    pub print: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { steps: 2_000, control: None, rules: Rules::default(), check_state: true, print: false }
    }
}

/// How a run went that broke no rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Of the whole trace: the same for the same seed and settings.
    pub trace_hash: u64,
    /// Events.
    pub steps: u64,
    /// Entries of the log.
    pub entries: u64,
    /// Counts that reached the outside client.
    pub acknowledged: u64,
    /// Frames that a gate refused.
    pub dropped: u64,
    /// Frames that passed a gate and met a fence.
    pub fenced: u64,
    /// Times that a host was given up which slept.
    pub lost_asleep: u64,
    /// Moves that arrived.
    pub moves: u64,
    /// Moves that were aborted.
    pub aborted: u64,
    /// Moves that were given back.
    pub given_back: u64,
    /// Moves that an operator took back.
    pub taken_back: u64,
    /// VMs that an operator released because their host was dead.
    pub released_lost: u64,
    /// VMs started anew because their daemon had died.
    pub revived: u64,
    /// Daemons that ended in order.
    pub left: u64,
    /// How often the last whole copy of a guest was given up, by the exception that allows it.
    pub given_up: BTreeMap<&'static str, u64>,
}

impl Outcome {
    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.entries += other.entries;
        self.acknowledged += other.acknowledged;
        self.dropped += other.dropped;
        self.fenced += other.fenced;
        self.lost_asleep += other.lost_asleep;
        self.moves += other.moves;
        self.aborted += other.aborted;
        self.given_back += other.given_back;
        self.taken_back += other.taken_back;
        self.released_lost += other.released_lost;
        self.revived += other.revived;
        self.left += other.left;
        for (exception, times) in &other.given_up {
            *self.given_up.entry(exception).or_default() += times;
        }
    }
}

/// Runs one seed.
///
/// # Errors
/// The first rule that was broken, be it seen by the oracle or by an assertion of a core.
pub fn run(seed: u64, settings: &Settings) -> Result<Outcome, Box<Failure>> {
    let mut world = World::new(seed, settings.clone());
    let mut steps = 0;
    let played = panics::watched(|| play(&mut world, &mut steps));
    match played {
        Err(what) => Err(Box::new(Failure {
            simulation: "protocol",
            seed,
            what,
            tail: world.trace.tail(),
            options: options(settings),
        })),
        Ok(()) => Ok(Outcome {
            trace_hash: world.trace.hash(),
            steps,
            entries: world.log.index(),
            acknowledged: world.oracle.acknowledged,
            dropped: world.oracle.dropped,
            fenced: world.oracle.fenced,
            lost_asleep: world.oracle.lost_asleep,
            moves: world.oracle.moves,
            aborted: world.oracle.aborted,
            given_back: world.oracle.given_back,
            taken_back: world.oracle.taken_back,
            released_lost: world.oracle.released_lost,
            revived: world.oracle.revived,
            left: world.oracle.left,
            given_up: world.oracle.given_up,
        }),
    }
}

/// Settings as options of the command line. Other rules of the state machine have none: tests alone can make them.
fn options(settings: &Settings) -> String {
    let mut options = String::new();
    if settings.steps != Settings::default().steps {
        options += &format!(" --steps {}", settings.steps);
    }
    if let Some(control) = settings.control {
        options += &format!(" --control {}", control.name());
    }
    options
}

fn play(world: &mut World, steps: &mut u64) -> Result<(), String> {
    world.set_up();
    while *steps < world.settings.steps {
        step(world, steps)?;
    }
    world.calm_down();
    let (until, most) = (world.now + CALM_MS_MAX, *steps + CALM_STEPS_MAX);
    let mut rest = (world.now, world.log.index());
    loop {
        step(world, steps)?;
        let unrest = world.unrest();
        if unrest.is_some() || world.log.index() != rest.1 {
            rest = (world.now, world.log.index());
        }
        if world.now - rest.0 >= REST_MS {
            return Ok(());
        }
        if world.now > until || *steps > most {
            let what = unrest.unwrap_or_else(|| "the log does not come to rest".into());
            return Err(format!("the cluster does not converge: {what}"));
        }
    }
}

fn step(world: &mut World, steps: &mut u64) -> Result<(), String> {
    *steps += 1;
    world.step();
    world.violation.clone().map_or(Ok(()), Err)
}

impl World {
    /// A cluster of three nodes whose daemons start, and two VMs that are wanted.
    fn set_up(&mut self) {
        let founder = self.nodes[0].id;
        let propose = |world: &mut Self, command| {
            let id = OpId(world.rng.bytes());
            world.append(Proposal { id, by: founder, at: world.now, command });
        };
        let cluster = ClusterId(self.rng.bytes());
        propose(self, Command::Found { cluster, name: "n1".into(), address: address(0), key: [1; 32] });
        for node in 1..NODES {
            let (name, place) = (format!("n{}", node + 1), u8::try_from(node).unwrap_or_default());
            let secret_hash = [place; 32];
            let expires = self.now + 1_000;
            propose(self, Command::AddToken { secret_hash, node_name: name.clone(), expires });
            propose(self, Command::Join { secret_hash, name, address: address(node), key: [place + 1; 32] });
        }
        (0..NODES).for_each(|node| self.start(node));
        for _ in 0..VMS {
            let home = self.some_node();
            self.create_vm(0, home);
        }
        self.put(150, Happening::User);
        self.put(100, Happening::Fault);
    }

    /// Why the cluster has not come to rest, if it has not.
    fn unrest(&self) -> Option<String> {
        for vm in self.log.state.vms.values() {
            let served = self.oracle.served.get(&vm.id).is_some_and(|at| self.now - at <= SERVED_MS);
            match (&vm.phase, vm.desired) {
                (Phase::Running { .. }, Desired::Running) if served => {}
                (Phase::Stopped { .. }, Desired::Stopped { .. }) => {}
                (phase, desired) => {
                    return Some(format!("{} is {phase}, wanted {desired:?}, served: {served}", vm.id));
                }
            }
        }
        for node in &self.nodes {
            let Some(daemon) = &node.daemon else { return Some(format!("{} has no daemon", node.id)) };
            if node.applied != self.log.index() || node.state != self.log.state {
                return Some(format!("{} has another state than the log", node.id));
            }
            if !daemon.open.is_empty() || !daemon.greetings.is_empty() {
                return Some(format!("{} still asks for something", node.id));
            }
            for (vm, part) in &daemon.parts {
                let owner = self.log.state.vms.get(vm).and_then(|vm| vm.phase.owner());
                let mine = owner.is_some() && owner == daemon.life;
                let machine = part.machine.as_ref();
                let runs = machine.is_some_and(|it| it.state == State::Runs && it.gate.is_some());
                if machine.is_some() != mine || runs != mine || part.session.is_some() {
                    let doing = part.core.doing();
                    return Some(format!("{vm} on {} is {doing}, owner: {owner:?}, machine: {machine:?}", node.id));
                }
                if !mine && !part.core.is_idle() {
                    return Some(format!("{vm} on {} is {}, not idle", node.id, part.core.doing()));
                }
            }
        }
        None
    }
}

/// Where a node listens.
pub(super) fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7_001 + u16::try_from(node).unwrap_or_default()))
}
