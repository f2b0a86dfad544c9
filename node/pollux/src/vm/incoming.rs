//! The target's end of a move: takes pages into the standby's memory and keeps the device state until the core wants it.
//!
//! Made by the actor when the core admits one operation from one source at one generation; anything else is refused here
//! and counted (DESIGN, rule 4). Streams that come before the standby exists wait. Ended with the move.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use pollux_link::{Peer, RecvStream, SendStream};
use pollux_state::id::{Generation, OpId, Owner, VmId};
use pollux_vm::{
    Event,
    message::{Greeting, StreamGreeting, ToSource, ToTarget},
};
use pollux_wire::limits::STATE_BYTES_MAX;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    actor::Mail,
    host::{Guest, Log},
    outgoing::{receive_message, send_message},
    pages::{self, Fence},
};

/// Page streams that one move may have.
pub(super) const STREAMS_MAX: u16 = 16;

pub(super) struct Incoming {
    gathering: Arc<Gathering>,
    guest: Option<Arc<dyn Guest>>,
    control: Option<(Greeting, SendStream, RecvStream)>,
    streams: Vec<RecvStream>,
}

struct Gathering {
    shared: Arc<Shared>,
    vm: VmId,
    op: OpId,
    from: Owner,
    generation: Generation,
    number: u64,
    post: mpsc::Sender<Mail>,
    cancel: CancellationToken,
    /// Cancelled when every page is in: from then on the memory is the guest's.
    pages: CancellationToken,
    frames: AtomicU64,
    progress: Notify,
    state: Mutex<Option<Bytes>>,
}

/// Tells a source that it is not wanted here.
pub(super) fn refuse(mut send: SendStream, reason: &'static str) {
    tracing::warn!(reason, "a move was refused");
    let message = ToSource::Refused { reason: reason.to_owned() };
    // A source that cannot be told finds out from the log.
    #[expect(
        clippy::disallowed_methods,
        reason = "ends by itself: one small message on a stream with an idle timeout"
    )]
    tokio::spawn(async move {
        let _ = send_message(&mut send, &message).await;
        let _ = send.finish();
    });
}

impl Incoming {
    pub(super) fn new(
        shared: Arc<Shared>,
        vm: VmId,
        op: OpId,
        from: Owner,
        generation: Generation,
        number: u64,
        post: &mpsc::Sender<Mail>,
    ) -> Self {
        let gathering = Arc::new(Gathering {
            shared,
            vm,
            op,
            from,
            generation,
            number,
            post: post.clone(),
            cancel: CancellationToken::new(),
            pages: CancellationToken::new(),
            frames: AtomicU64::new(0),
            progress: Notify::new(),
            state: Mutex::new(None),
        });
        Self { gathering, guest: None, control: None, streams: Vec::new() }
    }

    /// Does it gather for this move?
    pub(super) fn is_for(&self, op: OpId) -> bool {
        self.gathering.op == op
    }

    /// The source's control stream: admitted, or refused by name.
    pub(super) fn control(&mut self, peer: Peer, greeting: Greeting, send: SendStream, recv: RecvStream) {
        let expected = &self.gathering;
        if greeting.op != expected.op || greeting.from != expected.from || peer.node != expected.from.node {
            return refuse(send, "another move is expected here");
        }
        if greeting.generation != expected.generation {
            return refuse(send, "the generation is not the one this move was decided for");
        }
        if greeting.streams == 0 || greeting.streams > STREAMS_MAX || self.control.is_some() {
            return refuse(send, "the greeting makes no sense");
        }
        self.control = Some((greeting, send, recv));
        let gathering = expected.clone();
        gathering.clone().spawn(async move { gathering.tell(Event::SourceConnected).await });
        self.begin();
    }

    /// One of its page streams.
    pub(super) fn pages(&mut self, peer: Peer, greeting: StreamGreeting, recv: RecvStream) {
        let expected = greeting.op == self.gathering.op && peer.node == self.gathering.from.node;
        if expected && self.streams.len() < usize::from(STREAMS_MAX) {
            self.streams.push(recv);
            self.begin();
        }
    }

    /// The standby exists.
    pub(super) fn guest_is_ready(&mut self, guest: Arc<dyn Guest>) {
        self.guest = Some(guest);
        self.begin();
    }

