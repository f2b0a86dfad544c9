//! The slow background scrub: every volume in use is compared from beginning to end every now and then, so that what a disk makes of
//! a replica is known before that replica is all there is.
//!
//! One small part at a time, by the node that writes to the volume, and only while nobody else compares it and no replica lacks
//! anything. It repairs nothing: which of two replicas is right it does not know, and a person may (docs/operations.md).

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pollux_state::{
    id::{Generation, VolumeId},
    volume::{Stage, Volume},
};
use pollux_volume::{Comparison, VolumeHandle};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Volumes, news, turns::Comparer};
use crate::vm::wall_ms;

/// Compared at a time, in bytes: read from a disk within some milliseconds.
const PART_BYTES: u64 = 1 << 20;
/// A volume of which this daemon knows no comparison is begun with after so long, in milliseconds: not while a cluster that was off
/// starts all its VMs at once. Sooner where passes follow each other sooner.
const FIRST_MS: u64 = 3_600_000;
/// What could not be compared at the moment is tried again after this, in milliseconds.
const AGAIN_MS: u64 = 10_000;

/// How fast, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubSettings {
    /// Bytes per second of each volume.
    pub bytes_per_s: u64,
    /// From the end of one pass to the beginning of the next. Zero: nothing is scrubbed.
    pub every: Duration,
}

impl ScrubSettings {
    /// 8 MB/s: a twentieth of what a single hard disk reads, so that its guests do not notice; a terabyte takes a day and a half.
    pub const BYTES_PER_S: u64 = 8_000_000;
    /// A week: md arrays are checked once a month by Debian's mdadm, and what rots between two passes is as long without a second copy.
    pub const EVERY: Duration = Duration::from_secs(7 * 24 * 3600);
}

impl Default for ScrubSettings {
    fn default() -> Self {
        Self { bytes_per_s: Self::BYTES_PER_S, every: Self::EVERY }
    }
}

/// How far the scrub of a volume is, in a daemon's time in milliseconds. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pass {
    /// Before that nothing is compared.
    due: u64,
    /// How far this pass is, in bytes.
    reached: u64,
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    /// Nothing before so many milliseconds.
    Wait(u64),
    /// Compare that.
    Compare(Range<u64>),
}

impl Pass {
    fn new(now: u64, settings: ScrubSettings) -> Self {
        let Self { due, reached } = Self::after(now, settings);
        Self { due: due.min(now.saturating_add(FIRST_MS)), reached }
    }

    fn next(&self, now: u64, size: u64) -> Next {
        if now < self.due {
            return Next::Wait(self.due - now);
        }
        // One that was compared to its end is not due.
        Next::Compare(self.reached..size.min(self.reached.saturating_add(PART_BYTES)))
    }

    /// A part was compared, begun at `begun`. `true`: that was all.
    fn compared(&mut self, part: &Range<u64>, (begun, now): (u64, u64), size: u64, settings: ScrubSettings) -> bool {
        if part.end >= size {
            *self = Self::after(now, settings);
            return true;
        }
        self.reached = part.end;
        // Counted from its beginning, so that what it took is not added; and what was missed is not made up for.
        let bytes = u128::from(part.end - part.start);
        let ms = (bytes * 1_000).div_ceil(u128::from(settings.bytes_per_s.max(1)));
        self.due = begun.saturating_add(u64::try_from(ms).unwrap_or(u64::MAX)).max(now);
        false
    }

    /// All was compared just now.
    fn after(now: u64, settings: ScrubSettings) -> Self {
        let every = u64::try_from(settings.every.as_millis()).unwrap_or(u64::MAX);
        Self { due: now.saturating_add(every), reached: 0 }
    }
}

/// What this daemon knows of a volume's last comparison. Travels between daemons as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Compared {
    /// When the last news were, in milliseconds since 1970.
    pub(crate) at: u64,
    /// `verify` or `scrub`.
    pub(crate) by: String,
    /// All of it was compared; otherwise it is being, and a difference was found already.
    pub(crate) whole: bool,
    /// Bytes that were left out.
    pub(crate) left_out: u64,
    /// Replicas that differ from the one whose content counts.
    pub(crate) differs: Vec<Differing>,
}

