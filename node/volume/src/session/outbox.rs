//! What is to be sent, as the stream takes it.

use std::task::{Context, Poll};

use pollux_link::{SendStream, StreamError};

use super::frames::Outgoing;

/// Sends what the stream takes now. Whether that was anything.
pub(super) fn send(out: &mut Outgoing, cx: &mut Context<'_>, stream: &mut SendStream) -> Result<bool, StreamError> {
    let (mut moved, mut pending) = (false, false);
    while out.bytes() > 0 && !pending {
        out.send(|chunks| match stream.poll_send(cx, chunks) {
            Poll::Pending => {
                pending = true;
                Ok(0)
            }
            Poll::Ready(sent) => {
                moved = true;
                sent
            }
        })?;
    }
    Ok(moved)
}
