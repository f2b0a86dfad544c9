//! The tracker against writers whose pages are known: this process itself, through a second mapping of the memory.
//!
//! Real writers are QEMU's; they are tested where QEMU is.
#![allow(unsafe_code, reason = "the tests map memory and open a userfaultfd as QEMU would")]

use std::{
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use pollux_memory::{DirtyTracker, GuestMemory, TrackError};
use pollux_vm::pages::PageSet;
use proptest::prelude::*;
use rustix::{
    mm::{MapFlags, ProtFlags, UserfaultfdFlags},
    process::{PidfdFlags, getpid, pidfd_open},
};

const PAGE: usize = 4096;

/// Memory as a guest has it: mapped and written in words.
struct GuestSide {
    start: *mut core::ffi::c_void,
    bytes: usize,
}

// SAFETY: all access is by atomic words.
unsafe impl Send for GuestSide {}
// SAFETY: as above.
unsafe impl Sync for GuestSide {}

impl GuestSide {
    fn map(memory: &GuestMemory, first_page: u64, pages: usize) -> Self {
        let (bytes, offset) = (pages * PAGE, first_page * PAGE as u64);
        // SAFETY: a new mapping, wherever the kernel likes.
        let start = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, memory.fd(), offset).unwrap()
        };
        Self { start, bytes }
    }

    fn word(&self, page: usize, word: usize) -> &AtomicU64 {
        assert!(page * PAGE < self.bytes && word < PAGE / 8);
        // SAFETY: inside the mapping and aligned; everybody here uses atomics, and zeros are a valid number.
        unsafe { &*self.start.cast::<AtomicU64>().add(page * PAGE / 8 + word) }
    }
}

impl Drop for GuestSide {
    fn drop(&mut self) {
        // SAFETY: mapped once, unmapped once; references into it borrow this.
        unsafe { rustix::mm::munmap(self.start, self.bytes).unwrap() }
    }
}

/// A tracker of this process's own writes. Its mapping as a node has it (`GuestMemory`) is one of those tracked.
fn track(memory: &GuestMemory) -> DirtyTracker {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK | UserfaultfdFlags::from_bits_retain(1);
    // SAFETY: it is used for asynchronous write-protection only, in which nobody ever waits for it.
    let uffd: OwnedFd = unsafe { rustix::mm::userfaultfd(flags).unwrap() };
    let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    DirtyTracker::attach(getpid().as_raw_nonzero().get(), pidfd, uffd, memory).unwrap()
}

fn memory(pages: usize) -> GuestMemory {
    GuestMemory::create("pollux-test", (pages * PAGE) as u64).unwrap()
}

/// More written runs than one call of the kernel's reports: every second page of 64 MiB.
#[test]
fn a_chequered_memory_takes_several_calls_and_loses_nothing() {
    const PAGES: usize = 16384;
    let memory = memory(PAGES);
    let guest = GuestSide::map(&memory, 0, PAGES);
    let mut tracker = track(&memory);
    let mut dirty = PageSet::empty(PAGES as u64);
    assert_eq!(tracker.mappings(), 2, "the node's own mapping is here too");

    for odd in [1, 0] {
        (odd..PAGES).step_by(2).for_each(|page| guest.word(page, page % 512).store(1, Ordering::Relaxed));
        dirty.clear();
        let report = tracker.scan(&mut dirty).unwrap();
        assert!(dirty.iter().eq((odd as u64..PAGES as u64).step_by(2)));
        assert_eq!((report.pages, report.regions), (PAGES as u64 / 2, PAGES as u64 / 2));
        assert!(report.calls > 2, "{report:?}");
    }
    assert_eq!(tracker.scan(&mut dirty).unwrap().pages, 0);
}

/// A mapping that begins inside the file: pages are counted from the file's beginning.
#[test]
fn a_mapping_of_a_part_reports_the_guests_page_numbers() {
    let memory = memory(100);
    let low = GuestSide::map(&memory, 0, 30);
    let high = GuestSide::map(&memory, 40, 60);
    let mut tracker = track(&memory);
    low.word(29, 0).store(1, Ordering::Relaxed);
    high.word(0, 0).store(1, Ordering::Relaxed);
    high.word(59, 511).store(1, Ordering::Relaxed);

    let mut dirty = PageSet::empty(100);
    assert_eq!(tracker.scan(&mut dirty).unwrap().pages, 3);
    assert!(dirty.iter().eq([29, 40, 99]));
}

#[test]
fn tracking_ends_and_reading_is_no_write() {
    let memory = memory(16);
    let guest = GuestSide::map(&memory, 0, 16);
    guest.word(3, 0).store(7, Ordering::Relaxed);
    let mut tracker = track(&memory);
    let mut dirty = PageSet::empty(16);

    // Populated, never touched, and read by the kernel for somebody else.
    assert_eq!(guest.word(3, 0).load(Ordering::Relaxed) + guest.word(5, 0).load(Ordering::Relaxed), 7);
    assert!(memory.is_zero(5) && !memory.is_zero(3));
    rustix::io::pread(memory.fd(), &mut [0; PAGE], 0).unwrap();
    assert_eq!(tracker.scan(&mut dirty).unwrap().pages, 0);
    assert!(dirty.is_empty());

    tracker.stop_tracking().unwrap();
    guest.word(3, 0).store(8, Ordering::Relaxed);
}

