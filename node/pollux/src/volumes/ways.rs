//! The ways of a volume that is in use here: to its replicas, and to the log.

use std::time::Duration;

use futures::future::BoxFuture;
use pollux_link::To;
use pollux_raft::ProposeError;
use pollux_state::{
    Command, Outcome, Proposal,
    id::{Generation, ReplicaId, VolumeId},
};
use pollux_volume::{Claim, Opened, Reached, Remote, SetChange, Side, Ways};
use tokio::sync::oneshot;

use super::Volumes;
use crate::vm::{hold, wall_ms};

/// How long a session may take to begin, in milliseconds: what an older one has under way is waited for.
const OPEN_MS_MAX: u64 = 5_000;
/// One attempt to put a proposal into the log, in milliseconds. The next follows with the same id.
const ATTEMPT_MS: u64 = 2_000;
/// Pause between attempts, in milliseconds.
const AGAIN_MS: u64 = 50;

/// A volume in use by the right of `generation`.
pub(super) struct WaysOf {
    pub(super) volumes: Volumes,
    pub(super) volume: VolumeId,
    pub(super) generation: Generation,
    pub(super) size: u64,
}

impl Ways for WaysOf {
    fn open(&self, replica: ReplicaId) -> BoxFuture<'static, Result<Reached, String>> {
        let volumes = self.volumes.clone();
        let claim = Claim::new(self.volume, replica, self.generation, volumes.0.me, self.size);
        Box::pin(async move {
            let opening = tokio::time::timeout(Duration::from_millis(OPEN_MS_MAX), volumes.reach(claim));
            opening.await.unwrap_or_else(|_| Err(format!("no answer for {OPEN_MS_MAX} ms")))
        })
    }

    fn change(&self, change: SetChange) -> BoxFuture<'static, ()> {
        let (volume, generation) = (self.volume, self.generation);
        let command = match change {
            SetChange::Leave { replica, version, why } => {
                Command::LeaveSet { volume, replica, generation, version, why }
            }
            SetChange::Join { replica, version } => Command::JoinSet { volume, replica, generation, version },
        };
        let volumes = self.volumes.clone();
        Box::pin(async move {
            if matches!(command, Command::JoinSet { .. }) {
                hold::at(hold::Place::VolumeJoin).await;
            }
            if let Outcome::Refused(why) = volumes.propose(command).await {
                // What made it void is, or will be, seen in the set; or the right has gone elsewhere.
                tracing::info!(%volume, %why, "a change of the in-sync set was refused by the log");
            }
        })
    }

    fn may_send(&self, bytes: u64) -> BoxFuture<'static, u64> {
        let bulk = self.volumes.0.bulk.clone();
        if !bulk.is_limited() {
            return Box::pin(std::future::ready(bytes));
        }
        // A volume is polled when its user likes. Whoever's turn it is must not wait for that.
        let (mut grant, granted) = oneshot::channel();
        self.volumes.spawn(async move {
            tokio::select! {
                // One that has ended has no use for it.
                () = grant.closed() => {}
                some = bulk.take_some(bytes) => drop(grant.send(some)),
            }
        });
        Box::pin(async move {
            match granted.await {
                Ok(some) => some,
                // The daemon ends.
                Err(_) => std::future::pending().await,
            }
        })
    }
}

impl Volumes {
    async fn reach(&self, claim: Claim) -> Result<Reached, String> {
        let state = self.state();
        let node = state.volumes.get(&claim.volume).and_then(|it| state.node_of_replica(it, claim.replica));
        let node = node.ok_or_else(|| format!("{} is gone", claim.replica))?;
        if state.volumes.get(&claim.volume).is_some_and(|it| !it.set.contains(&claim.replica)) {
            hold::at(hold::Place::VolumeReach).await;
        }
        if node == self.0.me.node {
            let place = self.place(&state, &claim).await?;
            let opened = self.0.keepers.open(&claim, &place).await;
            return opened.map(reached).map_err(|refusal| refusal.to_string());
        }
        let address = state.nodes.get(&node).map(|node| node.address).ok_or_else(|| format!("{node} is gone"))?;
        let opened = Remote::open(&self.0.endpoint, &To { node, address }, &claim).await;
        opened.map(reached).map_err(|error| error.to_string())
    }

    /// Puts a command to the log until it has answered.
    pub(super) async fn propose(&self, command: Command) -> Outcome {
        let proposal = Proposal { id: self.0.minter.mint(), by: self.0.me.node, at: wall_ms(), command };
        loop {
            match self.0.consensus.propose(proposal.clone(), Duration::from_millis(ATTEMPT_MS)).await {
                Ok(applied) => return applied.outcome,
                Err(error @ ProposeError::Refused { .. }) => {
                    tracing::error!(%error, command = ?proposal.command, "the log does not even look at it");
                    tokio::time::sleep(Duration::from_millis(ATTEMPT_MS)).await;
                }
                Err(error @ (ProposeError::Unknown { .. } | ProposeError::NoLeader { .. })) => {
                    tracing::debug!(%error, "the proposal's outcome is not known; asking again");
                }
            }
            tokio::time::sleep(Duration::from_millis(AGAIN_MS)).await;
        }
    }
}

fn reached<S: Side + 'static>(opened: Opened<S>) -> Reached {
    Reached { side: Box::new(opened.side), report: opened.report, boot: opened.boot }
}
