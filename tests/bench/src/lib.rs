//! What the benchmarks of this package have in common: how they end, and the rows that all of them print.

mod ending;
mod row;

pub use ending::{INTERRUPTED, unless_interrupted};
pub use row::{Row, Spread};
