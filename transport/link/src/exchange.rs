//! Headers and bodies on one stream, for both sides. Bodies are read as they come: an announced length reserves nothing.

use bytes::{Bytes, BytesMut};
use pollux_wire::{
    frame::{Ending, OPENING_BYTES, OUTCOME_BYTES, Opening, Outcome},
    limits,
};

use crate::{
    service::Fault,
    stream::{RecvStream, SendStream, StreamError},
};

/// An answer could not be read.
#[derive(Debug)]
pub(crate) enum AnswerError {
    Stream(StreamError),
    Malformed,
    TooLarge { size_bytes: usize },
}

impl From<StreamError> for AnswerError {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

/// How an exchange came out, with its body.
#[derive(Debug)]
pub(crate) enum Answer {
    Done(Bytes),
    Fault(Fault),
    Refused(Fault),
}

pub(crate) async fn write_opening(send: &mut SendStream, opening: Opening, body: Bytes) -> Result<(), StreamError> {
    send.send(Bytes::copy_from_slice(&opening.to_bytes())).await?;
    if body.is_empty() { Ok(()) } else { send.send(body).await }
}

/// `None`: something came, and it is no opening.
pub(crate) async fn read_opening(recv: &mut RecvStream) -> Result<Option<Opening>, StreamError> {
    let mut bytes = [0; OPENING_BYTES];
    recv.read_exact(&mut bytes).await?;
    Ok(Opening::parse(bytes).ok())
}

pub(crate) async fn read_body(recv: &mut RecvStream, size_bytes: usize) -> Result<Bytes, StreamError> {
    let mut body = BytesMut::new();
    while body.len() < size_bytes {
        let chunk = recv.read_chunk(size_bytes - body.len()).await?.ok_or(StreamError::Ended)?;
        if chunk.len() == size_bytes {
            return Ok(chunk);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

pub(crate) async fn write_answer(send: &mut SendStream, answer: Answer) -> Result<(), StreamError> {
    let (ending, body) = match answer {
        Answer::Done(body) => (Ending::Done, body),
        Answer::Fault(fault) => (Ending::Fault(fault.code), cut(fault.text)),
        Answer::Refused(fault) => (Ending::Refused(fault.code), cut(fault.text)),
    };
    // The limits that callers check first are far below 4 GiB.
    let body_bytes = u32::try_from(body.len()).map_err(|_| StreamError::Closed)?;
    send.send(Bytes::copy_from_slice(&Outcome { ending, body_bytes }.to_bytes())).await?;
    if body.is_empty() { Ok(()) } else { send.send(body).await }
}

pub(crate) async fn read_answer(recv: &mut RecvStream, limit_bytes: usize) -> Result<Answer, AnswerError> {
    let mut bytes = [0; OUTCOME_BYTES];
    recv.read_exact(&mut bytes).await?;
    let outcome = Outcome::parse(bytes).map_err(|_| AnswerError::Malformed)?;
    let size_bytes = usize::try_from(outcome.body_bytes).map_err(|_| AnswerError::Malformed)?;
    let limit_bytes = match outcome.ending {
        Ending::Done => limit_bytes,
        Ending::Fault(_) | Ending::Refused(_) => limits::FAULT_TEXT_BYTES_MAX,
    };
    if size_bytes > limit_bytes {
        return Err(AnswerError::TooLarge { size_bytes });
    }
    let body = read_body(recv, size_bytes).await?;
    let fault = |code| Fault::new(code, String::from_utf8_lossy(&body).into_owned());
    Ok(match outcome.ending {
        Ending::Done => Answer::Done(body),
        Ending::Fault(code) => Answer::Fault(fault(code)),
        Ending::Refused(code) => Answer::Refused(fault(code)),
    })
}

fn cut(mut text: String) -> Bytes {
    let mut end = text.len().min(limits::FAULT_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let text = format!("{}é", "x".repeat(limits::FAULT_TEXT_BYTES_MAX - 1));
        let bytes = cut(text);
        assert_eq!(bytes.len(), limits::FAULT_TEXT_BYTES_MAX - 1);
        assert!(std::str::from_utf8(&bytes).is_ok());
    }
}
