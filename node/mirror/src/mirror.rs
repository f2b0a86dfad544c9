//! The mirror where the guest runs: see the crate's text.

mod comparing;
mod copying;
mod io;
mod replicas;
mod sealing;
mod standing;

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec::Vec,
};
use core::ops::Range;

use pollux_wire::id::ReplicaId;

use self::{
    comparing::Comparing,
    copying::Copy,
    io::InFlight,
    standing::{Peer, Standing},
};
use crate::{
    Millis,
    conflict::Ranges,
    event::{Effect, Event, ReplicaStatus, Status},
    grains::{Extents, Grains},
    heat::Heat,
    request::{Failure, Part, Request, RequestId, Tag},
};

/// More than so many milliseconds between two events count as these: [`Event::Tick`] comes at least as often.
const AWAKE_MS: Millis = 1_000;

/// What a mirror may take. Every wait and every number in it has a limit (DESIGN, rule 20).
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A replica that has not done for so long what another of the set has done leaves the set.
    pub lag_ms: Millis,
    /// A request that cannot be answered for so long fails (DESIGN, rule 16): the device parks it and the VM is paused.
    pub hold_ms: Millis,
    /// Extents that may be active at once: what is copied at most after a crash, in units of [`crate::EXTENT_BYTES`]. When there are
    /// more, those that were written to least recently settle; twice as many while they do.
    pub hot_max: usize,
    /// Copies under way at once.
    pub copies_max: usize,
    /// Bytes of one copy. While it is under way, writes to it wait.
    pub copy_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { lag_ms: 5_000, hold_ms: 30_000, hot_max: 256, copies_max: 4, copy_bytes: 512 * 1024 }
    }
}

/// One volume's mirror. Made when the VM's right to run here is committed, dropped when it goes.
#[derive(Debug)]
pub struct Mirror {
    size: u64,
    limits: Limits,
    /// Milliseconds in which this process was awake, and the time of the last event.
    now: Millis,
    heard: Millis,
    version: u64,
    members: BTreeSet<ReplicaId>,
    peers: BTreeMap<ReplicaId, Peer>,
    /// Whom to read from first.
    prefer: Vec<ReplicaId>,

    ranges: Ranges,
    heat: Heat,
    in_flight: BTreeMap<RequestId, InFlight>,
    /// In the order in which they came.
    waiting: VecDeque<(Request, Millis)>,
    /// The first so many of them have to wait until something ends.
    looked_at: usize,
    asked: BTreeMap<Tag, Asked>,
    last_tag: Tag,
    /// Members' notes of who is missing that are not on stable storage yet: by whom, about whom.
    notes: BTreeMap<Tag, (ReplicaId, ReplicaId)>,
    /// Those that the last member could not note when it was out of reach: asked again with time.
    notes_again: BTreeSet<(ReplicaId, ReplicaId)>,
    /// Of whom a change of the set was proposed that is not decided.
    proposed: Option<ReplicaId>,
    /// Who is not to come back to the set.
    released: BTreeSet<ReplicaId>,
    /// Members' notes of what is outside of the set: by whom, about whom.
    cataloguing: BTreeMap<Tag, (ReplicaId, ReplicaId)>,
    /// Members that are being told that they need not note somebody any more.
    forgetting: BTreeSet<Tag>,
    /// The mirror's own flush, to settle.
    flush: Option<OwnFlush>,
    /// Changes that nobody waits for any more, on their way to a replica outside of the set: what is copied there comes after them.
    stragglers: BTreeMap<Tag, (ReplicaId, Range<u64>)>,
    /// Flushes of replicas that catch up, and the extents they cover.
    checkpoints: BTreeMap<Tag, Extents>,
    /// What members are being told to have settled: a change that overtook that would be unmarked there.
    settling: BTreeMap<Tag, Extents>,
    /// The same of who was taken in: all but these are not active there any more.
    welcomes: BTreeMap<Tag, Extents>,
    /// Who has to be told so again.
    welcome_again: BTreeSet<ReplicaId>,
    copies: BTreeMap<u64, Copy>,
    last_copy: u64,
    /// Bytes that may still be copied or compared. Whatever is begun is begun while there is any, and paid for whole: below zero nothing
    /// is until time has made up for it. So it goes no faster than credit comes, however little that is and however long a piece.
    credit: i64,
    comparing: Option<Comparing>,
    /// Requests about which something was heard.
    touched: Vec<RequestId>,
    review_all: bool,
    /// Something has ended that a waiting request may have waited for.
    freed: bool,
    /// What the last whole flush of the mirror's own covered, and how much it was to keep hot; and when something last changed.
    flush_covered: Option<(u64, usize)>,
    /// When the mirror's own flush began last.
    flushed_at: Option<Millis>,
    /// What is on stable storage on every replica of the set: changes that ended before this.
    stable: u64,
    /// A flush has reached every replica of the set since this mirror began: of what was before, nobody knew.
    flushed: bool,
    changed_at: Millis,
    /// It went wrong.
    flush_failed: bool,
    begun: bool,
    /// Since when it is to come to an end.
    finishing: Option<Millis>,
    sealed: bool,
    over: bool,
}

