//! Pages on their way: from a set of page numbers to frames on several streams, and from frames into memory.
//!
//! Memory is cut into pieces of [`PIECE_PAGES`] pages; piece number modulo the number of streams says which stream carries
//! it, always. Streams keep order within themselves only, so this is what keeps an older copy of a page from arriving after
//! a newer one.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex as StdMutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use pollux_link::{RecvStream, SendStream, StreamError};
use pollux_state::id::{Generation, OpId, VmId};
use pollux_vm::{event::RoundReport, message::Greeting, pages::PageSet};
use pollux_wire::page::{self, Encoder, Frame, Gathered, HEADER_BYTES, Header, Run, Stamp};
use tokio::{sync::Mutex, task::JoinError};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::host::Memory;

/// Pages in a piece: what fits one frame with room for content of all of them.
pub(super) const PIECE_PAGES: u64 = 256;

/// A target that takes nothing of what is sent to it for so long, in milliseconds, has stalled: its daemon answers, and does not read. A
/// link of half a megabit per second carries a part of each stream in half of the time.
const STALL_MS_MAX: u64 = 10_000;
/// What counts as something, in bytes: a frame is sent in parts of this length.
const PART_BYTES: usize = 64 * 1024;
/// Unless the connection has sent so much meanwhile, in bytes: then it was busy with what goes before pages, such as replicas of volumes.
/// Half a megabit per second is more than twice of it; what is sent over one on which nothing waits, to stay alive, a hundredth.
const BUSY_BYTES: u64 = 4 * PART_BYTES as u64;

/// Buffers of frames that a stream keeps for further ones. What the connection holds at a time comes back in bursts of about
/// this many.
const BUFFERS_MAX: usize = 8;

/// Why something was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SendError {
    /// The target does not read.
    #[error("the target took nothing of what was sent to it for {} s", STALL_MS_MAX / 1000)]
    Stalled,
    /// It might, but nothing of this reaches it.
    #[error("the link to the target was busy with other traffic, such as replicas of volumes, and carried nothing of this guest for {} s", .0 / 1000)]
    Starved(u64),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl From<String> for SendError {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl From<&str> for SendError {
    fn from(why: &str) -> Self {
        Self::Failed(why.to_owned())
    }
}

/// Sends something that is not long, to a target that reads.
pub(super) async fn unless_stalled<E: ToString>(
    way: &dyn Way,
    sending: impl Future<Output = Result<(), E>>,
) -> Result<(), SendError> {
    let mut sending = pin!(sending);
    let mut waited_ms = 0;
    loop {
        let before = way.sent_bytes();
        match tokio::time::timeout(Duration::from_millis(STALL_MS_MAX), &mut sending).await {
            Ok(sent) => return sent.map_err(|error| SendError::Failed(error.to_string())),
            Err(_) if way.sent_bytes().saturating_sub(before) < BUSY_BYTES => return Err(SendError::Stalled),
            Err(_) => waited_ms += STALL_MS_MAX,
        }
        if waited_ms >= way.starved_ms_max() {
            return Err(SendError::Starved(waited_ms));
        }
    }
}

/// A frame, part by part.
fn parts(mut frame: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || (!frame.is_empty()).then(|| frame.split_to(frame.len().min(PART_BYTES))))
}

/// The way to the target, as far as who sends on it has to know.
#[async_trait]
pub(super) trait Way: Send + Sync {
    /// Waits until so many bytes may be sent.
    async fn may_send(&self, bytes: u64);

    /// What its connection has sent so far, for whomever.
    fn sent_bytes(&self) -> u64;

    /// For so long others may go before, in milliseconds.
    fn starved_ms_max(&self) -> u64;
}

/// One page stream of the source.
pub(super) struct PageStream {
    send: SendStream,
    encoder: Encoder,
    buffers: Buffers,
    vm: VmId,
    op: OpId,
    generation: Generation,
    frames: u64,
    pages: u64,
}

impl PageStream {
    pub(super) fn new(send: SendStream, greeting: &Greeting) -> Self {
        let Greeting { vm, op, generation, .. } = *greeting;
        Self { send, encoder: Encoder::new(), buffers: Buffers::default(), vm, op, generation, frames: 0, pages: 0 }
    }

    /// Frames sent so far.
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// No more will come.
    pub(super) fn finish(&mut self) {
        // A stream that is gone has said so already.
        let _ = self.send.finish();
    }

