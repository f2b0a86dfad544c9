//! Requests of the guest's device: from asking to the answer, and to the end of everything that was asked for them.

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec::Vec,
};
use core::ops::Range;

use pollux_wire::id::ReplicaId;

use super::{
    Mirror, OwnFlush, Purpose,
    standing::{Peer, Standing, Step},
};
use crate::{
    Millis,
    conflict::{Spans, overlap},
    event::Effect,
    grains::Extents,
    request::{Answer, Failure, Kind, Part, Request, RequestId, Tag},
};

/// An extent is cold again when nothing was written anywhere for so long, in milliseconds, so that an idle guest's crash costs
/// no copying.
const IDLE_MS: Millis = 10_000;
/// A request waits no longer than this, in milliseconds, for a replica outside of the set.
const STALL_MS: Millis = 20;
/// A flush to make room is not repeated within this, in milliseconds.
pub(super) const FLUSH_AGAIN_MS: Millis = 20;

/// A request that has begun.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) request: Request,
    pub(super) answer: Option<Answer>,
    since: Millis,
    parts: BTreeMap<ReplicaId, State>,
    /// Whom it concerns: the set when it began, and whoever was asked. One that joins later has what it needs by its joining.
    concerns: BTreeSet<ReplicaId>,
    /// Of a flush: the changes that had ended when it began.
    covers: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Asked,
    Done,
    Failed(Failure),
}

impl InFlight {
    /// One of these has not told yet how it ended there.
    pub(super) fn is_asked_of(&self, replicas: &BTreeSet<ReplicaId>) -> bool {
        self.parts.iter().any(|(id, state)| *state == State::Asked && replicas.contains(id))
    }
}

impl Mirror {
    pub(super) fn request(&mut self, request: Request, fx: &mut Vec<Effect>) {
        if request.range.end > self.size || request.range.start > request.range.end {
            let answer = Err(Failure::Io("there is no such place in the volume".into()));
            fx.push(Effect::Answer { request: request.id, answer });
            return;
        }
        self.waiting.push_back((request, self.now));
    }

    /// Begins whatever has to wait for nothing that is under way, or came before it. All that wait are looked at when something
    /// has ended; otherwise what has just come.
    pub(super) fn admit(&mut self, fx: &mut Vec<Effect>) {
        let looked_at = if core::mem::take(&mut self.freed) { 0 } else { core::mem::take(&mut self.looked_at) };
        let (mut changing, mut reading) = (Spans::default(), Spans::default());
        if looked_at < self.waiting.len() {
            for (request, _) in self.waiting.iter().take(looked_at) {
                let spans = if request.kind.changes() { &mut changing } else { &mut reading };
                spans.insert(&request.range);
            }
        }
        let mut later = VecDeque::new();
        for (request, since) in self.waiting.split_off(looked_at.min(self.waiting.len())) {
            let (range, changes) = (request.range.clone(), request.kind.changes());
            let overtakes = changing.touches(&range) || (changes && reading.touches(&range));
            let mut conflicts = self.is_in_the_way(&range, changes);
            if conflicts
                && self.now.saturating_sub(since) >= STALL_MS
                && (self.give_way(&range, fx) | self.let_straggle(&range, fx))
            {
                conflicts = self.is_in_the_way(&range, changes);
            }
            let free = !overtakes && !conflicts;
            if free && self.is_equal(&range, fx) && (!changes || self.has_room(&range, fx)) {
                self.begin(request, since, fx);
            } else {
                let spans = if changes { &mut changing } else { &mut reading };
                spans.insert(&range);
                later.push_back((request, since));
            }
        }
        self.waiting.append(&mut later);
        self.looked_at = self.waiting.len();
    }

    /// Something is under way that a request has to wait for, or will be in a moment.
    fn is_in_the_way(&self, range: &Range<u64>, changes: bool) -> bool {
        self.ranges.conflicts(range, changes) || (changes && self.is_kept_back(range))
    }

