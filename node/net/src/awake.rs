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
    suspended_by(|clock| {
        let time = clock_gettime(clock);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    })
}

/// The same of a host with these clocks: what counts the time that it was suspended has run ahead by it of what does not.
fn suspended_by(read: impl Fn(ClockId) -> Duration) -> Duration {
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
    use std::cell::{Cell, RefCell};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// A host whose every look at a clock takes a moment, or what is said before.
    #[derive(Default)]
    struct Host {
        awake: Cell<Duration>,
        suspended: Cell<Duration>,
        /// How long the next looks take.
        interruptions: RefCell<Vec<Duration>>,
        looks: Cell<u32>,
    }

    impl Host {
        fn booted_an_hour_ago() -> Self {
            let host = Self::default();
            host.awake.set(60 * MINUTE);
            host
        }

        fn read(&self, clock: ClockId) -> Duration {
            self.looks.set(self.looks.get() + 1);
            let took = self.interruptions.borrow_mut().pop().unwrap_or(Duration::from_micros(1));
            self.awake.set(self.awake.get() + took);
            if clock == ClockId::Boottime {
                return self.awake.get() + self.suspended.get();
            }
            assert_eq!(clock, ClockId::Monotonic, "it says nothing of suspensions");
            self.awake.get()
        }

        fn reading(&self) -> Duration {
            suspended_by(|clock| self.read(clock))
        }
    }

    #[test]
    fn what_is_read_grows_by_the_time_of_a_suspension_and_by_no_other() {
        let host = Host::booted_an_hour_ago();
        let first = host.reading();
        assert!(first < SAME, "it never was: {first:?}");

        host.awake.set(host.awake.get() + MINUTE);
        assert!(!slept(first, host.reading()), "a minute went by, awake");

        host.suspended.set(MINUTE);
        let second = host.reading();
        assert!(slept(first, second));
        assert!(second.abs_diff(MINUTE) < SAME, "{second:?}");
    }

    /// It is not scheduled for a second between the looks at the two clocks.
    #[test]
    fn a_busy_host_does_not_seem_to_have_been_suspended() {
        let host = Host::booted_an_hour_ago();
        let before = host.reading();
        for place in 0..3 {
            let mut looks = vec![Duration::from_micros(1); 3];
            looks[place] = Duration::from_secs(1);
            looks.reverse();
            *host.interruptions.borrow_mut() = looks;
            assert!(!slept(before, host.reading()), "an interruption before look {place}");
        }
    }

    #[test]
    fn a_host_that_is_always_busy_is_not_looked_at_for_ever() {
        let host = Host::booted_an_hour_ago();
        *host.interruptions.borrow_mut() = vec![MINUTE; 10_000];
        host.reading();
        assert_eq!(host.looks.get(), 3 * TRIES_MAX);
    }

    #[test]
    fn a_host_that_is_awake_was_not_suspended_between_two_readings() {
        let before = suspended();
        for _ in 0..1_000 {
            assert!(!slept(before, suspended()));
        }
        assert!(slept(before, before + Duration::from_secs(1)));
    }
}
