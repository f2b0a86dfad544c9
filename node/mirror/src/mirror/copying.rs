//! Copying what a replica lacks from one that has it, beside the guest's own requests.
//!
//! While a range is copied nothing is written to it: the write waits, as for any other conflict. So what is copied is what is
//! there, and when it has arrived, and the members have noted so, nothing lacks there.

use alloc::{collections::BTreeSet, vec::Vec};
use core::ops::Range;

use pollux_wire::id::ReplicaId;

use super::{Mirror, Purpose, standing::Standing};
use crate::{
    conflict::overlap,
    event::Effect,
    grains::Extents,
    request::{Part, Tag},
};

/// Runs looked at before the search for one that can be copied now is put off to the next event.
const LOOKS_MAX: usize = 16;

/// A copy under way.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) to: ReplicaId,
    range: Range<u64>,
    step: Step,
    /// Whom it was for does not listen any more; its range is free when the members have noted what they were asked to.
    void: bool,
}

#[derive(Debug)]
enum Step {
    Reading(Tag),
    Writing(Tag),
    Noting(BTreeSet<Tag>),
}

impl Copy {
    /// It writes there, on that replica.
    pub(super) fn touches(&self, to: ReplicaId, range: &Range<u64>) -> bool {
        self.to == to && overlap(&self.range, range)
    }
}

impl Mirror {
    /// As many as may be, of what may be copied now.
    pub(super) fn start_copies(&mut self, fx: &mut Vec<Effect>) {
        let lacking: Vec<ReplicaId> = self
            .peers
            .iter()
            .filter(|(_, peer)| copies_to(&peer.standing) && !peer.lacks.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for to in lacking {
            let mut from = 0;
            for _ in 0..LOOKS_MAX {
                if self.credit <= 0 || self.copies.len() >= self.limits.copies_max {
                    return;
                }
                let Some(run) = self.lacking(to, from).filter(|run| run.end > from) else { break };
                from = run.end;
                if self.copy(to, &run, fx) {
                    self.pay(run.end - run.start);
                }
            }
        }
    }

    /// What lacks of `range` on a member, before anybody reads or writes there: whatever else is under way, and without credit.
    pub(super) fn copy_at_once(&mut self, to: ReplicaId, range: &Range<u64>, fx: &mut Vec<Effect>) {
        let mut from = range.start;
        while let Some(run) = self.lacking(to, from).filter(|run| run.start < range.end && from < range.end) {
            from = run.end;
            self.copy(to, &run, fx);
        }
    }

    fn lacking(&self, to: ReplicaId, from: u64) -> Option<Range<u64>> {
        let run = self.peers.get(&to)?.lacks.run(from, self.limits.copy_bytes)?;
        Some(run.start..run.end.min(self.size))
    }

    /// Begins to copy a range, unless it is being copied, or written, or nobody has it.
    fn copy(&mut self, to: ReplicaId, range: &Range<u64>, fx: &mut Vec<Effect>) -> bool {
        let late = |(id, straggling): &(ReplicaId, Range<u64>)| *id == to && overlap(straggling, range);
        if range.is_empty() || self.stragglers.values().any(late) {
            return false;
        }
        if self.copies.values().any(|copy| copy.touches(to, range)) || self.ranges.conflicts(range, false) {
            return false;
        }
        let has = |id: &ReplicaId| *id != to && self.peers.get(id).is_some_and(|peer| !peer.lacks.touches(range));
        let Some(source) = self.sound().into_iter().find(has) else { return false };
        self.ranges.enter(range, false);
        self.last_copy += 1;
        let number = self.last_copy;
        let tag = self.ask(source, Purpose::Copy(number), None, Part::Read, range.clone(), fx);
        self.copies.insert(number, Copy { to, range: range.clone(), step: Step::Reading(tag), void: false });
        true
    }

    /// A step of a copy has ended.
    pub(super) fn copy_goes_on(&mut self, number: u64, tag: Tag, ok: bool, fx: &mut Vec<Effect>) {
        let Some(copy) = self.copies.get_mut(&number) else { return };
        let (to, range) = (copy.to, copy.range.clone());
        let next = match &mut copy.step {
            Step::Reading(read) if *read == tag && ok => {
                let read = *read;
                Step::Writing(self.ask(to, Purpose::Copy(number), None, Part::Copy { read }, range, fx))
            }
            Step::Writing(written) if *written == tag && ok => {
                let noters = match self.peers.get(&to).map(|peer| &peer.standing) {
                    // Nobody has noted what a member lacks: its extents are active.
                    Some(Standing::Member) | None => Vec::new(),
                    Some(_) => self.sound(),
                };
                let ask = |id| self.ask(id, Purpose::Copy(number), None, Part::Regained(to), range.clone(), fx);
                Step::Noting(noters.into_iter().map(ask).collect())
            }
            // One that could not note it fails for that, and leaves.
            Step::Noting(tags) => {
                tags.remove(&tag);
                Step::Noting(core::mem::take(tags))
            }
            Step::Reading(_) | Step::Writing(_) => {
                self.end_copy(number);
                return;
            }
        };
        let noted = matches!(&next, Step::Noting(tags) if tags.is_empty());
        if let Some(copy) = self.copies.get_mut(&number) {
            copy.step = next;
        }
        if noted {
            let void = self.copies.get(&number).is_some_and(|copy| copy.void);
            let range = self.end_copy(number).filter(|_| !void);
            if let (Some(range), Some(peer)) = (range, self.peers.get_mut(&to)) {
                peer.lacks.remove(&range);
                peer.copied.union(&Extents::touching(&range));
                peer.unflushed.union(&Extents::touching(&range));
                // What was copied within the set has to be on stable storage before the extent settles.
                if peer.standing != Standing::Catching {
                    self.heat.changed(&range);
                }
            }
        }
    }

    fn end_copy(&mut self, number: u64) -> Option<Range<u64>> {
        let copy = self.copies.remove(&number)?;
        self.freed = true;
        self.ranges.leave(&copy.range, false);
        Some(copy.range)
    }

    /// All that go to a replica.
    pub(super) fn end_copies(&mut self, to: ReplicaId) {
        let its = self.copies.iter().filter(|(_, copy)| copy.to == to);
        let numbers: Vec<u64> = its.map(|(number, _)| *number).collect();
        for number in numbers {
            match self.copies.get_mut(&number) {
                Some(copy) if matches!(&copy.step, Step::Noting(tags) if !tags.is_empty()) => copy.void = true,
                Some(_) | None => {
                    self.end_copy(number);
                }
            }
        }
    }
}

fn copies_to(standing: &Standing) -> bool {
    matches!(standing, Standing::Catching | Standing::Member | Standing::Joining(_))
}
