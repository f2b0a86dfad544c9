//! How each replica stands: who is in the set, who fails, who catches up.

use alloc::{
    collections::BTreeSet,
    string::{String, ToString as _},
    vec::Vec,
};

use pollux_wire::id::ReplicaId;

use super::{Mirror, Purpose};
use crate::{
    event::Effect,
    grains::{Extents, Grains},
    request::{Failure, Part, Tag},
};

/// A replica, as the mirror sees it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) standing: Standing,
    /// What it does not have. Of a member: what is copied before anybody reads or writes it.
    pub(super) lacks: Grains,
    /// Extents in which something was copied to it since it was last asked to flush.
    pub(super) copied: Extents,
    /// Extents in which something was copied or written there since then: a flush that is under way may not cover it.
    pub(super) unflushed: Extents,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// In the set.
    Member,
    /// In the set, or perhaps; nothing is asked of it any more, and the log is to take it out.
    Failing {
        /// For people.
        why: String,
    },
    /// Outside, and nothing is asked of it.
    Out,
    /// Outside; the members are noting what it lacks, or will be asked to.
    Noting { asked: bool },
    /// Outside; it is sent what is written, and what it lacks is copied.
    Catching,
    /// It lacks nothing, and its word is needed: the log is to take it in.
    Joining(Step),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// What it was asked before its word was needed has to end first, for a flush to cover it.
    Draining(BTreeSet<Tag>),
    /// Whatever it was sent is being put on stable storage.
    Flushing(Tag),
    /// The log has been asked, or will be.
    Proposed,
}

impl Peer {
    pub(super) fn new(standing: Standing, lacks: Grains) -> Self {
        Self { standing, lacks, copied: Extents::default(), unflushed: Extents::default() }
    }

    /// Changes are sent there.
    pub(super) fn listens(&self) -> bool {
        matches!(self.standing, Standing::Member | Standing::Catching | Standing::Joining(_))
    }
}

impl Mirror {
    pub(super) fn lost(&mut self, replica: ReplicaId, why: &str, fx: &mut Vec<Effect>) {
        let failure = Failure::Io(why.to_string());
        self.failed(replica, &failure, fx);
        // Of the last one, too, which stays.
        self.forget(replica, &failure, fx);
    }

    /// Members that may differ from the one whose content counts: what is flushed from here on would not be there, and if that one
    /// was lost they would stand for the volume all the same.
    pub(super) fn let_go_of_who_differs(&mut self, fx: &mut Vec<Effect>) {
        let differs = |peer: &Peer| peer.standing == Standing::Member && !peer.lacks.is_empty();
        let differing = self.peers.iter().filter(|(_, peer)| differs(peer));
        let differing: Vec<ReplicaId> = differing.map(|(id, _)| *id).collect();
        for replica in differing {
            self.failed(replica, &Failure::Io("requests were under way when the volume was last in use".into()), fx);
        }
    }

    /// The host of a replica was started anew. One that is in the set and has not failed is the last that is whole: the others
    /// went on without it when its session broke.
    pub(super) fn forgot(&mut self, replica: ReplicaId, fx: &mut Vec<Effect>) {
        let sound = self.peers.get(&replica).is_some_and(|peer| peer.standing == Standing::Member);
        if sound && (self.stable < self.heat.now() || !self.unsay(replica)) {
            self.end_for_good("the last replica's host was started anew, and has lost what was not flushed", fx);
        }
    }

