//! The daemon: one per node, started by `pollux node run`, ended by a signal.
//!
//! It opens what the node keeps ([`dir`]), binds the [link](pollux_link), starts the consensus layer, has its incarnation
//! committed, and only then looks after VMs. The API answers from the first moment on, and says what is missing.
//!
//! ```text
//!   start: dir, lock -> link -> consensus -> API -> incarnation committed -> linearizable read -> VMs
//!   end:   VMs (machines end) -> API -> consensus -> link
//! ```

mod admission;
mod backend;
mod console;
mod dir;
mod facts;
mod forward;
mod founding;
mod measure;
mod preflight;
mod problems;
mod removal;
mod run;
mod service;
mod storage;
mod views;
mod why;

pub use crate::metrics::MetricsError;
pub use founding::{InitError, InitReport, JoinRefused, JoinReport, init, join};
pub use run::{RunConfig, RunError, run};
