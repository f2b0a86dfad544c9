//! Comparing a volume's replicas because somebody asked for it, and repairing what differs if they asked for that.
//!
//! The node that writes to the volume does it, beside the guest; where nobody writes, the node that was asked holds the volume for
//! that time, which stands in nobody's way: a VM that is started takes it over, and the comparison goes on beside that VM if it
//! runs here.
//!
//! What a comparison says is true of the replicas that were in the set all that time. Whenever somebody else had the right to write
//! meanwhile it begins anew.

use std::{collections::BTreeSet, time::Duration};

use pollux_disk::Disk as _;
use pollux_state::{
    ClusterState,
    id::{Generation, ReplicaId, VolumeId},
    volume::{Purpose, Stage, Volume},
};
use pollux_volume::{Comparison, VolumeHandle};

use super::{Volumes, news, turns::Comparer};

/// Pieces that could not be read, or not in time, are compared again so often.
pub(super) const ROUNDS_MAX: u32 = 10;
/// A comparison that was interrupted begins anew so often.
const ATTEMPTS_MAX: u32 = 5;
/// Between two attempts, in milliseconds, if nothing is decided meanwhile.
const AGAIN_MS: u64 = 2_000;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VerifyStep {
    /// All is compared; with `repair` what differs is copied.
    Comparing,
    /// Once more, after what differed was copied.
    ComparingAgain,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verified {
    /// Whose content counts.
    pub(crate) authority: ReplicaId,
    /// Those in the set from the beginning to the end.
    pub(crate) compared: BTreeSet<ReplicaId>,
    /// What was found.
    pub(crate) found: Comparison,
    /// What was found once what differed had been copied, if anything had to be.
    pub(crate) again: Option<Comparison>,
}

/// Why replicas were not compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unverified {
    /// There is no such volume any more.
    #[error("{0} is not in the cluster any more")]
    Gone(VolumeId),
    /// There is nothing to compare.
    #[error("volume {volume} has one replica in sync, in {place}: there is none to compare it with")]
    Alone {
        /// The volume.
        volume: String,
        /// Where.
        place: String,
    },
    /// Another node has the right to write.
    #[error("the right to write to volume {volume} has gone over to {node}")]
    Elsewhere {
        /// The volume.
        volume: String,
        /// Who has it.
        node: String,
    },
    /// A move's comparison is not disturbed.
    #[error("the move of volume {volume} is comparing its replicas itself, and fails if they differ")]
    Moving {
        /// The volume.
        volume: String,
    },
    /// One at a time.
    #[error("the replicas of volume {volume} are being compared already, as somebody asked")]
    Already {
        /// The volume.
        volume: String,
    },
    /// It cannot be held.
    #[error("{0}")]
    NotHeld(String),
    /// The VM came and went too often.
    #[error(
        "comparing the replicas of volume {volume} was interrupted {ATTEMPTS_MAX} times, for its VM moved, stopped or started"
    )]
    Interrupted {
        /// The volume.
        volume: String,
    },
}

/// Nobody can be compared with, or it is somebody else's.
fn obstacle(state: &ClusterState, it: &Volume) -> Option<Unverified> {
    let alone = it.set.iter().next().filter(|_| it.set.len() < 2);
    alone.map(|id| Unverified::Alone { volume: it.name.clone(), place: state.place_of_replica(it, *id) })
}

impl Volumes {
    /// Why it could not be done here now; it may be so by the time it is tried.
    pub(crate) fn may_verify(&self, id: VolumeId) -> Result<(), Unverified> {
        let state = self.state();
        let it = state.volumes.get(&id).ok_or(Unverified::Gone(id))?;
        let volume = || it.name.clone();
        if let Some(obstacle) = obstacle(&state, it) {
            return Err(obstacle);
        }
        if it.stage() == Some(Stage::Comparing) {
            return Err(Unverified::Moving { volume: volume() });
        }
        match self.0.turns.try_take(id, Comparer::Verify).map(drop) {
            Err(Comparer::Move) => Err(Unverified::Moving { volume: volume() }),
            Err(Comparer::Verify) => Err(Unverified::Already { volume: volume() }),
            // That one stops after each small part.
            Ok(()) | Err(Comparer::Scrub) => Ok(()),
        }
    }

