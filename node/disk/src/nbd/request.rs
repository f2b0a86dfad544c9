//! A request's header, and what may be asked for. Pure.

use super::{
    Broken, Export,
    handshake::Agreed,
    proto::{NbdError, REQUEST_MAGIC, command, flag},
};
use crate::disk::{Operation, TRANSFER_BYTES_MAX, check_range};

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 28;
/// Extents told at a time: a client that wants more asks again from where they end.
const EXTENTS_MAX: usize = 1024;

/// A header as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    /// Chosen by the client, and given back with the reply.
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
}

impl Header {
    /// Reads one.
    ///
    /// # Errors
    /// When it is none: then nothing tells where the next one begins.
    pub(crate) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Broken> {
        let [a, b, c, d, f, g, k, l, rest @ ..] = bytes;
        if u32::from_be_bytes([*a, *b, *c, *d]) != REQUEST_MAGIC {
            return Err(Broken::RequestMagic);
        }
        let (cookie, rest) = rest.split_first_chunk::<8>().ok_or(Broken::RequestMagic)?;
        let (offset, rest) = rest.split_first_chunk::<8>().ok_or(Broken::RequestMagic)?;
        let (length, _) = rest.split_first_chunk::<4>().ok_or(Broken::RequestMagic)?;
        Ok(Self {
            flags: u16::from_be_bytes([*f, *g]),
            command: u16::from_be_bytes([*k, *l]),
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            bytes: u32::from_be_bytes(*length),
        })
    }

    /// Bytes that follow the header, whether it is any good or not.
    pub(crate) fn payload_bytes(&self) -> u32 {
        if self.command == command::WRITE { self.bytes } else { 0 }
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// What is to be done about a request.
#[derive(Debug)]
pub(crate) enum Asked {
    /// Do this; a read's answer stays in one piece if `whole`.
    Do { operation: Operation, whole: bool },
    /// Write what follows.
    Write { offset: u64, bytes: u32, durable: bool },
    /// Say no.
    Refuse(NbdError, &'static str),
    /// The client leaves when everything is answered.
    Disconnect,
}

/// Judges a request.
pub(crate) fn judge(header: &Header, export: &Export, agreed: Agreed) -> Asked {
    let allowed = match header.command {
        command::READ => flag::FUA | if agreed.structured { flag::DF } else { 0 },
        command::WRITE_ZEROES => flag::FUA | flag::NO_HOLE | if export.fast_zeroes { flag::FAST_ZERO } else { 0 },
        command::BLOCK_STATUS => flag::FUA | flag::REQ_ONE,
        // Leaving is not made dependent on manners.
        command::DISCONNECT => return Asked::Disconnect,
        // Of others, as the protocol has it, this one may be ignored.
        _ => flag::FUA,
    };
    if header.flags & !allowed != 0 {
        return Asked::Refuse(NbdError::Invalid, "the request has a flag that it cannot have");
    }
    let Header { offset, bytes, .. } = *header;
    let durable = header.has(flag::FUA);
    let wide = u64::from(bytes);
    match header.command {
        command::READ => match transfer(header, export, NbdError::Invalid) {
            Ok(()) => Asked::Do { operation: Operation::Read { offset, bytes }, whole: header.has(flag::DF) },
            Err((error, why)) => Asked::Refuse(error, why),
        },
        command::WRITE => match changes(header, export, NbdError::NoSpace).and_then(|()| size(header)) {
            Ok(()) => Asked::Write { offset, bytes, durable },
            Err((error, why)) => Asked::Refuse(error, why),
        },
        command::WRITE_ZEROES => match changes(header, export, NbdError::NoSpace) {
            Ok(()) => {
                let (may_punch, fast_only) = (!header.has(flag::NO_HOLE), header.has(flag::FAST_ZERO));
                plain(Operation::WriteZeroes { offset, bytes: wide, may_punch, fast_only, durable })
            }
            Err((error, why)) => Asked::Refuse(error, why),
        },
        command::TRIM => match changes(header, export, NbdError::Invalid) {
            Ok(()) => plain(Operation::Trim { offset, bytes: wide, durable }),
            Err((error, why)) => Asked::Refuse(error, why),
        },
        command::FLUSH if offset == 0 && bytes == 0 => plain(Operation::Flush),
        command::FLUSH => Asked::Refuse(NbdError::Invalid, "a flush has no place and no length"),
        command::BLOCK_STATUS if agreed.allocation => match range(header, export, NbdError::Invalid) {
            Ok(()) => {
                let extents_max = if header.has(flag::REQ_ONE) { 1 } else { EXTENTS_MAX };
                plain(Operation::BlockStatus { offset, bytes: wide, extents_max })
            }
            Err((error, why)) => Asked::Refuse(error, why),
        },
        command::BLOCK_STATUS => Asked::Refuse(NbdError::Invalid, "no context was agreed on"),
        _ => Asked::Refuse(NbdError::Invalid, "unknown request"),
    }
}

type Verdict = Result<(), (NbdError, &'static str)>;

fn plain(operation: Operation) -> Asked {
    Asked::Do { operation, whole: false }
}

fn transfer(header: &Header, export: &Export, outside: NbdError) -> Verdict {
    size(header)?;
    range(header, export, outside)
}

fn size(header: &Header) -> Verdict {
    if header.bytes > TRANSFER_BYTES_MAX {
        return Err((NbdError::Invalid, "the request is longer than the largest block"));
    }
    Ok(())
}

fn changes(header: &Header, export: &Export, outside: NbdError) -> Verdict {
    if export.read_only {
        return Err((NbdError::NotPermitted, "the export is read-only"));
    }
    range(header, export, outside)
}

fn range(header: &Header, export: &Export, outside: NbdError) -> Verdict {
    let (offset, bytes) = (header.offset, u64::from(header.bytes));
    if check_range(export.size, offset, bytes).is_ok() {
        return Ok(());
    }
    let inside = offset.checked_add(bytes).is_some_and(|end| end <= export.size);
    if inside {
        return Err((NbdError::Invalid, "the request is empty or no multiple of a sector"));
    }
    Err((outside, "the request goes beyond the end"))
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
