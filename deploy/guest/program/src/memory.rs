//! The knob on memory: a buffer whose pages are rewritten at a set rate, and whose every word can be checked afterwards.
//!
//! Page *i* holds in its first word the number of the sweep that wrote it last, and in all others contents that follow from *i*
//! alone. A sweep goes through the pages in order, so at any time the pages before the cursor carry this sweep's number and the
//! others the one before. A move that mixes up, loses or takes an old copy of a single page is therefore found by
//! [`DirtyMemory::check`].

use std::{
    fs,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

const PAGE_BYTES: usize = 4096;
const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// The buffer grows and shrinks by pieces of this size, so that growing never copies it.
const PIECE_BYTES: usize = 1 << 20;
const PIECE_PAGES: usize = PIECE_BYTES / PAGE_BYTES;
/// How often the dirtying thread wakes up.
const TICK: Duration = Duration::from_millis(10);
/// Work that may pile up while the thread cannot run; what is beyond is forgone, not caught up with in a burst.
const BACKLOG_MAX: Duration = Duration::from_millis(100);
/// Memory left to the rest of the guest.
const RESERVE_MIB: usize = 48;
const TEXT: &[u8; 64] = b"Castor was mortal; his twin shared his life with him, turn about";

/// What the pages of the buffer are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Compresses well.
    #[default]
    Text,
    /// Does not compress.
    Random,
}

/// The buffer and the rate at which it is rewritten.
#[derive(Default)]
pub(crate) struct DirtyMemory {
    state: Mutex<State>,
    rate_changed: Condvar,
}

#[derive(Default)]
struct State {
    /// One allocation per piece, page after page.
    pieces: Vec<Box<[u64]>>,
    contents: Contents,
    pages_per_second: usize,
    /// The page that the sweep writes next.
    cursor: usize,
    /// The number of the sweep under way; pages at and after the cursor carry the one before.
    sweep: u64,
}

impl DirtyMemory {
    /// Makes the buffer `mib` MiB large and gives every page its contents. Returns the number of pages.
    pub(crate) fn fill(&self, mib: usize, contents: Contents) -> Result<usize, String> {
        let mut state = self.state();
        state.resize(mib)?;
        state.contents = contents;
        state.write_all();
        Ok(state.pages())
    }

    /// Makes the buffer `mib` MiB large and has it rewritten at this rate (in 10^6 bytes a second). Returns the number of pages.
    pub(crate) fn dirty(&self, mib: usize, megabytes_per_second: usize) -> Result<usize, String> {
        let rate = megabytes_per_second.checked_mul(1_000_000).ok_or("this rate is beyond reason")? / PAGE_BYTES;
        let mut state = self.state();
        if state.pieces.len() != mib {
            state.resize(mib)?;
            state.write_all();
        }
        state.pages_per_second = if state.pages() == 0 { 0 } else { rate };
        self.rate_changed.notify_all();
        Ok(state.pages())
    }

    /// Compares every word of the buffer with what must be there. Returns the number of pages, or what is wrong first.
    pub(crate) fn check(&self) -> Result<usize, String> {
        let state = self.state();
        (0..state.pages()).try_for_each(|page| state.check_page(page)).map(|()| state.pages())
    }

    /// Rewrites pages at the rate that is set, sleeping while that is none. Never returns.
    pub(crate) fn dirty_for_ever(&self) -> ! {
        loop {
            let state = self.state();
            let state = self.rate_changed.wait_while(state, |state| state.pages_per_second == 0);
            drop(state.unwrap_or_else(PoisonError::into_inner));
            self.dirty_until_stopped();
        }
    }

