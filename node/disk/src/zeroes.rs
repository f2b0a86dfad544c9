//! Finds the zeros in what a guest writes: whole blocks of them need no room. Pure.

use std::ops::Range;

use crate::disk::BLOCK_BYTES;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Looked at between two exits, in bytes. Wide enough for the processor's widest instructions.
const STRIDE: usize = 256;

/// A part of what is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where in the data.
    pub(crate) range: Range<usize>,
    /// Whole blocks, all of them zeros.
    pub(crate) zero: bool,
}

/// Cuts `data`, which is to be written at `offset`, into runs of zero blocks and of the rest, in turn.
pub(crate) fn runs(offset: u64, data: &[u8]) -> Runs<'_> {
    let into_block = usize::try_from(offset % u64::from(BLOCK_BYTES)).expect("less than a block");
    Runs { data, at: 0, first: (BLOCK - into_block) % BLOCK }
}

/// See [`runs`].
pub(crate) struct Runs<'a> {
    data: &'a [u8],
    at: usize,
    /// Where the first whole block begins.
    first: usize,
}

impl Runs<'_> {
    /// The block that begins at `at`, if it is a whole one.
    fn zero_at(&self, at: usize) -> bool {
        at >= self.first && self.data.get(at..at + BLOCK).is_some_and(all_zero)
    }

    fn end_of_block(&self, at: usize) -> usize {
        let end = if at < self.first { self.first } else { at + BLOCK };
        end.min(self.data.len())
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let start = self.at;
        if start >= self.data.len() {
            return None;
        }
        let zero = self.zero_at(start);
        let mut end = self.end_of_block(start);
        while end < self.data.len() && self.zero_at(end) == zero {
            end = self.end_of_block(end);
        }
        self.at = end;
        Some(Run { range: start..end, zero })
    }
}

/// Data mostly says so in its first bytes.
fn all_zero(block: &[u8]) -> bool {
    let (head, _) = block.split_at(block.len().min(16));
    head.iter().all(|byte| *byte == 0)
        && block.chunks(STRIDE).all(|stride| stride.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_single_byte_anywhere_makes_a_block_data() {
        let mut block = vec![0; BLOCK];
        assert!(all_zero(&block));
        for at in 0..BLOCK {
            block[at] = 1;
            assert!(!all_zero(&block), "byte {at} was overlooked");
            block[at] = 0;
        }
    }

    #[test]
    fn only_whole_blocks_count_wherever_the_write_begins() {
        let data = vec![0; 3 * BLOCK];
        assert_eq!(runs(8192, &data).collect::<Vec<_>>(), [Run { range: 0..3 * BLOCK, zero: true }]);

        let cut: Vec<_> = runs(512, &data).collect();

        let (head, tail) = (BLOCK - 512, 3 * BLOCK - 512);
        assert_eq!(cut[0], Run { range: 0..head, zero: false });
        assert_eq!(cut[1], Run { range: head..tail, zero: true });
        assert_eq!(cut[2], Run { range: tail..3 * BLOCK, zero: false });
    }

    proptest! {
        #[test]
        fn runs_cover_everything_once_and_zero_runs_are_zero(
            sector in 0u64..16,
            sectors in 1usize..64,
            marks in prop::collection::vec(0usize..64 * 512, 0..6),
        ) {
            let mut data = vec![0; sectors * 512];
            let bytes = data.len();
            for mark in marks {
                data[mark % bytes] = 1;
            }
            let (mut at, mut last) = (0, None);
            for run in runs(sector * 512, &data) {
                prop_assert_eq!(run.range.start, at);
                prop_assert!(!run.range.is_empty());
                prop_assert!(last != Some(run.zero), "neighbours differ");
                if run.zero {
                    prop_assert!(data[run.range.clone()].iter().all(|byte| *byte == 0));
                    prop_assert_eq!(run.range.len() % BLOCK, 0);
                    prop_assert_eq!((sector * 512 + run.range.start as u64) % u64::from(BLOCK_BYTES), 0);
                }
                (at, last) = (run.range.end, Some(run.zero));
            }
            prop_assert_eq!(at, bytes);
        }
    }
}