    /// Changes that were answered and wait only for replicas outside of the set are not waited for any more: the place lacks there
    /// from now on. Whether there were any.
    fn let_straggle(&mut self, range: &Range<u64>, fx: &mut Vec<Effect>) -> bool {
        if !self.peers.values().any(|peer| peer.standing == Standing::Catching) {
            return false;
        }
        let needed = self.needed();
        let only_outside = |open: &InFlight| {
            let mut asked = open.parts.iter().filter(|(_, state)| **state == State::Asked);
            open.request.kind.changes() && open.answer == Some(Ok(())) && asked.all(|(id, _)| !needed.contains(id))
        };
        let late = self.in_flight.iter().filter(|(_, open)| overlap(&open.request.range, range) && only_outside(open));
        let late: Vec<RequestId> = late.map(|(id, _)| *id).collect();
        for id in &late {
            let tags = self.asked.iter().filter(|(_, asked)| asked.purpose == Purpose::Request(*id));
            let tags: Vec<(Tag, ReplicaId)> = tags.map(|(tag, asked)| (*tag, asked.replica)).collect();
            let Some(open) = self.in_flight.get(id) else { continue };
            for (tag, replica) in tags {
                self.stragglers.insert(tag, (replica, open.request.range.clone()));
                if let Some(peer) = self.peers.get_mut(&replica) {
                    peer.lacks.insert(&open.request.range);
                }
            }
            // What it was answered stands; it has ended everywhere else.
            self.end(*id, fx);
        }
        !late.is_empty()
    }

    /// Nobody in the set lacks anything there; otherwise it is copied now.
    fn is_equal(&mut self, range: &Range<u64>, fx: &mut Vec<Effect>) -> bool {
        // One that is to leave may still stand for the volume, until the log has said that it does not.
        let differs = |id: &ReplicaId| {
            let failing = |peer: &&Peer| matches!(peer.standing, Standing::Failing { .. });
            self.peers.get(id).filter(failing).is_some_and(|peer| peer.lacks.touches(range))
        };
        if self.members.iter().any(differs) {
            return false;
        }
        let lacks = |id: &ReplicaId| self.peers.get(id).is_some_and(|peer| peer.lacks.touches(range));
        let unequal: Vec<ReplicaId> = self.sound().into_iter().filter(lacks).collect();
        unequal.iter().for_each(|id| self.copy_at_once(*id, range, fx));
        unequal.is_empty()
    }

    /// There is room for the extents that the change would make active; otherwise some have to settle first.
    fn has_room(&mut self, range: &Range<u64>, fx: &mut Vec<Effect>) -> bool {
        if self.marks_move(range) {
            return false;
        }
        let cold = self.heat.cold(range);
        let hot = self.heat.len() + cold;
        if cold == 0 || hot <= self.limits.hot_max {
            return true;
        }
        let keep = self.keep();
        if self.flush_may_settle(FLUSH_AGAIN_MS, keep) {
            self.own_flush(keep, fx);
        }
        // Twice as many while that is under way; and what does not settle at all stays beyond the limit rather than stop the guest.
        hot <= 2 * self.limits.hot_max || self.flush.is_none()
    }

    /// A replica is being told what is not active any more, and what is to become active could be meant.
    fn marks_move(&self, range: &Range<u64>) -> bool {
        let settles = |extents: &Extents| Extents::numbers(range).any(|extent| extents.contains(extent));
        let unknown = |hot: &Extents| Extents::numbers(range).any(|extent| !hot.contains(extent));
        self.settling.values().any(settles) || self.welcomes.values().any(unknown)
    }

