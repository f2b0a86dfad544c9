//! What a port does with frames: the two directions, each a bounded piece of work that never waits. The port's task calls
//! these when there is something to do; as nothing else touches the TAP, whatever happens between two calls (the gate
//! closing, say) holds for every frame after it. That is the whole of the barrier `close_gate` promises.

use std::{io, sync::Arc};

use pollux_wire::id::{Generation, MacAddr};
use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};
use tokio::{net::UnixStream, time::Instant};

use crate::{
    announce::Announcement,
    counters::Counters,
    frames::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, FrameQueue, FrameReader},
    gate::{Gate, Refusal, Verdict},
    port::{Drained, PortEnd},
    tap::Tap,
};

/// Frames taken from the bridge in one turn, so that the guest's own frames get theirs.
const FRAMES_IN_PER_TURN: usize = 256;
/// What `drain` reads at most, in bytes. A stopped QEMU has emitted less than its socket's buffer; one that is not
/// stopped could go on for ever.
const DRAIN_BYTES_MAX: usize = 64 * 1024 * 1024;

/// One NIC's two ends and what lies between them.
pub(crate) struct Pump {
    pub(crate) qemu: UnixStream,
    pub(crate) tap: Tap,
    pub(crate) gate: Gate,
    pub(crate) counters: Counters,
    stamp: Generation,
    reader: FrameReader,
    queue: FrameQueue,
    scratch: Box<[u8]>,
    announcement: Option<Announcement>,
}

impl Pump {
    pub(crate) fn new(qemu: UnixStream, tap: Tap, stamp: Generation) -> Self {
        Self {
            qemu,
            tap,
            gate: Gate::closed(),
            counters: Counters::default(),
            stamp,
            reader: FrameReader::new(),
            queue: FrameQueue::new(),
            scratch: vec![0; FRAME_BYTES_MAX].into_boxed_slice(),
            announcement: None,
        }
    }

    /// One turn in each direction.
    pub(crate) fn turn(&mut self) -> Result<(), PortEnd> {
        match self.qemu.try_read(self.reader.space()) {
            Ok(0) => return Err(PortEnd::QemuClosed),
            Ok(count) => self.emit(count)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(socket_failed(error)),
        }
        self.take_in()?;
        self.flush()
    }

    /// Reads QEMU's socket until nothing is left in it, whatever tokio believes about its readiness: the kernel decides.
    pub(crate) fn drain(&mut self) -> Result<Drained, PortEnd> {
        let before = self.counters;
        let mut read = 0;
        let mut complete = false;
        while read < DRAIN_BYTES_MAX {
            match recv(&self.qemu, self.reader.space(), RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(PortEnd::QemuClosed),
                Ok((_, count)) => {
                    read += count;
                    self.emit(count)?;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    complete = true;
                    break;
                }
                Err(error) => return Err(socket_failed(error.into())),
            }
        }
        let frames = self.counters.seen_out() - before.seen_out();
        Ok(Drained { frames, partial_bytes: self.reader.partial_bytes(), complete })
    }

    /// From here on QEMU runs under `stamp`. What it emitted before was emitted under the former one and is judged so.
    pub(crate) fn restamp(&mut self, stamp: Generation) -> Result<(), PortEnd> {
        self.drain()?;
        self.stamp = stamp;
        Ok(())
    }

    /// Starts an announcement, whose first frame leaves now; an earlier one that is under way ends.
    pub(crate) fn announce(&mut self, mac: MacAddr, now: Instant) -> Result<(), Refusal> {
        self.announcement = Some(Announcement::new(mac, now));
        self.announce_due()
    }

    /// When the next frame of an announcement is due.
    pub(crate) fn announcement_due(&self) -> Option<Instant> {
        self.announcement.as_ref().and_then(Announcement::due)
    }