    /// A replica has not done what it was asked.
    pub(super) fn failed(&mut self, replica: ReplicaId, failure: &Failure, fx: &mut Vec<Effect>) {
        let survivors: Vec<ReplicaId> = self.sound().into_iter().filter(|id| *id != replica).collect();
        let whole = |id: &ReplicaId| self.peers.get(id).is_some_and(|peer| peer.lacks.is_empty());
        let survived = survivors.iter().any(whole);
        let hot = self.hot();
        let Some(peer) = self.peers.get_mut(&replica) else { return };
        let why = failure.to_string();
        match peer.standing {
            // The last whole one stays: there is nobody to go on with. The request fails, and is tried again later.
            Standing::Member if !survived => return,
            Standing::Member => {
                peer.lacks.union(&hot);
                peer.standing = Standing::Failing { why };
                fx.push(Effect::Drop { replica });
                for survivor in survivors {
                    let tag = self.ask(survivor, Purpose::Note, None, Part::Miss(replica), 0..0, fx);
                    self.notes.insert(tag, (survivor, replica));
                }
            }
            // The log may have taken it in, or will: another entry has to take it out. The members' notes about it are kept
            // until they hear that it has returned.
            Standing::Joining(Step::Proposed) => {
                peer.standing = Standing::Failing { why };
                fx.push(Effect::Drop { replica });
            }
            Standing::Noting { .. } | Standing::Catching | Standing::Joining(_) => {
                peer.standing = Standing::Out;
                fx.push(Effect::Drop { replica });
                fx.push(Effect::Behind { replica, why });
            }
            Standing::Failing { .. } | Standing::Out => return,
        }
        self.forget(replica, failure, fx);
    }

    /// What was asked of a replica has failed, as far as this mirror is concerned. What it lacks by that is noted.
    pub(super) fn forget(&mut self, replica: ReplicaId, failure: &Failure, fx: &mut Vec<Effect>) {
        let of_it = self.asked.iter().filter(|(_, asked)| asked.replica == replica);
        let tags: Vec<(Tag, Purpose)> = of_it.map(|(tag, asked)| (*tag, asked.purpose)).collect();
        for (tag, purpose) in tags {
            self.asked.remove(&tag);
            self.stragglers.remove(&tag);
            match purpose {
                Purpose::Request(request) => self.part_ended(request, replica, Err(failure.clone())),
                Purpose::Note => self.note_failed(tag),
                Purpose::Copy(copy) => self.copy_goes_on(copy, tag, false, fx),
                Purpose::OwnFlush => self.own_flush_ended(tag, false, fx),
                Purpose::Settling => self.settling_failed(replica, tag),
                Purpose::Welcome => self.welcome_failed(replica, tag),
                Purpose::Checkpoint => drop(self.checkpoints.remove(&tag)),
                Purpose::Catalogue => self.catalogued(tag, Some(failure), fx),
                Purpose::Forget => drop(self.forgetting.remove(&tag)),
                Purpose::Digest => self.digested(replica, tag, None, fx),
                Purpose::JoinFlush | Purpose::Aside => {}
            }
        }
        self.freed = true;
        self.end_copies(replica);
    }

    /// A member has not noted who is missing. If it leaves itself that does not matter; if it stays it is asked again.
    pub(super) fn note_failed(&mut self, tag: Tag) {
        if let Some((noter, missing)) = self.notes.remove(&tag)
            && self.is_sound(noter)
        {
            self.notes_again.insert((noter, missing));
        }
    }

    /// With time.
    pub(super) fn note_again(&mut self, fx: &mut Vec<Effect>) {
        for (noter, missing) in core::mem::take(&mut self.notes_again) {
            if self.is_sound(noter) {
                let tag = self.ask(noter, Purpose::Note, None, Part::Miss(missing), 0..0, fx);
                self.notes.insert(tag, (noter, missing));
            }
        }
    }

    /// Nobody knows whether a replica heard that these have settled: they are hot, until it has.
    pub(super) fn settling_failed(&mut self, replica: ReplicaId, tag: Tag) {
        if let Some(extents) = self.settling.remove(&tag)
            && self.is_sound(replica)
        {
            self.heat.inherit(&extents);
            self.flush_covered = None;
        }
    }

