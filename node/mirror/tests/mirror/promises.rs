//! The mirror's promises, one by one.

use pollux_mirror::{EXTENT_BYTES, Effect, Event, Failure, GRAIN_BYTES, Grains, Kind, Limits, Part};

use crate::world::{R1, R2, R3, World, broken};

#[test]
fn a_write_is_acknowledged_when_all_of_the_set_have_it() {
    let mut world = World::new(&[R1, R2], &[]);
    let write = world.write(0..4_096);
    world.does(R1, &Ok(()));
    assert!(world.answers.is_empty(), "the other does not have it");
    world.does(R2, &Ok(()));
    assert_eq!(world.answers[&write], Ok(()));
}

#[test]
fn who_fails_is_noted_then_taken_out_and_only_then_is_the_write_acknowledged() {
    let mut world = World::new(&[R1, R2, R3], &[]);
    let write = world.write(0..4_096);
    world.does(R2, &broken());
    assert!(world.others.contains(&Effect::Drop { replica: R2 }));
    assert!(!world.others.iter().any(|effect| matches!(effect, Effect::Leave { .. })), "nobody has noted it yet");
    world.does(R1, &Ok(()));
    world.does(R3, &Ok(()));
    let leave = |effect: &Effect| matches!(effect, Effect::Leave { replica, version: 1, .. } if *replica == R2);
    assert!(world.others.iter().any(leave), "{:?}", world.others);
    assert!(world.answers.is_empty(), "the log has not said so");

    world.decided(2, &[R1, R3]);
    assert_eq!(world.answers[&write], Ok(()));
    let next = world.write(0..4_096);
    assert!(!world.is_asked(R2, |_| true));
    world.does(R1, &Ok(()));
    world.does(R3, &Ok(()));
    assert_eq!(world.answers[&next], Ok(()));
}

#[test]
fn the_last_one_stays_and_the_request_fails() {
    let mut world = World::new(&[R1], &[]);
    let write = world.write(0..4_096);
    world.does(R1, &Err(Failure::NoSpace));
    assert_eq!(world.answers[&write], Err(Failure::NoSpace));
    assert!(world.others.is_empty(), "{:?}", world.others);
    let again = world.write(0..4_096);
    world.does(R1, &Ok(()));
    assert_eq!(world.answers[&again], Ok(()), "there was room for it now");
}

#[test]
fn what_overlaps_waits_for_what_came_before_it() {
    let mut world = World::new(&[R1, R2], &[]);
    world.write(0..8_192);
    let second = world.write(4_096..12_288);
    let read = world.request(Kind::Read, 8_192..16_384);
    let elsewhere = world.request(Kind::Read, 0x10_0000..0x10_1000);
    let begun = world.asked.iter().filter(|(whom, ..)| *whom == R1).count();
    assert_eq!(begun, 2, "the first write and the read elsewhere: {:?}", world.asked);
    world.does(R1, &Ok(()));
    assert!(world.answers.contains_key(&elsewhere) && !world.answers.contains_key(&second));
    for _ in 0..3 {
        world.does(R2, &Ok(()));
        world.does(R1, &Ok(()));
    }
    assert_eq!((world.answers.get(&second), world.answers.get(&read)), (Some(&Ok(())), Some(&Ok(()))));
}

#[test]
fn one_that_returns_is_copied_to_and_written_to_and_then_taken_in() {
    let mut world = World::new(&[R1], &[(R2, Grains::default())]);
    world.tell(Event::Catch { replica: R2, lacks: Grains::touching(&(0..3 * GRAIN_BYTES)) });
    assert!(world.is_asked(R1, |part| matches!(part, Part::Lacks(id, _) if *id == R2)), "{:?}", world.asked);
    world.does(R1, &Ok(()));
    world.tell(Event::Credit(u64::MAX));
    let meanwhile = world.write(EXTENT_BYTES..EXTENT_BYTES + 4_096);
    assert!(world.is_asked(R2, |part| matches!(part, Part::Change { .. })), "what it does not lack it is sent");
    for _ in 0..8 {
        world.does(R1, &Ok(()));
        world.does(R2, &Ok(()));
    }
    assert_eq!(world.answers[&meanwhile], Ok(()));
    assert_eq!(world.others, [Effect::Join { replica: R2, version: 1 }]);
    let write = world.write(0..4_096);
    world.does(R1, &Ok(()));
    assert!(!world.answers.contains_key(&write), "it may be in the set by now");
    world.does(R2, &Ok(()));
    assert_eq!(world.answers[&write], Ok(()));

    world.decided(2, &[R1, R2]);
    assert!(world.is_asked(R2, |part| matches!(part, Part::Welcome(_))));
    assert!(world.is_asked(R1, |part| *part == Part::Returned(R2)));
    assert!(world.mirror.is_sound(R2));
}

