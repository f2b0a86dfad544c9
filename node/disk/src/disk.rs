//! What a volume can be asked for, whoever answers: one replica, or several behind a mirror.
//!
//! A [`Disk`] is driven by completions. Its owner hands over operations, each with a [`Tag`], polls, and gets the tags back in
//! whatever order they end. There is no task and no lock per operation, everything handed over between two polls is started
//! together, and data is passed by reference count: what came from a socket goes to the file, and to as many replicas as there
//! are, without being copied.
//!
//! ```text
//!   owner --- submit(tag, operation) ---> Disk        as often as it likes, nothing waits
//!         --- poll(cx) ----------------->             starts what was submitted
//!         <-- Completion{tag, result} ---             what has ended, any order
//! ```

use std::task::{Context, Poll};

use bytes::Bytes;
use rustix::io::Errno;

/// What a guest sees as a sector, in bytes. Offsets and lengths are multiples of it: virtio-blk and SCSI disks know nothing
/// smaller, so nothing smaller is ever sent, and what is torn by a power failure is torn as on any disk.
pub const SECTOR_BYTES: u32 = 512;
/// The unit in which holes are kept, in bytes: a page, and a block of every file system that matters. Sizes of volumes are
/// multiples of it.
pub const BLOCK_BYTES: u32 = 4096;
/// The most that one operation reads or writes, in bytes. QEMU's NBD client never sends more.
pub const TRANSFER_BYTES_MAX: u32 = 32 << 20;

/// By which an operation is known to who submitted it; unique among those in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u64);

/// Something to do. Offsets and lengths are in bytes, multiples of [`SECTOR_BYTES`], within the disk, and not empty.
#[derive(Debug, Clone)]
pub enum Operation {
    /// Read; ends in [`Outcome::Read`].
    Read {
        /// Where.
        offset: u64,
        /// How much, at most [`TRANSFER_BYTES_MAX`].
        bytes: u32,
    },
    /// Write; ends when a read would see it, and with `durable` not before it is on stable storage.
    Write {
        /// Where.
        offset: u64,
        /// What, at most [`TRANSFER_BYTES_MAX`].
        data: Bytes,
        /// NBD's FUA.
        durable: bool,
    },
    /// Make a range read as zeros.
    WriteZeroes {
        /// Where.
        offset: u64,
        /// How much.
        bytes: u64,
        /// Whether it may become a hole. Otherwise later writes to it find their room reserved, where the file system can.
        may_punch: bool,
        /// Rather fail, with [`DiskError::NotFast`], than take as long as writing would.
        fast_only: bool,
        /// As of a write.
        durable: bool,
    },
    /// The content is not wanted any more: whole blocks in the range become holes and read as zeros, the rest keeps its
    /// content. So it is the same on every replica.
    Trim {
        /// Where.
        offset: u64,
        /// How much.
        bytes: u64,
        /// As of a write.
        durable: bool,
    },
    /// Puts every write that ended before this was submitted on stable storage.
    Flush,
    /// Tell what is data and what is a hole; ends in [`Outcome::Extents`].
    BlockStatus {
        /// Where.
        offset: u64,
        /// How much.
        bytes: u64,
        /// How many extents at most; 0 counts as 1.
        extents_max: usize,
    },
}

impl Operation {
    /// Whether it is a range, and such as a disk of `size` bytes can be asked about.
    ///
    /// # Errors
    /// When not.
    pub(crate) fn check(&self, size: u64) -> Result<(), DiskError> {
        let (offset, bytes, max) = match self {
            Self::Read { offset, bytes } => (*offset, u64::from(*bytes), u64::from(TRANSFER_BYTES_MAX)),
            Self::Write { offset, data, .. } => (*offset, data.len() as u64, u64::from(TRANSFER_BYTES_MAX)),
            Self::WriteZeroes { offset, bytes, .. }
            | Self::Trim { offset, bytes, .. }
            | Self::BlockStatus { offset, bytes, .. } => (*offset, *bytes, u64::MAX),
            Self::Flush => return Ok(()),
        };
        if bytes > max { Err(DiskError::OutOfRange { offset, bytes, size }) } else { check_range(size, offset, bytes) }
    }
}

/// What an operation ended in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done, and there is nothing to tell.
    Done,
    /// What was read: in order, without gaps, as long as was asked for.
    Read(Vec<Piece>),
    /// In order, without gaps, from the offset that was asked for; at least one, and perhaps not to the end.
    Extents(Vec<Extent>),
}

/// A part of what was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// So many zeros, from a hole.
    Zeroes(u32),
}

