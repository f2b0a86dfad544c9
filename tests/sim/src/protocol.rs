//! The migration protocol under faults: three nodes, the real [`pollux_state::ClusterState`] and the real
//! [`pollux_vm::VmCore`]s, single-threaded, in model time.
//!
//! What is real and what is a model:
//!
//! ```text
//!   users ----+            faults ---+                         an outside client
//!             v                      v                               |  ^ acknowledged counter values
//!         +-------+  entries   +-----------+ events  +--------+      v  |
//!         |  log  | ---------> |  daemon   | ------> | VmCore |   +-------------+
//!         | model | <--------- |  (shell   | <------ |  real  |   | guest model |
//!         +-------+  proposals |   model)  | effects +--------+   +-------------+
//!             |                +-----------+                         ^  |
//!         ClusterState,            |   ^  pages, messages            |  v frames
//!         real, one per node       v   |                           gate model
//!                                 links model
//! ```
//!
//! Between gate and LAN stands a model of the kernel's [`fence`]: daemons sleep, hosts are suspended, and an operator gives up what
//! was silent for long enough.
//!
//! The model of the log is one sequence of proposals. A proposal can be lost before it is appended, appended while its answer
//! is lost, or delayed for long; nodes apply the sequence in order and late; a node cut off from the quorum neither proposes
//! nor reads nor applies. The [`oracle`] sees everything at once, which no node does, and checks the rules on every step.
//!
//! Who owns what: [`world::World`] owns all of it; the files beside it each add what one part does.

mod agenda;
pub mod control;
mod daemon;
mod ending;
mod fault;
mod fence;
mod guest;
mod link;
mod log;
mod oracle;
mod run;
mod shell;
mod survival;
mod transfer;
mod user;
mod world;

pub use control::Control;
pub use run::{Outcome, Settings, run};

/// Milliseconds of model time.
type Time = u64;