    /// Compares the replicas of a volume, and `told` of each step.
    pub(crate) async fn verify(
        &self,
        id: VolumeId,
        repair: bool,
        told: impl Fn(VerifyStep, &Comparison),
    ) -> Result<Verified, Unverified> {
        let _turn = self.0.turns.take(id, Comparer::Verify).await;
        let mut applied = self.0.consensus.watch();
        for _ in 0..ATTEMPTS_MAX {
            let state = applied.borrow_and_update().state.clone();
            let it = state.volumes.get(&id).ok_or(Unverified::Gone(id))?;
            if let Some(obstacle) = obstacle(&state, it) {
                return Err(obstacle);
            }
            let writer = state.writer(it).filter(|writer| state.lives(*writer));
            let verified = match writer {
                Some(writer) if writer == self.0.me => match self.handle(id) {
                    Some(handle) => self.verify_with(it, &handle, repair, &told).await?,
                    // It is about to be used.
                    None => None,
                },
                Some(writer) => {
                    let node = state.name_of(writer.node).map_or_else(|| writer.node.to_string(), str::to_owned);
                    return Err(Unverified::Elsewhere { volume: it.name.clone(), node });
                }
                None => self.verify_held(id, repair, &told).await?,
            };
            if let Some(verified) = verified {
                self.0.scrubs.verified(id, verified.again.as_ref().unwrap_or(&verified.found));
                return Ok(verified);
            }
            if !news(&mut applied, Some(Duration::from_millis(AGAIN_MS))).await {
                break;
            }
        }
        let volume = self.state().volumes.get(&id).map(|it| it.name.clone()).ok_or(Unverified::Gone(id))?;
        Err(Unverified::Interrupted { volume })
    }

    /// One attempt while nobody else writes. `None`: somebody does by now.
    async fn verify_held(
        &self,
        id: VolumeId,
        repair: bool,
        told: &impl Fn(VerifyStep, &Comparison),
    ) -> Result<Option<Verified>, Unverified> {
        let mut held = self.hold(id, Purpose::Verify).await.map_err(Unverified::NotHeld)?;
        let (handle, generation) = (held.handle(), held.generation());
        let state = self.state();
        let mut nothing = Vec::new();
        let verified = match state.volumes.get(&id).filter(|it| it.generation == generation) {
            Some(it) => tokio::select! {
                verified = self.verify_with(it, &handle, repair, told) => verified,
                () = async { loop { std::future::poll_fn(|cx| held.disk().poll(cx, &mut nothing)).await } } => Ok(None),
            },
            None => Ok(None),
        };
        if let Err(why) = held.release(true).await {
            tracing::debug!(volume = %id, why, "a volume that was verified was taken over");
        }
        verified
    }

    /// One attempt with a volume that is in use here, as `it` was decided. `None`: nobody went on with it.
    async fn verify_with(
        &self,
        it: &Volume,
        handle: &VolumeHandle,
        repair: bool,
        told: &impl Fn(VerifyStep, &Comparison),
    ) -> Result<Option<Verified>, Unverified> {
        let (whole, authority) = (0..it.size, it.authority);
        let comparing = async {
            let tell = |now: &Comparison| told(VerifyStep::Comparing, now);
            let found = handle.compare_fully(whole.clone(), (authority, repair), ROUNDS_MAX, tell).await?;
            let mut again = None;
            if repair && !found.differs.is_empty() {
                let tell = |now: &Comparison| told(VerifyStep::ComparingAgain, now);
                again = Some(handle.compare_fully(whole, (authority, false), ROUNDS_MAX, tell).await?);
            }
            Some((found, again))
        };
        let compared = tokio::select! {
            compared = comparing => compared,
            () = self.overtaken(it.id, it.generation) => None,
        };
        let Some((found, again)) = compared else { return Ok(None) };
        let state = self.state();
        let now = state.volumes.get(&it.id).ok_or(Unverified::Gone(it.id))?;
        let compared: BTreeSet<ReplicaId> = it.set.intersection(&now.set).copied().collect();
        if compared.len() < 2
            && let Some(obstacle) = obstacle(&state, now)
        {
            return Err(obstacle);
        }
        Ok(Some(Verified { authority, compared, found, again }))
    }

    /// Returns when the right to write to a volume under `generation` has gone over.
    async fn overtaken(&self, id: VolumeId, generation: Generation) {
        let mut applied = self.0.consensus.watch();
        let gone = applied.wait_for(|view| view.state.volumes.get(&id).is_none_or(|it| it.generation != generation));
        // Without any more decisions the daemon ends.
        let _ = gone.await;
    }
}
