//! Guest memory as the node sees it: one shared memory file per VM, and the set of pages the guest wrote.
//!
//! [`GuestMemory`] is the file and this process's mapping of it. The VM's actor creates it, hands the file to QEMU and
//! keeps it for as long as the VM has a copy on this node: it outlives the QEMU that runs on it. Pages flow out of it
//! while the guest runs (source) and into it before the guest runs (sink).
//!
//! [`DirtyTracker`] tells which pages a QEMU wrote since the last scan, from outside, with the kernel's help: a
//! userfaultfd in asynchronous write-protect mode that was opened inside QEMU's address space, and the `PAGEMAP_SCAN`
//! ioctl. It belongs to one QEMU and ends with it.
//!
//! Two rules come with the technique. *Protect first, then read*: a page is copied after the scan that reported it, so a
//! write that comes later is reported by the next scan. And *a running guest's memory is never written from here*: this
//! mapping is not tracked.

mod guest;
mod maps;
mod preflight;
mod sys;
mod tracker;

pub use guest::{GUEST_BYTES_MAX, GuestMemory, MemoryError};
pub use preflight::{TrackingRefused, preflight};
pub use tracker::{DirtyTracker, ScanReport, TrackError};

/// Bytes in a page, as a file offset.
const PAGE: u64 = pollux_vm::pages::PAGE_BYTES as u64;
