//! Cuts what a client sends into what it asks for, from the greeting to the end. Pure: bytes in, events out; whatever the bytes
//! are, it neither fails otherwise than by [`Broken`] nor holds more than [`INBOX_BYTES`] and one request's data.

use bytes::Bytes;

use super::{
    Broken, Export,
    handshake::{Agreed, Handshake, Step},
    proto::NbdError,
    request::{Asked, HEADER_BYTES, Header, judge},
};
use crate::{
    buffers::{Buffer, Buffers},
    disk::Operation,
};

/// What is read from the socket at a time, in bytes, unless it is the data of one request: that goes where it stays.
pub(crate) const INBOX_BYTES: usize = 64 << 10;

/// What a client wants next.
#[derive(Debug)]
pub(crate) enum Event {
    /// The talk has come to an end; requests begin.
    Agreed(Agreed),
    /// Do this.
    Request { cookie: u64, operation: Operation, whole: bool },
    /// Say no.
    Refused { cookie: u64, error: NbdError, why: &'static str },
    /// Answer what is under way, and end.
    Disconnect,
    /// End: the client has changed its mind before it began.
    Aborted,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Decoder {
    inbox: Box<[u8]>,
    start: usize,
    end: usize,
    stage: Stage,
    buffers: Buffers,
}

#[derive(Debug)]
enum Stage {
    Handshake(Handshake),
    Requests(Agreed),
    /// A write's data is coming in.
    Data {
        agreed: Agreed,
        cookie: u64,
        offset: u64,
        durable: bool,
        buffer: Buffer,
        filled: usize,
    },
    /// The data of a write that is refused.
    Skipping {
        agreed: Agreed,
        cookie: u64,
        left: u32,
        error: NbdError,
        why: &'static str,
    },
    Over,
}

impl Decoder {
    /// For one connection; the greeting goes to `out`.
    pub(crate) fn new(buffers: Buffers, out: &mut Vec<u8>) -> Self {
        Self {
            inbox: vec![0; INBOX_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            stage: Stage::Handshake(Handshake::begin(out)),
            buffers,
        }
    }

    /// Where the next bytes go; never empty once `next` has said that it needs more.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if let Stage::Data { buffer, filled, .. } = &mut self.stage
            && self.start == self.end
            && *filled < buffer.len()
        {
            return &mut buffer[*filled..];
        }
        if self.start > 0 {
            self.inbox.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.inbox[self.end..]
    }

    /// `count` bytes have been put into the space.
    pub(crate) fn filled(&mut self, count: usize) {
        if let Stage::Data { buffer, filled, .. } = &mut self.stage
            && self.start == self.end
            && *filled < buffer.len()
        {
            *filled += count;
            assert!(*filled <= buffer.len(), "more bytes were read than there was space for");
            return;
        }
        self.end += count;
        assert!(self.end <= self.inbox.len(), "more bytes were read than there was space for");
    }

    /// The next event, or `None` until more bytes come. What has to be said before it goes to `out`.
    pub(crate) fn next(&mut self, export: &Export, out: &mut Vec<u8>) -> Result<Option<Event>, Broken> {
        loop {
            let waiting = &self.inbox[self.start..self.end];
            match &mut self.stage {
                Stage::Handshake(handshake) => {
                    let (taken, step) = handshake.on(waiting, export, out)?;
                    self.start += taken;
                    match step {
                        Step::More if taken == 0 => return Ok(None),
                        Step::More => {}
                        Step::Ready(agreed) => {
                            self.stage = Stage::Requests(agreed);
                            return Ok(Some(Event::Agreed(agreed)));
                        }
                        Step::Over => {
                            self.stage = Stage::Over;
                            return Ok(Some(Event::Aborted));
                        }
                    }
                }
                Stage::Requests(agreed) => {
                    let Some((header, _)) = waiting.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
                    let header = Header::parse(header)?;
                    let agreed = *agreed;
                    self.start += HEADER_BYTES;
                    if let Some(event) = self.request(&header, export, agreed) {
                        return Ok(Some(event));
                    }
                }
                Stage::Data { cookie, offset, durable, agreed, buffer, filled } => {
                    let count = waiting.len().min(buffer.len() - *filled);
                    buffer[*filled..*filled + count].copy_from_slice(&waiting[..count]);
                    *filled += count;
                    self.start += count;
                    if *filled < buffer.len() {
                        return Ok(None);
                    }
                    let (cookie, offset, durable, agreed) = (*cookie, *offset, *durable, *agreed);
                    let stage = std::mem::replace(&mut self.stage, Stage::Requests(agreed));
                    let data = if let Stage::Data { buffer, .. } = stage { buffer.freeze() } else { Bytes::new() };
                    let operation = Operation::Write { offset, data, durable };
                    return Ok(Some(Event::Request { cookie, operation, whole: false }));
                }
                Stage::Skipping { agreed, cookie, left, error, why } => {
                    let skipped = u32::try_from(waiting.len()).unwrap_or(u32::MAX).min(*left);
                    self.start += skipped as usize;
                    *left -= skipped;
                    if *left > 0 {
                        return Ok(None);
                    }
                    let event = Event::Refused { cookie: *cookie, error: *error, why };
                    self.stage = Stage::Requests(*agreed);
                    return Ok(Some(event));
                }
                // Nothing may follow.
                Stage::Over => {
                    self.start = self.end;
                    return Ok(None);
                }
            }
        }
    }

    /// What came of a header; `None`: data follows.
    fn request(&mut self, header: &Header, export: &Export, agreed: Agreed) -> Option<Event> {
        let cookie = header.cookie;
        match judge(header, export, agreed) {
            Asked::Do { operation, whole } => Some(Event::Request { cookie, operation, whole }),
            Asked::Write { offset, bytes, durable } => {
                let buffer = self.buffers.take(bytes as usize);
                self.stage = Stage::Data { agreed, cookie, offset, durable, buffer, filled: 0 };
                None
            }
            Asked::Refuse(error, why) if header.payload_bytes() > 0 => {
                self.stage = Stage::Skipping { agreed, cookie, left: header.payload_bytes(), error, why };
                None
            }
            Asked::Refuse(error, why) => Some(Event::Refused { cookie, error, why }),
            Asked::Disconnect => {
                self.stage = Stage::Over;
                Some(Event::Disconnect)
            }
        }
    }
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
