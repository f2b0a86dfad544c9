//! The unsafe part: a shared mapping copied by value only, and the ioctls of userfaultfd and pagemap.
//!
//! Layouts and request numbers are those of the kernel's `linux/userfaultfd.h` and `linux/fs.h` (Linux 6.7).
#![allow(unsafe_code)]

use core::ffi::c_void;
use std::{os::fd::BorrowedFd, ptr::NonNull};

use rustix::{
    io::Errno,
    ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl, opcode},
    mm::{MapFlags, ProtFlags},
};

/// A shared mapping of a file. Others write it at any time, so no reference into it is ever formed: bytes are copied.
#[derive(Debug)]
pub(crate) struct SharedMapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to no thread, and all access is by copying through raw pointers.
unsafe impl Send for SharedMapping {}
// SAFETY: as above; concurrent copies can tear bytes, as they can by the guest, and no type is ever read from them.
unsafe impl Sync for SharedMapping {}

impl SharedMapping {
    /// Maps `length` bytes of a file from `offset` on, readable and writable, without reserving memory.
    pub(crate) fn of(file: BorrowedFd<'_>, offset: u64, length: usize) -> Result<Self, Errno> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses the place, so nothing that exists is replaced.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, flags, file, offset) }?;
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { start, length })
    }

    /// The address of the first byte.
    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Copies bytes out.
    pub(crate) fn copy_out(&self, offset: usize, into: &mut [u8]) {
        assert!(offset <= self.length && into.len() <= self.length - offset, "a copy beyond the mapping");
        // SAFETY: source and length were checked above; `into` is ours alone and no Rust object overlaps the mapping. A
        // concurrent writer can make the copy a mixture of old and new bytes, all of which are valid `u8`.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().add(offset), into.as_mut_ptr(), into.len()) }
    }

    /// Copies bytes in.
    pub(crate) fn copy_in(&self, offset: usize, from: &[u8]) {
        assert!(offset <= self.length && from.len() <= self.length - offset, "a copy beyond the mapping");
        // SAFETY: as in `copy_out`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.start.as_ptr().add(offset), from.len()) }
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: this mapping was made by `of`, is unmapped once, and no reference into it exists.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can be unmapped");
    }
}

/// `UFFD_API`: the protocol version, unchanged since the first.
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1;
/// A page written since it was last protected.
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;

#[repr(C)]
struct UffdApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdRange {
    start: u64,
    length: u64,
}

#[repr(C)]
struct UffdRegister {
    range: UffdRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdWriteProtect {
    range: UffdRange,
    mode: u64,
}

/// One run of pages with the same categories, by address.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PageRegion {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) categories: u64,
}

#[repr(C)]
#[derive(Debug)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const UFFDIO_API: Opcode = opcode::read_write::<UffdApi>(0xaa, 0x3f);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<UffdRegister>(0xaa, 0x00);
const UFFDIO_UNREGISTER: Opcode = opcode::read::<UffdRange>(0xaa, 0x01);
const UFFDIO_WRITEPROTECT: Opcode = opcode::read_write::<UffdWriteProtect>(0xaa, 0x06);
const PAGEMAP_SCAN: Opcode = opcode::read_write::<PmScanArg>(b'f', 16);

// The kernel's layouts, and with them the sizes encoded in the request numbers.
const _: () = {
    assert!(size_of::<UffdApi>() == 24 && align_of::<UffdApi>() == 8);
    assert!(size_of::<UffdRange>() == 16);
    assert!(size_of::<UffdRegister>() == 32 && std::mem::offset_of!(UffdRegister, mode) == 16);
    assert!(size_of::<UffdWriteProtect>() == 24 && std::mem::offset_of!(UffdWriteProtect, mode) == 16);
    assert!(size_of::<PageRegion>() == 24 && std::mem::offset_of!(PageRegion, categories) == 16);
    assert!(size_of::<PmScanArg>() == 96 && std::mem::offset_of!(PmScanArg, walk_end) == 32);
    assert!(std::mem::offset_of!(PmScanArg, vec) == 40 && std::mem::offset_of!(PmScanArg, max_pages) == 56);
    assert!(std::mem::offset_of!(PmScanArg, category_mask) == 72 && std::mem::offset_of!(PmScanArg, return_mask) == 88);
    assert!(UFFDIO_API == 0xc018_aa3f && UFFDIO_REGISTER == 0xc020_aa00 && UFFDIO_UNREGISTER == 0x8010_aa01);
    assert!(UFFDIO_WRITEPROTECT == 0xc018_aa06 && PAGEMAP_SCAN == 0xc060_6610);
};

