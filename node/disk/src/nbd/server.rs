//! The part of the NBD server that has the socket.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use slab::Slab;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::UnixStream,
};
use tokio_util::sync::CancellationToken;

use super::{
    Broken, Export,
    decoder::{Decoder, Event},
    handshake::Agreed,
    outbox::{Outbox, SLICES_MAX},
    proto::NbdError,
};
use crate::{
    buffers::Buffers,
    disk::{Completion, Disk, DiskError, Operation, Outcome, Piece, TRANSFER_BYTES_MAX, Tag},
};

/// Requests under way at a time; QEMU has 16.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 128;
/// Bytes of data under way at a time, from the reading of a request to the writing of its reply. One request more is taken while
/// there is less.
pub const BYTES_IN_FLIGHT_MAX: usize = 64 << 20;
const _: () = assert!(BYTES_IN_FLIGHT_MAX >= TRANSFER_BYTES_MAX as usize, "the largest request fits");

/// How a disk is offered.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The export's name, at most 4096 bytes; it is also found without one.
    pub name: String,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// Why the serving has ended. Everything that was handed to the disk has ended too.
#[derive(Debug, Clone, thiserror::Error)]
pub enum End {
    /// The client said goodbye.
    #[error("the client said goodbye")]
    Left,
    /// The client closed the connection without a word.
    #[error("the client closed the connection")]
    Closed,
    /// It was told to.
    #[error("the server was stopped")]
    Stopped,
    /// The client's words make no sense.
    #[error("the client broke the protocol")]
    Broken(#[source] Broken),
    /// The socket failed.
    #[error("the socket failed")]
    Socket(#[source] Arc<io::Error>),
}

/// Serves `disk` to the client at the other end of `stream`, from the greeting on, until either leaves or `stop` is cancelled. Then
/// no request is taken any more, and what is under way is waited for and answered.
pub async fn serve<D: Disk + ?Sized>(
    stream: UnixStream,
    disk: &mut D,
    options: &ServeOptions,
    stop: &CancellationToken,
) -> End {
    let export = Export {
        name: options.name.clone(),
        size: disk.size(),
        read_only: options.read_only,
        fast_zeroes: disk.fast_zeroes(),
    };
    let mut connection = Connection::new(stream, disk, export);
    let mut stopped = pin!(stop.cancelled());
    poll_fn(|cx| {
        if connection.end.is_none() && stopped.as_mut().poll(cx).is_ready() {
            connection.end = Some(End::Stopped);
        }
        connection.turn(cx)
    })
    .await
}

struct Connection<'a, D: ?Sized> {
    stream: UnixStream,
    disk: &'a mut D,
    export: Export,
    decoder: Decoder,
    agreed: Agreed,
    in_flight: Slab<InFlight>,
    bytes_in_flight: usize,
    done: Vec<Completion>,
    outbox: Outbox,
    /// Nothing is read any more; it ends when all is answered.
    end: Option<End>,
    /// Nothing can be written any more.
    deaf: bool,
}

/// What a reply needs to know of its request.
struct InFlight {
    cookie: u64,
    offset: u64,
    /// Of data, on its way in or out.
    bytes: u32,
    whole: bool,
    read: bool,
}

impl<'a, D: Disk + ?Sized> Connection<'a, D> {
    fn new(stream: UnixStream, disk: &'a mut D, export: Export) -> Self {
        let mut greeting = Vec::new();
        let decoder = Decoder::new(Buffers::default(), &mut greeting);
        let mut outbox = Outbox::default();
        outbox.say(&greeting);
        Self {
            stream,
            disk,
            export,
            decoder,
            agreed: Agreed::default(),
            in_flight: Slab::with_capacity(REQUESTS_IN_FLIGHT_MAX),
            bytes_in_flight: 0,
            done: Vec::new(),
            outbox,
            end: None,
            deaf: false,
        }
    }

