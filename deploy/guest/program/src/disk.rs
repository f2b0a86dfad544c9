//! The knob on a disk: blocks of `/dev/vda` that are written, put on stable storage and read back all the time, and a memory of what
//! each must hold.
//!
//! Block *i* is written over and over, each time with a number one higher; its first words are its place and that number, the rest
//! follows from both. What a read may find is what the last write that ended left there, for only one thread uses the disk. A write
//! that failed may have left either, or a part of each, which is read once and is the truth from then on. After a new boot
//! [`DiskWork::adopt`] takes what is there for the truth, after it has made sure that every block is whole and holds at least what
//! was flushed, as far as whoever asks knows.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::libc;

const BLOCK_BYTES: usize = 4096;
const WORDS: usize = BLOCK_BYTES / 8;
/// Where the blocks begin on the disk, in bytes: what is before is left to a boot loader.
const BASE: u64 = 1 << 20;
/// A flush follows so many writes.
const WRITES_PER_FLUSH: u64 = 16;
/// Blocks at most: a gigabyte.
const BLOCKS_MAX: usize = 262_144;
/// Of so many writes, the last ones, it is remembered how long they took.
const REMEMBERED_MAX: usize = 65_536;

/// Direct I/O needs memory at a multiple of this.
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

/// The disk and what is done to it.
#[derive(Default)]
pub(crate) struct DiskWork {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    device: String,
    /// The number that each block holds.
    held: Vec<u64>,
    running: bool,
    /// Tells a thread that goes on after its work was replaced that it is not meant any more.
    turn: u64,
    writes: u64,
    reads: u64,
    flushes: u64,
    errors: u64,
    /// The first thing that was not as it must be.
    wrong: Option<String>,
    longest: Duration,
    /// How long writes took, without the flushes after them, in microseconds; beyond [`REMEMBERED_MAX`] in the place of the oldest.
    took_us: Vec<u32>,
    timed: usize,
}

impl DiskWork {
    /// Writes, flushes and reads the first `blocks` blocks of `device`, `rate` times a second, until it is stopped. A rate of 0 stops.
    /// Blocks that were used before hold what they held.
    pub(crate) fn start(&self, device: &str, blocks: usize, rate: u64) -> Result<String, String> {
        if blocks == 0 || blocks > BLOCKS_MAX {
            return Err(format!("give 1 to {BLOCKS_MAX} blocks"));
        }
        let file = open(device)?;
        let mut state = self.state();
        state.turn += 1;
        if state.device != device || state.held.len() < blocks {
            let fresh = state.device != device;
            device.clone_into(&mut state.device);
            if fresh {
                state.held.clear();
            }
            state.held.resize(blocks, 0);
        }
        state.running = rate > 0;
        state.longest = Duration::ZERO;
        state.took_us.clear();
        state.timed = 0;
        let (turn, shared) = (state.turn, Arc::clone(&self.state));
        drop(state);
        if rate > 0 {
            thread::Builder::new()
                .name("disk".into())
                .spawn(move || work(&shared, &file, turn, blocks, rate))
                .map_err(|error| error.to_string())?;
        }
        Ok(format!("OK {blocks}"))
    }

    /// What was done, and how it went.
    pub(crate) fn report(&self) -> Result<String, String> {
        let state = self.state();
        if let Some(wrong) = &state.wrong {
            return Err(wrong.clone());
        }
        let State { writes, reads, flushes, errors, longest, .. } = &*state;
        Ok(format!(
            "OK writes {writes} reads {reads} flushes {flushes} errors {errors} longest_ms {} p99_us {}",
            longest.as_millis(),
            percentile_99(&state.took_us)
        ))
    }

    /// Reads every block and compares it with what must be there.
    pub(crate) fn check(&self) -> Result<String, String> {
        let state = self.state();
        if let Some(wrong) = &state.wrong {
            return Err(wrong.clone());
        }
        let file = open(&state.device)?;
        for (block, held) in state.held.iter().enumerate() {
            let found = read(&file, block)?;
            if found != *held {
                return Err(format!("block {block} holds number {found}, not {held}"));
            }
        }
        Ok(format!("OK {}", state.held.len()))
    }

    /// Takes what `device` holds for the truth: after a boot, when nobody remembers. Tells the sum of all numbers, which never falls
    /// as long as nothing that was flushed is lost.
    pub(crate) fn adopt(&self, device: &str, blocks: usize) -> Result<String, String> {
        if blocks > BLOCKS_MAX {
            return Err(format!("at most {BLOCKS_MAX} blocks"));
        }
        let file = open(device)?;
        let held = (0..blocks).map(|block| read(&file, block)).collect::<Result<Vec<_>, _>>()?;
        let sum: u64 = held.iter().sum();
        let mut state = self.state();
        state.turn += 1;
        state.running = false;
        device.clone_into(&mut state.device);
        state.held = held;
        Ok(format!("OK {sum}"))
    }

