//! How many bytes per second bulk work may send: one budget per node for all of it, and one for each move that a user limits.
//!
//! Only what is copied while guests run takes from it: memory, and what replicas on other nodes lack. The last pages of a paused
//! guest do not wait: they are few, and a blackout is what the limit must not lengthen. Nor does what a guest writes. Consensus has a
//! connection of its own and needs no leave.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::Mutex;

/// What is counted in: a frame is up to a MiB, a link up to hundreds of gigabits.
const UNIT_BYTES: u64 = 1024;
/// So much may be sent at once after a pause, in milliseconds of the rate; at least [`BURST_UNITS_MIN`].
const BURST_MS: u64 = 100;
/// The largest frame there is, with some to spare.
const BURST_UNITS_MIN: u32 = 2048;
/// Who can do with less takes this much at a time, in bytes: as much as others have in a frame, and they take turns.
const SOME_BYTES: u64 = 1 << 20;

/// A limit, or none.
#[derive(Debug, Default)]
pub struct Budget {
    limiter: Option<(DefaultDirectRateLimiter, NonZeroU32)>,
    /// Whoever takes. In the order in which they came: many who take little would let nobody have much.
    turn: Mutex<()>,
}

impl Budget {
    /// At most so many bytes per second; `None`: as many as there are.
    #[must_use]
    pub fn new(bytes_per_s: Option<u64>) -> Self {
        let limiter = bytes_per_s.map(|rate| {
            let units = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
            let rate = NonZeroU32::new(units(rate / UNIT_BYTES)).unwrap_or(NonZeroU32::MIN);
            let burst = units(u64::from(rate.get()) * BURST_MS / 1000).max(BURST_UNITS_MIN);
            let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
            (RateLimiter::direct(Quota::per_second(rate).allow_burst(burst)), burst)
        });
        Self { limiter, turn: Mutex::new(()) }
    }

    /// Whether anybody ever waits.
    pub(crate) fn is_limited(&self) -> bool {
        self.limiter.is_some()
    }

    /// Waits until some of so many bytes may be sent, and says how many.
    pub(crate) async fn take_some(&self, bytes: u64) -> u64 {
        let some = if self.is_limited() { bytes.min(SOME_BYTES) } else { bytes };
        self.take(some).await;
        some
    }

    /// Waits until so many bytes may be sent.
    pub(crate) async fn take(&self, bytes: u64) {
        let Some((limiter, burst)) = &self.limiter else { return };
        let _turn = self.turn.lock().await;
        let mut units = bytes.div_ceil(UNIT_BYTES);
        while units > 0 {
            let some = u32::try_from(units).unwrap_or(u32::MAX).min(burst.get());
            let Some(part) = NonZeroU32::new(some) else { return };
            // Never more than the burst, so never refused.
            let _ = limiter.until_n_ready(part).await;
            units -= u64::from(some);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[tokio::test]
    async fn what_was_sent_beyond_the_burst_took_as_long_as_the_rate_says() {
        let budget = Budget::new(Some(40 << 20));
        let began = Instant::now();
        for _ in 0..24 {
            budget.take(1 << 20).await;
        }
        // 24 MiB, of which 4 are the burst: half a second for the rest.
        assert!(began.elapsed() >= Duration::from_millis(480), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn no_limit_never_waits() {
        Budget::new(None).take(u64::MAX).await;
        assert_eq!(Budget::new(None).take_some(u64::MAX).await, u64::MAX);
    }

    #[tokio::test]
    async fn who_takes_much_at_a_time_has_a_turn_among_many_who_take_little() {
        let budget = Budget::new(Some(100 << 20));
        let little = || async {
            loop {
                budget.take_some(64 << 10).await;
            }
        };
        let much = async {
            for _ in 0..4 {
                budget.take(2 << 20).await;
            }
        };
        let both = async {
            tokio::select! {
                biased;
                _ = futures::future::join_all((0..8).map(|_| little())) => unreachable!("they never end"),
                () = much => {}
            }
        };
        tokio::time::timeout(Duration::from_secs(20), both).await.expect("it has its turn");
    }

    #[tokio::test]
    async fn one_piece_larger_than_the_burst_is_let_through_in_parts() {
        Budget::new(Some(1 << 30)).take(150 << 20).await;
    }
}
