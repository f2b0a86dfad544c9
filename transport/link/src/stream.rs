//! The two halves of a session. They belong to whoever holds them. A sending half that is dropped without
//! [`SendStream::finish`] is reset, so that a crash never looks like an orderly end to the other side.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The reset code of a sending half that was dropped unfinished.
pub(crate) const DROPPED: u32 = 1;
/// The reset code of an exchange whose caller gave up.
pub(crate) const DEADLINE: u32 = 2;

/// A stream failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The other side reset its half, or told this side to stop.
    #[error("the other side abandoned the stream (code {0})")]
    Abandoned(u64),
    /// The connection is gone.
    #[error("the connection is gone: {0}")]
    Lost(String),
    /// The stream ended where more was expected.
    #[error("the stream ended early")]
    Ended,
    /// This side has already finished or reset the stream.
    #[error("the stream is closed on this side")]
    Closed,
}

impl From<quinn::WriteError> for StreamError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Abandoned(code.into_inner()),
            quinn::WriteError::ConnectionLost(why) => Self::Lost(why.to_string()),
            quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<quinn::ReadError> for StreamError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Abandoned(code.into_inner()),
            quinn::ReadError::ConnectionLost(why) => Self::Lost(why.to_string()),
            quinn::ReadError::ClosedStream
            | quinn::ReadError::IllegalOrderedRead
            | quinn::ReadError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<quinn::ReadExactError> for StreamError {
    fn from(error: quinn::ReadExactError) -> Self {
        match error {
            quinn::ReadExactError::FinishedEarly(_) => Self::Ended,
            quinn::ReadExactError::ReadError(error) => error.into(),
        }
    }
}

/// The sending half.
#[derive(Debug)]
pub struct SendStream {
    inner: quinn::SendStream,
    ended: bool,
}

impl SendStream {
    pub(crate) fn new(inner: quinn::SendStream) -> Self {
        Self { inner, ended: false }
    }

    /// Sends bytes without copying them; waits while the peer's window is full.
    ///
    /// # Errors
    /// When the peer abandoned the stream or the connection is gone.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        Ok(self.inner.write_chunk(bytes).await?)
    }

    /// Sends as much of these as the peer's window takes now, without copying them, and tells how many were sent whole; the one
    /// after those is what is left of it. Pending when that is nothing.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn poll_send(&mut self, context: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, StreamError>> {
        // All that it knows is in the stream and the chunks: it can be begun anew each time.
        let sending = std::pin::pin!(self.inner.write_chunks(chunks));
        sending.poll(context).map(|written| Ok(written?.chunks))
    }

    /// Sends a copy of these bytes; waits while the peer's window is full.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        Ok(self.inner.write_all(bytes).await?)
    }

    /// Says that nothing follows. What was sent before is still delivered.
    ///
    /// # Errors
    /// When the stream is already closed on this side.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.ended = true;
        self.inner.finish().map_err(|_| StreamError::Closed)
    }

    /// Waits until the peer's transport has everything up to the end, or has abandoned the stream. Without a time of its
    /// own: the connection's idle timeout ends it.
    ///
    /// # Errors
    /// When the peer abandoned the stream or the connection is gone.
    pub async fn delivered(&mut self) -> Result<(), StreamError> {
        match self.inner.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(StreamError::Abandoned(code.into_inner())),
            Err(quinn::StoppedError::ConnectionLost(why)) => Err(StreamError::Lost(why.to_string())),
            Err(quinn::StoppedError::ZeroRttRejected) => Err(StreamError::Closed),
        }
    }

    /// Abandons the stream: the peer reads an error with this code, and what it has not read yet may be lost.
    pub fn reset(&mut self, code: u32) {
        self.ended = true;
        // Refused only when it is already closed, which is what was wanted.
        let _ = self.inner.reset(code.into());
    }

    /// Streams of a higher priority go first on their connection. 0 is the ordinary one.
    pub fn set_priority(&mut self, priority: i32) {
        let _ = self.inner.set_priority(priority);
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.inner.reset(DROPPED.into());
        }
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.inner), context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.inner), context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ended = true;
        AsyncWrite::poll_shutdown(Pin::new(&mut self.inner), context)
    }
}

/// The receiving half. Dropping it tells the peer to stop sending.
#[derive(Debug)]
pub struct RecvStream {
    inner: quinn::RecvStream,
}

impl RecvStream {
    pub(crate) fn new(inner: quinn::RecvStream) -> Self {
        Self { inner }
    }

    /// Fills the buffer.
    ///
    /// # Errors
    /// [`StreamError::Ended`] when the stream ends first, also when it ends before the first byte.
    pub async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), StreamError> {
        Ok(self.inner.read_exact(buffer).await?)
    }

    /// The next bytes, at most so many, without copying them. `None` at the orderly end.
    ///
    /// # Errors
    /// When the peer abandoned the stream or the connection is gone.
    pub async fn read_chunk(&mut self, bytes_max: usize) -> Result<Option<Bytes>, StreamError> {
        Ok(self.inner.read_chunk(bytes_max, true).await?.map(|chunk| chunk.bytes))
    }

    /// As [`Self::read_chunk`], for who does not wait.
    ///
    /// # Errors
    /// As there.
    pub fn poll_read_chunk(
        &mut self,
        context: &mut Context<'_>,
        bytes_max: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        // All that it knows is in the stream: it can be begun anew each time.
        let reading = std::pin::pin!(self.inner.read_chunk(bytes_max, true));
        reading.poll(context).map(|chunk| Ok(chunk?.map(|chunk| chunk.bytes)))
    }

    /// Tells the peer to stop sending.
    pub fn stop(&mut self, code: u32) {
        let _ = self.inner.stop(code.into());
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.inner), context, buffer)
    }
}
