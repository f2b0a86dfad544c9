//! Calls: one request, one answer, one stream each. What matters is to know, when there is no answer, whether the call may
//! have been executed: a receiver executes only a request that it has whole, so everything up to the last byte handed to
//! the transport is *surely not*, everything after it is *unknown* (DESIGN, rule 2).

use std::time::Duration;

use bytes::Bytes;
use pollux_wire::{
    frame::{Opening, StreamKind},
    limits, method as methods,
};
use tokio::time::{Instant, timeout_at};

use crate::{
    dial::{self, To},
    endpoint::Endpoint,
    error::{CallError, NotSent, Unknown},
    exchange::{self, Answer, AnswerError},
    service::Class,
    stream::{DEADLINE, RecvStream, SendStream, StreamError},
};

impl Endpoint {
    /// Asks a peer and waits for its answer, for at most `deadline` (and never longer than
    /// [`limits::DEADLINE_MAX`]), the opening of a connection included. The peer stops serving the call when the time is
    /// over. Dropping the future abandons the call, whose outcome is then unknown.
    ///
    /// # Errors
    /// The error tells whether the call may have been executed: [`CallError::is_unknown`].
    pub async fn call(
        &self,
        to: &To,
        class: Class,
        method: u16,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let deadline = deadline.min(limits::DEADLINE_MAX);
        let until = Instant::now() + deadline;
        let limit_bytes = methods::limit(method).bytes();
        if body.len() > limit_bytes {
            return Err(CallError::TooLarge { method, size_bytes: body.len(), limit_bytes });
        }
        let (mut send, recv) = self
            .send(to, class, method, body, deadline, until)
            .await
            .map_err(|reason| CallError::NotSent { node: to.node, method, reason })?;
        let answer = answer(&mut send, recv, deadline, until, limit_bytes).await;
        let node = to.node;
        match answer.map_err(|reason| CallError::Unknown { node, method, reason })? {
            Answer::Done(body) => Ok(body),
            Answer::Fault(fault) => Err(CallError::Fault { node, method, fault }),
            Answer::Refused(fault) => Err(CallError::Refused { node, method, fault }),
        }
    }

    /// Everything up to the last byte of the request. A connection that turns out to be dead is replaced once; nothing was
    /// executed, so sending again is safe.
    async fn send(
        &self,
        to: &To,
        class: Class,
        method: u16,
        body: Bytes,
        deadline: Duration,
        until: Instant,
    ) -> Result<(SendStream, RecvStream), NotSent> {
        let mut lost = None;
        for _ in 0..2 {
            let connection = dial::connection(self.shared(), to, class, until).await?;
            let left = until.saturating_duration_since(Instant::now());
            let opening = Opening {
                kind: StreamKind::Call,
                method,
                body_bytes: u32::try_from(body.len()).unwrap_or(u32::MAX),
                patience_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            };
            match timeout_at(until, request(&connection, opening, body.clone())).await {
                Ok(Ok(streams)) => return Ok(streams),
                Ok(Err(error)) => lost = Some(error),
                Err(_) => return Err(NotSent::Deadline(deadline)),
            }
        }
        Err(NotSent::Lost(lost.unwrap_or(StreamError::Closed)))
    }
}

async fn request(
    connection: &quinn::Connection,
    opening: Opening,
    body: Bytes,
) -> Result<(SendStream, RecvStream), StreamError> {
    let (send, recv) = connection.open_bi().await.map_err(|error| StreamError::Lost(error.to_string()))?;
    let (mut send, recv) = (SendStream::new(send), RecvStream::new(recv));
    match exchange::write_opening(&mut send, opening, body).await {
        // The receiver does not want the rest; its answer says why.
        Ok(()) | Err(StreamError::Abandoned(_)) => {}
        Err(error) => return Err(error),
    }
    // Refused only when the receiver has stopped the stream, as above.
    let _ = send.finish();
    Ok((send, recv))
}

async fn answer(
    send: &mut SendStream,
    mut recv: RecvStream,
    deadline: Duration,
    until: Instant,
    limit_bytes: usize,
) -> Result<Answer, Unknown> {
    match timeout_at(until, exchange::read_answer(&mut recv, limit_bytes)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(AnswerError::Stream(error))) => Err(Unknown::Lost(error)),
        Ok(Err(AnswerError::Malformed)) => Err(Unknown::Malformed),
        Ok(Err(AnswerError::TooLarge { size_bytes })) => Err(Unknown::TooLarge { size_bytes, limit_bytes }),
        Err(_) => {
            send.reset(DEADLINE);
            recv.stop(DEADLINE);
            Err(Unknown::Deadline(deadline))
        }
    }
}
