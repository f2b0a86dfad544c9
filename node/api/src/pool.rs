//! Pools: directories on nodes, in which replicas of volumes are.

use serde::{Deserialize, Serialize};

/// How a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolState {
    /// Its node can use it.
    Ready,
    /// Its node cannot.
    Failed,
    /// Its node does not answer.
    #[serde(other)]
    Unknown,
}

/// A pool. What only its node knows, that was asked; `null`: it did not answer, or cannot use the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    /// `NODE:POOL`, as it is called everywhere.
    pub place: String,
    /// Its node.
    pub node: String,
    /// Its name there.
    pub name: String,
    /// The directory there.
    pub path: String,
    /// How it is.
    pub state: PoolState,
    /// Why it cannot be used, or is not known.
    pub why: Option<String>,
    /// Bytes of its file system.
    pub size_bytes: Option<u64>,
    /// Bytes that can still be written.
    pub free_bytes: Option<u64>,
    /// Bytes that replicas take of it. Holes take none.
    pub used_bytes: Option<u64>,
    /// Bytes that its replicas would take without holes.
    pub promised_bytes: u64,
    /// Replicas in it.
    pub replicas: u64,
    /// When it was added.
    pub since: u64,
}

/// A pool to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddPool {
    /// Its name, unique on its node.
    pub name: String,
    /// The directory there, an absolute path. Without symbolic links, for one could point elsewhere tomorrow.
    pub path: String,
    /// Its node; without it the one that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}
