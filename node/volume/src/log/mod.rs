//! A replica's log: what it may differ in, what others lack, and the highest generation that it has seen, on disk before any of it is
//! relied on.
//!
//! [`frames`] is its bytes, [`ledger`] who waits for what of it to be on stable storage: both pure. [`file`] is the file `log` beside
//! the replica's data.

mod bits;
pub(crate) mod file;
pub(crate) mod frames;
pub(crate) mod ledger;