    /// The device state, once everything is here.
    pub(super) fn device_state(&mut self) -> Option<Bytes> {
        self.gathering.state.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn end(self, reason: &str) {
        tracing::debug!(reason, "the target's end of a move is over");
        self.gathering.cancel.cancel();
    }

    /// Starts on whatever has come, once there is memory to put it into.
    fn begin(&mut self) {
        let Some(guest) = &self.guest else { return };
        for recv in self.streams.drain(..) {
            let (gathering, memory) = (self.gathering.clone(), guest.memory());
            let fence = Fence { vm: gathering.vm, op: gathering.op, generation: gathering.generation };
            gathering.clone().spawn(async move {
                let arrived = || {
                    gathering.frames.fetch_add(1, Ordering::AcqRel);
                    gathering.progress.notify_one();
                };
                let receiving = gathering.pages.run_until_cancelled(pages::receive(recv, fence, memory, arrived));
                if let Some(Err(why)) = receiving.await {
                    gathering.tell(Event::SessionLost(why)).await;
                }
            });
        }
        if let Some((greeting, send, recv)) = self.control.take() {
            if greeting.pages != guest.memory().pages() {
                return refuse(send, "the guest's memory has another size here");
            }
            let (gathering, guest) = (self.gathering.clone(), guest.clone());
            self.gathering.shared.spawn(async move {
                let mut send = send;
                let conversation = gathering.converse(guest, &mut send, recv);
                if let Some(Err(why)) = gathering.cancel.run_until_cancelled(conversation).await {
                    gathering.tell(Event::SessionLost(why)).await;
                }
                // An orderly end: a source that has handed over must not take it for a loss.
                let _ = send.finish();
            });
        }
    }
}

impl Gathering {
    fn spawn(self: Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        self.shared.spawn(self.cancel.clone().run_until_cancelled_owned(task));
    }

    async fn tell(&self, event: Event) {
        let _ = self.post.send(Mail::Session { number: self.number, event }).await;
    }

    /// Waits until the pages of that many frames are in memory: the page streams may be behind the control stream.
    async fn have(&self, frames: u64) {
        while self.frames.load(Ordering::Acquire) < frames {
            self.progress.notified().await;
        }
    }

    /// Says that the standby waits, then hears what the source has to say.
    async fn converse(&self, guest: Arc<dyn Guest>, send: &mut SendStream, mut recv: RecvStream) -> Result<(), String> {
        send_message(send, &ToSource::Ready).await?;
        loop {
            match receive_message(&mut recv).await? {
                Some(ToTarget::Complete { frames, state_bytes, packed_bytes, report }) => {
                    let state = receive_state(&mut recv, state_bytes, packed_bytes).await?;
                    self.have(frames).await;
                    self.pages.cancel();
                    *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
                    let at = self.shared.clock.now();
                    self.tell(Event::AllReceived { report, at }).await;
                }
                Some(ToTarget::RoundEnd { frames }) => {
                    self.have(frames).await;
                    send_message(send, &ToSource::Landed { frames }).await?;
                }
                Some(ToTarget::Console { start, bytes }) => guest.remember(&Log { start, bytes }),
                Some(ToTarget::Abandon { reason }) => {
                    self.tell(Event::PeerAbandoned(reason)).await;
                    return Ok(());
                }
                None => return Err("the source closed the connection".into()),
            }
        }
    }
}

/// The device state that follows a `Complete`.
async fn receive_state(recv: &mut RecvStream, state_bytes: u64, packed_bytes: u64) -> Result<Bytes, String> {
    let length = |bytes: u64| usize::try_from(bytes).ok().filter(|bytes| *bytes <= STATE_BYTES_MAX);
    let (Some(state_bytes), Some(packed_bytes)) = (length(state_bytes), length(packed_bytes)) else {
        return Err(format!("a device state of {state_bytes} bytes in {packed_bytes} is too long"));
    };
    let mut packed = vec![0; packed_bytes];
    recv.read_exact(&mut packed).await.map_err(|error| error.to_string())?;
    match lz4_flex::block::decompress(&packed, state_bytes) {
        Ok(state) if state.len() == state_bytes => Ok(Bytes::from(state)),
        Ok(state) => Err(format!("the device state is {} bytes, not {state_bytes}", state.len())),
        Err(error) => Err(format!("the device state cannot be unpacked: {error}")),
    }
}
