//! A guest's console for a user, from any node.
//!
//! ```text
//!   client <-- API socket --> daemon that is asked <-- link session CONSOLE --> daemon of the owner: [`serve`]
//!                                    `--------- a pipe, if it is the owner itself -------'      |  bytes
//!                                                                                  guest's serial port
//! ```
//!
//! The owner's daemon serves a console; any other passes bytes on. Nothing here decides who may act: what the guest wrote was
//! written while it had the right to run, and what is typed reaches it only through [`Guest::type_in`], which takes it while the
//! guest runs under the committed generation and not otherwise (DESIGN, rule 1). When the VM leaves this node, the client is
//! told everything that the guest wrote here, and then to attach again.
//!
//! Each console is one task: of the registry of VMs on the owner, ended with it; of the endpoint where it came over the link.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::SinkExt;
use pollux_api::{
    ApiError,
    console::{Heard, News, OUTPUT_BYTES_MAX, Start},
};
use pollux_link::{OpenError, RecvStream, SendStream, To};
use pollux_state::{ClusterState, id::VmId, vm::Vm};
use pollux_wire::{codec, limits::Limit, method};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    time,
};
use tokio_util::codec::FramedWrite;

use super::run::Daemon;
use crate::{
    api::console::{self, Duplex},
    vm::{CONSOLES_MAX, ConsolePort, host::Typed},
};

/// Bytes between the task that serves a console and the one that speaks to the client.
const PIPE_BYTES: usize = 64 * 1024;
/// Opening a session to the owner may take this long, in milliseconds.
const OPEN_MS_MAX: u64 = 5_000;
/// Bytes typed that wait for the guest; the client waits then.
const HELD_BYTES_MAX: usize = 4096;
/// How often a guest that has not taken what was typed is tried again, in milliseconds. Nothing tells when QEMU reads: a
/// serial line is that slow.
const AGAIN_MS: u64 = 2;
/// A client that takes nothing for so long, in milliseconds, is given up. It attaches again where it was.
const SEND_MS_MAX: u64 = 60_000;
/// Consoles are small and urgent: they go before pages, and after what moves say to each other.
const PRIORITY: i32 = 5;

/// What a daemon asks of the owner's, in the session's header.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Call {
    vm: VmId,
    start: Start,
}

/// Attaches to the console of a VM, wherever it is.
pub(super) async fn open(
    daemon: &Arc<Daemon>,
    state: &ClusterState,
    vm: &Vm,
    start: Start,
) -> Result<Box<dyn Duplex>, ApiError> {
    let call = Call { vm: vm.id, start };
    let node = place(vm);
    if node == daemon.identity.node() {
        let vms = daemon.vms().ok_or_else(|| ApiError::unavailable("the daemon is starting").todo("try again"))?;
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let (input, output) = tokio::io::split(theirs);
        let serving = serve(daemon.clone(), call, input, output);
        vms.spawn(serving);
        return Ok(Box::new(ours));
    }
    let name = state.nodes.get(&node).map_or_else(|| node.to_string(), |node| node.name.clone());
    let unreachable = |why: String| {
        ApiError::unavailable(format!("the console of VM {} is on {name}, which does not answer: {why}", vm.spec.name))
            .todo("`pollux node list` tells which nodes are alive")
    };
    let address = state.nodes.get(&node).ok_or_else(|| unreachable("it is not in the cluster".into()))?.address;
    let header = codec::encode(&call, Limit::Control).map_err(|error| ApiError::internal(error.to_string()))?;
    let to = To { node, address };
    let deadline = Duration::from_millis(OPEN_MS_MAX);
    let opened = daemon.endpoint.open(&to, method::CONSOLE, Bytes::from(header), PRIORITY, deadline).await;
    let (send, recv) = opened.map_err(|error: OpenError| unreachable(error.to_string()))?;
    Ok(Box::new(tokio::io::join(recv, send)))
}

/// Serves a console that another daemon asks for.
pub(super) async fn answer(daemon: Arc<Daemon>, header: &[u8], recv: RecvStream, send: SendStream) {
    match codec::decode::<Call>(header, Limit::Control) {
        Ok(call) => serve(daemon, call, recv, send).await,
        Err(error) => tracing::warn!(%error, "a console's header is malformed"),
    }
}

/// The node whose daemon has the console: the owner, or the home of a VM that does not run.
fn place(vm: &Vm) -> pollux_state::id::NodeId {
    vm.phase.owner().map_or(vm.home, |owner| owner.node)
}

async fn serve(
    daemon: Arc<Daemon>,
    call: Call,
    input: impl AsyncRead + Unpin + Send,
    output: impl AsyncWrite + Unpin + Send,
) {
    let mut output = Output { frames: FramedWrite::new(output, console::codec()) };
    let ended = match daemon.vms().and_then(|vms| vms.console(call.vm)) {
        Some(port) => Serving::new(&daemon, call, port).serve(input, &mut output).await,
        None => Err(Ended::again("the VM is not on this node")),
    };
    let Err(Ended { over }) = ended;
    // A client that is gone need not be told.
    if let Some(over) = over
        && output.say(over).await.is_ok()
    {
        let _ = SinkExt::<Bytes>::close(&mut output.frames).await;
    }
}

/// Why a console ends here, and what is still said of it.
struct Ended {
    over: Option<News>,
}

impl Ended {
    const GONE: Self = Self { over: None };

    fn again(why: impl Into<String>) -> Self {
        Self { over: Some(News::Over { again: true, why: why.into() }) }
    }

