//! The guest's serial port: always drained, its last 64 KiB kept, typed to on request.
//!
//! One task per machine reads it until QEMU closes it. Bytes flow into a ring; whoever wants them waits until more were written
//! and reads on from the place where it was. A reader that does not keep up misses bytes, and sees so by their place; the guest
//! never waits.

pub(crate) mod ring;

use std::{
    io,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
};

use rustix::net::RecvFlags;
use tokio::{io::Interest, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use ring::Ring;

pub use ring::CONSOLE_RING_BYTES;

/// Bytes read at once.
const CHUNK_BYTES: usize = 4096;

/// What is read at most of a QEMU that should have nothing more to say, in bytes: more than a socket holds.
const DRAIN_BYTES_MAX: usize = 1024 * 1024;

/// Bytes typed that QEMU may have before it has passed them to the guest's port, which holds 16. What lies there when the guest
/// moves away stays behind.
const TYPED_BYTES_MAX: usize = 16;

/// A guest's serial port. Clones show the same one.
#[derive(Debug, Clone)]
pub struct Console {
    ring: Arc<Mutex<Ring>>,
    written: watch::Sender<u64>,
    serial: Arc<tokio::net::UnixStream>,
    over: CancellationToken,
}

impl Console {
    /// Begins to drain `serial`; ends when QEMU closes it.
    pub(crate) fn drain(serial: UnixStream, tasks: &TaskTracker) -> io::Result<Self> {
        serial.set_nonblocking(true)?;
        let serial = Arc::new(tokio::net::UnixStream::from_std(serial)?);
        let over = CancellationToken::new();
        let console = Self { ring: Arc::default(), written: watch::Sender::new(0), serial, over: over.clone() };
        let reader = console.clone();
        tasks.spawn(async move {
            let _over = over.drop_guard();
            while reader.serial.readable().await.is_ok() {
                match reader.serial.try_io(Interest::READABLE, || reader.read_chunk()) {
                    Ok(1..) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(0) | Err(_) => return,
                }
            }
        });
        Ok(console)
    }

    /// Reads what QEMU has written, as much as one call takes; 0: it has closed the port. Read and kept under one lock, so that
    /// whoever reads, the bytes stand in the order in which they were written.
    fn read_chunk(&self) -> io::Result<usize> {
        let mut buffer = [0; CHUNK_BYTES];
        let mut ring = self.ring.lock().expect("no holder panics");
        let (bytes, _) = rustix::net::recv(&*self.serial, &mut buffer[..], RecvFlags::DONTWAIT)?;
        ring.add(&buffer[..bytes]);
        self.written.send_replace(ring.written);
        Ok(bytes)
    }

    /// Reads everything QEMU has written so far. Of one that has answered `stop` that is all there is.
    pub fn drained(&self) {
        // One that goes on writing is not waited for.
        for _ in 0..DRAIN_BYTES_MAX / CHUNK_BYTES {
            if !matches!(self.read_chunk(), Ok(1..)) {
                return;
            }
        }
    }

    /// Waits until QEMU has closed the port and everything it wrote there was read.
    pub async fn ended(&self) {
        self.over.cancelled().await;
    }

    /// Types: as many of `bytes` as QEMU takes now, none while it has not read what was typed before.
    ///
    /// # Errors
    /// When QEMU has closed the port.
    pub fn type_in(&self, bytes: &[u8]) -> io::Result<usize> {
        if crate::sys::unread(&*self.serial)? {
            return Ok(0);
        }
        match self.serial.try_write(&bytes[..bytes.len().min(TYPED_BYTES_MAX)]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            written => written,
        }
    }

    /// Moves whenever the guest has written: the place of what comes next.
    #[must_use]
    pub fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// The last bytes the guest wrote, at most [`CONSOLE_RING_BYTES`].
    #[must_use]
    pub fn log(&self) -> Vec<u8> {
        self.placed_log().1
    }

    /// The same, with the place of its first byte in all that was ever written.
    #[must_use]
    pub fn placed_log(&self) -> (u64, Vec<u8>) {
        self.ring.lock().expect("no holder panics").placed()
    }

    /// Puts what the guest wrote elsewhere, or in an earlier life, before what it writes here: `bytes` of which the first
    /// stands at `position`. What does not continue what is known takes its place. For a guest that does not run yet.
    pub fn remember(&self, position: u64, bytes: &[u8]) {
        let mut ring = self.ring.lock().expect("no holder panics");
        ring.remember(position, bytes);
        self.written.send_replace(ring.written);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A console, and QEMU's end of it. Its reader has not run yet.
    fn console() -> (Console, UnixStream, TaskTracker) {
        let (ours, qemus) = UnixStream::pair().unwrap();
        let tasks = TaskTracker::new();
        (Console::drain(ours, &tasks).unwrap(), qemus, tasks)
    }

    #[tokio::test]
    async fn what_lies_in_the_socket_is_read_when_it_is_asked_for() {
        let (console, mut qemu, _tasks) = console();
        qemu.write_all(b"the last words before the pause").unwrap();

        console.drained();

        assert_eq!(console.log(), b"the last words before the pause");
    }

    #[tokio::test]
    async fn the_end_is_after_the_last_byte_whoever_reads() {
        let (console, mut qemu, _tasks) = console();
        let sent: Vec<u8> = (0..60_000_u32).map(|number| (number % 251) as u8).collect();
        for part in sent.chunks(1_000) {
            qemu.write_all(part).unwrap();
            tokio::task::yield_now().await;
            console.drained();
        }
        qemu.write_all(b"end").unwrap();
        drop(qemu);

        console.ended().await;

        assert_eq!(console.log(), [&sent, &b"end"[..]].concat());
    }
}
