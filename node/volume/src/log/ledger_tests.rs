//! The ledger with a file that is cut off at any moment: what was begun must be known afterwards.

use std::collections::BTreeMap;

use pollux_mirror::GRAIN_BYTES;
use pollux_wire::id::ReplicaId;
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use super::*;
use crate::log::frames::{self, HEAD_BYTES};

const EXTENTS: u64 = 6;
const SIZE: u64 = EXTENTS * EXTENT_BYTES;
const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Act {
    Change {
        grain: u64,
    },
    Miss(u64),
    Regain {
        replica: u64,
        grain: u64,
    },
    Return(u64),
    Settle {
        extent: u64,
    },
    Welcome {
        extent: u64,
    },
    /// Something is done with the file, or what is being done ends.
    Work(End),
    /// The power is gone: of each sector that is not stable either is there, and the daemon starts.
    Crash(u64),
    /// Only the daemon is started anew.
    Restart,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Done,
    Full,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let grain = 0..SIZE / GRAIN_BYTES;
    let act = prop_oneof![
        8 => grain.clone().prop_map(|grain| Act::Change { grain }),
        2 => (2..4_u64).prop_map(Act::Miss),
        2 => (2..4_u64, grain).prop_map(|(replica, grain)| Act::Regain { replica, grain }),
        1 => (2..4_u64).prop_map(Act::Return),
        3 => (0..EXTENTS).prop_map(|extent| Act::Settle { extent }),
        1 => (0..EXTENTS).prop_map(|extent| Act::Welcome { extent }),
        12 => prop_oneof![9 => Just(End::Done), 1 => Just(End::Full)].prop_map(Act::Work),
        1 => any::<u64>().prop_map(Act::Crash),
        1 => Just(Act::Restart),
    ];
    prop::collection::vec(act, 0..150)
}

/// A replica whose data is of no interest: its ledger, its log, and what must be known of it.
struct World {
    ledger: Ledger,
    cache: Vec<u8>,
    stable: Vec<u8>,
    job: Option<Job>,
    fault: Option<Fault>,
    waiting: BTreeMap<Waiter, Act>,
    last: Waiter,
    /// Extents in which something was begun since they settled, and grains that someone who was missed lacks.
    begun: Extents,
    lacks: BTreeMap<ReplicaId, Grains>,
}

impl World {
    fn new(fault: Option<Fault>) -> Self {
        let file = frames::begin(Generation(0), &Marks::default()).unwrap().bytes;
        let mut world = Self {
            ledger: ledger(&file),
            cache: file.clone(),
            stable: file,
            job: None,
            fault,
            waiting: BTreeMap::new(),
            last: 0,
            begun: Extents::default(),
            lacks: BTreeMap::new(),
        };
        world.ledger.fault = fault;
        world
    }

    fn play(&mut self, act: &Act) -> Result<(), String> {
        self.last += 1;
        let who = self.last;
        match act {
            Act::Change { grain } => {
                let range = *grain * GRAIN_BYTES..(*grain + 1) * GRAIN_BYTES;
                if self.ledger.change(&range, who) {
                    self.changed(&range);
                } else {
                    self.waiting.insert(who, act.clone());
                }
            }
            Act::Miss(replica) => {
                let record = self.ledger.marks().miss(ReplicaId(*replica)).unwrap();
                self.ledger.note(record, who);
                self.waiting.insert(who, act.clone());
            }
            Act::Regain { replica, grain } => {
                let range = *grain * GRAIN_BYTES..(*grain + 1) * GRAIN_BYTES;
                // As the mirror does: never while somebody writes there.
                if self.is_quiet(&Extents::touching(&range)) && self.is_noted(*replica) {
                    assert!(self.ledger.tell(Record::Regained(ReplicaId(*replica), range.clone()), who));
                    if let Some(lacks) = self.lacks.get_mut(&ReplicaId(*replica)) {
                        lacks.remove(&range);
                    }
                }
            }
            // As the mirror does: not while it asks to note that it is missing.
            Act::Return(replica) if !self.is_noted(*replica) => {}
            Act::Return(replica) => {
                assert!(self.ledger.tell(Record::Returned(ReplicaId(*replica)), who));
                self.lacks.remove(&ReplicaId(*replica));
            }
            Act::Settle { extent } => {
                let extents = Extents::touching(&(extent * EXTENT_BYTES..extent * EXTENT_BYTES + 1));
                if self.is_quiet(&extents) {
                    let record = self.ledger.marks().settle(&extents);
                    assert!(self.ledger.tell(record, who));
                    self.begun.subtract(&extents);
                }
            }
            Act::Welcome { extent } => {
                let hot = Extents::touching(&(extent * EXTENT_BYTES..extent * EXTENT_BYTES + 1));
                if self.waiting.is_empty() {
                    assert!(self.ledger.tell(Record::Welcome(hot.clone()), who));
                    let gone = self.begun.without(&hot);
                    self.begun.subtract(&gone);
                    self.lacks.clear();
                }
            }
            Act::Work(end) => self.work(*end),
            Act::Crash(choices) => {
                self.crash(*choices);
                self.starts()?;
            }
            Act::Restart => {
                // What was handed to the kernel is done.
                if self.job.is_some() {
                    self.work(End::Done);
                }
                self.starts()?;
            }
        }
        self.check(self.ledger.marks())
    }

