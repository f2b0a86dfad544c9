//! The ring for what waits in the kernel, a thread for writes that come together.
//!
//! A write into the page cache is a copy and little else. Where the file system does not do it without waiting (ext4 does not), the
//! ring hands it to a thread of the kernel's and tells of each end singly; a thread of our own takes all that came together and tells of
//! them together, which measured a fifth less of the processor's time. A single write goes to the ring: it wakes the runtime by the
//! shorter way, which counts where processors are short. Reads that find nothing in memory, syncs and holes wait for the disk: the
//! ring has as many of them under way as there are.

use std::{
    io,
    sync::Arc,
    task::{Context, Poll},
};

use super::{DataFile, Engine, Finished, Job, Ring, Threads, Work};

/// So many writes that came together are better off with a thread.
const WRITES_TOGETHER_MIN: usize = 2;

/// See the module's text.
pub(crate) struct Mixed {
    ring: Ring,
    thread: Threads,
    /// Writes that came since the last poll.
    writes: Vec<Job>,
}

impl Mixed {
    /// For `file`.
    ///
    /// # Errors
    /// When there is no ring.
    pub(crate) fn new(file: Arc<DataFile>) -> io::Result<Self> {
        Ok(Self { ring: Ring::new(Arc::clone(&file))?, thread: Threads::new(file), writes: Vec::new() })
    }
}

impl Engine for Mixed {
    fn push(&mut self, job: Job) {
        match job.work {
            Work::Write { .. } => self.writes.push(job),
            Work::Read { .. } | Work::Punch { .. } | Work::Zero { .. } | Work::Sync => self.ring.push(job),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, finished: &mut Vec<Finished>) -> Poll<()> {
        let takes: &mut dyn Engine =
            if self.writes.len() < WRITES_TOGETHER_MIN { &mut self.ring } else { &mut self.thread };
        self.writes.drain(..).for_each(|job| takes.push(job));
        let mut written = Vec::new();
        let writes = self.thread.poll(cx, &mut written);
        let rest = self.ring.poll(cx, finished);
        finished.append(&mut written);
        if writes.is_ready() || rest.is_ready() { Poll::Ready(()) } else { Poll::Pending }
    }
}
