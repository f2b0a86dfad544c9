//! What a mirror is told, and what it wants done.

use alloc::{collections::BTreeSet, string::String, vec::Vec};
use core::ops::Range;

use pollux_wire::id::{Generation, ReplicaId};

use crate::{
    grains::Grains,
    request::{Answer, Digest, Failure, Part, Request, RequestId, Tag},
    seal::Seal,
};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest's device asks for something.
    Request(Request),
    /// What a replica was asked has ended. Of a replica that was dropped since: ignored.
    Done {
        /// Of [`Effect::Ask`].
        tag: Tag,
        /// How.
        outcome: Result<(), Failure>,
    },
    /// The way to a replica is broken: nothing that was asked of it will be told any more.
    Lost {
        /// Which.
        replica: ReplicaId,
        /// Why, for people.
        why: String,
    },
    /// A replica's host was started anew since it was last asked for anything: what it had taken and not put on stable storage is
    /// lost. Before anything else in the new session.
    Forgot {
        /// Which.
        replica: ReplicaId,
    },
    /// The log says who is in the set.
    Decided {
        /// The set's version, which rises with each entry about it.
        version: u64,
        /// Who.
        members: BTreeSet<ReplicaId>,
    },
    /// A replica outside of the set can be reached, in a session in which nothing of an earlier one happens any more. What the mirror
    /// does not know of what lacks there is what is active by its own log, read in that session. Before anything is copied the
    /// members note it all ([`Part::Lacks`]).
    Catch {
        /// Which.
        replica: ReplicaId,
        /// What.
        lacks: Grains,
    },
    /// So many bytes more may be copied or compared. A piece is begun while there are any, and what it takes beyond them is made up for
    /// before the next.
    Credit(u64),
    /// Time has passed.
    Tick,
    /// The guest is paused, has its answers, and is to go on elsewhere: [`Effect::Sealed`] or [`Effect::NotSealed`]. The latter
    /// changes nothing, and it may be asked again. After the former only the log is listened to: the sessions may be ended.
    Seal {
        /// Of this mirror.
        generation: Generation,
    },
    /// It goes on here after all, whether it was sealed or not. Sessions with all that are sound were opened anew, so that nothing of earlier ones happens any
    /// more. [`Event::Lost`] comes next, before any request, for each with which that was not possible, or whose host was started
    /// anew since; and for the latter [`Event::Forgot`] after that, when its session is open.
    Unseal,
    /// The guest has ended in order, and its last request was told: [`Effect::Finished`].
    Finish,
    /// The log has given the volume one more replica, which is made, and empty. It is outside of the set until [`Event::Catch`]. Of
    /// one that was released: it stays, after all.
    Added {
        /// Which.
        replica: ReplicaId,
    },
    /// A replica is to be taken out of the set in order, if it is in it and another one has everything, and is not to come back:
    /// [`Effect::Leave`]. When it is not in the set any more it can be removed without anybody missing it.
    Release {
        /// Which.
        replica: ReplicaId,
    },
    /// The log has taken a replica out of the volume, and so out of the set. If it was in the set, [`Event::Decided`] comes before
    /// this. Also of one that this mirror has not heard of ([`crate::Plan::gone`]).
    Removed {
        /// Which.
        replica: ReplicaId,
    },
    /// Whom to read from first, the nearest in front.
    Prefer(Vec<ReplicaId>),
    /// All members are to be compared there, piece by piece, as far as credit allows: [`Effect::Compared`] for each, in order, until
    /// the end. Takes the place of what was being compared; with an empty range nothing is. It ends without a word when the mirror
    /// is sealed or finishes.
    Compare {
        /// Where, in bytes; in whole grains.
        range: Range<u64>,
        /// Whose content counts, by the log.
        authority: ReplicaId,
        /// What differs is copied from that one. Until it was copied the one that differs is in the set as before.
        repair: bool,
    },
    /// [`Part::Digest`] has ended well.
    Digest {
        /// Of [`Effect::Ask`].
        tag: Tag,
        /// What the range holds.
        digest: Digest,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask a replica for something; the answer is [`Event::Done`].
    Ask {
        /// Whom.
        replica: ReplicaId,
        /// Its number.
        tag: Tag,
        /// For whom, where the data comes from or goes to.
        of: Option<RequestId>,
        /// What.
        part: Part,
        /// Where, in bytes.
        range: Range<u64>,
    },
    /// Tell the guest's device.
    Answer {
        /// Of which request.
        request: RequestId,
        /// What.
        answer: Answer,
    },
    /// End the session with a replica. What it still does in it, it does to a copy that is out of the set.
    Drop {
        /// Which.
        replica: ReplicaId,
    },
    /// Have the log take a replica out of the set, if its version is still this one; the version rises also when it was not in it.
    Leave {
        /// Which.
        replica: ReplicaId,
        /// The set's version.
        version: u64,
        /// Why, for people.
        why: String,
    },
    /// Have the log take a replica into the set, if its version is still this one.
    Join {
        /// Which.
        replica: ReplicaId,
        /// The set's version.
        version: u64,
    },
    /// A replica that was catching up has failed.
    Behind {
        /// Which.
        replica: ReplicaId,
        /// Why, for people.
        why: String,
    },
    /// All of the set hold the same: what the next mirror needs to know. Nothing is asked from here on, until [`Event::Unseal`].
    Sealed(Seal),
    /// That is not so, or not yet.
    NotSealed {
        /// Why, for people.
        why: &'static str,
    },
    /// What can be done for the next start has been done.
    Finished {
        /// Everything is on stable storage, and nothing active: there will be nothing to copy. Otherwise it took longer than a
        /// request may ([`Limits::hold_ms`]).
        settled: bool,
    },
    /// A piece was compared.
    Compared {
        /// Which, in bytes.
        range: Range<u64>,
        /// Members that hold something else than the one whose content counts; or, when that is not in the set, than another one,
        /// and then nothing is repaired. Or why it was not compared, for people.
        outcome: Result<BTreeSet<ReplicaId>, &'static str>,
    },
    /// Nothing is asked, and nothing answered with success, from here on: another generation has replaced this one, or the last
    /// replica has lost what the guest was told that it has. As after a power failure, the guest has to be started anew.
    Over {
        /// Why, for people.
        why: &'static str,
    },
}

/// How a mirror is, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Of each replica.
    pub replicas: Vec<ReplicaStatus>,
    /// Requests without an answer.
    pub open: usize,
    /// Extents that may differ.
    pub hot: usize,
}

/// How a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Which.
    pub replica: ReplicaId,
    /// It is in the set, and has not failed.
    pub sound: bool,
    /// What it lacks, in bytes.
    pub lacks: u64,
}
