//! The end of a session where the guest runs.

use std::{
    collections::HashMap,
    task::{Context, Poll},
};

use bytes::Bytes;
use pollux_disk::Buffers;
use pollux_link::{Endpoint, OpenError, RecvStream, SendStream, StreamError, To};
use pollux_mirror::{Part, Tag};
use pollux_wire::{
    codec::{self, DecodeError},
    id::{NodeId, ReplicaId},
    limits::Limit,
    method::REPLICA,
};
use tokio::time::{Instant, timeout_at};

use super::{
    Answer, INBOX_BYTES, OPEN_MAX, Open, PRIORITY,
    frames::{Decoder, Encoder, End, EndHeader, Outgoing, length},
    outbox,
};
use crate::{
    claim::{Claim, Opened},
    digest::DIGEST_BYTES,
    refusal::{Refusal, in_words},
    side::{Ask, Broken, Done, Side},
};

/// There is no session with a replica of another node.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The node says no.
    #[error("{node}: {refusal}")]
    Refused {
        /// Which node.
        node: NodeId,
        /// Why.
        refusal: Refusal,
    },
    /// It cannot be reached, or knows no replicas.
    #[error("no session with {replica} on {node}")]
    Open {
        /// Which replica.
        replica: ReplicaId,
        /// On which node.
        node: NodeId,
        /// What went wrong.
        #[source]
        source: OpenError,
    },
    /// It did not answer to its end.
    #[error("{node} did not say whether there is a session with {replica}")]
    Lost {
        /// Which replica.
        replica: ReplicaId,
        /// On which node.
        node: NodeId,
        /// What went wrong.
        #[source]
        source: StreamError,
    },
    /// It did not answer in time.
    #[error("{node} did not say within {} s whether there is a session with {replica}", OPEN_MAX.as_secs())]
    Silent {
        /// Which replica.
        replica: ReplicaId,
        /// On which node.
        node: NodeId,
    },
    /// What it answered means nothing.
    #[error("{node} answered something that means nothing here to the wish for {replica}")]
    Malformed {
        /// Which replica.
        replica: ReplicaId,
        /// On which node.
        node: NodeId,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
}

/// A replica of another node. It does what it does when it is polled, by the task that polls it.
pub struct Remote {
    node: NodeId,
    replica: ReplicaId,
    send: SendStream,
    recv: RecvStream,
    decoder: Decoder<EndHeader>,
    encoder: Encoder,
    out: Outgoing,
    /// What has not ended, and how much is to be read for it.
    open: HashMap<Tag, u64>,
    /// What could not be asked.
    failed: Vec<Done>,
    /// It has ended, for this reason, which is not told yet.
    broken: Option<String>,
    over: bool,
}

impl Remote {
    /// Begins a session with the claim's replica, on the node at `to`. Takes [`OPEN_MAX`] at most.
    ///
    /// # Errors
    /// See [`RemoteError`].
    pub async fn open(endpoint: &Endpoint, to: &To, claim: &Claim) -> Result<Opened<Self>, RemoteError> {
        let (node, replica) = (to.node, claim.replica);
        let Claim { volume, generation, session, size, .. } = *claim;
        let open = Open { volume, replica, generation, incarnation: claim.owner.incarnation, session, size };
        let header = codec::encode(&open, Limit::Small).expect("numbers fit");
        let until = Instant::now() + OPEN_MAX;
        let streams = endpoint.open(to, REPLICA, Bytes::from(header), PRIORITY, OPEN_MAX).await;
        let (send, mut recv) = streams.map_err(|source| RemoteError::Open { replica, node, source })?;
        let answer = timeout_at(until, hear(&mut recv)).await.map_err(|_| RemoteError::Silent { replica, node })?;
        let answer = answer.map_err(|source| RemoteError::Lost { replica, node, source })?;
        let answer = codec::decode::<Answer>(&answer, Limit::State);
        match answer.map_err(|source| RemoteError::Malformed { replica, node, source })? {
            Answer::Refused(refusal) => Err(RemoteError::Refused { node, refusal }),
            Answer::Opened { report, boot } => {
                let side = Self {
                    node,
                    replica,
                    send,
                    recv,
                    decoder: Decoder::new(Buffers::default()),
                    encoder: Encoder::default(),
                    out: Outgoing::default(),
                    open: HashMap::new(),
                    failed: Vec::new(),
                    broken: None,
                    over: false,
                };
                Ok(Opened { side, report, boot })
            }
        }
    }

