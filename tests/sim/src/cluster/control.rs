//! Defects that can be put in, one at a time, to show that the simulation would notice (DESIGN, section 8).

use clap::ValueEnum;

/// A defect put in on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Control {
    /// Each scan forgets one page that was written.
    ForgetOnePage,
    /// A guest that is paused goes on, with its gate open.
    PauseInVain,
    /// A node that crashes comes back with an empty disk.
    ForgetfulDisk,
}

impl Control {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> String {
        crate::option_name(&self)
    }
}
