//! Comparing what the members of the set hold: by a digest of each piece, beside the guest's own requests.
//!
//! While a piece is compared nothing is written to it, as when it is copied. A guest that wants to write there does not wait for it for
//! long: then half as much is tried. Where it writes all the time its writes are kept back in the end, to one grain at a time, and for a
//! moment: otherwise there would be no end. A member that differs lacks the piece from then on, if that is wanted, and it is copied
//! there.

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

/// To a grain that could not be compared for so long, in milliseconds, because it is written all the time, writes are kept back.
const BUSY_MS: Millis = 1_000;
/// Until so long after the digests were asked for, in milliseconds: no longer than a guest waits for anything else here. If that was too
/// short, the next time for twice as long.
const KEPT_BACK_MS: Millis = 20;
/// And never for longer than this in all, in milliseconds. A slow disk between two seeks, or a link around half of the world, tells 64 KiB
/// in less; a guest's file system and its users hardly notice more of their own disk, and anything longer does look like a stall.
const KEPT_BACK_MS_MAX: Millis = 8 * KEPT_BACK_MS;
/// After so many times in vain the grain is left out: one that is late now and then, as any disk is, is not so each time.
const KEPT_BACK_TIMES_MAX: u32 = 8;

/// What is to be compared.
#[derive(Debug)]
pub(super) struct Comparing {
    /// What is left of it.
    rest: Range<u64>,
    authority: ReplicaId,
    repair: bool,
    /// Since when its first piece waits; or when writes to it were kept back last.
    since: Millis,
    /// Bytes of that piece, at most.
    piece_bytes: u64,
    /// Its first grain is not to be had without keeping the guest from writing there.
    insists: bool,
    kept_back: Option<KeptBack>,
    /// For how long changes may be once the digests are asked for, and how often they were in vain.
    kept_back_ms: Millis,
    kept_back_times: u32,
    round: Option<Round>,
}