    pub(super) fn decided(&mut self, version: u64, members: BTreeSet<ReplicaId>, fx: &mut Vec<Effect>) {
        if version <= self.version || members.is_empty() {
            return;
        }
        (self.version, self.members) = (version, members);
        self.proposed = None;
        let unknown = |id: &ReplicaId| !self.peers.contains_key(id);
        for member in self.members.iter().copied().filter(unknown).collect::<Vec<_>>() {
            self.added(member);
        }
        self.review_all = true;
        self.freed = true;
        let hot = self.hot();
        let mut taken = false;
        let all: Vec<ReplicaId> = self.peers.keys().copied().collect();
        for replica in all {
            let inside = self.members.contains(&replica);
            let Some(peer) = self.peers.get_mut(&replica) else { continue };
            match (&peer.standing, inside) {
                (Standing::Joining(Step::Proposed), true) => {
                    peer.standing = Standing::Member;
                    self.welcome(replica, fx);
                }
                (Standing::Failing { .. }, false) => peer.standing = Standing::Out,
                // Somebody else took it out.
                (Standing::Member, false) => {
                    taken = true;
                    peer.standing = Standing::Out;
                    peer.lacks.union(&hot);
                    fx.push(Effect::Drop { replica });
                    self.forget(replica, &Failure::Io("it was taken out of the set".into()), fx);
                }
                // Somebody else took it in, and it is not whole.
                (Standing::Out | Standing::Noting { .. } | Standing::Catching | Standing::Joining(_), true) => {
                    let why = "it was taken in before it had everything";
                    peer.standing = Standing::Failing { why: why.into() };
                    fx.push(Effect::Drop { replica });
                    self.forget(replica, &Failure::Io(why.into()), fx);
                }
                (Standing::Member | Standing::Failing { .. }, true)
                | (Standing::Out | Standing::Noting { .. } | Standing::Catching | Standing::Joining(_), false) => {}
            }
        }
        if taken {
            self.has_a_whole_one(fx);
        }
    }

    /// One that stays has to be told again, or all that was copied to it is active there for good.
    pub(super) fn welcome_failed(&mut self, replica: ReplicaId, tag: Tag) {
        self.welcomes.remove(&tag);
        if self.is_sound(replica) {
            self.welcome_again.insert(replica);
        }
    }

    pub(super) fn welcome_those_again(&mut self, fx: &mut Vec<Effect>) {
        for replica in core::mem::take(&mut self.welcome_again) {
            if self.is_sound(replica) {
                self.welcome(replica, fx);
            }
        }
    }

    fn welcome(&mut self, replica: ReplicaId, fx: &mut Vec<Effect>) {
        let hot = self.heat.extents();
        let tag = self.ask(replica, Purpose::Welcome, None, Part::Welcome(hot.clone()), 0..0, fx);
        self.welcomes.insert(tag, hot);
        for member in self.sound().into_iter().filter(|id| *id != replica) {
            self.ask(member, Purpose::Aside, None, Part::Returned(replica), 0..0, fx);
        }
    }

    pub(super) fn catch(&mut self, replica: ReplicaId, lacks: &Grains) {
        if let Some(peer) = self.peers.get_mut(&replica)
            && peer.standing == Standing::Out
            && self.finishing.is_none()
            && !self.released.contains(&replica)
        {
            // Whatever was written since this mirror began, or since it left, is in its own count already.
            peer.lacks.union(lacks);
            peer.lacks.clip(self.size);
            peer.standing = Standing::Noting { asked: false };
        }
    }

    /// What has been copied to those that catch up is put on stable storage from time to time, and told to have settled there: if
    /// the way breaks after that, it is not copied again.
    pub(super) fn checkpoint(&mut self, fx: &mut Vec<Effect>) {
        let busy = |id: &ReplicaId| {
            self.asked.values().any(|asked| asked.replica == *id && asked.purpose == Purpose::Checkpoint)
        };
        let ready = |(id, peer): (&ReplicaId, &Peer)| {
            (peer.standing == Standing::Catching && !peer.copied.is_empty() && !busy(id)).then_some(*id)
        };
        let ready: Vec<ReplicaId> = self.peers.iter().filter_map(ready).collect();
        for id in ready {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let copied = core::mem::take(&mut peer.copied);
            peer.unflushed = Extents::default();
            let tag = self.ask(id, Purpose::Checkpoint, None, Part::Flush, 0..0, fx);
            self.checkpoints.insert(tag, copied);
        }
    }

