//! The core over storage that forgets: a page cache that a power failure empties, jobs that end in any order, and a client that
//! remembers what it was told.

use proptest::{prelude::*, strategy::ValueTree as _};

use super::*;
use crate::replica::syncs::Fault;

const BLOCK: u64 = BLOCK_BYTES as u64;
const BLOCKS: usize = 24;
const SIZE: u64 = BLOCKS as u64 * BLOCK;

/// Storage in which each block holds one number. What is written lies in a cache until it is synced.
struct Storage {
    cache: Vec<u8>,
    stable: Vec<u8>,
    /// Of a sync under way: what there was when it began.
    syncing: Option<Vec<u8>>,
    sync_fails: bool,
}

/// The core, its storage, and who uses it.
struct World {
    core: Core,
    storage: Storage,
    under_way: Vec<Job>,
    sync: Option<JobId>,
    next: u64,
    /// What was asked for and not answered, by tag.
    asked: Vec<(Tag, Ask)>,
    /// Per block: what it must hold in every read, if that is certain.
    told: Vec<Option<u8>>,
    /// Per block: what it must hold after a power failure, if that is certain.
    promised: Vec<Option<u8>>,
    writes: Vec<u32>,
    errors: usize,
}

#[derive(Debug, Clone)]
enum Ask {
    Write {
        blocks: Range<usize>,
        value: u8,
        durable: bool,
    },
    /// What had been told when it was asked, and how often each block had been written.
    Flush {
        told: Vec<Option<u8>>,
        writes: Vec<u32>,
    },
    Read {
        blocks: Range<usize>,
    },
}

impl World {
    fn new() -> Self {
        Self {
            core: Core::new(DataMap::new(SIZE), SIZE, Buffers::default()),
            storage: Storage { cache: vec![0; BLOCKS], stable: vec![0; BLOCKS], syncing: None, sync_fails: false },
            under_way: Vec::new(),
            sync: None,
            next: 0,
            asked: Vec::new(),
            told: vec![Some(0); BLOCKS],
            promised: vec![Some(0); BLOCKS],
            writes: vec![0; BLOCKS],
            errors: 0,
        }
    }

    fn busy(&self, blocks: &Range<usize>) -> bool {
        self.asked.iter().any(|(_, ask)| match ask {
            Ask::Write { blocks: other, .. } | Ask::Read { blocks: other } => {
                other.start < blocks.end && blocks.start < other.end
            }
            Ask::Flush { .. } => false,
        })
    }

    fn ask(&mut self, ask: Ask, operation: Operation) {
        let tag = Tag(self.next);
        self.next += 1;
        self.asked.push((tag, ask));
        self.core.submit(tag, operation);
        self.take_jobs();
    }

    fn write(&mut self, blocks: Range<usize>, value: u8, durable: bool, how: u8) {
        // Who writes where something is under way gets what he deserves; this client does not.
        if blocks.is_empty() || self.busy(&blocks) {
            return;
        }
        let (offset, bytes) = (blocks.start as u64 * BLOCK, blocks.len() as u64 * BLOCK);
        let operation = match how % 4 {
            0 if value == 0 => Operation::WriteZeroes { offset, bytes, may_punch: true, fast_only: false, durable },
            1 if value == 0 => Operation::WriteZeroes { offset, bytes, may_punch: false, fast_only: false, durable },
            2 if value == 0 => Operation::Trim { offset, bytes, durable },
            _ => {
                let data = vec![value; usize::try_from(bytes).unwrap()].into();
                Operation::Write { offset, data, durable }
            }
        };
        for block in blocks.clone() {
            // Until it is answered it may be either, and so after a failure.
            self.told[block] = None;
            self.promised[block] = None;
            self.writes[block] += 1;
        }
        self.ask(Ask::Write { blocks, value, durable }, operation);
    }

    fn flush(&mut self) {
        self.ask(Ask::Flush { told: self.told.clone(), writes: self.writes.clone() }, Operation::Flush);
    }

    fn read(&mut self, blocks: Range<usize>) {
        if !blocks.is_empty() && !self.busy(&blocks) {
            let (offset, bytes) = (blocks.start as u64 * BLOCK, u32::try_from(blocks.len()).unwrap() * BLOCK_BYTES);
            self.ask(Ask::Read { blocks }, Operation::Read { offset, bytes });
        }
    }

