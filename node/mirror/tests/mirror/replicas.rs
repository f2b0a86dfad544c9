//! Replicas that come and go.

use pollux_mirror::{EXTENT_BYTES, Effect, Event, Extents, Grains, Kind, Limits, Part};
use pollux_wire::id::ReplicaId;

use crate::world::{R1, R2, R3, SIZE, World, broken};

impl World {
    fn is_noted(&self, by: ReplicaId, about: ReplicaId, range: std::ops::Range<u64>) -> bool {
        self.is_asked(
            by,
            |part| matches!(part, Part::Lacks(id, lacks) if *id == about && *lacks == Grains::touching(&range)),
        )
    }

    fn catches(&mut self, replica: ReplicaId) {
        self.tell(Event::Catch { replica, lacks: Grains::default() });
    }
}

#[test]
fn one_that_is_added_lacks_everything_and_the_members_note_so_before_anything_is_copied() {
    let mut world = World::new(&[R1, R2], &[]);
    world.tell(Event::Added { replica: R3 });
    assert!(world.mirror.is_outside(R3));
    world.catches(R3);
    world.tell(Event::Credit(u64::MAX));
    assert!(world.is_noted(R1, R3, 0..SIZE) && world.is_noted(R2, R3, 0..SIZE));
    world.does(R1, &Ok(()));
    assert!(!world.is_asked(R1, |part| *part == Part::Read), "the other has not noted it");
    world.does(R2, &Ok(()));
    world.tell(Event::Credit(u64::MAX));
    for _ in 0..200 {
        [R1, R2, R3].iter().for_each(|id| world.does(*id, &Ok(())));
        world.tell(Event::Credit(u64::MAX));
    }
    assert_eq!(world.others, [Effect::Join { replica: R3, version: 1 }]);
}

#[test]
fn it_is_copied_to_no_faster_than_credit_comes_however_little_that_is() {
    const TICK_BYTES: u64 = 20_000;
    let mut world = World::new(&[R1], &[(R2, Grains::default())]);
    world.tell(Event::Catch { replica: R2, lacks: Grains::touching(&(0..SIZE)) });
    world.does(R1, &Ok(()));
    let lacked = |world: &World| world.mirror.status().replicas.iter().map(|it| it.lacks).sum::<u64>();
    let piece = Limits::default().copy_bytes;
    for ticks in 1..=200 {
        world.tell(Event::Credit(TICK_BYTES));
        for _ in 0..3 {
            world.ends(R1, |part| !matches!(part, Part::Flush));
            world.ends(R2, |part| !matches!(part, Part::Flush));
        }
        let copied = SIZE - lacked(&world);
        assert!(
            (ticks * TICK_BYTES..ticks * TICK_BYTES + piece).contains(&copied),
            "{copied} bytes after {ticks} ticks"
        );
    }
}

#[test]
fn nothing_settles_while_members_note_what_lacks_outside() {
    let mut world = World::new(&[R1], &[]);
    world.tell(Event::Added { replica: R2 });
    world.write(0..4_096);
    world.does(R1, &Ok(()));
    world.catches(R2);
    let note = world.asked.pop().expect("it is to be noted");
    assert!(matches!(note.2, Part::Lacks(..)));
    let settle = |world: &mut World| {
        for _ in 0..12 {
            world.now += 1_000;
            world.tell(Event::Tick);
            let flush = world.asked.iter().position(|(_, _, part, _)| *part == Part::Flush);
            if let Some((_, tag, ..)) = flush.map(|at| world.asked.remove(at)) {
                world.tell(Event::Done { tag, outcome: Ok(()) });
            }
        }
        world.is_asked(R1, |part| *part == Part::Settled(Extents::touching(&(0..1))))
    };
    assert!(!settle(&mut world), "what was written before the note is known there by being active");
    world.tell(Event::Done { tag: note.1, outcome: Ok(()) });
    assert!(settle(&mut world));
}

#[test]
fn one_that_nobody_could_note_is_not_caught_up() {
    let mut world = World::new(&[R1], &[]);
    world.tell(Event::Added { replica: R2 });
    world.catches(R2);
    world.does(R1, &broken());
    assert!(world.mirror.is_outside(R2));
    assert!(matches!(world.others[..], [Effect::Drop { .. }, Effect::Behind { .. }]), "{:?}", world.others);
    world.catches(R2);
    assert!(world.is_noted(R1, R2, 0..SIZE));
}

