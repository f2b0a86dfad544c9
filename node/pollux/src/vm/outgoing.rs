//! The source's end of a move: tracks the guest, sends its pages and its device state.
//!
//! Made by the actor for one move, ended with it. The connection is one control stream and [`STREAMS`] page streams; a page
//! always travels on the same stream (see [`super::pages`]), so that an older copy of it never arrives after a newer one.
//! Everything slow runs in tasks that report to the actor's mailbox under the session's number.

use std::{
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use pollux_link::{Class, OpenError, RecvStream, SendStream, To};
use pollux_state::{id::Owner, operation::MoveReport};
use pollux_vm::{
    Event,
    event::RoundReport,
    message::{CONSOLE_BYTES_MAX, Greeting, StreamGreeting, ToSource, ToTarget},
    pages::PageSet,
};
use pollux_wire::{
    codec,
    limits::Limit,
    method::{VM_CONTROL, VM_PAGES},
};
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    actor::Mail,
    hold::{self, Place},
    host::Guest,
    pages::{self, PageStream, SendError, Tally, Way, unless_stalled},
    stopwatch::micros,
    turns::{Purpose, Turn},
};
use crate::budget::Budget;

/// Page streams of a move: as many as can be encoded at once on a small host, with some to spare for the link.
pub(super) const STREAMS: u16 = 4;
/// Opening one stream may take this long, in milliseconds.
const OPEN_MS_MAX: u64 = 10_000;
/// Saying goodbye may take this long, in milliseconds.
const FAREWELL_MS_MAX: u64 = 1_000;
/// What lies in send buffers (16 MiB) is with the target within this, in milliseconds, also over half a megabit per second.
const LANDING_MS_MAX: u64 = 300_000;
/// How often the state of a round under way is told, in milliseconds.
const PROGRESS_MS: u64 = 200;
/// Control goes before what daemons ask each other (0), and that before pages.
const CONTROL_PRIORITY: i32 = 10;
const PAGES_PRIORITY: i32 = -10;

pub(super) struct Outgoing {
    session: Arc<Session>,
}

struct Session {
    shared: Arc<Shared>,
    guest: Arc<dyn Guest>,
    greeting: Greeting,
    to: Owner,
    /// What this move may send.
    budget: Budget,
    number: u64,
    machine: u64,
    post: mpsc::Sender<Mail>,
    cancel: CancellationToken,
    connection: OnceLock<Connection>,
    pending: Mutex<PageSet>,
    turn: OnceLock<Turn>,
    /// Frames that the target has said to have in its memory.
    landed: watch::Sender<u64>,
    /// Place up to which it has been sent what the guest wrote to its console.
    console: AtomicU64,
    handed_over: AtomicBool,
}

struct Connection {
    control: Mutex<SendStream>,
    streams: Vec<Arc<Mutex<PageStream>>>,
}

impl Connection {
    /// Frames sent over all page streams so far.
    async fn frames(&self) -> u64 {
        let mut frames = 0;
        for stream in &self.streams {
            frames += stream.lock().await.frames();
        }
        frames
    }
}

impl Outgoing {
    /// Starts tracking and connects. The actor hears `PeerReady`, `PeerRefused` or `SessionLost`.
    pub(super) fn start(
        shared: Arc<Shared>,
        guest: Arc<dyn Guest>,
        greeting: Greeting,
        to: Owner,
        bandwidth: Option<u64>,
        (number, machine): (u64, u64),
        post: &mpsc::Sender<Mail>,
    ) -> Self {
        let pending = Mutex::new(PageSet::empty(greeting.pages));
        let session = Arc::new(Session {
            shared,
            guest,
            greeting,
            to,
            budget: Budget::new(bandwidth),
            number,
            machine,
            post: post.clone(),
            cancel: CancellationToken::new(),
            connection: OnceLock::new(),
            pending,
            turn: OnceLock::new(),
            landed: watch::Sender::new(0),
            console: AtomicU64::new(0),
            handed_over: AtomicBool::new(false),
        });
        session.spawn(|session| async move {
            match session.connect().await {
                Ok(control) => session.listen(control).await,
                Err(why) => session.lost(why).await,
            }
        });
        Self { session }
    }

    /// Sends what is pending, and waits until the target has it.
    pub(super) fn send_round(&self, round: u32) {
        self.session.spawn(move |session| async move {
            match session.send_round(round).await {
                Ok(report) => session.tell(Event::RoundLanded(report)).await,
                // The connection is there.
                Err(why @ (SendError::Stalled | SendError::Starved(_))) => {
                    session.tell(Event::PeerRefused(why.to_string())).await;
                }
                Err(SendError::Failed(why)) => session.lost(why).await,
            }
        });
    }

