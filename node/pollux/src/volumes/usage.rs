//! What this node's pools have and hold, for people who ask.

use std::time::Duration;

use pollux_state::id::{PoolId, ReplicaId};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::Volumes;

/// Looks at pools at the same time: each occupies a thread for as long as its storage hangs.
static LOOKS: Semaphore = Semaphore::const_new(4);
/// How long a pool may take to be looked at, in milliseconds: less than whoever asked for it waits.
const LOOK_MS_MAX: u64 = 800;
/// How long it is waited for if it is being opened, in milliseconds.
const OPEN_MS_MAX: u64 = 500;

/// A pool of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolUsage {
    /// Which.
    pub pool: PoolId,
    /// What it has, or why it cannot be used.
    pub space: Result<Space, String>,
}

/// What a pool has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Bytes of its file system.
    pub size: u64,
    /// Bytes that can still be written.
    pub free: u64,
    /// Bytes that replicas take.
    pub used: u64,
    /// What each takes.
    #[serde(default)]
    pub replicas: Vec<(ReplicaId, u64)>,
}

impl Volumes {
    /// All pools of this node, looked at now.
    pub async fn usage(&self) -> Vec<PoolUsage> {
        let state = self.state();
        let ours = state.pools.values().filter(|pool| pool.node == self.0.me.node);
        let looks = ours.map(|pool| async {
            let look = tokio::time::timeout(Duration::from_millis(LOOK_MS_MAX), self.look_at(pool.clone()));
            let space =
                look.await.unwrap_or_else(|_| Err(format!("{} has not answered for {LOOK_MS_MAX} ms", pool.path)));
            PoolUsage { pool: pool.id, space }
        });
        futures::future::join_all(looks).await
    }

    async fn look_at(&self, pool: pollux_state::volume::Pool) -> Result<Space, String> {
        let opened = self.0.pools.get(&pool, Duration::from_millis(OPEN_MS_MAX)).await;
        let pool = opened.map_err(|fault| fault.to_string())?;
        let turn = LOOKS.acquire().await.map_err(|error| error.to_string())?;
        let look = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let usage = pool.usage().map_err(|error| error.to_string())?;
            let found = pool.list().map_err(|error| error.to_string())?;
            let used = found.iter().map(|found| found.allocated).fold(0, u64::saturating_add);
            let replicas = found.iter().filter_map(|found| Some((super::named(&found.name)?, found.allocated)));
            Ok(Space { size: usage.capacity, free: usage.free, used, replicas: replicas.collect() })
        });
        look.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}