#[test]
fn a_process_without_this_memory_is_told_apart() {
    let memory = memory(16);
    let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let attach = |pid: u32| {
        // SAFETY: it is never registered.
        let uffd = unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::from_bits_retain(1)).unwrap() };
        let number = i32::try_from(pid).unwrap();
        let pidfd = pidfd_open(rustix::process::Pid::from_raw(number).unwrap(), PidfdFlags::empty()).unwrap();
        DirtyTracker::attach(number, pidfd, uffd, &memory)
    };
    let alive = attach(other.id());
    other.kill().unwrap();
    // Dead and not yet reaped: that is how a QEMU that died is found.
    let dead = loop {
        match attach(other.id()) {
            Err(TrackError::Mappings { .. }) => {}
            result => break result,
        }
    };
    other.wait().unwrap();
    assert!(matches!(alive, Err(TrackError::Mappings { count: 0, .. })), "{alive:?}");
    assert!(matches!(dead, Err(TrackError::Exited { .. } | TrackError::Proc { .. })), "{dead:?}");
}

/// One writer, as fast as it can, and the node beside it: *scan, then copy*, 200 times. When the writer stops, one more
/// scan and copy must make both sides equal, or a write was lost. The first order of the two is the point: see the
/// negative control below.
#[test]
fn nothing_is_lost_under_a_concurrent_writer() {
    let differences = copy_beside_a_writer(|memory, tracker, dirty, copy| {
        tracker.scan(dirty).unwrap();
        dirty.iter().for_each(|page| copy_page(memory, page, copy));
        dirty.clear();
    });
    assert_eq!(differences, 0);
}

/// The proof can fail: a tracker that forgets one page per scan is found out.
#[test]
fn one_forgotten_page_per_scan_is_noticed() {
    let differences = copy_beside_a_writer(|memory, tracker, dirty, copy| {
        tracker.scan(dirty).unwrap();
        if let Some(forgotten) = dirty.iter().last() {
            dirty.remove(forgotten);
        }
        dirty.iter().for_each(|page| copy_page(memory, page, copy));
        dirty.clear();
    });
    assert_ne!(differences, 0);
}

fn copy_page(memory: &GuestMemory, page: u64, copy: &mut [[u8; PAGE]]) {
    memory.read_page(page, &mut copy[usize::try_from(page).unwrap()]);
}

/// Runs `round` 200 times beside a writer and once after it; returns how many pages of the copy are wrong then.
fn copy_beside_a_writer(
    mut round: impl FnMut(&GuestMemory, &mut DirtyTracker, &mut PageSet, &mut [[u8; PAGE]]),
) -> usize {
    const PAGES: usize = 512;
    const ROUNDS: usize = 200;
    let memory = memory(PAGES);
    let guest = GuestSide::map(&memory, 0, PAGES);
    let mut tracker = track(&memory);
    let mut dirty = PageSet::empty(PAGES as u64);
    let mut copy = vec![[0; PAGE]; PAGES];
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));

    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A small generator of its own (xorshift), so that the writer spends its time on writing.
            let mut state = 0x9e37_79b9_7f4a_7c15_u64;
            while !stop.load(Ordering::Relaxed) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let place = usize::try_from(state >> 8).unwrap();
                guest.word(place % PAGES, place / PAGES % 512).store(state, Ordering::Relaxed);
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..ROUNDS {
            let before = written.load(Ordering::Relaxed);
            round(&memory, &mut tracker, &mut dirty, &mut copy);
            // Each round has writes to find, whatever the scheduler does.
            while written.load(Ordering::Relaxed) == before {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    round(&memory, &mut tracker, &mut dirty, &mut copy);

    let mut page = [0; PAGE];
    let wrong = |number: &usize| {
        memory.read_page(*number as u64, &mut page);
        page != copy[*number]
    };
    (0..PAGES).filter(wrong).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any writes between any scans: each scan reports exactly the pages written since the one before.
    #[test]
    fn each_scan_reports_what_was_written_since_the_last(
        populated in proptest::collection::vec(0usize..600, 0..40),
        rounds in proptest::collection::vec(proptest::collection::vec((0usize..600, 0usize..512), 0..60), 1..6),
    ) {
        let memory = memory(600);
        let guest = GuestSide::map(&memory, 0, 600);
        for page in populated {
            guest.word(page, 0).store(1, Ordering::Relaxed);
        }
        let mut tracker = track(&memory);
        for writes in rounds {
            let mut expected = PageSet::empty(600);
            for (page, word) in writes {
                guest.word(page, word).fetch_add(1, Ordering::Relaxed);
                expected.insert(page as u64);
            }
            let mut reported = PageSet::empty(600);
            let report = tracker.scan(&mut reported).unwrap();
            prop_assert_eq!(report.pages, expected.len());
            prop_assert_eq!(reported, expected);
        }
    }
}
