//! Whether the whole host was suspended: the kernel's timers stand still then, and count on as if nothing had been.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Two readings of [`suspended`] that differ by less are the same one: the clocks are read one after the other.
const SAME: Duration = Duration::from_millis(50);

/// Readings of the two clocks that are further apart say nothing: the process was not scheduled between them.
const APART_MAX: Duration = Duration::from_millis(10);
/// So often they are read again.
const TRIES_MAX: u32 = 100;

/// For how long this host was suspended since it booted.
#[must_use]
pub fn suspended() -> Duration {
    let read = |clock| {
        let time = clock_gettime(clock);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    };
    let mut tries = 0;
    loop {
        let before = read(ClockId::Monotonic);
        let boot = read(ClockId::Boottime);
        let apart = read(ClockId::Monotonic).saturating_sub(before);
        tries += 1;
        if apart < APART_MAX || tries == TRIES_MAX {
            return boot.saturating_sub(before);
        }
    }
}

/// Was the host suspended between two readings of [`suspended`]?
pub(crate) fn slept(before: Duration, after: Duration) -> bool {
    after.abs_diff(before) > SAME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_awake_was_not_suspended_between_two_readings() {
        let before = suspended();
        for _ in 0..1_000 {
            assert!(!slept(before, suspended()));
        }
        assert!(slept(before, before + Duration::from_secs(1)));
    }
}
