//! How fast replicas that lack something are copied to: below what the guest does itself.

use pollux_mirror::Millis;

/// Bytes per second while the guest uses the volume, unless said otherwise: a fraction of what any disk or link carries.
pub(super) const BUSY_BYTES_S: u64 = 64 << 20;
/// And while it does not.
pub(super) const IDLE_BYTES_S: u64 = 256 << 20;

/// See the module's text.
pub(super) struct Copying {
    /// What a person allows at most, in bytes per second.
    pub(super) most: Option<u64>,
    /// The number of the guest's requests when time was heard of last.
    seen: u64,
}

impl Copying {
    pub(super) fn new() -> Self {
        Self { most: None, seen: 0 }
    }

    /// How much more may be copied after so many milliseconds in which the guest's requests have come to `requests`.
    pub(super) fn credit(&mut self, passed: Millis, requests: u64) -> u64 {
        let busy = std::mem::replace(&mut self.seen, requests) != requests;
        let rate = if busy { BUSY_BYTES_S } else { IDLE_BYTES_S };
        self.most.map_or(rate, |most| most.min(rate)).saturating_mul(passed) / 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_guest_is_copied_beside_slowly() {
        let mut copying = Copying::new();
        assert_eq!(copying.credit(1_000, 0), IDLE_BYTES_S);
        assert_eq!(copying.credit(500, 7), BUSY_BYTES_S / 2, "it has asked for something");
        assert_eq!(copying.credit(1_000, 7), IDLE_BYTES_S, "and for nothing since");
        copying.most = Some(1_000);
        assert_eq!(copying.credit(1_000, 9), 1_000);
    }
}
