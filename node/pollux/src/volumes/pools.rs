//! This node's pools: directories that were marked as such when they were added, or block devices with such a directory on them
//! ([`super::device`]).
//!
//! The mark tells a pool from the empty directory that is there when its file system is not mounted, and from another node's.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use pollux_disk::{Pool, PoolError};
use pollux_state::id::{NodeId, PoolId};
use serde::{Deserialize, Serialize};

use super::device::{DeviceFault, Devices};

/// The mark, a file in the pool's directory.
pub(super) const MARK: &str = ".pollux-pool";

/// What the mark says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    cluster: String,
    node: NodeId,
    name: String,
}

/// Why a directory cannot be used as a pool.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolFault {
    /// It is no place for replicas.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// It is a device that cannot be one.
    #[error(transparent)]
    Device(#[from] DeviceFault),
    /// There is no mark.
    #[error("{path} is not marked as pool {name}; is its file system mounted?")]
    Unmarked {
        /// Where.
        path: PathBuf,
        /// Which pool it should be.
        name: String,
    },
    /// There is another's.
    #[error("{path} is pool {found} of {node} in cluster {cluster} already; use an empty directory")]
    Taken {
        /// Where.
        path: PathBuf,
        /// The pool's name there.
        found: String,
        /// Of which node.
        node: NodeId,
        /// Of which cluster.
        cluster: String,
    },
    /// The mark cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Marks `path`, a directory of `node`, as its pool `name`. Marking it again changes nothing.
pub(crate) fn found(cluster: &str, node: NodeId, name: &str, path: &Path) -> Result<Pool, PoolFault> {
    let pool = Pool::open(path)?;
    let mark = Mark { cluster: cluster.to_owned(), node, name: name.to_owned() };
    match read(path)? {
        Some(found) if found == mark => {}
        Some(found) => return Err(taken(path, found)),
        None => {
            let failed = |source| PoolFault::Io { path: path.join(MARK), source };
            let text = serde_json::to_vec(&mark).map_err(|error| failed(error.into()))?;
            // Whole or not at all, and there when the log says that the pool is.
            let new = path.join(format!("{MARK}.new"));
            let written = fs::write(&new, text)
                .and_then(|()| fs::File::open(&new)?.sync_all())
                .and_then(|()| fs::rename(&new, path.join(MARK)))
                .and_then(|()| fs::File::open(path)?.sync_all());
            written.map_err(failed)?;
        }
    }
    Ok(pool)
}

fn read(path: &Path) -> Result<Option<Mark>, PoolFault> {
    let failed = |source| PoolFault::Io { path: path.join(MARK), source };
    match fs::read(path.join(MARK)) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| failed(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn taken(path: &Path, Mark { cluster, node, name }: Mark) -> PoolFault {
    PoolFault::Taken { path: path.to_owned(), found: name, node, cluster }
}

/// The pools of this node that are open.
pub(super) struct Pools {
    cluster: String,
    node: NodeId,
    devices: Devices,
    open: Mutex<HashMap<PoolId, Opened>>,
}

struct Opened {
    name: String,
    pool: Pool,
}

impl Pools {
    /// Block devices are mounted in directories of `mounts`.
    pub(super) fn new(cluster: String, node: NodeId, mounts: PathBuf) -> Self {
        Self { cluster, node, devices: Devices::new(mounts), open: Mutex::default() }
    }

    /// Makes `path` ready to become the pool `name`: a directory is, a device may have to be formatted. Returns the directory. Another
    /// node's pool is not touched.
    pub(super) fn prepare(&self, name: &str, path: &Path) -> Result<PathBuf, PoolFault> {
        self.devices.prepare(name, path)?;
        self.devices.is_added(name);
        let ours = |at: &Path| match read(at)? {
            Some(mark) if mark.cluster != self.cluster || mark.node != self.node => Err(taken(path, mark)),
            Some(_) | None => Ok(()),
        };
        let directory = self.devices.directory(name, path, ours);
        if directory.is_err() {
            self.devices.was_added(name);
        }
        directory
    }

    /// It could not become one after all.
    pub(super) fn give_up(&self, name: &str) {
        self.devices.was_added(name);
        self.unmount_unknown(&self.open.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn unmount_unknown(&self, open: &HashMap<PoolId, Opened>) {
        self.devices.retain(|name| open.values().any(|opened| opened.name == name));
    }

    /// A pool of this node, opened if it is not.
    pub(super) fn get(&self, pool: &pollux_state::volume::Pool) -> Result<Pool, PoolFault> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = open.get(&pool.id) {
            return Ok(opened.pool.clone());
        }
        let wanted = Mark { cluster: self.cluster.clone(), node: self.node, name: pool.name.clone() };
        let is_it = |path: &Path| match read(path)? {
            Some(mark) if mark == wanted => Ok(()),
            Some(mark) => Err(taken(path, mark)),
            None => Err(PoolFault::Unmarked { path: path.to_owned(), name: pool.name.clone() }),
        };
        let path = self.devices.directory(&pool.name, Path::new(&pool.path), is_it)?;
        let path = path.as_path();
        is_it(path)?;
        self.devices.was_added(&pool.name);
        let opened = Pool::open(path)?;
        open.insert(pool.id, Opened { name: pool.name.clone(), pool: opened.clone() });
        Ok(opened)
    }

    /// Forgets those that are gone, and unmounts their devices.
    pub(super) fn retain(&self, known: impl Fn(PoolId) -> bool) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let before = open.len();
        open.retain(|id, _| known(*id));
        if open.len() < before {
            self.unmount_unknown(&open);
        }
    }

    /// Forgets all, and unmounts their devices.
    pub(super) fn close(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.devices.retain(|_| false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unmounted_pool_and_another_ones_are_told_apart_from_this_one() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let pools = |node| Pools::new("c1".into(), node, dir.path().join("none"));
        let pool = |name: &str| pollux_state::volume::Pool {
            id: PoolId(1),
            node: NodeId(1),
            name: name.into(),
            path: dir.path().to_string_lossy().into_owned(),
            since: 0,
        };
        assert!(matches!(pools(NodeId(1)).get(&pool("fast")), Err(PoolFault::Unmarked { .. })), "nobody marked it");
        found("c1", NodeId(1), "fast", dir.path()).expect("it can be marked");
        found("c1", NodeId(1), "fast", dir.path()).expect("and again");
        pools(NodeId(1)).get(&pool("fast")).expect("it is the pool");
        for (cluster, node, name) in [("c2", NodeId(1), "fast"), ("c1", NodeId(2), "fast"), ("c1", NodeId(1), "slow")] {
            let refused = found(cluster, node, name, dir.path());
            assert!(matches!(refused, Err(PoolFault::Taken { .. })), "{cluster} {node} {name}");
        }
        assert!(matches!(pools(NodeId(2)).get(&pool("fast")), Err(PoolFault::Taken { .. })));
    }
}
