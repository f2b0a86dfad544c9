//! The database under the log and the snapshots: tables, format, reads, and the one transaction every change goes through.
//!
//! Reads happen where they are asked for: redb serves them from its cache or the page cache, from a consistent version of
//! the tables, and never waits for the writer. Changes go through [`writer`](super::writer).

use std::{
    fmt,
    num::ParseIntError,
    ops::{Bound, RangeBounds},
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::memory::MemoryDisk;
use crate::types::LogId;

/// The format written. A build refuses another one by its number; from the first release on it will migrate the one before.
/// 2: refusals of tokens by their kind, the store's own identity. 5: pools, volumes. 7: a bandwidth of volume moves.
pub(super) const FORMAT: u32 = 8;
/// Memory redb may use for caching pages, in bytes. The whole log between two snapshots fits.
const CACHE_BYTES: usize = 16 << 20;

/// Log entries by index.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Everything there is one of.
const SINGLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("single");
const KEY_FORMAT: &str = "format";
const KEY_ID: &str = "id";
const KEY_VOTE: &str = "vote";
const KEY_COMMITTED: &str = "committed";
const KEY_PURGED: &str = "purged";
const KEY_SNAPSHOT_INDEX: &str = "snapshot-index";
const KEY_SNAPSHOT_META: &str = "snapshot-meta";
const KEY_SNAPSHOT_DATA: &str = "snapshot-data";

/// Where a node keeps its log, its vote and its snapshot.
#[derive(Debug, Clone)]
pub enum Store {
    /// In `raft.redb` in this directory. Commits run on a thread of their own.
    Dir {
        /// The directory, made if it is not there.
        path: PathBuf,
        /// The store this node has had since its first start. Only a node that never had one is given a new one: a node
        /// that forgot what it voted for and acknowledged must not vote again under the same name (DESIGN, rule 19).
        known: Option<StoreId>,
    },
    /// In memory that outlives the node, for simulations. Commits run in place, because a simulation has one thread.
    Memory(Arc<MemoryDisk>),
}

/// Names one store, from the moment it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreId([u8; 16]);

impl StoreId {
    /// In the simulations' memory, which is never exchanged.
    const IN_MEMORY: Self = Self([0; 16]);
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FromStr for StoreId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u128::from_str_radix(text, 16).map(|number| Self(number.to_be_bytes()))
    }
}

/// The store could not be opened, read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The directory could not be made.
    #[error("cannot make the directory {path} for the log: {reason}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// The database could not be opened.
    #[error("cannot open the log {name}: {reason}; if another pollux runs on it, end that one first")]
    Open {
        /// Which.
        name: String,
        /// What redb said.
        reason: String,
    },
    /// This node had a store, and it is gone or another one is in its place.
    #[error(
        "the log {name} is not the one this node has voted with ({found}); a node without its log must not take part \
         under its old identity: put the right one back, never an older copy of it, or remove the node's directory and let \
         the host join as a new node"
    )]
    NotOurs {
        /// Which.
        name: String,
        /// What is there instead.
        found: &'static str,
    },
    /// Written by a newer version.
    #[error("the log {name} has format {found}, this pollux knows up to {known}; use the newer pollux that wrote it")]
    Newer {
        /// Which.
        name: String,
        /// Its format.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// Written by an older version, from before the first release.
    #[error("the log {name} has format {found}, this pollux reads {known} only; use the older pollux that wrote it")]
    Older {
        /// Which.
        name: String,
        /// Its format.
        found: u32,
        /// The only one known.
        known: u32,
    },
    /// A read or a write failed.
    #[error("{what} failed: {reason}; the node stops rather than go on with a log it cannot trust")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What redb said.
        reason: String,
    },
    /// The store was closed.
    #[error("the log is closed: this node is shutting down")]
    Closed,
}

fn io(what: &'static str, error: impl Into<redb::Error>) -> StoreError {
    StoreError::Io { what, reason: error.into().to_string() }
}

/// One change of the store. Changes are applied in the order they are submitted, whole or not at all.
#[derive(Debug)]
pub(crate) enum Change {
    Append(Vec<(u64, Vec<u8>)>),
    /// Drop entries from this index on.
    Truncate(u64),
    /// Drop entries up to and including this index; the bytes are its log id.
    Purge(u64, Vec<u8>),
    Vote(Vec<u8>),
    /// Replaces an older snapshot; ignored when there is a newer one.
    Snapshot {
        index: u64,
        meta: Vec<u8>,
        data: Vec<u8>,
    },
}