    /// Of an extent that is hot, or lacks something, or in which something has arrived since the flush was asked for, nothing is told.
    pub(super) fn checkpoint_ended(&mut self, id: ReplicaId, tag: Tag, fx: &mut Vec<Effect>) {
        let Some(copied) = self.checkpoints.remove(&tag) else { return };
        let Some(peer) = self.peers.get(&id).filter(|peer| peer.standing == Standing::Catching) else { return };
        let hot = self.heat.extents();
        let mut settled = Extents::default();
        for extent in copied.without(&hot).without(&peer.unflushed).iter() {
            let range = Extents::range_of(extent);
            let copying = self.copies.values().any(|copy| copy.touches(id, &range));
            if !copying && !peer.lacks.touches(&range) {
                settled.insert(extent);
            }
        }
        if !settled.is_empty() {
            let tag = self.ask(id, Purpose::Settling, None, Part::Settled(settled.clone()), 0..0, fx);
            self.settling.insert(tag, settled);
        }
    }

    /// Who catches up and lacks nothing any more joins, step by step.
    pub(super) fn review_joins(&mut self, fx: &mut Vec<Effect>) {
        let all: Vec<ReplicaId> = self.peers.keys().copied().collect();
        for replica in all {
            let Some(peer) = self.peers.get_mut(&replica) else { continue };
            let copying = self.copies.values().any(|copy| copy.to == replica);
            if peer.standing == Standing::Catching && peer.lacks.is_empty() && !copying {
                let mine = self.asked.iter().filter(|(_, asked)| asked.replica == replica);
                peer.standing = Standing::Joining(Step::Draining(mine.map(|(tag, _)| *tag).collect()));
            }
            if let Standing::Joining(Step::Draining(before)) = &peer.standing
                && !before.iter().any(|tag| self.asked.contains_key(tag))
            {
                let tag = self.ask(replica, Purpose::JoinFlush, None, Part::Flush, 0..0, fx);
                if let Some(peer) = self.peers.get_mut(&replica) {
                    peer.standing = Standing::Joining(Step::Flushing(tag));
                }
            }
        }
    }

    pub(super) fn join_flushed(&mut self, replica: ReplicaId, tag: Tag) {
        if let Some(peer) = self.peers.get_mut(&replica)
            && peer.standing == Standing::Joining(Step::Flushing(tag))
        {
            peer.standing = Standing::Joining(Step::Proposed);
        }
    }

    /// One change of the set at a time: each compares the version that the one before made.
    pub(super) fn propose(&mut self, fx: &mut Vec<Effect>) {
        if self.proposed.is_some() {
            return;
        }
        let noting = self.notes.values().chain(&self.notes_again).map(|(_, missing)| missing);
        let noted = |id: &ReplicaId| !noting.clone().any(|missing| missing == id);
        let leaving = self.peers.iter().find_map(|(id, peer)| match &peer.standing {
            // First the survivors know what it lacks, on stable storage.
            Standing::Failing { why } if noted(id) => Some((*id, why.clone())),
            Standing::Failing { .. }
            | Standing::Member
            | Standing::Out
            | Standing::Noting { .. }
            | Standing::Catching
            | Standing::Joining(_) => None,
        });
        if let Some((replica, why)) = leaving {
            self.proposed = Some(replica);
            fx.push(Effect::Leave { replica, version: self.version, why });
            return;
        }
        let joins =
            |(id, peer): (&ReplicaId, &Peer)| (peer.standing == Standing::Joining(Step::Proposed)).then_some(*id);
        if let Some(replica) = self.peers.iter().find_map(joins) {
            self.proposed = Some(replica);
            fx.push(Effect::Join { replica, version: self.version });
        }
    }
}
