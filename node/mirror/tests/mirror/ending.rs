//! The end in order: sealed for another mirror, or with everything settled.

use pollux_mirror::{Change, EXTENT_BYTES, Effect, Event, Extents, Grains, Kind, Limits, Part, Seal};
use pollux_wire::id::Generation;

use crate::world::{R1, R2, R3, World, broken};

const G7: Generation = Generation(7);

impl World {
    /// The last of what it said, if it was asked for a seal.
    fn seals(&mut self) -> Result<Seal, &'static str> {
        self.tell(Event::Seal { generation: G7 });
        match self.others.pop() {
            Some(Effect::Sealed(seal)) => Ok(seal),
            Some(Effect::NotSealed { why }) => Err(why),
            other => panic!("no word about a seal: {other:?}"),
        }
    }

    fn is_finished(&self) -> Option<bool> {
        self.others
            .iter()
            .find_map(|effect| if let Effect::Finished { settled } = effect { Some(*settled) } else { None })
    }
}

#[test]
fn it_is_sealed_when_everything_has_ended_on_all_of_the_set_and_not_before() {
    let mut world = World::new(&[R1, R2], &[]);
    world.write(0..4_096);
    world.does(R1, &Ok(()));
    assert_eq!(world.seals(), Err("requests are open"));
    world.does(R2, &Ok(()));
    let seal = world.seals().unwrap();
    assert_eq!((seal.generation, seal.version, seal.members.len()), (G7, 1, 2));
    assert_eq!(seal.active, Extents::touching(&(0..1)), "it was not flushed");
}

#[test]
fn what_was_given_up_and_may_still_arrive_is_not_sealed() {
    let mut world = World::new(&[R1, R2], &[]);
    let write = world.write(0..4_096);
    for _ in 0..Limits::default().hold_ms / 1_000 {
        world.now += 1_000;
        world.tell(Event::Tick);
    }
    assert!(world.answers[&write].is_err());
    assert_eq!(world.seals(), Err("a request that failed is not over"));
    world.does(R1, &Ok(()));
    world.does(R2, &Ok(()));
    assert!(world.seals().is_ok());
}

#[test]
fn members_that_were_left_different_are_not_sealed_before_they_are_equal() {
    let mut world = World::new(&[R1, R2], &[]);
    world.write(0..4_096);
    world.does(R2, &broken());
    assert_eq!(world.seals(), Err("requests are open"));
    world.does(R1, &Ok(()));
    world.others.clear();
    assert_eq!(world.seals(), Err("requests are open"), "the log has not taken it out");
    world.decided(2, &[R1]);
    assert_eq!(world.seals().unwrap().members, [R1].into());

    let mut world = World::new(&[R1, R2], &[]);
    world.request(Kind::Read, 0..4_096);
    world.tell(Event::Lost { replica: R2, why: "gone".into() });
    world.does(R1, &Ok(()));
    assert_eq!(world.seals(), Err("the set is changing"));
}

#[test]
fn who_is_outside_is_let_go_and_is_no_reason_to_wait() {
    let mut world = World::new(&[R1], &[(R2, Grains::default())]);
    world.tell(Event::Catch { replica: R2, lacks: Grains::touching(&(0..EXTENT_BYTES)) });
    world.does(R1, &Ok(()));
    world.tell(Event::Credit(u64::MAX));
    let write = world.write(EXTENT_BYTES..EXTENT_BYTES + 4_096);
    world.does(R1, &Ok(()));
    assert_eq!(world.answers[&write], Ok(()));
    world.seals().expect("the set is whole");
    assert!(world.others.contains(&Effect::Drop { replica: R2 }) && world.mirror.is_outside(R2));
}

#[test]
fn while_sealed_nothing_is_asked_and_afterwards_it_goes_on() {
    let mut world = World::new(&[R1, R2, R3], &[]);
    world.write(0..4_096);
    [R1, R2, R3].iter().for_each(|id| world.does(*id, &Ok(())));
    world.seals().unwrap();
    world.now += 60_000;
    let lost = |replica| Event::Lost { replica, why: "the other mirror has its session".into() };
    for event in [Event::Tick, lost(R1), Event::Forgot { replica: R1 }, Event::Credit(1), Event::Finish] {
        world.tell(event);
    }
    world.decided(2, &[R1, R2]);
    assert!(world.asked.is_empty(), "{:?}", world.asked);
    assert_eq!(world.others, [Effect::Drop { replica: R3 }], "the other mirror had it taken out");

    let write = world.write(4_096..8_192);
    assert!(world.asked.is_empty());
    world.tell(Event::Unseal);
    world.does(R1, &Ok(()));
    world.does(R2, &Ok(()));
    assert_eq!(world.answers[&write], Ok(()));
}

