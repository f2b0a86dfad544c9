//! Simulations of whole clusters in which one seed decides everything (DESIGN, section 8).
//!
//! Each simulation has a safety phase, in which faults happen and every rule is checked on every step, and a liveness phase,
//! in which faults stop and the cluster must converge. A failing seed prints how to replay it.
//!
//! - [`protocol`]: the migration protocol. The real state machine and the real VM cores, around model guests, links, a model
//!   of the replicated log, and a model of the shell.
//! - [`volume`]: a mirrored volume. The real mirror and the real marks of its replicas, around a model guest and disks that lose
//!   what was not synced.
//! - [`cluster`]: whole daemons. The real consensus over the real link and the real VM actors, around a simulated network,
//!   simulated disks and model machines.

mod agenda;
pub mod cluster;
mod failure;
mod panics;
pub mod protocol;
mod rng;
mod trace;
pub mod volume;

pub use failure::Failure;
pub use rng::Rng;

/// A value as the command line names it.
fn option_name(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