    fn begin(&mut self, request: Request, since: Millis, fx: &mut Vec<Effect>) {
        let id = request.id;
        let (kind, range) = (request.kind, request.range.clone());
        self.ranges.enter(&range, kind.changes());
        let mut open = InFlight {
            request,
            answer: None,
            since,
            parts: BTreeMap::new(),
            covers: self.heat.now(),
            concerns: if kind == Kind::Read { BTreeSet::new() } else { self.needed() },
        };
        match kind {
            Kind::Read => {
                self.in_flight.insert(id, open);
                self.touched.push(id);
                return;
            }
            Kind::Change { change, durable } => {
                self.heat.begin(&range);
                let mut asked = Vec::new();
                for (replica, peer) in &mut self.peers {
                    if peer.listens() && !peer.lacks.touches(&range) {
                        asked.push(*replica);
                    } else {
                        peer.lacks.insert(&range);
                    }
                }
                for replica in asked {
                    let part = Part::Change { change, durable };
                    self.ask(replica, Purpose::Request(id), Some(id), part, range.clone(), fx);
                    open.parts.insert(replica, State::Asked);
                    open.concerns.insert(replica);
                }
            }
            // Whom it would reach has nothing to put on stable storage.
            Kind::Flush if self.is_flushed() => open.concerns.clear(),
            Kind::Flush => {
                for replica in self.flushing() {
                    self.ask(replica, Purpose::Request(id), Some(id), Part::Flush, 0..0, fx);
                    open.parts.insert(replica, State::Asked);
                }
            }
        }
        self.in_flight.insert(id, open);
        self.touched.push(id);
    }

    /// What a replica was asked for a request has ended there.
    pub(super) fn part_ended(&mut self, id: RequestId, replica: ReplicaId, outcome: Result<(), Failure>) {
        let Some(open) = self.in_flight.get_mut(&id) else { return };
        if outcome.is_err()
            && open.request.kind.changes()
            && let Some(peer) = self.peers.get_mut(&replica)
            && peer.standing != Standing::Member
        {
            peer.lacks.insert(&open.request.range);
        }
        if outcome.is_ok()
            && open.request.kind.changes()
            && let Some(peer) = self.peers.get_mut(&replica)
            && peer.standing == Standing::Catching
        {
            peer.unflushed.union(&Extents::touching(&open.request.range));
        }
        open.parts.insert(replica, outcome.map_or_else(State::Failed, |()| State::Done));
        self.touched.push(id);
    }

    /// What a replica has done of changes under way it has done in vain. `false`: the guest was told so of one.
    pub(super) fn unsay(&mut self, replica: ReplicaId) -> bool {
        let mut in_time = true;
        for (id, open) in &mut self.in_flight {
            if open.request.kind.changes() && open.parts.get(&replica) == Some(&State::Done) {
                in_time &= open.answer != Some(Ok(()));
                open.parts.insert(replica, State::Failed(Failure::Io("its host was started anew".into())));
                self.touched.push(*id);
            }
        }
        in_time
    }

    /// Answers what can be answered, and ends what has ended.
    pub(super) fn review(&mut self, fx: &mut Vec<Effect>) {
        let mut touched = core::mem::take(&mut self.touched);
        if core::mem::take(&mut self.review_all) {
            touched = self.in_flight.keys().copied().collect();
        }
        for id in touched {
            let Some(open) = self.in_flight.get(&id) else { continue };
            if open.answer.is_none() {
                let answer = if open.request.kind == Kind::Read { self.read_goes_on(id, fx) } else { self.verdict(id) };
                if let Some(answer) = answer {
                    self.answer(id, answer, fx);
                }
            }
            let Some(open) = self.in_flight.get(&id) else { continue };
            if open.answer.is_some() && !open.parts.values().any(|state| *state == State::Asked) {
                self.end(id, fx);
            }
        }
    }

    /// What is to be told of a change or a flush, once it is known (DESIGN, rule 12).
    fn verdict(&self, id: RequestId) -> Option<Answer> {
        let open = self.in_flight.get(&id)?;
        let needed = self.needed();
        let mut needed = open.concerns.intersection(&needed);
        let state = |id: &ReplicaId| open.parts.get(id);
        if needed.clone().all(|id| state(id) == Some(&State::Done)) {
            // Who is missing what, if anybody is, has to be known on stable storage first.
            return (self.notes.is_empty() && self.notes_again.is_empty()).then_some(Ok(()));
        }
        let hopeless = |id: &ReplicaId| !matches!(state(id), Some(State::Asked | State::Done));
        // One that has failed and stays: there is nobody to go on without it.
        let stays = |id: &ReplicaId| matches!(state(id), Some(State::Failed(_))) && self.is_sound(*id);
        let under_way = needed.clone().any(|id| state(id) == Some(&State::Asked));
        if !needed.clone().all(hopeless) && (under_way || !needed.clone().any(stays)) {
            return None;
        }
        let why = needed.find_map(|id| match state(id) {
            Some(State::Failed(failure)) => Some(failure.clone()),
            _ => None,
        });
        Some(Err(why.unwrap_or_else(|| Failure::Io("no replica of the volume can be reached".into()))))
    }

