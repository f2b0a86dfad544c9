//! Whose turn it is to compare the replicas of a volume: one at a time, for a mirror that is told to compare something else forgets
//! what it was comparing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pollux_state::id::VolumeId;
use tokio::sync::OwnedMutexGuard;

/// On whose behalf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparer {
    /// A move's: the old replica does not go before.
    Move,
    /// Somebody asked for it.
    Verify,
    /// The slow background scrub, which stops after each small part.
    Scrub,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<VolumeId, Arc<Place>>>);

#[derive(Debug, Default)]
struct Place {
    turn: Arc<tokio::sync::Mutex<()>>,
    whose: Mutex<Option<Comparer>>,
}

/// A turn. Over when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    place: Arc<Place>,
    _turn: OwnedMutexGuard<()>,
}

impl Turns {
    /// A turn now, or whose it is.
    pub(super) fn try_take(&self, volume: VolumeId, who: Comparer) -> Result<Turn, Comparer> {
        let place = self.place(volume);
        match Arc::clone(&place.turn).try_lock_owned() {
            Ok(turn) => Ok(Turn::begin(place, turn, who)),
            // Between its end and its being told there is a moment; whose it was then is as good an answer as any.
            Err(_) => Err(place.whose().unwrap_or(Comparer::Scrub)),
        }
    }

    /// The next turn there is, in the order of those who wait.
    pub(super) async fn take(&self, volume: VolumeId, who: Comparer) -> Turn {
        let place = self.place(volume);
        let turn = Arc::clone(&place.turn).lock_owned().await;
        Turn::begin(place, turn, who)
    }

    fn place(&self, volume: VolumeId) -> Arc<Place> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What nobody waits for or has need not be remembered.
        places.retain(|id, place| *id == volume || Arc::strong_count(place) > 1);
        Arc::clone(places.entry(volume).or_default())
    }
}

impl Place {
    fn whose(&self) -> MutexGuard<'_, Option<Comparer>> {
        self.whose.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    fn begin(place: Arc<Place>, turn: OwnedMutexGuard<()>, who: Comparer) -> Self {
        *place.whose() = Some(who);
        Self { place, _turn: turn }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Before the next one's begins.
        *self.place.whose() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: VolumeId = VolumeId(1);

    #[tokio::test]
    async fn one_compares_at_a_time_and_who_waits_comes_next() {
        let turns = Turns::default();
        let scrub = turns.try_take(V, Comparer::Scrub).expect("nobody compares");
        assert_eq!(turns.try_take(V, Comparer::Verify).err(), Some(Comparer::Scrub));
        assert!(turns.try_take(VolumeId(2), Comparer::Verify).is_ok(), "another volume is another matter");

        let (taken, ()) = tokio::join!(turns.take(V, Comparer::Move), async {
            tokio::task::yield_now().await;
            drop(scrub);
        });
        assert_eq!(turns.try_take(V, Comparer::Scrub).err(), Some(Comparer::Move));
        drop(taken);
        assert!(turns.try_take(V, Comparer::Scrub).is_ok());
    }

    #[test]
    fn nothing_is_remembered_of_volumes_that_nobody_compares() {
        let turns = Turns::default();
        for number in 1..100 {
            drop(turns.try_take(VolumeId(number), Comparer::Scrub));
        }
        assert_eq!(turns.0.lock().unwrap().len(), 1);
    }
}
