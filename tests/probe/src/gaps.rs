//! The longest time without an event, window by window.

use std::time::{Duration, Instant};

/// A stopwatch that starts again with every event and remembers the longest time it showed in this window.
#[derive(Debug)]
pub(crate) struct Gaps {
    last_event: Instant,
    longest: Duration,
}

impl Gaps {
    /// A gap is open from `start`: silence before the first event is silence.
    pub(crate) fn new(start: Instant) -> Self {
        Self { last_event: start, longest: Duration::ZERO }
    }

    /// Something happened; the open gap ends.
    pub(crate) fn event(&mut self, now: Instant) {
        self.longest = self.longest.max(now.saturating_duration_since(self.last_event));
        self.last_event = self.last_event.max(now);
    }

    /// Ends the window. The gap that is open counts with its length so far and stays open.
    pub(crate) fn close_window(&mut self, now: Instant) -> Duration {
        let open = now.saturating_duration_since(self.last_event);
        std::mem::take(&mut self.longest).max(open)
    }
}

/// Milliseconds with three digits after the point, as reports show them.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_across_a_mark_is_told_before_it_in_part_and_after_it_whole() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut gaps = Gaps::new(start);

        gaps.event(at(3));
        gaps.event(at(4));
        assert_eq!(gaps.close_window(at(10)), Duration::from_millis(6));
        gaps.event(at(24));
        gaps.event(at(25));
        assert_eq!(gaps.close_window(at(25)), Duration::from_millis(20));
        assert_eq!(gaps.close_window(at(26)), Duration::from_millis(1));
    }
}
