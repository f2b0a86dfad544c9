//! When to switch over, and when to say that it will never work.
//!
//! The rule is the one every pre-copy uses (Clark et al., NSDI 2005): stop when what is left fits the budget; give up, or
//! slow the guest down, when rounds stop shrinking. The budget is a limit and no goal: as long as a further round still
//! shrinks what is left by much, it is worth its milliseconds, and the switch comes at the minimum that follows. The guest's
//! time to save and load device state is added as a constant.
//!
//! [`plan`] plays the same rule forward for a guest of which only speeds are known: what `--dry-run` shows is decided by the
//! code that will decide.

use alloc::{format, string::String};

use serde::{Deserialize, Serialize};

use crate::{event::RoundReport, pages::PAGE_BYTES};

/// Rounds in a row that may fail to shrink the rest to [`SHRINK_PERCENT`] before the move counts as stalled, if nothing can
/// be done about it: the guest may become calmer by itself.
pub const STALLED_ROUNDS_MAX: u32 = 6;
/// The same if the guest can be slowed down: every further round is a time of brownout in vain. QEMU's auto-converge waits
/// for two, too.
pub const STALLED_ROUNDS_BEFORE_THROTTLE: u32 = 2;
/// A round that leaves more than this share of what the one before left has not helped.
pub const SHRINK_PERCENT: u64 = 90;
/// No move needs more, between two steps of the throttle.
pub const ROUNDS_MAX: u32 = 60;
/// What a switchover costs besides the last pages, in milliseconds: stop 1, save 7, load 8 to 22, continue 4 (DESIGN,
/// section 5), and the commit, which is measured and added.
pub const FIXED_MS: u64 = 30;
/// What fits the budget is copied once more if that takes longer than this, in milliseconds: less is lost in [`FIXED_MS`].
pub const GOOD_ENOUGH_MS: u64 = 3;
/// A further round must leave less than this share of what fitted already.
pub const WORTHWHILE_PERCENT: u64 = 70;
/// So many rounds may follow the first that fitted: the guest may become busier any moment.
pub const FITTING_ROUNDS_MAX: u32 = 8;
/// By how many percent a guest is slowed down, step by step. QEMU's auto-converge begins with 20 and ends with 99, too.
pub const THROTTLE_PERCENTS: [u8; 6] = [20, 40, 60, 80, 90, THROTTLE_PERCENT_MAX];
/// The last step.
pub const THROTTLE_PERCENT_MAX: u8 = 99;

/// The next step of the throttle, if there is one.
#[must_use]
pub fn slower(percent: u8) -> Option<u8> {
    THROTTLE_PERCENTS.into_iter().find(|step| *step > percent)
}

/// How many rounds in vain are waited for.
#[must_use]
pub fn patience(may_throttle: bool, percent: u8) -> u32 {
    if may_throttle && slower(percent).is_some() { STALLED_ROUNDS_BEFORE_THROTTLE } else { STALLED_ROUNDS_MAX }
}

/// What to do after a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// What is left fits the budget, and a further round would not help.
    SwitchOver,
    /// Another round.
    Again,
    /// It does not converge: why, in numbers. Another round may follow, with a slower guest.
    Stalled(String),
}