    fn take_jobs(&mut self) {
        self.core.sync();
        while let Some(job) = self.core.todo.pop_front() {
            if matches!(job.work, Work::Sync) {
                assert!(self.sync.is_none(), "one sync at a time");
                self.sync = Some(job.id);
                self.storage.syncing = Some(self.storage.cache.clone());
            } else {
                self.under_way.push(job);
            }
        }
    }

    /// Ends one job.
    fn step(&mut self, which: usize) {
        let jobs = self.under_way.len() + usize::from(self.sync.is_some());
        if jobs == 0 {
            return;
        }
        let finished = match which % jobs {
            index if index < self.under_way.len() => {
                let job = self.under_way.swap_remove(index);
                self.storage.perform(job)
            }
            _ => {
                let synced = self.storage.syncing.take().expect("it is under way");
                let result = if self.storage.sync_fails { Err(Errno::IO) } else { Ok(()) };
                if result.is_ok() {
                    self.storage.stable = synced;
                }
                Finished { id: self.sync.take().expect("it is under way"), result, buffer: None }
            }
        };
        self.core.finished(finished);
        self.take_jobs();
        self.hear();
    }

    /// The client hears what has ended, and believes it.
    fn hear(&mut self) {
        for Completion { tag, result } in std::mem::take(&mut self.core.done) {
            let index = self.asked.iter().position(|(asked, _)| *asked == tag).expect("each ends once");
            let (_, ask) = self.asked.swap_remove(index);
            let Ok(outcome) = result else {
                self.errors += 1;
                continue;
            };
            match ask {
                Ask::Write { blocks, value, durable } => {
                    for block in blocks {
                        self.told[block] = Some(value);
                        if durable {
                            self.promised[block] = Some(value);
                        }
                    }
                }
                Ask::Flush { told, writes } => {
                    for (block, told) in told.into_iter().enumerate() {
                        // Unless it was written again since, in which case either is right.
                        if told.is_some() && self.writes[block] == writes[block] {
                            self.promised[block] = told;
                        }
                    }
                }
                Ask::Read { blocks } => {
                    let Outcome::Read(pieces) = outcome else { panic!("a read ends in what was read") };
                    let mut bytes = Vec::new();
                    for piece in pieces {
                        match piece {
                            Piece::Data(data) => bytes.extend_from_slice(&data),
                            Piece::Zeroes(count) => bytes.resize(bytes.len() + count as usize, 0),
                        }
                    }
                    for (block, chunk) in blocks.zip(bytes.chunks(BLOCK_BYTES as usize)) {
                        if let Some(told) = self.told[block] {
                            assert!(chunk.iter().all(|byte| *byte == told), "block {block} is not {told}");
                        }
                    }
                }
            }
        }
    }

    fn settle(&mut self) {
        while !self.under_way.is_empty() || self.sync.is_some() {
            self.step(0);
        }
        self.hear();
        assert!(self.asked.is_empty(), "something was never answered: {:?}", self.asked);
    }

    /// What a power failure now would break of what was promised.
    fn broken_promises(&self) -> Vec<usize> {
        (0..BLOCKS)
            .filter(|block| self.promised[*block].is_some_and(|value| self.storage.stable[*block] != value))
            .collect()
    }

    /// A hole that is believed in must be one; the storage's own zeros may well be data.
    fn holes_are_holes(&self) {
        for block in 0..BLOCKS {
            let at = block as u64 * BLOCK;
            let (_, data) = self.core.map.run(at, at + BLOCK);
            assert!(data || self.storage.cache[block] == 0, "block {block} is believed to be a hole");
        }
    }
}

impl Storage {
    fn perform(&mut self, job: Job) -> Finished {
        let Job { id, work } = job;
        let block = |offset: u64| usize::try_from(offset / BLOCK).unwrap();
        let mut buffer = None;
        match work {
            Work::Read { offset, buffer: mut into } => {
                for (index, chunk) in into.chunks_mut(BLOCK_BYTES as usize).enumerate() {
                    chunk.fill(self.cache[block(offset) + index]);
                }
                buffer = Some(into);
            }
            Work::Write { offset, data } => {
                for (index, chunk) in data.chunks(BLOCK_BYTES as usize).enumerate() {
                    self.cache[block(offset) + index] = chunk[0];
                }
            }
            Work::Punch { offset, bytes } | Work::Zero { offset, bytes } => {
                self.cache[block(offset)..block(offset + bytes)].fill(0);
            }
            Work::Sync => unreachable!("ended elsewhere"),
        }
        Finished { id, result: Ok(()), buffer }
    }
}

