//! Waiting for a condition, with a deadline. Nothing in these tests waits for a length of time.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Longest wait for the cluster to be as it should: an election, a daemon's start and a move's timeouts all fit.
pub const SETTLE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Looks until `look` finds what it looks for, and returns it.
///
/// # Panics
/// If that takes longer than `limit`, with what was seen instead the last time.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, look: impl FnMut() -> Result<T, String>) -> T {
    match within(limit, look) {
        Ok(found) => found,
        Err(instead) => panic!("waited {} s in vain for {what}; instead: {instead}", limit.as_secs()),
    }
}

/// Looks until `look` finds what it looks for, or `limit` has passed.
///
/// # Errors
/// What was seen instead the last time.
pub fn within<T>(limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let end = Instant::now() + limit;
    loop {
        match look() {
            Err(_) if Instant::now() < end => thread::sleep(LOOK_EVERY),
            found => return found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_look_that_finds_it_ends_the_wait() {
        let mut looks = 0;
        let found = until("the third look", Duration::from_secs(10), || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(format!("look {looks}")) }
        });
        assert_eq!(found, 3);
    }

    #[test]
    #[should_panic(expected = "in vain for the moon; instead: a lamp")]
    fn a_wait_in_vain_says_what_there_was_instead() {
        until("the moon", Duration::ZERO, || Err::<(), _>("a lamp".to_owned()));
    }
}