#[test]
fn who_is_taken_in_notes_what_lacks_outside_as_the_others_do() {
    let mut world = World::new(&[R1], &[(R2, Grains::default()), (R3, Grains::touching(&(0..EXTENT_BYTES)))]);
    world.catches(R2);
    for _ in 0..4 {
        world.does(R1, &Ok(()));
        world.does(R2, &Ok(()));
    }
    world.decided(2, &[R1, R2]);
    assert!(!world.is_noted(R2, R3, 0..EXTENT_BYTES), "it does not know yet that it is in");
    let at = world.asked.iter().position(|(_, _, part, _)| matches!(part, Part::Welcome(_))).expect("it is welcome");
    let (_, tag, ..) = world.asked.remove(at);
    world.tell(Event::Done { tag, outcome: Ok(()) });
    assert!(world.is_noted(R2, R3, 0..EXTENT_BYTES), "{:?}", world.asked);
}

#[test]
fn one_that_is_released_leaves_in_order_and_does_not_come_back() {
    let mut world = World::new(&[R1, R2], &[]);
    world.tell(Event::Release { replica: R1 });
    assert!(world.is_asked(R2, |part| *part == Part::Miss(R1)), "as if it had failed");
    world.does(R2, &Ok(()));
    assert!(world.others.iter().any(|effect| matches!(effect, Effect::Leave { replica, .. } if *replica == R1)));
    world.decided(2, &[R2]);
    assert!(!world.mirror.is_outside(R1));
    world.catches(R1);
    assert!(world.asked.is_empty(), "{:?}", world.asked);

    world.tell(Event::Added { replica: R1 });
    assert!(world.mirror.is_outside(R1), "it stays after all");
}

#[test]
fn the_last_whole_one_is_not_released() {
    let mut world = World::new(&[R1], &[(R2, Grains::touching(&(0..1)))]);
    world.tell(Event::Release { replica: R1 });
    assert!(world.mirror.is_sound(R1) && world.others.is_empty() && world.asked.is_empty());
}

#[test]
fn one_that_was_removed_is_forgotten_by_all() {
    let mut world = World::new(&[R1, R2, R3], &[]);
    let write = world.write(0..4_096);
    world.does(R1, &Ok(()));
    world.does(R2, &Ok(()));
    assert!(world.answers.is_empty());
    world.decided(2, &[R1, R2]);
    assert_eq!(world.answers[&write], Ok(()));
    world.tell(Event::Removed { replica: R3 });
    assert!([R1, R2].iter().all(|id| world.is_asked(*id, |part| *part == Part::Returned(R3))));
    assert_eq!(world.mirror.status().replicas.len(), 2);

    // One that it has never heard of, and that a member has a note of.
    let gone = ReplicaId(9);
    world.tell(Event::Removed { replica: gone });
    world.tell(Event::Added { replica: ReplicaId(4) });
    world.catches(ReplicaId(4));
    assert!(!world.is_noted(R1, ReplicaId(4), 0..SIZE), "first there has to be room");
    world.does(R1, &Ok(()));
    world.asked.retain(|(_, _, part, _)| !matches!(part, Part::Lacks(..)));
    world.does(R2, &Ok(()));
    assert!(world.is_noted(R1, ReplicaId(4), 0..SIZE));
}

#[test]
fn a_proposal_about_one_that_was_removed_is_not_waited_for() {
    let mut world = World::new(&[R1, R2], &[(R3, Grains::default())]);
    world.catches(R3);
    for _ in 0..4 {
        [R1, R2, R3].iter().for_each(|id| world.does(*id, &Ok(())));
    }
    assert_eq!(world.others, [Effect::Join { replica: R3, version: 1 }]);
    world.tell(Event::Removed { replica: R3 });
    world.tell(Event::Lost { replica: R2, why: "gone".into() });
    world.does(R1, &Ok(()));
    assert!(world.others.iter().any(|effect| matches!(effect, Effect::Leave { replica, .. } if *replica == R2)));
}

#[test]
fn when_the_only_one_that_has_everything_is_removed_the_guest_ends() {
    let mut world = World::new(&[R1, R2], &[]);
    world.tell(Event::Lost { replica: R2, why: "gone".into() });
    world.others.clear();
    world.decided(2, &[R2]);
    assert!(world.others.iter().any(|effect| matches!(effect, Effect::Over { .. })), "{:?}", world.others);

    let mut world = World::new(&[R1, R2], &[]);
    world.decided(2, &[R2]);
    assert!(!world.others.iter().any(|effect| matches!(effect, Effect::Over { .. })), "the other has everything");
}

#[test]
fn reads_are_cut_over() {
    let mut world = World::new(&[R1, R2], &[]);
    world.request(Kind::Read, 0..4_096);
    assert!(world.is_asked(R1, |part| *part == Part::Read));
    world.tell(Event::Prefer(vec![R2]));
    world.request(Kind::Read, 4_096..8_192);
    assert!(world.is_asked(R2, |part| *part == Part::Read));
}
