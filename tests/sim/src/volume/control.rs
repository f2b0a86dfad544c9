//! Protections that can be switched off, one at a time, to show that the simulation would notice (DESIGN, section 8).

use clap::ValueEnum;

/// A defect put in on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Control {
    /// The mirror is told that a replica has a write as soon as it was sent.
    AcknowledgeEarly,
    /// The mirror is told that a replica has left the set, and the log never hears of it.
    LeaveWithoutEntry,
    /// A replica takes writes of an older generation.
    AcceptOlder,
    /// A replica writes without marking the extent on disk first.
    NoActivityLog,
    /// A replica forgets one grain of what another one lacks.
    ForgetOneGrain,
    /// A replica says that it has flushed, and has not.
    FlushInVain,
    /// A guest moves with a seal although it has requests open.
    SealOpen,
    /// Of a replica that was added the members note only what is active.
    NoteTooLittle,
    /// A replica tells a digest of what it should hold.
    DigestInVain,
}

impl Control {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> String {
        crate::option_name(&self)
    }
}
