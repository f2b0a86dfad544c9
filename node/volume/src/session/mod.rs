//! A replica of another node: one session of the bulk class, in both directions.
//!
//! ```text
//!   Volume --> Remote == Open ================================> serve --> Door: may it? --> Keepers::open
//!                     <=== Opened{report, boot} or a refusal ==
//!                     == asks, with what is to be written =====>  Keeper
//!                     <============ ends, with what was read ==
//! ```
//!
//! [`frames`] is what goes over the stream, pure. [`Remote`] is driven by the task of the volume, and [`serve`] by the stream's own:
//! neither has a task besides. Bounded: the one who asks keeps within limits of its own, and the one who is asked reads no further
//! while [`REQUESTS_IN_FLIGHT_MAX`] or [`BYTES_IN_FLIGHT_MAX`] are reached, so that the stream's window fills. A stream that ends, in
//! whatever way, ends the session; what was begun is done to its end, and the next session waits for that.

pub(crate) mod frames;
mod outbox;
mod remote;
mod serve;

use std::time::Duration;

use pollux_mirror::Marks;
use pollux_wire::id::{Generation, Incarnation, ReplicaId, VolumeId};
use serde::{Deserialize, Serialize};

pub use self::{
    remote::{Remote, RemoteError},
    serve::{SessionEnd, serve},
};
use crate::{claim::SessionId, refusal::Refusal};

/// What one session may have under way at the replica: asks.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 256;
/// And bytes of data, from the reading of an ask to the sending of its end. One ask more is taken while there are fewer. Twice what a
/// guest may have under way: a stream that is not read takes from the window that all streams of the connection share, so this is for who
/// does not keep to limits.
pub const BYTES_IN_FLIGHT_MAX: usize = 128 << 20;
/// How long the beginning of a session may take, what an older one has under way included.
pub const OPEN_MAX: Duration = Duration::from_secs(10);
/// Guests wait for what is in these: they go before pages of a move, and after what people type.
const PRIORITY: i32 = 0;
/// Bytes that are read of a stream before they are looked at.
const INBOX_BYTES: usize = 1 << 20;

/// What a session begins with. Whose it is tells the link.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Open {
    volume: VolumeId,
    replica: ReplicaId,
    generation: Generation,
    incarnation: Incarnation,
    session: SessionId,
    size: u64,
}

/// And what is said to that.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Answer {
    Opened { report: Marks, boot: String },
    Refused(Refusal),
}
