//! Jobs handed to the kernel through io_uring, which needs memory to stay where it is until the kernel is done with it: the
//! `unsafe` of this package, all of it.
//!
//! What the kernel works with (buffers, data, the file) is owned by a slot from the moment the job is pushed until its completion
//! has been read. An engine that is dropped with jobs in flight gives them to a thread that waits for their ends; that thread
//! keeps the file, and with it the replica's lock: nobody opens a replica while an old write may still land in it.
#![allow(unsafe_code)]

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Arc,
    task::{Context, Poll, ready},
};

use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::{
    event::{EventfdFlags, eventfd},
    io::Errno,
};
use slab::Slab;
use tokio::io::{Interest, unix::AsyncFd};

use super::{DataFile, Engine, Finished, Job, PUNCH, Work, ZERO};

/// Jobs the kernel has at a time; more wait here. Twice as many completions fit the ring, so that none is ever lost.
const ENTRIES: u32 = 128;
/// The file's number among the registered ones.
const FILE: types::Fixed = types::Fixed(0);

/// See the module's text.
pub(crate) struct Ring {
    /// Written by the kernel with each completion.
    ended: AsyncFd<OwnedFd>,
    kernel: Option<Kernel>,
    waiting: VecDeque<Slot>,
}

/// The ring, and what the kernel uses while jobs are in flight.
struct Kernel {
    ring: IoUring,
    slots: Slab<Slot>,
    file: Arc<DataFile>,
}

struct Slot {
    job: Job,
    /// Bytes of it that are done: the kernel may do a part only.
    done: usize,
}

impl Ring {
    /// A ring for `file`.
    ///
    /// # Errors
    /// When the kernel has no io_uring, or not what is needed of it, or this process may not use it.
    pub(crate) fn new(file: Arc<DataFile>) -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().setup_submit_all().build(ENTRIES)?;
        let submitter = ring.submitter();
        let mut probe = Probe::new();
        submitter.register_probe(&mut probe)?;
        let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
        if !ring.params().is_feature_nodrop() || !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        submitter.register_files(&[file.data.as_raw_fd()])?;
        let ended = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        submitter.register_eventfd(ended.as_raw_fd())?;
        // SAFETY: an `OwnedFd` is an open descriptor and says the same number each time it is asked. The `AsyncFd` owns it from
        // here on, and hands out shared references only, through which it can be neither closed nor replaced.
        let ended = unsafe { AsyncFd::register_with_interest(ended, Interest::READABLE) }?;
        let kernel = Kernel { ring, slots: Slab::with_capacity(ENTRIES as usize), file };
        Ok(Self { ended, kernel: Some(kernel), waiting: VecDeque::new() })
    }
}

impl Engine for Ring {
    fn push(&mut self, job: Job) {
        self.waiting.push_back(Slot { job, done: 0 });
    }

    fn poll(&mut self, cx: &mut Context<'_>, finished: &mut Vec<Finished>) -> Poll<()> {
        let kernel = self.kernel.as_mut().expect("only a dropped engine has given it away");
        loop {
            let fed = kernel.feed(&mut self.waiting);
            kernel.reap(&mut self.waiting, finished);
            if !finished.is_empty() {
                return Poll::Ready(());
            }
            if !fed {
                // Out of memory for the moment, most likely, and perhaps nothing in flight that would wake this task.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !self.waiting.is_empty() && kernel.slots.len() < ENTRIES as usize {
                continue;
            }
            // Not read, only noted: the kernel tells of every further write to it.
            match ready!(self.ended.poll_read_ready(cx)) {
                Ok(mut readiness) => readiness.clear_ready(),
                Err(error) => {
                    tracing::error!(%error, "the runtime does not watch the ring any more");
                    return Poll::Pending;
                }
            }
        }
    }
}

