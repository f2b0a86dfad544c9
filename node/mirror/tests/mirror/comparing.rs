//! What the members hold is compared, and repaired.

use std::{collections::BTreeSet, ops::Range};

use pollux_mirror::{Digest, EXTENT_BYTES, Effect, Event, GRAIN_BYTES, Grains, Kind, Limits, Part};
use pollux_wire::id::ReplicaId;

use crate::world::{R1, R2, R3, SIZE, World, broken};

const COPY: u64 = 512 * 1024;

type Differs = Result<BTreeSet<ReplicaId>, &'static str>;

impl World {
    fn compares(&mut self, range: Range<u64>, authority: ReplicaId, repair: bool) {
        self.tell(Event::Compare { range, authority, repair });
        self.tell(Event::Credit(u64::MAX));
    }

    /// A replica tells what it holds where it was asked.
    fn holds(&mut self, replica: ReplicaId, what: u8) -> Range<u64> {
        let asked = self.asked.iter().position(|(whom, _, part, _)| *whom == replica && *part == Part::Digest);
        let (_, tag, _, range) = self.asked.remove(asked.expect("it is asked for a digest"));
        self.tell(Event::Digest { tag, digest: Digest([what; 32]) });
        range
    }

    fn compared(&mut self) -> Vec<(Range<u64>, Differs)> {
        let mut compared = Vec::new();
        self.others.retain(|effect| {
            let Effect::Compared { range, outcome } = effect else { return true };
            compared.push((range.clone(), outcome.clone()));
            false
        });
        compared
    }
}

#[test]
fn all_members_are_compared_piece_by_piece() {
    let mut world = World::new(&[R1, R2, R3], &[]);
    world.compares(1..COPY + 1, R1, false);
    assert_eq!([R1, R2, R3].map(|id| world.holds(id, 7)), [(); 3].map(|()| 0..COPY), "from the beginning of a grain");
    assert_eq!(world.compared(), [(0..COPY, Ok(BTreeSet::new()))]);
    for (id, what) in [(R1, 7), (R2, 8), (R3, 7)] {
        world.holds(id, what);
    }
    assert_eq!(world.compared(), [(COPY..COPY + GRAIN_BYTES, Ok([R2].into()))]);
    world.tell(Event::Credit(u64::MAX));
    assert!(world.asked.is_empty(), "it is over, and nothing is repaired: {:?}", world.asked);
}

#[test]
fn it_goes_no_faster_than_credit_allows() {
    let mut world = World::new(&[R1], &[]);
    world.tell(Event::Compare { range: 0..SIZE, authority: R1, repair: false });
    assert!(world.asked.is_empty());
    world.tell(Event::Credit(1));
    world.holds(R1, 7);
    assert!(world.asked.is_empty());
    world.tell(Event::Credit(1));
    assert_eq!(world.holds(R1, 7), COPY..2 * COPY);
}

#[test]
fn nothing_is_written_to_what_is_compared_but_a_guest_does_not_wait_for_long() {
    let mut world = World::new(&[R1, R2], &[]);
    world.compares(0..COPY, R1, false);
    world.write(0..4_096);
    let read = world.request(Kind::Read, 4_096..8_192);
    assert!(world.is_asked(R1, |part| *part == Part::Read), "reading is no harm");
    assert!(!world.is_asked(R1, |part| matches!(part, Part::Change { .. })));
    world.now += 50;
    world.tell(Event::Tick);
    assert!(world.is_asked(R1, |part| matches!(part, Part::Change { .. })), "{:?}", world.asked);
    for id in [R1, R2] {
        world.holds(id, 7);
    }
    assert!(world.compared().is_empty(), "what was told of it came too late");

    for id in [R1, R2] {
        world.ends(id, |part| *part == Part::Read || matches!(part, Part::Change { .. }));
    }
    assert_eq!(world.answers[&read], Ok(()));
    for id in [R1, R2] {
        world.holds(id, 7);
    }
    assert_eq!(world.compared(), [(0..COPY, Ok(BTreeSet::new()))]);
}

#[test]
fn what_is_written_all_the_time_is_left_out() {
    let mut world = World::new(&[R1, R2], &[]);
    world.write(0..4_096);
    world.compares(0..COPY, R1, false);
    assert!(world.asked.iter().all(|(_, _, part, _)| *part != Part::Digest));
    world.now += 1_000;
    world.tell(Event::Tick);
    assert_eq!(world.compared(), [(0..GRAIN_BYTES, Err("it was being written all the time"))]);
    world.tell(Event::Tick);
    assert_eq!(world.holds(R1, 7), GRAIN_BYTES..COPY);
}

