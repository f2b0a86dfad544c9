//! Defects that can be put in, one at a time, to show that the simulation would notice (DESIGN, section 8).

use std::str::FromStr;

/// A defect put in on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Each scan forgets one page that was written.
    ForgetOnePage,
    /// A guest that is paused goes on, with its gate open.
    PauseInVain,
    /// A node that crashes comes back with an empty disk.
    ForgetfulDisk,
}

impl Control {
    /// All of them with the names by which the command line knows them.
    pub const ALL: [(&'static str, Self); 3] = [
        ("forget-one-page", Self::ForgetOnePage),
        ("pause-in-vain", Self::PauseInVain),
        ("forgetful-disk", Self::ForgetfulDisk),
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
