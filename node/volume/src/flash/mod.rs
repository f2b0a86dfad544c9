//! The variables of a VM's firmware, as QEMU is served them: a flash device whose client cannot wait.
//!
//! QEMU writes a flash device through with everything else standing still, and neither parks a write that fails nor tells the guest. So
//! no write is held here for long (DESIGN, rule 16): one that the disk below has not taken within [`ANSWER_MS_MAX`], or has refused, is
//! answered all the same. From then on the newest content is in memory only, which is said ([`FlashHandle::unsaved`]), and goes to the
//! disk as soon as that takes it. Writes go there one at a time and in the guest's order, for a firmware relies on that: whatever
//! is on the disk is what the guest had written at some moment. Only when more waits than the variables have bytes is that given up,
//! and all of them are written at once.
//!
//! ```text
//!   QEMU -- write --> Flash: the content, what waits -- one at a time --> Drive --> Volume
//!        <-- done -- by then, or when it is late         <---- done, or no ----
//! ```
//!
//! A machine that waits for the state of another is not shown the volume, to which its node has no right yet: what it reads it forgets when
//! it loads that state. Then it runs, and writes the whole content, which is in its state; nobody waits for that one.
//!
//! It is polled by whoever serves it and ends with the machine. Under which right is written is for the [`Drive`] below to know: one that
//! went elsewhere refuses, here like everywhere, at the replicas.

mod filling;
mod queue;

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use pollux_disk::{Completion, Disk, DiskError, Extent, Operation, Outcome, Piece, Tag, check_range};
use tokio::{
    sync::watch,
    time::{Instant, Sleep},
};

use self::queue::{Queue, What};
use crate::drive::Drive;

pub use filling::{PrepareError, prepare};

/// A write of the guest's is answered within this time, in milliseconds. All of the guest stands still for it.
const ANSWER_MS_MAX: u64 = 100;
/// What was refused is tried again after this, in milliseconds.
const AGAIN_MS: u64 = 500;
/// What was written is put on stable storage when nothing more was for so long, in milliseconds: a flash device has no flush, and a
/// firmware writes byte by byte.
const SETTLE_MS: u64 = 200;
/// What is unsaved for less than this, in milliseconds, is not worth a word.
const TELL_MS: u64 = 1_000;

/// See the module's text.
pub struct Flash<D = Drive> {
    disk: D,
    /// What the guest sees.
    content: Vec<u8>,
    queue: Queue,
    /// What the disk is doing, of the front of the queue.
    under_way: Option<Tag>,
    last: u64,
    again_at: Option<Instant>,
    settle_at: Option<Instant>,
    unsaved: watch::Sender<Option<Unsaved>>,
    done: Vec<Completion>,
    timer: Pin<Box<Sleep>>,
}

/// Something that the guest was told to be written is in memory only.
#[derive(Debug, Clone)]
struct Unsaved {
    since: Instant,
    /// What the disk said.
    why: Option<String>,
}

/// The other end of a [`Flash`].
#[derive(Debug, Clone)]
pub struct FlashHandle(watch::Receiver<Option<Unsaved>>);

impl FlashHandle {
    /// How long something has been in memory only, and why; `None`: nothing is, or not for long.
    #[must_use]
    pub fn unsaved(&self) -> Option<(Duration, String)> {
        let unsaved = self.0.borrow().clone()?;
        let lasts = unsaved.since.elapsed();
        let why = unsaved.why.unwrap_or_else(|| "its volume does not answer".to_owned());
        (lasts >= Duration::from_millis(TELL_MS)).then_some((lasts, why))
    }

    /// Waits until nothing that was answered is in memory only. Whether that was so within this time.
    pub async fn saved(&mut self, within: Duration) -> bool {
        let saved = self.0.wait_for(Option::is_none);
        tokio::time::timeout(within, saved).await.is_ok_and(|saved| saved.is_ok())
    }
}