#[derive(Debug, Clone)]
enum Move {
    Write { start: usize, blocks: usize, value: u8, durable: bool, how: u8 },
    Read { start: usize, blocks: usize },
    Flush,
    Step(usize),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let start = 0..BLOCKS;
    let one = prop_oneof![
        3 => (start.clone(), 1..6usize, 0u8..4, prop::bool::weighted(0.2), any::<u8>())
            .prop_map(|(start, blocks, value, durable, how)| Move::Write { start, blocks, value, durable, how }),
        1 => (start, 1..20usize).prop_map(|(start, blocks)| Move::Read { start, blocks }),
        1 => Just(Move::Flush),
        5 => any::<usize>().prop_map(Move::Step),
    ];
    prop::collection::vec(one, 1..120)
}

fn play(world: &mut World, moves: &[Move], mut each: impl FnMut(&World)) {
    let range = |start: usize, blocks: usize| start..(start + blocks).min(BLOCKS);
    for step in moves {
        match step {
            Move::Write { start, blocks, value, durable, how } => {
                world.write(range(*start, *blocks), *value, *durable, *how);
            }
            Move::Read { start, blocks } => world.read(range(*start, *blocks)),
            Move::Flush => world.flush(),
            Move::Step(which) => world.step(*which),
        }
        world.hear();
        each(world);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_was_promised_survives_a_power_failure_at_any_moment(moves in moves()) {
        let mut world = World::new();
        play(&mut world, &moves, |world| {
            assert_eq!(world.broken_promises(), [], "a power failure now would break promises");
            world.holes_are_holes();
        });
        world.settle();
        assert_eq!((world.errors, world.broken_promises()), (0, vec![]));
        for block in 0..BLOCKS {
            world.read(block..block + 1);
        }
        world.settle();
    }
}

/// How many of some hundred stories a fault is noticed in.
fn noticed(fault: Option<Fault>) -> usize {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let stories: Vec<_> = (0..200).map(|_| moves().new_tree(&mut runner).unwrap().current()).collect();
    let noticed = |story: &&Vec<Move>| {
        let mut world = World::new();
        world.core.syncs.fault = fault;
        let mut broken = false;
        play(&mut world, story, |world| broken |= !world.broken_promises().is_empty());
        broken
    };
    stories.iter().filter(noticed).count()
}

#[test]
fn a_flush_that_answers_too_early_is_noticed() {
    assert_eq!(noticed(None), 0);
    assert!(noticed(Some(Fault::JoinsTheRunning)) > 0, "a sync that began too early passes for enough");
    assert!(noticed(Some(Fault::NobodyWaits)) > 0, "no sync at all passes for one");
}

#[test]
fn a_failed_sync_is_the_end_for_whoever_waited_and_whoever_comes() {
    let mut world = World::new();
    world.write(0..1, 1, false, 3);
    world.step(0);
    world.storage.sync_fails = true;
    world.flush();
    world.write(1..2, 1, false, 3);
    world.step(0);
    world.flush();
    world.settle();
    assert_eq!(world.errors, 2, "both flushes failed");

    world.storage.sync_fails = false;
    world.flush();
    world.write(2..3, 1, false, 3);
    world.read(0..1);
    world.settle();

    assert_eq!(world.errors, 5, "and everything after");
    assert_eq!(world.core.failed(), Some(Errno::IO));
}

#[test]
fn flushes_that_come_together_share_one_sync() {
    let mut world = World::new();
    world.write(0..1, 1, false, 3);
    world.step(0);
    for tag in 0..10 {
        world.core.submit(Tag(100 + tag), Operation::Flush);
    }
    world.core.sync();
    let syncs = world.core.todo.iter().filter(|job| matches!(job.work, Work::Sync)).count();
    assert_eq!(syncs, 1);
}

#[test]
fn a_write_into_a_hole_that_is_being_made_is_not_forgotten() {
    for write_ends_first in [true, false] {
        let mut world = World::new();
        world.write(0..4, 7, false, 3);
        world.settle();
        let submit = |world: &mut World, tag, operation| {
            world.core.submit(Tag(tag), operation);
            world.take_jobs();
        };
        submit(&mut world, 100, Operation::Trim { offset: 0, bytes: 4 * BLOCK, durable: false });
        submit(&mut world, 101, Operation::Write { offset: BLOCK, data: vec![9; 4096].into(), durable: false });
        for index in if write_ends_first { [1, 0] } else { [0, 0] } {
            let job = world.under_way.remove(index);
            let finished = world.storage.perform(job);
            world.core.finished(finished);
        }
        world.holes_are_holes();
        assert!(world.core.map.run(BLOCK, 2 * BLOCK).1, "the block is believed to be a hole");
    }
}

#[test]
fn zeros_over_a_hole_are_no_work_and_stay_a_hole() {
    let mut world = World::new();
    for operation in [
        Operation::Write { offset: 0, data: vec![0; 8192].into(), durable: false },
        Operation::WriteZeroes { offset: 0, bytes: SIZE, may_punch: true, fast_only: true, durable: false },
        Operation::Trim { offset: 512, bytes: 8192, durable: false },
        Operation::Read { offset: 0, bytes: 65536 },
    ] {
        world.core.submit(Tag(1), operation);
        assert!(world.core.todo.is_empty());
        assert!(matches!(world.core.done.pop(), Some(Completion { result: Ok(_), .. })));
    }
    // Data with zeros in it: the zeros are left out.
    let data = [vec![1; 4096], vec![0; 8192], vec![2; 4096]].concat();
    world.core.submit(Tag(1), Operation::Write { offset: 0, data: data.into(), durable: false });
    let written: Vec<_> = world.core.todo.iter().map(|job| format!("{:?}", job.work).len()).collect();
    assert_eq!(written.len(), 2);
    assert_eq!(world.core.map.run(BLOCK, SIZE), (2 * BLOCK, false));
}

#[test]
fn where_the_file_system_keeps_no_room_zeros_are_written_out_or_refused() {
    let mut world = World::new();
    let zeroes =
        |fast_only| Operation::WriteZeroes { offset: 0, bytes: SIZE, may_punch: false, fast_only, durable: false };
    world.core.submit(Tag(1), zeroes(false));
    let job = world.core.todo.pop_front().unwrap();
    assert!(matches!(job.work, Work::Zero { .. }));

    world.core.finished(Finished { id: job.id, result: Err(Errno::OPNOTSUPP), buffer: None });

    let job = world.core.todo.pop_front().unwrap();
    assert!(matches!(&job.work, Work::Write { data, .. } if data.len() as u64 == SIZE));
    world.core.finished(Finished { id: job.id, result: Ok(()), buffer: None });
    assert!(matches!(world.core.done.pop(), Some(Completion { result: Ok(Outcome::Done), .. })));

    world.core.submit(Tag(2), zeroes(true));
    assert!(matches!(world.core.done.pop(), Some(Completion { result: Err(DiskError::NotFast), .. })));
}

#[test]
fn a_full_pool_is_told_and_does_not_end_the_replica() {
    let mut world = World::new();
    world.core.submit(Tag(1), Operation::Write { offset: 0, data: vec![1; 4096].into(), durable: true });
    let job = world.core.todo.pop_front().unwrap();
    world.core.finished(Finished { id: job.id, result: Err(Errno::NOSPC), buffer: None });
    assert!(matches!(world.core.done.pop(), Some(Completion { result: Err(DiskError::NoSpace { .. }), .. })));
    world.core.sync();
    assert!(world.core.todo.is_empty(), "nothing to make durable");
    assert_eq!(world.core.failed(), None);
}

#[test]
fn what_is_outside_is_refused() {
    let mut core = Core::new(DataMap::new(SIZE), SIZE, Buffers::default());
    for operation in [
        Operation::Read { offset: SIZE, bytes: 512 },
        Operation::Read { offset: 1, bytes: 512 },
        Operation::Read { offset: 0, bytes: 0 },
        Operation::Write { offset: SIZE - 512, data: vec![1; 1024].into(), durable: false },
        Operation::Trim { offset: u64::MAX - 511, bytes: 512, durable: false },
        Operation::WriteZeroes { offset: 0, bytes: SIZE + 512, may_punch: true, fast_only: false, durable: false },
        Operation::BlockStatus { offset: SIZE, bytes: 512, extents_max: 1 },
    ] {
        core.submit(Tag(1), operation);
        assert!(matches!(core.done.pop(), Some(Completion { result: Err(DiskError::OutOfRange { .. }), .. })));
    }
    assert!(core.todo.is_empty());
}
