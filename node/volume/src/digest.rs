//! A digest of what a range holds, as it reads. Between a replica and who asks it goes in the place of the data.

use std::sync::OnceLock;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use pollux_disk::Piece;
use pollux_mirror::Digest;

/// Of a digest.
pub(crate) const DIGEST_BYTES: usize = 32;
/// Holes are told apart from zeros by nobody.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// What is compared at a time, mostly.
const USUAL_BYTES: u32 = 512 * 1024;

/// Of what was read.
pub(crate) fn of(pieces: &[Piece]) -> Vec<Piece> {
    let digest = match pieces {
        [Piece::Zeroes(bytes)] => of_zeroes(*bytes),
        _ => computed(pieces),
    };
    vec![Piece::Data(Bytes::copy_from_slice(&digest.0))]
}

/// Of so many zeros. Of the usual number it is known.
pub(crate) fn of_zeroes(bytes: u32) -> Digest {
    static USUAL: OnceLock<Digest> = OnceLock::new();
    if bytes == USUAL_BYTES {
        *USUAL.get_or_init(|| computed(&[Piece::Zeroes(USUAL_BYTES)]))
    } else {
        computed(&[Piece::Zeroes(bytes)])
    }
}

fn computed(pieces: &[Piece]) -> Digest {
    let mut context = Context::new(&SHA256);
    for piece in pieces {
        match piece {
            Piece::Data(data) => context.update(data),
            Piece::Zeroes(bytes) => {
                let mut left = *bytes as usize;
                while left > 0 {
                    let some = left.min(ZEROES.len());
                    context.update(&ZEROES[..some]);
                    left -= some;
                }
            }
        }
    }
    Digest(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

/// As it came; `None`: that is something else.
pub(crate) fn read(pieces: &[Piece]) -> Option<Digest> {
    let [Piece::Data(data)] = pieces else { return None };
    data[..].try_into().ok().map(Digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_of_the_bytes_and_not_of_how_they_lie_on_the_disk() {
        let holes = of(&[data(512, 7), Piece::Zeroes(200_192), data(512, 8)]);
        assert_eq!(of(&[data(512, 7), data(512, 0), Piece::Zeroes(199_168), data(512, 0), data(512, 8)]), holes);
        assert_ne!(of(&[data(512, 7), Piece::Zeroes(199_680), data(512, 8)]), holes);
        let read = read(&holes).expect("it is one");
        assert_eq!(of(&[]), [Piece::Data(Bytes::from_static(&EMPTY))], "SHA-256, in hosts of any kind");
        assert_ne!(read.0, EMPTY);
        assert_eq!(super::read(&[Piece::Zeroes(32)]), None);
    }

    #[test]
    fn that_of_zeros_is_the_same_however_it_is_known() {
        for bytes in [512, USUAL_BYTES - 512, USUAL_BYTES, USUAL_BYTES + 512] {
            let written = of(&[data(bytes as usize - 512, 0), data(512, 0)]);
            assert_eq!(read(&written), Some(of_zeroes(bytes)), "{bytes}");
            assert_eq!(of(&[Piece::Zeroes(bytes)]), written);
        }
    }

    fn data(bytes: usize, byte: u8) -> Piece {
        Piece::Data(vec![byte; bytes].into())
    }

    /// Of no bytes (FIPS 180-4).
    const EMPTY: [u8; DIGEST_BYTES] = [
        0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae,
        0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
    ];
}
