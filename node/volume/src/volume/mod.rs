//! A volume where its VM runs: the shell around [`Mirror`], and what QEMU is served.
//!
//! Started by whoever has the right to write ([`Volume::start`]), ended when dropped. It is a [`Disk`]: whoever serves it polls it,
//! and in that poll everything happens, in this order: what its owner wants of it, what the log has decided, what replicas have
//! done, which ways to replicas have opened, time. Each is an event for the mirror, whose effects are carried out at once.
//!
//! ```text
//!   guest's requests --> submit --> +--------+ -- asks --> Side (one per replica that can be reached)
//!   completions <------- poll ----- | Volume | <- done --
//!                                   +--------+ -- leave, join --> Ways --> the log
//!      owner (VolumeHandle) <------------'    <- the set ------------------'
//! ```

mod comparing;
mod copies;
mod handle;
mod peers;
mod start;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pollux_disk::{Completion, Disk, DiskError, Extent, Operation, Outcome, Piece};
use pollux_mirror::{
    Answer, Change, Digest, Effect, Event, Failure, Kind, Millis, Mirror, Part, Request, RequestId, Tag,
};
use pollux_wire::id::{Generation, ReplicaId};
use rustix::io::Errno;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, Sleep},
};
use tokio_stream::wrappers::WatchStream;

use self::{
    copies::Copying,
    handle::Wish,
    peers::{Peers, TakingBack},
};
use crate::{
    digest,
    side::{Ask, Done},
};

pub use comparing::{Comparison, Difference};
pub use handle::{Handover, ReplicaState, VolumeHandle, VolumeStatus};
pub use start::{Plan, Reached, Set, SetChange, StartError, Ways};

/// The mirror hears of time so often while something waits, in milliseconds, and so often otherwise.
const TICK_MS: Millis = 20;
const IDLE_TICK_MS: Millis = 1_000;

/// See the module's text.
pub struct Volume {
    name: String,
    size: u64,
    generation: Generation,
    mirror: Mirror,
    peers: Peers,
    set: WatchStream<Set>,
    wishes: mpsc::Receiver<Wish>,
    status: watch::Sender<VolumeStatus>,
    copying: Copying,
    /// Until where replicas are compared, and who is told of it.
    comparing: Option<(u64, watch::Sender<Comparison>)>,
    /// What was heard last of what they hold.
    digest: Option<Digest>,

    open: BTreeMap<RequestId, Open>,
    /// Flushes that its owner wished for.
    flushes: BTreeMap<RequestId, oneshot::Sender<bool>>,
    last_request: u64,
    /// Of parts that read: for which request, if for any.
    reads: BTreeMap<Tag, Option<RequestId>>,
    /// What was read to be copied, until that is asked for.
    read: BTreeMap<Tag, Vec<Piece>>,
    /// Room for what replicas have done.
    heard: Vec<Done>,
    todo: VecDeque<Event>,
    done: Vec<Completion>,

    began: Instant,
    tick: Pin<Box<Sleep>>,
    ticked: Millis,
    /// What the log has decided last, if anything since this began.
    latest: Option<Set>,
    /// Replicas that are to go.
    released: BTreeSet<ReplicaId>,
    /// Who waits for what the next one has to know, and how long the replicas may take to be equal.
    handing_over: Option<(Instant, oneshot::Sender<Handover>)>,
    /// The guest goes on here after all, once the ways are open again.
    taking_back: Option<TakingBack>,
    /// Everything could, or could not, be put on stable storage at the end. Until something new comes.
    settled: Option<bool>,
    /// Who waits for that.
    finishing: Option<oneshot::Sender<bool>>,
    /// Why nothing is done any more.
    over: Option<&'static str>,
    /// Of the request that failed last, for people.
    trouble: Option<String>,
}

/// A request of the guest's.
struct Open {
    tag: pollux_disk::Tag,
    operation: Operation,
    read: Vec<Piece>,
}

