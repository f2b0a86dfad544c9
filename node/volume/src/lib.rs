//! One volume on one node: its replicas here, and the way to those elsewhere.
//!
//! ```text
//!   Volume (where the guest runs) --Ask--> Side: a Keeper ----------------------------------> replica of this node
//!          <------------------------Done--       a Remote --bulk link--> session --> Keeper -> replica of another node
//! ```
//!
//! [`Side`] is one replica as who mirrors it sees it, wherever it is. A keeper carries out on this node what is asked of a replica:
//! it marks what may differ before it differs, in a log beside the data (DESIGN, rule 14), and refuses whoever was overtaken (rule
//! 4). The node's registry of keepers hands a replica to one session at a time, the newest; a newer one waits until nothing of the
//! older one is under way any more.

#[cfg(fuzzing)]
pub mod fuzzing;

mod claim;
mod digest;
mod drive;
mod flash;
mod keeper;
mod keepers;
mod log;
mod refusal;
mod session;
mod side;
mod volume;

pub use claim::{Claim, Door, Opened, Place, SessionId};
pub use drive::{Drive, DriveHandle};
pub use flash::{Flash, FlashHandle, PrepareError, prepare};
pub use keeper::Keeper;
pub use keepers::{Keepers, boot_id};
pub use refusal::Refusal;
pub use session::{BYTES_IN_FLIGHT_MAX, OPEN_MAX, REQUESTS_IN_FLIGHT_MAX, Remote, RemoteError, SessionEnd, serve};
pub use side::{Ask, Broken, Done, Side};
pub use volume::{
    Comparison, Difference, Handover, Plan, Reached, ReplicaState, Set, SetChange, StartError, Volume, VolumeHandle,
    VolumeStatus, Ways,
};