/// A snapshot as it is stored.
#[derive(Debug)]
pub(crate) struct StoredSnapshot {
    pub(crate) meta: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

/// The open database.
#[derive(Debug)]
pub(crate) struct Disk {
    /// `None` once closed. Held for the time of one read or one transaction.
    database: RwLock<Option<Database>>,
    /// The newest committed log id, written with the next change or at the close. It only spares a restarted node the
    /// wait for the leader to repeat it, so it is not worth a sync of its own.
    committed: Mutex<Option<LogId>>,
    id: StoreId,
}

impl Disk {
    pub(crate) fn open(store: &Store) -> Result<Self, StoreError> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let broken = |name: &str, error: &dyn fmt::Display| StoreError::Open {
            name: name.to_owned(),
            reason: error.to_string(),
        };
        let (database, id) = match store {
            Store::Dir { path, known } => {
                let file = path.join("raft.redb");
                let name = file.display().to_string();
                if known.is_some() && !file.exists() {
                    return Err(StoreError::NotOurs { name, found: "there is none" });
                }
                let at =
                    |error: std::io::Error| StoreError::Directory { path: path.clone(), reason: error.to_string() };
                std::fs::create_dir_all(path).map_err(at)?;
                let database = builder.create(file).map_err(|error| broken(&name, &error))?;
                let id = prepare(&database, &name, StoreId(rand::random()))?;
                if known.is_some_and(|known| known != id) {
                    return Err(StoreError::NotOurs { name, found: "it is another's" });
                }
                // What the directory lists must outlive a power cut, too.
                std::fs::File::open(path).and_then(|directory| directory.sync_all()).map_err(at)?;
                (database, id)
            }
            Store::Memory(disk) => {
                let name = "in memory";
                let database = builder.create_with_backend(disk.attach()).map_err(|error| broken(name, &error))?;
                let id = prepare(&database, name, StoreId::IN_MEMORY)?;
                (database, id)
            }
        };
        let disk = Self { database: RwLock::new(Some(database)), committed: Mutex::new(None), id };
        let committed = disk.committed_on_disk()?;
        *disk.committed.lock().unwrap_or_else(PoisonError::into_inner) = committed;
        Ok(disk)
    }

    /// Which store this is.
    pub(crate) fn id(&self) -> StoreId {
        self.id
    }

    /// As a future version would leave it.
    #[cfg(test)]
    pub(super) fn set_format(&self, format: u32) -> Result<(), StoreError> {
        const WHAT: &str = "writing the format";
        self.with(|database| {
            let transaction = database.begin_write().map_err(|error| io(WHAT, error))?;
            let mut single = transaction.open_table(SINGLE).map_err(|error| io(WHAT, error))?;
            single.insert(KEY_FORMAT, format.to_le_bytes().as_slice()).map_err(|error| io(WHAT, error))?;
            drop(single);
            transaction.commit().map_err(|error| io(WHAT, error))
        })
    }

    fn with<T>(&self, act: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        act(database.as_ref().ok_or(StoreError::Closed)?)
    }

    fn single(&self, what: &'static str, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|database| {
            let transaction = database.begin_read().map_err(|error| io(what, error))?;
            let table = transaction.open_table(SINGLE).map_err(|error| io(what, error))?;
            let value = table.get(key).map_err(|error| io(what, error))?;
            Ok(value.map(|value| value.value().to_vec()))
        })
    }

    /// Entries of `range` in order, at most `bytes_max` of them but at least one.
    pub(crate) fn entries(&self, range: impl RangeBounds<u64>, bytes_max: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        const WHAT: &str = "reading log entries";
        let bounds: (Bound<u64>, Bound<u64>) = (range.start_bound().cloned(), range.end_bound().cloned());
        self.with(|database| {
            let transaction = database.begin_read().map_err(|error| io(WHAT, error))?;
            let table = transaction.open_table(LOG).map_err(|error| io(WHAT, error))?;
            let mut entries = Vec::new();
            let mut bytes = 0;
            for row in table.range(bounds).map_err(|error| io(WHAT, error))? {
                let (_, value) = row.map_err(|error| io(WHAT, error))?;
                let value = value.value().to_vec();
                bytes += value.len();
                if bytes > bytes_max && !entries.is_empty() {
                    break;
                }
                entries.push(value);
            }
            Ok(entries)
        })
    }

    pub(crate) fn last_entry(&self) -> Result<Option<Vec<u8>>, StoreError> {
        const WHAT: &str = "reading the last log entry";
        self.with(|database| {
            let transaction = database.begin_read().map_err(|error| io(WHAT, error))?;
            let table = transaction.open_table(LOG).map_err(|error| io(WHAT, error))?;
            let last = table.last().map_err(|error| io(WHAT, error))?;
            Ok(last.map(|(_, value)| value.value().to_vec()))
        })
    }

    pub(crate) fn vote(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.single("reading the vote", KEY_VOTE)
    }

    pub(crate) fn purged(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.single("reading the end of the purged log", KEY_PURGED)
    }

    /// The snapshot's description and content, from one version of the tables.
    pub(crate) fn snapshot(&self) -> Result<Option<StoredSnapshot>, StoreError> {
        const WHAT: &str = "reading the snapshot";
        self.with(|database| {
            let transaction = database.begin_read().map_err(|error| io(WHAT, error))?;
            let table = transaction.open_table(SINGLE).map_err(|error| io(WHAT, error))?;
            let meta = table.get(KEY_SNAPSHOT_META).map_err(|error| io(WHAT, error))?;
            let data = table.get(KEY_SNAPSHOT_DATA).map_err(|error| io(WHAT, error))?;
            let stored = meta.zip(data);
            Ok(stored.map(|(meta, data)| StoredSnapshot { meta: meta.value().to_vec(), data: data.value().to_vec() }))
        })
    }

    pub(crate) fn committed(&self) -> Option<LogId> {
        *self.committed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_committed(&self, committed: Option<LogId>) {
        *self.committed.lock().unwrap_or_else(PoisonError::into_inner) = committed;
    }

    fn committed_on_disk(&self) -> Result<Option<LogId>, StoreError> {
        const WHAT: &str = "reading the committed position";
        self.single(WHAT, KEY_COMMITTED)?
            .map(|bytes| super::decode(&bytes))
            .transpose()
            .map_err(|reason| StoreError::Io { what: WHAT, reason })
    }

    /// Applies `changes` in order in one transaction. When it returns they are on disk.
    pub(crate) fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        const WHAT: &str = "writing the log";
        let committed = self.committed();
        self.with(|database| {
            let mut transaction = database.begin_write().map_err(|error| io(WHAT, error))?;
            transaction.set_durability(Durability::Immediate).map_err(|error| io(WHAT, error))?;
            {
                let mut log = transaction.open_table(LOG).map_err(|error| io(WHAT, error))?;
                let mut single = transaction.open_table(SINGLE).map_err(|error| io(WHAT, error))?;
                for change in changes {
                    write(change, &mut log, &mut single).map_err(|error| io(WHAT, error))?;
                }
                if let Some(committed) = committed {
                    let bytes = super::encode(&committed).map_err(|reason| StoreError::Io { what: WHAT, reason })?;
                    single.insert(KEY_COMMITTED, bytes.as_slice()).map_err(|error| io(WHAT, error))?;
                }
            }
            transaction.commit().map_err(|error| io(WHAT, error))
        })
    }

    /// Writes what is still in memory and lets go of the file. Later calls fail with [`StoreError::Closed`].
    pub(crate) fn close(&self) -> Result<(), StoreError> {
        let written = self.commit(&[]);
        self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        written
    }
}

