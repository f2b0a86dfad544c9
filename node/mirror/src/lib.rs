//! The mirror, pure: one volume, its replicas, and what it takes for all of them to hold every acknowledged write.
//!
//! No clock, no I/O, no tasks; `no_std` makes the compiler check it. A shell applies one event at a time with [`Mirror::on`] and
//! carries the [`Effect`]s out; data never passes through here, the shell finds it by the request's number.
//!
//! ```text
//!   guest's device                Mirror                      replica 1 ... replica 3      the log
//!     Request{write} ----------->  conflicts with nothing?
//!                                  Ask{write} ---------------> mark extents active (Marks)
//!                                                              on disk, then the data
//!                                  <------------------ Done
//!     <---------------- Answer     all of the committed set have it
//!                                  one has failed:
//!                                  Ask{note who is missing} -> its log, on disk
//!                                  Propose{leave} ------------------------------------->  compare generation, version
//!                                  <------------------------------------------ Decided{set}
//!     <---------------- Answer     all of the *new* set have it
//! ```
//!
//! Three parts:
//! - [`Mirror`], where the guest runs: what is asked of whom, and when the guest may be answered (DESIGN, rule 12).
//! - [`Marks`], beside each replica: which extents may differ from other replicas, and what each replica outside of the set lacks
//!   (rule 14). Kept on disk before it becomes true.
//! - [`reunite`]: after an end that nobody saw, or when a replica returns: what has to be copied from whom (rules 14 and 15).
//!   [`take_over`]: after an end in order, when the guest goes on with another mirror; with a [`Seal`] nothing has to.
//!
//! **What two replicas may differ in** is at any time within the union of both their active extents. An extent is active on a
//! replica from before the first write to it reaches the data until the mirror says that it has settled: every replica of the set
//! has all of it, on stable storage. A replica outside of the set differs, besides, in what the set's members noted that it lacks.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod conflict;
mod event;
mod grains;
mod heat;
mod marks;
mod mirror;
mod request;
mod reunite;
mod seal;

pub use event::{Effect, Event, ReplicaStatus, Status};
pub use grains::{EXTENT_BYTES, Extents, GRAIN_BYTES, Grains};
pub use marks::{Marks, MarksError, Record};
pub use mirror::{Limits, Mirror};
pub use request::{Answer, Change, Digest, Failure, Kind, Part, Request, RequestId, Tag};
pub use reunite::{Plan, Report, reunite};
pub use seal::{Seal, Unfit, take_over};

/// Milliseconds of elapsed time since some moment of this daemon's life.
pub type Millis = u64;
