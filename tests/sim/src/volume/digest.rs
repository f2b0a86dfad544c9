//! Members are compared; in the end one has something that nobody wrote, which is to be found and repaired.

use std::collections::BTreeSet;

use pollux_mirror::{Digest, EXTENT_BYTES, Event};
use pollux_wire::id::ReplicaId;

use super::{
    EXTENTS, UNIT_BYTES,
    oracle::Stamp,
    world::{World, store_of},
};

/// A unit that holds what nobody wrote.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotten {
    replica: ReplicaId,
    unit: u64,
    /// It was told.
    found: bool,
    /// All was compared.
    over: bool,
}

/// Of units.
pub(super) fn of(data: &[(u64, Stamp)]) -> Digest {
    let mut digest = [0; 32];
    for (number, (_, stamp)) in data.iter().enumerate() {
        let mixed = stamp
            .wrapping_add(1)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(7 + u32::try_from(number % 50).expect("small"));
        for (place, byte) in mixed.to_le_bytes().iter().enumerate() {
            let at = (number * 8 + place) % digest.len();
            digest[at] = u8::wrapping_add(digest[at], *byte);
        }
    }
    Digest(digest)
}

impl World {
    /// Now and then all is compared.
    pub(super) fn scrub(&mut self) {
        if self.calm || !self.rng.chance(20) {
            return;
        }
        let members: Vec<ReplicaId> = self.log.members.iter().copied().collect();
        let authority = self.rng.pick(&members);
        let start = self.rng.below(self.size);
        self.apply(Event::Compare { range: start..self.size, authority, repair: true });
    }

    /// Members of which nothing is wrong hold the same, whenever they are looked at.
    pub(super) fn compared(&mut self, end: u64, outcome: &Result<BTreeSet<ReplicaId>, &'static str>) {
        self.reached = end;
        let differs = match outcome {
            Ok(differs) => differs,
            Err(why) if self.hot.is_some() => {
                self.violation =
                    Some(format!("what is before {end} was not compared beside a guest that writes: {why}"));
                return;
            }
            Err(_) => return,
        };
        self.compared += 1;
        match &mut self.rotten {
            None if differs.is_empty() => {}
            Some(rotten) if differs.is_empty() || *differs == [rotten.replica].into() => {
                rotten.found |= !differs.is_empty();
                rotten.over |= end == self.size;
            }
            None | Some(_) => self.violation = Some(format!("{differs:?} differ before {end} when compared")),
        }
    }

    /// The guest does nothing any more but write to one place, always with more to come, and the extent of that is compared.
    pub(super) fn writes_for_good(&mut self) {
        let start = self.rng.below(EXTENTS) * EXTENT_BYTES;
        let first = start + self.rng.below(6) * UNIT_BYTES;
        self.hot = Some(first..first + self.rng.between(1, 4) * UNIT_BYTES);
        self.reached = start;
        let authority = *self.log.members.first().expect("the set is never empty");
        let range = start..(start + EXTENT_BYTES).min(self.size);
        self.apply(Event::Compare { range, authority, repair: true });
    }

    /// What is not compared yet beside that guest.
    pub(super) fn is_comparing(&self) -> Option<String> {
        let end = self.hot.as_ref().map_or(0, |hot| (hot.start / EXTENT_BYTES + 1) * EXTENT_BYTES).min(self.size);
        (self.reached < end)
            .then(|| format!("compared up to {} of {end} beside a guest that never stops", self.reached))
    }

    /// It does.
    pub(super) fn stops_writing(&mut self) {
        self.hot = None;
    }

    /// The guest asks for nothing more.
    pub(super) fn pause_for_good(&mut self) {
        if let Some(host) = &mut self.host {
            host.paused = true;
        }
    }

    /// It has a replica on which something rots.
    pub(super) fn rots(&mut self) {
        let members: Vec<ReplicaId> = self.log.members.iter().copied().collect();
        let (authority, replica) = (members[0], members[1 + self.rng.index(members.len() - 1)]);
        let unit = self.rng.below(self.size / UNIT_BYTES);
        self.trace.line(self.now, format_args!("unit {unit} of {replica} rots"));
        self.stores[store_of(replica)].rots(unit, Stamp::MAX);
        self.rotten = Some(Rotten { replica, unit, found: false, over: false });
        self.apply(Event::Compare { range: 0..self.size, authority, repair: true });
    }

    /// Why it is not repaired yet.
    pub(super) fn is_rotten(&self) -> Option<String> {
        let Rotten { replica, unit, found, over } = self.rotten?;
        let repaired = self.stores[store_of(replica)].get(unit) != Stamp::MAX;
        (!found || !over || !repaired)
            .then(|| format!("unit {unit} of {replica} is rotten; found: {found}, over: {over}, repaired: {repaired}"))
    }
}
