//! The header in front of each call, session and answer. Every stream after the handshake carries one exchange:
//!
//! ```text
//! Opening, 12 bytes, then the body          Outcome, 8 bytes, then the body
//!  0  kind: 1 call, 2 session, 3 join        0  ending: 1 done, 2 fault, 3 refused
//!  1  zero                                   1  zero
//!  2  method or kind of session              2  fault code, 0 when done
//!  4  length of the body, bytes              4  length of the body, bytes
//!  8  the caller's patience, milliseconds
//! ```
//! Integers are little-endian. *Fault*: the service was asked and failed. *Refused*: the service was never asked, so the
//! call has surely not been executed. The body of both is the text. After a session's outcome the stream is the session's.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

/// Bytes of an [`Opening`].
pub const OPENING_BYTES: usize = 12;
/// Bytes of an [`Outcome`].
pub const OUTCOME_BYTES: usize = 8;

/// What a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// One request, one answer.
    Call,
    /// A long-lived stream in both directions.
    Session,
    /// A node asks to be admitted.
    Join,
}

/// The start of a stream, from the side that opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// What the stream is.
    pub kind: StreamKind,
    /// The method, or the kind of session.
    pub method: u16,
    /// Length of the body that follows.
    pub body_bytes: u32,
    /// How long the caller waits; after that nobody wants the answer.
    pub patience_ms: u32,
}

/// How an exchange came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The body is the answer.
    Done,
    /// The service failed; the body says how.
    Fault(u16),
    /// The service was not asked; the body says why.
    Refused(u16),
}

/// The start of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// How it came out.
    pub ending: Ending,
    /// Length of the body that follows.
    pub body_bytes: u32,
}

/// Bytes that are no opening or no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the header of the stream is malformed")]
pub struct FrameError;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOpening {
    kind: u8,
    zero: u8,
    method: U16,
    body_bytes: U32,
    patience_ms: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOutcome {
    ending: u8,
    zero: u8,
    code: U16,
    body_bytes: U32,
}

const _: () = assert!(size_of::<RawOpening>() == OPENING_BYTES && size_of::<RawOutcome>() == OUTCOME_BYTES);

impl Opening {
    /// As it goes over the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; OPENING_BYTES] {
        let kind = match self.kind {
            StreamKind::Call => 1,
            StreamKind::Session => 2,
            StreamKind::Join => 3,
        };
        zerocopy::transmute!(RawOpening {
            kind,
            zero: 0,
            method: U16::new(self.method),
            body_bytes: U32::new(self.body_bytes),
            patience_ms: U32::new(self.patience_ms),
        })
    }

    /// Reads an opening.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(bytes: [u8; OPENING_BYTES]) -> Result<Self, FrameError> {
        let raw: RawOpening = zerocopy::transmute!(bytes);
        let kind = match (raw.kind, raw.zero) {
            (1, 0) => StreamKind::Call,
            (2, 0) => StreamKind::Session,
            (3, 0) => StreamKind::Join,
            _ => return Err(FrameError),
        };
        Ok(Self {
            kind,
            method: raw.method.get(),
            body_bytes: raw.body_bytes.get(),
            patience_ms: raw.patience_ms.get(),
        })
    }
}

impl Outcome {
    /// As it goes over the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; OUTCOME_BYTES] {
        let (ending, code) = match self.ending {
            Ending::Done => (1, 0),
            Ending::Fault(code) => (2, code),
            Ending::Refused(code) => (3, code),
        };
        zerocopy::transmute!(RawOutcome {
            ending,
            zero: 0,
            code: U16::new(code),
            body_bytes: U32::new(self.body_bytes)
        })
    }

    /// Reads an outcome.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(bytes: [u8; OUTCOME_BYTES]) -> Result<Self, FrameError> {
        let raw: RawOutcome = zerocopy::transmute!(bytes);
        let ending = match (raw.ending, raw.zero, raw.code.get()) {
            (1, 0, 0) => Ending::Done,
            (2, 0, code) => Ending::Fault(code),
            (3, 0, code) => Ending::Refused(code),
            _ => return Err(FrameError),
        };
        Ok(Self { ending, body_bytes: raw.body_bytes.get() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_opening_is_these_bytes() {
        let opening =
            Opening { kind: StreamKind::Session, method: 0x0102, body_bytes: 0x0304_0506, patience_ms: 0x0708 };
        assert_eq!(opening.to_bytes(), [2, 0, 2, 1, 6, 5, 4, 3, 8, 7, 0, 0]);
        assert_eq!(Opening::parse(opening.to_bytes()), Ok(opening));
    }

    #[test]
    fn the_outcome_is_these_bytes() {
        let outcome = Outcome { ending: Ending::Refused(0x0102), body_bytes: 7 };
        assert_eq!(outcome.to_bytes(), [3, 0, 2, 1, 7, 0, 0, 0]);
        assert_eq!(Outcome::parse(outcome.to_bytes()), Ok(outcome));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_what_was_written(opening in any::<[u8; 12]>(), outcome in any::<[u8; 8]>()) {
            if let Ok(parsed) = Opening::parse(opening) {
                prop_assert_eq!(parsed.to_bytes(), opening);
            }
            if let Ok(parsed) = Outcome::parse(outcome) {
                prop_assert_eq!(parsed.to_bytes(), outcome);
            }
        }
    }
}
