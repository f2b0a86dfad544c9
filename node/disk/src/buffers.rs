//! Memory for data on its way, used again and again: page-aligned, never cleared twice, and never more kept than a limit.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

use crate::disk::TRANSFER_BYTES_MAX;

/// What is kept for later, in bytes, beyond what is in use. Sixteen requests of 1 MiB, as many as QEMU has in flight.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// Buffers come in powers of two, from one page up to the largest transfer.
const CLASSES: usize = (TRANSFER_BYTES_MAX / PAGE_BYTES_U32).ilog2() as usize + 1;
const PAGE_BYTES: usize = 4096;
const PAGE_BYTES_U32: u32 = 4096;
const _: () = assert!(TRANSFER_BYTES_MAX.is_power_of_two(), "the largest class holds the largest transfer");

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

/// Where buffers come from and go back to. Clones share it.
#[derive(Clone, Default)]
pub struct Buffers(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    classes: [Vec<Vec<Page>>; CLASSES],
    bytes: usize,
}

/// Memory that one owner fills. What is in it at first is whatever was in it last.
pub struct Buffer {
    pages: Vec<Page>,
    bytes: usize,
    home: Buffers,
}

impl Buffers {
    /// A buffer of exactly `bytes`.
    ///
    /// # Panics
    /// Beyond [`TRANSFER_BYTES_MAX`].
    #[must_use]
    pub fn take(&self, bytes: usize) -> Buffer {
        let pages = bytes.div_ceil(PAGE_BYTES).next_power_of_two();
        let class = pages.ilog2() as usize;
        assert!(class < CLASSES, "no transfer has {bytes} bytes");
        let kept = {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let pages = kept.classes[class].pop();
            if let Some(pages) = &pages {
                kept.bytes -= pages.len() * PAGE_BYTES;
            }
            pages
        };
        let pages = kept.unwrap_or_else(|| Page::new_vec_zeroed(pages).expect("memory for a transfer"));
        Buffer { pages, bytes, home: self.clone() }
    }

    fn put_back(&self, pages: Vec<Page>) {
        let bytes = pages.len() * PAGE_BYTES;
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > 0 && kept.bytes + bytes <= KEPT_BYTES_MAX {
            kept.bytes += bytes;
            kept.classes[pages.len().ilog2() as usize].push(pages);
        }
    }
}

impl Buffer {
    /// From here on it is only read, by any number of owners; it goes back with the last.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.bytes]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[..self.bytes]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.put_back(std::mem::take(&mut self.pages));
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes)
    }
}

impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Buffers")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(buffers: &Buffers) -> usize {
        buffers.0.lock().unwrap().bytes
    }

    #[test]
    fn a_buffer_is_as_long_as_asked_for_aligned_and_used_again() {
        let buffers = Buffers::default();
        for bytes in [512, 4096, 4097, 1 << 20, TRANSFER_BYTES_MAX as usize] {
            let buffer = buffers.take(bytes);
            assert_eq!(buffer.len(), bytes);
            assert_eq!(buffer.as_ptr().addr() % PAGE_BYTES, 0);
        }

        let first = buffers.take(4096).as_ptr();
        assert_eq!(buffers.take(512).as_ptr(), first, "the same memory");
    }

    #[test]
    fn frozen_it_comes_back_with_the_last_reader() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(8192);
        buffer.fill(7);
        let data = buffer.freeze();
        let part = data.slice(10..20);
        drop(data);
        assert_eq!(kept(&buffers), 0);
        assert_eq!(part[..], [7; 10]);

        drop(part);

        assert_eq!(kept(&buffers), 8192);
    }

    #[test]
    fn no_more_is_kept_than_the_limit() {
        let buffers = Buffers::default();
        let many: Vec<_> = (0..40).map(|_| buffers.take(1 << 20)).collect();
        drop(many);
        assert_eq!(kept(&buffers), KEPT_BYTES_MAX);
    }
}
