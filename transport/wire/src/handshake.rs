//! The first bytes on every connection, on the first stream that the dialling side opens.
//!
//! ```text
//! Hello, 32 bytes                           Answer, 16 bytes
//!  0  magic "PLUX"                           0  magic "PLUX"
//!  4  version                                4  version of the answering side
//!  5  class                                  5  verdict
//!  6  zero, 2 bytes                          6  zero, 2 bytes
//!  8  cluster, 16 bytes                      8  node of the answering side, 8 bytes
//! 24  node of the dialling side, 8 bytes
//! ```
//! Integers are little-endian. Magic, version and length of both never change, in any version: two builds of any age can
//! tell each other that they do not understand each other.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U64},
};

use crate::id::{ClusterId, NodeId};

/// What every connection starts with.
pub const MAGIC: [u8; 4] = *b"PLUX";
/// Bytes of a [`Hello`].
pub const HELLO_BYTES: usize = 32;
/// Bytes of an [`Answer`].
pub const ANSWER_BYTES: usize = 16;

/// What a connection is for. One connection carries one class, so that a bulk transfer cannot delay a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Consensus calls.
    Consensus,
    /// Everything between daemons that is not consensus: VM streams and daemon calls.
    Bulk,
    /// One join, from a node that has no certificate yet.
    Join,
}

impl Purpose {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Consensus => 1,
            Self::Bulk => 2,
            Self::Join => 3,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Consensus),
            2 => Some(Self::Bulk),
            3 => Some(Self::Join),
            _ => None,
        }
    }
}

/// What the dialling side says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The version it speaks.
    pub version: u8,
    /// What it wants the connection for.
    pub purpose: Purpose,
    /// The cluster it believes to be in, or to join.
    pub cluster: ClusterId,
    /// Who it is; node 0 when it joins.
    pub node: NodeId,
}

/// How the answering side decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Verdict {
    /// The connection is open.
    #[error("accepted")]
    Accepted,
    /// The answering side does not speak the other's version; the answer carries its own.
    #[error("it speaks another version of the protocol")]
    WrongVersion,
    /// The answering side is in another cluster.
    #[error("it belongs to another cluster")]
    WrongCluster,
    /// What the hello claims is not what the certificate says.
    #[error("the claimed identity or purpose does not match the certificate")]
    WrongIdentity,
    /// The node was removed from the cluster.
    #[error("this node is no longer part of the cluster")]
    NotAdmitted,
    /// The answering side has all the connections it wants.
    #[error("it has all the connections it may have")]
    Busy,
}

impl Verdict {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Accepted => 1,
            Self::WrongVersion => 2,
            Self::WrongCluster => 3,
            Self::WrongIdentity => 4,
            Self::NotAdmitted => 5,
            Self::Busy => 6,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Accepted),
            2 => Some(Self::WrongVersion),
            3 => Some(Self::WrongCluster),
            4 => Some(Self::WrongIdentity),
            5 => Some(Self::NotAdmitted),
            6 => Some(Self::Busy),
            _ => None,
        }
    }
}

/// What the answering side says to a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The version it speaks.
    pub version: u8,
    /// How it decided.
    pub verdict: Verdict,
    /// Who it is.
    pub node: NodeId,
}

/// Bytes that are no hello or no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Whatever this is, it is not Pollux.
    #[error("the other side does not speak the Pollux protocol")]
    NotPollux,
    /// The other side speaks another version. The rest of its hello means nothing here.
    #[error("the other side speaks protocol version {theirs}, this side speaks {ours}")]
    Version {
        /// What this side speaks.
        ours: u8,
        /// What the other side speaks.
        theirs: u8,
    },
    /// It speaks our version but says something that this version does not allow.
    #[error("the other side's handshake is malformed")]
    Malformed,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHello {
    magic: [u8; 4],
    version: u8,
    purpose: u8,
    zero: U16,
    cluster: [u8; 16],
    node: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawAnswer {
    magic: [u8; 4],
    version: u8,
    verdict: u8,
    zero: U16,
    node: U64,
}

const _: () = assert!(size_of::<RawHello>() == HELLO_BYTES && size_of::<RawAnswer>() == ANSWER_BYTES);

impl Hello {
    /// As it goes over the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HELLO_BYTES] {
        zerocopy::transmute!(RawHello {
            magic: MAGIC,
            version: self.version,
            purpose: self.purpose.to_byte(),
            zero: U16::ZERO,
            cluster: self.cluster.0,
            node: U64::new(self.node.0),
        })
    }

    /// Reads a hello as a side that speaks version `ours`.
    ///
    /// # Errors
    /// When it is none, or of another version.
    pub fn parse(bytes: [u8; HELLO_BYTES], ours: u8) -> Result<Self, HandshakeError> {
        let raw: RawHello = zerocopy::transmute!(bytes);
        if raw.magic != MAGIC || raw.version == 0 {
            return Err(HandshakeError::NotPollux);
        }
        if raw.version != ours {
            return Err(HandshakeError::Version { ours, theirs: raw.version });
        }
        let purpose = Purpose::from_byte(raw.purpose).ok_or(HandshakeError::Malformed)?;
        if raw.zero != U16::ZERO {
            return Err(HandshakeError::Malformed);
        }
        Ok(Self { version: raw.version, purpose, cluster: ClusterId(raw.cluster), node: NodeId(raw.node.get()) })
    }
}