/// Learns the speeds of link and guest from the rounds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forecast {
    bytes_per_s: u64,
    dirty_pages_per_s: u64,
    last_pending: Option<u64>,
    stalled: u32,
    /// Rounds since the last step of the throttle.
    rounds: u32,
    /// Rounds in a row after which the rest fitted the budget.
    fitting: u32,
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

    /// Round `round` went like `report` and left `pending_pages`: what now? `stalled_max`: [`STALLED_ROUNDS_MAX`], or
    /// [`STALLED_ROUNDS_BEFORE_THROTTLE`].
    pub fn after_round(
        &mut self,
        round: u32,
        report: RoundReport,
        pending_pages: u64,
        commit_ms: u64,
        budget_ms: u64,
        stalled_max: u32,
    ) -> Verdict {
        let took_ms = report.took_ms.max(1);
        // Zero pages cost next to nothing, so that only real ones tell the speed of the link; tiny rounds tell nothing.
        let bytes = (report.pages - report.zero_pages.min(report.pages)).saturating_mul(PAGE_BYTES as u64);
        if bytes >= 1 << 20 || self.bytes_per_s == 0 {
            self.bytes_per_s = bytes.saturating_mul(1000) / took_ms;
        }
        self.dirty_pages_per_s = pending_pages.saturating_mul(1000) / took_ms;

        let predicted = self.blackout_ms(pending_pages, commit_ms);
        let shrunk =
            |percent: u64| self.last_pending.is_none_or(|before| pending_pages < before.saturating_mul(percent) / 100);
        let (helped, worthwhile) = (shrunk(SHRINK_PERCENT), shrunk(WORTHWHILE_PERCENT));
        self.last_pending = Some(pending_pages);
        self.rounds += 1;
        if predicted <= budget_ms {
            self.fitting += 1;
            let copy_ms = predicted - FIXED_MS - commit_ms;
            let enough = copy_ms <= GOOD_ENOUGH_MS || !worthwhile || self.fitting > FITTING_ROUNDS_MAX;
            return if enough { Verdict::SwitchOver } else { Verdict::Again };
        }
        self.fitting = 0;
        self.stalled = if helped { 0 } else { self.stalled + 1 };
        if self.stalled >= stalled_max || self.rounds >= ROUNDS_MAX {
            (self.stalled, self.rounds) = (0, 0);
            return Verdict::Stalled(self.report(round, predicted, budget_ms));
        }
        Verdict::Again
    }

    fn report(&self, round: u32, predicted: u64, budget_ms: u64) -> String {
        let mib = |bytes: u64| bytes >> 20;
        format!(
            "the guest writes memory faster than the link carries it: after {round} rounds it writes {} MiB/s and the link \
             carries {} MiB/s, so a switchover would take {predicted} ms where {budget_ms} ms are allowed",
            mib(self.dirty_pages_per_s.saturating_mul(PAGE_BYTES as u64)),
            mib(self.bytes_per_s),
        )
    }
}

/// A guest and a link as far as a short sample tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Pages of memory that were ever written.
    pub pages: u64,
    /// Of these, the share that is zero, in thousandths.
    pub zero_permille: u64,
    /// Bytes on the wire for each thousand bytes of memory that is not zero: less than 1000 where it can be packed.
    pub wire_permille: u64,
    /// Pages the guest writes per second, each counted once.
    pub dirty_pages_per_s: u64,
    /// No more different pages than this are ever dirty at once: the guest's working set.
    pub dirty_pages_max: u64,
    /// Bytes of memory that are not zero, which source, link and target deal with per second.
    pub bytes_per_s: u64,
    /// A quorum's round trip, in milliseconds.
    pub commit_ms: u64,
}

/// What a move will probably cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Passes over memory, the last one (paused) included.
    pub rounds: u32,
    /// From begin to end, in milliseconds.
    pub total_ms: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// The pause, in milliseconds: what a network adds until a client hears of the guest again is not in it.
    pub blackout_ms: u64,
    /// By how many percent the guest will be slowed down.
    pub throttle_percent: u8,
    /// Why it will not converge, if it will not.
    pub stalls: Option<String>,
}

