//! A run that broke a rule, as it is told: with what replays it.

use std::fmt;

/// A run that broke a rule.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Which simulation, as the command line names it.
    pub(crate) simulation: &'static str,
    /// Its seed.
    pub seed: u64,
    /// The rule, and what broke it.
    pub what: String,
    /// The last lines of what happened.
    pub tail: Vec<String>,
    /// What the command line needs besides the seed.
    pub(crate) options: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { simulation, seed, what, tail, options } = self;
        for line in tail {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {seed}: {what}")?;
        write!(f, "replay: cargo run -p pollux-sim -- {simulation} --seed {seed} --trace{options}")
    }
}
