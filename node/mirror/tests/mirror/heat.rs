//! How many extents are active, and which settle.

use pollux_mirror::{EXTENT_BYTES, Event, Extents, Kind, Part};

use crate::world::{R1, R2, World};

const HOT_MAX: usize = 8;

impl World {
    /// One after the other, each to its end.
    fn writes_in(&mut self, extents: impl IntoIterator<Item = u64>) {
        for extent in extents {
            let write = self.write(extent * EXTENT_BYTES..extent * EXTENT_BYTES + 4_096);
            for replica in [R1, R2] {
                self.ends(replica, |part| matches!(part, Part::Change { .. }));
            }
            assert_eq!(self.answers[&write], Ok(()), "{extent}");
        }
    }

    /// What the first replica is told to have settled.
    fn settled(&self) -> Vec<u32> {
        let mut settled = Vec::new();
        for (whom, _, part, _) in &self.asked {
            if let Part::Settled(extents) = part
                && *whom == R1
            {
                settled.extend(extents.iter());
            }
        }
        settled
    }
}

#[test]
fn a_guest_that_writes_in_many_places_waits_for_none_and_keeps_what_it_wrote_to_lately() {
    let mut world = World::cool(&[R1, R2], HOT_MAX);
    world.writes_in([3, 0, 1, 2, 4, 5, 6, 7, 3]);
    assert!(!world.is_asked(R1, |part| *part == Part::Flush), "there is room");
    world.writes_in([8]);
    assert!(world.is_asked(R1, |part| *part == Part::Flush));
    // It goes on while the disks flush.
    world.writes_in([9, 10]);
    assert_eq!(world.mirror.status().hot, 11);
    world.ends(R1, |part| *part == Part::Flush);
    world.ends(R2, |part| *part == Part::Flush);
    assert_eq!(world.settled(), [0, 1, 2, 4, 5], "a quarter more than has to, the oldest first");
    assert_eq!(world.mirror.status().hot, HOT_MAX - HOT_MAX / 4);
    world.writes_in([3, 10]);
    assert!(!world.is_asked(R1, |part| *part == Part::Flush));
}

#[test]
fn the_guests_own_flush_makes_room_as_well() {
    let mut world = World::cool(&[R1, R2], HOT_MAX);
    world.writes_in(0..8);
    world.request(Kind::Flush, 0..0);
    world.ends(R1, |part| *part == Part::Flush);
    assert!(world.settled().is_empty(), "the other has not flushed");
    world.ends(R2, |part| *part == Part::Flush);
    assert_eq!(world.settled(), [0, 1]);
}

#[test]
fn what_is_told_to_have_settled_is_not_written_to_until_all_have_heard_it() {
    let mut world = World::cool(&[R1, R2], HOT_MAX);
    world.writes_in(0..8);
    world.request(Kind::Flush, 0..0);
    world.ends(R1, |part| *part == Part::Flush);
    world.ends(R2, |part| *part == Part::Flush);
    let settled = Part::Settled(Extents::touching(&(0..EXTENT_BYTES + 1)));
    assert!(world.is_asked(R2, |part| *part == settled));
    world.write(0..4_096);
    world.ends(R1, |part| *part == settled);
    assert!(!world.is_asked(R1, |part| matches!(part, Part::Change { .. })));
    world.ends(R2, |part| *part == settled);
    assert!(world.is_asked(R1, |part| matches!(part, Part::Change { .. })));
}

#[test]
fn an_idle_guest_has_nothing_active() {
    let mut world = World::cool(&[R1, R2], HOT_MAX);
    world.writes_in(0..9);
    for _ in 0..40 {
        world.now += 1_000;
        world.tell(Event::Tick);
        [R1, R2].iter().for_each(|id| world.does(*id, &Ok(())));
    }
    assert_eq!(world.mirror.status().hot, 0);
}
