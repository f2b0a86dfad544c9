//! The guest's serial port: always drained, its last 64 KiB kept.
//!
//! One task per machine reads it until QEMU closes it. Bytes flow into a ring, for `pollux vm log`, and to whoever
//! subscribed; a subscriber that does not keep up loses bytes, the guest never waits.

use std::{
    collections::VecDeque,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio::{io::AsyncReadExt, sync::broadcast};
use tokio_util::task::TaskTracker;

/// How much of the serial port's output is kept, in bytes.
pub const CONSOLE_RING_BYTES: usize = 64 * 1024;

/// Chunks a subscriber may lag behind.
const CHUNKS_MAX: usize = 256;

/// Bytes read at once.
const CHUNK_BYTES: usize = 4096;

/// A guest's serial port. Clones show the same one.
#[derive(Debug, Clone)]
pub struct Console {
    ring: Arc<Mutex<Ring>>,
    live: broadcast::WeakSender<Bytes>,
}

/// The end of what was ever written.
#[derive(Debug, Default)]
struct Ring {
    bytes: VecDeque<u8>,
    /// Bytes written since the beginning.
    written: u64,
}

impl Ring {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.written += bytes.len() as u64;
        let excess = self.bytes.len().saturating_sub(CONSOLE_RING_BYTES);
        self.bytes.drain(..excess);
    }
}

impl Console {
    /// Begins to drain `serial`; ends when QEMU closes it.
    pub(crate) fn drain(serial: UnixStream, tasks: &TaskTracker) -> std::io::Result<Self> {
        serial.set_nonblocking(true)?;
        let mut serial = tokio::net::UnixStream::from_std(serial)?;
        let ring = Arc::new(Mutex::new(Ring::default()));
        let (live, _) = broadcast::channel(CHUNKS_MAX);
        let console = Self { ring: Arc::clone(&ring), live: live.downgrade() };
        tasks.spawn(async move {
            let mut buffer = vec![0; CHUNK_BYTES];
            while let Ok(count @ 1..) = serial.read(&mut buffer).await {
                let mut ring = ring.lock().expect("no holder panics");
                ring.add(&buffer[..count]);
                // Inside the lock, so that `follow` sees each byte once. An error means that nobody listens.
                let _ = live.send(Bytes::copy_from_slice(&buffer[..count]));
            }
        });
        Ok(console)
    }

    /// The last bytes the guest wrote, at most [`CONSOLE_RING_BYTES`].
    #[must_use]
    pub fn log(&self) -> Vec<u8> {
        self.placed_log().1
    }

    /// The same, with the place of its first byte in all that was ever written.
    #[must_use]
    pub fn placed_log(&self) -> (u64, Vec<u8>) {
        let ring = self.ring.lock().expect("no holder panics");
        (ring.written - ring.bytes.len() as u64, ring.bytes.iter().copied().collect())
    }

    /// Puts what the guest wrote elsewhere, or in an earlier life, before what it writes here: `bytes` of which the first
    /// stands at `position`. What does not continue what is known takes its place. For a guest that does not run yet.
    pub fn remember(&self, position: u64, bytes: &[u8]) {
        let mut ring = self.ring.lock().expect("no holder panics");
        if ring.written != position {
            ring.bytes.clear();
            ring.written = position;
        }
        ring.add(bytes);
    }

    /// What it wrote so far, and what it writes from now on: together every byte once. The receiver ends when QEMU closes
    /// the port and says how many chunks it missed when it did not keep up; `None` when the port is closed already.
    #[must_use]
    pub fn follow(&self) -> (Vec<u8>, Option<broadcast::Receiver<Bytes>>) {
        let ring = self.ring.lock().expect("no holder panics");
        (ring.bytes.iter().copied().collect(), self.live.upgrade().map(|live| live.subscribe()))
    }
}
