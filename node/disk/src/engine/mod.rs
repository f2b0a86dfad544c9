//! How bytes get into a file and out of it without anybody waiting: two ways behind one interface.
//!
//! [`Ring`] hands jobs to the kernel through io_uring; [`Threads`] has a few threads of its own do them. Either belongs to one
//! replica, which pushes jobs and polls for their ends. What a cache holds already is read at once, by whoever asks
//! ([`at_once`]): the kernel promises not to wait for anything there, so this may happen on the runtime's own threads.

mod blocking;
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
    io::{Errno, IoSliceMut, ReadWriteFlags},
};

pub(crate) use self::{ring::Ring, threads::Threads};
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
    /// The ring where the kernel has it and lets this process use it, else threads.
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
        EngineKind::Best => match Ring::new(Arc::clone(&file)) {
            Ok(ring) => Ok(Box::new(ring)),
            Err(error) => {
                tracing::info!(%error, "no io_uring here; threads do the storage's work");
                Ok(Box::new(Threads::new(file)))
            }
        },
    }
}

/// What [`at_once`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AtOnce {
    /// The buffer is full.
    Read,
    /// Some of it is not in memory.
    NotThere,
    /// This file system cannot say.
    Unable,
}

/// Fills `buffer` from `offset` if that needs no waiting: the bytes are in the page cache.
pub(crate) fn at_once(file: &File, offset: u64, buffer: &mut [u8]) -> AtOnce {
    let wanted = buffer.len();
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
        Ok(read) if read == wanted => AtOnce::Read,
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => AtOnce::Unable,
        Ok(_) | Err(_) => AtOnce::NotThere,
    }
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);
