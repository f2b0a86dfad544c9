//! The talk before the first request: which export, and what both sides know. Pure: bytes in, bytes out.
//!
//! ```text
//!   greeting --> flags --> option, answer, option, answer ... --+--> GO, or an export by name: requests begin
//!                                                               +--> ABORT
//!                                                               '--> nonsense: Broken
//! ```

use super::{
    Broken, Export,
    proto::{
        BASE_ALLOCATION, BASE_ALLOCATION_ID, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_MAGIC, OPTION_MAGIC,
        OPTION_REPLY_MAGIC, STRING_BYTES_MAX, answer, info, option, transmission,
    },
};
use crate::disk::{BLOCK_BYTES, SECTOR_BYTES, TRANSFER_BYTES_MAX};

/// The most that an option carries, in bytes: more than any client has to say.
const OPTION_BYTES_MAX: usize = 16 << 10;
/// Options before a client is taken to be making fun.
const OPTIONS_MAX: usize = 256;
/// Queries in one option.
const QUERIES_MAX: usize = 64;
const OPTION_HEADER_BYTES: usize = 16;
const _: () =
    assert!(OPTION_HEADER_BYTES + OPTION_BYTES_MAX <= super::decoder::INBOX_BYTES, "an option fits the inbox");
const _: () = assert!(OPTION_BYTES_MAX > 2 * STRING_BYTES_MAX, "a name and a query fit an option");

/// What the two agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Agreed {
    /// Replies in chunks.
    pub(crate) structured: bool,
    /// The client may ask what is allocated.
    pub(crate) allocation: bool,
}

/// Where the talk is.
#[derive(Debug)]
pub(crate) struct Handshake {
    stage: Stage,
    agreed: Agreed,
    no_zeroes: bool,
    options: usize,
}

#[derive(Debug)]
enum Stage {
    Flags,
    Options,
    /// So much of an option that is too long is still to come.
    Skipping {
        option: u32,
        bytes: u32,
    },
}

/// What came of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing yet.
    More,
    /// Requests begin with the next byte.
    Ready(Agreed),
    /// The client has changed its mind.
    Over,
}

impl Handshake {
    /// Says the greeting.
    pub(crate) fn begin(out: &mut Vec<u8>) -> Self {
        out.extend(GREETING_MAGIC.to_be_bytes());
        out.extend(OPTION_MAGIC.to_be_bytes());
        out.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        Self { stage: Stage::Flags, agreed: Agreed::default(), no_zeroes: false, options: 0 }
    }

