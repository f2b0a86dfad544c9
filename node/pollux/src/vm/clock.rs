//! The clock of the cores: milliseconds since the daemon started, those in which the host was suspended among them. What the log
//! said before a suspension has aged by it (DESIGN, rules 3 and 5).

use std::time::Duration;

use pollux_net::suspended;
use pollux_vm::Millis;
use tokio::time::Instant;

/// Where it begins.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    suspended: Duration,
    /// For how long the host was suspended since it booted.
    reading: fn() -> Duration,
}

impl Clock {
    /// One that begins now.
    #[must_use]
    pub fn start() -> Self {
        Self::start_by(suspended)
    }

    /// The same on a host that says otherwise for how long it was suspended.
    #[must_use]
    pub fn start_by(reading: fn() -> Duration) -> Self {
        Self { started: Instant::now(), suspended: reading(), reading }
    }

    /// What time it is.
    #[must_use]
    pub fn now(&self) -> Millis {
        super::millis(self.started.elapsed() + self.missed())
    }

    /// When a timer of this process, which stands still while the host is suspended, has to fire for it to be `at`.
    #[must_use]
    pub fn timer(&self, at: Millis) -> Instant {
        self.started + Duration::from_millis(at).saturating_sub(self.missed())
    }

    fn missed(&self) -> Duration {
        (self.reading)().saturating_sub(self.suspended)
    }
}

#[cfg(test)]
#[path = "clock_tests.rs"]
mod tests;
