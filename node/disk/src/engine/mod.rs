//! How bytes get into a file and out of it without anybody waiting: behind one interface.
//!
//! [`Ring`] hands jobs to the kernel through io_uring; [`Threads`] has a few threads of its own do them; [`Mixed`] does what each
//! does best. Each belongs to one replica, which pushes jobs and polls for their ends. What needs no waiting is done at once, by
//! whoever asks ([`read_at_once`], [`write_at_once`]): the kernel promises that, so it may happen on the runtime's own threads.

mod blocking;
mod mixed;
mod ring;
mod threads;

use std::{
    fs::File,
    os::fd::OwnedFd,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use rustix::{
    fs::{FallocateFlags, FlockOperation, flock},
    io::{Errno, IoSlice, IoSliceMut, ReadWriteFlags, preadv2, pwritev2},
};

use self::{mixed::Mixed, ring::Ring, threads::Threads};
use crate::buffers::Buffer;

/// The file of a replica, and what keeps others from it. Whoever works on the file holds this, so that the lock ends with the last
/// work and not before.
#[derive(Debug)]
pub(crate) struct DataFile {
    pub(crate) data: File,
    /// Not on the file itself, which a ring lets go of only some time after it has ended.
    pub(crate) lock: OwnedFd,
}

impl Drop for DataFile {
    fn drop(&mut self) {
        // Not left to the closing: a child process between its fork and its exec would have the lock as well.
        if let Err(error) = flock(&self.lock, FlockOperation::Unlock) {
            tracing::debug!(%error, "a replica's lock ends with its descriptor");
        }
    }
}

/// Names a job among those in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JobId(pub(crate) usize);

/// One thing to do with the file.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) work: Work,
}

/// Ranges are in bytes and within the file.
#[derive(Debug)]
pub(crate) enum Work {
    /// Fill the buffer.
    Read { offset: u64, buffer: Buffer },
    /// Write all of it.
    Write { offset: u64, data: Bytes },
    /// Make a hole.
    Punch { offset: u64, bytes: u64 },
    /// Zeros, with the room for data kept.
    Zero { offset: u64, bytes: u64 },
    /// `fdatasync`.
    Sync,
}

/// The end of a job. Nothing of it is half done: a write wrote all of it, or failed.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) id: JobId,
    pub(crate) result: Result<(), Errno>,
    /// That of a read.
    pub(crate) buffer: Option<Buffer>,
}

/// Something that does jobs, in any order and several at once.
pub(crate) trait Engine: Send {
    /// Takes a job; the next poll starts it.
    fn push(&mut self, job: Job);

    /// Starts what was pushed and appends what has ended: `Ready` when that was anything. `Pending`: wakes the task when there
    /// may be more, if anything is in flight.
    fn poll(&mut self, cx: &mut Context<'_>, finished: &mut Vec<Finished>) -> Poll<()>;
}

/// Which way to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// The ring, and a thread for writes that come together, where the kernel has a ring and lets this process use it; else threads.
    #[default]
    Best,
    /// io_uring, or nothing.
    Ring,
    /// Threads.
    Threads,
}

/// An engine for `file`. Inside a tokio runtime with I/O.
pub(crate) fn start(kind: EngineKind, file: Arc<DataFile>) -> std::io::Result<Box<dyn Engine>> {
    match kind {
        EngineKind::Threads => Ok(Box::new(Threads::new(file))),
        EngineKind::Ring => Ok(Box::new(Ring::new(file)?)),
        EngineKind::Best => match Mixed::new(Arc::clone(&file)) {
            Ok(mixed) => Ok(Box::new(mixed)),
            Err(error) => {
                tracing::info!(%error, "no io_uring here; threads do the storage's work");
                Ok(Box::new(Threads::new(file)))
            }
        },
    }
}

/// What came of trying something without waiting.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AtOnce {
    /// It is done.
    Done,
    /// It would have to wait, or failed, or only a part was done: an engine's work, from the start.
    Not,
    /// This file system never does it.
    Never,
}

/// Fills `buffer` from `offset` if that needs no waiting: the bytes are in the page cache.
pub(crate) fn read_at_once(file: &File, offset: u64, buffer: &mut [u8]) -> AtOnce {
    let wanted = buffer.len();
    judge(preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT), wanted)
}

/// Writes `data` at `offset` into the page cache if that needs no waiting.
pub(crate) fn write_at_once(file: &File, offset: u64, data: &[u8]) -> AtOnce {
    judge(pwritev2(file, &[IoSlice::new(data)], offset, ReadWriteFlags::NOWAIT), data.len())
}

fn judge(result: Result<usize, Errno>, wanted: usize) -> AtOnce {
    match result {
        Ok(bytes) if bytes == wanted => AtOnce::Done,
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => AtOnce::Never,
        Ok(_) | Err(_) => AtOnce::Not,
    }
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);
