//! Whose turn it is to find a guest's writes. A scan takes the marks away, so only one may scan at a time: a move, from its
//! beginning to its end, or else whoever takes a sample.

use std::sync::{Arc, Weak};

use super::host::GuestError;

/// For what a guest's writes are to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A move. It takes the turn from whoever has it: a move before it has ended, and a sample can be taken again.
    Move,
    /// A forecast. It takes the turn from nobody but another one.
    Sample,
}

/// The turns of one guest.
#[derive(Debug, Default)]
pub struct Turns {
    latest: u64,
    move_under_way: Weak<()>,
}

/// The right to scan, until somebody else has it. A move that drops it has ended.
#[derive(Debug)]
pub struct Turn {
    number: u64,
    _held: Arc<()>,
}

impl Turns {
    /// It is the caller's turn from here on.
    ///
    /// # Errors
    /// A move is under way, and this is no move.
    pub fn begin(&mut self, purpose: Purpose) -> Result<Turn, GuestError> {
        if purpose == Purpose::Sample && self.move_under_way.strong_count() > 0 {
            return Err(GuestError("a move is under way, which needs to know of every write".into()));
        }
        let held = Arc::new(());
        if purpose == Purpose::Move {
            self.move_under_way = Arc::downgrade(&held);
        }
        self.latest += 1;
        Ok(Turn { number: self.latest, _held: held })
    }

    /// Is it still this one's?
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, turn: &Turn) -> Result<(), GuestError> {
        if turn.number == self.latest {
            return Ok(());
        }
        Err(GuestError("another move tracks this guest now".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_takes_no_moves_turn_and_a_move_takes_any() {
        let mut turns = Turns::default();
        let sample = turns.begin(Purpose::Sample).unwrap();
        let moves = turns.begin(Purpose::Move).unwrap();
        assert!(turns.check(&sample).is_err(), "two would scan");

        assert!(turns.begin(Purpose::Sample).is_err(), "a sample would take the move's marks away");
        turns.check(&moves).expect("the move goes on");

        let next = turns.begin(Purpose::Move).unwrap();
        assert!(turns.check(&moves).is_err());
        drop(moves);
        assert!(turns.begin(Purpose::Sample).is_err(), "the later move is still under way");
        drop(next);
        let sample = turns.begin(Purpose::Sample).expect("no move is under way");
        turns.check(&sample).unwrap();
    }
}