    /// Everything that can be done now.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let mut moved = self.take(cx);
            moved |= self.complete(cx);
            moved |= self.write(cx);
            let all_answered = self.in_flight.is_empty() && (self.outbox.bytes() == 0 || self.deaf);
            if all_answered && let Some(end) = self.end.take() {
                return Poll::Ready(end);
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    fn has_room(&self) -> bool {
        self.in_flight.len() < REQUESTS_IN_FLIGHT_MAX
            && self.bytes_in_flight + self.outbox.bytes() < BYTES_IN_FLIGHT_MAX
    }

    /// Reads once, and hands over what that was. Whether there was anything.
    fn take(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        // What a full house kept waiting in the inbox comes first.
        moved |= self.decode();
        if self.end.is_some() || !self.has_room() {
            return moved;
        }
        let mut space = ReadBuf::new(self.decoder.space());
        match Pin::new(&mut self.stream).poll_read(cx, &mut space) {
            Poll::Pending => return moved,
            Poll::Ready(Ok(())) if space.filled().is_empty() => self.end = Some(End::Closed),
            Poll::Ready(Ok(())) => {
                let count = space.filled().len();
                self.decoder.filled(count);
                self.decode();
            }
            Poll::Ready(Err(error)) => self.end = Some(socket_failed(error)),
        }
        true
    }

    /// Hands over what is whole in the inbox, while there is room. Whether there was anything.
    fn decode(&mut self) -> bool {
        let (mut moved, mut words) = (false, Vec::new());
        while self.end.is_none() && self.has_room() {
            let next = self.decoder.next(&self.export, &mut words);
            if !words.is_empty() {
                self.outbox.say(&words);
                words.clear();
                moved = true;
            }
            match next {
                Ok(Some(event)) => self.on(event),
                Ok(None) => break,
                Err(broken) => self.end = Some(End::Broken(broken)),
            }
            moved = true;
        }
        moved
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Agreed(agreed) => self.agreed = agreed,
            Event::Request { cookie, operation, whole } => self.submit(cookie, operation, whole),
            Event::Refused { cookie, error, why } => self.outbox.failed(self.agreed.structured, cookie, error, why),
            Event::Disconnect | Event::Aborted => self.end = Some(End::Left),
        }
    }

    fn submit(&mut self, cookie: u64, operation: Operation, whole: bool) {
        let (offset, bytes, read) = match &operation {
            Operation::Read { offset, bytes } => (*offset, *bytes, true),
            Operation::Write { offset, data, .. } => (*offset, Piece::Data(data.clone()).bytes(), false),
            Operation::WriteZeroes { offset, .. }
            | Operation::Trim { offset, .. }
            | Operation::BlockStatus { offset, .. } => (*offset, 0, false),
            Operation::Flush => (0, 0, false),
        };
        self.bytes_in_flight += bytes as usize;
        let key = self.in_flight.insert(InFlight { cookie, offset, bytes, whole, read });
        self.disk.submit(Tag(key as u64), operation);
    }

    /// Starts what was handed over, and encodes what has ended. Whether there was anything.
    fn complete(&mut self, cx: &mut Context<'_>) -> bool {
        // Also when nothing is under way: the disk may have things to do for itself.
        if self.disk.poll(cx, &mut self.done).is_pending() {
            return false;
        }
        let mut done = std::mem::take(&mut self.done);
        for Completion { tag, result } in done.drain(..) {
            let key = usize::try_from(tag.0).expect("it was a slot's number");
            let request = self.in_flight.remove(key);
            self.bytes_in_flight -= request.bytes as usize;
            self.reply(&request, result);
        }
        self.done = done;
        true
    }

    fn reply(&mut self, request: &InFlight, result: Result<Outcome, DiskError>) {
        let (cookie, structured) = (request.cookie, self.agreed.structured);
        match result {
            Ok(Outcome::Done) => {
                assert!(!request.read, "a read ends in what was read");
                self.outbox.done(cookie);
            }
            Ok(Outcome::Read(pieces)) => {
                let bytes: u64 = pieces.iter().map(|piece| u64::from(piece.bytes())).sum();
                assert_eq!(bytes, u64::from(request.bytes), "a read is as long as was asked for");
                if structured {
                    self.outbox.read_chunks(cookie, request.offset, request.whole, pieces);
                } else {
                    self.outbox.read_simple(cookie, pieces);
                }
            }
            Ok(Outcome::Extents(extents)) => self.outbox.extents(cookie, &extents),
            Err(error) => {
                tracing::debug!(%error, export = self.export.name, "a request failed");
                self.outbox.failed(structured, cookie, code(&error), &error.to_string());
            }
        }
    }

    /// Writes what the socket takes now. Whether that was anything.
    fn write(&mut self, cx: &mut Context<'_>) -> bool {
        if self.deaf || self.outbox.bytes() == 0 {
            return false;
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let filled = self.outbox.front(&mut slices);
        match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..filled]) {
            Poll::Pending => false,
            Poll::Ready(Ok(count)) => {
                self.outbox.written(count);
                true
            }
            Poll::Ready(Err(error)) => {
                self.deaf = true;
                self.outbox.clear();
                self.end.get_or_insert_with(|| socket_failed(error));
                true
            }
        }
    }
}

fn socket_failed(error: io::Error) -> End {
    let gone = matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
    if gone { End::Closed } else { End::Socket(Arc::new(error)) }
}

/// What the client is told of an error.
fn code(error: &DiskError) -> NbdError {
    match error {
        DiskError::NoSpace { .. } => NbdError::NoSpace,
        DiskError::Io { .. } | DiskError::Failed { .. } => NbdError::Io,
        DiskError::Fenced => NbdError::NotPermitted,
        DiskError::NotFast => NbdError::NotSupported,
        DiskError::OutOfRange { .. } => NbdError::Invalid,
        DiskError::Closed => NbdError::Shutdown,
    }
}