/// What was proposed under a generation that is over is never decided.
#[test]
fn one_that_comes_back_without_a_seal_asks_and_proposes_anew() {
    let mut world = World::new(&[R1], &[(R2, Grains::default())]);
    world.tell(Event::Catch { replica: R2, lacks: Grains::default() });
    for _ in 0..4 {
        world.does(R1, &Ok(()));
        world.does(R2, &Ok(()));
    }
    assert_eq!(world.others, [Effect::Join { replica: R2, version: 1 }]);
    let write = world.write(0..4_096);
    assert_eq!(world.seals(), Err("requests are open"));
    world.tell(Event::Unseal);
    assert!(world.answers[&write].is_err(), "nobody knows whether it arrived");
    world.asked.clear();
    assert!(matches!(world.others[1..], [Effect::Drop { .. }, Effect::Leave { replica: R2, version: 1, .. }]));
    world.decided(2, &[R1]);
    let next = world.write(0..4_096);
    world.does(R1, &Ok(()));
    assert_eq!(world.answers[&next], Ok(()));
}

#[test]
fn who_could_not_be_reached_again_afterwards_leaves() {
    let mut world = World::new(&[R1, R2], &[]);
    world.seals().unwrap();
    world.tell(Event::Unseal);
    world.tell(Event::Lost { replica: R2, why: "its host was started anew".into() });
    world.does(R1, &Ok(()));
    assert!(world.others.iter().any(|effect| matches!(effect, Effect::Leave { replica, .. } if *replica == R2)));
}

#[test]
fn the_last_ones_host_that_was_started_anew_meanwhile_ends_it() {
    for flushed in [true, false] {
        let mut world = World::new(&[R1], &[]);
        world.request(Kind::Change { change: Change::Write, durable: false }, 0..4_096);
        world.does(R1, &Ok(()));
        if flushed {
            world.request(Kind::Flush, 0..0);
            world.does(R1, &Ok(()));
        }
        world.seals().unwrap();
        world.tell(Event::Unseal);
        world.tell(Event::Lost { replica: R1, why: "its host was started anew".into() });
        world.tell(Event::Forgot { replica: R1 });
        assert_eq!(world.others.iter().any(|effect| matches!(effect, Effect::Over { .. })), !flushed);
    }
}

/// What the guest has seen is from before this mirror began.
#[test]
fn what_was_not_flushed_before_it_began_can_be_lost_too() {
    let mut world = World::active(&[R1], &Extents::touching(&(0..1)));
    world.request(Kind::Read, 0..4_096);
    world.does(R1, &Ok(()));
    world.tell(Event::Forgot { replica: R1 });
    assert!(matches!(world.others[..], [Effect::Over { .. }]), "{:?}", world.others);
}

#[test]
fn a_guest_that_ends_in_order_leaves_nothing_to_copy() {
    let mut world = World::new(&[R1, R2], &[]);
    world.write(0..4_096);
    world.does(R1, &Ok(()));
    world.tell(Event::Finish);
    assert!(!world.is_asked(R1, |part| *part == Part::Flush), "a write is under way");
    world.does(R2, &Ok(()));
    world.does(R1, &Ok(()));
    assert_eq!(world.is_finished(), None, "the other has not heard that all has settled");
    world.does(R2, &Ok(()));
    assert_eq!((world.is_finished(), world.mirror.status().hot), (Some(true), 0));
}

#[test]
fn an_end_is_not_waited_for_for_ever() {
    let mut world = World::new(&[R1], &[]);
    world.write(0..4_096);
    world.does(R1, &Ok(()));
    world.tell(Event::Finish);
    for _ in 0..Limits::default().hold_ms / 1_000 {
        assert_eq!(world.is_finished(), None);
        // At most one flush in vain each time.
        world.does(R1, &broken());
        world.now += 1_000;
        world.tell(Event::Tick);
    }
    assert_eq!(world.is_finished(), Some(false));
}
