//! What a replica does with operations, from operations to jobs and from the ends of jobs to the ends of operations. No I/O, no
//! clock; the shell around it ([`super::Replica`]) carries the jobs to an engine.
//!
//! ```text
//!   submit(operation) --> zeros found, holes looked up --> jobs ... finished(job) --+--> completion
//!                                                                                   '--> waits for a sync --> completion
//! ```
//!
//! **Holes.** The map says which blocks may hold data. A block is marked when a write to it is handed over; it is unmarked when a
//! hole was made of it and no write overlapped that, from the handing over to the end. Reading a hole and writing zeros into one
//! need no job at all.
//!
//! **Stable storage.** One sync runs at a time. A flush needs one that began after the flush came in, so that it covers every write
//! that ended before; all that come in while one runs share the next. A durable write asks for a sync when it has been written.
//! A sync that fails ends the replica: the kernel has dropped the data that it could not write, and will not say so twice.

use std::{collections::VecDeque, ops::Range};

use bytes::Bytes;
use rustix::io::Errno;
use slab::Slab;

use crate::{
    buffers::Buffers,
    disk::{BLOCK_BYTES, Completion, DiskError, Extent, Operation, Outcome, Piece, Tag},
    engine::{Finished, Job, JobId, Work},
    map::{DataMap, whole_blocks},
    replica::syncs::{Covered, Syncs},
    zeroes,
};

/// Zeros over data become a hole from this length on, in bytes, if there is other data in the same write: a shorter hole costs
/// more, in time and in fragments of the file, than it saves. (Zeros over a hole stay a hole at any length.)
const HOLE_IN_DATA_BYTES_MIN: usize = 64 << 10;
/// Holes in what is read are told from this length on, in bytes; shorter ones are read with what surrounds them: each part of an
/// answer costs the reader system calls of its own.
const HOLE_IN_READ_BYTES_MIN: u64 = 32 << 10;
/// What is written at a time where zeros have to be written out.
static ZEROES: [u8; ZEROES_BYTES] = [0; ZEROES_BYTES];
const ZEROES_BYTES: usize = 1 << 20;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Core {
    size: u64,
    map: DataMap,
    buffers: Buffers,
    requests: Slab<Request>,
    jobs: Slab<InFlight>,
    /// Holes being made. While there are none, writes need not look for overlaps.
    punching: usize,
    syncs: Syncs,
    /// The file system keeps room for zeros without writing them.
    zero_range: bool,
    failed: Option<Errno>,
    /// To be handed to the engine.
    pub(crate) todo: VecDeque<Job>,
    /// To be told.
    pub(crate) done: Vec<Completion>,
}

/// An operation that has not ended.
#[derive(Debug)]
struct Request {
    tag: Tag,
    jobs: usize,
    durable: bool,
    error: Option<DiskError>,
    /// Of a read, in order; those of jobs under way are still empty.
    pieces: Option<Vec<Piece>>,
}

/// A job that has not ended.
#[derive(Debug)]
enum InFlight {
    Read { request: usize, piece: usize, offset: u64, bytes: u64 },
    Write { request: usize, offset: u64, bytes: u64 },
    Punch { request: usize, offset: u64, bytes: u64, overwritten: bool },
    Zero { request: usize, offset: u64, bytes: u64, fast_only: bool },
    Sync,
}

impl Core {
    pub(crate) fn new(map: DataMap, size: u64, buffers: Buffers) -> Self {
        Self {
            size,
            map,
            buffers,
            requests: Slab::new(),
            jobs: Slab::new(),
            punching: 0,
            syncs: Syncs::new(),
            zero_range: true,
            failed: None,
            todo: VecDeque::new(),
            done: Vec::new(),
        }
    }

    /// Why the replica is out of use, once it is.
    pub(crate) fn failed(&self) -> Option<Errno> {
        self.failed
    }

    /// Takes an operation apart.
    pub(crate) fn submit(&mut self, tag: Tag, operation: Operation) {
        if let Some(source) = self.failed {
            self.done.push(Completion { tag, result: Err(DiskError::Failed { source }) });
            return;
        }
        if let Err(error) = operation.check(self.size) {
            self.done.push(Completion { tag, result: Err(error) });
            return;
        }
        match operation {
            Operation::Read { offset, bytes } => self.read(tag, offset, u64::from(bytes)),
            Operation::Write { offset, data, durable } => self.write(tag, offset, &data, durable),
            Operation::WriteZeroes { offset, bytes, may_punch, fast_only, durable } => {
                let request = self.begin(tag, durable);
                if may_punch {
                    self.punch_data(request, offset..offset + bytes);
                } else {
                    self.zero(request, offset, bytes, fast_only);
                }
                self.settle(request);
            }
            Operation::Trim { offset, bytes, durable } => {
                let request = self.begin(tag, durable);
                self.punch_data(request, whole_blocks(offset..offset + bytes));
                self.settle(request);
            }
            Operation::Flush => {
                let request = self.begin(tag, true);
                self.settle(request);
            }
            Operation::BlockStatus { offset, bytes, extents_max } => self.status(tag, offset, bytes, extents_max),
        }
    }

