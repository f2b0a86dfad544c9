//! The guests that are moved: how large they are, and what they do meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use pollux_probe::guest::Guest;

/// Longest wait for the guest to fill or to check its memory.
const ANSWER_MAX: Duration = Duration::from_secs(180);

/// A guest to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// 512 MiB, of which it uses little, and it does nothing.
    Idle,
    /// 1 GiB; rewrites 512 MiB of text, page after page, at 50 MB/s.
    Dirty50,
    /// 1 GiB, three quarters of it filled with random data; it does nothing.
    Random,
}

impl Case {
    pub(crate) const ALL: [Self; 3] = [Self::Idle, Self::Dirty50, Self::Random];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Dirty50 => "dirty50",
            Self::Random => "random",
        }
    }

    /// Its memory, in MiB.
    pub(crate) fn memory_mib(self) -> u32 {
        match self {
            Self::Idle => 512,
            Self::Dirty50 | Self::Random => 1024,
        }
    }

    /// What the booted guest is asked for before it is moved, in the words of its line protocol.
    fn requests(self) -> &'static [&'static str] {
        match self {
            Self::Idle => &[],
            Self::Dirty50 => &["FILL 512 text", "DIRTY 512 50"],
            Self::Random => &["FILL 768 random"],
        }
    }

    /// Has the guest do what this case is about. Returns when it does.
    pub(crate) fn prepare(self, connect: impl Fn(Duration) -> Result<Guest>) -> Result<()> {
        self.requests().iter().try_for_each(|request| ask(&connect, request))
    }

    /// Has the guest compare every word of what it filled with what must be there.
    pub(crate) fn check(self, connect: impl Fn(Duration) -> Result<Guest>) -> Result<()> {
        if self.requests().is_empty() { Ok(()) } else { ask(&connect, "CHECK") }
    }
}

fn ask(connect: &impl Fn(Duration) -> Result<Guest>, request: &str) -> Result<()> {
    let answer = connect(ANSWER_MAX)?.ask(request);
    let answer = answer.with_context(|| format!("the guest did not answer {request}"))?;
    if !answer.starts_with("OK") {
        bail!("the guest answered {request} by {answer:?}");
    }
    Ok(())
}
