//! Comparing what the members of the set hold: by a digest of each piece, beside the guest's own requests.
//!
//! While a piece is compared nothing is written to it, as when it is copied. A guest that wants to write there does not wait for it for
//! long: then it is tried again later. A member that differs lacks the piece from then on, if that is wanted, and it is copied there.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::ops::Range;

use pollux_wire::id::ReplicaId;

use super::{Asked, Mirror, Purpose};
use crate::{
    Millis,
    conflict::overlap,
    event::Effect,
    grains::{Extents, GRAIN_BYTES},
    request::{Digest, Part, Tag},
};

/// A piece that could not be compared for so long, in milliseconds, because it is written all the time, is left out.
const BUSY_MS: Millis = 1_000;

/// What is to be compared.
#[derive(Debug)]
pub(super) struct Comparing {
    /// What is left of it.
    rest: Range<u64>,
    authority: ReplicaId,
    repair: bool,
    /// Since when its first piece waits.
    since: Millis,
    round: Option<Round>,
}

/// A piece, and what was heard of it.
#[derive(Debug)]
struct Round {
    range: Range<u64>,
    asked: BTreeSet<Tag>,
    digests: BTreeMap<ReplicaId, Digest>,
}

impl Mirror {
    /// Something else is to be compared, or nothing more.
    pub(super) fn compare(&mut self, range: Range<u64>, authority: ReplicaId, repair: bool) {
        self.stop_comparing();
        // Whole grains: what lacks is counted in them.
        let end = range.end.min(self.size).next_multiple_of(GRAIN_BYTES).min(self.size);
        let rest = range.start - range.start % GRAIN_BYTES..end;
        if !rest.is_empty() {
            self.comparing = Some(Comparing { rest, authority, repair, since: self.now, round: None });
        }
    }

    /// Nothing is compared any more. What was asked for it is not waited for.
    pub(super) fn stop_comparing(&mut self) {
        if let Some(round) = self.comparing.take().and_then(|comparing| comparing.round) {
            self.leave_piece(&round);
        }
    }

    /// A piece is being compared.
    pub(super) fn is_comparing_a_piece(&self) -> bool {
        self.comparing.as_ref().is_some_and(|comparing| comparing.round.is_some())
    }

    fn leave_piece(&mut self, round: &Round) {
        self.freed = true;
        self.ranges.leave(&round.range, false);
        for tag in &round.asked {
            if let Some(asked) = self.asked.get_mut(tag) {
                asked.purpose = Purpose::Aside;
            }
        }
    }

    /// A guest's request has waited for what is compared for too long.
    pub(super) fn give_way(&mut self, range: &Range<u64>) -> bool {
        let in_its_way = |round: &Round| overlap(&round.range, range);
        let Some(comparing) = &mut self.comparing else { return false };
        if !comparing.round.as_ref().is_some_and(in_its_way) {
            return false;
        }
        if let Some(round) = comparing.round.take() {
            self.leave_piece(&round);
        }
        true
    }

    /// Begins with the next piece, if it may be begun now.
    pub(super) fn compare_next(&mut self, fx: &mut Vec<Effect>) {
        let Some(comparing) = self.comparing.as_mut().filter(|comparing| comparing.round.is_none()) else { return };
        if self.credit == 0 || self.finishing.is_some() {
            comparing.since = self.now;
            return;
        }
        let (rest, since) = (comparing.rest.clone(), comparing.since);
        let Some(range) = self.undisturbed(&rest) else {
            if self.now.saturating_sub(since) >= BUSY_MS {
                let piece = rest.start..rest.end.min(rest.start + GRAIN_BYTES);
                self.compared(piece, Err("it was being written all the time"), fx);
            }
            return;
        };
        let members = self.sound();
        let lacks = |id: &ReplicaId| self.peers.get(id).is_some_and(|peer| peer.lacks.touches(&range));
        let lacking: Vec<ReplicaId> = members.iter().copied().filter(lacks).collect();
        if !lacking.is_empty() {
            // It is known that they differ.
            lacking.into_iter().for_each(|id| self.copy_at_once(id, &range, fx));
            return;
        }
        self.ranges.enter(&range, false);
        self.credit = self.credit.saturating_sub(range.end - range.start);
        let ask = |id| self.ask(id, Purpose::Digest, None, Part::Digest, range.clone(), fx);
        let asked = members.into_iter().map(ask).collect();
        if let Some(comparing) = &mut self.comparing {
            comparing.round = Some(Round { range, asked, digests: BTreeMap::new() });
        }
    }

