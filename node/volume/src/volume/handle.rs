//! What a volume's owner can want of it, and see of it, while somebody else polls it.

use std::task::{Context, Poll};

use futures::StreamExt as _;
use pollux_mirror::Event;
use pollux_wire::id::ReplicaId;
use tokio::sync::{mpsc, watch};

use super::{Set, Volume};

/// Wishes that may wait; who wishes waits then.
pub(super) const WISHES_MAX: usize = 16;

/// Something an owner wants.
#[derive(Debug)]
pub(super) enum Wish {
    /// Copy no faster than this, in bytes per second; `None`: as fast as the guest leaves room for.
    CopyRate(Option<u64>),
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

    /// Copies to replicas that lack something no faster than so many bytes per second.
    pub async fn limit_copying(&self, most: Option<u64>) {
        // One that has ended copies nothing.
        let _ = self.wishes.send(Wish::CopyRate(most)).await;
    }
}

impl Volume {
    pub(super) fn wished(&mut self, wish: Wish) {
        match wish {
            Wish::CopyRate(most) => self.copying.most = most,
        }
    }

    pub(super) fn publish(&mut self) {
        let seen = self.mirror.status();
        let replica = |it: pollux_mirror::ReplicaStatus| ReplicaState {
            id: it.replica,
            sound: it.sound,
            reached: self.peers.is_reached(it.replica),
            lacks: it.lacks,
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
        while let Poll::Ready(Some(Set { version, members })) = self.set.poll_next_unpin(cx) {
            self.apply(Event::Decided { version, members });
            moved = true;
        }
        moved
    }
}