impl Piece {
    /// Its length, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        match self {
            Self::Data(data) => u32::try_from(data.len()).expect("no piece is longer than an operation"),
            Self::Zeroes(bytes) => *bytes,
        }
    }

    /// How much of it is a hole, in bytes.
    #[must_use]
    pub fn hole_bytes(&self) -> u64 {
        match self {
            Self::Data(_) => 0,
            Self::Zeroes(bytes) => u64::from(*bytes),
        }
    }
}

/// A range that is alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its length, in bytes; never 0.
    pub bytes: u64,
    /// Whether there may be data in it. If not, it is a hole and reads as zeros.
    pub data: bool,
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    /// Of which.
    pub tag: Tag,
    /// How it went. Of a write that failed any part may have been written.
    pub result: Result<Outcome, DiskError>,
}

/// Why an operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DiskError {
    /// Nothing more fits.
    #[error("the pool is full: writing {bytes} bytes at {offset} found no room; free some, or grow the pool")]
    NoSpace {
        /// Where in the volume.
        offset: u64,
        /// How much.
        bytes: u64,
    },
    /// The storage below says no.
    #[error("{doing} {bytes} bytes at {offset} failed")]
    Io {
        /// What was done.
        doing: &'static str,
        /// Where in the volume.
        offset: u64,
        /// How much.
        bytes: u64,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// Putting earlier writes on stable storage failed once. What of them is there nobody can tell, so the replica is not used
    /// any more.
    #[error("the replica is out of use: its storage lost writes that it had taken; replace it by a copy of another")]
    Failed {
        /// What the kernel said then.
        #[source]
        source: Errno,
    },
    /// The right to write here went elsewhere.
    #[error("the VM of this disk runs elsewhere by now")]
    Fenced,
    /// It would take as long as writing.
    #[error("zeros cannot be written fast here")]
    NotFast,
    /// There is no such place, or no such length.
    #[error("{bytes} bytes at {offset} are no range of a disk of {size} bytes")]
    OutOfRange {
        /// Where.
        offset: u64,
        /// How much.
        bytes: u64,
        /// The disk's size, in bytes.
        size: u64,
    },
    /// The disk takes nothing any more.
    #[error("the disk is being closed")]
    Closed,
}

/// A volume, or one copy of it. See the module's text.
pub trait Disk: Send {
    /// Its size, in bytes; constant.
    fn size(&self) -> u64;

    /// Whether zeros can be written faster than data, where they may become a hole.
    fn fast_zeroes(&self) -> bool;

    /// Takes an operation. It is started by the next [`Disk::poll`] at the latest, and ends in exactly one completion, which a
    /// later poll gives out.
    ///
    /// The owner keeps the number in flight, and the bytes of their data, within limits of its own.
    fn submit(&mut self, tag: Tag, operation: Operation);

    /// Starts what was submitted and appends what has ended to `done`: `Ready` when that was at least one. `Pending`: the task
    /// is woken when there may be more, if anything is in flight at all. Whoever serves a disk polls it also when nothing is in
    /// flight, so that it can do work of its own, and wake the task for that.
    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<()>;
}

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn fast_zeroes(&self) -> bool {
        (**self).fast_zeroes()
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        (**self).submit(tag, operation);
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<()> {
        (**self).poll(cx, done)
    }
}

/// Does one operation and waits for it, on a disk that has nothing else in flight.
///
/// # Errors
/// Those of the operation.
///
/// # Panics
/// When something else ends meanwhile.
pub async fn perform(disk: &mut (impl Disk + ?Sized), operation: Operation) -> Result<Outcome, DiskError> {
    const ONLY: Tag = Tag(u64::MAX);
    disk.submit(ONLY, operation);
    let mut done = Vec::with_capacity(1);
    std::future::poll_fn(|cx| disk.poll(cx, &mut done)).await;
    let only = done.pop().expect("a disk that is ready has a completion");
    assert!(only.tag == ONLY && done.is_empty(), "something else was in flight");
    only.result
}

/// Whether this is a range that a disk of `size` bytes can be asked about.
///
/// # Errors
/// [`DiskError::OutOfRange`] when not.
pub fn check_range(size: u64, offset: u64, bytes: u64) -> Result<(), DiskError> {
    let aligned = (offset | bytes).is_multiple_of(u64::from(SECTOR_BYTES));
    let inside = offset.checked_add(bytes).is_some_and(|end| end <= size);
    if aligned && inside && bytes > 0 { Ok(()) } else { Err(DiskError::OutOfRange { offset, bytes, size }) }
}
