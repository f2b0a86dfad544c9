//! A node's state directory.
//!
//! ```text
//!   identity/    who this node is: certificate, key, the cluster's CA certificate
//!   authority/   the CA's key; only on the node that founded the cluster
//!   node.json    where it listens
//!   founding.json  the first entry of the log; on the node that founds the cluster, until it has
//!   joining-*.pem  the key of a node that has asked to join with a token and has not been answered yet
//!   log/         the consensus layer's store
//!   standby/     marks of standbys that have not acted (see `crate::vm`)
//!   lock         held by the running daemon
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use pollux_link::Token;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A state directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// A file or directory in it.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file in it is not what it should be.
    #[error("{path} is not readable: {source}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Another daemon runs on it.
    #[error("{0} is in use by another daemon; end that one first")]
    InUse(PathBuf),
}

/// A state directory.
#[derive(Debug, Clone)]
pub(crate) struct Dir(PathBuf);

/// What `node.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeFile {
    /// Version of this file's format.
    pub(crate) version: u8,
    /// Where the daemon listens, and where the others find it.
    pub(crate) listen: SocketAddr,
    /// The log's store, once there is one: see [`pollux_raft::Store::Dir`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<String>,
}

impl NodeFile {
    /// Of a node that has not run yet.
    pub(crate) fn new(listen: SocketAddr) -> Self {
        Self { version: NODE_FILE_VERSION, listen, log: None }
    }
}

pub(crate) const NODE_FILE_VERSION: u8 = 1;

/// What the names of keys of unanswered joins begin with.
const JOINING: &str = "joining-";

impl Dir {
    /// Opens or makes it, for root only.
    pub(crate) fn make(path: &Path) -> Result<Self, DirError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| at(path, source))?;
        Ok(Self(path.to_owned()))
    }

    pub(crate) fn open(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.0.join("identity")
    }

    pub(crate) fn authority(&self) -> PathBuf {
        self.0.join("authority")
    }

    pub(crate) fn node_file(&self) -> PathBuf {
        self.0.join("node.json")
    }

    pub(crate) fn founding(&self) -> PathBuf {
        self.0.join("founding.json")
    }

    /// The cluster has been founded: the entry that founds it is in the log, and is not needed a second time.
    pub(crate) fn forget_founding(&self) -> Result<(), DirError> {
        let path = self.founding();
        gone(fs::remove_file(&path)).map_err(|source| at(&path, source))
    }

    /// The key with which the holder of this token asks to join.
    pub(crate) fn joining_key(&self, token: &Token) -> PathBuf {
        let name: String = token.secret_hash().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        self.0.join(format!("{JOINING}{name}.pem"))
    }

    /// The node has joined: its key is part of its identity, and what it asked with other tokens is over.
    pub(crate) fn forget_joining(&self) -> Result<(), DirError> {
        let entries = fs::read_dir(&self.0).map_err(|source| at(&self.0, source))?;
        for entry in entries {
            let path = entry.map_err(|source| at(&self.0, source))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with(JOINING) {
                gone(fs::remove_file(&path)).map_err(|source| at(&path, source))?;
            }
        }
        Ok(())
    }

    /// Removes what a founding left behind that was not finished; only one that is to found has a CA. No daemon has run on
    /// it, and nobody has heard of its cluster.
    pub(crate) fn clear_unfinished_founding(&self) -> Result<(), DirError> {
        if self.authority().exists() && !self.is_used() {
            for path in [self.identity(), self.authority()] {
                gone(fs::remove_dir_all(&path)).map_err(|source| at(&path, source))?;
            }
            self.forget_founding()?;
        }
        Ok(())
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    pub(crate) fn standby(&self) -> PathBuf {
        self.0.join("standby")
    }

    /// Where block devices are mounted that are pools.
    pub(crate) fn pools(&self) -> PathBuf {
        self.0.join("pools")
    }

    /// Does it belong to a node already? A log alone says so, too: whoever it is of has voted.
    pub(crate) fn is_used(&self) -> bool {
        self.node_file().exists() || self.log().exists()
    }

    /// Holds it for this process until the file is dropped.
    pub(crate) fn lock(&self) -> Result<File, DirError> {
        let path = self.0.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|source| at(&path, source))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(DirError::InUse(self.0.clone())),
            Err(error) => Err(at(&path, error.into())),
        }
    }
}

/// Writes a file whole or not at all, readable by root only.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), DirError> {
    let text = serde_json::to_vec_pretty(value).map_err(|source| DirError::Malformed { path: path.into(), source })?;
    let fresh = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| at(path, source))
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, DirError> {
    let text = fs::read(path).map_err(|source| at(path, source))?;
    serde_json::from_slice(&text).map_err(|source| DirError::Malformed { path: path.into(), source })
}

/// Removed, or never there.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn at(path: &Path, source: io::Error) -> DirError {
    DirError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_serves_one_daemon_at_a_time() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let dir = Dir::make(&temporary.path().join("state")).expect("made");
        let held = dir.lock().expect("the first daemon has it");
        assert!(matches!(dir.lock(), Err(DirError::InUse(_))));
        drop(held);
        dir.lock().expect("the next daemon has it");
    }

    #[test]
    fn what_was_written_is_read_and_anything_else_is_named() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let path = temporary.path().join("node.json");
        let node = NodeFile::new("10.0.0.1:7700".parse().expect("an address"));
        write_json(&path, &node).expect("written");
        assert_eq!(read_json::<NodeFile>(&path).expect("read"), node);

        fs::write(&path, "{").expect("written");
        let error = read_json::<NodeFile>(&path).expect_err("half a file");
        assert!(error.to_string().contains("node.json"), "{error}");
    }
}