    /// Takes one thing from the front of `bytes`: says how many bytes that was, none if it is not there whole, and what came of it.
    pub(crate) fn on(&mut self, bytes: &[u8], export: &Export, out: &mut Vec<u8>) -> Result<(usize, Step), Broken> {
        match self.stage {
            Stage::Flags => {
                let Some((flags, _)) = bytes.split_first_chunk::<4>() else { return Ok((0, Step::More)) };
                let flags = u32::from_be_bytes(*flags);
                if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
                    return Err(Broken::ClientFlags { flags });
                }
                self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
                self.stage = Stage::Options;
                Ok((4, Step::More))
            }
            Stage::Skipping { option, bytes: left } => {
                let skipped = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(left);
                let left = left - skipped;
                self.stage = if left > 0 { Stage::Skipping { option, bytes: left } } else { Stage::Options };
                if left == 0 {
                    reply(out, option, answer::ERR_TOO_BIG, b"so long an option is not read");
                }
                Ok((skipped as usize, Step::More))
            }
            Stage::Options => {
                let Some((header, rest)) = bytes.split_first_chunk::<OPTION_HEADER_BYTES>() else {
                    return Ok((0, Step::More));
                };
                let mut fields = Fields(header);
                let (magic, option, length) = (fields.u64(), fields.u32(), fields.u32());
                if magic != Some(OPTION_MAGIC) {
                    return Err(Broken::OptionMagic);
                }
                let (Some(option), Some(length)) = (option, length) else { return Ok((0, Step::More)) };
                if length as usize > OPTION_BYTES_MAX {
                    self.count()?;
                    self.stage = Stage::Skipping { option, bytes: length };
                    return Ok((OPTION_HEADER_BYTES, Step::More));
                }
                let Some(data) = rest.get(..length as usize) else { return Ok((0, Step::More)) };
                self.count()?;
                Ok((OPTION_HEADER_BYTES + data.len(), self.option(option, data, export, out)?))
            }
        }
    }

    fn count(&mut self) -> Result<(), Broken> {
        self.options += 1;
        if self.options > OPTIONS_MAX { Err(Broken::TooManyOptions { max: OPTIONS_MAX }) } else { Ok(()) }
    }

    fn option(&mut self, option: u32, data: &[u8], export: &Export, out: &mut Vec<u8>) -> Result<Step, Broken> {
        match option {
            option::EXPORT_NAME => {
                // The one option whose refusal has no words.
                if !export.is_called(data) {
                    return Err(Broken::UnknownExport { name: String::from_utf8_lossy(data).into_owned() });
                }
                out.extend(export.size.to_be_bytes());
                out.extend(self.flags(export).to_be_bytes());
                if !self.no_zeroes {
                    out.extend([0; 124]);
                }
                return Ok(Step::Ready(self.agreed));
            }
            option::ABORT => {
                reply(out, option, answer::ACK, &[]);
                return Ok(Step::Over);
            }
            option::INFO | option::GO => return Ok(self.info(option, data, export, out)),
            option::LIST if data.is_empty() => {
                let mut name = Vec::from(be32(export.name.len()));
                name.extend(export.name.as_bytes());
                reply(out, option, answer::SERVER, &name);
                reply(out, option, answer::ACK, &[]);
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.agreed.structured = true;
                reply(out, option, answer::ACK, &[]);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(option, data, export, out),
            option::STARTTLS if data.is_empty() => {
                reply(out, option, answer::ERR_POLICY, b"this socket does not leave the host; there is no TLS on it");
            }
            option::LIST | option::STRUCTURED_REPLY | option::STARTTLS => {
                reply(out, option, answer::ERR_INVALID, b"this option carries nothing");
            }
            _ => reply(out, option, answer::ERR_UNSUPPORTED, b"unknown option"),
        }
        Ok(Step::More)
    }

    fn info(&self, option: u32, data: &[u8], export: &Export, out: &mut Vec<u8>) -> Step {
        let mut fields = Fields(data);
        let wishes = fields.string().zip(fields.u16()).and_then(|(name, count)| {
            let wishes: Option<Vec<u16>> = (0..count).map(|_| fields.u16()).collect();
            wishes.filter(|_| fields.0.is_empty()).map(|wishes| (name, wishes))
        });
        let Some((name, wishes)) = wishes else {
            reply(out, option, answer::ERR_INVALID, b"an export's name and a list of wishes were expected");
            return Step::More;
        };
        if !export.is_called(name) {
            reply(out, option, answer::ERR_UNKNOWN, b"there is no such export");
            return Step::More;
        }
        let mut fact = Vec::from(info::EXPORT.to_be_bytes());
        fact.extend(export.size.to_be_bytes());
        fact.extend(self.flags(export).to_be_bytes());
        reply(out, option, answer::INFO, &fact);
        if wishes.contains(&info::NAME) {
            let mut fact = Vec::from(info::NAME.to_be_bytes());
            fact.extend(export.name.as_bytes());
            reply(out, option, answer::INFO, &fact);
        }
        let mut fact = Vec::from(info::BLOCK_SIZE.to_be_bytes());
        for bytes in [SECTOR_BYTES, BLOCK_BYTES, TRANSFER_BYTES_MAX] {
            fact.extend(bytes.to_be_bytes());
        }
        reply(out, option, answer::INFO, &fact);
        reply(out, option, answer::ACK, &[]);
        if option == option::GO { Step::Ready(self.agreed) } else { Step::More }
    }

    fn contexts(&mut self, option: u32, data: &[u8], export: &Export, out: &mut Vec<u8>) {
        if !self.agreed.structured {
            return reply(out, option, answer::ERR_INVALID, b"structured replies come first");
        }
        let mut fields = Fields(data);
        let asked = fields.string().zip(fields.u32()).and_then(|(name, count)| {
            if count as usize > QUERIES_MAX {
                return None;
            }
            let queries: Option<Vec<&[u8]>> = (0..count).map(|_| fields.string()).collect();
            queries.filter(|_| fields.0.is_empty()).map(|queries| (name, queries))
        });
        let Some((name, queries)) = asked else {
            return reply(out, option, answer::ERR_INVALID, b"an export's name and a list of queries were expected");
        };
        if !export.is_called(name) {
            return reply(out, option, answer::ERR_UNKNOWN, b"there is no such export");
        }
        let listing = option == option::LIST_META_CONTEXT;
        let named = queries.contains(&BASE_ALLOCATION.as_bytes());
        // A namespace alone lists what is in it, and selects nothing.
        let chosen = named || (listing && (queries.is_empty() || queries.contains(&b"base:".as_slice())));
        if chosen {
            let id = if listing { 0 } else { BASE_ALLOCATION_ID };
            let mut context = Vec::from(id.to_be_bytes());
            context.extend(BASE_ALLOCATION.as_bytes());
            reply(out, option, answer::META_CONTEXT, &context);
        }
        if !listing {
            self.agreed.allocation = chosen;
        }
        reply(out, option, answer::ACK, &[]);
    }

    fn flags(&self, export: &Export) -> u16 {
        let mut flags = transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::SEND_TRIM
            | transmission::SEND_WRITE_ZEROES;
        let ifs = [
            (export.read_only, transmission::READ_ONLY),
            (export.fast_zeroes, transmission::SEND_FAST_ZERO),
            (self.agreed.structured, transmission::SEND_DF),
        ];
        for (holds, flag) in ifs {
            if holds {
                flags |= flag;
            }
        }
        flags
    }
}

fn be32(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("nothing said here is that long").to_be_bytes()
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(be32(data.len()));
    out.extend(data);
}

/// Takes fields from the front of an option's data.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A length, and so many bytes.
    fn string(&mut self) -> Option<&'a [u8]> {
        let bytes = self.u32()? as usize;
        if bytes > STRING_BYTES_MAX {
            return None;
        }
        let (string, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(string)
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
