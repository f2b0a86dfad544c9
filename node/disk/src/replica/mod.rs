//! One copy of a volume on this node: a sparse file in a pool's directory, and what is done with it.
//!
//! [`Pool`] is the directory: it makes, finds, grows and removes replicas, each in whole steps that a crash cannot leave half done.
//! [`Replica`] is one that is open: a [`Disk`], with its file locked against every other opener. Its owner is whoever serves or
//! mirrors the volume; it ends when dropped, and the lock is free when the last write that was under way has ended.
//!
//! The file is written through the page cache, and a sync makes it durable: reads find what was written lately, and writes that
//! nobody waits for are gathered. Direct I/O is faster where every few writes are synced, and slower where they are not
//! (`docs/performance.md`); it would be a second way into the same file, for a pool that wants it.

mod beside;
mod core;
mod home;
mod pool;
mod refusals;
mod scan;
mod syncs;

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use rustix::io::Errno;

pub use self::{
    beside::Beside,
    pool::{Found, Pool, Usage, VOLUME_BYTES_MAX},
    refusals::{CreateError, DeleteError, GrowError, OpenError, PoolError},
};
use self::{core::Core, home::Home};
use crate::{
    buffers::Buffers,
    disk::{Completion, Disk, Operation, Tag},
    engine::{self, AtOnce, DataFile, Engine, EngineKind, Finished, Job, Work, read_at_once, write_at_once},
    map::DataMap,
};

/// Reads and writes of at most so many bytes are tried at once, on the thread that asks: from and to memory they are copied in less
/// time than it takes to have another thread do it. Longer ones would keep the runtime's thread from other things.
const AT_ONCE_BYTES_MAX: usize = 128 << 10;

/// An open replica. See the module's text.
pub struct Replica {
    core: Core,
    engine: Box<dyn Engine>,
    file: Arc<DataFile>,
    home: Home,
    size: u64,
    /// Whether the file system reads without waiting, as far as is known.
    reads_at_once: bool,
    /// And writes: XFS and btrfs do, ext4 does not.
    writes_at_once: bool,
    told_of_failure: bool,
    finished: Vec<Finished>,
}

impl Replica {
    /// Takes over an opened file; inside a tokio runtime with I/O.
    fn start(home: Home, file: DataFile, size: u64, map: DataMap, kind: EngineKind) -> std::io::Result<Self> {
        let file = Arc::new(file);
        let engine = engine::start(kind, Arc::clone(&file))?;
        Ok(Self {
            core: Core::new(map, size, Buffers::default()),
            engine,
            file,
            home,
            size,
            reads_at_once: true,
            writes_at_once: true,
            told_of_failure: false,
            finished: Vec::new(),
        })
    }

    /// What its owner keeps beside its data.
    #[must_use]
    pub fn beside(&self) -> Beside {
        Beside::new(self.home.clone(), Arc::clone(&self.file))
    }

    /// Hands to the engine what the core wants done, except what can be done at once.
    fn start_jobs(&mut self) {
        self.core.sync();
        while let Some(job) = self.core.todo.pop_front() {
            match self.try_at_once(job) {
                Ok(finished) => self.core.finished(finished),
                Err(job) => self.engine.push(job),
            }
            self.core.sync();
        }
    }

    /// Does a job if that needs no waiting; gives it back if not.
    fn try_at_once(&mut self, job: Job) -> Result<Finished, Job> {
        let Job { id, mut work } = job;
        let (tried, able) = match &mut work {
            Work::Read { offset, buffer } if self.reads_at_once && buffer.len() <= AT_ONCE_BYTES_MAX => {
                (read_at_once(&self.file.data, *offset, buffer), &mut self.reads_at_once)
            }
            Work::Write { offset, data } if self.writes_at_once && data.len() <= AT_ONCE_BYTES_MAX => {
                (write_at_once(&self.file.data, *offset, data), &mut self.writes_at_once)
            }
            Work::Read { .. } | Work::Write { .. } | Work::Punch { .. } | Work::Zero { .. } | Work::Sync => {
                return Err(Job { id, work });
            }
        };
        match tried {
            AtOnce::Done => {
                let buffer = if let Work::Read { buffer, .. } = work { Some(buffer) } else { None };
                return Ok(Finished { id, result: Ok(()), buffer });
            }
            AtOnce::Never => *able = false,
            AtOnce::Not => {}
        }
        Err(Job { id, work })
    }

