//! How fast replicas that lack something are copied to, and replicas are compared: below what the guest does itself.
//!
//! How much a disk and a link carry nobody knows in advance. So it is found out: while the guest uses the volume there is something
//! being copied half of the time at most, and the rate rises until it is; while it does not, nearly always. What was too much is taken
//! back by the next tick. Below a floor, which any disk and link carry, it does not fall: somebody waits for the end. What goes over a
//! link waits for the node's leave besides ([`super::Ways::may_send`]).

use std::time::Duration;

use futures::future::BoxFuture;
use pollux_mirror::Millis;
use tokio::time::Instant;

/// Bytes per second at least while the guest uses the volume, unless a person allows less: a fraction of what any disk or link carries.
pub(super) const BUSY_BYTES_S: u64 = 64 << 20;
/// And while it does not.
pub(super) const IDLE_BYTES_S: u64 = 256 << 20;
/// And at most in either case.
const BYTES_S_MAX: u64 = 2 << 30;
/// Of the time something may be under way, in percent: while the guest uses the volume, and while it does not.
const BUSY_PERCENT: u64 = 50;
const IDLE_PERCENT: u64 = 90;
/// A hole that is copied, or compared, costs so many times less than data of its length: a few messages, and nothing is read or written.
/// Not nothing, so that a large and empty volume leaves room for the guest as well.
pub(super) const HOLE_SHARE: u64 = 16;

/// See the module's text.
pub(super) struct Copying {
    /// What a person allows at most, in bytes per second.
    pub(super) most: Option<u64>,
    /// What may be copied by now, and the node has yet to grant, in bytes.
    pub(super) owed: u64,
    /// It was asked.
    pub(super) leave: Option<BoxFuture<'static, u64>>,
    /// Bytes per second.
    rate: u64,
    /// The number of the guest's requests when time was heard of last.
    seen: u64,
    /// Something is under way, since then.
    since: Option<Instant>,
    /// For how long something was, since time was heard of last.
    worked: Duration,
}

impl Copying {
    pub(super) fn new() -> Self {
        let (rate, worked) = (BUSY_BYTES_S, Duration::ZERO);
        Self { most: None, owed: 0, leave: None, rate, seen: 0, since: None, worked }
    }

    /// Whether something is under way, whenever that may have changed.
    pub(super) fn is_under_way(&mut self, now_is: bool) {
        match (self.since, now_is) {
            (None, true) => self.since = Some(Instant::now()),
            (Some(since), false) => {
                self.worked += since.elapsed();
                self.since = None;
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    /// How much more may be copied after so many milliseconds in which the guest's requests have come to `requests`.
    pub(super) fn credit(&mut self, passed: Millis, requests: u64) -> u64 {
        if let Some(since) = &mut self.since {
            self.worked += since.elapsed();
            *since = Instant::now();
        }
        let worked = std::mem::take(&mut self.worked);
        let busy = std::mem::replace(&mut self.seen, requests) != requests;
        let (least, percent) = if busy { (BUSY_BYTES_S, BUSY_PERCENT) } else { (IDLE_BYTES_S, IDLE_PERCENT) };
        let worked_percent = u64::try_from(worked.as_micros()).unwrap_or(u64::MAX) / 10 / passed.max(1);
        self.rate = match worked_percent {
            0 => self.rate,
            // Half at most at a time: what was measured is one tick, and may have been bad luck.
            too_much if too_much > percent => self.rate / 100 * (percent * 100 / too_much).max(50),
            _ => self.rate / 4 * 5,
        };
        self.rate = self.rate.clamp(least, BYTES_S_MAX);
        self.most.map_or(self.rate, |most| most.min(self.rate)).saturating_mul(passed) / 1_000
    }
}

/// What is given back of the credit of so many bytes, which were taken for data, when they were a hole.
pub(super) fn back_for_a_hole(bytes: u64) -> u64 {
    bytes - bytes / HOLE_SHARE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tick of 20 ms of which something was under way for so many percent, with a guest that asks or does not.
    async fn tick(copying: &mut Copying, percent: u64, asks: bool) -> u64 {
        copying.is_under_way(true);
        tokio::time::advance(Duration::from_micros(200 * percent)).await;
        copying.is_under_way(false);
        tokio::time::advance(Duration::from_micros(200 * (100 - percent))).await;
        let requests = copying.seen + u64::from(asks);
        copying.credit(20, requests) * 50
    }

    #[tokio::test(start_paused = true)]
    async fn who_copies_nothing_has_the_floor_and_what_a_person_allows_is_the_most() {
        let mut copying = Copying::new();
        assert_eq!(tick(&mut copying, 0, true).await, BUSY_BYTES_S / 50 * 50);
        assert_eq!(copying.credit(1_000, 1), IDLE_BYTES_S, "it has asked for nothing since");
        copying.most = Some(1_000);
        assert_eq!(copying.credit(1_000, 9), 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn beside_a_busy_guest_the_rate_rises_until_half_of_the_time_is_taken() {
        let mut copying = Copying::new();
        // A disk and a link that carry 400 MiB a second.
        let carries = 400 << 20;
        let mut rate = BUSY_BYTES_S;
        for _ in 0..50 {
            rate = tick(&mut copying, (rate * 100 / carries).min(100), true).await;
        }
        assert!((carries / 3..carries * 2 / 3).contains(&rate), "{} MiB/s", rate >> 20);

        // They carry less from here on, and then nothing but the floor.
        for _ in 0..50 {
            rate = tick(&mut copying, 100, true).await;
        }
        assert_eq!(rate, BUSY_BYTES_S / 50 * 50);
    }

    #[tokio::test(start_paused = true)]
    async fn beside_an_idle_guest_it_takes_nearly_all_and_gives_it_back_when_the_guest_returns() {
        let mut copying = Copying::new();
        let carries = 1_000 << 20;
        let mut rate = IDLE_BYTES_S;
        for _ in 0..50 {
            rate = tick(&mut copying, (rate * 100 / carries).min(100), false).await;
        }
        assert!(rate > carries * 2 / 3, "{} MiB/s", rate >> 20);
        for _ in 0..5 {
            rate = tick(&mut copying, (rate * 100 / carries).min(100), true).await;
        }
        assert!(rate < carries * 2 / 3, "{} MiB/s", rate >> 20);
    }

    #[test]
    fn a_hole_costs_little_and_not_nothing() {
        assert_eq!(back_for_a_hole(1 << 20), (1 << 20) - (1 << 16));
    }
}