/// Makes the tables if they are not there, and looks what the store calls itself; a new one gets `new_id`.
fn prepare(database: &Database, name: &str, new_id: StoreId) -> Result<StoreId, StoreError> {
    const WHAT: &str = "preparing the log's tables";
    let transaction = database.begin_write().map_err(|error| io(WHAT, error))?;
    let (format, id) = {
        transaction.open_table(LOG).map_err(|error| io(WHAT, error))?;
        let mut single = transaction.open_table(SINGLE).map_err(|error| io(WHAT, error))?;
        let mut kept = |key, new: &[u8]| -> Result<Vec<u8>, StoreError> {
            let found = single.get(key).map_err(|error| io(WHAT, error))?.map(|value| value.value().to_vec());
            if found.is_none() {
                single.insert(key, new).map_err(|error| io(WHAT, error))?;
            }
            Ok(found.unwrap_or_else(|| new.to_vec()))
        };
        (kept(KEY_FORMAT, &FORMAT.to_le_bytes())?, kept(KEY_ID, &new_id.0)?)
    };
    transaction.commit().map_err(|error| io(WHAT, error))?;
    let found = <[u8; 4]>::try_from(format).map_or(u32::MAX, u32::from_le_bytes);
    if found > FORMAT {
        return Err(StoreError::Newer { name: name.to_owned(), found, known: FORMAT });
    }
    if found < FORMAT {
        return Err(StoreError::Older { name: name.to_owned(), found, known: FORMAT });
    }
    let odd = |_| StoreError::Io { what: WHAT, reason: "its identity is malformed".to_owned() };
    <[u8; 16]>::try_from(id).map(StoreId).map_err(odd)
}

fn write(
    change: &Change,
    log: &mut redb::Table<'_, u64, &'static [u8]>,
    single: &mut redb::Table<'_, &'static str, &'static [u8]>,
) -> Result<(), redb::StorageError> {
    match change {
        Change::Append(entries) => {
            for (index, bytes) in entries {
                log.insert(index, bytes.as_slice())?;
            }
        }
        Change::Truncate(since) => log.retain_in(*since.., |_, _| false)?,
        Change::Purge(upto, log_id) => {
            log.retain_in(..=*upto, |_, _| false)?;
            single.insert(KEY_PURGED, log_id.as_slice())?;
        }
        Change::Vote(vote) => {
            single.insert(KEY_VOTE, vote.as_slice())?;
        }
        Change::Snapshot { index, meta, data } => {
            // One built here may be finished after a newer one came from the leader and the log behind that was purged.
            let newest = single.get(KEY_SNAPSHOT_INDEX)?.map(|value| <[u8; 8]>::try_from(value.value()));
            if newest.is_none_or(|newest| newest.map_or(true, |newest| u64::from_le_bytes(newest) <= *index)) {
                single.insert(KEY_SNAPSHOT_INDEX, index.to_le_bytes().as_slice())?;
                single.insert(KEY_SNAPSHOT_META, meta.as_slice())?;
                single.insert(KEY_SNAPSHOT_DATA, data.as_slice())?;
            }
        }
    }
    Ok(())
}
