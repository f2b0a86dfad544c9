//! When to switch over, and when to say that it will never work.
//!
//! The rule is the one every pre-copy uses (Clark et al., NSDI 2005): stop when what is left fits the budget; give up when
//! rounds stop shrinking. The guest's time to save and load device state is added as a constant.

use alloc::{format, string::String};

use crate::{event::RoundReport, pages::PAGE_BYTES};

/// Rounds in a row that may fail to shrink the rest to [`SHRINK_PERCENT`] before the move is given up.
pub const STALLED_ROUNDS_MAX: u32 = 6;
/// A round that leaves more than this share of what the one before left has not helped.
pub const SHRINK_PERCENT: u64 = 90;
/// No move needs more.
pub const ROUNDS_MAX: u32 = 60;
/// What a switchover costs besides the last pages, in milliseconds: stop 1, save 7, load 8 to 22, continue 4 (DESIGN,
/// section 5), and the commit, which is measured and added.
pub const FIXED_MS: u64 = 30;

/// What to do after a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// What is left fits the budget.
    SwitchOver,
    /// Another round.
    Again,
    /// It does not converge: why, in numbers.
    Hopeless(String),
}

/// Learns the speeds of link and guest from the rounds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forecast {
    bytes_per_s: u64,
    dirty_pages_per_s: u64,
    last_pending: Option<u64>,
    stalled: u32,
}

impl Forecast {
    /// Memory bytes the link carried per second in the last telling round.
    #[must_use]
    pub fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    /// Pages the guest wrote per second during the last round.
    #[must_use]
    pub fn dirty_pages_per_s(&self) -> u64 {
        self.dirty_pages_per_s
    }

    /// Milliseconds a switchover would take with `pending_pages` left and a commit that takes `commit_ms`.
    #[must_use]
    pub fn blackout_ms(&self, pending_pages: u64, commit_ms: u64) -> u64 {
        let bytes = pending_pages.saturating_mul(PAGE_BYTES as u64);
        let copy_ms = match self.bytes_per_s {
            0 => 0,
            rate => bytes.saturating_mul(1000) / rate,
        };
        copy_ms.saturating_add(FIXED_MS).saturating_add(commit_ms)
    }

    /// Round `round` went like `report` and left `pending_pages`: what now?
    pub fn after_round(
        &mut self,
        round: u32,
        report: RoundReport,
        pending_pages: u64,
        commit_ms: u64,
        budget_ms: u64,
    ) -> Verdict {
        let took_ms = report.took_ms.max(1);
        // Zero pages cost next to nothing, so that only real ones tell the speed of the link; tiny rounds tell nothing.
        let bytes = (report.pages - report.zero_pages.min(report.pages)).saturating_mul(PAGE_BYTES as u64);
        if bytes >= 1 << 20 || self.bytes_per_s == 0 {
            self.bytes_per_s = bytes.saturating_mul(1000) / took_ms;
        }
        self.dirty_pages_per_s = pending_pages.saturating_mul(1000) / took_ms;

        let predicted = self.blackout_ms(pending_pages, commit_ms);
        if predicted <= budget_ms {
            return Verdict::SwitchOver;
        }
        let shrunk = self.last_pending.is_none_or(|before| pending_pages < before.saturating_mul(SHRINK_PERCENT) / 100);
        self.last_pending = Some(pending_pages);
        self.stalled = if shrunk { 0 } else { self.stalled + 1 };
        if self.stalled >= STALLED_ROUNDS_MAX || round >= ROUNDS_MAX {
            return Verdict::Hopeless(self.report(round, predicted, budget_ms));
        }
        Verdict::Again
    }

    fn report(&self, round: u32, predicted: u64, budget_ms: u64) -> String {
        let mib = |bytes: u64| bytes >> 20;
        format!(
            "the guest writes memory faster than the link carries it: after {round} rounds it writes {} MiB/s and the link \
             carries {} MiB/s, so a switchover would take {predicted} ms where {budget_ms} ms are allowed; try again when \
             the guest is calmer or allow --max-blackout {predicted}ms",
            mib(self.dirty_pages_per_s.saturating_mul(PAGE_BYTES as u64)),
            mib(self.bytes_per_s),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(pages: u64, took_ms: u64) -> RoundReport {
        RoundReport { pages, zero_pages: 0, wire_bytes: pages * 4096, took_ms }
    }

    #[test]
    fn a_quiet_guest_is_switched_after_one_round() {
        let mut forecast = Forecast::default();
        // 100,000 pages in 1 s are 390 MiB/s; 210 pages more take 2 ms.
        assert_eq!(forecast.after_round(1, round(100_000, 1000), 210, 5, 300), Verdict::SwitchOver);
        assert_eq!(forecast.blackout_ms(210, 5), 2 + FIXED_MS + 5);
    }

    #[test]
    fn shrinking_rounds_go_on_until_the_rest_fits() {
        let mut forecast = Forecast::default();
        assert_eq!(forecast.after_round(1, round(100_000, 1000), 50_000, 5, 300), Verdict::Again);
        assert_eq!(forecast.after_round(2, round(50_000, 500), 25_000, 5, 300), Verdict::SwitchOver);
    }

    #[test]
    fn a_guest_faster_than_the_link_is_given_up_with_both_speeds_named() {
        let mut forecast = Forecast::default();
        let mut rounds = 0;
        let report = loop {
            rounds += 1;
            match forecast.after_round(rounds, round(50_000, 1000), 50_000, 5, 300) {
                Verdict::Again => {}
                Verdict::Hopeless(report) => break report,
                Verdict::SwitchOver => panic!("50,000 pages do not fit 300 ms at 50,000 pages per second"),
            }
        };
        assert_eq!(rounds, STALLED_ROUNDS_MAX + 1);
        assert!(report.contains("writes 195 MiB/s") && report.contains("carries 195 MiB/s"), "{report}");
    }

    #[test]
    fn slow_progress_ends_too() {
        let mut forecast = Forecast::default();
        let mut pending = 1 << 40;
        let rounds = (1..).find(|round_number| {
            pending = pending * 85 / 100;
            matches!(forecast.after_round(*round_number, round(50_000, 1000), pending, 5, 300), Verdict::Hopeless(_))
        });
        assert_eq!(rounds, Some(ROUNDS_MAX));
    }
}
