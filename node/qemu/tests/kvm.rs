//! Tracking and the move where the processor itself runs the guest, and not a translator that is part of QEMU: whether the
//! kernel notes what KVM writes is a question of its own.
//!
//! A guest in real mode runs even where `/dev/kvm` opens and the processor shows no virtualisation. Its pages are copied by
//! what the daemon copies them with: gathered into frames, which are read and put into the other memory.

mod guest;

use guest::{Disguise, PAGES_WRITTEN, PATIENCE, World, counts_on, memory, numbers, writes_all};
use pollux_memory::{DirtyTracker, GuestMemory};
use pollux_qemu::{Accelerator, Launch, Machine, Role, Tracking};
use pollux_vm::pages::PageSet;
use pollux_wire::{
    id::{Generation, OpId, VmId},
    page::{Encoder, HEADER_BYTES, Run, Stamp, decode},
};

/// Pages in a frame.
const FRAME_PAGES: usize = 256;
/// Rounds beside the running guest.
const ROUNDS: u32 = 5;
/// Numbers that the guest prints after the move.
const NUMBERS: usize = 20;

/// Whether this host has KVM; says so where it has not.
fn kvm_opens() -> bool {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &opened {
        eprintln!("skipped: /dev/kvm does not open here: {error}");
    }
    opened.is_ok()
}

async fn start(world: &World, memory: &GuestMemory, role: Role) -> (Machine, DirtyTracker) {
    let launch = Launch {
        accelerator: Accelerator::Kvm,
        machine: "pc-i440fx-7.2".to_owned(),
        cpu: "max,-arch-capabilities".to_owned(),
        // Not the unprivileged user, who may not open the device here.
        identity: None,
        ..world.launch("castor", memory, Disguise::Sector, role)
    };
    let mut machine = Machine::start(&world.spawner, launch).await.unwrap();
    let Tracking { pid, pidfd, uffd } = machine.take_tracking().unwrap();
    let tracker = DirtyTracker::attach(pid, pidfd, uffd, memory).unwrap();
    (machine, tracker)
}

/// Brings the pages of `set` from one memory to the other, and takes them out of it.
fn copy(set: &mut PageSet, here: &GuestMemory, there: &GuestMemory) {
    let mut encoder = Encoder::new();
    let stamp = Stamp { vm: VmId(1), operation: OpId([1; 16]), generation: Generation(1), round: 1, first_sequence: 0 };
    let pages: Vec<u64> = set.iter().collect();
    for batch in pages.chunks(FRAME_PAGES) {
        for page in batch {
            encoder.gather(*page, |content| here.read_page(*page, content)).unwrap();
        }
        let frame = encoder.finish(&stamp, true);
        let (header, body): (&[u8; HEADER_BYTES], _) = frame.split_first_chunk().unwrap();
        for run in decode(header, body, there.pages(), &mut Vec::new()).unwrap().runs() {
            match run {
                Run::Zero { first, pages } => there.zero_range(first..first + u64::from(pages)).unwrap(),
                Run::Sent { first, content } => there.put_pages(first, content).unwrap(),
            }
        }
    }
    set.clear();
}

/// The first words of the pages that the guest writes: how often it has written each.
fn counts(memory: &GuestMemory) -> Vec<u32> {
    let count = |number| {
        let mut page = [0; 4096];
        memory.read_page(number, &mut page);
        u32::from_le_bytes([page[0], page[1], page[2], page[3]])
    };
    PAGES_WRITTEN.map(count).collect()
}

/// What became of the guest's count by a move.
#[derive(Debug)]
struct Moved {
    /// Every page holds at the target what it held at the paused source.
    memory_is_whole: bool,
    /// The last number printed before the move.
    said: u32,
    /// The numbers printed after it; none where the guest went astray.
    goes_on: Vec<u32>,
}

impl Moved {
    /// The guest counts on as if nothing had happened.
    fn counts_on(&self) -> bool {
        // The line at the cut may be in two halves, one on each side.
        let begins = self.goes_on.first().is_some_and(|first| (1..=2).contains(&first.wrapping_sub(self.said)));
        self.memory_is_whole && begins && self.goes_on.windows(2).all(|pair| pair[1] == pair[0] + 1)
    }
}

/// The whole move: rounds beside the running guest, pause, the last pages, device state, and on at the target. Without
/// `scan_after_pause` what was written since the last round is forgotten.
async fn move_it(scan_after_pause: bool) -> Moved {
    let (world, here, there) = (World::new(), memory(), memory());
    let (source, mut tracker) = start(&world, &here, Role::Fresh).await;
    let (target, _tracker) = start(&world, &there, Role::Incoming).await;
    source.cont().await.unwrap();
    counts_on(&source, NUMBERS).await;
    // What the waiting machine's own start put into its memory has no place in this guest.
    there.zero_range(0..there.pages()).unwrap();

    let mut pending = PageSet::empty(here.pages());
    tracker.scan(&mut pending).unwrap();
    here.data_ranges().unwrap().into_iter().for_each(|range| pending.insert_range(range));
    for _ in 0..ROUNDS {
        copy(&mut pending, &here, &there);
        writes_all(&here).await;
        tracker.scan(&mut pending).unwrap();
        assert!(pending.iter().eq(PAGES_WRITTEN), "it writes these pages and no other: {pending:?}");
    }
    copy(&mut pending, &here, &there);
    writes_all(&here).await;

    source.stop().await.unwrap();
    if scan_after_pause {
        tracker.scan(&mut pending).unwrap();
        copy(&mut pending, &here, &there);
    }
    let state = source.save_state().await.unwrap();
    if scan_after_pause {
        tracker.scan(&mut pending).unwrap();
        copy(&mut pending, &here, &there);
    }
    let said = *numbers(&source.console().log()).last().unwrap();
    target.load_state(state).await.unwrap();
    let memory_is_whole = counts(&here) == counts(&there);
    source.kill();
    target.cont().await.unwrap();

    // One whose memory is not whole may do anything, also nothing.
    let patience = if scan_after_pause { PATIENCE } else { PATIENCE / 30 };
    let _ = tokio::time::timeout(patience, counts_on(&target, NUMBERS)).await;
    Moved { memory_is_whole, said, goes_on: numbers(&target.console().log()) }
}

#[tokio::test]
async fn a_guest_moves_while_it_runs_and_counts_on() {
    if kvm_opens() {
        let moved = move_it(true).await;
        assert!(moved.goes_on.len() >= NUMBERS, "{moved:?}");
        assert!(moved.counts_on(), "{moved:?}");
    }
}

/// The proof can fail: without the scan after the pause, what the guest wrote last is not there.
#[tokio::test]
async fn without_the_scan_after_the_pause_its_count_is_wrong() {
    if kvm_opens() {
        let moved = move_it(false).await;
        assert!(!moved.memory_is_whole && !moved.counts_on(), "{moved:?}");
    }
}
