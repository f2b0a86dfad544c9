//! One run: founding, the safety phase, the liveness phase, the verdict.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use pollux_link::{Authority, Fingerprint, Role};
use pollux_raft::Retention;
use pollux_state::{
    Command, Outcome as Decided, Proposal,
    id::{ClusterId, NodeId, OpId},
    vm::Phase,
};
use turmoil::{Builder, Sim};

use super::{
    Control,
    fault::Faults,
    node::{self, Ground, PORT, Place},
    recorder::Recorder,
    user::{self, User},
};
use crate::{Failure, Rng, panics};

/// Nodes of the cluster.
const NODES: u64 = 3;
/// Founding must be over within this time.
const FOUNDING_MAX: Duration = Duration::from_secs(60);
/// The cluster must come to rest within this time after the last fault.
pub const CALM_MAX: Duration = Duration::from_secs(60);
/// At rest it must stay for this long.
const REST: Duration = Duration::from_secs(2);
/// A guest that runs has sent a frame within this time.
const SERVED: Duration = Duration::from_millis(300);
/// The simulated world moves in steps of this.
const TICK: Duration = Duration::from_millis(1);
/// Datagrams that a socket holds.
const DATAGRAMS_MAX: usize = 4_096;
/// Tokens are good until then, by the clock of the proposals.
const TOKENS_UNTIL: u64 = 1_000_000;

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long the safety phase lasts, in simulated time.
    pub faults: Duration,
    /// A defect put in on purpose.
    pub control: Option<Control>,
    /// Print what happens.
    pub print: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { faults: Duration::from_secs(20), control: None, print: false }
    }
}

/// How a run went that broke no rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Of the order of decisions about the VM.
    pub trace_hash: u64,
    /// Entries of the log.
    pub entries: u64,
    /// Proposals that were acknowledged to the user.
    pub acknowledged: u64,
    /// Frames that left machines.
    pub frames: u64,
    /// Starts of guests from nothing.
    pub boots: u64,
    /// Moves that arrived.
    pub moves: u64,
    /// Moves that did not.
    pub failed: u64,
    /// Moves that were cancelled.
    pub cancelled: u64,
    /// Faults.
    pub faults: u64,
    /// Crashes among them.
    pub crashes: u64,
    /// How long the cluster took to come to rest after the last fault, in simulated milliseconds; of several runs the
    /// longest.
    pub calm_ms_max: u64,
}

impl Outcome {
    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        self.entries += other.entries;
        self.acknowledged += other.acknowledged;
        self.frames += other.frames;
        self.boots += other.boots;
        self.moves += other.moves;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.faults += other.faults;
        self.crashes += other.crashes;
        self.calm_ms_max = self.calm_ms_max.max(other.calm_ms_max);
    }
}

/// Runs one seed.
///
/// # Errors
/// The first rule that was broken, be it seen by the recorder or by an assertion anywhere.
pub fn run(seed: u64, settings: &Settings) -> Result<Outcome, Box<Failure>> {
    let recorder = Arc::new(Recorder::new(settings.print, settings.control));
    let what = match panics::watched(|| play(seed, settings, &recorder)) {
        Ok(outcome) => return Ok(outcome),
        Err(what) => what,
    };
    let mut options = String::new();
    if settings.faults != Settings::default().faults {
        options += &format!(" --seconds {}", settings.faults.as_secs());
    }
    if let Some(control) = settings.control {
        options += &format!(" --control {}", control.name());
    }
    Err(Box::new(Failure { simulation: "cluster", seed, what, tail: recorder.tail(), options }))
}

struct World<'a> {
    sim: Sim<'a>,
    places: Vec<Arc<Place>>,
    recorder: Arc<Recorder>,
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        self.places.iter().for_each(|place| place.forget());
    }
}

