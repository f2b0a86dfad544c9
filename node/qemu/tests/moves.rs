//! The technique as a whole: which pages are written, what saving costs, and a guest that goes on elsewhere.

mod guest;

use std::{
    io::{ErrorKind, Read},
    time::{Duration, Instant},
};

use bytes::Bytes;
use guest::{Disguise, PAGES_WRITTEN, World, counts_on, memory, numbers, writes_all};
use pollux_memory::{DirtyTracker, GuestMemory, TrackError};
use pollux_qemu::{Accelerator, Launch, LoadError, Machine, MachineEvent, QmpError, Role, SaveError, Status, Tracking};
use pollux_vm::pages::PageSet;

fn track(machine: &mut Machine, memory: &GuestMemory) -> DirtyTracker {
    let Tracking { pid, pidfd, uffd } = machine.take_tracking().unwrap();
    DirtyTracker::attach(pid, pidfd, uffd, memory).unwrap()
}

/// Ten scans of a counting guest see its 96 pages each time, and no other.
async fn sees_exactly_what_is_written(mut machine: Machine, memory: &GuestMemory) {
    let mut tracker = track(&mut machine, memory);
    let mut dirty = PageSet::empty(memory.pages());
    machine.cont().await.unwrap();
    counts_on(&machine, 3).await;
    // The firmware wrote all over the place.
    tracker.scan(&mut dirty).unwrap();
    for round in 0..10 {
        writes_all(memory).await;
        dirty.clear();
        let report = tracker.scan(&mut dirty).unwrap();
        assert_eq!(dirty.iter().collect::<Vec<_>>(), PAGES_WRITTEN.collect::<Vec<_>>(), "scan {round}");
        assert_eq!(report.pages, 96);
    }

    machine.stop().await.unwrap();
    tracker.scan(&mut dirty).unwrap();
    dirty.clear();
    assert_eq!(tracker.scan(&mut dirty).unwrap().pages, 0, "a paused guest writes nothing");

    machine.kill();
    machine.child().exited().await;
    assert!(
        matches!(tracker.scan(&mut dirty), Err(TrackError::Exited { .. })),
        "no pages of a dead process is no answer"
    );
}

#[tokio::test]
async fn each_scan_sees_the_96_pages_and_no_other() {
    for disguise in [Disguise::Sector, Disguise::Kernel] {
        let (world, memory) = (World::new(), memory());
        let machine = world.start("counts", &memory, disguise, Role::Fresh).await;
        sees_exactly_what_is_written(machine, &memory).await;
    }
}

/// Where `/dev/kvm` opens, even on hosts on which it boots no ordinary kernel: writes by the processor itself.
#[tokio::test]
async fn each_scan_sees_the_96_pages_under_kvm() {
    if std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("skipped: /dev/kvm does not open");
        return;
    }
    let (world, memory) = (World::new(), memory());
    let launch = Launch {
        accelerator: Accelerator::Kvm,
        machine: "pc-i440fx-7.2".to_owned(),
        cpu: "max,-arch-capabilities".to_owned(),
        // Not the unprivileged user, who may not open the device here.
        identity: None,
        ..world.launch("counts", &memory, Disguise::Sector, Role::Fresh)
    };
    let machine = Machine::start(&world.spawner, launch).await.unwrap();
    sees_exactly_what_is_written(machine, &memory).await;
}

/// What an epoch will do, often: nothing grows, nothing is lost, and the guest counts on without a gap.
#[tokio::test]
async fn two_hundred_cycles_of_stop_save_cont() {
    const CYCLES: usize = 200;
    let (world, memory) = (World::new(), memory());
    let machine = world.start("epochs", &memory, Disguise::Kernel, Role::Fresh).await;
    machine.cont().await.unwrap();
    counts_on(&machine, 1).await;

    let (mut sizes, mut saves) = (Vec::new(), Vec::new());
    for _ in 0..CYCLES {
        machine.stop().await.unwrap();
        let begin = Instant::now();
        let state = machine.save_state().await.unwrap();
        saves.push(begin.elapsed());
        sizes.push(state.len());
        machine.cont().await.unwrap();
        // An owner takes its events.
        for expected in [MachineEvent::Stopped, MachineEvent::Resumed] {
            while machine.next_event().await != expected {}
        }
    }
    saves.sort_unstable();
    eprintln!(
        "save: median {:?}, p99 {:?}, max {:?}; {} bytes",
        saves[CYCLES / 2],
        saves[CYCLES * 99 / 100],
        saves[CYCLES - 1],
        sizes[0]
    );
    assert!(saves[CYCLES / 2] < Duration::from_millis(50), "QEMU's own throttling would show as 100 ms");
    let (least, most) = (*sizes.iter().min().unwrap(), *sizes.iter().max().unwrap());
    assert!(most - least < 4096, "the state does not grow: {least} to {most} bytes");
    counts_on(&machine, 5).await;
    let numbers = numbers(&machine.console().log());
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "no number is missing or twice");
}