impl Volume {
    fn now(&self) -> Millis {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    fn apply(&mut self, event: Event) {
        let effects = self.mirror.on(self.now(), event);
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Ask { replica, tag, of, part, range } => {
                let data = match &part {
                    Part::Change { change: Change::Write, .. } => self.written(of, &range),
                    Part::Copy { read } => {
                        let pieces = self.read.remove(read).unwrap_or_default();
                        self.peers.copies(replica, &pieces);
                        pieces
                    }
                    Part::Read => {
                        self.reads.insert(tag, of);
                        Vec::new()
                    }
                    Part::Change { change: Change::Zero { .. } | Change::Trim, .. }
                    | Part::Flush
                    | Part::Miss(_)
                    | Part::Regained(_)
                    | Part::Returned(_)
                    | Part::Lacks(..)
                    | Part::Digest
                    | Part::Welcome(_)
                    | Part::Settled(_) => Vec::new(),
                };
                if let Err(why) = self.peers.ask(replica, Ask { tag, part, range, data }) {
                    self.todo.push_back(Event::Done { tag, outcome: Err(Failure::Io(why)) });
                }
            }
            Effect::Answer { request, answer } => self.answer(request, answer),
            Effect::Drop { replica } => self.peers.let_go(replica, "it has failed"),
            Effect::Leave { replica, version, why } => {
                tracing::warn!(volume = self.name, %replica, why, "a replica is to leave the in-sync set");
                self.peers.note(replica, &why);
                self.peers.leave(replica, version, why);
            }
            Effect::Join { replica, version } => {
                tracing::info!(volume = self.name, %replica, "a replica has caught up");
                self.peers.join(replica, version);
            }
            Effect::Behind { replica, why } => {
                tracing::warn!(volume = self.name, %replica, why, "a replica that was catching up has failed");
                self.peers.note(replica, &why);
            }
            Effect::Sealed(seal) => self.sealed(Some(seal)),
            Effect::NotSealed { why } => self.not_sealed(why),
            Effect::Compared { range, outcome } => self.compared(&range, outcome),
            Effect::Finished { settled } => self.finished(settled),
            Effect::Over { why } => {
                if self.settled == Some(true) {
                    tracing::info!(volume = self.name, why, "the volume was not used from here any more");
                } else {
                    tracing::error!(volume = self.name, why, "the volume cannot be used from here any more");
                }
                self.over = Some(why);
                self.finished(false);
                // Whoever waits for what was being compared is told by its end.
                self.comparing = None;
            }
        }
    }

    /// The data of a write, or of a part of it.
    fn written(&self, of: Option<RequestId>, range: &std::ops::Range<u64>) -> Vec<Piece> {
        let Some(Operation::Write { offset, data, .. }) =
            of.and_then(|of| self.open.get(&of)).map(|open| &open.operation)
        else {
            unreachable!("only a write of the guest's is asked to be written");
        };
        let place = |at: u64| usize::try_from(at - offset).expect("within what was in memory");
        vec![Piece::Data(data.slice(place(range.start)..place(range.end)))]
    }

    fn answer(&mut self, request: RequestId, answer: Answer) {
        if let Some(done) = self.flushes.remove(&request) {
            // Whoever does not wait any more does without.
            let _ = done.send(answer.is_ok());
            return;
        }
        let Some(Open { tag, operation, read }) = self.open.remove(&request) else { return };
        let result = match answer {
            Ok(()) if matches!(operation, Operation::Read { .. }) => Ok(Outcome::Read(read)),
            Ok(()) => Ok(Outcome::Done),
            Err(failure) => {
                tracing::warn!(volume = self.name, %failure, "a request of the guest's failed");
                self.trouble = Some(failure.to_string());
                Err(refused(&operation, &failure))
            }
        };
        if result.is_ok() {
            self.trouble = None;
        }
        self.done.push(Completion { tag, result });
    }

    fn part_done(&mut self, Done { tag, outcome }: Done) {
        if let Some(digest) = outcome.as_ref().ok().and_then(|pieces| digest::read(pieces)) {
            self.digest = Some(digest);
            return self.apply(Event::Digest { tag, digest });
        }
        let of = self.reads.remove(&tag);
        let mut hole_bytes = 0;
        let outcome = match (outcome, of) {
            (Ok(pieces), Some(Some(request))) => {
                if let Some(open) = self.open.get_mut(&request) {
                    open.read = pieces;
                }
                Ok(())
            }
            (Ok(pieces), Some(None)) => {
                hole_bytes = pieces.iter().map(Piece::hole_bytes).sum();
                self.read.insert(tag, pieces);
                Ok(())
            }
            (Ok(_), None) => Ok(()),
            (Err(failure), _) => Err(failure),
        };
        self.apply(Event::Done { tag, outcome });
        // What is to be copied is asked for at once, or never.
        self.read.remove(&tag);
        if hole_bytes > 0 {
            self.apply(Event::Credit(copies::back_for_a_hole(hole_bytes)));
        }
    }

    /// One round of everything that may have come. Whether anything had.
    fn turn(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Some(event) = self.todo.pop_front() {
            self.apply(event);
            moved = true;
        }
        while let Poll::Ready(Some(wish)) = self.wishes.poll_recv(cx) {
            self.wished(wish);
            moved = true;
        }
        moved |= self.take_decisions(cx);
        moved |= self.take_done(cx);
        moved |= self.take_ways(cx);
        moved |= self.take_back_goes_on(cx);
        moved |= self.take_time(cx);
        moved |= self.take_leave(cx);
        moved
    }