    /// Reads where it has not been tried, until it was read.
    fn read_goes_on(&mut self, id: RequestId, fx: &mut Vec<Effect>) -> Option<Answer> {
        let open = self.in_flight.get(&id)?;
        if open.parts.values().any(|state| *state == State::Done) {
            return Some(Ok(()));
        }
        if open.parts.values().any(|state| *state == State::Asked) {
            return None;
        }
        let range = open.request.range.clone();
        let untried = |id: &ReplicaId| !open.parts.contains_key(id);
        let Some(next) = self.sound().into_iter().find(untried) else {
            let failures = open.parts.values().find_map(|state| match state {
                State::Failed(failure) => Some(failure.clone()),
                State::Asked | State::Done => None,
            });
            return Some(Err(failures.unwrap_or_else(|| Failure::Io("no replica can be read".into()))));
        };
        self.ask(next, Purpose::Request(id), Some(id), Part::Read, range, fx);
        if let Some(open) = self.in_flight.get_mut(&id) {
            open.parts.insert(next, State::Asked);
        }
        None
    }

    fn answer(&mut self, id: RequestId, answer: Answer, fx: &mut Vec<Effect>) {
        let needed = self.needed();
        let Some(open) = self.in_flight.get_mut(&id) else { return };
        let all_asked = needed.is_subset(&open.concerns);
        if answer.is_ok() && open.request.kind != Kind::Read {
            let has =
                |member: &ReplicaId| !open.concerns.contains(member) || open.parts.get(member) == Some(&State::Done);
            assert!(
                self.members.iter().all(has),
                "{id:?} is acknowledged, and one of the set does not have it (rule 12)"
            );
        }
        let covers = (answer.is_ok() && open.request.kind == Kind::Flush && all_asked).then_some(open.covers);
        open.answer = Some(answer.clone());
        fx.push(Effect::Answer { request: id, answer });
        if let Some(covers) = covers {
            self.is_stable(covers);
            // The guest's own flush makes room as well as the mirror's.
            let keep = self.keep();
            if self.heat.len() > keep && self.may_tell_settled() {
                self.settle(covers, keep, fx);
            }
        }
    }

    /// Nothing is under way for it any more.
    fn end(&mut self, id: RequestId, fx: &mut Vec<Effect>) {
        let Some(open) = self.in_flight.remove(&id) else { return };
        let changes = open.request.kind.changes();
        self.freed = true;
        self.ranges.leave(&open.request.range, changes);
        if changes {
            if open.answer != Some(Ok(())) {
                self.differs(&open, fx);
            }
            self.heat.end(&open.request.range);
            self.changed_at = self.now;
        }
    }

    /// A change that failed is on some replicas and not on others, or half. One of them counts, one that has all of it if there is
    /// any, and the others lack the place: it is copied before anybody reads there, so that what is seen once stays seen.
    fn differs(&mut self, open: &InFlight, fx: &mut Vec<Effect>) {
        let range = &open.request.range;
        let whole = |id: &ReplicaId| self.peers.get(id).is_some_and(|peer| !peer.lacks.touches(range));
        let done = |id: &ReplicaId| open.parts.get(id) == Some(&State::Done);
        let candidates: Vec<ReplicaId> = self.sound().into_iter().filter(whole).collect();
        let counts = candidates.iter().find(|id| done(id)).or(candidates.first()).copied();
        let same = |id: &ReplicaId| Some(*id) == counts || (counts.is_some_and(|it| done(&it)) && done(id));
        let mut too_late = Vec::new();
        for (id, peer) in &mut self.peers {
            if peer.listens() && !same(id) {
                peer.lacks.insert(range);
                match peer.standing {
                    Standing::Joining(Step::Draining(_) | Step::Flushing(_)) => peer.standing = Standing::Catching,
                    // The log may take it in any moment.
                    Standing::Joining(Step::Proposed) => too_late.push(*id),
                    Standing::Member
                    | Standing::Failing { .. }
                    | Standing::Out
                    | Standing::Noting { .. }
                    | Standing::Catching => {}
                }
            }
        }
        for id in too_late {
            self.failed(id, &Failure::Io("a write failed while it was being taken in".into()), fx);
        }
    }