/// Where changes are kept back.
#[derive(Debug, Clone)]
struct KeptBack {
    piece: Range<u64>,
    since: Millis,
    /// When what was under way there had ended, and the digests were asked for.
    asked: Option<Millis>,
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
            self.comparing = Some(Comparing {
                rest,
                authority,
                repair,
                since: self.now,
                piece_bytes: self.piece_bytes_max(),
                insists: false,
                kept_back: None,
                kept_back_ms: KEPT_BACK_MS,
                kept_back_times: 0,
                round: None,
            });
        }
    }

    fn piece_bytes_max(&self) -> u64 {
        (self.limits.copy_bytes - self.limits.copy_bytes % GRAIN_BYTES).max(GRAIN_BYTES)
    }

    /// Nothing is compared any more. What was asked for it is not waited for.
    pub(super) fn stop_comparing(&mut self) {
        let Some(comparing) = self.comparing.take() else { return };
        self.freed = true;
        if let Some(round) = comparing.round {
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

    /// Changes are kept back there, so that it can be compared.
    pub(super) fn is_kept_back(&self, range: &Range<u64>) -> bool {
        let kept_back = self.comparing.as_ref().and_then(|comparing| comparing.kept_back.as_ref());
        kept_back.is_some_and(|kept_back| overlap(&kept_back.piece, range))
    }

    /// A guest's request has waited for what is compared for too long.
    pub(super) fn give_way(&mut self, range: &Range<u64>, fx: &mut Vec<Effect>) -> bool {
        let now = self.now;
        let Some(comparing) = &mut self.comparing else { return false };
        if let Some(KeptBack { piece, since, asked }) = comparing.kept_back.clone() {
            let late = |since: Millis, ms| now.saturating_sub(since) >= ms;
            let too_long =
                late(since, KEPT_BACK_MS_MAX) || asked.is_some_and(|asked| late(asked, comparing.kept_back_ms));
            if !overlap(&piece, range) || !too_long {
                return false;
            }
            // Where none was asked for, the guest's own requests took so long, and it is they that are waited for.
            if asked.is_some() {
                comparing.kept_back_ms = (comparing.kept_back_ms * 2).min(KEPT_BACK_MS_MAX);
            }
            comparing.kept_back_times += 1;
            let in_vain = comparing.kept_back_times >= KEPT_BACK_TIMES_MAX;
            (comparing.kept_back, comparing.since) = (None, now);
            self.leave_round();
            if in_vain {
                let why = match asked {
                    Some(_) => "a replica did not tell in time what it holds there",
                    None => "what the guest asks for there took too long to be waited for",
                };
                self.compared(piece, Err(why), fx);
            }
            return true;
        }
        let Some(round) = comparing.round.as_ref().filter(|round| overlap(&round.range, range)) else { return false };
        let bytes = round.range.end - round.range.start;
        comparing.insists |= bytes <= GRAIN_BYTES;
        comparing.piece_bytes = (bytes / 2).next_multiple_of(GRAIN_BYTES);
        self.leave_round();
        true
    }

    /// Whatever is being compared is begun anew, if it still is to be.
    fn leave_round(&mut self) {
        self.freed = true;
        if let Some(round) = self.comparing.as_mut().and_then(|comparing| comparing.round.take()) {
            self.leave_piece(&round);
        }
    }

    /// Nobody is kept from writing any more.
    fn keep_nothing_back(&mut self) {
        if let Some(comparing) = &mut self.comparing {
            self.freed |= comparing.kept_back.take().is_some();
        }
    }

    /// Begins with the next piece, if it may be begun now.
    pub(super) fn compare_next(&mut self, fx: &mut Vec<Effect>) {
        let Some(comparing) = self.comparing.as_mut().filter(|comparing| comparing.round.is_none()) else { return };
        if self.credit <= 0 || self.finishing.is_some() {
            comparing.since = self.now;
            // Nobody waits for a moment that may be long in coming.
            return self.keep_nothing_back();
        }
        comparing.insists |= self.now.saturating_sub(comparing.since) >= BUSY_MS;
        let first = comparing.rest.start..comparing.rest.end.min(comparing.rest.start + GRAIN_BYTES);
        // What is under way there ends, and then nothing is. Between two times all that waited has its turn, for as long.
        let may = comparing.kept_back.is_none() && self.now.saturating_sub(comparing.since) >= comparing.kept_back_ms;
        if comparing.insists && may {
            comparing.kept_back = Some(KeptBack { piece: first.clone(), since: self.now, asked: None });
        }
        let (rest, bytes) =
            if comparing.insists { (first, GRAIN_BYTES) } else { (comparing.rest.clone(), comparing.piece_bytes) };
        let Some(range) = self.undisturbed(&rest, bytes) else { return };
        let members = self.sound();
        let lacks = |id: &ReplicaId| self.peers.get(id).is_some_and(|peer| peer.lacks.touches(&range));
        let lacking: Vec<ReplicaId> = members.iter().copied().filter(lacks).collect();
        if !lacking.is_empty() {
            // It is known that they differ.
            lacking.into_iter().for_each(|id| self.copy_at_once(id, &range, fx));
            return self.keep_nothing_back();
        }
        self.ranges.enter(&range, false);
        self.pay(range.end - range.start);
        let ask = |id| self.ask(id, Purpose::Digest, None, Part::Digest, range.clone(), fx);
        let asked = members.into_iter().map(ask).collect();
        if let Some(comparing) = &mut self.comparing {
            comparing.round = Some(Round { range, asked, digests: BTreeMap::new() });
            if let Some(kept_back) = &mut comparing.kept_back {
                kept_back.asked = Some(self.now);
            }
        }
    }

    /// As much of the beginning of `rest` as nobody is writing to, at most so much, in whole grains.
    fn undisturbed(&self, rest: &Range<u64>, mut bytes: u64) -> Option<Range<u64>> {
        loop {
            let range = rest.start..rest.end.min(rest.start + bytes);
            if !self.ranges.conflicts(&range, false) {
                return Some(range);
            }
            if bytes <= GRAIN_BYTES {
                return None;
            }
            bytes = (bytes / 2).next_multiple_of(GRAIN_BYTES);
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
        self.keep_nothing_back();
        let most = self.piece_bytes_max();
        if let Some(comparing) = &mut self.comparing {
            comparing.rest.start = range.end;
            comparing.since = self.now;
            (comparing.insists, comparing.kept_back_ms, comparing.kept_back_times) = (false, KEPT_BACK_MS, 0);
            comparing.piece_bytes = (comparing.piece_bytes * 2).min(most);
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