    /// Sends the frame of the announcement that is due, through the gate like any other frame.
    pub(crate) fn announce_due(&mut self) -> Result<(), Refusal> {
        let Some(announcement) = &mut self.announcement else { return Ok(()) };
        if let Verdict::Refuse(reason) = self.gate.check(self.stamp) {
            // The right to act went elsewhere, and so did the guest: what is left of the announcement would be a lie.
            self.announcement = None;
            return Err(reason);
        }
        match self.tap.try_send(&announcement.frame()) {
            Ok(()) => self.counters.announced += 1,
            Err(error) => tracing::warn!(tap = self.tap.name(), %error, "an announcement was not sent"),
        }
        announcement.step();
        Ok(())
    }

    /// A frame from the bridge has somewhere to go: to the owner's guest, if there is room on the way, or nowhere at all. One
    /// for a guest that does not keep up stays in the TAP, where what is too much is dropped at no cost.
    pub(crate) fn takes_in(&self) -> bool {
        self.gate.open_at() != Some(self.stamp) || self.queue.has_room()
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.queue.waiting().is_empty()
    }

    /// `count` bytes came from QEMU: judges every whole frame in them and puts those that pass onto the bridge.
    fn emit(&mut self, count: usize) -> Result<(), PortEnd> {
        self.reader.filled(count);
        while let Some(frame) = self.reader.next()? {
            if frame.len() < FRAME_BYTES_MIN {
                self.counters.malformed_out += 1;
                continue;
            }
            // Judged one by one, directly before the write: no answer is kept for a later frame.
            if let Verdict::Refuse(reason) = self.gate.check(self.stamp) {
                self.counters.refuse(reason);
                continue;
            }
            match self.tap.try_send(frame) {
                Ok(()) => {
                    self.counters.frames_out += 1;
                    self.counters.bytes_out += frame.len() as u64;
                }
                Err(error) if tap_is_gone(&error) => return Err(PortEnd::TapGone),
                // A full or a down interface loses frames, as a wire would. Waiting for it would stop the reading of
                // QEMU's socket, and QEMU drops what it cannot send without telling anyone.
                Err(_) => self.counters.lost_out += 1,
            }
        }
        Ok(())
    }

    /// Takes what the bridge sent to this TAP.
    fn take_in(&mut self) -> Result<(), PortEnd> {
        for _ in 0..FRAMES_IN_PER_TURN {
            let for_the_owner = self.gate.open_at() == Some(self.stamp);
            let taken = if for_the_owner {
                // A guest that does not keep up: see `takes_in`.
                let Some(queued) = self.queue.push_with(|space| self.tap.try_recv(space)) else { break };
                queued.map(|bytes| {
                    self.counters.frames_in += 1;
                    self.counters.bytes_in += bytes as u64;
                })
            } else {
                // Read all the same: what waits in the TAP would reach the guest much later, as old news.
                self.tap.try_recv(&mut self.scratch).map(|_| self.counters.dropped_in_closed += 1)
            };
            match taken {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if tap_is_gone(&error) => return Err(PortEnd::TapGone),
                Err(error) => {
                    tracing::debug!(tap = self.tap.name(), %error, "the TAP could not be read");
                    break;
                }
            }
        }
        Ok(())
    }

    /// Gives QEMU what waits for it, as far as it takes it now.
    fn flush(&mut self) -> Result<(), PortEnd> {
        while self.has_waiting() {
            match self.qemu.try_write(self.queue.waiting()) {
                Ok(count) => self.queue.written(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(socket_failed(error)),
            }
        }
        Ok(())
    }
}

fn socket_failed(error: io::Error) -> PortEnd {
    match Errno::from_io_error(&error) {
        Some(Errno::CONNRESET | Errno::PIPE) => PortEnd::QemuClosed,
        _ => PortEnd::Socket { source: Arc::new(error) },
    }
}

/// The interface was deleted under the open file.
fn tap_is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::BADFD | Errno::NODEV | Errno::NXIO))
}