    fn for_good(why: impl Into<String>) -> Self {
        Self { over: Some(News::Over { again: false, why: why.into() }) }
    }
}

enum Never {}

struct Output<W> {
    frames: FramedWrite<W, tokio_util::codec::LengthDelimitedCodec>,
}

impl<W: AsyncWrite + Unpin> Output<W> {
    async fn say(&mut self, news: News) -> Result<(), Ended> {
        self.send(&Heard::News(news)).await
    }

    async fn send(&mut self, heard: &Heard) -> Result<(), Ended> {
        let frame = heard.encode().map_err(|_| Ended::GONE)?;
        match time::timeout(Duration::from_millis(SEND_MS_MAX), self.frames.send(frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Ended::GONE),
        }
    }
}

struct Serving<'a> {
    daemon: &'a Daemon,
    vm: VmId,
    port: ConsolePort,
    /// Place of the next byte to be told.
    next: u64,
    /// What was typed and has not reached the guest.
    held: Vec<u8>,
    /// The guest listens, and has not taken all of it.
    full: bool,
    /// Why the guest does not listen, as the client was told last.
    deaf: Option<&'static str>,
    others: u64,
}

impl<'a> Serving<'a> {
    fn new(daemon: &'a Daemon, call: Call, port: ConsolePort) -> Self {
        let next = match call.start {
            Start::At(place) => place,
            Start::Last(bytes) => port.log().end().saturating_sub(bytes),
        };
        Self { daemon, vm: call.vm, port, next, held: Vec::new(), full: false, deaf: None, others: 0 }
    }

    async fn serve(
        mut self,
        mut input: impl AsyncRead + Unpin,
        output: &mut Output<impl AsyncWrite + Unpin>,
    ) -> Result<Never, Ended> {
        let Some(_attached) = self.port.attach() else {
            return Err(Ended::for_good(format!("{CONSOLES_MAX} are attached to this console already")));
        };
        let mut applied = self.daemon.consensus.watch();
        let mut attached = self.port.attached();
        let mut changes = self.port.changes();
        self.others = attached.borrow_and_update().saturating_sub(1);
        let node = self.daemon.identity.name().to_owned();
        output.say(News::Attached { node, others: self.others }).await?;
        let mut typed = vec![0; HELD_BYTES_MAX];
        loop {
            // Marked before the look, so that no change falls between looking and waiting.
            changes.mark();
            let state = applied.borrow_and_update().state.clone();
            self.tell(output).await?;
            self.still_here(&state)?;
            self.pass_on(output).await?;
            let others = attached.borrow_and_update().saturating_sub(1);
            if others != self.others {
                self.others = others;
                output.say(News::Others { others }).await?;
            }
            let room = HELD_BYTES_MAX - self.held.len();
            tokio::select! {
                biased;
                Ok(()) = applied.changed() => {}
                lives = changes.changed() => if !lives {
                    return Err(Ended::again("the VM has left this node, or its daemon ends"));
                },
                Ok(()) = attached.changed() => {}
                read = input.read(&mut typed[..room]), if room > 0 => match read {
                    Ok(count @ 1..) => self.held.extend_from_slice(&typed[..count]),
                    Ok(0) | Err(_) => return Err(Ended::GONE),
                },
                () = time::sleep(Duration::from_millis(AGAIN_MS)), if self.full => {}
            }
        }
    }

    /// Tells what the guest wrote since.
    async fn tell(&mut self, output: &mut Output<impl AsyncWrite + Unpin>) -> Result<(), Ended> {
        let log = self.port.log().since(self.next);
        let mut at = log.start;
        for bytes in log.bytes.chunks(OUTPUT_BYTES_MAX) {
            output.send(&Heard::Output { at, bytes: Bytes::copy_from_slice(bytes) }).await?;
            at += bytes.len() as u64;
        }
        self.next = at;
        Ok(())
    }

    fn still_here(&self, state: &ClusterState) -> Result<(), Ended> {
        let vm = state.vms.get(&self.vm).ok_or_else(|| Ended::for_good("the VM is deleted"))?;
        let node = place(vm);
        if node == self.daemon.identity.node() {
            return Ok(());
        }
        let name = state.nodes.get(&node).map_or_else(|| node.to_string(), |node| node.name.clone());
        Err(Ended::again(format!("the VM is on {name} now")))
    }

    /// Gives the guest what was typed, as much as it takes.
    async fn pass_on(&mut self, output: &mut Output<impl AsyncWrite + Unpin>) -> Result<(), Ended> {
        if self.held.is_empty() {
            return Ok(());
        }
        let Some(guest) = self.port.guest() else {
            self.full = false;
            // Keys pressed at a machine that is off are not waiting for it when it boots.
            let bytes = self.held.len() as u64;
            self.held.clear();
            output.say(News::Taken { bytes }).await?;
            return self.deaf("the VM does not run: what is typed is lost", output).await;
        };
        let typed = guest.type_in(&self.held);
        self.full = typed == Typed::Full;
        match typed {
            Typed::Taken(count) => {
                self.deaf = None;
                self.held.drain(..count);
                self.full = !self.held.is_empty();
                output.say(News::Taken { bytes: count as u64 }).await
            }
            Typed::Full => Ok(()),
            Typed::Shut => self.deaf("the guest stands still: what is typed waits", output).await,
        }
    }

    async fn deaf(&mut self, why: &'static str, output: &mut Output<impl AsyncWrite + Unpin>) -> Result<(), Ended> {
        if self.deaf.replace(why) == Some(why) {
            return Ok(());
        }
        output.say(News::Deaf { why: why.to_owned() }).await
    }
}