    /// Finds what was written since the last scan.
    pub(super) fn scan(&self) {
        self.session.spawn(|session| async move {
            match session.scan_pending().await {
                Ok(pending_pages) => session.tell(Event::Scanned { pending_pages }).await,
                Err(why) => session.lost(why).await,
            }
        });
    }

    /// Sends the rest of a paused guest. Always answers, also when the move is called off meanwhile: until then QEMU is
    /// busy saving.
    pub(super) fn hand_over(&self, report: MoveReport, paused_at: Instant) {
        let session = self.session.clone();
        self.session.shared.spawn(async move {
            let event = match session.hand_over(report, paused_at).await {
                Ok(()) => Event::HandedOver,
                Err(why) => Event::HandOverFailed(why),
            };
            // An actor that is gone has ended the machine.
            let _ = session.post.send(Mail::Machine { number: session.machine, event }).await;
        });
    }

    /// Ends the move on this side.
    pub(super) fn end(self, reason: &str) {
        let session = self.session;
        session.cancel.cancel();
        let farewell = ToTarget::Abandon { reason: reason.to_owned() };
        session.shared.clone().spawn(async move {
            if let Some(connection) = session.connection.get() {
                let said = async {
                    let mut control = connection.control.lock().await;
                    let _ = send_message(&mut control, &farewell).await;
                    let _ = control.finish();
                };
                // The other side needs no goodbye: the log decides.
                let _ = tokio::time::timeout(Duration::from_millis(FAREWELL_MS_MAX), said).await;
            }
        });
    }
}

/// Within the budgets of node and move.
#[async_trait]
impl Way for Session {
    async fn may_send(&self, bytes: u64) {
        self.budget.take(bytes).await;
        self.shared.bulk.take(bytes).await;
    }

    fn sent_bytes(&self) -> u64 {
        self.shared.endpoint.path(self.to.node, Class::Bulk).map_or(0, |path| path.sent_bytes)
    }

    fn starved_ms_max(&self) -> u64 {
        LANDING_MS_MAX
    }
}

/// The guest stands still.
struct AtOnce(Arc<Session>);

#[async_trait]
impl Way for AtOnce {
    async fn may_send(&self, _: u64) {}

    fn sent_bytes(&self) -> u64 {
        self.0.sent_bytes()
    }

    /// Not for a moment longer than a target that does not read.
    fn starved_ms_max(&self) -> u64 {
        0
    }
}

impl Session {
    fn spawn<F, T>(self: &Arc<Self>, task: F)
    where
        F: FnOnce(Arc<Self>) -> T,
        T: Future<Output = ()> + Send + 'static,
    {
        let cancel = self.cancel.clone();
        let task = task(self.clone());
        self.shared.spawn(cancel.run_until_cancelled_owned(task));
    }

    async fn tell(&self, event: Event) {
        let _ = self.post.send(Mail::Session { number: self.number, event }).await;
    }

    async fn lost(&self, why: String) {
        self.tell(Event::SessionLost(why)).await;
    }

    /// Protects first, then looks which pages there are: whatever is written from here on is found by a scan.
    async fn connect(&self) -> Result<RecvStream, String> {
        let turn = self.guest.track(Purpose::Move).await;
        let turn = turn.map_err(|error| format!("the guest's memory cannot be tracked: {error}"))?;
        if self.turn.set(turn).is_err() {
            return Err("tracked twice".into());
        }
        *self.pending.lock().await = self.guest.populated().await.map_err(|error| error.to_string())?;

        hold::at(Place::Connect).await;
        let address = {
            let applied = self.shared.consensus.watch();
            let state = applied.borrow().state.clone();
            state.nodes.get(&self.to.node).map(|node| node.address)
        };
        let address = address.ok_or_else(|| format!("{} is not in the cluster", self.to.node))?;
        let to = To { node: self.to.node, address };
        let header = codec::encode(&self.greeting, Limit::Control).map_err(|error| error.to_string())?;
        let deadline = Duration::from_millis(OPEN_MS_MAX);
        let open = |kind, header: Vec<u8>, priority| {
            self.shared.endpoint.open(&to, kind, Bytes::from(header), priority, deadline)
        };
        // The first may meet the connection of a daemon that has been started again since.
        let opened = match open(VM_CONTROL, header.clone(), CONTROL_PRIORITY).await {
            Err(OpenError::Lost { .. }) => open(VM_CONTROL, header, CONTROL_PRIORITY).await,
            opened => opened,
        };
        let (control, answers) = opened.map_err(|error| error.to_string())?;
        let mut streams = Vec::new();
        for stream in 0..STREAMS {
            let Greeting { vm, op, index, .. } = self.greeting;
            let greeting = StreamGreeting { vm, op, index, stream };
            let header = codec::encode(&greeting, Limit::Control).map_err(|error| error.to_string())?;
            let (send, _) = open(VM_PAGES, header, PAGES_PRIORITY).await.map_err(|error| error.to_string())?;
            streams.push(Arc::new(Mutex::new(PageStream::new(send, &self.greeting))));
        }
        let connection = Connection { control: Mutex::new(control), streams };
        if self.connection.set(connection).is_err() {
            return Err("connected twice".into());
        }
        Ok(answers)
    }

