//! What the members hold is compared, and repaired.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use pollux_mirror::{Digest, EXTENT_BYTES, Effect, Event, GRAIN_BYTES, Grains, Kind, Limits, Part, RequestId, Tag};
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
    assert_eq!(world.holds(R1, 7), 0..COPY);
    // A tick of 20 ms at 1 MB/s, again and again.
    for came in 1..=60 {
        world.tell(Event::Credit(20_000));
        let paid_for = 1 + came * 20_000;
        if world.is_asked(R1, |part| *part == Part::Digest) {
            let compared = world.holds(R1, 7).start;
            assert!((paid_for - 20_000..paid_for).contains(&compared), "{compared} of {paid_for} bytes");
        }
    }
    let reached = world.compared().last().map(|(range, _)| range.end);
    assert_eq!(reached, Some(3 * COPY), "of 1.2 million bytes");
    assert!(world.asked.is_empty());
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
    assert_eq!(world.compared(), [(0..COPY / 2, Ok(BTreeSet::new()))], "half of what was too much");
}

/// A guest that writes to one place, again as soon as it was answered, and asks for more before that.
struct Hot {
    world: World,
    open: Vec<RequestId>,
    waited_ms_max: u64,
    /// When each was asked for.
    asked: BTreeMap<RequestId, u64>,
    /// Its writes take so long, on any replica, and ten milliseconds at least.
    write_ms: u64,
    /// Since when each part of them is under way.
    parts: BTreeMap<Tag, u64>,
}

impl Hot {
    const PLACE: Range<u64> = 4_096..8_192;

    fn new() -> Self {
        let world = World::new(&[R1, R2], &[]);
        let (asked, parts) = (BTreeMap::new(), BTreeMap::new());
        Self { world, open: Vec::new(), waited_ms_max: 0, asked, write_ms: 0, parts }
    }

    /// Ten milliseconds. A digest is told after `digest_ms`, if it is.
    fn passes(&mut self, digest_ms: Option<u64>, digests: &mut BTreeMap<Tag, u64>) {
        while self.open.len() < 2 {
            let id = self.world.write(Self::PLACE);
            self.asked.insert(id, self.world.now);
            self.open.push(id);
        }
        self.world.now += 10;
        self.world.tell(Event::Tick);
        self.world.tell(Event::Credit(u64::MAX));
        let changes = |part: &Part| matches!(part, Part::Change { .. } | Part::Flush | Part::Settled(_));
        let now = self.world.now;
        while let Some(at) = self.world.asked.iter().position(|(_, tag, part, _)| {
            changes(part) && now - *self.parts.entry(*tag).or_insert(now) >= self.write_ms
        }) {
            let (_, tag, ..) = self.world.asked.remove(at);
            self.world.tell(Event::Done { tag, outcome: Ok(()) });
        }
        let told: Vec<Tag> = self.world.asked.iter().filter(|asked| asked.2 == Part::Digest).map(|it| it.1).collect();
        for tag in told {
            let since = *digests.entry(tag).or_insert(self.world.now);
            if digest_ms.is_some_and(|takes| self.world.now - since >= takes) {
                self.world.asked.retain(|asked| asked.1 != tag);
                self.world.tell(Event::Digest { tag, digest: Digest([7; 32]) });
            }
        }
        for id in self.open.extract_if(.., |id| self.world.answers.contains_key(&*id)) {
            assert_eq!(self.world.answers[&id], Ok(()));
            self.waited_ms_max = self.waited_ms_max.max(self.world.now - self.asked[&id]);
        }
    }

    /// Compares all of a piece while the guest goes on. What was found, and how long it took.
    fn compares(&mut self, digest_ms: Option<u64>) -> (Vec<(Range<u64>, Differs)>, u64) {
        let (mut found, mut digests, since) = (Vec::new(), BTreeMap::new(), self.world.now);
        self.passes(digest_ms, &mut digests);
        self.world.tell(Event::Compare { range: 0..COPY, authority: R1, repair: false });
        while found.last().is_none_or(|(range, _): &(Range<u64>, Differs)| range.end < COPY) {
            assert!(self.world.now - since < 60_000, "it does not end: {found:?}");
            self.passes(digest_ms, &mut digests);
            found.extend(self.world.compared());
        }
        (found, self.world.now - since)
    }

    /// What is first found out by comparing where no digest is ever told.
    fn is_told_nothing(&mut self) -> Vec<(Range<u64>, Differs)> {
        let (mut found, mut digests) = (Vec::new(), BTreeMap::new());
        self.passes(None, &mut digests);
        self.world.tell(Event::Compare { range: 0..COPY, authority: R1, repair: false });
        while found.is_empty() {
            assert!(self.world.now < 10_000, "it does not end");
            self.passes(None, &mut digests);
            found = self.world.compared();
        }
        found
    }
}

