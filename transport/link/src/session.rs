//! Sessions: long-lived streams in both directions on the bulk connection. The receiver says yes or no first, so that a
//! refusal is an error with a reason; from then on the bytes are the session's own.

use std::time::Duration;

use bytes::Bytes;
use pollux_wire::{
    frame::{Opening, StreamKind},
    limits::{self, SESSION_HEADER_BYTES_MAX},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    dial::{self, To},
    endpoint::Endpoint,
    error::OpenError,
    exchange::{self, Answer, AnswerError},
    service::Class,
    stream::{RecvStream, SendStream, StreamError},
};

impl Endpoint {
    /// Opens a session of some kind. Streams of a higher `priority` go first on their connection: control sessions above
    /// page sessions. `deadline` bounds the opening, not the session.
    ///
    /// # Errors
    /// When the peer cannot be reached in time or refuses.
    pub async fn open(
        &self,
        to: &To,
        kind: u16,
        header: Bytes,
        priority: i32,
        deadline: Duration,
    ) -> Result<(SendStream, RecvStream), OpenError> {
        let node = to.node;
        if header.len() > SESSION_HEADER_BYTES_MAX {
            let (size_bytes, limit_bytes) = (header.len(), SESSION_HEADER_BYTES_MAX);
            return Err(OpenError::TooLarge { kind, size_bytes, limit_bytes });
        }
        let deadline = deadline.min(limits::DEADLINE_MAX);
        let until = Instant::now() + deadline;
        let mut lost = StreamError::Closed;
        for _ in 0..2 {
            let connection = dial::connection(self.shared(), to, Class::Bulk, until)
                .await
                .map_err(|source| OpenError::Dial { node, kind, source })?;
            let left = until.saturating_duration_since(Instant::now());
            let opening = Opening {
                kind: StreamKind::Session,
                method: kind,
                body_bytes: u32::try_from(header.len()).unwrap_or(u32::MAX),
                patience_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            };
            let opened = timeout_at(until, ask(&connection, opening, header.clone(), priority)).await;
            match opened.map_err(|_| OpenError::Deadline { node, kind, deadline })? {
                Ok((send, recv, Answer::Done(_))) => return Ok((send, recv)),
                Ok((_, _, Answer::Fault(fault) | Answer::Refused(fault))) => {
                    return Err(OpenError::Refused { node, kind, fault });
                }
                // A connection that was dead before anything was sent is replaced once.
                Err(AskError::NotOpened(error)) => lost = error,
                Err(AskError::Answer(AnswerError::Stream(source))) => {
                    return Err(OpenError::Lost { node, kind, source });
                }
                Err(AskError::Answer(AnswerError::Malformed | AnswerError::TooLarge { .. })) => {
                    return Err(OpenError::Malformed { node, kind });
                }
            }
        }
        Err(OpenError::Lost { node, kind, source: lost })
    }
}

enum AskError {
    NotOpened(StreamError),
    Answer(AnswerError),
}

async fn ask(
    connection: &quinn::Connection,
    opening: Opening,
    header: Bytes,
    priority: i32,
) -> Result<(SendStream, RecvStream, Answer), AskError> {
    let lost = |error: quinn::ConnectionError| AskError::NotOpened(StreamError::Lost(error.to_string()));
    let (send, recv) = connection.open_bi().await.map_err(lost)?;
    let (mut send, mut recv) = (SendStream::new(send), RecvStream::new(recv));
    send.set_priority(priority);
    match exchange::write_opening(&mut send, opening, header).await {
        // The receiver does not want the rest; its answer says why.
        Ok(()) | Err(StreamError::Abandoned(_)) => {}
        Err(error) => return Err(AskError::Answer(AnswerError::Stream(error))),
    }
    let answer = exchange::read_answer(&mut recv, 0).await.map_err(AskError::Answer)?;
    Ok((send, recv, answer))
}
