//! The end of a session where the replica is.

use std::{
    collections::HashMap,
    future::poll_fn,
    task::{Context, Poll},
};

use bytes::Bytes;
use pollux_disk::Buffers;
use pollux_link::{Peer, RecvStream, SendStream, StreamError};
use pollux_mirror::{Part, Tag};
use pollux_wire::{codec, id::Owner, limits::Limit};
use tokio::time::timeout;

use super::{
    Answer, BYTES_IN_FLIGHT_MAX, INBOX_BYTES, OPEN_MAX, Open, REQUESTS_IN_FLIGHT_MAX,
    frames::{AskHeader, Decoder, Encoder, Malformed, Outgoing, length},
    outbox,
};
use crate::{
    claim::{Claim, Door, Opened},
    keeper::Keeper,
    keepers::Keepers,
    refusal::Refusal,
    side::{Ask, Broken, Done, Side},
};

/// How a session has ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The other side left.
    #[error("the other side left")]
    Left,
    /// It was not begun.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// Its beginning makes no sense.
    #[error("the session's beginning cannot be read")]
    Greeting(#[source] codec::DecodeError),
    /// What came later makes none.
    #[error("{0}")]
    Malformed(String),
    /// The way is broken.
    #[error("the way is broken")]
    Stream(#[from] StreamError),
    /// The replica was taken from it.
    #[error("{0}")]
    Taken(Broken),
}

/// Serves a session that `peer` has opened with this `header`, until it ends. Runs on the task of the stream.
pub async fn serve(
    keepers: &Keepers,
    door: &dyn Door,
    peer: &Peer,
    header: &Bytes,
    mut send: SendStream,
    recv: RecvStream,
) -> SessionEnd {
    let claim = match codec::decode::<Open>(header, Limit::Small) {
        Ok(Open { volume, replica, generation, incarnation, session, size }) => {
            Claim { volume, replica, generation, owner: Owner { node: peer.node, incarnation }, session, size }
        }
        Err(error) => return SessionEnd::Greeting(error),
    };
    let opened = timeout(OPEN_MAX, open(keepers, door, peer, &claim)).await.unwrap_or_else(|_| {
        let why = format!("what is under way there is not over after {} s", OPEN_MAX.as_secs());
        Err(Refusal::Unavailable { replica: claim.replica, why })
    });
    match opened {
        Ok(Opened { side, report, boot }) => {
            if let Err(error) = say(&mut send, &Answer::Opened { report, boot }).await {
                return SessionEnd::Stream(error);
            }
            let mut session = Session::new(side, send, recv);
            let end = poll_fn(|cx| session.turn(cx)).await;
            session.say_goodbye(&end).await;
            end
        }
        Err(refusal) => {
            tracing::info!(peer = %peer.node, replica = %claim.replica, %refusal, "no session with a replica");
            let saying = async {
                say(&mut send, &Answer::Refused(refusal.clone())).await?;
                send.finish()?;
                // What was said would be lost with the stream.
                send.delivered().await
            };
            // Who does not listen finds out when the stream is gone.
            let _ = timeout(OPEN_MAX, saying).await;
            SessionEnd::Refused(refusal)
        }
    }
}

async fn open(keepers: &Keepers, door: &dyn Door, peer: &Peer, claim: &Claim) -> Result<Opened<Keeper>, Refusal> {
    let place = door.admit(peer.node, claim).await.map_err(|why| Refusal::NotAdmitted { why })?;
    keepers.open(claim, &place).await
}

async fn say(send: &mut SendStream, answer: &Answer) -> Result<(), StreamError> {
    let body = codec::encode(answer, Limit::State).map_err(|_| StreamError::Closed)?;
    let bytes = u32::try_from(body.len()).map_err(|_| StreamError::Closed)?;
    send.send(Bytes::copy_from_slice(&bytes.to_le_bytes())).await?;
    send.send(Bytes::from(body)).await
}

struct Session {
    keeper: Keeper,
    send: SendStream,
    recv: RecvStream,
    decoder: Decoder<AskHeader>,
    encoder: Encoder,
    out: Outgoing,
    /// Bytes of data of each that has not ended.
    in_flight: HashMap<Tag, usize>,
    bytes: usize,
    done: Vec<Done>,
}

impl Session {
    fn new(keeper: Keeper, send: SendStream, recv: RecvStream) -> Self {
        Self {
            keeper,
            send,
            recv,
            decoder: Decoder::new(Buffers::default()),
            encoder: Encoder::default(),
            out: Outgoing::default(),
            in_flight: HashMap::new(),
            bytes: 0,
            done: Vec::new(),
        }
    }

    /// Everything that can be done now.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<SessionEnd> {
        loop {
            let moved = self
                .take(cx)
                .and_then(|taken| Ok(taken | self.complete(cx)? | outbox::send(&mut self.out, cx, &mut self.send)?));
            match moved {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(end) => return Poll::Ready(end),
            }
        }
    }

    fn has_room(&self) -> bool {
        self.in_flight.len() < REQUESTS_IN_FLIGHT_MAX && self.bytes + self.out.bytes() < BYTES_IN_FLIGHT_MAX
    }

    /// Reads what has come, and hands over what is whole. Whether there was anything.
    fn take(&mut self, cx: &mut Context<'_>) -> Result<bool, SessionEnd> {
        let mut moved = false;
        while self.has_room() {
            if let Some(ask) = self.decoder.next().map_err(malformed)? {
                self.submit(ask)?;
                moved = true;
                continue;
            }
            match self.recv.poll_read_chunk(cx, INBOX_BYTES) {
                Poll::Pending => break,
                Poll::Ready(Ok(Some(chunk))) => self.decoder.feed(chunk),
                Poll::Ready(Ok(None)) => return Err(SessionEnd::Left),
                Poll::Ready(Err(error)) => return Err(error.into()),
            }
        }
        Ok(moved)
    }

    fn submit(&mut self, ask: Ask) -> Result<(), SessionEnd> {
        let read = if matches!(ask.part, Part::Read | Part::Digest) { ask.range.end - ask.range.start } else { 0 };
        let bytes = usize::try_from(length(&ask.data) + read).unwrap_or(BYTES_IN_FLIGHT_MAX);
        if self.in_flight.insert(ask.tag, bytes).is_some() {
            return Err(SessionEnd::Malformed(format!("ask {} came twice", ask.tag.0)));
        }
        self.bytes += bytes;
        self.keeper.submit(ask);
        Ok(())
    }

    /// Goes on with what was handed over, and says what has ended. Whether there was anything.
    fn complete(&mut self, cx: &mut Context<'_>) -> Result<bool, SessionEnd> {
        match self.keeper.poll(cx, &mut self.done) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(broken)) => return Err(SessionEnd::Taken(broken)),
        }
        for done in self.done.drain(..) {
            self.bytes -= self.in_flight.remove(&done.tag).unwrap_or(0);
            self.encoder.end(done, &mut self.out);
        }
        Ok(true)
    }

    /// Says why it is over, if the other side does not know.
    async fn say_goodbye(&mut self, end: &SessionEnd) {
        let why = match end {
            SessionEnd::Taken(Broken { why }) | SessionEnd::Malformed(why) => why,
            SessionEnd::Left | SessionEnd::Refused(_) | SessionEnd::Greeting(_) | SessionEnd::Stream(_) => return,
        };
        self.encoder.over(why, &mut self.out);
        let goodbye = async {
            let said = poll_fn(|cx| match outbox::send(&mut self.out, cx, &mut self.send) {
                Ok(_) if self.out.bytes() == 0 => Poll::Ready(Ok(())),
                Ok(_) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            });
            said.await?;
            self.send.finish()?;
            self.send.delivered().await
        };
        // Who does not listen finds out when the stream is gone.
        let _ = timeout(OPEN_MAX, goodbye).await;
    }
}

fn malformed(error: Malformed) -> SessionEnd {
    SessionEnd::Malformed(error.to_string())
}
