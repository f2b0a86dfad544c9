//! A directory becomes a pool of this node, also one that was another before.

use std::{collections::BTreeSet, fs, io, path::Path};

use super::{
    Volumes,
    pools::{MARK, PoolFault, found},
};

impl Volumes {
    /// Marks a directory, or what is on a block device, as this node's pool `name`. The mark of a pool that was removed from the
    /// cluster since is in nobody's way. Waits for the storage.
    pub(crate) fn claim(&self, name: &str, path: &Path) -> Result<(), PoolFault> {
        let (cluster, me) = (&self.0.cluster, self.0.me.node);
        let state = self.state();
        let here = state.pools.values().filter(|pool| pool.node == me);
        let known: BTreeSet<&str> = here.map(|pool| pool.name.as_str()).collect();
        self.0.pools.prepare(name, path, |path| match found(cluster, me, name, path) {
            Err(PoolFault::Taken { cluster: its, node, found: old, .. })
                if its == *cluster && node == me && !known.contains(old.as_str()) =>
            {
                unmark(path)?;
                found(cluster, me, name, path).map(drop)
            }
            marked => marked.map(drop),
        })
    }

    /// What was claimed will not be a pool after all. Waits for the storage.
    pub(crate) fn unclaim(&self, name: &str) {
        self.0.pools.give_up(name);
    }
}

/// Removes the mark from a directory. What else is in it stays.
fn unmark(path: &Path) -> Result<(), PoolFault> {
    match fs::remove_file(path.join(MARK)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PoolFault::Io { path: path.join(MARK), source }),
        _ => Ok(()),
    }
}
