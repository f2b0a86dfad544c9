//! Who may have a replica of this node: what the log says of the right to write, as far as this node has applied it.

use std::time::Duration;

use async_trait::async_trait;
use pollux_disk::EngineKind;
use pollux_state::{
    ClusterState,
    id::{NodeId, Owner},
};
use pollux_volume::{Claim, Door, Place};

use super::{Volumes, name_of};

/// How long a pool is waited for that is being opened, in milliseconds: as it is when the daemon has just been started. Less than whoever
/// asks waits.
const POOL_MS_MAX: u64 = 3_000;

#[async_trait]
impl Door for Volumes {
    async fn admit(&self, from: NodeId, claim: &Claim) -> Result<Place, String> {
        if claim.owner.node != from {
            return Err(format!("it is {from} that asks, and for {}", claim.owner));
        }
        // Whoever writes knows of its right before this node may; nobody else is let in meanwhile.
        let known = |state: &ClusterState| {
            state.volumes.get(&claim.volume).is_some_and(|volume| volume.generation >= claim.generation)
        };
        let state = self.caught_up(known).await;
        self.place(&state, claim).await
    }
}

impl Volumes {
    /// Where the replica is that `claim` is for, if the state gives its owner the right to it.
    pub(super) async fn place(&self, state: &ClusterState, claim: &Claim) -> Result<Place, String> {
        let Claim { volume: id, replica, generation, owner, size, .. } = *claim;
        let volume = state.volumes.get(&id).ok_or_else(|| format!("{id} is not in the cluster"))?;
        let writer = state.writer(volume);
        if volume.generation != generation || writer != Some(owner) {
            let writer = writer.map_or_else(|| "nobody".to_owned(), |writer: Owner| writer.to_string());
            return Err(format!(
                "{writer} may write volume {} at generation {}, not {owner} at {generation}",
                volume.name, volume.generation
            ));
        }
        if volume.size != size {
            return Err(format!("volume {} has {} bytes, not {size}", volume.name, volume.size));
        }
        let of = volume.replicas.get(&replica).ok_or_else(|| format!("{replica} is not of volume {}", volume.name))?;
        if !of.made {
            return Err(format!("{replica} of volume {} is not made yet", volume.name));
        }
        // The log would not take it into the set; its node looks at it again and again.
        if let Some(why) = of.failed.as_ref().filter(|_| !volume.set.contains(&replica)) {
            return Err(format!("{replica} of volume {} cannot be used: {why}", volume.name));
        }
        let pool = state.pools.get(&of.pool).filter(|pool| pool.node == self.0.me.node);
        let pool = pool.ok_or_else(|| format!("{replica} of volume {} is not on this node", volume.name))?;
        let pool = self.0.pools.get(pool, Duration::from_millis(POOL_MS_MAX)).await;
        let pool = pool.map_err(|fault| fault.to_string())?;
        Ok(Place { pool, name: name_of(id, replica), engine: EngineKind::default() })
    }
}
