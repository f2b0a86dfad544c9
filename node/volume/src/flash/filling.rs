//! A volume becomes one of a firmware's variables, once.

use bytes::Bytes;
use pollux_disk::{BLOCK_BYTES, Disk, DiskError, Operation, Outcome, Piece, perform};

/// In this unit, in bytes, a write is whole or not there.
const BLOCK: usize = BLOCK_BYTES as usize;

/// The variables of a firmware cannot be had from a volume.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// It is too small.
    #[error("it has {has} bytes, and this firmware's variables need {needs}; grow it")]
    Small {
        /// Its size, in bytes.
        has: u64,
        /// What is needed, in bytes.
        needs: u64,
    },
    /// There is something else on it, which would be overwritten.
    #[error(
        "it holds something else than a firmware's variables, or the half of them as another version has them; give the VM an empty one"
    )]
    Other,
    /// It cannot be read or written.
    #[error("it cannot be prepared for a firmware's variables")]
    Disk(#[from] DiskError),
}

/// Reads the variables from `disk`, which has nothing else to do. Those of an empty one become `template`, as those of a new machine are;
/// `known` says whether bytes are a firmware's variables at all.
///
/// # Errors
/// See [`PrepareError`].
pub async fn prepare(
    disk: &mut impl Disk,
    template: &Bytes,
    known: impl Fn(&[u8]) -> bool,
) -> Result<Vec<u8>, PrepareError> {
    let (has, needs) = (disk.size(), template.len() as u64);
    if has < needs {
        return Err(PrepareError::Small { has, needs });
    }
    let bytes = u32::try_from(needs).map_err(|_| PrepareError::Other)?;
    let Outcome::Read(pieces) = perform(disk, Operation::Read { offset: 0, bytes }).await? else {
        unreachable!("a read ends in what was read");
    };
    let mut content = Vec::with_capacity(template.len());
    for piece in pieces {
        match piece {
            Piece::Data(data) => content.extend_from_slice(&data),
            Piece::Zeroes(count) => content.resize(content.len() + count as usize, 0),
        }
    }
    if is_new(&content, template) {
        // Its beginning, by which it is known, last: one that is half filled is filled again.
        let first = BLOCK.min(template.len());
        for (at, data) in [(first, template.slice(first..)), (0, template.slice(..first))] {
            if !data.is_empty() {
                perform(disk, Operation::Write { offset: at as u64, data, durable: true }).await?;
            }
        }
        return Ok(template.to_vec());
    }
    if known(&content) { Ok(content) } else { Err(PrepareError::Other) }
}

/// Nothing but zeros, or what was written of the template before its writer ended.
fn is_new(content: &[u8], template: &[u8]) -> bool {
    let zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let mut blocks = content.chunks(BLOCK).zip(template.chunks(BLOCK));
    blocks.next().is_some_and(|(first, _)| zero(first)) && blocks.all(|(block, as_new)| zero(block) || block == as_new)
}