fn play(seed: u64, settings: &Settings, recorder: &Arc<Recorder>) -> Result<Outcome, String> {
    let mut dice = Rng::new(seed);
    let latency = Duration::from_millis(dice.pick(&[2, 5, 20]));
    let marks = tempfile::tempdir().map_err(|error| format!("no place for marks: {error}"))?;
    let mut world = World::new(&mut dice, latency, marks.path(), recorder)?;
    let mut user = User::new(Rng::new(dice.bits()), recorder.clone());
    world.found(&mut user)?;

    let mut faults = Faults::new(Rng::new(dice.bits()), latency, recorder.clone());
    world.sim.set_fail_rate(dice.pick(&[0.0, 0.0, 0.000_5, 0.005]));
    let end = world.now() + settings.faults;
    while world.now() < end {
        world.step()?;
        user.listen(&world.places);
        user.act(world.now(), &world.places);
        faults.act(world.now(), &mut world.sim, &world.places);
    }

    recorder.note("faults are over".into());
    faults.stop(&mut world.sim, &world.places);
    recorder.calm_down();
    let calm_ms_max = world.come_to_rest(&mut user)?;
    let seen = recorder.seen();
    Ok(Outcome {
        trace_hash: recorder.trace_hash(),
        entries: recorder.entries(),
        acknowledged: user.acknowledged.len() as u64,
        frames: seen.frames,
        boots: seen.boots,
        moves: seen.moves,
        failed: seen.failed,
        cancelled: seen.cancelled,
        faults: faults.begun,
        crashes: faults.crashes,
        calm_ms_max,
    })
}

