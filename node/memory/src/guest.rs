//! The memory file and this process's view of it.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use pollux_vm::pages::PAGE_BYTES;
use rustix::{
    fs::{FallocateFlags, MemfdFlags, SealFlags, SeekFrom},
    io::Errno,
};

use crate::{PAGE, sys::SharedMapping};

/// The largest guest, in bytes: 16 TiB. A larger number is a mistake in a definition, not a guest.
pub const GUEST_BYTES_MAX: u64 = 16 << 40;

/// A guest's memory could not be created, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is no guest memory.
    #[error(
        "guest memory `{name}` of {bytes} bytes: the size must be a multiple of {PAGE_BYTES} between one page and {GUEST_BYTES_MAX}"
    )]
    Size {
        /// Name of the memory.
        name: String,
        /// The size asked for.
        bytes: u64,
    },
    /// The kernel refused one step of the creation.
    #[error("guest memory `{name}` of {bytes} bytes: cannot {step}")]
    Create {
        /// Name of the memory.
        name: String,
        /// The size asked for.
        bytes: u64,
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel could not say which parts of the file hold data.
    #[error("guest memory `{name}`: cannot list its populated ranges")]
    Ranges {
        /// Name of the memory.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Pages could not be replaced.
    #[error("guest memory `{name}`: cannot write pages {first}..{end}")]
    Write {
        /// Name of the memory.
        name: String,
        /// First page.
        first: u64,
        /// The page after the last.
        end: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Pages could not be turned back into holes.
    #[error("guest memory `{name}`: cannot discard pages {first}..{end}")]
    Discard {
        /// Name of the memory.
        name: String,
        /// First page.
        first: u64,
        /// Page after the last.
        end: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// One guest's memory: a sealed memory file, mapped shared into this process.
///
/// Pages never written are holes: they cost nothing, read as zeros, and [`data_ranges`](Self::data_ranges) leaves them
/// out. The guest may write while anything here reads; a page copied meanwhile may be torn, and is reported again by the
/// next scan.
#[derive(Debug)]
pub struct GuestMemory {
    name: String,
    file: OwnedFd,
    mapping: SharedMapping,
    pages: u64,
}

impl GuestMemory {
    /// Creates `bytes` of guest memory, all holes.
    ///
    /// The file cannot change its size any more, whoever holds it: a hostile QEMU cannot take pages away under this
    /// process. It is readable and writable for every user that is given a descriptor or may open `/proc/self/fd/N`, so
    /// that a QEMU that runs as another user can map it.
    ///
    /// # Errors
    /// When the size is no whole number of pages or beyond [`GUEST_BYTES_MAX`], or the kernel refuses.
    pub fn create(name: &str, bytes: u64) -> Result<Self, MemoryError> {
        let refused = |step| {
            move |source: Errno| MemoryError::Create { name: name.to_owned(), bytes, step, source: source.into() }
        };
        let size = || MemoryError::Size { name: name.to_owned(), bytes };
        if bytes == 0 || !bytes.is_multiple_of(PAGE) || bytes > GUEST_BYTES_MAX {
            return Err(size());
        }
        let length = usize::try_from(bytes).map_err(|_| size())?;

        let file = memory_file(name).map_err(refused("create the memory file"))?;
        rustix::fs::ftruncate(&file, bytes).map_err(refused("set the size of the memory file"))?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)
            .map_err(refused("seal the size of the memory file"))?;
        let mapping = SharedMapping::of(file.as_fd(), 0, length).map_err(refused("map the memory file"))?;
        Ok(Self { name: name.to_owned(), file, mapping, pages: bytes / PAGE })
    }

    /// The name given at creation; it shows in `/proc/PID/maps`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The memory file, to be given to QEMU.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// How many pages the guest has.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// How many bytes the guest has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE
    }

    /// Copies one page out.
    ///
    /// # Panics
    /// When the guest has no such page.
    pub fn read_page(&self, page: u64, into: &mut [u8; PAGE_BYTES]) {
        self.mapping.copy_out(self.offset(page..page + 1), into);
    }

    /// Copies consecutive pages out; `into` holds exactly those.
    ///
    /// # Panics
    /// When the guest has not all of them, or `into` has another length.
    pub fn copy_pages(&self, range: Range<u64>, into: &mut [u8]) {
        let offset = self.offset(range.clone());
        assert_eq!(
            into.len() as u64,
            (range.end - range.start) * PAGE,
            "pages {range:?} and their buffer differ in size"
        );
        self.mapping.copy_out(offset, into);
    }

    /// Does the page hold zeros only, at this moment? Reading a hole through a mapping fills it with a page of zeros, so
    /// ask this about populated pages: those in [`data_ranges`](Self::data_ranges) or reported by a scan.
    ///
    /// # Panics
    /// When the guest has no such page.
    #[must_use]
    pub fn is_zero(&self, page: u64) -> bool {
        let at = self.offset(page..page + 1);
        // Most pages that are not zero say so in their first bytes.
        const PROBE: usize = 256;
        let mut bytes = [0u8; PROBE];
        (0..PAGE_BYTES).step_by(PROBE).all(|step| {
            self.mapping.copy_out(at + step, &mut bytes);
            bytes.iter().fold(0, |seen, byte| seen | byte) == 0
        })
    }

    /// The pages that are not holes, as rising ranges. A page outside them reads as zeros.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn data_ranges(&self) -> Result<Vec<Range<u64>>, MemoryError> {
        let failed = |source: Errno| MemoryError::Ranges { name: self.name.clone(), source: source.into() };
        let mut ranges = Vec::new();
        let mut at = 0;
        while at < self.bytes() {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(offset) => offset,
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(failed(errno)),
            };
            at = rustix::fs::seek(&self.file, SeekFrom::Hole(data)).map_err(failed)?;
            ranges.push(data / PAGE..at.div_ceil(PAGE));
        }
        Ok(ranges)
    }

    /// Replaces one page. For a sink: never while a guest runs on this memory, such a write is not tracked.
    ///
    /// # Panics
    /// When the guest has no such page.
    pub fn write_page(&self, page: u64, bytes: &[u8; PAGE_BYTES]) {
        self.mapping.copy_in(self.offset(page..page + 1), bytes);
    }

    /// Replaces consecutive pages, the first of them at `first`; for a sink, like [`write_page`](Self::write_page). Through the
    /// file instead of the mapping: the kernel then neither faults for each page nor clears what is overwritten at once, which
    /// for new memory costs more than the copying.
    ///
    /// # Errors
    /// When the kernel has no memory for them.
    ///
    /// # Panics
    /// When the guest has not all of them, or `content` is not whole pages.
    pub fn put_pages(&self, first: u64, content: &[u8]) -> Result<(), MemoryError> {
        assert!(content.len().is_multiple_of(PAGE_BYTES), "{} bytes are not whole pages", content.len());
        let end = first + (content.len() / PAGE_BYTES) as u64;
        self.offset(first..end);
        let mut done = 0;
        while done < content.len() {
            match rustix::io::pwrite(&self.file, &content[done..], first * PAGE + done as u64) {
                Ok(written) if written > 0 => done += written,
                Err(Errno::INTR) => {}
                failed => {
                    let source = failed.err().unwrap_or(Errno::NOSPC).into();
                    return Err(MemoryError::Write { name: self.name.clone(), first, end, source });
                }
            }
        }
        Ok(())
    }

    /// Turns one page into a hole, which reads as zeros. For a sink, like [`write_page`](Self::write_page).
    ///
    /// # Errors
    /// When the kernel refuses.
    ///
    /// # Panics
    /// When the guest has no such page.
    pub fn zero_page(&self, page: u64) -> Result<(), MemoryError> {
        self.zero_range(page..page + 1)
    }

    /// Turns consecutive pages into holes, which read as zeros. For a sink, like [`write_page`](Self::write_page).
    ///
    /// # Errors
    /// When the kernel refuses.
    ///
    /// # Panics
    /// When the guest has not all of them.
    pub fn zero_range(&self, range: Range<u64>) -> Result<(), MemoryError> {
        self.offset(range.clone());
        if range.is_empty() {
            return Ok(());
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, how, range.start * PAGE, (range.end - range.start) * PAGE).map_err(|errno| {
            MemoryError::Discard { name: self.name.clone(), first: range.start, end: range.end, source: errno.into() }
        })
    }

    /// Where this process has it mapped.
    pub(crate) fn address(&self) -> u64 {
        self.mapping.address()
    }

    /// Where a range of pages begins in the mapping.
    fn offset(&self, range: Range<u64>) -> usize {
        assert!(
            range.start <= range.end && range.end <= self.pages,
            "pages {range:?} of guest memory `{}`, which has {}",
            self.name,
            self.pages
        );
        usize::try_from(range.start * PAGE).expect("the whole memory is mapped")
    }
}