    /// Extents in which a member lacks something.
    fn unequal(&self, extent: u32) -> bool {
        let range = Extents::range_of(extent);
        let lacks = |peer: &Peer| {
            let counts = matches!(peer.standing, Standing::Member | Standing::Joining(_));
            counts && !peer.lacks.is_empty() && peer.lacks.touches(&range)
        };
        self.peers.values().any(lacks)
    }

    /// Those that are asked for a flush: whose word is needed, but for those that have failed.
    fn flushing(&self) -> BTreeSet<ReplicaId> {
        let asks = |peer: &Peer| matches!(peer.standing, Standing::Member | Standing::Joining(_));
        self.peers.iter().filter(|(_, peer)| asks(peer)).map(|(id, _)| *id).collect()
    }

    /// A flush that began at `covers` has reached every replica of the set.
    fn is_stable(&mut self, covers: u64) {
        self.stable = self.stable.max(covers);
        self.flushed = true;
    }

    /// Nothing has changed since the last flush that reached every replica of the set began, and nothing is about to.
    fn is_flushed(&self) -> bool {
        let changes = self.in_flight.values().any(|open| open.request.kind.changes());
        let lacks = self.peers.iter().any(|(id, peer)| self.members.contains(id) && !peer.lacks.is_empty());
        self.flushed && self.stable == self.heat.now() && !changes && !lacks && self.copies.is_empty()
    }

    pub(super) fn own_flush(&mut self, keep: usize, fx: &mut Vec<Effect>) {
        self.flushed_at = Some(self.now);
        let covers = self.heat.now();
        let asked = self.flushing();
        let ask = |id: &ReplicaId| self.ask(*id, Purpose::OwnFlush, None, Part::Flush, 0..0, fx);
        let waits = asked.iter().map(ask).collect();
        self.flush = Some(OwnFlush { covers, keep, asked, waits });
    }

    pub(super) fn own_flush_ended(&mut self, tag: Tag, ok: bool, fx: &mut Vec<Effect>) {
        let Some(flush) = &mut self.flush else { return };
        if !flush.waits.remove(&tag) || (ok && !flush.waits.is_empty()) {
            return;
        }
        let Some(OwnFlush { covers, keep, asked, .. }) = self.flush.take() else { return };
        self.freed = true;
        self.flush_failed = !ok;
        if !ok {
            return;
        }
        // Whoever is in the set, or perhaps, has been reached: one that fails may not have what was flushed elsewhere.
        if !self.may_tell_settled() || !self.needed().is_subset(&asked) {
            return;
        }
        self.flush_covered = Some((covers, keep));
        self.is_stable(covers);
        self.settle(covers, keep, fx);
    }

    /// How many extents stay hot when there are too many. If all settled, a guest that writes in many places would have to wait
    /// for each of them to be marked again.
    fn keep(&self) -> usize {
        self.limits.hot_max - self.limits.hot_max / 4
    }

    fn may_tell_settled(&self) -> bool {
        // What a replica that joins is told to be hot must not settle on its way there. What is noted of those outside has what was
        // written meanwhile only by its being active.
        self.welcomes.is_empty() && self.welcome_again.is_empty() && self.cataloguing.is_empty()
    }

    /// What changed before `covers` is on stable storage on every replica of the set.
    fn settle(&mut self, covers: u64, keep: usize, fx: &mut Vec<Effect>) {
        let settled = self.heat.settling(covers, keep, |extent| self.unequal(extent));
        if settled.is_empty() {
            return;
        }
        self.heat.settle(&settled);
        for member in self.sound() {
            let tag = self.ask(member, Purpose::Settling, None, Part::Settled(settled.clone()), 0..0, fx);
            self.settling.insert(tag, settled.clone());
        }
    }