/// A replica that differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Differing {
    /// Which.
    pub(crate) replica: u64,
    /// Bytes of the pieces in which it does.
    pub(crate) bytes: u64,
    /// The first of them.
    pub(crate) first: u64,
}

impl Compared {
    fn of(found: &Comparison, by: &str, whole: bool) -> Self {
        let differing = found.differs.iter().map(|(replica, difference)| Differing {
            replica: replica.0,
            bytes: difference.bytes,
            first: difference.places.first().map_or(0, |place| place.start),
        });
        Self { at: wall_ms(), by: by.to_owned(), whole, left_out: found.left_out_bytes(), differs: differing.collect() }
    }
}

/// All scrubs of this daemon: what was found outlives the VM's run, and so does how far it is.
#[derive(Debug)]
pub(super) struct Scrubs {
    settings: ScrubSettings,
    began: Instant,
    all: Mutex<HashMap<VolumeId, Scrub>>,
}

#[derive(Debug)]
struct Scrub {
    pass: Pass,
    /// In this pass.
    found: Comparison,
    compared: Option<Compared>,
}

impl Scrubs {
    pub(super) fn new(settings: ScrubSettings) -> Self {
        Self { settings, began: Instant::now(), all: Mutex::default() }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn all(&self) -> MutexGuard<'_, HashMap<VolumeId, Scrub>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on<T>(&self, id: VolumeId, change: impl FnOnce(&mut Scrub) -> T) -> T {
        let fresh =
            || Scrub { pass: Pass::new(self.now(), self.settings), found: Comparison::default(), compared: None };
        change(self.all().entry(id).or_insert_with(fresh))
    }

    /// Volumes that are not in the cluster any more are forgotten.
    fn keep(&self, there: impl Fn(&VolumeId) -> bool) {
        self.all().retain(|id, _| there(id));
    }

    /// A part was compared. Whether something was found there that was not known, and whether it was the last part.
    fn note(&self, it: &Volume, part: &Range<u64>, begun: u64, found: Comparison) -> (bool, bool) {
        let now = self.now();
        self.on(it.id, |scrub| {
            let news = !found.differs.is_empty();
            scrub.found.absorb(found);
            let over = scrub.pass.compared(part, (begun, now), it.size, self.settings);
            if news || over {
                scrub.compared = Some(Compared::of(&scrub.found, "scrub", over));
            }
            if over {
                scrub.found = Comparison::default();
            }
            (news, over)
        })
    }

    /// Somebody had it compared: the next pass begins as after one.
    pub(super) fn verified(&self, id: VolumeId, found: &Comparison) {
        let pass = Pass::after(self.now(), self.settings);
        let compared = Some(Compared::of(found, "verify", true));
        self.on(id, |scrub| *scrub = Scrub { pass, found: Comparison::default(), compared });
    }

    fn compared(&self) -> Vec<(VolumeId, Compared)> {
        self.all().iter().filter_map(|(id, scrub)| Some((*id, scrub.compared.clone()?))).collect()
    }
}

impl Volumes {
    /// What was found when volumes were compared here.
    pub(crate) fn compared(&self) -> Vec<(VolumeId, Compared)> {
        self.0.scrubs.compared()
    }

    /// Scrubs a volume for as long as it is in use here under `generation`.
    pub(super) async fn scrub(self, id: VolumeId, generation: Generation, handle: VolumeHandle) {
        let scrubs = &self.0.scrubs;
        if scrubs.settings.every.is_zero() {
            return;
        }
        let mut applied = self.0.consensus.watch();
        loop {
            let state = applied.borrow_and_update().state.clone();
            scrubs.keep(|id| state.volumes.contains_key(id));
            let Some(it) = state.volumes.get(&id).filter(|it| it.generation == generation) else { return };
            if !handle.is_in_use() {
                return;
            }
            let (now, size) = (scrubs.now(), it.size);
            let wait = match scrubs.on(id, |scrub| scrub.pass.next(now, size)) {
                Next::Wait(ms) => ms,
                Next::Compare(part) if self.scrub_part(it, &part, &handle).await => 0,
                Next::Compare(_) => AGAIN_MS,
            };
            if wait > 0 && !news(&mut applied, Some(Duration::from_millis(wait))).await {
                return;
            }
        }
    }