    fn begin(&mut self, tag: Tag, durable: bool) -> usize {
        self.requests.insert(Request { tag, jobs: 0, durable, error: None, pieces: None })
    }

    fn job(&mut self, request: usize, job: InFlight, work: Work) {
        self.requests[request].jobs += 1;
        let id = JobId(self.jobs.insert(job));
        self.todo.push_back(Job { id, work });
    }

    fn read(&mut self, tag: Tag, offset: u64, bytes: u64) {
        let end = offset + bytes;
        let request = self.begin(tag, false);
        let (mut pieces, mut at) = (Vec::with_capacity(1), offset);
        while at < end {
            let (mut run, data) = self.map.run(at, end);
            if !data && (run >= HOLE_IN_READ_BYTES_MIN || run == bytes) {
                pieces.push(Piece::Zeroes(narrow(run)));
                at += run;
                continue;
            }
            // Data, and the short holes in it.
            while at + run < end {
                let (next, data) = self.map.run(at + run, end);
                if !data && next >= HOLE_IN_READ_BYTES_MIN {
                    break;
                }
                run += next;
            }
            let buffer = self.buffers.take(usize::try_from(run).expect("no longer than a transfer"));
            let job = InFlight::Read { request, piece: pieces.len(), offset: at, bytes: run };
            self.job(request, job, Work::Read { offset: at, buffer });
            pieces.push(Piece::Data(Bytes::new()));
            at += run;
        }
        self.requests[request].pieces = Some(pieces);
        self.settle(request);
    }

    fn write(&mut self, tag: Tag, offset: u64, data: &Bytes, durable: bool) {
        let request = self.begin(tag, durable);
        let mut runs = zeroes::runs(offset, data).peekable();
        let whole = runs.next_if(|run| run.range.len() == data.len());
        match whole {
            Some(run) if run.zero => self.punch_data(request, offset..offset + data.len() as u64),
            Some(_) => self.write_run(request, offset, data.clone()),
            None => self.write_mixed(request, offset, data, runs),
        }
        self.settle(request);
    }

    /// Data with zeros in it: what is a hole stays one, long zeros become one, the rest is written, in as few parts as possible.
    fn write_mixed(&mut self, request: usize, offset: u64, data: &Bytes, runs: impl Iterator<Item = zeroes::Run>) {
        let at = |index: usize| offset + index as u64;
        let mut unwritten = 0..0;
        for run in runs {
            if !run.zero {
                unwritten.end = run.range.end;
                continue;
            }
            let mut from = run.range.start;
            while from < run.range.end {
                let (bytes, is_data) = self.map.run(at(from), at(run.range.end));
                let to = from + usize::try_from(bytes).expect("no longer than a transfer");
                if is_data && to - from < HOLE_IN_DATA_BYTES_MIN {
                    unwritten.end = to;
                } else {
                    self.write_part(request, offset, data, unwritten);
                    if is_data {
                        self.punch(request, at(from), bytes);
                    }
                    unwritten = to..to;
                }
                from = to;
            }
        }
        self.write_part(request, offset, data, unwritten);
    }

    fn write_part(&mut self, request: usize, offset: u64, data: &Bytes, part: Range<usize>) {
        if !part.is_empty() {
            self.write_run(request, offset + part.start as u64, data.slice(part));
        }
    }

    fn write_run(&mut self, request: usize, offset: u64, data: Bytes) {
        let bytes = data.len() as u64;
        self.will_write(offset, bytes);
        self.job(request, InFlight::Write { request, offset, bytes }, Work::Write { offset, data });
    }

    /// No hole that overlaps may be believed in when it has been made.
    fn will_write(&mut self, offset: u64, bytes: u64) {
        self.map.mark(offset..offset + bytes);
        if self.punching == 0 {
            return;
        }
        for (_, job) in &mut self.jobs {
            if let InFlight::Punch { offset: from, bytes: length, overwritten, .. } = job {
                *overwritten |= overlap(offset, bytes, *from, *length);
            }
        }
    }

