//! What travels on a console's connection once its HTTP request was answered with `101 Switching Protocols`.
//!
//! ```text
//!   client ----- what is typed, byte for byte; its end means that nobody is there any more -----> daemon
//!   client <---- frames: length (4 bytes, big-endian), kind (1 byte), body --------------------- daemon
//!                1  what the guest wrote: its place (8 bytes, big-endian) in all it ever wrote, then the bytes
//!                2  [`News`] as JSON
//! ```
//!
//! Places go on across moves, as the log of a console does: a client that attaches again names the place where it was and
//! misses nothing. What was typed and not [`News::Taken`] has not reached the guest, and is typed again after a move.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// The protocol's name in the `Upgrade` header.
pub const PROTOCOL: &str = "pollux-console";
/// What the guest wrote travels in pieces of at most so many bytes.
pub const OUTPUT_BYTES_MAX: usize = 16 * 1024;

/// Largest frame, its length not counted, in bytes.
pub const FRAME_BYTES_MAX: usize = OUTPUT_BYTES_MAX + 64;

const OUTPUT: u8 = 1;
const NEWS: u8 = 2;

/// Where a client begins to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// So many bytes before what the guest writes next.
    Last(u64),
    /// At this place in all that it ever wrote.
    At(u64),
}

/// What a client hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// What the guest wrote.
    Output {
        /// Place of the first byte.
        at: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// What happens around it.
    News(News),
}

/// What happens around a console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "news")]
pub enum News {
    /// The first frame.
    Attached {
        /// The node that runs the guest, or would.
        node: String,
        /// How many others are attached.
        others: u64,
    },
    /// Others came or went: how many are attached now.
    Others {
        /// How many.
        others: u64,
    },
    /// So many more of the bytes that were typed have reached the guest's machine.
    Taken {
        /// How many.
        bytes: u64,
    },
    /// What is typed is not taken for the moment, or is dropped: why.
    Deaf {
        /// Why.
        why: String,
    },
    /// The last frame.
    Over {
        /// The console goes on elsewhere, or later: attach again.
        again: bool,
        /// Why it ended here.
        why: String,
    },
    /// A newer daemon's word.
    #[serde(other)]
    Unknown,
}

/// Bytes that mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the console's frame of {0} bytes means nothing to this version")]
pub struct BadFrame(usize);

impl Heard {
    /// As a frame's contents. Output must not be longer than [`OUTPUT_BYTES_MAX`].
    ///
    /// # Errors
    /// When news do not encode.
    pub fn encode(&self) -> Result<Bytes, serde_json::Error> {
        let mut frame = BytesMut::new();
        match self {
            Self::Output { at, bytes } => {
                frame.put_u8(OUTPUT);
                frame.put_u64(*at);
                frame.put_slice(bytes);
            }
            Self::News(news) => {
                frame.put_u8(NEWS);
                frame.put_slice(&serde_json::to_vec(news)?);
            }
        }
        Ok(frame.freeze())
    }

    /// Out of a frame's contents.
    ///
    /// # Errors
    /// When they mean nothing.
    pub fn decode(frame: &[u8]) -> Result<Self, BadFrame> {
        let bad = BadFrame(frame.len());
        match frame.split_first() {
            Some((&OUTPUT, body)) => {
                let (at, bytes) = body.split_first_chunk().ok_or(bad)?;
                let at = u64::from_be_bytes(*at);
                // Readers count on from there.
                at.checked_add(bytes.len() as u64).ok_or(bad)?;
                Ok(Self::Output { at, bytes: Bytes::copy_from_slice(bytes) })
            }
            Some((&NEWS, body)) => serde_json::from_slice(body).map(Self::News).map_err(|_| bad),
            Some(_) | None => Err(bad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written_and_nonsense_is_refused() {
        let output = Heard::Output { at: 258, bytes: Bytes::from_static(b"login: \xff") };
        assert_eq!(&output.encode().unwrap()[..11], b"\x01\0\0\0\0\0\0\x01\x02lo", "byte for byte as documented");
        let over = Heard::News(News::Over { again: true, why: "it moved".into() });
        assert_eq!(&over.encode().unwrap()[..], b"\x02{\"news\":\"over\",\"again\":true,\"why\":\"it moved\"}");
        for heard in [output, over, Heard::News(News::Taken { bytes: 7 })] {
            assert_eq!(Heard::decode(&heard.encode().unwrap()), Ok(heard));
        }
        for nonsense in
            [&b""[..], b"\x01short", b"\x01\xff\xff\xff\xff\xff\xff\xff\xffx", b"\x02{}", b"\x03", b"\x02\xff"]
        {
            assert_eq!(Heard::decode(nonsense), Err(BadFrame(nonsense.len())), "{nonsense:?}");
        }
        let newer = [b"\x02".as_slice(), br#"{"news":"resized","columns":80}"#].concat();
        assert_eq!(Heard::decode(&newer), Ok(Heard::News(News::Unknown)), "a newer daemon's word is no failure");
    }
}
