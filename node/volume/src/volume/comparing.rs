//! Comparing the replicas of the set while the volume is in use.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use pollux_mirror::Event;
use pollux_wire::id::ReplicaId;
use tokio::sync::watch;

use super::{Volume, VolumeHandle, copies, handle::Wish};
use crate::digest;

/// Places of differences that are remembered of a replica.
const PLACES_MAX: usize = 32;
/// Places that are remembered because they were left out. Of more the last one covers the rest.
const LEFT_OUT_MAX: usize = 1024;

/// How far it is, and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// So far all was compared, in bytes from the volume's beginning.
    pub reached: u64,
    /// It is over. When nobody goes on with it before, the volume is not in use any more, or something else is compared.
    pub over: bool,
    /// What was left out, in bytes, because it could not be read, or not in time. What lies between two of more than 1024 places counts
    /// as left out, too.
    pub left_out: Vec<Range<u64>>,
    /// Of each replica that held something else than the one whose content counts: what.
    pub differs: BTreeMap<ReplicaId, Difference>,
}

/// Where a replica differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Bytes of the pieces in which it does.
    pub bytes: u64,
    /// Those pieces, in bytes: the first few.
    pub places: Vec<Range<u64>>,
}

impl Comparison {
    /// Bytes that were left out.
    #[must_use]
    pub fn left_out_bytes(&self) -> u64 {
        self.left_out.iter().map(|range| range.end - range.start).sum()
    }

    /// What was found of a piece.
    fn note(&mut self, range: &Range<u64>, outcome: Result<BTreeSet<ReplicaId>, &'static str>) {
        let Ok(differs) = outcome else { return append(&mut self.left_out, range, LEFT_OUT_MAX, true) };
        for replica in differs {
            let difference = self.differs.entry(replica).or_default();
            difference.bytes += range.end - range.start;
            append(&mut difference.places, range, PLACES_MAX, false);
        }
    }

    /// What was found of another part, or of a part of it later.
    pub fn absorb(&mut self, later: Self) {
        for range in &later.left_out {
            append(&mut self.left_out, range, LEFT_OUT_MAX, true);
        }
        for (replica, found) in later.differs {
            let difference = self.differs.entry(replica).or_default();
            difference.bytes += found.bytes;
            for range in &found.places {
                append(&mut difference.places, range, PLACES_MAX, false);
            }
        }
    }
}

/// One more place. What adjoins is one. `all`: where there is no room for more, the last one covers it.
fn append(places: &mut Vec<Range<u64>>, range: &Range<u64>, most: usize, all: bool) {
    let full = places.len() >= most;
    match places.last_mut() {
        Some(last) if last.end == range.start || (full && all) => last.end = last.end.max(range.end),
        Some(_) if full => {}
        Some(_) | None => places.push(range.clone()),
    }
}

impl VolumeHandle {
    /// Compares what the replicas of the set hold, beside the guest's requests and no faster than what is copied, for as long as
    /// somebody wants to know what comes of it. `repair`: what differs is copied from `authority`. `None`: the volume is not in use
    /// any more.
    pub async fn compare(
        &self,
        range: Range<u64>,
        authority: ReplicaId,
        repair: bool,
    ) -> Option<watch::Receiver<Comparison>> {
        let (found, seen) = watch::channel(Comparison { reached: range.start, ..Comparison::default() });
        self.wishes.send(Wish::Compare { range, authority, repair, found }).await.ok()?;
        Some(seen)
    }

    /// The same to its end, and `told` of each step. What was left out is compared again, in at most so many `rounds` in all; what
    /// still was in the last one stays in the result. `None`: nobody goes on with it, for the volume is not in use any more, its guest
    /// is about to go on elsewhere, or something else is compared.
    pub async fn compare_fully(
        &self,
        range: Range<u64>,
        (authority, repair): (ReplicaId, bool),
        rounds: u32,
        mut told: impl FnMut(&Comparison),
    ) -> Option<Comparison> {
        let mut found = self.compare_once(range, authority, repair, &mut told).await?;
        for _ in 1..rounds {
            if found.left_out.is_empty() {
                break;
            }
            for range in std::mem::take(&mut found.left_out) {
                found.absorb(self.compare_once(range, authority, repair, &mut |_| ()).await?);
            }
            told(&found);
        }
        Some(found)
    }