impl Kernel {
    /// Hands over as much as there is place for. `false` when the kernel takes nothing just now.
    fn feed(&mut self, waiting: &mut VecDeque<Slot>) -> bool {
        while self.slots.len() < ENTRIES as usize {
            let Some(slot) = waiting.pop_front() else { break };
            let key = self.slots.insert(slot);
            let entry = entry(&mut self.slots[key]).user_data(key as u64);
            // SAFETY: the addresses in the entry are those of memory that the slot owns: a `Buffer`'s or a `Bytes`'s, on the heap,
            // which does not move when the slot does. The slot is removed only when the completion of this entry has been
            // read, and `Drop` sees to it that the slots outlive all that is in flight. The file is registered with the ring.
            unsafe { self.ring.submission().push(&entry) }.expect("there are as many entries as slots");
        }
        loop {
            if self.ring.submission().is_empty() {
                return true;
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!(%error, "the ring takes nothing just now");
                    return false;
                }
            }
        }
    }

    /// Takes what has ended.
    fn reap(&mut self, waiting: &mut VecDeque<Slot>, finished: &mut Vec<Finished>) {
        for completion in self.ring.completion() {
            let key = usize::try_from(completion.user_data()).expect("it was a slot's number");
            let slot = self.slots.remove(key);
            match judge(slot, completion.result()) {
                Judged::Finished(done) => finished.push(done),
                Judged::Again(slot) => waiting.push_front(slot),
            }
        }
    }
}

enum Judged {
    Finished(Finished),
    /// Only a part of it was done, or the kernel was interrupted.
    Again(Slot),
}

fn judge(mut slot: Slot, result: i32) -> Judged {
    let result = match usize::try_from(result) {
        Ok(bytes) => Ok(bytes),
        Err(_) => Err(Errno::from_raw_os_error(-result)),
    };
    let whole = match &slot.job.work {
        Work::Read { buffer, .. } => buffer.len(),
        Work::Write { data, .. } => data.len(),
        Work::Punch { .. } | Work::Zero { .. } | Work::Sync => 0,
    };
    let result = match result {
        // A sync is not repeated: a second one may succeed without the first one's errors.
        Err(Errno::INTR | Errno::AGAIN) if !matches!(slot.job.work, Work::Sync) => return Judged::Again(slot),
        Err(errno) => Err(errno),
        Ok(bytes) => {
            slot.done += bytes;
            match whole - slot.done.min(whole) {
                0 => Ok(()),
                // The file is shorter than it was: nobody but an intruder did that.
                _ if bytes == 0 => Err(Errno::IO),
                _ => return Judged::Again(slot),
            }
        }
    };
    let buffer = match slot.job.work {
        Work::Read { buffer, .. } => Some(buffer),
        Work::Write { .. } | Work::Punch { .. } | Work::Zero { .. } | Work::Sync => None,
    };
    Judged::Finished(Finished { id: slot.job.id, result, buffer })
}

/// What the kernel is told to do for a slot.
fn entry(slot: &mut Slot) -> squeue::Entry {
    let done = slot.done;
    let length = |rest: usize| u32::try_from(rest).expect("no transfer is longer than its limit");
    match &mut slot.job.work {
        Work::Read { offset, buffer } => {
            let rest = &mut buffer[done..];
            opcode::Read::new(FILE, rest.as_mut_ptr(), length(rest.len())).offset(*offset + done as u64).build()
        }
        Work::Write { offset, data } => {
            let rest = &data[done..];
            opcode::Write::new(FILE, rest.as_ptr(), length(rest.len())).offset(*offset + done as u64).build()
        }
        Work::Punch { offset, bytes } => {
            opcode::Fallocate::new(FILE, *bytes).offset(*offset).mode(PUNCH.bits().cast_signed()).build()
        }
        Work::Zero { offset, bytes } => {
            opcode::Fallocate::new(FILE, *bytes).offset(*offset).mode(ZERO.bits().cast_signed()).build()
        }
        Work::Sync => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let Some(mut kernel) = self.kernel.take() else { return };
        kernel.reap(&mut VecDeque::new(), &mut Vec::new());
        if kernel.slots.is_empty() {
            return;
        }
        let kept = std::mem::ManuallyDrop::new(kernel);
        // A thread that cannot be started drops its closure, and with it nothing: what is in flight is left to the kernel.
        let waiting = std::thread::Builder::new().name("disk-ring-end".to_owned()).spawn(move || {
            let mut kernel = std::mem::ManuallyDrop::into_inner(kept);
            kernel.wait_for_all();
        });
        if let Err(error) = waiting {
            tracing::warn!(%error, "no thread waits for what is in flight; its memory and its file stay in use");
        }
    }
}

impl Kernel {
    /// Returns when nothing is in flight. A part that was done is not gone on with.
    fn wait_for_all(&mut self) {
        while !self.slots.is_empty() {
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::warn!(%error, file = ?self.file, "waiting for what is in flight");
                // Ends this thread without ending what is in flight, which therefore keeps its memory.
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            self.reap(&mut VecDeque::new(), &mut Vec::new());
        }
    }
}
