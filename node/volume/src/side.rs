//! One replica, as who mirrors it sees it: here or on another node.
//!
//! ```text
//!   Volume --- submit(ask) ---> Side        as often as it likes, nothing waits
//!          --- poll(cx) ------>             starts what was submitted
//!          <-- Done{tag} ------             what has ended, in any order
//!          <-- Broken{why} ----             once: nothing of it will be told any more
//! ```

use std::{
    ops::Range,
    task::{Context, Poll},
};

use pollux_disk::Piece;
use pollux_mirror::{Failure, Part, Tag};

/// Something asked of a replica.
#[derive(Debug, Clone)]
pub struct Ask {
    /// By which the answer is known; unique among those in flight.
    pub tag: Tag,
    /// What.
    pub part: Part,
    /// Where, in bytes.
    pub range: Range<u64>,
    /// What is to be written, as long as the range: of [`pollux_mirror::Change::Write`] and of [`Part::Copy`], otherwise none. Zeros
    /// become holes.
    pub data: Vec<Piece>,
}

/// The end of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Of which.
    pub tag: Tag,
    /// How. Pieces only of [`Part::Read`]: in order, without gaps, as long as the range; and of [`Part::Digest`], one of its 32 bytes.
    pub outcome: Result<Vec<Piece>, Failure>,
}

/// Nothing of what was asked will be told any more. What was asked may have been done, or may still be: the next session
/// with the replica begins when it is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Broken {
    /// Why, for people.
    pub why: String,
}

/// A replica in one session. Dropping it ends the session; what is under way is done to its end or not at all, and nobody is told.
pub trait Side: Send {
    /// Asks for something. It is started by the next [`Side::poll`] at the latest.
    ///
    /// The owner keeps the number in flight, and the bytes of their data, within limits of its own.
    fn submit(&mut self, ask: Ask);

    /// Starts what was submitted and appends what has ended to `done`: `Ready(Ok)` when that was at least one. `Pending`: the
    /// task is woken when there may be more, also when nothing is in flight.
    ///
    /// # Errors
    /// [`Broken`], once. After that it is pending for ever.
    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Done>) -> Poll<Result<(), Broken>>;

    /// What is asked of it goes over a link.
    fn is_far(&self) -> bool {
        false
    }
}

impl<S: Side + ?Sized> Side for Box<S> {
    fn submit(&mut self, ask: Ask) {
        (**self).submit(ask);
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Done>) -> Poll<Result<(), Broken>> {
        (**self).poll(cx, done)
    }

    fn is_far(&self) -> bool {
        (**self).is_far()
    }
}