    async fn compare_once(
        &self,
        range: Range<u64>,
        authority: ReplicaId,
        repair: bool,
        told: &mut impl FnMut(&Comparison),
    ) -> Option<Comparison> {
        let mut seen = self.compare(range, authority, repair).await?;
        loop {
            let now = seen.borrow_and_update().clone();
            told(&now);
            if now.over {
                return Some(now);
            }
            // What was told last may be that it is over.
            if seen.changed().await.is_err() && !seen.borrow().over {
                return None;
            }
        }
    }
}

impl Volume {
    pub(super) fn compare(
        &mut self,
        range: Range<u64>,
        authority: ReplicaId,
        repair: bool,
        found: watch::Sender<Comparison>,
    ) {
        let end = range.end.min(self.size);
        if range.start >= end {
            return drop(found.send_replace(Comparison { reached: end, over: true, ..Comparison::default() }));
        }
        // Nobody is asked any more: whoever waits is told by this channel's end.
        if self.over.is_some() || self.peers.rests || self.handing_over.is_some() {
            return;
        }
        self.comparing = Some((end, found));
        self.apply(Event::Compare { range, authority, repair });
        self.tick_soon();
    }

    /// Stops what nobody waits for any more.
    pub(super) fn compare_for_somebody(&mut self) {
        if self.comparing.take_if(|(_, found)| found.is_closed()).is_some() {
            tracing::debug!(volume = self.name, "nobody waits for what is compared any more");
            self.apply(Event::Compare { range: 0..0, authority: ReplicaId::default(), repair: false });
        }
    }

    /// A piece was.
    pub(super) fn compared(&mut self, range: &Range<u64>, outcome: Result<BTreeSet<ReplicaId>, &'static str>) {
        let Some((end, found)) = &self.comparing else { return };
        let over = range.end >= *end;
        let bytes = range.end - range.start;
        let digest = self.digest.take();
        // All told the same, so what was heard last is what they all hold.
        if outcome.as_ref().is_ok_and(BTreeSet::is_empty)
            && let (Ok(length), Some(digest)) = (u32::try_from(bytes), digest)
            && digest == digest::of_zeroes(length)
        {
            self.todo.push_back(Event::Credit(copies::back_for_a_hole(bytes)));
        }
        if let Err(why) = &outcome {
            tracing::debug!(volume = self.name, ?range, why, "a piece was not compared");
        }
        found.send_modify(|seen| {
            (seen.reached, seen.over) = (range.end, over);
            seen.note(range, outcome);
        });
        if over {
            self.comparing = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R1: ReplicaId = ReplicaId(1);

    #[test]
    fn what_adjoins_is_one_place_and_what_was_left_out_is_never_forgotten() {
        let mut found = Comparison::default();
        for range in [0..10, 10..20, 30..40] {
            found.note(&range, Ok([R1].into()));
            found.note(&range, Err("it could not be read"));
        }
        assert_eq!(found.differs[&R1], Difference { bytes: 30, places: vec![0..20, 30..40] });
        assert_eq!((found.left_out.clone(), found.left_out_bytes()), (vec![0..20, 30..40], 30));

        for number in 0..2_000_u64 {
            let range = 100 + number * 20..110 + number * 20;
            found.note(&range, Ok([R1].into()));
            found.note(&range, Err("it could not be read"));
        }
        assert_eq!((found.differs[&R1].bytes, found.differs[&R1].places.len()), (30 + 20_000, PLACES_MAX));
        assert_eq!(found.left_out.len(), LEFT_OUT_MAX);
        assert_eq!(found.left_out.last().map(|last| last.end), Some(100 + 1_999 * 20 + 10));
    }

    #[test]
    fn what_is_found_later_is_added() {
        let mut found = Comparison { left_out: Vec::new(), ..Comparison::default() };
        found.note(&(0..10), Ok([R1].into()));
        let mut later = Comparison::default();
        later.note(&(50..60), Ok([R1].into()));
        later.note(&(60..70), Err("no replica of the set could tell what it holds"));
        found.absorb(later);
        assert_eq!(found.differs[&R1], Difference { bytes: 20, places: vec![0..10, 50..60] });
        assert_eq!((found.left_out.len(), found.left_out_bytes(), found.left_out[0].start), (1, 10, 60));
    }
}