    fn changed(&mut self, range: &Range<u64>) {
        self.begun.union(&Extents::touching(range));
        self.lacks.values_mut().for_each(|lacks| lacks.insert(range));
    }

    /// Nobody is about to write there.
    fn is_quiet(&self, extents: &Extents) -> bool {
        let there = |act: &Act| match act {
            Act::Change { grain } => extents.contains(u32::try_from(grain * GRAIN_BYTES / EXTENT_BYTES).unwrap()),
            Act::Miss(_)
            | Act::Regain { .. }
            | Act::Return(_)
            | Act::Settle { .. }
            | Act::Welcome { .. }
            | Act::Work(_)
            | Act::Crash(_)
            | Act::Restart => false,
        };
        !self.waiting.values().any(there)
    }

    fn is_noted(&self, replica: u64) -> bool {
        !self.waiting.values().any(|act| matches!(act, Act::Miss(missing) if *missing == replica))
    }

    fn work(&mut self, end: End) {
        let Some(job) = self.job.take() else {
            self.job = self.ledger.job().unwrap();
            return;
        };
        let (end, done) = match (end, &job) {
            (End::Done, _) => (JobEnd::Done, true),
            // What is written in place finds its room; a new file does not.
            (End::Full, Job::Append { bytes, .. }) => (JobEnd::Full, bytes.is_empty()),
            (End::Full, Job::Begin { .. }) => (JobEnd::Full, false),
        };
        if done {
            match job {
                Job::Append { at, bytes, sync } => {
                    self.cache[at..at + bytes.len()].copy_from_slice(&bytes);
                    if sync {
                        self.stable = self.cache.clone();
                    }
                }
                Job::Begin { bytes } => {
                    self.cache = bytes.clone();
                    self.stable = bytes;
                }
            }
        }
        for who in self.ledger.ended(end) {
            let act = self.waiting.remove(&who).expect("who is told waits");
            match act {
                _ if end == JobEnd::Full => {}
                Act::Change { grain } => {
                    let range = grain * GRAIN_BYTES..(grain + 1) * GRAIN_BYTES;
                    if self.ledger.change(&range, who) {
                        self.changed(&range);
                    } else {
                        self.waiting.insert(who, act);
                    }
                }
                // From here on the guest may be told of what is written without it.
                Act::Miss(replica) => {
                    let begun = Grains::from(&self.begun);
                    self.lacks.entry(ReplicaId(replica)).or_default().union(&begun);
                }
                Act::Regain { .. }
                | Act::Return(_)
                | Act::Settle { .. }
                | Act::Welcome { .. }
                | Act::Work(_)
                | Act::Crash(_)
                | Act::Restart => panic!("{act:?} waits for nothing"),
            }
        }
    }

