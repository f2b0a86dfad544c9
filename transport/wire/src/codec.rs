//! How a control message becomes bytes and back: serde through bincode, integers in fixed width and little-endian. Fixed
//! width, because then the bytes that bincode counts against its limit are the bytes on the wire, and the limit is exact.
//!
//! This is the only module that names bincode, so that replacing it is one change (`docs/adr/` says why it may come to
//! that). Enum variants are encoded by their position: add new ones at the end and never reorder.

use alloc::vec::Vec;

use bincode::{
    config::{self, Config, Configuration, Fixint, LittleEndian},
    enc::write::Writer,
    error::{DecodeError as RawDecode, EncodeError as RawEncode},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::limits::{self, Limit};

/// A value that cannot be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The encoding would be larger than its class allows.
    #[error("the encoding would exceed {limit_bytes} bytes, the limit of this kind of message")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// The type has no encoding: a sequence without a length, or a `Serialize` that failed.
    #[error("the value has no encoding")]
    Unencodable,
}

/// Bytes that are not the encoding of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There are more bytes than this kind of message may have.
    #[error("{found_bytes} bytes, more than the {limit_bytes} that this kind of message may have")]
    TooLarge {
        /// How many there are.
        found_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The bytes end in the middle of a value, or announce more than they hold.
    #[error("the message ends in the middle of a value")]
    Truncated,
    /// The value ends before the bytes do.
    #[error("{extra_bytes} bytes follow the end of the message")]
    Trailing {
        /// How many.
        extra_bytes: usize,
    },
    /// Some bytes mean nothing in the place where they stand.
    #[error("the bytes are not a value of the expected type")]
    Malformed,
}

type Fixed = Configuration<LittleEndian, Fixint>;
const FIXED: Fixed = config::standard().with_fixed_int_encoding();

/// Encodes a value, at most `limit` long.
///
/// # Errors
/// When it is larger, or of a type that has no encoding.
pub fn encode<T: Serialize + ?Sized>(value: &T, limit: Limit) -> Result<Vec<u8>, EncodeError> {
    let mut bounded = Bounded { bytes: Vec::new(), limit_bytes: limit.bytes(), overflown: false };
    match bincode::serde::encode_into_writer(value, &mut bounded, FIXED) {
        Ok(()) => Ok(bounded.bytes),
        Err(_) if bounded.overflown => Err(EncodeError::TooLarge { limit_bytes: limit.bytes() }),
        Err(_) => Err(EncodeError::Unencodable),
    }
}

/// Decodes a value from exactly these bytes. Never panics, whatever the bytes, and allocates no more than the limit for any
/// one string or byte string.
///
/// # Errors
/// When the bytes are too many, too few, or mean nothing.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: Limit) -> Result<T, DecodeError> {
    if bytes.len() > limit.bytes() {
        return Err(DecodeError::TooLarge { found_bytes: bytes.len(), limit_bytes: limit.bytes() });
    }
    match limit {
        Limit::Small => decode_with(bytes, FIXED.with_limit::<{ limits::SMALL_BYTES_MAX }>()),
        Limit::Control => decode_with(bytes, FIXED.with_limit::<{ limits::CONTROL_BYTES_MAX }>()),
        Limit::Consensus => decode_with(bytes, FIXED.with_limit::<{ limits::CONSENSUS_BYTES_MAX }>()),
        Limit::State => decode_with(bytes, FIXED.with_limit::<{ limits::STATE_BYTES_MAX }>()),
    }
}

