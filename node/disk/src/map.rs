//! Which blocks of a volume may hold data; the others are holes for certain. Pure.
//!
//! Kept in memory from the opening of a replica on, so that reading a hole, writing zeros into one and telling where the holes
//! are need not ask the file system. The file's only writer keeps it, and errs in one direction: a block that is no hole any
//! more is marked *before* the write begins, and unmarked only after it was made a hole and nothing else wrote to it.
//!
//! A chunk of 64 MiB that is all hole or all data takes 16 bytes, one that is mixed 2 KiB more: at most 33 MB for 1 TiB.

use std::ops::Range;

use crate::disk::BLOCK_BYTES;

/// Blocks in a chunk.
const CHUNK_BLOCKS: u64 = 16_384;
const WORDS: usize = (CHUNK_BLOCKS / 64) as usize;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// See the module's text. Ranges are in bytes.
#[derive(Debug, Clone)]
pub(crate) struct DataMap {
    chunks: Vec<Chunk>,
    size: u64,
}

#[derive(Debug, Clone)]
enum Chunk {
    Hole,
    Data,
    /// Some of both; how many bits are set is counted along.
    Mixed(Box<Bits>),
}

#[derive(Debug, Clone)]
struct Bits {
    words: [u64; WORDS],
    set: u64,
}

impl DataMap {
    /// All hole.
    pub(crate) fn new(size: u64) -> Self {
        let chunks = usize::try_from(size.div_ceil(CHUNK_BLOCKS * BLOCK)).expect("a volume's chunks can be counted");
        Self { chunks: vec![Chunk::Hole; chunks], size }
    }

    /// Every block that `range` touches may hold data from here on.
    pub(crate) fn mark(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        for_chunks(range.start / BLOCK..range.end.div_ceil(BLOCK), |chunk, bits| self.chunks[chunk].set(bits, true));
    }

    /// Every block that is whole in `range` is a hole.
    pub(crate) fn unmark(&mut self, range: Range<u64>) {
        let whole = whole_blocks(range);
        for_chunks(whole.start / BLOCK..whole.end / BLOCK, |chunk, bits| self.chunks[chunk].set(bits, false));
    }

    /// The run that begins at `offset` and ends at `end` at the latest: how long it is, and whether it may hold data.
    pub(crate) fn run(&self, offset: u64, end: u64) -> (u64, bool) {
        debug_assert!(offset < end && end <= self.size);
        let (first, last) = (offset / BLOCK, end.div_ceil(BLOCK));
        let data = self.holds(first);
        let mut block = first;
        while block < last {
            let (chunk, bit) = split(block);
            let alike = self.chunks[chunk].alike(bit, data);
            block += alike;
            if bit + alike < CHUNK_BLOCKS {
                break;
            }
        }
        ((block * BLOCK).min(end) - offset, data)
    }

    fn holds(&self, block: u64) -> bool {
        let (chunk, bit) = split(block);
        match &self.chunks[chunk] {
            Chunk::Hole => false,
            Chunk::Data => true,
            Chunk::Mixed(bits) => bits.words[word(bit)] >> (bit % 64) & 1 == 1,
        }
    }
}

/// The blocks that lie wholly in `range`; empty, but never backwards, if there are none.
pub(crate) fn whole_blocks(range: Range<u64>) -> Range<u64> {
    let start = range.start.next_multiple_of(BLOCK);
    start..(range.end / BLOCK * BLOCK).max(start)
}

fn split(block: u64) -> (usize, u64) {
    (usize::try_from(block / CHUNK_BLOCKS).expect("a volume's chunks can be counted"), block % CHUNK_BLOCKS)
}

fn word(bit: u64) -> usize {
    usize::try_from(bit / 64).expect("a chunk's words can be counted")
}

fn for_chunks(blocks: Range<u64>, mut each: impl FnMut(usize, Range<u64>)) {
    let mut at = blocks.start;
    while at < blocks.end {
        let (chunk, bit) = split(at);
        let bits = (blocks.end - at).min(CHUNK_BLOCKS - bit);
        each(chunk, bit..bit + bits);
        at += bits;
    }
}

impl Chunk {
    fn set(&mut self, bits: Range<u64>, data: bool) {
        if bits == (0..CHUNK_BLOCKS) {
            *self = if data { Self::Data } else { Self::Hole };
            return;
        }
        let mixed = match self {
            Self::Data if data => return,
            Self::Hole if !data => return,
            Self::Data => Box::new(Bits { words: [u64::MAX; WORDS], set: CHUNK_BLOCKS }),
            Self::Hole => Box::new(Bits { words: [0; WORDS], set: 0 }),
            Self::Mixed(mixed) => {
                mixed.set(bits, data);
                match mixed.set {
                    0 => *self = Self::Hole,
                    CHUNK_BLOCKS => *self = Self::Data,
                    _ => {}
                }
                return;
            }
        };
        let mut mixed = mixed;
        mixed.set(bits, data);
        *self = Self::Mixed(mixed);
    }