impl World<'_> {
    fn new(dice: &mut Rng, latency: Duration, marks: &Path, recorder: &Arc<Recorder>) -> Result<Self, String> {
        let sim = Builder::new()
            .rng_seed(dice.bits())
            .tick_duration(TICK)
            .simulation_duration(Duration::MAX)
            .min_message_latency(Duration::from_micros(200))
            .max_message_latency(latency)
            // Broken by chance, a link carries every third datagram again.
            .repair_rate(0.3)
            .udp_capacity(DATAGRAMS_MAX)
            .enable_random_order()
            .build();
        let cluster = ClusterId(dice.bytes());
        let authority = Authority::create(cluster).map_err(|error| error.to_string())?;
        // Few entries between snapshots, so that nodes that come back get one.
        let retention = dice.pick(&[Retention { snapshot_after: 20, entries_kept: 5 }, Retention::default()]);
        let mut places = Vec::new();
        for number in 1..=NODES {
            let (id, name) = (NodeId(number), format!("n{number}"));
            let address = SocketAddr::new(sim.lookup(name.as_str()), PORT);
            let identity = authority.identity(id, &name, Role::Member).map_err(|error| error.to_string())?;
            let key = Fingerprint::of(identity.public_key()).0;
            let founding = (number == 1).then(|| {
                let command = Command::Found { cluster, name: name.clone(), address, key };
                Proposal { id: OpId(dice.bytes()), by: id, at: 1, command }
            });
            places.push(Arc::new(Place::new(Ground {
                id,
                address,
                identity,
                recorder: recorder.clone(),
                founding,
                retention,
                marks: marks.join(&name),
                name,
                seed: dice.bits(),
            })));
        }
        Ok(Self { sim, places, recorder: recorder.clone() })
    }

    fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    fn step(&mut self) -> Result<(), String> {
        self.sim.step().map_err(|error| format!("a daemon ended: {error}"))?;
        self.recorder.set_now(self.sim.elapsed());
        if panics::any() {
            return Err("a panic".into());
        }
        self.recorder.broken().map_or(Ok(()), Err)
    }

    fn start(&mut self, number: usize) {
        let place = self.places[number].clone();
        let name = place.name.clone();
        self.sim.host(name.as_str(), move || node::live(place.clone()));
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) -> Result<(), String> {
        let most = self.now() + FOUNDING_MAX;
        while !done(self) {
            self.step()?;
            if self.now() > most {
                return Err(format!("{what} takes too long"));
            }
        }
        Ok(())
    }

    /// The first node founds the cluster, takes the others in, and they start; the user gets a VM.
    fn found(&mut self, user: &mut User) -> Result<(), String> {
        self.start(0);
        self.until("founding", |world| world.lives(0))?;
        for number in 1..self.places.len() {
            let place = self.places[number].clone();
            let secret_hash = [u8::try_from(number).unwrap_or_default(); 32];
            let key = Fingerprint::of(place.identity.public_key()).0;
            let token = Command::AddToken { secret_hash, node_name: place.name.clone(), expires: TOKENS_UNTIL };
            let join = Command::Join { secret_hash, name: place.name.clone(), address: place.address, key };
            self.decide(user, token)?;
            if self.decide(user, join)? != Decided::Joined(place.id) {
                return Err(format!("{} could not join", place.name));
            }
            self.start(number);
            self.until("a node's first start", |world| world.lives(number))?;
        }
        let home = self.places[0].id;
        let created = self.decide(user, user::create(home))?;
        if matches!(created, Decided::Created(_)) { Ok(()) } else { Err(format!("no VM was created: {created:?}")) }
    }

    fn lives(&self, number: usize) -> bool {
        self.places[number].daemon().is_some_and(|daemon| daemon.vms.is_some())
    }

    fn decide(&mut self, user: &mut User, command: Command) -> Result<Decided, String> {
        let id = user.ask(&self.places[0], command);
        let most = self.now() + FOUNDING_MAX;
        loop {
            self.step()?;
            user.listen(&self.places);
            if let Some(applied) = user.acknowledged.get(&id) {
                return Ok(applied.outcome.clone());
            }
            if self.now() > most {
                return Err("founding takes too long".into());
            }
        }
    }

    /// Waits until the cluster rests; how long it took, in milliseconds.
    fn come_to_rest(&mut self, user: &mut User) -> Result<u64, String> {
        let began = self.now();
        let mut rest = began;
        loop {
            self.step()?;
            user.listen(&self.places);
            let now = self.now();
            let unrest = self.unrest(user);
            if unrest.is_some() {
                rest = now;
            }
            if now - rest >= REST {
                return Ok(u64::try_from((rest - began).as_millis()).unwrap_or(u64::MAX));
            }
            if now - began > CALM_MAX
                && let Some(what) = unrest
            {
                return Err(format!("the cluster does not converge: {what}"));
            }
        }
    }

    /// Why the cluster has not come to rest, if it has not.
    fn unrest(&self, user: &User) -> Option<String> {
        let newest = self.recorder.newest();
        for (id, applied) in &user.acknowledged {
            if newest.state.outcomes.get(id) != Some(applied) {
                return Some(format!("what {id} did is not in the state, though it was acknowledged: {applied:?}"));
            }
        }
        for place in &self.places {
            let Some(daemon) = place.daemon() else { return Some(format!("{} has no daemon", place.name)) };
            let status = daemon.consensus.status();
            if let Some(failure) = status.failure {
                return Some(format!("the consensus of {} has failed: {failure}", place.name));
            }
            let view = daemon.consensus.watch().borrow().clone();
            if view.applied != newest.applied || view.state != newest.state {
                return Some(format!("{} is at entry {} of {}", place.name, view.applied, newest.applied));
            }
            let (Some(vms), Some(me)) = (daemon.vms, daemon.life) else {
                return Some(format!("{} has not begun its life; {:?} leads", place.name, status.leader));
            };
            for vm in newest.state.vms.values() {
                let shown = vms.status(vm.id).unwrap_or_default();
                let owner = matches!(vm.phase, Phase::Running { owner } if owner == me);
                let expected = owner.then_some(vm.generation);
                if shown.gate != expected {
                    let phase = &vm.phase;
                    return Some(format!("{} is {phase}, and in {me} {} ({:?})", vm.id, shown.doing, shown.gate));
                }
            }
        }
        if newest.state.vms.is_empty() {
            return Some("the VM is gone".into());
        }
        for vm in newest.state.vms.values() {
            if !matches!(vm.phase, Phase::Running { .. }) {
                return Some(format!("{} is {}", vm.id, vm.phase));
            }
            match self.recorder.last_frame(vm.id) {
                Some((frame, ago)) if ago < SERVED && frame.generation == vm.generation => {}
                last => return Some(format!("{} does not answer: {last:?}", vm.id)),
            }
        }
        None
    }
}
