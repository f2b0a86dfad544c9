//! What QEMU is served as a disk: a volume while there is one, and nothing before and after.
//!
//! A standby's QEMU connects when it starts, long before its node has the right to write: until then its requests fail, which none
//! of its guest's are, for it does not run (DESIGN, section 5). The volume is put in when the right is there, and replaced when it
//! went away and came back under another generation.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use pollux_disk::{Completion, Disk, DiskError, Operation, Tag};
use tokio::sync::{mpsc, oneshot};

use crate::volume::Volume;

/// A drive without a volume, or with one. See the module's text.
pub struct Drive {
    size: u64,
    volume: Option<Box<Volume>>,
    /// Submitted to the volume and not ended.
    open: Vec<Tag>,
    failed: Vec<Completion>,
    puts: mpsc::Receiver<Put>,
    changes: Arc<AtomicU64>,
}

struct Put {
    volume: Box<Volume>,
    done: oneshot::Sender<()>,
}

/// The other end of a [`Drive`].
#[derive(Debug, Clone)]
pub struct DriveHandle {
    puts: mpsc::Sender<Put>,
    changes: Arc<AtomicU64>,
}

impl std::fmt::Debug for Put {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Put").finish_non_exhaustive()
    }
}

impl Drive {
    /// A drive of `size` bytes without a volume.
    #[must_use]
    pub fn empty(size: u64) -> (Self, DriveHandle) {
        let (send, puts) = mpsc::channel(1);
        let changes = Arc::<AtomicU64>::default();
        let drive =
            Self { size, volume: None, open: Vec::new(), failed: Vec::new(), puts, changes: Arc::clone(&changes) };
        (drive, DriveHandle { puts: send, changes })
    }

    /// Waits until a volume is in it. `false`: none will be.
    pub async fn filled(&mut self) -> bool {
        std::future::poll_fn(|cx| {
            while self.volume.is_none() {
                match self.puts.poll_recv(cx) {
                    Poll::Ready(Some(put)) => self.take(put),
                    Poll::Ready(None) => return Poll::Ready(false),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(true)
        })
        .await
    }

    /// Nobody is served any more, and every request has its answer: has everything put on stable storage, so that the next start
    /// has nothing to copy. Whether that was done within that time, or nothing was to be done.
    pub async fn finish(&mut self, within: Duration) -> bool {
        match &mut self.volume {
            Some(volume) => volume.finish(within).await,
            None => true,
        }
    }

    fn take(&mut self, Put { volume, done }: Put) {
        // What was under way went to a volume of an earlier right to write, which is gone: the device keeps it and asks again.
        let fenced = |tag| Completion { tag, result: Err(DiskError::Fenced) };
        self.failed.extend(self.open.drain(..).map(fenced));
        self.volume = Some(volume);
        // One that does not wait any more has no need to know.
        let _ = done.send(());
    }
}

impl DriveHandle {
    /// Serves `volume` from here on. `false`: the drive is gone.
    pub async fn put(&self, volume: Volume) -> bool {
        let (done, put) = oneshot::channel();
        self.puts.send(Put { volume: Box::new(volume), done }).await.is_ok() && put.await.is_ok()
    }

    /// How many requests to change something were ever handed to a volume.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }
}

impl Disk for Drive {
    fn size(&self) -> u64 {
        self.size
    }

    fn fast_zeroes(&self) -> bool {
        true
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        match &mut self.volume {
            Some(volume) => {
                let changes = match operation {
                    Operation::Write { .. } | Operation::WriteZeroes { .. } | Operation::Trim { .. } => 1,
                    Operation::Read { .. } | Operation::Flush | Operation::BlockStatus { .. } => 0,
                };
                self.changes.fetch_add(changes, Ordering::AcqRel);
                self.open.push(tag);
                volume.submit(tag, operation);
            }
            None => self.failed.push(Completion { tag, result: Err(DiskError::Fenced) }),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<()> {
        while let Poll::Ready(Some(put)) = self.puts.poll_recv(cx) {
            self.take(put);
        }
        let before = done.len();
        done.append(&mut self.failed);
        if let Some(volume) = &mut self.volume
            && volume.poll(cx, done).is_ready()
        {
            self.open.retain(|tag| !done[before..].iter().any(|ended| ended.tag == *tag));
        }
        if done.len() > before { Poll::Ready(()) } else { Poll::Pending }
    }
}