/// What arrived later may be lost with its host, and has to be copied again.
#[test]
fn one_that_catches_up_is_told_to_have_only_what_its_flush_covers() {
    let mut world = World::new(&[R1], &[(R2, Grains::default())]);
    let mut lacks = Grains::touching(&(0..1));
    lacks.insert(&(32 * GRAIN_BYTES..32 * GRAIN_BYTES + 1));
    lacks.insert(&(EXTENT_BYTES..EXTENT_BYTES + 1));
    world.tell(Event::Catch { replica: R2, lacks });
    world.does(R1, &Ok(()));
    let copies_one = |world: &mut World| {
        world.tell(Event::Credit(GRAIN_BYTES));
        world.does(R1, &Ok(()));
        let at =
            world.asked.iter().position(|(_, _, part, _)| matches!(part, Part::Copy { .. })).expect("it is copied");
        let (_, tag, ..) = world.asked.remove(at);
        world.tell(Event::Done { tag, outcome: Ok(()) });
        world.does(R1, &Ok(()));
    };
    copies_one(&mut world);
    world.tell(Event::Tick);
    assert!(world.is_asked(R2, |part| *part == Part::Flush));
    let flush = world.asked.pop().expect("the flush alone");
    copies_one(&mut world);
    world.asked.retain(|(_, _, part, _)| *part != Part::Flush);
    world.tell(Event::Done { tag: flush.1, outcome: Ok(()) });
    assert!(!world.is_asked(R2, |part| matches!(part, Part::Settled(_))), "{:?}", world.asked);
}

#[test]
fn members_that_may_differ_leave_before_anything_is_acknowledged() {
    let mut world = World::new(&[R1, R2], &[(R2, Grains::touching(&(0..1)))]);
    let flush = world.request(Kind::Flush, 0..0);
    world.does(R1, &Ok(()));
    assert!(world.answers.is_empty());
    assert!(world.others.iter().any(|effect| matches!(effect, Effect::Leave { replica, .. } if *replica == R2)));
    world.decided(2, &[R1]);
    assert_eq!(world.answers[&flush], Ok(()));
}

#[test]
fn a_host_that_was_started_anew_has_lost_what_was_not_flushed() {
    let mut world = World::new(&[R1], &[]);
    world.write(0..4_096);
    world.does(R1, &Ok(()));
    let flush = world.request(Kind::Flush, 0..0);
    world.does(R1, &Ok(()));
    assert_eq!(world.answers[&flush], Ok(()));
    world.tell(Event::Forgot { replica: R1 });
    assert!(world.others.is_empty(), "nothing is lost");

    world.write(0..4_096);
    world.does(R1, &Ok(()));
    world.tell(Event::Forgot { replica: R1 });
    assert!(matches!(world.others[..], [Effect::Over { .. }]), "{:?}", world.others);
    let late = world.write(0..4_096);
    assert_eq!(world.answers[&late], Err(Failure::Fenced));
}

#[test]
fn a_flush_asks_nobody_when_everything_was_flushed_since_the_last_change() {
    let mut world = World::new(&[R1, R2], &[]);
    let asks = |world: &World| {
        world.is_asked(R1, |part| *part == Part::Flush) || world.is_asked(R2, |part| *part == Part::Flush)
    };
    let flush = |world: &mut World| world.request(Kind::Flush, 0..0);
    let first = flush(&mut world);
    assert!(asks(&world) && !world.answers.contains_key(&first), "what was before is not known");
    world.does(R1, &Ok(()));
    world.does(R2, &Ok(()));
    let again = flush(&mut world);
    assert!(!asks(&world) && world.answers[&again] == Ok(()));

    // A change that is on its way, one that one replica has, one that both have: each is flushed.
    world.write(0..4_096);
    let early = flush(&mut world);
    assert!(asks(&world) && !world.answers.contains_key(&early));
    world.does(R1, &Ok(()));
    world.does(R2, &Ok(()));
    let late = flush(&mut world);
    assert!(asks(&world) && !world.answers.contains_key(&late), "the flush before began before the change had ended");
    world.does(R1, &Ok(()));
    world.does(R2, &Ok(()));
    let again = flush(&mut world);
    assert!(!asks(&world) && world.answers[&again] == Ok(()));

    // One that failed has reached nobody for certain.
    world.write(0..4_096);
    world.does(R1, &Ok(()));
    world.does(R2, &Ok(()));
    flush(&mut world);
    world.does(R1, &broken());
    flush(&mut world);
    assert!(asks(&world));
}

#[test]
fn a_newer_generation_ends_it() {
    let mut world = World::new(&[R1, R2], &[]);
    let write = world.write(0..4_096);
    world.does(R1, &Err(Failure::Fenced));
    assert_eq!(world.answers[&write], Err(Failure::Fenced));
    assert!(matches!(world.others[..], [Effect::Over { .. }]));
}

#[test]
fn nothing_is_held_for_ever() {
    let mut world = World::new(&[R1, R2], &[]);
    let (write, behind) = (world.write(0..4_096), world.write(0..4_096));
    // A process that slept has not waited.
    world.now += Limits::default().hold_ms;
    world.tell(Event::Tick);
    assert!(world.answers.is_empty(), "{:?}", world.answers);
    for _ in 0..Limits::default().hold_ms / 1_000 {
        world.now += 1_000;
        world.tell(Event::Tick);
    }
    for request in [write, behind] {
        assert!(matches!(world.answers[&request], Err(Failure::Silent(_))), "{:?}", world.answers);
    }
}