    /// Writes down, once, that this replica is out of use, so that it stays so when it is opened again.
    fn tell_of_failure(&mut self, errno: Errno) {
        self.told_of_failure = true;
        tracing::error!(replica = %self.home, error = %errno, "storage lost writes that it had taken; the replica is out of use");
        let (home, file) = (self.home.clone(), Arc::clone(&self.file));
        let marking = std::thread::Builder::new().name("disk-failed".to_owned()).spawn(move || {
            if let Err(error) = home.mark_failed(&file, &format!("syncing failed: {errno}")) {
                tracing::error!(replica = %home, %error, "that could not be written down; it holds until this replica is closed");
            }
        });
        if let Err(error) = marking {
            tracing::error!(replica = %self.home, %error, "that could not be written down; it holds until this replica is closed");
        }
    }
}

impl Disk for Replica {
    fn size(&self) -> u64 {
        self.size
    }

    fn fast_zeroes(&self) -> bool {
        // A pool whose file system makes no holes is not taken.
        true
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        self.core.submit(tag, operation);
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<()> {
        loop {
            self.start_jobs();
            let polled = self.engine.poll(cx, &mut self.finished);
            for finished in self.finished.drain(..) {
                self.core.finished(finished);
            }
            if polled.is_pending() {
                break;
            }
        }
        if let Some(errno) = self.core.failed()
            && !self.told_of_failure
        {
            self.tell_of_failure(errno);
        }
        if self.core.done.is_empty() {
            return Poll::Pending;
        }
        done.append(&mut self.core.done);
        Poll::Ready(())
    }
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").field("home", &self.home).field("size", &self.size).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::disk::{DiskError, perform};

    const SIZE: u64 = 1 << 20;

    /// Storage that takes everything and cannot make it stable.
    #[derive(Default)]
    struct Forgetful(VecDeque<Job>);

    impl Engine for Forgetful {
        fn push(&mut self, job: Job) {
            self.0.push_back(job);
        }

        fn poll(&mut self, _: &mut Context<'_>, finished: &mut Vec<Finished>) -> Poll<()> {
            for Job { id, work } in self.0.drain(..) {
                let result = if matches!(work, Work::Sync) { Err(Errno::IO) } else { Ok(()) };
                let buffer = if let Work::Read { buffer, .. } = work { Some(buffer) } else { None };
                finished.push(Finished { id, result, buffer });
            }
            if finished.is_empty() { Poll::Pending } else { Poll::Ready(()) }
        }
    }

    #[tokio::test]
    async fn after_a_failed_sync_it_is_out_of_use_also_when_it_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let pool = Pool::open(directory.path()).unwrap();
        pool.create("v", SIZE).unwrap();
        let mut replica = pool.open_replica("v", SIZE, EngineKind::Threads).await.unwrap();
        replica.engine = Box::new(Forgetful::default());

        let write = |durable| Operation::Write { offset: 0, data: vec![1; 4096].into(), durable };
        perform(&mut replica, write(false)).await.unwrap();
        for operation in [Operation::Flush, Operation::Flush, write(false), Operation::Read { offset: 0, bytes: 4096 }]
        {
            let failed = perform(&mut replica, operation).await.unwrap_err();
            assert!(matches!(failed, DiskError::Failed { source: Errno::IO }), "{failed}");
        }
        while !directory.path().join("v/failed").exists() {
            tokio::task::yield_now().await;
        }
        drop(replica);

        let again = loop {
            match pool.open_replica("v", SIZE, EngineKind::Threads).await {
                // Who writes it down has the file still.
                Err(OpenError::Busy { .. }) => tokio::task::yield_now().await,
                other => break other.map(drop).unwrap_err(),
            }
        };
        assert!(matches!(again, OpenError::Failed { .. }), "{again}");
    }
}