    /// Takes the node's leave to copy, and asks for the next of what may be copied by now. Not before it is of use: what is granted to a
    /// replica that takes nothing is nobody else's.
    fn take_leave(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(leave) = &mut self.copying.leave else {
            let asks = self.copying.owed > 0 && self.mirror.is_out_of_credit();
            self.copying.leave = asks.then(|| self.peers.may_send(self.copying.owed));
            return asks;
        };
        let Poll::Ready(bytes) = leave.as_mut().poll(cx) else { return false };
        self.copying.leave = None;
        self.copying.owed = self.copying.owed.saturating_sub(bytes);
        self.apply(Event::Credit(bytes));
        true
    }

    /// Time is heard of soon. Only ever sooner: a guest that asks often must not put that off.
    fn tick_soon(&mut self) {
        let soon = Instant::now() + Duration::from_millis(TICK_MS);
        if self.tick.deadline() > soon {
            self.tick.as_mut().reset(soon);
        }
    }

    fn take_time(&mut self, cx: &mut Context<'_>) -> bool {
        if self.tick.as_mut().poll(cx).is_pending() {
            return false;
        }
        let now = self.now();
        let credit = self.copying.credit(now.saturating_sub(self.ticked), self.last_request);
        self.ticked = now;
        self.compare_for_somebody();
        self.apply(Event::Tick);
        // Of what was not granted in its time nothing is left: the links are somebody else's just now.
        if self.peers.copies_far(&self.mirror) {
            self.copying.owed = credit;
        } else {
            (self.copying.leave, self.copying.owed) = (None, 0);
            if credit > 0 {
                self.apply(Event::Credit(credit));
            }
        }
        self.peers.tick(&self.mirror, now);
        self.try_to_seal();
        self.publish();
        // What is copied or compared is paid for by time, in many small parts rather than in few large ones.
        let copies = self.comparing.is_some() || self.peers.any_outside(&self.mirror);
        let busy = !self.open.is_empty() || copies;
        let next = Duration::from_millis(if busy { TICK_MS } else { IDLE_TICK_MS });
        if self.handing_over.is_none() {
            self.tick.as_mut().reset(Instant::now() + next);
        }
        true
    }
}

impl Disk for Volume {
    fn size(&self) -> u64 {
        self.size
    }

    fn fast_zeroes(&self) -> bool {
        true
    }

    fn submit(&mut self, tag: pollux_disk::Tag, operation: Operation) {
        let whole = |offset: u64, bytes: u64| offset..offset.saturating_add(bytes);
        let (kind, range) = match &operation {
            Operation::Read { offset, bytes } => (Kind::Read, whole(*offset, u64::from(*bytes))),
            Operation::Write { offset, data, durable } => {
                (Kind::Change { change: Change::Write, durable: *durable }, whole(*offset, data.len() as u64))
            }
            Operation::WriteZeroes { offset, bytes, may_punch, durable, .. } => {
                let change = Change::Zero { punch: *may_punch };
                (Kind::Change { change, durable: *durable }, whole(*offset, *bytes))
            }
            Operation::Trim { offset, bytes, durable } => {
                (Kind::Change { change: Change::Trim, durable: *durable }, whole(*offset, *bytes))
            }
            Operation::Flush => (Kind::Flush, 0..0),
            // That there is no data would have to be true of whatever is read next; that there may be some always is.
            Operation::BlockStatus { bytes, .. } => {
                let result = Ok(Outcome::Extents(vec![Extent { bytes: *bytes, data: true }]));
                return self.done.push(Completion { tag, result });
            }
        };
        // It may have to wait, which is noticed by time.
        self.tick_soon();
        self.settled = None;
        self.last_request += 1;
        let id = RequestId(self.last_request);
        self.open.insert(id, Open { tag, operation, read: Vec::new() });
        self.todo.push_back(Event::Request(Request { id, kind, range }));
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<()> {
        while self.turn(cx) {}
        self.copying.is_under_way(self.mirror.copies_now());
        if self.done.is_empty() {
            return Poll::Pending;
        }
        done.append(&mut self.done);
        Poll::Ready(())
    }
}

/// What the guest's device is told.
fn refused(operation: &Operation, failure: &Failure) -> DiskError {
    let (doing, offset, bytes) = match operation {
        Operation::Read { offset, bytes } => ("reading", *offset, u64::from(*bytes)),
        Operation::Write { offset, data, .. } => ("writing", *offset, data.len() as u64),
        Operation::WriteZeroes { offset, bytes, .. } => ("zeroing", *offset, *bytes),
        Operation::Trim { offset, bytes, .. } => ("trimming", *offset, *bytes),
        Operation::Flush => ("flushing", 0, 0),
        Operation::BlockStatus { offset, bytes, .. } => ("looking at", *offset, *bytes),
    };
    match failure {
        Failure::NoSpace => DiskError::NoSpace { offset, bytes },
        Failure::Fenced => DiskError::Fenced,
        Failure::Silent(_) => DiskError::Io { doing, offset, bytes, source: Errno::TIMEDOUT },
        Failure::Io(_) => DiskError::Io { doing, offset, bytes, source: Errno::IO },
    }
}