impl<D: Disk> Flash<D> {
    /// The flash of a machine that sees `content`: that of `disk`, or anything for one that will load its state.
    pub fn new(disk: D, content: Vec<u8>) -> (Self, FlashHandle) {
        let (unsaved, seen) = watch::channel(None);
        let flash = Self {
            disk,
            content,
            queue: Queue::default(),
            under_way: None,
            last: 0,
            again_at: None,
            settle_at: None,
            unsaved,
            done: Vec::new(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        };
        (flash, FlashHandle(seen))
    }

    fn ended(&mut self, tag: Tag, result: Result<Outcome, DiskError>) {
        self.done.push(Completion { tag, result });
    }

    fn write(&mut self, tag: Tag, offset: u64, data: Bytes) {
        let size = self.content.len() as u64;
        if let Err(error) = check_range(size, offset, data.len() as u64) {
            return self.ended(tag, Err(error));
        }
        let at = usize::try_from(offset).expect("within the content");
        self.content[at..at + data.len()].copy_from_slice(&data);
        // What the machine loaded, and no guest wrote.
        let all = data.len() as u64 == size;
        if all || self.queue.bytes() + data.len() > self.content.len() {
            self.queue.replace(Bytes::copy_from_slice(&self.content));
        } else {
            self.queue.push(offset, data);
        }
        self.answer(tag, all);
    }

    /// What was put into the queue last is answered when it is done, or now.
    fn answer(&mut self, tag: Tag, now: bool) {
        let late = self.unsaved.borrow().is_some();
        if now || late {
            self.is_unsaved(None);
            self.ended(tag, Ok(Outcome::Done));
        } else {
            self.queue.wait(tag, Instant::now() + Duration::from_millis(ANSWER_MS_MAX));
        }
    }

    /// Something that was answered is not done, and perhaps why.
    fn is_unsaved(&mut self, why: Option<String>) {
        self.unsaved.send_modify(|unsaved| {
            let unsaved = unsaved.get_or_insert_with(|| Unsaved { since: Instant::now(), why: None });
            unsaved.why = why.or(unsaved.why.take());
        });
    }

    /// Whoever waits for what is in the queue is answered, though it is not done.
    fn give_in(&mut self, why: Option<String>) {
        let waiting = self.queue.take_waiting();
        if !waiting.is_empty() {
            self.is_unsaved(why);
            self.done.extend(waiting.into_iter().map(|tag| Completion { tag, result: Ok(Outcome::Done) }));
        }
    }

    /// Hands the front of the queue to the disk. Whether there was something to hand.
    fn start(&mut self) -> bool {
        if self.under_way.is_some() || self.again_at.is_some() {
            return false;
        }
        let Some(what) = self.queue.begin() else { return false };
        self.last += 1;
        let tag = Tag(self.last);
        self.under_way = Some(tag);
        let operation = match what {
            What::Write { offset, data } => Operation::Write { offset, data, durable: false },
            What::Flush => Operation::Flush,
        };
        self.disk.submit(tag, operation);
        true
    }

    /// Takes what the disk has done. Whether that was something.
    fn take_done(&mut self, cx: &mut Context<'_>) -> bool {
        let mut ended = Vec::new();
        if self.disk.poll(cx, &mut ended).is_pending() {
            return false;
        }
        for Completion { tag, result } in ended {
            if self.under_way != Some(tag) {
                continue;
            }
            self.under_way = None;
            match result {
                Ok(_) => {
                    let (what, waiting) = self.queue.finish();
                    self.done.extend(waiting.into_iter().map(|tag| Completion { tag, result: Ok(Outcome::Done) }));
                    self.settle_at = match what {
                        What::Write { .. } => Some(Instant::now() + Duration::from_millis(SETTLE_MS)),
                        What::Flush if self.queue.is_empty() => None,
                        What::Flush => self.settle_at,
                    };
                    if self.queue.is_empty() {
                        self.unsaved.send_if_modified(|unsaved| unsaved.take().is_some());
                    }
                }
                Err(error) => {
                    self.queue.put_back();
                    self.again_at = Some(Instant::now() + Duration::from_millis(AGAIN_MS));
                    // Also if nobody waits, as for a flush of its own: what was written is not safe.
                    self.is_unsaved(Some(error.to_string()));
                    self.give_in(None);
                }
            }
        }
        true
    }

    /// Does what it is time for. Whether it was for anything.
    fn take_time(&mut self, cx: &mut Context<'_>) -> bool {
        let wake = [self.queue.until(), self.again_at, self.settle_at].into_iter().flatten().min();
        let Some(wake) = wake else { return false };
        if self.timer.deadline() != wake {
            self.timer.as_mut().reset(wake);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        let now = Instant::now();
        if self.again_at.is_some_and(|at| at <= now) {
            self.again_at = None;
        }
        if self.settle_at.is_some_and(|at| at <= now) {
            self.settle_at = None;
            self.queue.flush();
        }
        if self.queue.until().is_some_and(|until| until <= now) {
            self.give_in(None);
        }
        true
    }

    fn read(&self, offset: u64, bytes: u32) -> Result<Outcome, DiskError> {
        check_range(self.content.len() as u64, offset, bytes.into())?;
        let at = usize::try_from(offset).expect("within the content");
        let data = Bytes::copy_from_slice(&self.content[at..at + bytes as usize]);
        Ok(Outcome::Read(vec![Piece::Data(data)]))
    }
}

impl Flash {
    /// QEMU is gone: has everything written and put on stable storage. Whether that was done within that time, or nothing was to be
    /// done.
    pub async fn finish(&mut self, within: Duration) -> bool {
        let mut nothing = Vec::new();
        let saved = std::future::poll_fn(|cx| {
            // What ends now was answered to nobody.
            let _ = self.poll(cx, &mut nothing);
            if self.queue.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        let saved = tokio::time::timeout(within, saved).await.is_ok();
        saved & self.disk.finish(within).await
    }
}

impl<D: Disk> Disk for Flash<D> {
    fn size(&self) -> u64 {
        self.content.len() as u64
    }

    fn fast_zeroes(&self) -> bool {
        false
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        match operation {
            Operation::Read { offset, bytes } => {
                let read = self.read(offset, bytes);
                self.ended(tag, read);
            }
            Operation::Write { offset, data, .. } => self.write(tag, offset, data),
            Operation::WriteZeroes { offset, bytes, .. } => {
                match check_range(self.content.len() as u64, offset, bytes) {
                    Ok(()) => {
                        let zeroes = vec![0; usize::try_from(bytes).expect("within the content")];
                        self.write(tag, offset, zeroes.into());
                    }
                    Err(error) => self.ended(tag, Err(error)),
                }
            }
            // Flash has no holes.
            Operation::Trim { .. } => self.ended(tag, Ok(Outcome::Done)),
            Operation::Flush => {
                self.queue.flush();
                self.answer(tag, false);
            }
            Operation::BlockStatus { bytes, .. } => {
                self.ended(tag, Ok(Outcome::Extents(vec![Extent { bytes, data: true }])));
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<()> {
        loop {
            let mut moved = self.start();
            moved |= self.take_done(cx);
            moved |= self.take_time(cx);
            if !moved {
                break;
            }
        }
        if self.done.is_empty() {
            return Poll::Pending;
        }
        done.append(&mut self.done);
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests;
