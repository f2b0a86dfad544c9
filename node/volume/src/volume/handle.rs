//! What a volume's owner can want of it, and see of it, while somebody else polls it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    task::{Context, Poll},
    time::Duration,
};

use futures::StreamExt as _;
use pollux_disk::Disk as _;
use pollux_mirror::{Event, Kind, Request, RequestId, Seal};
use pollux_wire::id::ReplicaId;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{Comparison, Set, Volume};

/// Wishes that may wait; who wishes waits then.
pub(super) const WISHES_MAX: usize = 16;

/// A mirror that cannot say yet that all hold the same is asked again after this, in milliseconds.
const SEAL_AGAIN_MS: u64 = 2;
/// How long a volume that is to be handed over may take until all replicas hold the same. It is part of the guest's pause.
const SEAL_MAX: Duration = Duration::from_millis(200);

/// What who goes on with a living guest's volume has to know of it. Travels with the guest's device state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// All replicas of the set hold the same; `None`: that could not be said.
    pub seal: Option<Seal>,
    /// The boots of the hosts of those that held everything, as they were reached last.
    pub boots: BTreeMap<ReplicaId, String>,
}

/// Something an owner wants.
#[derive(Debug)]
pub(super) enum Wish {
    /// The guest stands still: say what the next one has to know.
    HandOver { until: Instant, said: oneshot::Sender<Handover> },
    /// It goes on here after all.
    TakeBack { done: oneshot::Sender<()> },
    /// Copy no faster than this, in bytes per second; `None`: as fast as the guest leaves room for.
    CopyRate(Option<u64>),
    /// Read from these first.
    Prefer(Vec<ReplicaId>),
    /// Put everything on stable storage.
    Flush { done: oneshot::Sender<bool> },
    /// Nothing is under way and nothing more comes: have everything put on stable storage.
    Finish { done: oneshot::Sender<bool> },
    /// Compare what the replicas hold.
    Compare { range: Range<u64>, authority: ReplicaId, repair: bool, found: watch::Sender<Comparison> },
}

/// A volume that is in use.
#[derive(Debug, Clone)]
pub struct VolumeHandle {
    pub(super) wishes: mpsc::Sender<Wish>,
    pub(super) status: watch::Receiver<VolumeStatus>,
}

/// How a volume is, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Its replicas.
    pub replicas: Vec<ReplicaState>,
    /// Requests of the guest's without an answer.
    pub open: usize,
    /// Why the last request failed, until one succeeds.
    pub trouble: Option<String>,
    /// It can be used from here no more, and why.
    pub over: Option<&'static str>,
}

/// How a replica is, as the volume sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaState {
    /// Which.
    pub id: ReplicaId,
    /// It is in the in-sync set, and has not failed.
    pub sound: bool,
    /// It can be reached.
    pub reached: bool,
    /// What it lacks, in bytes.
    pub lacks: u64,
    /// What was copied to it since the volume is in use here, in bytes; holes are not counted.
    pub copied: u64,
    /// What went wrong with it last.
    pub why: Option<String>,
}

impl VolumeHandle {
    /// How it is, and whenever that changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<VolumeStatus> {
        self.status.clone()
    }

    /// Whether it is still in use.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        !self.wishes.is_closed()
    }

    /// For a guest that stands still and has all its answers: what has to be known where it goes on. Nothing is asked of the replicas
    /// from here on. `None`: the volume is not in use any more.
    pub async fn hand_over(&self) -> Option<Handover> {
        let (said, handover) = oneshot::channel();
        self.wishes.send(Wish::HandOver { until: Instant::now() + SEAL_MAX, said }).await.ok()?;
        handover.await.ok()
    }

    /// After [`VolumeHandle::hand_over`]: the guest goes on here, under the same right. `false`: the volume is not in use any more.
    pub async fn take_back(&self) -> bool {
        let (done, taken) = oneshot::channel();
        self.wishes.send(Wish::TakeBack { done }).await.is_ok() && taken.await.is_ok()
    }

    /// Copies to replicas that lack something no faster than so many bytes per second.
    pub async fn limit_copying(&self, most: Option<u64>) {
        // One that has ended copies nothing.
        let _ = self.wishes.send(Wish::CopyRate(most)).await;
    }
}

impl VolumeHandle {
    /// Puts what was written so far on stable storage, as if the guest had asked for it. `false`: it was not, or the volume is not
    /// in use any more.
    pub async fn flush(&self) -> bool {
        let (done, flushed) = oneshot::channel();
        self.wishes.send(Wish::Flush { done }).await.is_ok() && flushed.await.unwrap_or(false)
    }

    /// The same as [`Volume::finish`], for who does not have it.
    pub async fn finish(&self, within: Duration) -> bool {
        let (done, finished) = oneshot::channel();
        let finish = async { self.wishes.send(Wish::Finish { done }).await.is_ok() && finished.await.unwrap_or(false) };
        tokio::time::timeout(within, finish).await.unwrap_or(false)
    }

    /// Reads from these first, the nearest in front.
    pub async fn prefer(&self, replicas: Vec<ReplicaId>) {
        // One that has ended reads nothing.
        let _ = self.wishes.send(Wish::Prefer(replicas)).await;
    }
}