    fn crash(&mut self, choices: u64) {
        let mut after = self.cache.clone();
        match self.job.take() {
            Some(Job::Append { at, bytes, .. }) => after[at..at + bytes.len()].copy_from_slice(&bytes),
            Some(Job::Begin { bytes }) if choices & 1 == 1 => {
                self.stable = bytes.clone();
                after = bytes;
            }
            Some(Job::Begin { .. }) | None => {}
        }
        let mut choice = choices;
        for (sector, kept) in self.stable.chunks_mut(SECTOR).zip(after.chunks(SECTOR)) {
            if sector != kept {
                choice = choice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                if choice >> 62 & 1 == 1 {
                    sector.copy_from_slice(kept);
                }
            }
        }
        self.cache = self.stable.clone();
    }

    /// What the thin part does when it opens the log.
    fn starts(&mut self) -> Result<(), String> {
        let replayed = frames::replay(&self.cache).map_err(|damage| damage.to_string())?;
        self.check(&replayed.marks)?;
        if replayed.torn {
            self.cache[replayed.end..].fill(0);
            self.stable = self.cache.clone();
        }
        self.waiting.clear();
        self.job = None;
        self.ledger = ledger(&self.cache);
        self.ledger.fault = self.fault;
        Ok(())
    }

    /// What was begun is active, and what who was missed lacks is known.
    fn check(&self, marks: &Marks) -> Result<(), String> {
        let unknown = self.begun.without(marks.active());
        if !unknown.is_empty() {
            return Err(format!("{unknown:?} may differ, and is not active"));
        }
        let active = Grains::from(marks.active());
        for (replica, lacks) in &self.lacks {
            let mut from = 0;
            while let Some(run) = lacks.run(from, GRAIN_BYTES) {
                let known = active.touches(&run) || marks.missing().get(replica).is_some_and(|it| it.touches(&run));
                if !known {
                    return Err(format!("{replica} lacks {run:?}, and nobody knows"));
                }
                from = run.end;
            }
        }
        Ok(())
    }
}

fn ledger(file: &[u8]) -> Ledger {
    Ledger::new(frames::replay(file).unwrap(), SIZE, file.len())
}

fn play(acts: &[Act], fault: Option<Fault>) -> Result<(), String> {
    let mut world = World::new(fault);
    acts.iter().try_for_each(|act| world.play(act))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_end_comes_what_was_begun_is_known(acts in acts()) {
        prop_assert_eq!(play(&acts, None), Ok(()));
    }
}

/// A ledger that lets a change begin too early is found out by the test above.
#[test]
fn who_does_not_wait_for_stable_storage_is_found_out() {
    for fault in [Fault::NobodyWaits, Fault::JoinsTheRunning] {
        let mut runner = TestRunner::deterministic();
        let strategy = acts();
        let found = (0..4_000).any(|_| {
            let acts = strategy.new_tree(&mut runner).unwrap().current();
            play(&acts, Some(fault)).is_err()
        });
        assert!(found, "{fault:?} was not noticed");
    }
}

#[test]
fn those_who_wait_at_the_same_time_share_a_sync() {
    let mut ledger = World::new(None).ledger;
    assert!(!ledger.change(&(0..512), 1));
    assert!(!ledger.change(&(EXTENT_BYTES..EXTENT_BYTES + 512), 2));
    assert!(matches!(ledger.job(), Ok(Some(Job::Append { sync: true, .. }))));
    // What comes now is in the same extents, or needs another.
    assert!(!ledger.change(&(4096..8192), 3));
    assert!(!ledger.change(&(2 * EXTENT_BYTES..2 * EXTENT_BYTES + 512), 4));
    assert_eq!(ledger.job(), Ok(None), "one at a time");
    assert_eq!(ledger.ended(JobEnd::Done), [1, 2, 3]);
    assert!(ledger.change(&(0..512), 1) && ledger.change(&(4096..8192), 3));
    assert!(matches!(ledger.job(), Ok(Some(Job::Append { .. }))));
    assert_eq!(ledger.ended(JobEnd::Done), [4]);
}

