//! The VM protocol, pure: what one node does about one VM, as a function from events to effects.
//!
//! No clock, no I/O, no tasks; `no_std` makes the compiler check it. The shell (`pollux::vm`) selects one event, applies
//! it with [`VmCore::on`] and carries the [`Effect`]s out; the simulator does the same with a fake guest.
//!
//! **Decisions come from the log alone.** The core holds the newest [`View`] of its VM and moves its [`Role`] towards it.
//! What the log has not decided, it treats as open: it does only what every outcome allows (DESIGN, rule 2). A proposal's
//! answer is a decision too (it is the log's), and saves the wait for the local copy of the log on the hot path.
//!
//! ```text
//!            Claim won               source said Ready ... handed over
//!   Idle ---------------> Starting -----> Running <------------------> Source
//!    ^  \                    |              |  ^    aborted, given back   |
//!    |   \ Moving{to: me}    | failed       |  |                          | target runs
//!    |    `--------------> Sink ------------|--' Switchover won           |
//!    |                       |              v                             v
//!    |                       |          Releasing ----> Discarding <------'
//!    |                       `--- lost -------------------^   |
//!    `--------------------------------------------------------' machine gone
//! ```
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod convergence;
mod core;
pub mod event;
pub mod message;
pub mod pages;
mod role;
pub mod view;

pub use self::core::{Limits, VmCore};
pub use event::{Effect, Effects, Event, Ticket};
pub use view::View;

/// Milliseconds of elapsed time since some moment of this daemon's life.
pub type Millis = u64;