    /// Sends those pages of `set` that are this stream's.
    async fn send(
        &mut self,
        lot: Lot,
        round: u32,
        set: &PageSet,
        memory: &dyn Memory,
        tally: &Tally,
        way: &dyn Way,
    ) -> Result<(), SendError> {
        let (mut piece, mut zero_pages) = (None, 0);
        for number in set.iter().filter(|number| lot.has(*number)) {
            let of = Some(number / PIECE_PAGES);
            if piece != of {
                self.flush(round, std::mem::take(&mut zero_pages), tally, way).await?;
                piece = of;
            }
            // The runs of a piece fit a frame, whatever their kinds: a page is at most one run.
            match self.encoder.gather(number, |content| memory.read(number, content)) {
                Ok(Gathered::Zero) => zero_pages += 1,
                Ok(Gathered::Content) => {}
                Err(error) => return Err(error.to_string().into()),
            }
        }
        self.flush(round, zero_pages, tally, way).await
    }

    async fn flush(&mut self, round: u32, zero_pages: u64, tally: &Tally, way: &dyn Way) -> Result<(), SendError> {
        if self.encoder.is_empty() {
            return Ok(());
        }
        let pages = self.encoder.pages();
        let Self { vm, op: operation, generation, .. } = *self;
        let stamp = Stamp { vm, operation, generation, round, first_sequence: self.pages };
        if let Some(buffer) = self.buffers.take() {
            self.encoder.reuse(buffer);
        }
        let frame = self.buffers.lend(self.encoder.finish(&stamp, true));
        let wire_bytes = frame.len() as u64;
        way.may_send(wire_bytes).await;
        // However long all of it takes, the target goes on reading.
        for part in parts(frame) {
            unless_stalled(way, self.send.send(part)).await?;
        }
        self.frames += 1;
        self.pages += pages;
        tally.add(pages, zero_pages, wire_bytes);
        // Packing a frame takes long enough for others to want their turn.
        tokio::task::yield_now().await;
        Ok(())
    }
}

/// Buffers of frames that have been sent and acknowledged, for further frames: one that is new costs the kernel as much as
/// what is put into it.
#[derive(Debug, Clone, Default)]
struct Buffers(Arc<StdMutex<Vec<Vec<u8>>>>);

/// A buffer on its way to the connection; dropped there when all of it was acknowledged.
struct Lent {
    buffer: Vec<u8>,
    home: Buffers,
}

impl Buffers {
    fn take(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn lend(&self, frame: Frame) -> Bytes {
        let (buffer, range) = frame.into_parts();
        // The connection's window counts the bytes of frames. Of small ones it would hold a great many buffers.
        let small = range.len() < buffer.len() / 2;
        let copy = small.then(|| Bytes::copy_from_slice(&buffer[range.clone()]));
        let lent = Lent { buffer, home: self.clone() };
        copy.unwrap_or_else(|| Bytes::from_owner(lent).slice(range))
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut home = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if home.len() < BUFFERS_MAX {
            home.push(std::mem::take(&mut self.buffer));
        }
    }
}

/// What has been sent of a round, over all its streams, while it goes on.
#[derive(Debug, Default)]
pub(super) struct Tally {
    due: AtomicU64,
    pages: AtomicU64,
    zero_pages: AtomicU64,
    wire_bytes: AtomicU64,
}

impl Tally {
    fn add(&self, pages: u64, zero_pages: u64, wire_bytes: u64) {
        self.pages.fetch_add(pages, Ordering::Relaxed);
        self.zero_pages.fetch_add(zero_pages, Ordering::Relaxed);
        self.wire_bytes.fetch_add(wire_bytes, Ordering::Relaxed);
    }

    /// What was sent, but for the time it took.
    pub(super) fn sent(&self) -> RoundReport {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RoundReport {
            pages: read(&self.pages),
            zero_pages: read(&self.zero_pages),
            wire_bytes: read(&self.wire_bytes),
            took_ms: 0,
        }
    }