impl Volume {
    pub(super) fn wished(&mut self, wish: Wish) {
        match wish {
            Wish::CopyRate(most) => self.copying.most = most,
            Wish::Prefer(prefer) => self.apply(Event::Prefer(prefer)),
            Wish::Flush { done } => {
                self.last_request += 1;
                let id = RequestId(self.last_request);
                self.flushes.insert(id, done);
                self.todo.push_back(Event::Request(Request { id, kind: Kind::Flush, range: 0..0 }));
            }
            Wish::HandOver { until, said } => {
                self.handing_over = Some((until, said));
                self.try_to_seal();
            }
            Wish::Finish { done } => {
                if self.begin_to_finish() {
                    self.finishing = Some(done);
                } else {
                    // Whoever does not wait any more does not need to know.
                    let _ = done.send(true);
                }
            }
            Wish::Compare { range, authority, repair, found } => self.compare(range, authority, repair, found),
            Wish::TakeBack { done } => self.take_back(done),
        }
    }

    /// Every request has its answer, and no more come: has everything put on stable storage, so that the next start has nothing to
    /// copy. Whether that was done within that time, or is somebody else's to do.
    pub async fn finish(&mut self, within: Duration) -> bool {
        if !self.begin_to_finish() {
            return true;
        }
        let mut nothing = Vec::new();
        let done = std::future::poll_fn(|cx| {
            // What ends now was answered to nobody.
            let _ = self.poll(cx, &mut nothing);
            self.settled.map_or(Poll::Pending, Poll::Ready)
        });
        tokio::time::timeout(within, done).await.unwrap_or(false)
    }

    pub(super) fn finished(&mut self, settled: bool) {
        self.settled = Some(settled);
        if let Some(done) = self.finishing.take() {
            // Whoever does not wait any more starts with what is left.
            let _ = done.send(settled);
        }
    }

    /// Whether there is anything to do for that, which [`Volume::settled`] then says when it is done.
    fn begin_to_finish(&mut self) -> bool {
        if self.peers.rests || self.over.is_some() || self.settled == Some(true) {
            return false;
        }
        self.settled = None;
        self.comparing = None;
        self.apply(Event::Finish);
        true
    }

    /// Tries until the mirror can say that all hold the same, or it has to do without.
    pub(super) fn try_to_seal(&mut self) {
        if self.handing_over.is_some() {
            self.apply(Event::Seal { generation: self.generation });
            // In time to be asked again.
            self.tick.as_mut().reset(Instant::now() + Duration::from_millis(SEAL_AGAIN_MS));
        }
    }

    pub(super) fn sealed(&mut self, seal: Option<Seal>) {
        if let Some((_, said)) = self.handing_over.take() {
            self.comparing = None;
            let boots = self.peers.boots(&self.mirror);
            self.peers.let_go_of_all();
            // Whoever does not wait any more goes on without.
            let _ = said.send(Handover { seal, boots });
        }
    }

    pub(super) fn not_sealed(&mut self, why: &'static str) {
        if self.handing_over.as_ref().is_some_and(|(until, _)| *until <= Instant::now()) {
            tracing::info!(
                volume = self.name,
                why,
                "the replicas cannot be said to be equal; some will be copied again"
            );
            self.sealed(None);
        }
    }

    pub(super) fn publish(&mut self) {
        let seen = self.mirror.status();
        let replica = |it: pollux_mirror::ReplicaStatus| ReplicaState {
            id: it.replica,
            sound: it.sound,
            reached: self.peers.is_reached(it.replica),
            lacks: it.lacks,
            copied: self.peers.copied(it.replica),
            why: self.peers.why(it.replica),
        };
        let status = VolumeStatus {
            replicas: seen.replicas.into_iter().map(replica).collect(),
            open: seen.open,
            trouble: self.trouble.clone(),
            over: self.over,
        };
        self.status.send_if_modified(|shown| {
            let changed = *shown != status;
            *shown = status;
            changed
        });
    }

    /// What the log has decided since.
    pub(super) fn take_decisions(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Poll::Ready(Some(set)) = self.set.poll_next_unpin(cx) {
            self.decided(set);
            moved = true;
        }
        moved
    }

    pub(super) fn decided(&mut self, set: Set) {
        self.latest = Some(set.clone());
        let Set { version, members, replicas, going } = set;
        self.apply(Event::Decided { version, members });
        let known: BTreeSet<ReplicaId> = self.mirror.status().replicas.iter().map(|it| it.replica).collect();
        for replica in known.difference(&replicas).copied() {
            self.apply(Event::Removed { replica });
            self.peers.remove(replica);
        }
        for replica in replicas.difference(&known).copied() {
            self.apply(Event::Added { replica });
            self.peers.add(replica);
        }
        for replica in going.difference(&self.released).copied().collect::<Vec<_>>() {
            self.apply(Event::Release { replica });
        }
        // One that stays after all.
        for replica in self.released.difference(&going).copied().collect::<Vec<_>>() {
            if replicas.contains(&replica) {
                self.apply(Event::Added { replica });
            }
        }
        self.released = going;
    }
}
