//! Protections that can be switched off, one at a time, to show that the simulation would notice (DESIGN, section 8).

use std::str::FromStr;

/// A defect put in on purpose. The defect "no generation check" is not here: it is a rule of the state machine, given as
/// [`super::Settings::rules`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// A source whose target keeps it waiting lets its guest go on by itself.
    ResumeOnTimeout,
    /// Each scan forgets one page that was written.
    ForgetOnePage,
    /// A target lets its guest act as soon as it has everything, without waiting for the log.
    ResumeBeforeCommit,
    /// A restarted target always claims that its earlier life had not let the guest act.
    AlwaysUntouched,
}

impl Control {
    /// All of them with the names by which the command line knows them.
    pub const ALL: [(&'static str, Self); 4] = [
        ("resume-on-timeout", Self::ResumeOnTimeout),
        ("forget-one-page", Self::ForgetOnePage),
        ("resume-before-commit", Self::ResumeBeforeCommit),
        ("always-untouched", Self::AlwaysUntouched),
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, control)| *control == self).map_or("", |(name, _)| name)
    }
}

impl FromStr for Control {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, control)| *control).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|(name, _)| *name).collect();
            format!("no such negative control; there are {}", names.join(", "))
        })
    }
}
