//! One at a time mounts, opens or unmounts what is called by one name: two devices may be pools of the same name one after the other, and
//! the first may still hang in `mount(2)` when it is the second's turn.

use std::{
    collections::HashMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// Where something is going on, and since when.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: Mutex<HashMap<String, SystemTime>>,
    left: Condvar,
}

/// Nobody else does anything there, for as long as this is there.
#[derive(Debug)]
pub(super) struct Place<'a> {
    places: &'a Places,
    name: String,
}

impl Places {
    fn taken(&self) -> MutexGuard<'_, HashMap<String, SystemTime>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody does anything there; for as long as it takes, which may be for ever.
    pub(super) fn enter(&self, name: &str) -> Place<'_> {
        let mut taken = self.taken();
        while taken.contains_key(name) {
            taken = self.left.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        taken.insert(name.to_owned(), SystemTime::now());
        Place { places: self, name: name.to_owned() }
    }

    /// The same without waiting; otherwise since when somebody does.
    pub(super) fn try_enter(&self, name: &str) -> Result<Place<'_>, SystemTime> {
        let mut taken = self.taken();
        if let Some(since) = taken.get(name) {
            return Err(*since);
        }
        taken.insert(name.to_owned(), SystemTime::now());
        Ok(Place { places: self, name: name.to_owned() })
    }
}

impl Place<'_> {
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.places.taken().remove(&self.name);
        self.places.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[test]
    fn one_at_a_time_is_at_a_place_and_others_are_elsewhere_meanwhile() {
        let (places, inside) = (Arc::new(Places::default()), Arc::new(AtomicU32::new(0)));
        let first = places.enter("fast");
        assert!(places.try_enter("fast").is_err(), "somebody is there");
        drop(places.enter("slow"));
        drop(places.try_enter("slow").expect("nobody is"));

        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let (places, inside) = (Arc::clone(&places), Arc::clone(&inside));
                std::thread::spawn(move || {
                    let _place = places.enter("fast");
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two are there");
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        assert!(places.try_enter("fast").is_err());
        drop(first);
        for thread in waiting {
            thread.join().expect("it was there alone");
        }
        assert!(places.taken().is_empty(), "nothing is left of it");
    }
}