/// A flush of the mirror's own.
#[derive(Debug)]
struct OwnFlush {
    /// Changes that had ended before it began.
    covers: u64,
    /// Extents that may stay hot.
    keep: usize,
    /// Who was asked, and what is still to end.
    asked: BTreeSet<ReplicaId>,
    waits: BTreeSet<Tag>,
}

/// What was asked of a replica and has not ended.
#[derive(Debug, Clone, Copy)]
struct Asked {
    replica: ReplicaId,
    since: Millis,
    purpose: Purpose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Request(RequestId),
    Note,
    Copy(u64),
    JoinFlush,
    OwnFlush,
    /// Of one that catches up, so that what was copied need not be copied again.
    Checkpoint,
    /// [`Part::Settled`]: until it has ended nothing is changed in what settles.
    Settling,
    /// [`Part::Welcome`]: until it has ended nothing else becomes hot.
    Welcome,
    /// [`Part::Lacks`].
    Catalogue,
    /// Of what is compared.
    Digest,
    /// [`Part::Returned`] of one that was removed.
    Forget,
    /// Nobody waits for it.
    Aside,
}

impl Mirror {
    /// A mirror of a volume of `size` bytes whose replicas are those of `lacks`, each with what it lacks as far as the logs of all
    /// that can be reached tell ([`crate::reunite`]); those of `members` are the set, at `version`. `active`: extents in which
    /// replicas of the set may differ otherwise. Members that lack something leave the set, first of all, and catch up. `prefer`: whom to read from, the nearest first.
    ///
    /// # Panics
    /// When the set is empty, or a member is not among the replicas.
    #[must_use]
    pub fn new(
        size: u64,
        limits: Limits,
        (version, members): (u64, BTreeSet<ReplicaId>),
        lacks: BTreeMap<ReplicaId, Grains>,
        active: &Extents,
        prefer: Vec<ReplicaId>,
    ) -> Self {
        assert!(!members.is_empty(), "a volume without a replica in its set has no content");
        assert!(members.iter().all(|member| lacks.contains_key(member)), "the members are replicas");
        assert!(lacks.iter().any(|(id, lacks)| members.contains(id) && lacks.is_empty()), "one of the set is whole");
        let peer = |(id, mut lacks): (ReplicaId, Grains)| {
            lacks.clip(size);
            let standing = if members.contains(&id) { Standing::Member } else { Standing::Out };
            (id, Peer::new(standing, lacks))
        };
        Self {
            size,
            limits,
            now: 0,
            heard: 0,
            version,
            peers: lacks.into_iter().map(peer).collect(),
            members,
            prefer,
            ranges: Ranges::default(),
            heat: Heat::of_another_life(active),
            in_flight: BTreeMap::new(),
            waiting: VecDeque::new(),
            looked_at: 0,
            asked: BTreeMap::new(),
            last_tag: Tag(0),
            notes: BTreeMap::new(),
            notes_again: BTreeSet::new(),
            proposed: None,
            released: BTreeSet::new(),
            cataloguing: BTreeMap::new(),
            forgetting: BTreeSet::new(),
            flush: None,
            stragglers: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            settling: BTreeMap::new(),
            welcomes: BTreeMap::new(),
            welcome_again: BTreeSet::new(),
            copies: BTreeMap::new(),
            last_copy: 0,
            credit: 0,
            comparing: None,
            touched: Vec::new(),
            review_all: false,
            freed: false,
            flush_covered: None,
            flushed_at: None,
            stable: 0,
            flushed: false,
            changed_at: 0,
            flush_failed: false,
            begun: false,
            finishing: None,
            sealed: false,
            over: false,
        }
    }

