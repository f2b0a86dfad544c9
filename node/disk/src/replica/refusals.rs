//! Why there is no pool, or no replica, or not as asked for: one enum for each operation.

use std::{io, path::PathBuf};

use rustix::io::Errno;

use super::pool::{NAME_BYTES_MAX, VOLUME_BYTES_MAX};
use crate::disk::BLOCK_BYTES;

/// The directory is no pool.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// It is not there, or is no directory, or a symbolic link.
    #[error("'{}' cannot be used as a pool: it must be a directory, and no symbolic link", .path.display())]
    NoDirectory {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// Volumes could not stay sparse.
    #[error("the file system of '{}' makes no holes in files; use ext4, XFS or btrfs", .path.display())]
    NoHoles {
        /// The path.
        path: PathBuf,
    },
    /// Anything else.
    #[error("{what} in the pool '{}' failed", .path.display())]
    Kernel {
        /// The path.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// There is no new replica, and nothing of one that matters.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The name cannot be a file's.
    #[error("'{name}' cannot name a replica: 1 to {max} letters, digits, '-', '_' or '.', and no '.' in front", max = NAME_BYTES_MAX)]
    BadName {
        /// The name.
        name: String,
    },
    /// No volume has such a size.
    #[error("a volume cannot have {size} bytes: it has a multiple of {block}, at least one, at most {max}", block = BLOCK_BYTES, max = VOLUME_BYTES_MAX)]
    BadSize {
        /// The size.
        size: u64,
    },
    /// There is one of that name.
    #[error("the pool '{}' has a replica '{name}' already", .pool.display())]
    Exists {
        /// The pool.
        pool: PathBuf,
        /// The name.
        name: String,
    },
    /// The file system has no room for another file, or not for one so large.
    #[error("a replica '{name}' of {size} bytes does not fit the pool '{}'", .pool.display())]
    NoSpace {
        /// The pool.
        pool: PathBuf,
        /// The name.
        name: String,
        /// The size.
        size: u64,
    },
    /// Anything else.
    #[error("{what} for the replica '{name}' in the pool '{}' failed", .pool.display())]
    Kernel {
        /// The pool.
        pool: PathBuf,
        /// The name.
        name: String,
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// The replica was not opened; it is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none.
    #[error("the pool '{}' has no replica '{name}'", .pool.display())]
    NotThere {
        /// The pool.
        pool: PathBuf,
        /// The name.
        name: String,
    },
    /// Somebody has it open, or an old write still lands in it.
    #[error("the replica '{name}' in the pool '{}' is in use", .pool.display())]
    Busy {
        /// The pool.
        pool: PathBuf,
        /// The name.
        name: String,
    },
    /// What stands there is none.
    #[error("'{name}' in the pool '{}' is not a replica: {what}", .pool.display())]
    NotAReplica {
        /// The pool.
        pool: PathBuf,
        /// The name.
        name: String,
        /// Why not.
        what: &'static str,
    },
    /// It is of another size.
    #[error("the replica '{name}' in the pool '{}' has {found} bytes where the volume has {size}", .pool.display())]
    WrongSize {
        /// The pool.
        pool: PathBuf,
        /// The name.
        name: String,
        /// The volume's size, in bytes.
        size: u64,
        /// The replica's.
        found: u64,
    },
    /// It is out of use.
    #[error("the replica '{name}' in the pool '{}' is out of use ({reason}); delete it, and make a copy of another", .pool.display())]
    Failed {
        /// The pool.
        pool: PathBuf,
        /// The name.
        name: String,
        /// Why.
        reason: String,
    },
    /// Anything else.
    #[error("{what} for the replica '{name}' in the pool '{}' failed", .pool.display())]
    Kernel {
        /// The pool.
        pool: PathBuf,
        /// The name.
        name: String,
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The replica has the size it had.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No volume has such a size, or it would shrink.
    #[error("the replica '{name}' of {from} bytes cannot have {to}: it grows only, by multiples of {block}, to at most {max}", block = BLOCK_BYTES, max = VOLUME_BYTES_MAX)]
    BadSize {
        /// The name.
        name: String,
        /// Its size, in bytes.
        from: u64,
        /// The size asked for.
        to: u64,
    },
    /// The file system takes no such file.
    #[error("the replica '{name}' cannot grow to {to} bytes: its file system takes no such file")]
    NoSpace {
        /// The name.
        name: String,
        /// The size asked for.
        to: u64,
    },
}

/// The replica is there still, unless it was removed and that is not on stable storage.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Anything else.
    #[error("removing the replica '{name}' failed")]
    Kernel {
        /// The name.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}
