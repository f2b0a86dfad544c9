//! Values as bytes: in the store and in messages, each within its limit.

use bytes::Bytes;
use pollux_wire::{codec, limits::Limit};
use serde::{Serialize, de::DeserializeOwned};

/// Anything in the store; a snapshot is the largest.
pub(crate) const STORED: Limit = Limit::State;
/// Anything between two consensus layers.
const MESSAGE: Limit = Limit::Consensus;
/// One proposal. Many fit in one message.
pub(crate) const PROPOSAL: Limit = Limit::Small;

/// What cannot be encoded or decoded, in words.
pub(crate) type Reason = String;

pub(crate) fn encode_stored<T: Serialize>(value: &T) -> Result<Vec<u8>, Reason> {
    codec::encode(value, STORED).map_err(|error| error.to_string())
}

pub(crate) fn decode_stored<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Reason> {
    codec::decode(bytes, STORED).map_err(|error| error.to_string())
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, Reason> {
    codec::encode(value, MESSAGE).map(Bytes::from).map_err(|error| error.to_string())
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Reason> {
    codec::decode(bytes, MESSAGE).map_err(|error| error.to_string())
}

/// Whether a proposal is small enough for the log.
pub(crate) fn check_proposal<T: Serialize>(proposal: &T) -> Result<(), Reason> {
    codec::encode(proposal, PROPOSAL).map(drop).map_err(|error| error.to_string())
}
