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

/// Places that are remembered.
const PLACES_MAX: usize = 32;

/// How far it is, and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// So far all was compared, in bytes from the volume's beginning.
    pub reached: u64,
    /// It is over. When nobody goes on with it before, the volume is not in use any more, or something else is compared.
    pub over: bool,
    /// Bytes that were left out, because they were written all the time or could not be read.
    pub left_out: u64,
    /// Bytes of the pieces in which a replica held something else than the one whose content counts.
    pub differs: BTreeMap<ReplicaId, u64>,
    /// Where, in bytes: the first few.
    pub places: Vec<Range<u64>>,
}

impl VolumeHandle {
    /// Compares what the replicas of the set hold, beside the guest's requests and no faster than what is copied. `repair`: what
    /// differs is copied from `authority`. `None`: the volume is not in use any more.
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
        self.comparing = Some((end, found));
        self.apply(Event::Compare { range, authority, repair });
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
        found.send_modify(|seen| {
            (seen.reached, seen.over) = (range.end, over);
            match outcome {
                Ok(differs) => {
                    if !differs.is_empty() && seen.places.len() < PLACES_MAX {
                        seen.places.push(range.clone());
                    }
                    differs.into_iter().for_each(|replica| *seen.differs.entry(replica).or_default() += bytes);
                }
                Err(why) => {
                    tracing::info!(volume = self.name, ?range, why, "a piece was not compared");
                    seen.left_out += bytes;
                }
            }
        });
        if over {
            self.comparing = None;
        }
    }
}