    /// Reads what the target says until it says no more.
    async fn listen(&self, mut answers: RecvStream) {
        loop {
            match receive_message(&mut answers).await {
                Ok(Some(ToSource::Ready)) => self.tell(Event::PeerReady).await,
                Ok(Some(ToSource::Landed { frames })) => drop(self.landed.send_replace(frames)),
                Ok(Some(ToSource::Refused { reason })) => {
                    return self.tell(Event::PeerRefused(format!("the target refused: {reason}"))).await;
                }
                // A target that has everything and closes in good order has nothing more to say: the log has.
                Ok(None) if self.handed_over.load(Ordering::Acquire) => return,
                Ok(None) => return self.lost("the target closed the connection".into()).await,
                Err(why) => return self.lost(why).await,
            }
        }
    }

    fn connected(&self) -> Result<&Connection, String> {
        self.connection.get().ok_or_else(|| "the target is not connected".into())
    }

    /// One round, to its end at the target. Until then the guest writes on and nothing of it counts as sent: a pause that
    /// began while megabytes still lay in send buffers would last until they are out.
    async fn send_round(self: &Arc<Self>, round: u32) -> Result<RoundReport, SendError> {
        let began = Instant::now();
        let tally = Arc::new(Tally::default());
        let so_far = || RoundReport { took_ms: super::millis(began.elapsed()), ..tally.sent() };
        let mut landed = self.landed.subscribe();
        let all = async {
            self.send_pending(round, &tally, self.clone()).await?;
            let connection = self.connected()?;
            unless_stalled(&**self, self.send_console(connection)).await?;
            let frames = connection.frames().await;
            hold::at(Place::Round).await;
            let end = ToTarget::RoundEnd { frames };
            let said = async { send_message(&mut *connection.control.lock().await, &end).await };
            unless_stalled(&**self, said).await?;
            let landing = landed.wait_for(|landed| *landed >= frames);
            match tokio::time::timeout(Duration::from_millis(LANDING_MS_MAX), landing).await {
                // The sender is this session's own: it outlives the wait.
                Ok(_) => Ok(()),
                Err(_) => {
                    let why = format!("the target did not take in round {round} within {} s", LANDING_MS_MAX / 1000);
                    Err(SendError::Failed(why))
                }
            }
        };
        let mut all = pin!(all);
        let mut ticks = tokio::time::interval(Duration::from_millis(PROGRESS_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                landed = &mut all => return landed.map(|()| so_far()),
                _ = ticks.tick() => {
                    let (sent, left_pages) = (so_far(), tally.left_pages());
                    self.tell(Event::RoundUnderWay { sent, left_pages }).await;
                }
            }
        }
    }

    /// Sends what the guest wrote to its console and the target does not know yet.
    async fn send_console(&self, connection: &Connection) -> Result<(), String> {
        let mut control = connection.control.lock().await;
        let log = self.guest.log().since(self.console.load(Ordering::Relaxed));
        let mut start = log.start;
        for bytes in log.bytes.chunks(CONSOLE_BYTES_MAX) {
            send_message(&mut control, &ToTarget::Console { start, bytes: bytes.to_vec() }).await?;
            start += bytes.len() as u64;
        }
        self.console.store(start, Ordering::Relaxed);
        Ok(())
    }

