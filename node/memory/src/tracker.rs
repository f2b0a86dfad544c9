//! Which pages a QEMU wrote since the last scan.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use pollux_vm::pages::PageSet;
use rustix::io::Errno;

use crate::{
    GuestMemory, PAGE, TrackingRefused,
    maps::{FileMapping, mappings_of},
    sys::{self, PageRegion},
};

/// Regions the kernel reports per call; more written regions than this take further calls. 96 KiB of buffer.
const REGIONS_MAX: usize = 4096;

/// Mappings of one guest's memory in one process. QEMU has one; more than this is not QEMU.
const MAPPINGS_MAX: usize = 64;

/// The tracking of a QEMU's writes failed.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// The kernel cannot do it.
    #[error("process {pid}: its writes cannot be tracked")]
    Refused {
        /// The process.
        pid: i32,
        /// Why, and what to do.
        #[source]
        source: TrackingRefused,
    },
    /// A file below `/proc/PID` could not be read.
    #[error("process {pid}: cannot read its `{file}`; has it exited, or is /proc mounted with hidepid?")]
    Proc {
        /// The process.
        pid: i32,
        /// Name of the file.
        file: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The process has exited; its memory holds all it ever wrote, but what was written since the last scan is not known.
    #[error("process {pid} has exited")]
    Exited {
        /// The process.
        pid: i32,
    },
    /// The process does not map this guest memory, or in more places than a QEMU would.
    #[error(
        "process {pid} maps guest memory `{memory}` in {count} places, expected 1 to {MAPPINGS_MAX}; was it started with this memory, and is its machine initialised?"
    )]
    Mappings {
        /// The process.
        pid: i32,
        /// Name of the memory.
        memory: String,
        /// In how many places.
        count: usize,
    },
    /// A mapping that is not within the memory, or not page by page.
    #[error(
        "process {pid} maps `{memory}` at {start:#x}..{end:#x} from file offset {file_offset:#x}, beyond its {pages} pages"
    )]
    Beyond {
        /// The process.
        pid: i32,
        /// Name of the memory.
        memory: String,
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
        /// Byte of the file at `start`.
        file_offset: u64,
        /// Pages the guest has.
        pages: u64,
    },
    /// The kernel refused an operation on a mapping.
    #[error("process {pid}: cannot {step} the guest memory mapped at {start:#x}..{end:#x}")]
    Kernel {
        /// The process.
        pid: i32,
        /// What was being done.
        step: &'static str,
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// What one scan found and cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScanReport {
    /// Pages written since the scan before. One mapped twice and written through both counts twice.
    pub pages: u64,
    /// Runs of such pages.
    pub regions: u64,
    /// Calls of the kernel it took.
    pub calls: u64,
    /// How long it took.
    pub took: Duration,
}

/// Tracks the writes of one process to one guest memory, from [`attach`](Self::attach) until it is dropped or
/// [`stop_tracking`](Self::stop_tracking) is called.
#[derive(Debug)]
pub struct DirtyTracker {
    pid: i32,
    pidfd: OwnedFd,
    uffd: OwnedFd,
    pagemap: File,
    mappings: Vec<FileMapping>,
    regions: Vec<PageRegion>,
    pages: u64,
}

impl DirtyTracker {
    /// Starts tracking: finds every mapping of `memory` in the process and protects it.
    ///
    /// `pidfd` refers to process `pid`, which is the caller's child and not yet reaped, and `uffd` is a userfaultfd that
    /// was opened inside that process and has not been used. A write that happened before this returns may not be
    /// reported, so everything must be taken as written at this point.
    ///
    /// # Errors
    /// When the kernel does not offer this kind of tracking, or the process has exited or does not map the memory.
    pub fn attach(pid: i32, pidfd: OwnedFd, uffd: OwnedFd, memory: &GuestMemory) -> Result<Self, TrackError> {
        sys::uffd_handshake(uffd.as_fd())
            .map_err(|errno| TrackError::Refused { pid, source: TrackingRefused::handshake(errno) })?;
        let proc = |file| move |source| TrackError::Proc { pid, file, source };
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(proc("pagemap"))?;
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(proc("maps"))?;
        // While the process is not reaped its number is not reused, so both files above were its own.
        if has_exited(pidfd.as_fd()) {
            return Err(TrackError::Exited { pid });
        }

        let file = rustix::fs::fstat(memory.fd()).map_err(|errno| proc("maps")(errno.into()))?;
        let mappings = mappings_of(&maps, rustix::fs::major(file.st_dev), rustix::fs::minor(file.st_dev), file.st_ino);
        if mappings.is_empty() || mappings.len() > MAPPINGS_MAX {
            return Err(TrackError::Mappings { pid, memory: memory.name().to_owned(), count: mappings.len() });
        }
        for &FileMapping { start, end, file_offset } in &mappings {
            let within = file_offset.checked_add(end - start).is_some_and(|last| last <= memory.bytes());
            if !within || !start.is_multiple_of(PAGE) || !file_offset.is_multiple_of(PAGE) {
                let (memory, pages) = (memory.name().to_owned(), memory.pages());
                return Err(TrackError::Beyond { pid, memory, start, end, file_offset, pages });
            }
        }

        let tracker = Self {
            pid,
            pidfd,
            uffd,
            pagemap,
            mappings,
            regions: vec![PageRegion::default(); REGIONS_MAX],
            pages: memory.pages(),
        };
        for mapping in &tracker.mappings {
            let (start, length) = (mapping.start, mapping.end - mapping.start);
            sys::uffd_register(tracker.uffd.as_fd(), start, length)
                .map_err(|errno| tracker.kernel("register", mapping, errno))?;
            sys::uffd_protect(tracker.uffd.as_fd(), start, length)
                .map_err(|errno| tracker.kernel("protect", mapping, errno))?;
        }
        Ok(tracker)
    }

