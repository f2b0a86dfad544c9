//! What is kept of all that a guest ever wrote.

use std::collections::VecDeque;

/// How much of the serial port's output is kept, in bytes.
pub const CONSOLE_RING_BYTES: usize = 64 * 1024;

/// The last place a guest can have come to by writing, with room for more: what another node says of a later one is not so.
const PLACE_MAX: u64 = u64::MAX / 2;

/// The end of what was ever written.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    bytes: VecDeque<u8>,
    /// Bytes written since the beginning.
    pub(super) written: u64,
}

impl Ring {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.written += bytes.len() as u64;
        let excess = self.bytes.len().saturating_sub(CONSOLE_RING_BYTES);
        self.bytes.drain(..excess);
    }

    /// Puts what was written elsewhere, from `position` on, before what is written from here on. What does not continue what is
    /// known takes its place; a position that cannot be is the beginning.
    pub(crate) fn remember(&mut self, position: u64, bytes: &[u8]) {
        let position = if position > PLACE_MAX { 0 } else { position };
        if self.written != position {
            self.bytes.clear();
            self.written = position;
        }
        self.add(bytes);
    }

    /// The place of the first byte that is kept, and the bytes.
    pub(crate) fn placed(&self) -> (u64, Vec<u8>) {
        (self.written - self.bytes.len() as u64, self.bytes.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_appended_and_anything_else_begins_anew() {
        let mut ring = Ring::default();
        ring.remember(100, b"GRUB");
        ring.remember(104, b" loading");
        assert_eq!(ring.placed(), (100, b"GRUB loading".to_vec()));
        ring.remember(500, b"login: ");
        assert_eq!(ring.placed(), (500, b"login: ".to_vec()));
    }

    #[test]
    fn a_place_that_cannot_be_is_the_beginning() {
        for place in [u64::MAX, u64::MAX - 3, PLACE_MAX + 1] {
            let mut ring = Ring::default();
            ring.remember(place, b"hello");
            ring.add(b" world");
            assert_eq!(ring.placed(), (0, b"hello world".to_vec()), "{place}");
        }
    }
}