/// The whole move, by hand: run, stop, copy the memory, save, load elsewhere, go on.
#[tokio::test]
async fn a_guest_goes_on_in_another_qemu() {
    for disguise in [Disguise::Sector, Disguise::Kernel] {
        let world = World::new();
        let (here, there) = (memory(), memory());
        let ((first, _wire1), (second, _wire2)) = (guest::nic(1), guest::nic(2));
        let launch = Launch { nics: vec![first, second], ..world.launch("castor", &here, disguise, Role::Fresh) };
        let source = Machine::start(&world.spawner, launch).await.unwrap();
        source.cont().await.unwrap();
        counts_on(&source, 20).await;
        let ((first, mut wire), (second, _wire4)) = (guest::nic(1), guest::nic(2));
        let launch = Launch { nics: vec![first, second], ..world.launch("castor", &there, disguise, Role::Incoming) };
        let mut target = Machine::start(&world.spawner, launch).await.unwrap();
        assert_eq!(target.status().await.unwrap(), Status::Incoming);
        let mut tracker = track(&mut target, &there);

        source.stop().await.unwrap();
        let state = source.save_state().await.unwrap();
        let mut page = [0; 4096];
        // What the waiting machine's own start put into its memory has no place in this guest.
        there.zero_range(0..there.pages()).unwrap();
        for number in here.data_ranges().unwrap().into_iter().flatten() {
            here.read_page(number, &mut page);
            there.write_page(number, &page);
        }
        let said = numbers(&source.console().log());
        let (before, mut written) = (contents(&there), PageSet::empty(there.pages()));
        tracker.scan(&mut written).unwrap();
        target.load_state(state).await.unwrap();
        assert_eq!(contents(&there), before, "loading changes no page");
        assert_eq!(target.status().await.unwrap(), Status::Paused("paused".to_owned()));

        source.kill();
        target.cont().await.unwrap();
        counts_on(&target, 20).await;
        let goes_on = numbers(&target.console().log());

        // The line at the cut may be in two halves, one on each side.
        let gap = goes_on[0] - said.last().unwrap();
        assert!((1..=2).contains(&gap), "{:x} then {:x}", said.last().unwrap(), goes_on[0]);
        assert!(goes_on.windows(2).all(|pair| pair[1] == pair[0] + 1));
        written.clear();
        tracker.scan(&mut written).unwrap();
        writes_all(&there).await;
        written.clear();
        tracker.scan(&mut written).unwrap();
        assert_eq!(
            written.iter().collect::<Vec<_>>(),
            PAGES_WRITTEN.collect::<Vec<_>>(),
            "its writes are tracked there"
        );

        // QEMU announced nothing: that belongs to whoever knows that the move is committed.
        wire.set_nonblocking(true).unwrap();
        let heard = wire.read(&mut [0; 64]).map_err(|error| error.kind());
        assert_eq!(heard, Err(ErrorKind::WouldBlock));

        // And on from there.
        target.stop().await.unwrap();
        target.save_state().await.unwrap();
        target.cont().await.unwrap();
        counts_on(&target, 2).await;
    }
}

/// Data of the pages that hold anything else than zeros.
fn contents(memory: &GuestMemory) -> Vec<(u64, [u8; 4096])> {
    let mut page = [0; 4096];
    let mut contents = Vec::new();
    for number in memory.data_ranges().unwrap().into_iter().flatten() {
        memory.read_page(number, &mut page);
        if page != [0; 4096] {
            contents.push((number, page));
        }
    }
    contents
}

#[tokio::test]
async fn a_state_that_is_none_ends_the_machine_and_says_so() {
    let (world, memory) = (World::new(), memory());
    let source = world.start("good", &memory, Disguise::Sector, Role::Fresh).await;
    let state = source.save_state().await.unwrap();
    let waiting = world.start("wary", &guest::memory(), Disguise::Sector, Role::Incoming).await;
    for none in [Bytes::new(), Bytes::from_static(b"not a device state at all")] {
        assert!(matches!(waiting.load_state(none).await, Err(LoadError::NotState { .. })));
    }

    let broken = Bytes::from_static(b"QEVM, or so it says; but what follows is no device state");
    for broken in [broken, state.slice(..4), state.slice(..state.len() / 2), state.slice(..state.len() - 100)] {
        let elsewhere = guest::memory();
        let target = world.start("broken", &elsewhere, Disguise::Sector, Role::Incoming).await;
        let length = broken.len();
        match target.load_state(broken).await {
            Err(LoadError::Exited { exit, .. }) => assert!(!exit.stderr_tail.is_empty(), "{length} bytes: {exit}"),
            other => panic!("{length} bytes: {other:?}"),
        }
    }
    // The state of a machine with other devices.
    let elsewhere = guest::memory();
    let launch = Launch { vcpus: 2, ..world.launch("other", &elsewhere, Disguise::Sector, Role::Incoming) };
    let other = Machine::start(&world.spawner, launch).await.unwrap();
    assert!(matches!(other.load_state(state).await, Err(LoadError::Exited { .. })));
}

#[tokio::test]
async fn a_save_that_is_refused_or_cancelled_leaves_the_machine_whole() {
    let (world, memory) = (World::new(), memory());
    let waiting = world.start("waiting", &memory, Disguise::Sector, Role::Incoming).await;
    let refused = waiting.save_state().await;
    assert!(
        matches!(&refused, Err(SaveError::Qmp { source: QmpError::Rejected { .. }, .. })),
        "nothing to save before the load: {refused:?}"
    );
    drop(waiting);

    let machine = world.start("hasty", &memory, Disguise::Sector, Role::Fresh).await;
    machine.cont().await.unwrap();
    counts_on(&machine, 1).await;
    for after in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12] {
        machine.stop().await.unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(after), machine.save_state()).await;
        machine.cont().await.expect("whatever became of the save");
        machine.stop().await.unwrap();
        machine.save_state().await.unwrap();
        machine.cont().await.unwrap();
        counts_on(&machine, 1).await;
    }
}