    pub(super) fn tick(&mut self, fx: &mut Vec<Effect>) {
        // One at a time, for what another one has not done may be the fault of the first.
        if let Some((replica, waited)) = self.laggard() {
            self.failed(replica, &Failure::Silent(waited), fx);
        }
        let held = |since: Millis| self.now.saturating_sub(since) >= self.limits.hold_ms;
        let open = self.in_flight.iter().filter(|(_, open)| open.answer.is_none() && held(open.since));
        let late: Vec<RequestId> = open.map(|(id, _)| *id).collect();
        for id in late {
            self.answer(id, Err(Failure::Silent(self.limits.hold_ms)), fx);
            self.touched.push(id);
        }
        let hold_ms = self.limits.hold_ms;
        self.waiting.retain(|(request, since)| {
            let late = self.now.saturating_sub(*since) >= hold_ms;
            if late {
                fx.push(Effect::Answer { request: request.id, answer: Err(Failure::Silent(hold_ms)) });
            }
            !late
        });
        self.looked_at = 0;
        self.note_again(fx);
        self.welcome_those_again(fx);
        self.checkpoint(fx);
        self.freed = true;
        let idle = self.now.saturating_sub(self.changed_at) >= IDLE_MS;
        if idle && self.heat.len() > 0 && self.flush_may_settle(IDLE_MS, 0) {
            self.own_flush(0, fx);
        }
    }

    /// None is under way, and the last that reached everybody did not do as much, or that was a while ago.
    pub(super) fn flush_may_settle(&self, pause_ms: Millis, keep: usize) -> bool {
        let paused = self.flushed_at.is_none_or(|at| self.now.saturating_sub(at) >= pause_ms);
        let in_vain = self.flush_covered.is_some_and(|(covers, kept)| covers == self.heat.now() && kept <= keep);
        self.flush.is_none() && paused && !in_vain && self.heat.may_settle(|extent| self.unequal(extent))
    }

    /// The replica that has not done for longest what another one has; of those outside of the set, what it was asked.
    fn laggard(&self) -> Option<(ReplicaId, Millis)> {
        let mut late: BTreeMap<ReplicaId, Millis> = BTreeMap::new();
        for (tag, asked) in &self.asked {
            let waited = self.now.saturating_sub(asked.since);
            if waited < self.limits.lag_ms {
                continue;
            }
            let behind = match (asked.purpose, self.peers.get(&asked.replica).map(|peer| &peer.standing)) {
                (_, None | Some(Standing::Failing { .. } | Standing::Out | Standing::Noting { .. })) => false,
                (_, Some(Standing::Catching | Standing::Joining(_))) => true,
                (Purpose::Request(id), Some(Standing::Member)) => self.in_flight.get(&id).is_some_and(|open| {
                    open.request.kind == Kind::Read || open.parts.values().any(|state| *state == State::Done)
                }),
                (Purpose::Digest, Some(Standing::Member)) => self.is_behind_with_a_digest(*tag),
                // Nothing to compare with: what the guest asks next will tell.
                (_, Some(Standing::Member)) => false,
            };
            if behind {
                let longest = late.entry(asked.replica).or_default();
                *longest = waited.max(*longest);
            }
        }
        late.into_iter().max_by_key(|(_, waited)| *waited)
    }

    /// Nothing succeeds any more.
    pub(super) fn fail_everything(&mut self, fx: &mut Vec<Effect>) {
        let open = core::mem::take(&mut self.in_flight);
        let begun = open.into_values().filter(|open| open.answer.is_none()).map(|open| open.request.id);
        let waiting = core::mem::take(&mut self.waiting);
        for request in begun.chain(waiting.into_iter().map(|(request, _)| request.id)) {
            fx.push(Effect::Answer { request, answer: Err(Failure::Fenced) });
        }
        self.asked.clear();
        self.copies.clear();
        self.comparing = None;
        self.notes.clear();
        self.flush = None;
    }
}
