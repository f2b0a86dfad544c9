//! What the cluster agreed on: nodes and their incarnations, VMs and who may run them, volumes and who may write to them,
//! operations, events.
//!
//! Pure: [`ClusterState::apply`] is total and synchronous, and every node that applied the same log holds the same value.
//! There is no clock in here; a proposal carries the wall-clock time of whoever made it, used for showing, for the expiry of
//! tokens and to tell a steady run from a failed start, never for deciding who may act. `no_std` makes the compiler check
//! the rest.
//!
//! The life of the right to run one VM ([`vm::Phase`]); every arrow compares the generation, `+` marks those that raise it:
//!
//! ```text
//!             Claim +              BeginMove            Switchover +
//!   Stopped ----------> Running -------------> Moving ---------------> Arriving (owner: the target)
//!      ^                 | ^ ^                  | |                      | |
//!      |     Release +   | | |    AbortMove     | |      Arrived         | |
//!      +-----------------' | '------------------' |      GiveBack +      | |
//!      |                   |                      |      TakeBack +      | |
//!      |                   '----------------------|----------------------' |
//!      |                 Release +                |        (GiveBack, TakeBack: the source again)
//!      '------------------------------------------+------------------------'
//! ```
//! From each of the three on the right, `ReleaseLost +` leads to `Stopped`: an operator's word that the owner's host is off.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod apply;
pub mod command;
pub mod detector;
pub mod event;
pub mod invariant;
pub mod limits;
pub mod node;
pub mod operation;
mod refusal;
pub mod spec;
pub mod text;
pub mod vm;
pub mod volume;

#[cfg(test)]
mod tests;

pub use apply::{ClusterState, Rules};
pub use command::{Applied, Command, Outcome, Proposal, Refusal, TokenRefusal};
pub use pollux_wire::id;

/// Milliseconds since 1970-01-01T00:00:00Z by the clock of whoever wrote it. For people, for the expiry of tokens and
/// to tell a steady run from a failed start, never for deciding who may act.
pub type UnixMs = u64;
