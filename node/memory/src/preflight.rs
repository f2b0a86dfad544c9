//! Can this kernel track writes at all? Asked by doing it once, in this process, to one page.

use std::{fs::File, os::fd::AsFd};

use pollux_vm::pages::PAGE_BYTES;
use rustix::io::Errno;

use crate::{GuestMemory, PAGE, sys};

/// Why writes cannot be tracked on this node, and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrackingRefused {
    /// No userfaultfd.
    #[error(
        "the kernel gives no userfaultfd ({0}); it needs CONFIG_USERFAULTFD, and a container's seccomp profile must allow the call"
    )]
    Userfaultfd(Errno),
    /// No asynchronous write-protection.
    #[error("the kernel's userfaultfd has no asynchronous write-protection ({0}); Linux 6.7 or newer is needed")]
    AsyncWriteProtect(Errno),
    /// No `PAGEMAP_SCAN`.
    #[error(
        "the kernel's /proc/PID/pagemap cannot be scanned ({0}); Linux 6.7 or newer is needed, with CONFIG_PROC_PAGE_MONITOR"
    )]
    PagemapScan(Errno),
    /// `/proc/self/pagemap` cannot be opened.
    #[error("/proc/self/pagemap cannot be opened ({0}); is /proc mounted, and the daemon allowed to read it?")]
    Pagemap(Errno),
    /// No memory for the trial.
    #[error("no memory for a trial of write tracking")]
    Memory,
    /// All calls succeed, but what they report is wrong.
    #[error(
        "a trial write was not tracked: {written} pages written, {reported} reported; this kernel must not be used"
    )]
    Wrong {
        /// Pages written in the trial.
        written: u64,
        /// Pages the kernel reported.
        reported: u64,
    },
}

impl TrackingRefused {
    /// The refusal of the first call on a userfaultfd.
    pub(crate) fn handshake(errno: Errno) -> Self {
        Self::AsyncWriteProtect(errno)
    }
}

/// Tries write tracking on a page of this process.
///
/// # Errors
/// The first thing that is missing.
pub fn preflight() -> Result<(), TrackingRefused> {
    let uffd = sys::own_userfaultfd().map_err(TrackingRefused::Userfaultfd)?;
    sys::uffd_handshake(uffd.as_fd()).map_err(TrackingRefused::AsyncWriteProtect)?;
    let pagemap = File::open("/proc/self/pagemap")
        .map_err(|error| TrackingRefused::Pagemap(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    let trial = GuestMemory::create("pollux-preflight", TRIAL_PAGES * PAGE).map_err(|_| TrackingRefused::Memory)?;
    let (start, length) = (trial.address(), trial.bytes());
    sys::uffd_register(uffd.as_fd(), start, length).map_err(TrackingRefused::AsyncWriteProtect)?;
    sys::uffd_protect(uffd.as_fd(), start, length).map_err(TrackingRefused::AsyncWriteProtect)?;

    let mut regions = [sys::PageRegion::default(); 4];
    let mut scan = || {
        let (count, _) = sys::scan_written(pagemap.as_fd(), start, start + length, &mut regions)
            .map_err(TrackingRefused::PagemapScan)?;
        Ok(regions[..count].iter().map(|region| (region.end - region.start) / PAGE).sum())
    };
    for written in [0, 1, 0] {
        if written == 1 {
            trial.write_page(1, &[1; PAGE_BYTES]);
        }
        let reported: u64 = scan()?;
        if reported != written {
            return Err(TrackingRefused::Wrong { written, reported });
        }
    }
    Ok(())
}

/// Pages in the trial: the one written, and one on each side that must not be reported.
const TRIAL_PAGES: u64 = 3;

#[cfg(test)]
mod tests {
    #[test]
    fn the_trial_passes_where_the_other_tests_do() {
        super::preflight().unwrap();
    }
}