/// A memory file that cannot be executed, where the kernel knows how to say so (6.3), and that can be sealed.
fn memory_file(name: &str) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u64 = 64;

    fn memory() -> GuestMemory {
        GuestMemory::create("pollux-test", PAGES * PAGE).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let memory = memory();
        let mut page = [0; PAGE_BYTES];
        page[..3].copy_from_slice(b"abc");
        memory.write_page(7, &page);
        memory.write_page(8, &[0xff; PAGE_BYTES]);

        let mut one = [1; PAGE_BYTES];
        memory.read_page(7, &mut one);
        assert_eq!(one, page);
        let mut two = vec![1; 2 * PAGE_BYTES];
        memory.copy_pages(7..9, &mut two);
        assert_eq!(two[..PAGE_BYTES], page);
        assert!(two[PAGE_BYTES..].iter().all(|byte| *byte == 0xff));
    }

    #[test]
    fn pages_put_through_the_file_are_seen_through_the_mapping() {
        let memory = memory();
        memory.write_page(6, &[9; PAGE_BYTES]);
        let content = [[1; PAGE_BYTES], [2; PAGE_BYTES], [3; PAGE_BYTES]].concat();
        memory.put_pages(5, &content).unwrap();
        memory.put_pages(PAGES, &[]).unwrap();
        assert_eq!(memory.data_ranges().unwrap().first(), Some(&(5..8)), "no other page is made");

        let mut seen = vec![0; 5 * PAGE_BYTES];
        memory.copy_pages(4..9, &mut seen);
        assert_eq!(seen[PAGE_BYTES..4 * PAGE_BYTES], content);
        assert!(memory.is_zero(4) && memory.is_zero(8), "its neighbours are as they were");
    }

    #[test]
    #[should_panic(expected = "not whole pages")]
    fn half_a_page_is_a_defect() {
        let _ = memory().put_pages(0, &[0; PAGE_BYTES / 2]);
    }

    #[test]
    #[should_panic(expected = "which has 64")]
    fn pages_put_beyond_the_guest_are_a_defect() {
        let _ = memory().put_pages(PAGES - 1, &[0; 2 * PAGE_BYTES]);
    }

    #[test]
    fn one_byte_anywhere_makes_a_page_not_zero() {
        let memory = memory();
        assert!(memory.is_zero(3));
        for at in (0..PAGE_BYTES).step_by(61).chain([PAGE_BYTES - 1]) {
            let mut page = [0; PAGE_BYTES];
            page[at] = 1;
            memory.write_page(3, &page);
            assert!(!memory.is_zero(3), "byte {at}");
        }
        memory.write_page(3, &[0; PAGE_BYTES]);
        assert!(memory.is_zero(3));
    }

    #[test]
    fn holes_stay_holes_and_come_back() {
        let memory = memory();
        assert_eq!(memory.data_ranges().unwrap(), []);

        memory.write_page(0, &[1; PAGE_BYTES]);
        memory.write_page(10, &[1; PAGE_BYTES]);
        memory.write_page(11, &[1; PAGE_BYTES]);
        memory.write_page(PAGES - 1, &[1; PAGE_BYTES]);
        assert_eq!(memory.data_ranges().unwrap(), [0..1, 10..12, PAGES - 1..PAGES]);

        memory.zero_range(0..11).unwrap();
        memory.zero_range(20..20).unwrap();
        assert_eq!(memory.data_ranges().unwrap(), [11..12, PAGES - 1..PAGES]);
        memory.zero_page(11).unwrap();
        assert!(memory.is_zero(11) && memory.is_zero(0) && !memory.is_zero(PAGES - 1));
    }

    #[test]
    fn nobody_can_change_its_size() {
        let memory = memory();
        assert!(rustix::fs::ftruncate(memory.fd(), PAGE).is_err());
        assert!(rustix::fs::ftruncate(memory.fd(), 2 * PAGES * PAGE).is_err());
        rustix::fs::ftruncate(memory.fd(), PAGES * PAGE).expect("the same size is no change: QEMU may ask for it");
    }

    #[test]
    fn a_size_that_is_no_guest_is_refused() {
        for bytes in [0, 1, PAGE + 1, GUEST_BYTES_MAX + PAGE] {
            assert!(matches!(GuestMemory::create("odd", bytes), Err(MemoryError::Size { .. })), "{bytes}");
        }
    }

    #[test]
    #[should_panic(expected = "which has 64")]
    fn a_page_beyond_the_guest_is_a_defect() {
        memory().read_page(PAGES, &mut [0; PAGE_BYTES]);
    }
}