#[test]
fn a_comparison_ends_under_a_guest_that_never_stops_writing_and_the_guest_hardly_waits() {
    let mut hot = Hot::new();
    // Longer than it waits by itself: each comparison is disturbed.
    let (found, took_ms) = hot.compares(Some(60));
    assert!(found.iter().all(|(_, outcome)| *outcome == Ok(BTreeSet::new())), "{found:?}");
    assert_eq!(found[0].0, 0..GRAIN_BYTES, "the guest is kept from one grain");
    assert!(took_ms < 3_000 && hot.waited_ms_max < 200, "{took_ms} ms, the guest waited for {} ms", hot.waited_ms_max);
}

#[test]
fn where_digests_take_longer_than_a_guest_waits_by_itself_it_is_kept_back_for_longer() {
    let mut hot = Hot::new();
    let (found, _) = hot.compares(Some(130));
    assert!(found.iter().all(|(_, outcome)| *outcome == Ok(BTreeSet::new())), "{found:?}");
    assert!((130..250).contains(&hot.waited_ms_max), "the guest waited for {} ms", hot.waited_ms_max);
}

#[test]
fn a_guest_whose_own_requests_take_long_is_waited_for_and_not_kept_back_for_longer_by_that() {
    let mut hot = Hot::new();
    hot.write_ms = 100;
    let (found, _) = hot.compares(Some(10));
    assert!(found.iter().all(|(_, outcome)| *outcome == Ok(BTreeSet::new())), "{found:?}");

    // Longer than any is kept back: no digest is asked for, some times.
    let (mut hot, mut digests) = (Hot::new(), BTreeMap::new());
    hot.write_ms = 20_000;
    hot.passes(None, &mut digests);
    hot.world.tell(Event::Compare { range: 0..COPY, authority: R1, repair: false });
    while hot.world.now < 2_000 {
        hot.passes(None, &mut digests);
        assert!(digests.is_empty() && hot.world.compared().is_empty());
    }
    // Once it is, beside writes of which one is always under way, the guest waits for it no longer than the first time.
    hot.write_ms = 10;
    while digests.is_empty() {
        assert!(hot.world.now < 10_000, "it is never asked for a digest");
        hot.passes(None, &mut digests);
    }
    let (asked, answered) = (hot.world.now, hot.world.answers.len());
    while hot.world.answers.len() == answered {
        assert!(hot.world.now < 10_000, "the guest waits for good");
        hot.passes(None, &mut digests);
    }
    assert!(hot.world.now - asked <= 60, "the guest was kept back for {} ms", hot.world.now - asked);

    // And if it never is, there is an end all the same.
    let mut hot = Hot::new();
    hot.write_ms = 20_000;
    assert_eq!(
        hot.is_told_nothing(),
        [(0..GRAIN_BYTES, Err("what the guest asks for there took too long to be waited for"))]
    );
}

#[test]
fn pieces_are_cut_on_grains() {
    let mut world = World::new(&[R1], &[]);
    world.compares(0..5 * GRAIN_BYTES, R1, false);
    world.write(2 * GRAIN_BYTES..2 * GRAIN_BYTES + 4_096);
    world.now += 50;
    // Of five grains the half is no whole number of them. Three are not to be had beside the write; their half is none either.
    world.tell(Event::Tick);
    world.asked.retain(|(_, _, part, range)| *part != Part::Digest || range.end < 5 * GRAIN_BYTES);
    assert_eq!(world.holds(R1, 7), 0..2 * GRAIN_BYTES);
    assert_eq!(world.compared(), [(0..2 * GRAIN_BYTES, Ok(BTreeSet::new()))]);
}

#[test]
fn what_is_not_told_in_any_time_is_left_out_and_the_guest_goes_on() {
    let mut hot = Hot::new();
    assert_eq!(hot.is_told_nothing(), [(0..GRAIN_BYTES, Err("a replica did not tell in time what it holds there"))]);
    assert!(hot.waited_ms_max < 250, "the guest waited for {} ms", hot.waited_ms_max);
}

#[test]
fn a_comparison_that_is_called_off_keeps_nobody_back() {
    let mut hot = Hot::new();
    let mut digests = BTreeMap::new();
    hot.passes(None, &mut digests);
    hot.world.tell(Event::Compare { range: 0..COPY, authority: R1, repair: false });
    while !hot.world.is_asked(R1, |part| *part == Part::Digest) {
        assert!(hot.world.now < 3_000, "it is never asked for a digest");
        hot.passes(None, &mut digests);
    }
    // Called off: what waited goes on at once.
    hot.world.tell(Event::Compare { range: 0..0, authority: R1, repair: false });
    hot.passes(None, &mut digests);
    hot.passes(None, &mut digests);
    assert!(hot.open.iter().all(|id| hot.world.now - hot.asked[id] <= 20), "{:?} at {}", hot.asked, hot.world.now);
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
