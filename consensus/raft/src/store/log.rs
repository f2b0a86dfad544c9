//! The log and the vote, as openraft wants to see them.
//!
//! `append` returns when its entries are on disk. openraft 0.9 waits for that before it does anything else, so returning
//! earlier would gain nothing, and "readable when it returns" holds without a second copy of the entries.

use std::{fmt::Debug, ops::RangeBounds, sync::Arc};

use openraft::{
    LogState, OptionalSend, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};

use super::{
    any, decode,
    disk::{Change, Disk, StoreError},
    encode,
    writer::Writer,
};
use crate::{
    propose::InFlight,
    types::{Entry, LogId, StorageError, TypeConfig, Vote},
};

/// Most bytes of entries sent to a follower in one message; one entry is sent whatever its size.
const REPLICATION_BYTES_MAX: usize = 256 << 10;

/// Reads and writes the log. Cheap to clone; clones are the readers of the replication tasks.
#[derive(Clone)]
pub(crate) struct LogStore {
    disk: Arc<Disk>,
    writer: Writer,
    in_flight: Arc<InFlight>,
}

impl LogStore {
    pub(super) fn new(disk: Arc<Disk>, writer: Writer, in_flight: Arc<InFlight>) -> Self {
        Self { disk, writer, in_flight }
    }

    /// The id of the last entry, purged ones included.
    pub(crate) fn last(&self) -> Result<Option<LogId>, StoreError> {
        const WHAT: &str = "decoding the end of the log";
        let broken = |reason| StoreError::Io { what: WHAT, reason };
        match self.disk.last_entry()? {
            Some(bytes) => Ok(Some(decode::<Entry>(&bytes).map_err(broken)?.log_id)),
            None => self.purged(),
        }
    }

    fn purged(&self) -> Result<Option<LogId>, StoreError> {
        let broken = |reason| StoreError::Io { what: "decoding the end of the purged log", reason };
        self.disk.purged()?.map(|bytes| decode(&bytes)).transpose().map_err(broken)
    }

    fn read(&self, range: impl RangeBounds<u64>, bytes_max: usize) -> Result<Vec<Entry>, StoreError> {
        let broken = |reason| StoreError::Io { what: "decoding log entries", reason };
        self.disk.entries(range, bytes_max)?.iter().map(|row| decode(row).map_err(broken)).collect()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.read(range, usize::MAX).map_err(|error| StorageIOError::read_logs(any(error)).into())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.read(start..end, REPLICATION_BYTES_MAX).map_err(|error| StorageIOError::read_logs(any(error)).into())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let read = |error| StorageIOError::read_logs(any(error));
        let last_purged_log_id = self.purged().map_err(read)?;
        let last_log_id = self.last().map_err(read)?;
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let bytes = encode(vote).map_err(|error| StorageIOError::write_vote(any(error)))?;
        self.writer.commit(Change::Vote(bytes)).await.map_err(|error| StorageIOError::write_vote(any(error)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let bytes = self.disk.vote().map_err(|error| StorageIOError::read_vote(any(error)))?;
        bytes.map(|bytes| decode(&bytes)).transpose().map_err(|error| StorageIOError::read_vote(any(error)).into())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.disk.set_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.disk.committed())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut rows = Vec::new();
        for entry in entries {
            self.in_flight.appended(&entry);
            let bytes = encode(&entry).map_err(|error| StorageIOError::write_logs(any(error)))?;
            rows.push((entry.log_id.index, bytes));
        }
        self.writer.append(rows, callback).await.map_err(|error| StorageIOError::write_logs(any(error)).into())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let change = Change::Truncate(log_id.index);
        self.writer.commit(change).await.map_err(|error| StorageIOError::write_logs(any(error)).into())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let bytes = encode(&log_id).map_err(|error| StorageIOError::write_logs(any(error)))?;
        let change = Change::Purge(log_id.index, bytes);
        self.writer.commit(change).await.map_err(|error| StorageIOError::write_logs(any(error)).into())
    }
}