#[test]
fn what_is_told_is_written_and_nobody_waits_for_it() {
    let mut ledger = World::new(None).ledger;
    assert!(ledger.tell(Record::Returned(ReplicaId(2)), 1));
    assert!(matches!(ledger.job(), Ok(Some(Job::Append { sync: false, .. }))));
    assert_eq!(ledger.ended(JobEnd::Done), [0; 0]);
    assert_eq!(ledger.job(), Ok(None));
    for _ in 1..TOLD_MAX {
        assert!(ledger.tell(Record::Returned(ReplicaId(2)), 1));
    }
    assert!(!ledger.tell(Record::Returned(ReplicaId(2)), 2), "a log that does not get written holds up");
    assert!(matches!(ledger.job(), Ok(Some(Job::Append { sync: true, .. }))));
    assert_eq!(ledger.ended(JobEnd::Done), [2]);
}

#[test]
fn a_log_that_is_full_is_begun_anew_with_all_there_is() {
    let mut world = World::new(None);
    let mut begun = 0;
    for number in 0..20_000 {
        let range = number % EXTENTS * EXTENT_BYTES..number % EXTENTS * EXTENT_BYTES + 512;
        if !world.ledger.change(&range, 1) {
            let job = world.ledger.job().unwrap().unwrap();
            begun += u32::from(matches!(job, Job::Begin { .. }));
            world.job = Some(job);
            world.waiting.insert(1, Act::Change { grain: range.start / GRAIN_BYTES });
            world.work(End::Done);
        }
        let record = world.ledger.marks().settle(&Extents::touching(&range));
        world.ledger.tell(record, 2);
        world.begun = Extents::default();
    }
    assert!((2..100).contains(&begun), "{begun}");
    let replayed = frames::replay(&world.cache).unwrap();
    assert!(replayed.end > HEAD_BYTES && world.cache.len() == frames::FILE_BYTES_MIN);
}

#[test]
fn without_room_who_waits_is_told_and_it_is_tried_again_when_somebody_waits() {
    let mut ledger = World::new(None).ledger;
    assert!(!ledger.change(&(0..512), 1));
    let Ok(Some(Job::Append { at, bytes: first, .. })) = ledger.job() else { panic!() };
    assert!(!ledger.change(&(EXTENT_BYTES..EXTENT_BYTES + 512), 2));
    assert_eq!(ledger.ended(JobEnd::Full), [1]);
    let Ok(Some(Job::Append { at: again, bytes, sync: true })) = ledger.job() else { panic!() };
    assert!(again == at && bytes.starts_with(&first) && bytes.len() > first.len(), "both, in order");
    assert_eq!(ledger.ended(JobEnd::Full), [2]);
    assert_eq!(ledger.job(), Ok(None), "nobody waits");
    assert!(!ledger.change(&(0..512), 3));
    assert!(matches!(ledger.job(), Ok(Some(_))));
    assert_eq!(ledger.ended(JobEnd::Done), [3]);
    assert!(ledger.change(&(0..512), 3) && ledger.change(&(EXTENT_BYTES..EXTENT_BYTES + 512), 2));
}

#[test]
fn marks_that_are_much_are_written_less_exactly_and_lack_more() {
    let size = 1 << 44;
    let file = frames::begin(Generation(0), &Marks::default()).unwrap().bytes;
    let mut ledger = Ledger::new(frames::replay(&file).unwrap(), size, file.len());
    let mut lacks = Grains::default();
    for extent in 0..530_000 {
        lacks.insert(&(extent * EXTENT_BYTES..extent * EXTENT_BYTES + 1));
    }
    let replica = ReplicaId(2);
    ledger.note(Record::Missing(replica, lacks.clone()), 1);
    let Ok(Some(Job::Begin { bytes })) = ledger.job() else { panic!("it does not fit a record") };
    assert_eq!(ledger.ended(JobEnd::Done), [1]);
    let replayed = frames::replay(&bytes).unwrap();
    assert!(replayed.end < FINE_BYTES_MAX);
    let told = &replayed.marks.missing()[&replica];
    assert_eq!(told.bytes(), 530_000 * EXTENT_BYTES);
    assert_eq!(told, &ledger.marks().missing()[&replica]);
}
