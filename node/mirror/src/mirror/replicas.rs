//! Replicas that come and go while the mirror lives, and what members note of those outside of the set.
//!
//! A note is complete, or it is none: a replica of which no member has one lacks everything. So a member is told all that lacks there,
//! and whatever is written until it has heard that is active with it. From then on it keeps the note itself.

use alloc::{string::ToString as _, vec::Vec};

use pollux_wire::id::ReplicaId;

use super::{
    Mirror, Purpose,
    standing::{Peer, Standing},
};
use crate::{
    event::Effect,
    grains::Grains,
    request::{Failure, Part, Tag},
};

/// Runs of grains in a note. One is written in at most ten bytes, and a control message has a megabyte.
const NOTE_RUNS_MAX: usize = 65_536;

impl Mirror {
    /// A replica that nothing was written to yet; or one that is known, and is not to be removed.
    pub(super) fn added(&mut self, replica: ReplicaId) {
        self.released.remove(&replica);
        let everything = Grains::touching(&(0..self.size));
        self.peers.entry(replica).or_insert_with(|| Peer::new(Standing::Out, everything));
    }

    /// As if it had failed, but for why, and that it is not caught up again.
    pub(super) fn release(&mut self, replica: ReplicaId, fx: &mut Vec<Effect>) {
        if self.peers.contains_key(&replica) {
            self.failed(replica, &Failure::Io("it is to be removed".to_string()), fx);
            // The last that is whole stays.
            if !self.is_sound(replica) {
                self.released.insert(replica);
            }
        }
    }

    pub(super) fn removed(&mut self, replica: ReplicaId, fx: &mut Vec<Effect>) {
        if self.members.len() == 1 && self.members.contains(&replica) {
            // The log removes no last one; who is in the set will be told.
            return;
        }
        let was_in = self.members.remove(&replica);
        if let Some(peer) = self.peers.get_mut(&replica) {
            if core::mem::replace(&mut peer.standing, Standing::Out) != Standing::Out {
                fx.push(Effect::Drop { replica });
            }
            self.forget(replica, &Failure::Io("it was removed from the volume".to_string()), fx);
            self.peers.remove(&replica);
        }
        self.released.remove(&replica);
        self.prefer.retain(|id| *id != replica);
        self.notes.retain(|_, (_, missing)| *missing != replica);
        self.notes_again.retain(|(_, missing)| *missing != replica);
        self.cataloguing.retain(|_, (_, outside)| *outside != replica);
        // It is refused, or void.
        self.proposed = self.proposed.filter(|id| *id != replica);
        self.review_all = true;
        self.freed = true;
        if !self.sealed {
            for member in self.sound() {
                let tag = self.ask(member, Purpose::Forget, None, Part::Returned(replica), 0..0, fx);
                self.forgetting.insert(tag);
            }
        }
        if was_in {
            self.has_a_whole_one(fx);
        }
    }

    /// Somebody else took a replica away that had everything. If it was the last, what the guest has seen is gone.
    pub(super) fn has_a_whole_one(&mut self, fx: &mut Vec<Effect>) {
        let mut sound = self.peers.values().filter(|peer| peer.standing == Standing::Member);
        let everywhere = sound.next().map(|first| {
            let mut lacks = first.lacks.clone();
            sound.for_each(|peer| lacks.intersect(&peer.lacks));
            lacks
        });
        if !everywhere.is_some_and(|lacks| lacks.is_empty()) {
            self.end_for_good("the last replica that had what the guest was told was taken out of the set", fx);
        }
    }

    /// Has the members note what those lack that are to be caught up. First they have room for it.
    pub(super) fn catalogue(&mut self, fx: &mut Vec<Effect>) {
        if !self.forgetting.is_empty() {
            return;
        }
        let waits = |peer: &Peer| peer.standing == Standing::Noting { asked: false };
        let waiting = self.peers.iter().filter(|(_, peer)| waits(peer)).map(|(id, _)| *id);
        for outside in waiting.collect::<Vec<_>>() {
            if let Some(peer) = self.peers.get_mut(&outside) {
                peer.standing = Standing::Noting { asked: true };
            }
            for member in self.sound() {
                self.note_outside(member, outside, fx);
            }
        }
    }

    fn note_outside(&mut self, member: ReplicaId, outside: ReplicaId, fx: &mut Vec<Effect>) {
        let Some(lacks) = self.peers.get(&outside).map(|peer| peer.lacks.in_runs(NOTE_RUNS_MAX)) else { return };
        let tag = self.ask(member, Purpose::Catalogue, None, Part::Lacks(outside, lacks), 0..0, fx);
        self.cataloguing.insert(tag, (member, outside));
    }

    /// A member has noted what lacks outside, or has not. One that has not, and leaves for it, does not matter.
    pub(super) fn catalogued(&mut self, tag: Tag, failure: Option<&Failure>, fx: &mut Vec<Effect>) {
        let Some((member, outside)) = self.cataloguing.remove(&tag) else { return };
        let noting = |peer: &Peer| peer.standing == Standing::Noting { asked: true };
        if !self.peers.get(&outside).is_some_and(noting) {
            return;
        }
        if let Some(failure) = failure
            && self.is_sound(member)
        {
            self.failed(outside, failure, fx);
        } else if !self.cataloguing.values().any(|(_, other)| *other == outside)
            && let Some(peer) = self.peers.get_mut(&outside)
        {
            peer.standing = Standing::Catching;
        }
    }

    /// A replica that was taken in knows so. Now it notes, as the other members do, what lacks outside.
    pub(super) fn welcomed(&mut self, replica: ReplicaId, tag: Tag, fx: &mut Vec<Effect>) {
        self.welcomes.remove(&tag);
        self.freed = true;
        let lacks = |peer: &Peer| !matches!(peer.standing, Standing::Member | Standing::Joining(_));
        let outside = self.peers.iter().filter(|(_, peer)| lacks(peer)).map(|(id, _)| *id);
        for outside in outside.collect::<Vec<_>>() {
            self.note_outside(replica, outside, fx);
        }
    }
}
