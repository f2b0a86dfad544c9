//! What must hold of every state, and of every step from one to the next (DESIGN, section 4).
//!
//! Written apart from `apply`, from the rules and not from the code, so that the two can disagree. Tests and simulations call
//! both checks after every entry: [`ClusterState::check`] looks at one state, [`check`] at what one proposal did to it. A
//! violation is a defect of Pollux, whatever the input was.

mod disk_steps;
mod disks;
mod moment;
mod step;

use alloc::string::String;

pub use step::check;

#[cfg(doc)]
use crate::ClusterState;

/// A rule that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {what}")]
pub struct Violation {
    /// The rule, as a sentence.
    pub rule: &'static str,
    /// What breaks it.
    pub what: String,
}

/// `Err` with the rule and the offender unless it holds.
fn hold(holds: bool, rule: &'static str, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { rule, what: what() }) }
}
