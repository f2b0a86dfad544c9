//! A mirror by itself, and everybody it talks to.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use pollux_mirror::{
    Answer, Change, EXTENT_BYTES, Effect, Event, Extents, Failure, Grains, Kind, Limits, Mirror, Part, Request,
    RequestId, Tag,
};
use pollux_wire::id::ReplicaId;

pub(crate) const SIZE: u64 = 4 * EXTENT_BYTES;
pub(crate) const R1: ReplicaId = ReplicaId(1);
pub(crate) const R2: ReplicaId = ReplicaId(2);
pub(crate) const R3: ReplicaId = ReplicaId(3);

/// A mirror, and what it wants that has not been done.
pub(crate) struct World {
    pub(crate) mirror: Mirror,
    pub(crate) now: u64,
    requests: u64,
    pub(crate) asked: Vec<(ReplicaId, Tag, Part, Range<u64>)>,
    pub(crate) answers: BTreeMap<RequestId, Answer>,
    pub(crate) others: Vec<Effect>,
}

impl World {
    pub(crate) fn new(members: &[ReplicaId], lacks: &[(ReplicaId, Grains)]) -> Self {
        Self::begun(SIZE, Limits::default(), members, lacks, &Extents::default())
    }

    /// Of a volume that was in use when its last mirror ended.
    pub(crate) fn active(members: &[ReplicaId], active: &Extents) -> Self {
        Self::begun(SIZE, Limits::default(), members, &[], active)
    }

    /// Of a large volume, of which little may be hot.
    pub(crate) fn cool(members: &[ReplicaId], hot_max: usize) -> Self {
        let limits = Limits { hot_max, ..Limits::default() };
        Self::begun(64 * EXTENT_BYTES, limits, members, &[], &Extents::default())
    }

    fn begun(
        size: u64,
        limits: Limits,
        members: &[ReplicaId],
        lacks: &[(ReplicaId, Grains)],
        active: &Extents,
    ) -> Self {
        let mut all: BTreeMap<ReplicaId, Grains> = members.iter().map(|id| (*id, Grains::default())).collect();
        all.extend(lacks.iter().cloned());
        let set = (1, members.iter().copied().collect());
        let mirror = Mirror::new(size, limits, set, all, active, Vec::new());
        let (asked, answers, others) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { mirror, now: 0, requests: 0, asked, answers, others }
    }

    pub(crate) fn tell(&mut self, event: Event) {
        for effect in self.mirror.on(self.now, event) {
            match effect {
                Effect::Ask { replica, tag, part, range, .. } => self.asked.push((replica, tag, part, range)),
                Effect::Answer { request, answer } => {
                    assert!(self.answers.insert(request, answer).is_none(), "{request:?} is answered twice");
                }
                Effect::Drop { .. }
                | Effect::Leave { .. }
                | Effect::Join { .. }
                | Effect::Behind { .. }
                | Effect::Sealed(_)
                | Effect::NotSealed { .. }
                | Effect::Finished { .. }
                | Effect::Compared { .. }
                | Effect::Over { .. } => self.others.push(effect),
            }
        }
    }

    pub(crate) fn request(&mut self, kind: Kind, range: Range<u64>) -> RequestId {
        self.requests += 1;
        let id = RequestId(self.requests);
        self.tell(Event::Request(Request { id, kind, range }));
        id
    }

    pub(crate) fn write(&mut self, range: Range<u64>) -> RequestId {
        self.request(Kind::Change { change: Change::Write, durable: false }, range)
    }

    /// Everything asked of `replica` ends so, what that leads to as well.
    pub(crate) fn does(&mut self, replica: ReplicaId, outcome: &Result<(), Failure>) {
        while let Some(at) = self.asked.iter().position(|(whom, ..)| *whom == replica) {
            let (_, tag, ..) = self.asked.remove(at);
            self.tell(Event::Done { tag, outcome: outcome.clone() });
        }
    }

    /// What is asked of `replica` and is this ends well.
    pub(crate) fn ends(&mut self, replica: ReplicaId, what: impl Fn(&Part) -> bool) {
        while let Some(at) = self.asked.iter().position(|(whom, _, part, _)| *whom == replica && what(part)) {
            let (_, tag, ..) = self.asked.remove(at);
            self.tell(Event::Done { tag, outcome: Ok(()) });
        }
    }

    pub(crate) fn is_asked(&self, replica: ReplicaId, what: impl Fn(&Part) -> bool) -> bool {
        self.asked.iter().any(|(whom, _, part, _)| *whom == replica && what(part))
    }

    pub(crate) fn decided(&mut self, version: u64, members: &[ReplicaId]) {
        self.tell(Event::Decided { version, members: members.iter().copied().collect::<BTreeSet<_>>() });
    }
}

pub(crate) fn broken() -> Result<(), Failure> {
    Err(Failure::Io("the disk is broken".into()))
}
