//! What a flash's disk has yet to take, in the guest's order.

use std::collections::VecDeque;

use bytes::Bytes;
use pollux_disk::Tag;
use tokio::time::Instant;

/// Something for the disk to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// Write this.
    Write { offset: u64, data: Bytes },
    /// Put all of it on stable storage.
    Flush,
}

#[derive(Debug)]
struct Entry {
    what: What,
    /// Requests that are answered when it is done.
    waiting: Vec<Tag>,
    /// Or by then.
    until: Option<Instant>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Entry>,
    /// The disk is doing the front one, which does not change any more.
    begun: bool,
    bytes: usize,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Of all writes in it.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The last entry, if the disk has yet to see it.
    fn open(&mut self) -> Option<&mut Entry> {
        let first_open = usize::from(self.begun);
        if self.entries.len() > first_open { self.entries.back_mut() } else { None }
    }

    fn put(&mut self, what: What) {
        if let What::Write { data, .. } = &what {
            self.bytes += data.len();
        }
        self.entries.push_back(Entry { what, waiting: Vec::new(), until: None });
    }

    /// A write. One of the same sectors that comes right after another takes its place: what was between them the disk need not see.
    pub(super) fn push(&mut self, offset: u64, data: Bytes) {
        if let Some(Entry { what: What::Write { offset: at, data: last }, .. }) = self.open()
            && (*at, last.len()) == (offset, data.len())
        {
            *last = data;
            return;
        }
        self.put(What::Write { offset, data });
    }

    /// A flush of all that is in it.
    pub(super) fn flush(&mut self) {
        if self.open().is_none_or(|last| last.what != What::Flush) {
            self.put(What::Flush);
        }
    }

    /// A write of everything, which makes those that the disk has not seen needless. Who waits for them waits for it.
    pub(super) fn replace(&mut self, content: Bytes) {
        let kept = usize::from(self.begun).min(self.entries.len());
        let gone: Vec<Entry> = self.entries.drain(kept..).collect();
        self.bytes = self.entries.iter().map(Entry::bytes).sum();
        let until = gone.iter().filter_map(|entry| entry.until).min();
        let flush = gone.iter().any(|entry| entry.what == What::Flush);
        self.put(What::Write { offset: 0, data: content });
        if flush {
            self.put(What::Flush);
        }
        if let Some(last) = self.entries.back_mut() {
            last.until = until;
            last.waiting = gone.into_iter().flat_map(|entry| entry.waiting).collect();
        }
    }

    /// `tag` is answered when the last entry is done, or by then.
    pub(super) fn wait(&mut self, tag: Tag, until: Instant) {
        if let Some(last) = self.entries.back_mut() {
            last.waiting.push(tag);
            last.until = Some(last.until.map_or(until, |earlier| earlier.min(until)));
        }
    }

    /// When somebody has to be answered.
    pub(super) fn until(&self) -> Option<Instant> {
        self.entries.iter().filter_map(|entry| entry.until).min()
    }

    /// Who waits for anything in it, and does no more.
    pub(super) fn take_waiting(&mut self) -> Vec<Tag> {
        let taken = self.entries.iter_mut().flat_map(|entry| {
            entry.until = None;
            std::mem::take(&mut entry.waiting)
        });
        taken.collect()
    }

    /// The front one, for the disk to do.
    pub(super) fn begin(&mut self) -> Option<What> {
        let front = self.entries.front()?;
        self.begun = true;
        Some(front.what.clone())
    }

    /// The disk has not done it.
    pub(super) fn put_back(&mut self) {
        self.begun = false;
    }

    /// The disk has done it: what it was, and who waits for that.
    pub(super) fn finish(&mut self) -> (What, Vec<Tag>) {
        self.begun = false;
        let front = self.entries.pop_front().expect("the disk was given the front one");
        self.bytes -= front.bytes();
        (front.what, front.waiting)
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        match &self.what {
            What::Write { data, .. } => data.len(),
            What::Flush => 0,
        }
    }
}
