//! The cluster's log: openraft over a redb store, and what openraft leaves to its user.
//!
//! Owned by the daemon, which starts one [`Consensus`] per node, hands it what other nodes' consensus layers send
//! ([`Consensus::serve`]) and otherwise uses four verbs: *found* a cluster, *propose* an entry, *watch* the applied state,
//! and read *linearizably*. It ends with [`Consensus::shutdown`].
//!
//! ```text
//!   daemon --propose--> Consensus --------> openraft core ---> LogStore ---> redb, one writer thread
//!          <--View----- StateMachine <----- (own task)    <---
//!   link   --serve----> append, vote, snapshot | proposals of followers | read index | heartbeats
//!          <--call----- Peers: the same to the others
//! ```
//! Tasks of a node, all from start to shutdown: openraft's own; [`knowledge`] (what its core knows about leadership),
//! [`elections`] (may this node stand?), [`leader`] (whom it hears), [`members`] (the leader brings joined nodes in, keeps
//! the voters alive and lets removed nodes go), [`liveness`] (heartbeats and the leader's failure detector).
//!
//! The rules kept here are DESIGN's 2 ("unknown" is not "no": [`propose`]) and 3 (read before acting: [`read`]), and that
//! a vote is on disk before it is given, an entry before it is acknowledged ([`store`]).

mod consensus;
mod counts;
mod elections;
mod encoding;
mod knowledge;
mod leader;
mod liveness;
mod members;
mod message;
mod over_link;
mod peers;
mod propose;
mod read;
mod removal;
mod runtime;
mod serve;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod timing;
mod types;
mod voters;

pub use consensus::{Config, Consensus, FoundError, StartError};
pub use counts::Counts;
pub use liveness::{HEARTBEAT_EVERY, LivenessError};
pub use over_link::FAULT_NOT_ALLOWED;
pub use pollux_state::detector::{NodeHealth, Verdict};
pub use propose::ProposeError;
pub use read::ReadError;
pub use removal::Removal;
pub use status::{Role, Status};
pub use store::{
    disk::{Store, StoreError, StoreId},
    machine::View,
    memory::MemoryDisk,
};
pub use timing::{Retention, Timing};
pub use voters::{VOTERS_MAX, voters_of};