/// Agrees on asynchronous write-protection with a fresh userfaultfd. `EINVAL` when the kernel does not offer it.
pub(crate) fn uffd_handshake(uffd: BorrowedFd<'_>) -> Result<(), Errno> {
    let features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    let mut argument = UffdApi { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: the request and its argument belong together, as asserted above; the kernel writes inside the argument.
    unsafe { ioctl(uffd, Updater::<UFFDIO_API, _>::new(&mut argument)) }
}

/// Puts a range of the userfaultfd's own address space under write-protect tracking.
pub(crate) fn uffd_register(uffd: BorrowedFd<'_>, start: u64, length: u64) -> Result<(), Errno> {
    let range = UffdRange { start, length };
    let mut argument = UffdRegister { range, mode: UFFDIO_REGISTER_MODE_WP, ioctls: 0 };
    // SAFETY: as above. Registering changes no byte of the other process; in asynchronous mode no thread of it waits.
    unsafe { ioctl(uffd, Updater::<UFFDIO_REGISTER, _>::new(&mut argument)) }
}

/// Ends the tracking of a range and lifts its protection.
pub(crate) fn uffd_unregister(uffd: BorrowedFd<'_>, start: u64, length: u64) -> Result<(), Errno> {
    let mut argument = UffdRange { start, length };
    // SAFETY: as above.
    unsafe { ioctl(uffd, Updater::<UFFDIO_UNREGISTER, _>::new(&mut argument)) }
}

/// Protects every page of a registered range, so that the first write to each is noted.
pub(crate) fn uffd_protect(uffd: BorrowedFd<'_>, start: u64, length: u64) -> Result<(), Errno> {
    let range = UffdRange { start, length };
    let mut argument = UffdWriteProtect { range, mode: UFFDIO_WRITEPROTECT_MODE_WP };
    // SAFETY: as above.
    unsafe { ioctl(uffd, Updater::<UFFDIO_WRITEPROTECT, _>::new(&mut argument)) }
}

/// Finds the pages of `start..end` written since they were protected and protects them again, each atomically.
///
/// Returns how many entries of `regions` were filled and where the walk ended: before `end` when they ran out.
pub(crate) fn scan_written(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    regions: &mut [PageRegion],
) -> Result<(usize, u64), Errno> {
    let argument = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        start,
        end,
        walk_end: start,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: 0,
        category_mask: PAGE_IS_WRITTEN,
        category_anyof_mask: 0,
        return_mask: PAGE_IS_WRITTEN,
    };
    // SAFETY: the request and its argument belong together, and the argument's vector is `regions`, borrowed mutably for
    // the whole call with its true length.
    let (count, walk_end) = unsafe { ioctl(pagemap, Scan(argument)) }?;
    assert!(count <= regions.len(), "the kernel filled more regions than it was given");
    Ok((count, walk_end))
}

/// `PAGEMAP_SCAN` answers twice: with the number of regions as its result and with `walk_end` in its argument.
struct Scan(PmScanArg);

// SAFETY: request and argument type belong together, as asserted above; the kernel writes `walk_end` and the vector, whose
// validity the caller of `ioctl` answers for.
unsafe impl Ioctl for Scan {
    type Output = (usize, u64);
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(&mut self.0).cast()
    }

    unsafe fn output_from_ptr(count: IoctlOutput, argument: *mut c_void) -> rustix::io::Result<Self::Output> {
        // SAFETY: `argument` is what `as_ptr` returned, still alive and initialised.
        let walk_end = unsafe { (*argument.cast::<PmScanArg>()).walk_end };
        Ok((usize::try_from(count).map_err(|_| Errno::OVERFLOW)?, walk_end))
    }
}

/// A userfaultfd of this process, for the preflight and the tests. It sees writes by user code only, which is all that
/// needs no privilege.
pub(crate) fn own_userfaultfd() -> Result<std::os::fd::OwnedFd, Errno> {
    use rustix::mm::UserfaultfdFlags;
    /// `UFFD_USER_MODE_ONLY`.
    const USER_MODE_ONLY: u32 = 1;
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: the descriptor does nothing until a range is registered with it; the ranges registered here are mappings of
    // a `SharedMapping`, in asynchronous mode, in which no access ever waits for an answer.
    unsafe { rustix::mm::userfaultfd(flags | UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY)) }
}