    /// Applies one event. Total: whatever comes, in whatever order, has a meaning or none.
    pub fn on(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        // A process that slept has not waited for anybody.
        self.now += now.saturating_sub(self.heard).min(AWAKE_MS);
        self.heard = self.heard.max(now);
        let mut fx = Vec::new();
        if self.over {
            if let Event::Request(request) = event {
                fx.push(Effect::Answer { request: request.id, answer: Err(Failure::Fenced) });
            }
            return fx;
        }
        if !core::mem::replace(&mut self.begun, true) {
            self.let_go_of_who_differs(&mut fx);
        }
        if self.sealed {
            self.on_while_sealed(event, &mut fx);
            return fx;
        }
        match event {
            Event::Request(request) => self.request(request, &mut fx),
            Event::Done { tag, outcome } => self.done(tag, outcome, &mut fx),
            Event::Lost { replica, why } => self.lost(replica, &why, &mut fx),
            Event::Forgot { replica } => self.forgot(replica, &mut fx),
            Event::Decided { version, members } => self.decided(version, members, &mut fx),
            Event::Catch { replica, lacks } => self.catch(replica, &lacks),
            Event::Credit(bytes) => {
                // What was not used lately is not saved up.
                let most = self.limits.copy_bytes.saturating_mul(self.limits.copies_max as u64);
                let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
                self.credit = self.credit.saturating_add(bytes).min(i64::try_from(most).unwrap_or(i64::MAX).max(bytes));
            }
            Event::Tick => self.tick(&mut fx),
            Event::Seal { generation } => self.seal(generation, &mut fx),
            Event::Unseal => self.unseal(&mut fx),
            Event::Finish => self.finish(&mut fx),
            Event::Added { replica } => self.added(replica),
            Event::Release { replica } => self.release(replica, &mut fx),
            Event::Removed { replica } => self.removed(replica, &mut fx),
            Event::Prefer(prefer) => self.prefer = prefer,
            Event::Compare { range, authority, repair } => self.compare(range, authority, repair),
            Event::Digest { tag, digest } => self.digest(tag, digest, &mut fx),
        }
        if self.sealed {
            return fx;
        }
        self.go_on(&mut fx);
        self.check();
        fx
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> Status {
        let peer = |(id, peer): (&ReplicaId, &Peer)| ReplicaStatus {
            replica: *id,
            sound: peer.standing == Standing::Member,
            lacks: peer.lacks.bytes(),
        };
        Status {
            replicas: self.peers.iter().map(peer).collect(),
            open: self.waiting.len() + self.in_flight.values().filter(|open| open.answer.is_none()).count(),
            hot: self.heat.len(),
        }
    }

    /// A replica outside of the set of which nothing is asked, and that is not to be removed: it may be caught up.
    #[must_use]
    pub fn is_outside(&self, replica: ReplicaId) -> bool {
        let out = self.peers.get(&replica).is_some_and(|peer| peer.standing == Standing::Out);
        out && !self.released.contains(&replica)
    }

    /// A replica in the set that has not failed.
    #[must_use]
    pub fn is_sound(&self, replica: ReplicaId) -> bool {
        self.peers.get(&replica).is_some_and(|peer| peer.standing == Standing::Member)
    }

    /// Nothing more is copied or compared until there is an [`Event::Credit`].
    #[must_use]
    pub fn is_out_of_credit(&self) -> bool {
        self.credit <= 0
    }

    /// Something is being copied or compared at this moment.
    #[must_use]
    pub fn copies_now(&self) -> bool {
        !self.copies.is_empty() || self.is_comparing_a_piece()
    }

    /// What has become possible, until nothing is left.
    fn go_on(&mut self, fx: &mut Vec<Effect>) {
        if self.over {
            self.fail_everything(fx);
            return;
        }
        self.review(fx);
        self.admit(fx);
        // A read that has just begun is asked of somebody.
        self.review(fx);
        self.catalogue(fx);
        self.start_copies(fx);
        self.compare_next(fx);
        self.review_joins(fx);
        self.propose(fx);
        self.finish_goes_on(fx);
    }

    fn done(&mut self, tag: Tag, outcome: Result<(), Failure>, fx: &mut Vec<Effect>) {
        let Some(Asked { replica, purpose, .. }) = self.asked.remove(&tag) else { return };
        self.stragglers.remove(&tag);
        if outcome == Err(Failure::Fenced) {
            self.end_for_good("the right to write went elsewhere", fx);
            return;
        }
        if let Purpose::Request(request) = purpose {
            self.part_ended(request, replica, outcome.clone());
        }
        if let Err(failure) = &outcome {
            self.failed(replica, failure, fx);
        }
        match (purpose, &outcome) {
            (Purpose::Checkpoint, Ok(())) => self.checkpoint_ended(replica, tag, fx),
            (Purpose::Checkpoint, Err(_)) => drop(self.checkpoints.remove(&tag)),
            (Purpose::Note, Ok(())) => drop(self.notes.remove(&tag)),
            (Purpose::Copy(copy), _) => self.copy_goes_on(copy, tag, outcome.is_ok(), fx),
            (Purpose::JoinFlush, Ok(())) => self.join_flushed(replica, tag),
            (Purpose::OwnFlush, _) => self.own_flush_ended(tag, outcome.is_ok(), fx),
            (Purpose::Note, Err(_)) => self.note_failed(tag),
            (Purpose::Settling, Ok(())) => {
                self.settling.remove(&tag);
                self.freed = true;
            }
            (Purpose::Settling, Err(_)) => self.settling_failed(replica, tag),
            (Purpose::Welcome, Ok(())) => self.welcomed(replica, tag, fx),
            (Purpose::Catalogue, _) => self.catalogued(tag, outcome.as_ref().err(), fx),
            (Purpose::Forget, _) => drop(self.forgetting.remove(&tag)),
            (Purpose::Digest, _) => self.digested(replica, tag, None, fx),
            (Purpose::Welcome, Err(_)) => self.welcome_failed(replica, tag),
            (Purpose::JoinFlush, Err(_)) | (Purpose::Request(_) | Purpose::Aside, _) => {}
        }
    }

    /// So many bytes are being copied or compared.
    fn pay(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_sub_unsigned(bytes);
    }

    fn end_for_good(&mut self, why: &'static str, fx: &mut Vec<Effect>) {
        if !core::mem::replace(&mut self.over, true) {
            fx.push(Effect::Over { why });
        }
    }

    fn ask(
        &mut self,
        replica: ReplicaId,
        purpose: Purpose,
        of: Option<RequestId>,
        part: Part,
        range: Range<u64>,
        fx: &mut Vec<Effect>,
    ) -> Tag {
        self.last_tag.0 += 1;
        let tag = self.last_tag;
        self.asked.insert(tag, Asked { replica, since: self.now, purpose });
        fx.push(Effect::Ask { replica, tag, of, part, range });
        tag
    }

    /// What may differ, as grains.
    fn hot(&self) -> Grains {
        let mut hot = Grains::from(&self.heat.extents());
        hot.clip(self.size);
        hot
    }

    /// Those whose word is needed before the guest is answered: the set, and whoever is in it perhaps.
    fn needed(&self) -> BTreeSet<ReplicaId> {
        let perhaps = |(id, peer): (&ReplicaId, &Peer)| {
            matches!(peer.standing, Standing::Joining(_) | Standing::Failing { .. }).then_some(*id)
        };
        self.members.iter().copied().chain(self.peers.iter().filter_map(perhaps)).collect()
    }

    /// The members that have not failed, those to read from first in front.
    fn sound(&self) -> Vec<ReplicaId> {
        let sound = |id: &ReplicaId| self.peers.get(id).is_some_and(|peer| peer.standing == Standing::Member);
        let preferred = self.prefer.iter().copied().filter(sound);
        let others = self.peers.keys().copied().filter(|id| sound(id) && !self.prefer.contains(id));
        preferred.chain(others).collect()
    }

    /// What must hold after every event (also in release).
    fn check(&self) {
        assert!(!self.members.is_empty(), "the set is empty");
    }
}