    /// Makes a hole of what may be data in `range`: from the first of it on, as to make a hole of a hole costs less than to find the
    /// last.
    fn punch_data(&mut self, request: usize, range: Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            let (bytes, data) = self.map.run(at, range.end);
            if data {
                return self.punch(request, at, range.end - at);
            }
            at += bytes;
        }
    }

    fn punch(&mut self, request: usize, offset: u64, bytes: u64) {
        let overwritten = self.jobs.iter().any(|(_, job)| match job {
            InFlight::Write { offset: from, bytes: length, .. }
            | InFlight::Zero { offset: from, bytes: length, .. } => overlap(offset, bytes, *from, *length),
            InFlight::Read { .. } | InFlight::Punch { .. } | InFlight::Sync => false,
        });
        self.punching += 1;
        self.job(request, InFlight::Punch { request, offset, bytes, overwritten }, Work::Punch { offset, bytes });
    }

    /// Zeros with room for data: by the file system, or written out.
    fn zero(&mut self, request: usize, offset: u64, bytes: u64, fast_only: bool) {
        if self.zero_range {
            self.will_write(offset, bytes);
            self.job(request, InFlight::Zero { request, offset, bytes, fast_only }, Work::Zero { offset, bytes });
        } else if fast_only {
            self.requests[request].error = Some(DiskError::NotFast);
        } else {
            let (mut at, end) = (offset, offset + bytes);
            while at < end {
                let part = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZEROES_BYTES);
                self.write_run(request, at, Bytes::from_static(&ZEROES[..part]));
                at += part as u64;
            }
        }
    }

    fn status(&mut self, tag: Tag, offset: u64, bytes: u64, extents_max: usize) {
        let (mut at, end) = (offset, offset + bytes);
        let mut extents = Vec::new();
        while at < end && extents.len() < extents_max.max(1) {
            let (bytes, data) = self.map.run(at, end);
            extents.push(Extent { bytes, data });
            at += bytes;
        }
        self.done.push(Completion { tag, result: Ok(Outcome::Extents(extents)) });
    }

    /// A job has ended.
    pub(crate) fn finished(&mut self, finished: Finished) {
        let Finished { id: JobId(id), result, buffer } = finished;
        let (request, error) = match self.jobs.remove(id) {
            InFlight::Sync => return self.synced(result),
            InFlight::Read { request, piece, offset, bytes } => {
                if let (Ok(()), Some(buffer), Some(pieces)) = (result, buffer, &mut self.requests[request].pieces) {
                    pieces[piece] = Piece::Data(buffer.freeze());
                }
                (request, result.err().map(|errno| io_error("reading", offset, bytes, errno)))
            }
            InFlight::Write { request, offset, bytes } => {
                self.syncs.changed();
                (request, result.err().map(|errno| io_error("writing", offset, bytes, errno)))
            }
            InFlight::Punch { request, offset, bytes, overwritten } => {
                self.punching -= 1;
                self.syncs.changed();
                if result.is_ok() && !overwritten {
                    self.map.unmark(offset..offset + bytes);
                }
                (request, result.err().map(|errno| io_error("making a hole of", offset, bytes, errno)))
            }
            InFlight::Zero { request, offset, bytes, fast_only } => {
                self.syncs.changed();
                if result == Err(Errno::OPNOTSUPP) {
                    self.zero_range = false;
                    self.zero(request, offset, bytes, fast_only);
                    (request, None)
                } else {
                    (request, result.err().map(|errno| io_error("zeroing", offset, bytes, errno)))
                }
            }
        };
        let ended = &mut self.requests[request];
        ended.jobs -= 1;
        if let Some(error) = error {
            ended.error.get_or_insert(error);
        }
        self.settle(request);
    }

    /// Ends a request that has no job left, or lets it wait for a sync.
    fn settle(&mut self, request: usize) {
        let Request { jobs, durable, error, .. } = &self.requests[request];
        if *jobs > 0 {
            return;
        }
        if *durable && error.is_none() && self.failed.is_none() && self.syncs.cover(request) == Covered::Later {
            return;
        }
        self.end(request);
    }

    fn end(&mut self, request: usize) {
        let Request { tag, error, pieces, .. } = self.requests.remove(request);
        let result = match (self.failed, error) {
            (Some(source), _) => Err(DiskError::Failed { source }),
            (None, Some(error)) => Err(error),
            (None, None) => Ok(pieces.map_or(Outcome::Done, Outcome::Read)),
        };
        self.done.push(Completion { tag, result });
    }

    /// Starts a sync if somebody waits for one and none is under way. Called when everything that came in together has been
    /// taken, so that it shares one.
    pub(crate) fn sync(&mut self) {
        if self.syncs.begin() {
            let id = JobId(self.jobs.insert(InFlight::Sync));
            self.todo.push_back(Job { id, work: Work::Sync });
        }
    }

    fn synced(&mut self, result: Result<(), Errno>) {
        let mut covered = self.syncs.ended();
        if let Err(errno) = result {
            self.failed.get_or_insert(errno);
            covered.extend(self.syncs.give_up());
        }
        for request in covered {
            self.end(request);
        }
    }
}

fn overlap(a: u64, a_bytes: u64, b: u64, b_bytes: u64) -> bool {
    // By whole blocks: a hole is believed in by the block.
    let block = u64::from(BLOCK_BYTES);
    a / block < (b + b_bytes).div_ceil(block) && b / block < (a + a_bytes).div_ceil(block)
}

fn narrow(bytes: u64) -> u32 {
    u32::try_from(bytes).expect("no longer than a transfer")
}

fn io_error(doing: &'static str, offset: u64, bytes: u64, errno: Errno) -> DiskError {
    match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => DiskError::NoSpace { offset, bytes },
        source => DiskError::Io { doing, offset, bytes, source },
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