    /// How many blocks from `bit` on are `data`.
    fn alike(&self, bit: u64, data: bool) -> u64 {
        match self {
            Self::Hole => {
                if data {
                    0
                } else {
                    CHUNK_BLOCKS - bit
                }
            }
            Self::Data => {
                if data {
                    CHUNK_BLOCKS - bit
                } else {
                    0
                }
            }
            Self::Mixed(bits) => bits.alike(bit, data),
        }
    }
}

impl Bits {
    fn set(&mut self, bits: Range<u64>, data: bool) {
        let mut at = bits.start;
        while at < bits.end {
            let count = (bits.end - at).min(64 - at % 64);
            let mask = (u64::MAX >> (64 - count)) << (at % 64);
            let word = &mut self.words[word(at)];
            self.set -= u64::from(word.count_ones());
            *word = if data { *word | mask } else { *word & !mask };
            self.set += u64::from(word.count_ones());
            at += count;
        }
    }

    fn alike(&self, from: u64, data: bool) -> u64 {
        let mut at = from;
        while at < CHUNK_BLOCKS {
            let word = self.words[word(at)];
            let others = if data { !word } else { word } >> (at % 64);
            let alike = u64::from(others.trailing_zeros()).min(64 - at % 64);
            at += alike;
            if !at.is_multiple_of(64) || alike == 0 {
                break;
            }
        }
        at - from
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Two chunks and a bit.
    const SIZE: u64 = (2 * CHUNK_BLOCKS + 100) * BLOCK;

    fn runs(map: &DataMap, range: Range<u64>) -> Vec<(u64, bool)> {
        let (mut at, mut runs) = (range.start, Vec::new());
        while at < range.end {
            let run = map.run(at, range.end);
            at += run.0;
            runs.push(run);
        }
        runs
    }

    #[test]
    fn a_sector_makes_its_block_data_and_only_a_whole_block_becomes_a_hole() {
        let mut map = DataMap::new(SIZE);
        map.mark(512..1024);
        assert_eq!(runs(&map, 0..3 * BLOCK), [(BLOCK, true), (2 * BLOCK, false)]);

        map.unmark(512..BLOCK);
        assert_eq!(map.run(0, BLOCK), (BLOCK, true));
        map.unmark(0..BLOCK);
        assert_eq!(map.run(0, SIZE), (SIZE, false));
    }

    #[test]
    fn a_chunk_that_is_alike_again_takes_no_memory() {
        let mut map = DataMap::new(SIZE);
        map.mark(BLOCK..2 * BLOCK);
        assert!(matches!(map.chunks[0], Chunk::Mixed(_)));
        map.unmark(0..3 * BLOCK);
        assert!(matches!(map.chunks[0], Chunk::Hole));

        map.mark(0..CHUNK_BLOCKS * BLOCK - 1);
        assert!(matches!(map.chunks[0], Chunk::Data));
        assert_eq!(runs(&map, 0..SIZE), [(CHUNK_BLOCKS * BLOCK, true), ((CHUNK_BLOCKS + 100) * BLOCK, false)]);
    }

    proptest! {
        #[test]
        fn it_says_what_a_bit_for_each_block_would_say(
            changes in prop::collection::vec((any::<bool>(), 0..SIZE / 512, 1u64..300_000), 1..40),
        ) {
            let mut map = DataMap::new(SIZE);
            let mut model = vec![false; usize::try_from(SIZE / BLOCK).unwrap()];
            for (data, sector, sectors) in changes {
                let range = sector * 512..((sector + sectors) * 512).min(SIZE);
                let blocks = if data {
                    map.mark(range.clone());
                    range.start / BLOCK..range.end.div_ceil(BLOCK)
                } else {
                    map.unmark(range.clone());
                    let whole = whole_blocks(range);
                    whole.start / BLOCK..whole.end / BLOCK
                };
                for block in blocks {
                    model[usize::try_from(block).unwrap()] = data;
                }
            }
            let mut told = Vec::new();
            for (bytes, data) in runs(&map, 0..SIZE) {
                prop_assert_eq!(bytes % BLOCK, 0);
                prop_assert!(told.last() != Some(&data), "neighbours differ");
                told.extend(std::iter::repeat_n(data, usize::try_from(bytes / BLOCK).unwrap()));
            }
            prop_assert!(told == model);
        }
    }
}