    async fn send_pending(&self, round: u32, tally: &Arc<Tally>, way: Arc<dyn Way>) -> Result<(), SendError> {
        let pages = self.greeting.pages;
        let set = std::mem::replace(&mut *self.pending.lock().await, PageSet::empty(pages));
        let connection = self.connected()?;
        let memory = self.guest.memory();
        pages::send(&self.shared.tasks, &self.cancel, &connection.streams, round, set, memory, tally, way).await
    }

    async fn scan_pending(&self) -> Result<u64, String> {
        let mut pending = self.pending.lock().await;
        let turn = self.turn.get().ok_or("the guest is not tracked")?;
        self.guest.scan(turn, &mut pending).await.map_err(|error| format!("dirty tracking failed: {error}"))?;
        Ok(pending.len())
    }

    async fn hand_over(self: &Arc<Self>, mut report: MoveReport, paused_at: Instant) -> Result<(), String> {
        self.cancel.run_until_cancelled(hold::at(Place::Paused)).await;
        let began = Instant::now();
        self.scan_pending().await?;
        let round = report.rounds + 1;
        // The last pages travel while QEMU writes its device state. The save is always seen to its end.
        let tally = Arc::new(Tally::default());
        let pages = async {
            let sent = self.send_pending(round, &tally, Arc::new(AtOnce(self.clone()))).await;
            (sent, micros(began.elapsed()))
        };
        let saved = async {
            let asked = Instant::now();
            (self.guest.save().await, micros(asked.elapsed()))
        };
        let ((sent, pages_us), (state, save_us)) = tokio::join!(pages, saved);
        (report.parts.pages_us, report.parts.save_us) = (pages_us, save_us);
        let state = state.map_err(|error| format!("the device state could not be saved: {error}"))?;
        sent.map_err(|error| error.to_string())?;
        // Saving may itself have written guest memory (DESIGN, section 5: scan once more).
        if self.scan_pending().await? > 0 {
            let sent = self.send_pending(round, &tally, Arc::new(AtOnce(self.clone()))).await;
            sent.map_err(|error| error.to_string())?;
        }
        if self.cancel.is_cancelled() {
            return Err("the move was called off".into());
        }
        let last = tally.sent();
        report.rounds = round;
        report.pages += last.pages;
        report.zero_pages += last.zero_pages;
        let packed = lz4_flex::block::compress(&state);
        report.wire_bytes += last.wire_bytes + packed.len() as u64;
        report.pause_ms = u32::try_from(paused_at.elapsed().as_millis()).unwrap_or(u32::MAX);

        let connection = self.connected()?;
        let frames = connection.frames().await;
        let (state_bytes, packed_bytes) = (state.len() as u64, packed.len() as u64);
        let complete = ToTarget::Complete { frames, state_bytes, packed_bytes, report };
        // From here on the target may win: that it closes the stream afterwards is no failure.
        self.handed_over.store(true, Ordering::Release);
        let last = async {
            hold::at(Place::Complete).await;
            // Hardly anything: the rounds have sent it.
            self.send_console(connection).await?;
            let mut control = connection.control.lock().await;
            send_message(&mut control, &complete).await?;
            control.write_all(&packed).await.map_err(|error| error.to_string())
        };
        // On a bad link this takes long, and an abort need not wait for it: only the save must be seen to its end.
        self.cancel.run_until_cancelled(last).await.unwrap_or_else(|| Err("the move was called off".into()))
    }
}

/// Length of a control message on the stream: four bytes, big-endian.
const LENGTH_BYTES: usize = 4;

/// Sends one control message.
pub(super) async fn send_message<T: serde::Serialize>(stream: &mut SendStream, message: &T) -> Result<(), String> {
    let body = codec::encode(message, Limit::Control).map_err(|error| error.to_string())?;
    let length = u32::try_from(body.len()).map_err(|error| error.to_string())?;
    let mut bytes = Vec::with_capacity(LENGTH_BYTES + body.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&body);
    stream.write_all(&bytes).await.map_err(|error| error.to_string())
}

/// Receives one control message; `None` when the other side has finished in good order.
pub(super) async fn receive_message<T: serde::de::DeserializeOwned>(
    stream: &mut RecvStream,
) -> Result<Option<T>, String> {
    let mut length = [0; LENGTH_BYTES];
    if !pages::read_or_end(stream, &mut length).await? {
        return Ok(None);
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > Limit::Control.bytes() {
        return Err(format!("a control message of {length} bytes is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(|error| error.to_string())?;
    codec::decode(&body, Limit::Control).map(Some).map_err(|error| error.to_string())
}