    /// Compares a part. `false`: not now.
    async fn scrub_part(&self, it: &Volume, part: &Range<u64>, handle: &VolumeHandle) -> bool {
        let whole = handle.status().borrow().replicas.iter().all(|replica| replica.sound && replica.lacks == 0);
        if it.set.len() < 2 || it.incomplete || !whole || it.stage() == Some(Stage::Comparing) {
            return false;
        }
        let Ok(_turn) = self.0.turns.try_take(it.id, Comparer::Scrub) else { return false };
        let begun = self.0.scrubs.now();
        let compared = handle.compare_fully(part.clone(), (it.authority, false), 1, |_| ()).await;
        let Some(found) = compared else { return false };
        let differs: Vec<String> = found.differs.keys().map(|id| self.state().place_of_replica(it, *id)).collect();
        let (news, over) = self.0.scrubs.note(it, part, begun, found);
        if news {
            let authority = self.state().place_of_replica(it, it.authority);
            tracing::error!(
                volume = it.name,
                ?differs,
                authority,
                ?part,
                "scrub: replicas do not hold what they should"
            );
        }
        if over {
            tracing::info!(volume = it.name, "scrub: all was compared");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SETTINGS: ScrubSettings = ScrubSettings { bytes_per_s: 4 * MIB, every: Duration::from_secs(1_000) };

    const WEEKLY: ScrubSettings = ScrubSettings { every: ScrubSettings::EVERY, ..SETTINGS };

    /// Everything that is compared until `end`, with when it began; each part takes so long.
    fn plays(pass: &mut Pass, size: u64, took: u64, end: u64) -> Vec<(u64, Range<u64>)> {
        let (mut now, mut parts) = (0, Vec::new());
        while now < end {
            match pass.next(now, size) {
                Next::Wait(ms) => now += ms,
                Next::Compare(part) => {
                    parts.push((now, part.clone()));
                    now += took;
                    pass.compared(&part, (now - took, now), size, SETTINGS);
                }
            }
        }
        parts
    }

    #[test]
    fn a_pass_begins_after_an_hour_keeps_to_its_rate_and_begins_again_after_its_time() {
        let size = 10 * MIB + 4_096;
        let first = plays(&mut Pass::new(0, WEEKLY), size, 10, FIRST_MS + 1_000_000);
        assert_eq!(first.len(), 11);
        assert_eq!(first[0], (FIRST_MS, 0..MIB), "not at once");
        assert_eq!(
            first[10],
            (FIRST_MS + 10 * 250, 10 * MIB..size),
            "a quarter of a second for each part, and no further than the end"
        );
        assert!(first.windows(2).all(|pair| pair[0].1.end == pair[1].1.start && pair[1].0 - pair[0].0 >= 250));

        let both = plays(&mut Pass::new(0, WEEKLY), size, 10, FIRST_MS + 2_000_000);
        assert_eq!(both[11], (FIRST_MS + 10 * 250 + 10 + 1_000_000, 0..MIB), "from the end of the first on");
    }

    #[test]
    fn where_passes_follow_each_other_soon_the_first_does_not_take_an_hour() {
        assert_eq!(Pass::new(7, SETTINGS).next(7, MIB), Next::Wait(1_000_000));
        assert_eq!(Pass::new(7, WEEKLY).next(7, MIB), Next::Wait(FIRST_MS));
    }

    #[test]
    fn what_takes_longer_than_its_share_is_not_made_up_for() {
        let parts = plays(&mut Pass::new(0, WEEKLY), 4 * MIB, 3_000, FIRST_MS + 20_000);
        let began: Vec<u64> = parts.iter().map(|(at, _)| at - FIRST_MS).collect();
        assert_eq!(began, [0, 3_000, 6_000, 9_000]);
    }

    #[test]
    fn a_volume_that_grew_meanwhile_is_compared_to_its_new_end() {
        let mut pass = Pass { due: 0, reached: 4 * MIB };
        assert_eq!(pass.next(0, 5 * MIB), Next::Compare(4 * MIB..5 * MIB));
        assert!(!pass.compared(&(4 * MIB..5 * MIB), (0, 1), 6 * MIB, SETTINGS));
        assert_eq!(pass.next(1_000, 6 * MIB), Next::Compare(5 * MIB..6 * MIB));
        assert!(pass.compared(&(5 * MIB..6 * MIB), (1_000, 1_001), 6 * MIB, SETTINGS));
    }
}
