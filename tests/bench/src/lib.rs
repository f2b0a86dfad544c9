//! What the benchmarks of this package have in common: how they end, the rows that all of them print, and cables that carry less.

mod cable;
mod ending;
mod row;

pub use cable::slow_down;
pub use ending::{INTERRUPTED, unless_interrupted};
pub use row::{Row, Spread};
