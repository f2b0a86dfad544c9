//! Who commits: a thread of its own, or whoever asks.
//!
//! A commit waits for the disk, so on a real node it happens on one thread (`raft-log`), which takes everything queued
//! into one transaction, and then reports each change in the order it came. In a simulation there is one thread and the
//! disk is memory, so the commit happens in place. The thread ends when the last [`Writer`] is dropped or at
//! [`Writer::close`]; after a failed commit it refuses everything, because what the disk holds is then unknown.

use std::{io, sync::Arc, thread};

use openraft::storage::LogFlushed;
use tokio::sync::{mpsc, oneshot};

use super::disk::{Change, Disk, Store, StoreError};
use crate::types::TypeConfig;

/// Changes waiting for the disk. openraft waits for each of its own; snapshots come beside them.
const QUEUE_CHANGES_MAX: usize = 64;

/// A change and whom to tell that it is on disk.
pub(crate) struct Job {
    what: Work,
    done: oneshot::Sender<Result<(), StoreError>>,
    /// For appended entries: openraft's own way of being told.
    flushed: Option<LogFlushed<TypeConfig>>,
}

pub(crate) enum Work {
    Change(Change),
    Close,
}

/// Commits changes, in order.
#[derive(Clone)]
pub(crate) enum Writer {
    /// To a thread of its own.
    OnThread(mpsc::Sender<Job>),
    /// In place.
    Inline(Arc<Disk>),
}

impl Writer {
    pub(crate) fn start(store: &Store, disk: &Arc<Disk>) -> Result<Self, StoreError> {
        match store {
            Store::Memory(_) => Ok(Self::Inline(Arc::clone(disk))),
            Store::Dir { .. } => {
                let (queue, jobs) = mpsc::channel(QUEUE_CHANGES_MAX);
                let disk = Arc::clone(disk);
                thread::Builder::new()
                    .name("raft-log".to_owned())
                    .spawn(move || run(&disk, jobs))
                    .map_err(|error| StoreError::Io { what: "starting the log's thread", reason: error.to_string() })?;
                Ok(Self::OnThread(queue))
            }
        }
    }

    /// Returns when `change` is on disk.
    pub(crate) async fn commit(&self, change: Change) -> Result<(), StoreError> {
        self.submit(Work::Change(change), None).await
    }

    /// As [`commit`](Self::commit), and tells `flushed` first, in the order of submission.
    pub(crate) async fn append(
        &self,
        entries: Vec<(u64, Vec<u8>)>,
        flushed: LogFlushed<TypeConfig>,
    ) -> Result<(), StoreError> {
        self.submit(Work::Change(Change::Append(entries)), Some(flushed)).await
    }

    /// After everything submitted before, closes the database.
    pub(crate) async fn close(&self) -> Result<(), StoreError> {
        self.submit(Work::Close, None).await
    }

    async fn submit(&self, what: Work, flushed: Option<LogFlushed<TypeConfig>>) -> Result<(), StoreError> {
        let (done, reply) = oneshot::channel();
        let job = Job { what, done, flushed };
        match self {
            Self::Inline(disk) => {
                execute(disk, vec![job]);
            }
            Self::OnThread(queue) => queue.send(job).await.map_err(|_| StoreError::Closed)?,
        }
        reply.await.unwrap_or(Err(StoreError::Closed))
    }
}

fn run(disk: &Disk, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < QUEUE_CHANGES_MAX
            && let Ok(next) = jobs.try_recv()
        {
            batch.push(next);
        }
        if !execute(disk, batch) {
            return;
        }
    }
}

/// Commits a batch and tells everybody in it; false when nothing can be committed any more.
fn execute(disk: &Disk, batch: Vec<Job>) -> bool {
    let mut changes = Vec::with_capacity(batch.len());
    let mut waiting = Vec::with_capacity(batch.len());
    let mut closing = Vec::new();
    for Job { what, done, flushed } in batch {
        match what {
            Work::Change(change) => {
                changes.push(change);
                waiting.push((done, flushed));
            }
            Work::Close => closing.push(done),
        }
    }
    let result = if changes.is_empty() { Ok(()) } else { disk.commit(&changes) };
    if let Err(error) = &result {
        tracing::error!(%error, "the log cannot be written any more");
    }
    for (done, flushed) in waiting {
        if let Some(flushed) = flushed {
            flushed.log_io_completed(result.clone().map_err(io::Error::other));
        }
        // Whoever asked may have gone; the change is on disk all the same.
        let _ = done.send(result.clone());
    }
    if closing.is_empty() {
        return result.is_ok();
    }
    let closed = disk.close();
    for done in closing {
        let _ = done.send(closed.clone());
    }
    false
}
