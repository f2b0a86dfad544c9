//! A mirrored volume under faults: the real [`pollux_mirror::Mirror`], the real [`pollux_mirror::Marks`] of three replicas and the real
//! [`pollux_mirror::reunite`], single-threaded, in model time.
//!
//! ```text
//!   guest model --- requests ---> Mirror --- asks ---> link model ---> store model: Marks, a log, and a disk that loses
//!     ^ |                          real                (cut, slow)     what was not synced, tears writes and runs full
//!     | +-- oracle: what each unit may hold ---------------------------+ sees all disks at once
//!     +--- answers                  | ^ decisions
//!                                   v |
//!                                log model: the set, its version, the generation
//! ```
//!
//! Now and then the guest moves to another host, whose mirror begins with what the first one said, or with less; or comes back to
//! the first one's. Replicas are added, and removed.
//!
//! The oracle knows for each unit of the volume which values a legal disk could show: the last that was acknowledged; one of a
//! request that failed or was cut off; after a power failure anything not older than the last flush. What the guest reads must
//! be one of them, and stays what it is from then on. In the end faults stop, and all replicas must be in the set, equal, and
//! legal.

mod control;
mod digest;
mod guest;
mod host;
mod moving;
mod operator;
mod oracle;
mod run;
mod store;
mod world;

pub use control::Control;
pub use run::{Outcome, Settings, run};

/// Milliseconds of model time.
type Time = u64;

/// Bytes of the unit in which the model keeps content: a quarter of a grain, so that grains can be torn.
const UNIT_BYTES: u64 = pollux_mirror::GRAIN_BYTES / 4;
/// Extents of the volume.
const EXTENTS: u64 = 8;
/// By how much the volume is smaller than its extents, in units: it ends with an extent, within the last grain of one, at the end
/// of a grain, and early in its last extent.
const SHORT_BY: [u64; 4] = [0, 3, 4 * 37, 4 * 60 + 1];
/// Replicas in the beginning.
const REPLICAS: usize = 3;
/// At once, at most and at least.
const REPLICAS_MAX: usize = 4;
const REPLICAS_MIN: usize = 2;