    /// How many pages are still to be sent.
    pub(super) fn left_pages(&self) -> u64 {
        self.due.load(Ordering::Relaxed).saturating_sub(self.pages.load(Ordering::Relaxed))
    }
}

/// Which pages are a stream's.
#[derive(Debug, Clone, Copy)]
struct Lot {
    stream: u64,
    streams: u64,
}

impl Lot {
    fn has(self, page: u64) -> bool {
        (page / PIECE_PAGES) % self.streams == self.stream
    }
}

/// Sends the pages of `set` over all streams at once, and adds them to `tally`. `way` is asked before each frame.
#[expect(clippy::too_many_arguments, reason = "one caller, which has each of them")]
pub(super) async fn send(
    tasks: &TaskTracker,
    cancel: &CancellationToken,
    streams: &[Arc<Mutex<PageStream>>],
    round: u32,
    set: PageSet,
    memory: Arc<dyn Memory>,
    tally: &Arc<Tally>,
    way: Arc<dyn Way>,
) -> Result<(), SendError> {
    tally.due.fetch_add(set.len(), Ordering::Relaxed);
    let set = Arc::new(set);
    let count = streams.len() as u64;
    let sending = streams.iter().zip(0u64..).map(|(stream, number)| {
        let (stream, set, memory, tally) = (stream.clone(), set.clone(), memory.clone(), tally.clone());
        let lot = Lot { stream: number, streams: count };
        let (cancel, way) = (cancel.clone(), way.clone());
        let sending = async move {
            let sent = async { stream.lock().await.send(lot, round, &set, &*memory, &tally, &*way).await };
            cancel.run_until_cancelled(sent).await.unwrap_or_else(|| Err("the move was called off".into()))
        };
        tasks.spawn(sending.in_current_span())
    });
    let sending: Vec<_> = sending.collect();
    for sent in sending {
        sent.await.map_err(|error: JoinError| SendError::Failed(error.to_string()))??;
    }
    Ok(())
}

/// What a frame must say to be taken in (DESIGN, rule 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fence {
    pub(super) vm: VmId,
    pub(super) op: OpId,
    pub(super) generation: Generation,
}

impl Fence {
    fn admits(&self, stamp: &Stamp) -> bool {
        (self.vm, self.op, self.generation) == (stamp.vm, stamp.operation, stamp.generation)
    }
}

/// Takes the pages of one stream into memory, until it ends in good order. `arrived` is told of each frame after its pages
/// are in memory.
pub(super) async fn receive(
    mut recv: RecvStream,
    fence: Fence,
    memory: Arc<dyn Memory>,
    arrived: impl Fn(),
) -> Result<(), String> {
    let mut header = [0; HEADER_BYTES];
    let (mut body, mut scratch) = (Vec::new(), Vec::new());
    let mut sequence = 0;
    while read_or_end(&mut recv, &mut header).await? {
        let length = Header::parse(&header).map_err(|error| error.to_string())?.body_bytes();
        body.resize(length, 0);
        recv.read_exact(&mut body).await.map_err(|error| error.to_string())?;
        let batch = page::decode(&header, &body, memory.pages(), &mut scratch).map_err(|error| error.to_string())?;
        let stamp = batch.stamp();
        if !fence.admits(stamp) {
            return Err(format!("a frame of {} for {} at {} is refused", stamp.operation, stamp.vm, stamp.generation));
        }
        if stamp.first_sequence != sequence {
            return Err(format!("a frame starts at page {} of its stream, not at {sequence}", stamp.first_sequence));
        }
        sequence += batch.pages();
        for run in batch.runs() {
            put(&*memory, run)?;
        }
        arrived();
    }
    Ok(())
}

fn put(memory: &dyn Memory, run: Run<'_>) -> Result<(), String> {
    let put = match run {
        Run::Zero { first, pages } => memory.zero(first..first + u64::from(pages)),
        Run::Sent { first, content } => memory.write(first, content),
    };
    put.map_err(|error| error.to_string())
}

