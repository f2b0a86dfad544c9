//! Protections that can be switched off, one at a time, to show that the simulation would notice (DESIGN, section 8).

use clap::ValueEnum;

/// A defect put in on purpose. The defect "no generation check" is not here: it is a rule of the state machine, given as
/// [`super::Settings::rules`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Control {
    /// A source whose target keeps it waiting lets its guest go on by itself.
    ResumeOnTimeout,
    /// Each scan forgets one page that was written.
    ForgetOnePage,
    /// A target lets its guest act as soon as it has everything, without waiting for the log.
    ResumeBeforeCommit,
    /// A restarted target always claims that its earlier life had not let the guest act.
    AlwaysUntouched,
    /// A restarted target never knows that its earlier life had not let the guest act.
    NeverUntouched,
    /// A restarted source does not wait for what its target has to say.
    HastySource,
    /// After a machine's end, what became of letting its guest run is not waited for.
    EndsOutrunResumes,
    /// After a machine's end, whether everything was handed over is not waited for.
    EndsOutrunHandOvers,
    /// A daemon that ends in order does not say before what only it knows.
    SilentLeaving,
    /// An operator declares lost what is only out of reach.
    CarelessOperator,
    /// An operator declares lost what has been silent for less than the fence's time.
    HastyOperator,
    /// What the log once answered counts as current for ever.
    AnswersNeverAge,
    /// The cores' clock stands still while the host is suspended.
    CoresClockStandsStill,
    /// There is no fence: what passes the gate is out.
    NoFence,
    /// The fence does not see that the host was suspended.
    FenceSleepsToo,
}

impl Control {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> String {
        crate::option_name(&self)
    }
}