    /// As much of the beginning of `rest` as nobody is writing to, at most a copy's length.
    fn undisturbed(&self, rest: &Range<u64>) -> Option<Range<u64>> {
        let mut bytes = self.limits.copy_bytes.max(GRAIN_BYTES);
        loop {
            let range = rest.start..rest.end.min(rest.start + bytes);
            if !self.ranges.conflicts(&range, false) {
                return Some(range);
            }
            if bytes <= GRAIN_BYTES {
                return None;
            }
            bytes /= 2;
        }
    }

    /// A replica has told what it holds.
    pub(super) fn digest(&mut self, tag: Tag, digest: Digest, fx: &mut Vec<Effect>) {
        let Some(Asked { replica, purpose: Purpose::Digest | Purpose::Aside, .. }) = self.asked.get(&tag).copied()
        else {
            return;
        };
        self.asked.remove(&tag);
        self.digested(replica, tag, Some(digest), fx);
    }

    /// It has, or will not.
    pub(super) fn digested(&mut self, replica: ReplicaId, tag: Tag, digest: Option<Digest>, fx: &mut Vec<Effect>) {
        let Some(round) = self.comparing.as_mut().and_then(|comparing| comparing.round.as_mut()) else { return };
        if !round.asked.remove(&tag) {
            return;
        }
        if let Some(digest) = digest {
            round.digests.insert(replica, digest);
        }
        if round.asked.is_empty()
            && let Some(round) = self.comparing.as_mut().and_then(|comparing| comparing.round.take())
        {
            self.leave_piece(&round);
            self.judge(round, fx);
        }
    }

    fn judge(&mut self, Round { range, mut digests, .. }: Round, fx: &mut Vec<Effect>) {
        // Of one that has left meanwhile nobody wants to know.
        digests.retain(|id, _| self.is_sound(*id));
        let Some((authority, repair)) = self.comparing.as_ref().map(|it| (it.authority, it.repair)) else { return };
        let counts = digests.get(&authority).or(digests.values().next()).copied();
        let Some(counts) = counts else {
            return self.compared(range, Err("no replica of the set could tell what it holds"), fx);
        };
        let differs = digests.iter().filter(|(_, digest)| **digest != counts).map(|(id, _)| *id);
        let differs: BTreeSet<ReplicaId> = differs.collect();
        // Without the one whose content counts it is not known who is wrong.
        if repair && digests.contains_key(&authority) {
            // All of them first: none that differs is what another one is copied from.
            for id in &differs {
                if let Some(peer) = self.peers.get_mut(id) {
                    peer.lacks.insert(&range);
                }
            }
            // It is active there from the first copy on, and settles when it was flushed.
            if !differs.is_empty() {
                self.heat.inherit(&Extents::touching(&range));
            }
            differs.iter().for_each(|id| self.copy_at_once(*id, &range, fx));
        }
        self.compared(range, Ok(differs), fx);
    }

    /// A piece is done with.
    fn compared(
        &mut self,
        range: Range<u64>,
        outcome: Result<BTreeSet<ReplicaId>, &'static str>,
        fx: &mut Vec<Effect>,
    ) {
        if let Some(comparing) = &mut self.comparing {
            comparing.rest.start = range.end;
            comparing.since = self.now;
            if comparing.rest.is_empty() {
                self.comparing = None;
            }
        }
        fx.push(Effect::Compared { range, outcome });
    }

    /// Another member has told what this one has not.
    pub(super) fn is_behind_with_a_digest(&self, tag: Tag) -> bool {
        let round = self.comparing.as_ref().and_then(|comparing| comparing.round.as_ref());
        round.is_some_and(|round| round.asked.contains(&tag) && !round.digests.is_empty())
    }
}
