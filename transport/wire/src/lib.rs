//! What Pollux nodes say to each other: identities, versions, limits and encodings. Pure: no clock, no sockets, no
//! randomness, no files, which `no_std` makes the compiler check.
//!
//! | Module | What it defines |
//! |---|---|
//! | [`id`] | names for what a cluster agrees on |
//! | [`limits`] | how large and how many, each with its unit |
//! | [`method`] | the numbers of calls and sessions |
//! | [`fault`] | the numbers of failures that a peer may report |
//! | [`codec`] | how a control message becomes bytes and back |
//! | [`handshake`] | the first bytes on every connection |
//! | [`frame`] | the header in front of each call, session and answer |
//! | [`join`] | what a new node asks and what it is told |
//! | [`token`] | the text that a new node is given |
//! | [`page`] | a batch of guest memory pages |
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod codec;
pub mod fault;
pub mod frame;
pub mod handshake;
pub mod id;
pub mod join;
pub mod limits;
pub mod method;
pub mod page;
pub mod token;

/// The protocol this build speaks. It goes up by one whenever an older build could misread a newer one; a build speaks
/// this version and, once there is one, the version before it. 0 is no version.
pub const VERSION: u8 = 4;