/// Plays a move of that guest forward, by the rule of [`Forecast::after_round`].
#[must_use]
pub fn plan(sample: &Sample, budget_ms: u64, may_throttle: bool) -> Plan {
    let mut forecast = Forecast::default();
    let real = |pages: u64| pages.saturating_mul(1000 - sample.zero_permille.min(1000)) / 1000;
    let page = PAGE_BYTES as u64;
    let wire = |pages: u64| pages.saturating_mul(page).saturating_mul(sample.wire_permille) / 1000;
    let copy_ms = |pages: u64| pages.saturating_mul(page).saturating_mul(1000).div_ceil(sample.bytes_per_s.max(1));
    let mut plan = Plan { rounds: 0, total_ms: 0, wire_bytes: 0, blackout_ms: 0, throttle_percent: 0, stalls: None };
    // The first round meets the zero pages, too; later ones only what was just written.
    let (mut pages, mut sent) = (sample.pages, real(sample.pages));
    loop {
        plan.rounds += 1;
        let took_ms = copy_ms(sent).max(1);
        plan.total_ms += took_ms;
        plan.wire_bytes += wire(sent);
        let speed = u64::from(100 - plan.throttle_percent);
        let written = sample.dirty_pages_per_s.saturating_mul(speed) / 100;
        let pending = (written.saturating_mul(took_ms) / 1000).min(sample.dirty_pages_max);
        let report = RoundReport { pages, zero_pages: pages - sent, wire_bytes: wire(sent), took_ms };
        let patience = patience(may_throttle, plan.throttle_percent);
        let verdict = forecast.after_round(plan.rounds, report, pending, sample.commit_ms, budget_ms, patience);
        (pages, sent) = (pending, pending);
        match verdict {
            Verdict::Again => {}
            Verdict::SwitchOver => break,
            Verdict::Stalled(why) => match slower(plan.throttle_percent).filter(|_| may_throttle) {
                Some(percent) => plan.throttle_percent = percent,
                None => {
                    plan.stalls = Some(why);
                    break;
                }
            },
        }
    }
    plan.rounds += 1;
    plan.blackout_ms = copy_ms(sent) + FIXED_MS + sample.commit_ms;
    plan.total_ms += plan.blackout_ms;
    plan.wire_bytes += wire(sent);
    plan
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
        assert_eq!(forecast.after_round(1, round(100_000, 1000), 210, 5, 300, STALLED_ROUNDS_MAX), Verdict::SwitchOver);
        assert_eq!(forecast.blackout_ms(210, 5), 2 + FIXED_MS + 5);
    }

    #[test]
    fn shrinking_rounds_go_on_until_the_rest_fits_and_does_not_shrink_any_more() {
        let mut forecast = Forecast::default();
        assert_eq!(forecast.after_round(1, round(100_000, 1000), 50_000, 5, 300, STALLED_ROUNDS_MAX), Verdict::Again);
        // 250 ms: it would fit, and another round will make it half as much.
        assert_eq!(forecast.after_round(2, round(50_000, 500), 25_000, 5, 300, STALLED_ROUNDS_MAX), Verdict::Again);
        assert_eq!(forecast.after_round(3, round(25_000, 250), 12_500, 5, 300, STALLED_ROUNDS_MAX), Verdict::Again);
        // The working set: it will not become less.
        assert_eq!(
            forecast.after_round(4, round(12_500, 125), 11_000, 5, 300, STALLED_ROUNDS_MAX),
            Verdict::SwitchOver
        );
    }

    #[test]
    fn what_costs_next_to_nothing_is_not_copied_again() {
        let mut forecast = Forecast::default();
        assert_eq!(forecast.after_round(1, round(100_000, 1000), 5_000, 5, 300, STALLED_ROUNDS_MAX), Verdict::Again);
        assert_eq!(forecast.after_round(2, round(5_000, 50), 250, 5, 300, STALLED_ROUNDS_MAX), Verdict::SwitchOver);
    }

    #[test]
    fn rounds_that_fit_come_to_an_end_although_each_helps() {
        let mut forecast = Forecast::default();
        let mut pending = 25_000_000;
        let rounds = (1..).find(|number| {
            pending = pending * 60 / 100;
            forecast.after_round(*number, round(100_000, 1000), pending, 5, 60_000_000, STALLED_ROUNDS_MAX)
                == Verdict::SwitchOver
        });
        assert_eq!(rounds, Some(FITTING_ROUNDS_MAX + 1));
    }

    #[test]
    fn a_guest_faster_than_the_link_stalls_with_both_speeds_named() {
        let mut forecast = Forecast::default();
        let mut rounds = 0;
        let report = loop {
            rounds += 1;
            match forecast.after_round(rounds, round(50_000, 1000), 50_000, 5, 300, STALLED_ROUNDS_MAX) {
                Verdict::Again => {}
                Verdict::Stalled(report) => break report,
                Verdict::SwitchOver => panic!("50,000 pages do not fit 300 ms at 50,000 pages per second"),
            }
        };
        assert_eq!(rounds, STALLED_ROUNDS_MAX + 1);
        assert!(report.contains("writes 195 MiB/s") && report.contains("carries 195 MiB/s"), "{report}");
        // With a slower guest it goes on from there.
        assert_eq!(
            forecast.after_round(rounds + 1, round(50_000, 1000), 40_000, 5, 300, STALLED_ROUNDS_MAX),
            Verdict::Again
        );
    }

    #[test]
    fn slow_progress_ends_too() {
        let mut forecast = Forecast::default();
        let mut pending = 1 << 40;
        let rounds = (1..).find(|round_number| {
            pending = pending * 85 / 100;
            matches!(
                forecast.after_round(*round_number, round(50_000, 1000), pending, 5, 300, STALLED_ROUNDS_MAX),
                Verdict::Stalled(_)
            )
        });
        assert_eq!(rounds, Some(ROUNDS_MAX));
    }

    #[test]
    fn the_throttle_has_an_end() {
        let mut steps = 0;
        let mut percent = 0;
        while let Some(next) = slower(percent) {
            assert!(next > percent && next <= THROTTLE_PERCENT_MAX);
            (percent, steps) = (next, steps + 1);
        }
        assert_eq!((percent, steps), (THROTTLE_PERCENT_MAX, THROTTLE_PERCENTS.len()));
    }

    /// A quarter of a GiB, half of it zero, packed to a third, over 100 MiB/s.
    const IDLE: Sample = Sample {
        pages: 65_536,
        zero_permille: 500,
        wire_permille: 333,
        dirty_pages_per_s: 1_000,
        dirty_pages_max: 65_536,
        bytes_per_s: 100 << 20,
        commit_ms: 5,
    };

    #[test]
    fn a_plan_tells_what_a_quiet_guest_will_cost() {
        let plan = plan(&IDLE, 300, false);
        // 128 MiB take 1.28 s and leave 1,280 pages; these take 50 ms and leave 50.
        assert_eq!((plan.rounds, plan.stalls.clone(), plan.throttle_percent), (3, None, 0), "{plan:?}");
        assert_eq!(plan.blackout_ms, FIXED_MS + 5 + 2);
        assert_eq!(plan.total_ms, 1_280 + 50 + plan.blackout_ms);
        assert!((44 << 20..46 << 20).contains(&plan.wire_bytes), "{plan:?}");
    }

    #[test]
    fn a_plan_tells_that_a_busy_guest_will_not_converge_and_that_a_slower_one_would() {
        let busy = Sample { dirty_pages_per_s: 40_000, ..IDLE };
        let stalls = plan(&busy, 300, false).stalls.expect("40,000 pages are more than 25,600");
        assert!(stalls.contains("carries 100 MiB/s"), "{stalls}");
        let slowed = plan(&busy, 300, true);
        assert_eq!((slowed.stalls.clone(), slowed.throttle_percent), (None, 60), "{slowed:?}");
    }

    #[test]
    fn a_small_working_set_converges_however_often_it_is_written() {
        let hot = Sample { dirty_pages_per_s: 1_000_000, dirty_pages_max: 2_000, ..IDLE };
        let plan = plan(&hot, 300, false);
        assert_eq!((plan.stalls.clone(), plan.blackout_ms), (None, FIXED_MS + 5 + 79), "{plan:?}");
    }
}
