//! A directory stops being marked as a pool.

use std::{fs, io, path::Path};

use super::pools::{MARK, PoolFault};

/// Removes the mark from a directory, so that it can become another pool. What else is in it stays.
pub(crate) fn unmark(path: &Path) -> Result<(), PoolFault> {
    match fs::remove_file(path.join(MARK)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PoolFault::Io { path: path.join(MARK), source }),
        _ => Ok(()),
    }
}
