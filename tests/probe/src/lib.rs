//! The client outside: it talks to the test guest as a user's client would and writes down what it saw.
//!
//! Three instruments, each a few threads that run from `start` to `finish` and can be asked for a report in between. They
//! measure and never judge; what is too much is the caller's to say.
//!
//! - [`blackout`] sends a datagram every millisecond and knows the longest gap between two answers.
//! - [`ledger`] keeps TCP connections busy and holds the guest to every request that it acknowledged.
//! - [`owners`] watches the nodes' TAPs and knows whether two copies of the guest ever emitted frames at the same time.
//!
//! Their time is cut into *windows*: a window ends when the caller says so, and whatever ends in it is told in its report. A gap
//! that is still open at that moment counts in the window that ends, and again, at its full length, in the one where it ends:
//! no gap gets shorter by a mark in its middle.
//!
//! The binary of the same name runs one instrument, takes `mark NAME` lines on standard input and prints one line of JSON for
//! every window; at the end of input it prints the total and ends. Its other commands serve scripts.

pub mod blackout;
pub mod guest;
pub mod instrument;
pub mod ledger;
pub mod owners;
pub mod summary;

mod gaps;