fn decode_with<T: DeserializeOwned, C: Config>(bytes: &[u8], config: C) -> Result<T, DecodeError> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, config).map_err(classify)?;
    match bytes.len() - used {
        0 => Ok(value),
        extra_bytes => Err(DecodeError::Trailing { extra_bytes }),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the variants are another crate's and all the rest mean the same")]
fn classify(error: RawDecode) -> DecodeError {
    match error {
        RawDecode::UnexpectedEnd { .. } | RawDecode::LimitExceeded => DecodeError::Truncated,
        _ => DecodeError::Malformed,
    }
}

/// A vector that refuses to grow past its limit, so that an oversized value is not built first and measured then.
struct Bounded {
    bytes: Vec<u8>,
    limit_bytes: usize,
    overflown: bool,
}

impl Writer for Bounded {
    fn write(&mut self, bytes: &[u8]) -> Result<(), RawEncode> {
        if bytes.len() > self.limit_bytes - self.bytes.len() {
            self.overflown = true;
            return Err(RawEncode::Other("over the limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::String, vec};

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::id::{ClusterId, NodeId};

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Sample {
        Nothing,
        Text(String),
        Many { cluster: ClusterId, nodes: Vec<NodeId>, bytes: Vec<u8>, maybe: Option<u32> },
    }

    fn sample() -> impl Strategy<Value = Sample> {
        prop_oneof![
            Just(Sample::Nothing),
            ".{0,40}".prop_map(Sample::Text),
            (any::<[u8; 16]>(), vec_of(any::<u64>()), vec_of(any::<u8>()), any::<Option<u32>>()).prop_map(
                |(cluster, nodes, bytes, maybe)| Sample::Many {
                    cluster: ClusterId(cluster),
                    nodes: nodes.into_iter().map(NodeId).collect(),
                    bytes,
                    maybe,
                }
            ),
        ]
    }

    fn vec_of<T: core::fmt::Debug>(item: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
        proptest::collection::vec(item, 0..50)
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(value in sample()) {
            let bytes = encode(&value, Limit::Small).unwrap();
            prop_assert_eq!(decode::<Sample>(&bytes, Limit::Small), Ok(value));
        }

        #[test]
        fn garbage_is_refused_or_means_something(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(value) = decode::<Sample>(&bytes, Limit::Small) {
                prop_assert_eq!(encode(&value, Limit::Small).unwrap(), bytes);
            }
        }

        #[test]
        fn a_cut_message_is_refused(value in sample(), cut in 1_usize..20) {
            let bytes = encode(&value, Limit::Small).unwrap();
            let short = &bytes[..bytes.len().saturating_sub(cut)];
            prop_assert!(decode::<Sample>(short, Limit::Small).is_err());
        }
    }

    #[test]
    fn the_bytes_are_these() {
        let value = Sample::Many {
            cluster: ClusterId([7; 16]),
            nodes: vec![NodeId(1), NodeId(0x0203)],
            bytes: vec![9, 8],
            maybe: Some(5),
        };
        let golden = [
            &[2, 0, 0, 0][..],
            &[7; 16],
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[3, 2, 0, 0, 0, 0, 0, 0],
            &[2, 0, 0, 0, 0, 0, 0, 0, 9, 8],
            &[1, 5, 0, 0, 0],
        ]
        .concat();
        assert_eq!(encode(&value, Limit::Small).unwrap(), golden);
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&Sample::Nothing, Limit::Small).unwrap();
        bytes.extend([0, 0]);
        assert_eq!(decode::<Sample>(&bytes, Limit::Small), Err(DecodeError::Trailing { extra_bytes: 2 }));
    }

    #[test]
    fn both_sides_know_the_limit() {
        let fits = vec![1_u8; limits::SMALL_BYTES_MAX - 8];
        let bytes = encode(&fits, Limit::Small).unwrap();
        assert_eq!(bytes.len(), limits::SMALL_BYTES_MAX);
        assert_eq!(decode::<Vec<u8>>(&bytes, Limit::Small).unwrap(), fits);

        let over = vec![1_u8; limits::SMALL_BYTES_MAX - 7];
        let refused = EncodeError::TooLarge { limit_bytes: limits::SMALL_BYTES_MAX };
        assert_eq!(encode(&over, Limit::Small), Err(refused));
        let bytes = encode(&over, Limit::Control).unwrap();
        assert!(matches!(decode::<Vec<u8>>(&bytes, Limit::Small), Err(DecodeError::TooLarge { .. })));
    }

    #[test]
    fn an_announced_length_is_not_believed() {
        let boast = u64::MAX.to_le_bytes();
        assert_eq!(decode::<String>(&boast, Limit::State), Err(DecodeError::Truncated));
    }
}