#[test]
fn what_differs_is_copied_from_the_one_whose_content_counts() {
    let mut world = World::new(&[R1, R2], &[]);
    world.compares(0..COPY, R2, true);
    world.holds(R1, 1);
    world.holds(R2, 2);
    assert_eq!(world.compared(), [(0..COPY, Ok([R1].into()))]);
    assert_eq!(world.mirror.status().hot, 1, "it differs on stable storage until it was flushed");
    let read = world.request(Kind::Read, 0..4_096);
    assert!(!world.is_asked(R1, |part| *part == Part::Read), "nobody reads it before it is whole");
    world.does(R2, &Ok(()));
    assert!(world.is_asked(R1, |part| matches!(part, Part::Copy { .. })));
    world.does(R1, &Ok(()));
    world.does(R2, &Ok(()));
    assert_eq!(world.answers[&read], Ok(()));
    assert!(world.mirror.is_sound(R1) && world.mirror.status().replicas.iter().all(|it| it.lacks == 0));
}

#[test]
fn none_that_differs_is_what_another_one_is_copied_from() {
    for counts in [R1, R2, R3] {
        let mut world = World::new(&[R1, R2, R3], &[]);
        world.compares(0..COPY, counts, true);
        for id in [R1, R2, R3] {
            world.holds(id, if id == counts { 1 } else { 2 });
        }
        let read_from: BTreeSet<ReplicaId> =
            world.asked.iter().filter(|(_, _, part, _)| *part == Part::Read).map(|(id, ..)| *id).collect();
        assert_eq!(read_from, [counts].into(), "{:?}", world.asked);
    }
}

#[test]
fn without_the_one_whose_content_counts_nothing_is_repaired() {
    let mut world = World::new(&[R1, R2], &[]);
    world.compares(0..COPY, R3, true);
    world.holds(R1, 1);
    world.holds(R2, 2);
    assert_eq!(world.compared(), [(0..COPY, Ok([R2].into()))]);
    assert!(world.asked.is_empty(), "{:?}", world.asked);
}

#[test]
fn one_that_cannot_tell_leaves_and_the_others_are_compared() {
    let mut world = World::new(&[R1, R2, R3], &[]);
    world.compares(0..COPY, R1, false);
    world.holds(R1, 7);
    world.does(R2, &broken());
    world.holds(R3, 7);
    assert!(!world.mirror.is_sound(R2));
    assert_eq!(world.compared(), [(0..COPY, Ok(BTreeSet::new()))]);

    let mut world = World::new(&[R1], &[]);
    world.compares(0..COPY, R1, false);
    world.does(R1, &broken());
    assert_eq!(world.compared(), [(0..COPY, Err("no replica of the set could tell what it holds"))]);
}

#[test]
fn one_that_is_silent_when_another_has_told_leaves() {
    let mut world = World::new(&[R1, R2], &[]);
    world.compares(0..COPY, R1, false);
    world.holds(R1, 7);
    for _ in 0..Limits::default().lag_ms / 1_000 {
        world.now += 1_000;
        world.tell(Event::Tick);
    }
    assert!(!world.mirror.is_sound(R2));
}

#[test]
fn what_is_known_to_lack_is_copied_first() {
    let mut world = World::new(&[R1, R2], &[]);
    let write = world.write(0..4_096);
    world.does(R1, &Ok(()));
    // It stays in the set, for its session was only replaced; what it has of the write nobody knows.
    world.tell(Event::Unseal);
    assert!(world.answers[&write].is_err());
    world.asked.clear();
    world.compares(0..EXTENT_BYTES, R1, true);
    assert!(world.is_asked(R1, |part| *part == Part::Read) && !world.is_asked(R1, |part| *part == Part::Digest));
}

#[test]
fn a_seal_is_not_waited_for() {
    let mut world = World::new(&[R1, R2], &[(R3, Grains::default())]);
    world.compares(0..SIZE, R1, true);
    world.tell(Event::Seal { generation: pollux_wire::id::Generation(1) });
    assert!(world.others.iter().any(|effect| matches!(effect, Effect::Sealed(_))), "{:?}", world.others);
    world.tell(Event::Unseal);
    world.asked.clear();
    world.tell(Event::Credit(u64::MAX));
    assert!(world.asked.is_empty());
}
