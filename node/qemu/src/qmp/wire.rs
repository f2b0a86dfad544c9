//! Lines on the socket: their limit, their kinds, and descriptors sent beside them.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use bytes::{Buf, BytesMut};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Deserialize;
use serde_json::Value;
use tokio::{io::Interest, net::UnixStream};

use super::Event;

/// The longest line that is taken from QEMU, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Bytes read at once.
const READ_BYTES: usize = 16 * 1024;

/// One line from QEMU.
#[derive(Debug)]
pub(super) enum Message {
    Greeting,
    Event(Event),
    Reply {
        id: u64,
        outcome: super::Outcome,
    },
    /// Valid JSON of a kind that is not known: a newer QEMU's.
    Other(String),
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    id: Option<u64>,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

/// Cuts the stream into messages.
pub(super) struct Reader {
    socket: Arc<UnixStream>,
    buffer: BytesMut,
    /// How much of the buffer was searched for the end of a line.
    searched: usize,
}

impl Reader {
    pub(super) fn new(socket: Arc<UnixStream>) -> Self {
        Self { socket, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next message, or why there is none any more.
    pub(super) async fn next(&mut self) -> Result<Message, String> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + at);
                self.buffer.advance(1);
                self.searched = 0;
                return parse(&line);
            }
            self.searched = self.buffer.len();
            if self.searched > LINE_BYTES_MAX {
                return Err(format!("QEMU sent a line longer than {LINE_BYTES_MAX} bytes"));
            }
            self.buffer.reserve(READ_BYTES);
            self.socket.readable().await.map_err(|error| error.to_string())?;
            match self.socket.try_read_buf(&mut self.buffer) {
                Ok(0) => return Err("QEMU closed it".to_owned()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

pub(super) fn parse(line: &[u8]) -> Result<Message, String> {
    let shown = || String::from_utf8_lossy(&line[..line.len().min(120)]).into_owned();
    let parsed: Line =
        serde_json::from_slice(line).map_err(|error| format!("QEMU sent `{}`, which is not QMP: {error}", shown()))?;
    Ok(match parsed {
        Line { greeting: Some(_), .. } => Message::Greeting,
        Line { event: Some(name), data, .. } => Message::Event(Event { name, data }),
        Line { id: Some(id), error: Some(Refusal { class, desc }), .. } => {
            Message::Reply { id, outcome: Err((class, desc)) }
        }
        Line { id: Some(id), result: Some(value), .. } => Message::Reply { id, outcome: Ok(value) },
        Line { .. } => Message::Other(shown()),
    })
}

/// Sends one line, the descriptor with its first byte.
pub(super) async fn send(socket: &UnixStream, mut line: &[u8], mut descriptor: Option<OwnedFd>) -> io::Result<()> {
    while !line.is_empty() {
        let sent = socket
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let sending = descriptor.as_ref().map(|descriptor| [descriptor.as_fd()]);
                if let Some(sending) = &sending {
                    assert!(
                        control.push(SendAncillaryMessage::ScmRights(sending)),
                        "there is space for one descriptor"
                    );
                }
                Ok(rustix::net::sendmsg(socket, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?)
            })
            .await?;
        descriptor = None;
        line = &line[sent..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_line_is_told_apart() {
        let kind = |line: &str| parse(line.as_bytes());
        assert!(matches!(kind(r#"{"QMP": {"version": {}, "capabilities": []}}"#), Ok(Message::Greeting)));
        assert!(matches!(kind(r#"{"return": {}, "id": 7}"#), Ok(Message::Reply { id: 7, outcome: Ok(_) })));
        assert!(
            matches!(kind(r#"{"event": "STOP", "timestamp": {}}"#), Ok(Message::Event(Event { name, .. })) if name == "STOP")
        );
        assert!(
            matches!(kind(r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 8}"#), Ok(Message::Reply { id: 8, outcome: Err((_, why)) }) if why == "no")
        );
        assert!(matches!(kind(r#"{"future": 1}"#), Ok(Message::Other(_))));
        for garbage in ["", "{", "[1]", "\u{1}", r#"{"id": "text", "return": {}}"#] {
            assert!(parse(garbage.as_bytes()).is_err(), "{garbage}");
        }
    }
}