impl Answer {
    /// As it goes over the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; ANSWER_BYTES] {
        zerocopy::transmute!(RawAnswer {
            magic: MAGIC,
            version: self.version,
            verdict: self.verdict.to_byte(),
            zero: U16::ZERO,
            node: U64::new(self.node.0),
        })
    }

    /// Reads an answer as a side that speaks version `ours`.
    ///
    /// # Errors
    /// When it is none, or when the answering side speaks another version.
    pub fn parse(bytes: [u8; ANSWER_BYTES], ours: u8) -> Result<Self, HandshakeError> {
        let raw: RawAnswer = zerocopy::transmute!(bytes);
        if raw.magic != MAGIC || raw.version == 0 {
            return Err(HandshakeError::NotPollux);
        }
        if raw.version != ours {
            return Err(HandshakeError::Version { ours, theirs: raw.version });
        }
        let verdict = Verdict::from_byte(raw.verdict).ok_or(HandshakeError::Malformed)?;
        if raw.zero != U16::ZERO {
            return Err(HandshakeError::Malformed);
        }
        Ok(Self { version: raw.version, verdict, node: NodeId(raw.node.get()) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HELLO: Hello =
        Hello { version: 1, purpose: Purpose::Bulk, cluster: ClusterId([0xab; 16]), node: NodeId(0x0102) };

    #[test]
    fn the_hello_is_these_bytes() {
        let golden = [&b"PLUX"[..], &[1, 2, 0, 0], &[0xab; 16], &[2, 1, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(HELLO.to_bytes()[..], golden[..]);
        assert_eq!(Hello::parse(HELLO.to_bytes(), 1), Ok(HELLO));
    }

    #[test]
    fn the_answer_is_these_bytes() {
        let answer = Answer { version: 1, verdict: Verdict::Busy, node: NodeId(3) };
        let golden = [&b"PLUX"[..], &[1, 6, 0, 0], &[3, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(answer.to_bytes()[..], golden[..]);
        assert_eq!(Answer::parse(answer.to_bytes(), 1), Ok(answer));
    }

    #[test]
    fn another_version_is_named_whatever_follows() {
        let mut bytes = HELLO.to_bytes();
        bytes[4] = 9;
        bytes[5..].fill(0xff);
        assert_eq!(Hello::parse(bytes, 1), Err(HandshakeError::Version { ours: 1, theirs: 9 }));
    }

    #[test]
    fn zero_is_valid_nowhere() {
        let mut no_version = HELLO.to_bytes();
        no_version[4] = 0;
        assert_eq!(Hello::parse(no_version, 1), Err(HandshakeError::NotPollux));
        let mut no_purpose = HELLO.to_bytes();
        no_purpose[5] = 0;
        assert_eq!(Hello::parse(no_purpose, 1), Err(HandshakeError::Malformed));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_what_was_written(bytes in any::<[u8; 32]>(), answer in any::<[u8; 16]>()) {
            if let Ok(hello) = Hello::parse(bytes, 1) {
                prop_assert_eq!(hello.to_bytes(), bytes);
            }
            if let Ok(parsed) = Answer::parse(answer, 1) {
                prop_assert_eq!(parsed.to_bytes(), answer);
            }
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0_usize..32, with in any::<u8>()) {
            let mut bytes = HELLO.to_bytes();
            bytes[at] ^= with;
            let _ = Hello::parse(bytes, 1);
        }
    }
}