/// Fills `buffer`; `false` at the orderly end of the stream.
pub(super) async fn read_or_end(recv: &mut RecvStream, buffer: &mut [u8]) -> Result<bool, String> {
    let mut filled = 0;
    while filled < buffer.len() {
        match recv.read_chunk(buffer.len() - filled).await {
            Ok(Some(chunk)) => {
                buffer[filled..filled + chunk.len()].copy_from_slice(&chunk);
                filled += chunk.len();
            }
            Ok(None) if filled == 0 => return Ok(false),
            Ok(None) => return Err(StreamError::Ended.to_string()),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use pollux_vm::pages::PAGE_BYTES;

    use super::*;

    #[test]
    fn a_page_always_travels_on_the_same_stream() {
        let streams = 4;
        for page in [0, 255, 256, 1023, 1024, 99_999] {
            let carriers = (0..streams).filter(|stream| Lot { stream: *stream, streams }.has(page));
            assert_eq!(carriers.count(), 1, "page {page}");
        }
        assert!(Lot { stream: 0, streams }.has(255) && Lot { stream: 1, streams }.has(256));
    }

    /// A connection on which so much is sent each second; others go before for a minute at most.
    struct Busy(u64, tokio::time::Instant);

    #[async_trait]
    impl Way for Busy {
        async fn may_send(&self, _: u64) {}

        fn sent_bytes(&self) -> u64 {
            self.1.elapsed().as_secs() * self.0
        }

        fn starved_ms_max(&self) -> u64 {
            60_000
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_is_not_blamed_for_a_link_that_is_busy_with_what_goes_first() {
        let (busy, idle) = (Busy(62_500, tokio::time::Instant::now()), Busy(100, tokio::time::Instant::now()));
        let sends = |after_ms| async move {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            Ok::<(), String>(())
        };
        assert_eq!(unless_stalled(&busy, sends(55_000)).await, Ok(()), "half a megabit per second of replicas");
        assert_eq!(unless_stalled(&idle, sends(55_000)).await, Err(SendError::Stalled), "signs of life");

        let began = tokio::time::Instant::now();
        let starved = unless_stalled(&busy, sends(100_000)).await.expect_err("it has an end");
        assert_eq!((&starved, began.elapsed().as_secs()), (&SendError::Starved(60_000), 60));
        assert!(starved.to_string().ends_with("carried nothing of this guest for 60 s"), "{starved}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_reads_slowly_is_waited_for_and_one_that_does_not_read_is_not() {
        let frame = Bytes::from((0..5 * PART_BYTES + 1).map(|at| at.to_le_bytes()[0]).collect::<Vec<u8>>());
        let idle = Busy(0, tokio::time::Instant::now());
        let mut taken = Vec::new();
        for part in parts(frame.clone()) {
            let slowly = async {
                tokio::time::sleep(Duration::from_millis(STALL_MS_MAX - 1)).await;
                taken.push(part);
                Ok::<(), String>(())
            };
            assert_eq!(unless_stalled(&idle, slowly).await, Ok(()));
        }
        assert_eq!((taken.len(), taken.concat()), (6, frame.to_vec()));

        let stalled = unless_stalled(&idle, std::future::pending::<Result<(), String>>()).await;
        let stalled = stalled.expect_err("it does not read");
        assert_eq!(stalled.to_string(), "the target took nothing of what was sent to it for 10 s");
    }

    #[test]
    fn a_fence_admits_exactly_its_own() {
        let fence = Fence { vm: VmId(1), op: OpId([1; 16]), generation: Generation(5) };
        let stamp =
            Stamp { vm: VmId(1), operation: OpId([1; 16]), generation: Generation(5), round: 9, first_sequence: 77 };
        assert!(fence.admits(&stamp));
        assert!(!fence.admits(&Stamp { generation: Generation(4), ..stamp }));
        assert!(!fence.admits(&Stamp { operation: OpId([2; 16]), ..stamp }));
        assert!(!fence.admits(&Stamp { vm: VmId(2), ..stamp }));
    }

    #[test]
    fn a_buffer_comes_back_when_the_last_part_of_its_frame_is_gone() {
        let buffers = Buffers::default();
        let mut encoder = Encoder::new();
        let mut frame = |pages: u64, spare: Option<Vec<u8>>| {
            spare.into_iter().for_each(|spare| encoder.reuse(spare));
            (0..pages).for_each(|page| encoder.page(page, &[7; PAGE_BYTES]).unwrap());
            let (vm, operation, generation) = (VmId(1), OpId([1; 16]), Generation(5));
            encoder.finish(&Stamp { vm, operation, generation, round: 0, first_sequence: 0 }, false)
        };
        let sent = buffers.lend(frame(PIECE_PAGES, None));
        let part = sent.slice(10..20);
        drop(sent);
        assert!(buffers.take().is_none(), "a part of it is not acknowledged");
        drop(part);
        let spare = buffers.take();
        assert!(spare.is_some() && buffers.take().is_none());

        let small = buffers.lend(frame(1, spare));
        assert!(buffers.take().is_some(), "a small frame holds no large buffer");
        assert!(small.len() > PAGE_BYTES);

        let sent: Vec<Bytes> = (0..2 * BUFFERS_MAX).map(|_| buffers.lend(frame(PIECE_PAGES, None))).collect();
        drop(sent);
        assert_eq!(std::iter::from_fn(|| buffers.take()).count(), BUFFERS_MAX, "no more are kept");
    }
}