    /// The sum of all numbers that are on stable storage now: flushes first.
    pub(crate) fn flushed(&self) -> Result<String, String> {
        let state = self.state();
        let sum: u64 = state.held.iter().sum();
        open(&state.device)?.sync_data().map_err(|error| format!("flushing: {error}"))?;
        Ok(format!("OK {sum}"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics with the lock held, so what is behind a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What 99 in a hundred do not exceed; 0 of none.
fn percentile_99(took_us: &[u32]) -> u32 {
    let mut sorted = took_us.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(0)
}

fn open(device: &str) -> Result<File, String> {
    if !device.starts_with("/dev/") {
        return Err(format!("{device} is no device"));
    }
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(device);
    file.map_err(|error| format!("{device}: {error}"))
}

/// What a block holds under a number.
fn content(block: usize, number: u64) -> Box<Block> {
    let mut content = Box::new(Block([0; BLOCK_BYTES]));
    let mut seed = (block as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03);
    for (word, bytes) in content.0.chunks_exact_mut(8).enumerate() {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let value = match word {
            0 => block as u64,
            1 => number,
            _ => seed,
        };
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    content
}

fn place(block: usize) -> u64 {
    BASE + (block * BLOCK_BYTES) as u64
}

/// The number that a block holds; 0 if it was never written.
fn read(file: &File, block: usize) -> Result<u64, String> {
    let mut found = Box::new(Block([0; BLOCK_BYTES]));
    file.read_exact_at(&mut found.0, place(block)).map_err(|error| format!("reading block {block}: {error}"))?;
    if found.0.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let mut number = [0; 8];
    number.copy_from_slice(&found.0[8..16]);
    let number = u64::from_le_bytes(number);
    let wrong = content(block, number).0.chunks_exact(8).zip(found.0.chunks_exact(8)).position(|(a, b)| a != b);
    match wrong {
        None => Ok(number),
        Some(word) => Err(format!("block {block} with number {number} is wrong from word {word} of {WORDS} on")),
    }
}

fn work(shared: &Mutex<State>, file: &File, turn: u64, blocks: usize, rate: u64) {
    let pause = Duration::from_micros(1_000_000 / rate);
    let mut seed = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = Instant::now();
    let mut round = 0_u64;
    loop {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let block = usize::try_from(seed >> 16).unwrap_or(0) % blocks;
        {
            // Held all through: whoever checks sees no half of it.
            let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if state.turn != turn || !state.running {
                return;
            }
            let began = Instant::now();
            step(&mut state, file, block, round);
            state.longest = state.longest.max(began.elapsed());
        }
        round += 1;
        next += pause;
        match next.checked_duration_since(Instant::now()) {
            Some(left) => thread::sleep(left),
            // What could not be done in time is forgone.
            None => next = Instant::now(),
        }
    }
}

fn step(state: &mut State, file: &File, block: usize, round: u64) {
    if round % 4 == 3 {
        state.reads += 1;
        match read(file, block) {
            Ok(found) if found == state.held[block] => {}
            Ok(found) => {
                let held = state.held[block];
                state.wrong.get_or_insert(format!("block {block} held number {found}, not {held}"));
            }
            Err(why) => {
                state.errors += 1;
                state.wrong.get_or_insert(why);
            }
        }
        return;
    }
    let number = state.held[block] + 1;
    let content = content(block, number);
    let began = Instant::now();
    let wrote = file.write_all_at(&content.0, place(block));
    remember(state, began.elapsed());
    let done = wrote.and_then(|()| if round.is_multiple_of(WRITES_PER_FLUSH) { flush(state, file) } else { Ok(()) });
    match done {
        Ok(()) => {
            state.writes += 1;
            state.held[block] = number;
        }
        Err(error) => {
            state.errors += 1;
            state.wrong.get_or_insert(format!("writing block {block}: {error}"));
        }
    }
}

fn remember(state: &mut State, took: Duration) {
    let took_us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
    let at = state.timed % REMEMBERED_MAX;
    match state.took_us.get_mut(at) {
        Some(oldest) => *oldest = took_us,
        None => state.took_us.push(took_us),
    }
    state.timed += 1;
}

fn flush(state: &mut State, file: &File) -> io::Result<()> {
    state.flushes += 1;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_follows_from_its_place_and_its_number() {
        assert_eq!(content(3, 7).0, content(3, 7).0);
        assert_ne!(content(3, 7).0, content(3, 8).0);
        assert_ne!(content(3, 7).0, content(4, 7).0);
        assert_eq!(content(3, 7).0[8], 7);
    }

    #[test]
    fn the_last_writes_are_remembered_and_one_in_a_hundred_is_slower() {
        let mut state = State::default();
        assert_eq!(percentile_99(&state.took_us), 0);
        for ms in 1..=100 {
            remember(&mut state, Duration::from_millis(ms));
        }
        assert_eq!(percentile_99(&state.took_us), 100_000);
        (0..REMEMBERED_MAX).for_each(|_| remember(&mut state, Duration::from_micros(7)));
        assert_eq!((percentile_99(&state.took_us), state.took_us.len()), (7, REMEMBERED_MAX));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let work = DiskWork::default();
        assert!(work.start("/etc/passwd", 1, 1).unwrap_err().contains("no device"));
        assert!(work.start("/dev/null", 0, 1).unwrap_err().contains("blocks"));
        assert!(work.start("/dev/null", BLOCKS_MAX + 1, 1).is_err());
    }
}
