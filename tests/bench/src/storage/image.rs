//! The image that the disks are made of: raw, sparse, a quarter of it random data.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

/// In each stretch of so many bytes a quarter is data.
const STRETCH_BYTES: u64 = 128 << 20;
/// From here on in each; before it, and behind, nothing was ever written.
pub(super) const FIRST_BYTES: u64 = 32 << 20;
const DATA_BYTES: u64 = STRETCH_BYTES / 4;
const PIECE_BYTES: usize = 1 << 20;

pub(super) fn make(path: &Path, size: u64) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(size)?;
    let (mut number, mut piece) = (0x9e37_79b9_7f4a_7c15_u64, vec![0; PIECE_BYTES]);
    for at in (0..size).step_by(PIECE_BYTES).filter(|at| is_data(*at)) {
        for word in piece.chunks_exact_mut(8) {
            // Xorshift: never zero.
            number ^= number << 13;
            number ^= number >> 7;
            number ^= number << 17;
            word.copy_from_slice(&number.to_le_bytes());
        }
        file.write_all_at(&piece, at)?;
    }
    file.sync_all()
}

fn is_data(at: u64) -> bool {
    (FIRST_BYTES..FIRST_BYTES + DATA_BYTES).contains(&(at % STRETCH_BYTES))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_quarter_is_data_and_the_rest_is_not_there() {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = directory.path().join("image");
        make(&path, 2 * STRETCH_BYTES).unwrap();
        let file = path.metadata().unwrap();
        assert_eq!((file.len(), file.blocks() * 512), (2 * STRETCH_BYTES, STRETCH_BYTES / 2));
        let mut word = [0; 8];
        File::open(&path).unwrap().read_exact_at(&mut word, FIRST_BYTES).unwrap();
        assert_ne!(word, [0; 8]);
    }
}
