//! Whole nodes, simulated: the real consensus, the real link (QUIC and TLS included) and the real VM actors, on a network, a
//! clock, disks and machines that a seed decides.
//!
//! [`run`] plays one seed on turmoil, which gives every node a runtime of its own with a clock of its own and carries its
//! datagrams. First the *safety phase*: users create one VM and move it round and round while nodes crash (their process or
//! their host's power), links break in one or both directions, hold, delay and lose datagrams, several at once. The rules
//! ([`crate::Failure`] names the one that broke) are checked on every step. Then the *liveness phase*: faults stop, and within
//! [`run::CALM_MAX`] the VM must run on exactly one node with its gate open, every node must have the same state, and what
//! was acknowledged to the user must be in it.
//!
//! ```text
//!   run ── crash, partition, ask ──> turmoil ──> node: Endpoint ── Consensus ── Vms ── model machine (guest)
//!    └──── rules <── recorder <── applied states (watch), frames, memory ────────────────────────┘
//! ```
//!
//! What a seed fixes: faults, users, latencies, elections, connection ids, operation ids, machines. What it does not fix: the
//! keys of TLS and with them the lengths of certificates and signatures; the order in which an unbiased `select!` of tokio
//! looks (a runtime's own seed can be set only in a build with `tokio_unstable`); the order of standard hash maps; and the
//! wall clock that proposals carry for people. So most seeds replay to the millisecond, and some part ways after a crash by
//! a datagram; a failure that depends on such an order may need its seed run a few times.

mod control;
mod fault;
mod guest;
mod machine;
mod node;
mod recorder;
pub mod run;
mod service;
mod socket;
mod user;

pub use control::Control;
pub use run::{Outcome, Settings, run};