    /// Adds to `dirty` every page written since the last scan, and protects those pages again.
    ///
    /// Each page is tested and protected in one atomic step, so a write is reported by this scan or the next one. Read a
    /// page only *after* the scan that reported it. After an error `dirty` holds what was already found; the marks of
    /// those pages are cleared, so keep the set and scan again.
    ///
    /// # Errors
    /// When the process has exited or the kernel refuses.
    ///
    /// # Panics
    /// When `dirty` is a set over another number of pages.
    pub fn scan(&mut self, dirty: &mut PageSet) -> Result<ScanReport, TrackError> {
        assert_eq!(dirty.pages(), self.pages, "a set over another guest's pages");
        let begin = Instant::now();
        let mut report = ScanReport::default();
        for mapping in &self.mappings {
            let mut at = mapping.start;
            while at < mapping.end {
                let (count, walk_end) = sys::scan_written(self.pagemap.as_fd(), at, mapping.end, &mut self.regions)
                    .map_err(|errno| self.kernel("scan", mapping, errno))?;
                for region in &self.regions[..count] {
                    assert!(
                        mapping.start <= region.start && region.start < region.end && region.end <= mapping.end,
                        "the kernel reported {region:x?} of {mapping:x?}"
                    );
                    let first = (region.start - mapping.start + mapping.file_offset) / PAGE;
                    let pages = (region.end - region.start) / PAGE;
                    dirty.insert_range(first..first + pages);
                    report.pages += pages;
                }
                report.regions += count as u64;
                report.calls += 1;
                // A walk that does not advance would turn this into an endless loop.
                assert!(at < walk_end && walk_end <= mapping.end, "a scan from {at:#x} ended at {walk_end:#x}");
                at = walk_end;
            }
        }
        // An exited process has no pages: it would look like one that writes nothing.
        if has_exited(self.pidfd.as_fd()) {
            return Err(TrackError::Exited { pid: self.pid });
        }
        report.took = begin.elapsed();
        Ok(report)
    }

    /// In how many places the process maps the memory.
    #[must_use]
    pub fn mappings(&self) -> usize {
        self.mappings.len()
    }

    /// Ends the tracking and gives the userfaultfd back; the process's writes cost nothing extra from now on. Dropping the
    /// tracker does the same.
    ///
    /// # Errors
    /// When the process has exited or the kernel refuses; the tracking ends all the same, with the descriptor.
    pub fn stop_tracking(self) -> Result<(), TrackError> {
        for mapping in &self.mappings {
            sys::uffd_unregister(self.uffd.as_fd(), mapping.start, mapping.end - mapping.start)
                .map_err(|errno| self.kernel("stop tracking", mapping, errno))?;
        }
        Ok(())
    }

    fn kernel(&self, step: &'static str, mapping: &FileMapping, errno: Errno) -> TrackError {
        if has_exited(self.pidfd.as_fd()) {
            return TrackError::Exited { pid: self.pid };
        }
        TrackError::Kernel { pid: self.pid, step, start: mapping.start, end: mapping.end, source: errno.into() }
    }
}

/// Has this child exited, reaped or not?
fn has_exited(pidfd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut watched = [PollFd::new(&pidfd, PollFlags::IN)];
    loop {
        match poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}
