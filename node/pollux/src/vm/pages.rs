//! Pages on their way: from a set of page numbers to frames on several streams, and from frames into memory.
//!
//! Memory is cut into pieces of [`PIECE_PAGES`] pages; piece number modulo the number of streams says which stream carries
//! it, always. Streams keep order within themselves only, so this is what keeps an older copy of a page from arriving after
//! a newer one.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use pollux_link::{RecvStream, SendStream, StreamError};
use pollux_state::id::{Generation, OpId, VmId};
use pollux_vm::{
    event::RoundReport,
    message::Greeting,
    pages::{PAGE_BYTES, PageSet},
};
use pollux_wire::page::{self, Encoder, HEADER_BYTES, Header, Run, Stamp};
use tokio::{sync::Mutex, task::JoinError};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::host::Memory;

/// Pages in a piece: what fits one frame with room for content of all of them.
pub(super) const PIECE_PAGES: u64 = 256;

/// Who is asked before bytes are sent.
#[async_trait]
pub(super) trait Paced: Send + Sync {
    /// Waits until so many bytes may be sent.
    async fn may_send(&self, bytes: u64);
}

/// One page stream of the source.
pub(super) struct PageStream {
    send: SendStream,
    encoder: Encoder,
    vm: VmId,
    op: OpId,
    generation: Generation,
    frames: u64,
    pages: u64,
}

impl PageStream {
    pub(super) fn new(send: SendStream, greeting: &Greeting) -> Self {
        let Greeting { vm, op, generation, .. } = *greeting;
        Self { send, encoder: Encoder::new(), vm, op, generation, frames: 0, pages: 0 }
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
        pace: Option<&dyn Paced>,
    ) -> Result<(), String> {
        let mut content = [0; PAGE_BYTES];
        let (mut piece, mut zero_pages) = (None, 0);
        for number in set.iter().filter(|number| lot.has(*number)) {
            let of = Some(number / PIECE_PAGES);
            if piece != of {
                self.flush(round, std::mem::take(&mut zero_pages), tally, pace).await?;
                piece = of;
            }
            memory.read(number, &mut content);
            // The runs of a piece fit a frame, whatever their kinds: a page is at most one run.
            let added = if is_zero(&content) {
                zero_pages += 1;
                self.encoder.zero(number, 1)
            } else {
                self.encoder.page(number, &content)
            };
            added.map_err(|error| error.to_string())?;
        }
        self.flush(round, zero_pages, tally, pace).await
    }

    async fn flush(
        &mut self,
        round: u32,
        zero_pages: u64,
        tally: &Tally,
        pace: Option<&dyn Paced>,
    ) -> Result<(), String> {
        if self.encoder.is_empty() {
            return Ok(());
        }
        let pages = self.encoder.pages();
        let Self { vm, op: operation, generation, .. } = *self;
        let stamp = Stamp { vm, operation, generation, round, first_sequence: self.pages };
        let frame = Bytes::copy_from_slice(self.encoder.finish(&stamp, true));
        let wire_bytes = frame.len() as u64;
        if let Some(pace) = pace {
            pace.may_send(wire_bytes).await;
        }
        self.send.send(frame).await.map_err(|error| error.to_string())?;
        self.frames += 1;
        self.pages += pages;
        tally.add(pages, zero_pages, wire_bytes);
        // Packing a frame takes long enough for others to want their turn.
        tokio::task::yield_now().await;
        Ok(())
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

/// Sends the pages of `set` over all streams at once, and adds them to `tally`. `pace` is asked before each frame.
#[expect(clippy::too_many_arguments, reason = "one caller, which has each of them")]
pub(super) async fn send(
    tasks: &TaskTracker,
    cancel: &CancellationToken,
    streams: &[Arc<Mutex<PageStream>>],
    round: u32,
    set: PageSet,
    memory: Arc<dyn Memory>,
    tally: &Arc<Tally>,
    pace: Option<Arc<dyn Paced>>,
) -> Result<(), String> {
    tally.due.fetch_add(set.len(), Ordering::Relaxed);
    let set = Arc::new(set);
    let count = streams.len() as u64;
    let sending = streams.iter().zip(0u64..).map(|(stream, number)| {
        let (stream, set, memory, tally) = (stream.clone(), set.clone(), memory.clone(), tally.clone());
        let lot = Lot { stream: number, streams: count };
        let (cancel, pace) = (cancel.clone(), pace.clone());
        let sending = async move {
            let sent = async { stream.lock().await.send(lot, round, &set, &*memory, &tally, pace.as_deref()).await };
            cancel.run_until_cancelled(sent).await.unwrap_or_else(|| Err("the move was called off".into()))
        };
        tasks.spawn(sending.in_current_span())
    });
    let sending: Vec<_> = sending.collect();
    for sent in sending {
        sent.await.map_err(|error: JoinError| error.to_string())??;
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
    match run {
        Run::Zero { first, pages } => (first..first + u64::from(pages))
            .try_for_each(|number| memory.zero(number))
            .map_err(|error| error.to_string()),
        Run::Sent { first, content } => {
            for (number, bytes) in (first..).zip(content.chunks_exact(PAGE_BYTES)) {
                let page = bytes.try_into().map_err(|_| "half a page".to_owned())?;
                memory.write(number, page);
            }
            Ok(())
        }
    }
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

fn is_zero(page: &[u8; PAGE_BYTES]) -> bool {
    // In words of 16 bytes, which the compiler makes vectors of.
    page.chunks_exact(16).all(|word| word == [0; 16])
}

#[cfg(test)]
mod tests {
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
    fn one_byte_makes_a_page_worth_sending() {
        let mut page = [0; PAGE_BYTES];
        assert!(is_zero(&page));
        page[PAGE_BYTES - 1] = 1;
        assert!(!is_zero(&page));
    }
}