    fn dirty_until_stopped(&self) {
        let mut owed_nanos: u128 = 0;
        let mut before = Instant::now();
        loop {
            std::thread::sleep(TICK);
            let now = Instant::now();
            owed_nanos = (owed_nanos + (now - before).as_nanos()).min(BACKLOG_MAX.as_nanos());
            before = now;

            let mut state = self.state();
            if state.pages_per_second == 0 {
                return;
            }
            let nanos_per_page = 1_000_000_000_u128.div_ceil(state.pages_per_second as u128);
            while owed_nanos >= nanos_per_page {
                owed_nanos -= nanos_per_page;
                state.touch_next();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The checks below panic nowhere with the lock held, so what is behind a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pages(&self) -> usize {
        self.pieces.len() * PIECE_PAGES
    }

    fn resize(&mut self, mib: usize) -> Result<(), String> {
        if mib > self.pieces.len() {
            let more = mib - self.pieces.len();
            let free = available_mib()?.saturating_sub(RESERVE_MIB);
            if more > free {
                return Err(format!("{more} MiB more do not fit: {free} MiB can be given"));
            }
        }
        self.pieces.truncate(mib);
        while self.pieces.len() < mib {
            self.pieces.push(vec![0; PIECE_BYTES / 8].into_boxed_slice());
        }
        Ok(())
    }

    /// Gives every page its contents, as if a sweep had just ended.
    fn write_all(&mut self) {
        self.cursor = 0;
        for page in 0..self.pages() {
            self.write_whole(page);
        }
    }

    fn page(&self, page: usize) -> &[u64] {
        let start = page % PIECE_PAGES * PAGE_WORDS;
        &self.pieces[page / PIECE_PAGES][start..start + PAGE_WORDS]
    }

    fn page_mut(&mut self, page: usize) -> &mut [u64] {
        let start = page % PIECE_PAGES * PAGE_WORDS;
        &mut self.pieces[page / PIECE_PAGES][start..start + PAGE_WORDS]
    }

    fn write_whole(&mut self, page: usize) {
        let (contents, stamp) = (self.contents, self.sweep.wrapping_sub(1));
        let mut words = words_of(contents, page);
        let target = self.page_mut(page);
        target[0] = stamp;
        target[1..].fill_with(|| words.next_word());
    }

    fn touch_next(&mut self) {
        let (page, sweep) = (self.cursor, self.sweep);
        self.page_mut(page)[0] = sweep;
        self.cursor += 1;
        if self.cursor == self.pages() {
            self.cursor = 0;
            self.sweep = self.sweep.wrapping_add(1);
        }
    }

    fn check_page(&self, page: usize) -> Result<(), String> {
        let expected = if page < self.cursor { self.sweep } else { self.sweep.wrapping_sub(1) };
        let found = self.page(page);
        if found[0] != expected {
            return Err(format!("page {page} is of sweep {}, not {expected}", found[0]));
        }
        let mut words = words_of(self.contents, page);
        match found[1..].iter().position(|word| *word != words.next_word()) {
            None => Ok(()),
            Some(word) => Err(format!("page {page} differs in word {}", word + 1)),
        }
    }
}

/// The contents of one page, word after word.
struct Words {
    contents: Contents,
    state: u64,
    next: usize,
}

fn words_of(contents: Contents, page: usize) -> Words {
    Words { contents, state: page as u64 + 1, next: 0 }
}

impl Words {
    fn next_word(&mut self) -> u64 {
        match self.contents {
            Contents::Text => {
                let at = self.next % (TEXT.len() / 8) * 8;
                self.next += 1;
                // The page's number in every line of text: no two pages are alike, and still each compresses well.
                let word = TEXT[at..at + 8].iter().fold(0, |word, byte| (word << 8) | u64::from(*byte));
                if at == 0 { word ^ self.state } else { word }
            }
            // SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
            Contents::Random => {
                self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = self.state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^ (z >> 31)
            }
        }
    }
}

/// Memory the kernel could give right now.
fn available_mib() -> Result<usize, String> {
    let text = fs::read_to_string("/proc/meminfo").map_err(|error| format!("cannot read /proc/meminfo: {error}"))?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse().ok());
    kib.map(|kib: usize| kib / 1024).ok_or_else(|| "/proc/meminfo does not tell what is available".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(contents: Contents, pages: usize) -> DirtyMemory {
        let memory = DirtyMemory::default();
        memory.fill(1, contents).unwrap();
        for _ in 0..pages {
            memory.state().touch_next();
        }
        memory
    }

    #[test]
    fn every_page_is_as_expected_at_any_point_of_a_sweep() {
        for contents in [Contents::Text, Contents::Random] {
            for pages in [0, 1, PIECE_PAGES - 1, PIECE_PAGES, PIECE_PAGES + 7] {
                assert_eq!(touched(contents, pages).check(), Ok(PIECE_PAGES), "{contents:?} after {pages} pages");
            }
        }
    }

    #[test]
    fn an_old_copy_of_one_page_is_found() {
        let memory = touched(Contents::Text, 3);
        let old = memory.state().page(4).to_vec();
        for _ in 0..3 {
            memory.state().touch_next();
        }
        assert_eq!(memory.check(), Ok(PIECE_PAGES));
        memory.state().page_mut(4).copy_from_slice(&old);
        assert!(memory.check().unwrap_err().starts_with("page 4 is of sweep"));
    }

    #[test]
    fn a_page_in_the_place_of_another_and_a_flipped_bit_are_found() {
        for contents in [Contents::Text, Contents::Random] {
            let memory = touched(contents, 0);
            let other = memory.state().page(8).to_vec();
            memory.state().page_mut(9).copy_from_slice(&other);
            assert!(memory.check().unwrap_err().starts_with("page 9 differs"));

            let memory = touched(contents, 0);
            memory.state().page_mut(200)[511] ^= 1;
            assert_eq!(memory.check().unwrap_err(), "page 200 differs in word 511");
        }
    }

    #[test]
    fn the_buffer_grows_and_shrinks_and_stays_checkable() {
        let memory = touched(Contents::Random, 700);
        assert_eq!(memory.dirty(3, 0), Ok(3 * PIECE_PAGES));
        assert_eq!(memory.check(), Ok(3 * PIECE_PAGES));
        assert_eq!(memory.dirty(0, 50), Ok(0));
        assert_eq!(memory.check(), Ok(0));
        assert!(memory.dirty(1 << 30, 1).unwrap_err().contains("do not fit"));
    }
}