    /// Reads what has come.
    fn take(&mut self, cx: &mut Context<'_>, done: &mut Vec<Done>) -> Result<(), String> {
        loop {
            match self.decoder.next().map_err(|error| error.to_string())? {
                Some(End::Of(end)) => done.push(self.ended(end)?),
                Some(End::Over(why)) => return Err(why),
                None => match self.recv.poll_read_chunk(cx, INBOX_BYTES) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Ok(Some(chunk))) => self.decoder.feed(chunk),
                    Poll::Ready(Ok(None)) => return Err("the session was ended".into()),
                    Poll::Ready(Err(error)) => return Err(in_words(&error)),
                },
            }
        }
    }

    fn ended(&mut self, end: Done) -> Result<Done, String> {
        let Some(bytes) = self.open.remove(&end.tag) else { return Err("it answered what was not asked".into()) };
        match &end.outcome {
            Ok(pieces) if length(pieces) != bytes => Err(format!("it read {} bytes of {bytes}", length(pieces))),
            Ok(_) | Err(_) => Ok(end),
        }
    }
}

impl Side for Remote {
    fn is_far(&self) -> bool {
        true
    }

    fn submit(&mut self, ask: Ask) {
        let (tag, range) = (ask.tag, ask.range.clone());
        let bytes = match ask.part {
            Part::Read => range.end.saturating_sub(range.start),
            Part::Digest => DIGEST_BYTES as u64,
            Part::Change { .. } | Part::Copy { .. } | Part::Flush => 0,
            Part::Miss(_) | Part::Regained(_) | Part::Returned(_) => 0,
            Part::Welcome(_) | Part::Settled(_) | Part::Lacks(..) => 0,
        };
        match self.encoder.ask(ask, &mut self.out) {
            Ok(()) => drop(self.open.insert(tag, bytes)),
            Err(failure) => self.failed.push(Done { tag, outcome: Err(failure) }),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Done>) -> Poll<Result<(), Broken>> {
        if self.over {
            self.out.clear();
            return Poll::Pending;
        }
        let before = done.len();
        done.append(&mut self.failed);
        if self.broken.is_none() {
            let sent = outbox::send(&mut self.out, cx, &mut self.send).map_err(|error| in_words(&error));
            // What it has said still counts, also when it takes nothing any more.
            self.broken = self.take(cx, done).and(sent.map(drop)).err();
        }
        if done.len() > before {
            if self.broken.is_some() {
                cx.waker().wake_by_ref();
            }
            return Poll::Ready(Ok(()));
        }
        let Some(why) = self.broken.take() else { return Poll::Pending };
        self.over = true;
        self.out.clear();
        Poll::Ready(Err(Broken { why: format!("{} on {}: {why}", self.replica, self.node) }))
    }
}

async fn hear(recv: &mut RecvStream) -> Result<Vec<u8>, StreamError> {
    let mut bytes = [0; 4];
    recv.read_exact(&mut bytes).await?;
    let bytes = u32::from_le_bytes(bytes) as usize;
    // It is read as it comes: what was announced reserves nothing.
    let mut body = Vec::new();
    while body.len() < bytes.min(Limit::State.bytes()) {
        let chunk = recv.read_chunk(bytes - body.len()).await?.ok_or(StreamError::Ended)?;
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("node", &self.node).field("replica", &self.replica).finish_non_exhaustive()
    }
}
