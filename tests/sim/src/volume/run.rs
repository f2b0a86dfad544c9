//! One run: the safety phase, the liveness phase, the verdict.

use super::{
    Control, Time, UNIT_BYTES,
    world::{World, replica, store_of},
};
use crate::{Failure, panics};

/// Steps between two looks at all marks.
const MARKS_EVERY: u64 = 64;
/// Steps of the liveness phase, at most.
const CALM_STEPS_MAX: u64 = 60_000;
/// So many runs, of a thousand, end with a guest that never stops writing, while all is compared. It takes as long as the rest.
const HOT_PERMILLE: u64 = 250;
/// All must be equal within this time.
const CALM_MS_MAX: Time = 120_000;

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Steps of the safety phase.
    pub steps: u64,
    /// A defect put in on purpose.
    pub control: Option<Control>,
    /// Print every line of the trace.
    pub print: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { steps: 6_000, control: None, print: false }
    }
}

/// How a run went that broke no rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Of the whole trace: the same for the same seed and settings.
    pub trace_hash: u64,
    /// Events.
    pub steps: u64,
    /// Requests that were acknowledged.
    pub acknowledged: u64,
    /// Requests that failed, and were asked again.
    pub parked: u64,
    /// Mirrors that began.
    pub hosts: u64,
    /// Replicas that left the set.
    pub left: u64,
    /// Replicas that joined it while faults went on.
    pub joined: u64,
    /// Guests that went on elsewhere.
    pub moved: u64,
    /// Mirrors that were sealed.
    pub sealed: u64,
    /// Guests that came back.
    pub back: u64,
    /// Guests that ended in order, with nothing left to copy.
    pub stopped: u64,
    /// Replicas that were added.
    pub added: u64,
    /// Replicas that were removed.
    pub removed: u64,
    /// Pieces that were compared.
    pub compared: u64,
}

impl Outcome {
    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.acknowledged += other.acknowledged;
        self.parked += other.parked;
        self.hosts += other.hosts;
        self.left += other.left;
        self.joined += other.joined;
        self.moved += other.moved;
        self.sealed += other.sealed;
        self.back += other.back;
        self.stopped += other.stopped;
        self.added += other.added;
        self.removed += other.removed;
        self.compared += other.compared;
    }
}

/// Runs one seed.
///
/// # Errors
/// The first rule that was broken, be it seen by the oracle or by an assertion of the code under test.
pub fn run(seed: u64, settings: &Settings) -> Result<Outcome, Box<Failure>> {
    let mut world = World::new(seed, settings.clone());
    let mut steps = 0;
    let played = panics::watched(|| play(&mut world, &mut steps));
    match played {
        Err(what) => Err(Box::new(Failure {
            simulation: "volume",
            seed,
            what,
            tail: world.trace.tail(),
            options: options(settings),
        })),
        Ok(()) => Ok(Outcome {
            trace_hash: world.trace.hash(),
            steps,
            acknowledged: world.guest.acknowledged,
            parked: world.guest.parked,
            hosts: world.hosts,
            left: world.left,
            joined: world.joined,
            moved: world.moved,
            sealed: world.sealed,
            back: world.back,
            stopped: world.stopped,
            added: world.added,
            removed: world.removed,
            compared: world.compared,
        }),
    }
}

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
    while *steps < world.settings.steps {
        step(world, steps)?;
    }
    world.calm_down();
    // A guest that is to end or to go elsewhere takes its mirror with it, and what that was asked to compare.
    let at_rest = |world: &World| world.unrest().or_else(|| world.is_leaving().then(|| "the guest leaves".into()));
    come_to(world, steps, at_rest)?;
    if world.rng.chance(HOT_PERMILLE) {
        world.writes_for_good();
        come_to(world, steps, World::is_comparing)?;
        world.stops_writing();
        come_to(world, steps, at_rest)?;
    }
    // Nobody sees what rots before it is repaired.
    world.pause_for_good();
    come_to(world, steps, |world| (!world.is_served()).then(|| "reads are under way".into()))?;
    world.rots();
    come_to(world, steps, |world| world.is_rotten().or_else(|| world.unrest()))?;
    world.check_end()
}

/// Goes on until nothing is in the way any more.
fn come_to(world: &mut World, steps: &mut u64, unrest: impl Fn(&World) -> Option<String>) -> Result<(), String> {
    let (until, most) = (world.now + CALM_MS_MAX, *steps + CALM_STEPS_MAX);
    loop {
        step(world, steps)?;
        let Some(unrest) = unrest(world) else { return Ok(()) };
        if world.now > until || *steps > most {
            return Err(format!("the replicas do not come together: {unrest}"));
        }
    }
}

fn step(world: &mut World, steps: &mut u64) -> Result<(), String> {
    *steps += 1;
    world.step();
    if steps.is_multiple_of(MARKS_EVERY) {
        world.check_marks();
    }
    world.violation.clone().map_or(Ok(()), Err)
}

impl World {
    /// Why the volume is not whole and at rest, if it is not.
    fn unrest(&self) -> Option<String> {
        let Some(host) = &self.host else { return Some("no guest runs".into()) };
        let status = host.mirror.status();
        if self.log.members != self.replicas() {
            return Some(format!("the set is {:?}; {status:?}", self.log.members));
        }
        if status.hot > 0 || status.replicas.iter().any(|it| !it.sound || it.lacks > 0) {
            return Some(format!("{status:?}"));
        }
        let active = |store: &usize| !self.stores[*store].marks().active().is_empty();
        if let Some(store) = self.log.replicas.iter().map(|id| store_of(*id)).find(active) {
            return Some(format!("{} has active extents", replica(store)));
        }
        self.guest.open.values().any(|open| open.kind.changes()).then(|| "writes are under way".into())
    }

    fn check_end(&self) -> Result<(), String> {
        for unit in 0..self.size / UNIT_BYTES {
            let held: Vec<u64> = self.log.replicas.iter().map(|id| self.stores[store_of(*id)].get(unit)).collect();
            if held.iter().any(|it| *it != held[0]) {
                return Err(format!("the replicas differ in unit {unit}: {held:?}"));
            }
            self.oracle.check_end(unit, held[0])?;
        }
        Ok(())
    }
}
