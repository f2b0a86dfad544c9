//! The Debian guest on volumes: it boots from an image that was imported, moves, works on while replicas die, are cut off, sleep and run
//! full, and has after a power failure what it acknowledged.
//!
//! They take minutes each: `deploy/test --all` runs them.
//!
//! What they cannot show: that a flush which was acknowledged too early is lost. Killing daemons and QEMUs leaves the hosts' page caches as
//! they are; `pollux-sim volume` has disks that lose what was not synced, and a control that acknowledges too early.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use pollux_system_tests::{
    World,
    client::Client,
    disks::{Replica, differ},
    ledger::Ledger,
    small_pool::{SMALL, SmallPool},
    views::Problem,
    waiting::{SETTLE, until},
};

/// How long a host sleeps. The one with the guest no longer than clients wait.
const SLEEP: Duration = Duration::from_secs(60);
const NAP: Duration = Duration::from_secs(20);
/// Room in a pool that is to run full: more than the guest ever writes.
const ROOM: u64 = 896 << 20;
/// A guest whose last pool is full stands still for so long: longer than a request is held.
const FULL: Duration = Duration::from_secs(40);
/// The workload has gone on by then, with little to spare of two processors.
const GOES_ON: Duration = Duration::from_secs(120);

#[test]
#[ignore = "takes minutes: deploy/test --all"]
fn debian_boots_from_an_imported_image_and_takes_its_volume_along() {
    let world = World::start(3);
    world.have_pools();
    let image = world.debian_image("n1");
    let packed = image.with_extension("qcow2");
    let words = ["convert", "-q", "-f", "raw", "-O", "qcow2", "-c"];
    let converted = Command::new("qemu-img").args(words).args([&image, &packed]).status();
    assert!(converted.as_ref().is_ok_and(std::process::ExitStatus::success), "{converted:?}");

    // Of either format every replica becomes what is in the image.
    world.import("raw", &image, &["n1", "n2"]);
    world.import("root", &packed, &["n1", "n2"]);
    for name in ["raw", "root"] {
        for node in ["n1", "n2"] {
            assert_eq!(differ(&image, &world.replica_file("n1", name, node)), None, "{name} on {node}");
        }
    }

    // It boots from it, and lives on elsewhere.
    let (guest, boot) = world.boot_debian("n1", &["root"]);
    guest.must("head -c 8M /dev/urandom > /var/tmp/before && sync && sha256sum /var/tmp/before > /run/sum");
    world.moves("n1", "n2");
    assert_eq!(world.vm("n3", "web").on(), "n2");
    assert_eq!(guest.is_up(), boot, "it is the same guest");
    guest.must("echo 3 > /proc/sys/vm/drop_caches && sha256sum --quiet -c /run/sum");
    guest.must("cp /var/tmp/before /var/tmp/after && sync && echo 3 > /proc/sys/vm/drop_caches");
    guest.must("cmp /var/tmp/before /var/tmp/after");
    guest.disks_are_well();
    world.in_sync("n1", "root", &["n1", "n2"]);

    // Switched off in order, both replicas hold the same; and a byte that only one of them has would have been found.
    world.switch_off("n1");
    world.replicas_are_equal("n1", "root");
    let spoilt = world.replica_file("n1", "root", "n2");
    flip_a_byte(&spoilt, 700 << 20);
    let found = world.compare_replicas("n1", "root");
    assert!(found.as_ref().is_err_and(|why| why.ends_with(&format!("at byte {}", 700 << 20))), "{found:?}");
}

#[test]
#[ignore = "takes minutes: deploy/test --all"]
fn debian_works_on_while_replicas_die_are_cut_off_and_sleep() {
    let world = World::start(3);
    let (guest, boot) = with_data(&world);
    let data = world.data_disk("n1", "data");
    guest.settles_on(&data);
    let ledger = Ledger::start(&guest);
    guest.fio_begins();
    let goes_on = || {
        ledger.goes_on(GOES_ON);
        guest.fio_goes_on(GOES_ON);
    };
    goes_on();

    // A replica's node is killed, and comes back.
    world.kill("n2");
    world.in_sync("n1", "data", &["n1"]);
    goes_on();
    world.start_again("n2");
    world.in_sync("n1", "data", &["n1", "n2"]);

    // The way to it is cut, and mended.
    world.cut("n1:n2");
    world.in_sync("n1", "data", &["n1"]);
    goes_on();
    world.heal();
    world.in_sync("n1", "data", &["n1", "n2"]);

    // Its host stops in its tracks for a minute, and wakes up with requests of then.
    let began = Instant::now();
    world.pause("n2");
    world.in_sync("n1", "data", &["n1"]);
    goes_on();
    thread::sleep(SLEEP.saturating_sub(began.elapsed()));
    world.resume("n2");
    world.in_sync("n1", "data", &["n1", "n2"]);

    // The guest's own host does.
    world.pause("n1");
    thread::sleep(NAP);
    world.resume("n1");
    goes_on();
    world.in_sync("n1", "data", &["n1", "n2"]);

    assert_eq!(guest.is_up(), boot, "it is the same guest");
    guest.fio_ends();
    let entries = ledger.close();
    entries.are_in(&guest);
    guest.disks_are_well();
    guest.leaves(&data);
    world.switch_off("n1");
    world.replicas_are_equal("n1", "data");
}

#[test]
#[ignore = "takes minutes: deploy/test --all"]
fn debian_has_what_it_acknowledged_after_all_hosts_lost_their_power() {
    let world = World::start(3);
    let (guest, boot) = with_data(&world);
    let data = world.data_disk("n1", "data");
    guest.settles_on(&data);
    guest.seals();
    let ledger = Ledger::start(&guest);
    guest.fio_begins();
    ledger.goes_on(GOES_ON);
    guest.fio_goes_on(GOES_ON);

    for node in world.nodes() {
        world.kill(node);
    }
    for node in world.nodes() {
        until("all to be gone", SETTLE, || world.has(node, 0));
    }
    let entries = ledger.close();
    for node in world.nodes() {
        world.start_again(node);
    }

    assert_ne!(guest.is_up(), boot, "its memory is gone");
    guest.settles_again_on(&data);
    guest.seal_is_whole();
    entries.are_in(&guest);
    guest.disks_are_well();
    world.in_sync("n1", "data", &["n1", "n2"]);
    guest.leaves(&data);
    world.switch_off("n1");
    world.replicas_are_equal("n1", "data");
}

#[test]
#[ignore = "takes minutes: deploy/test --all"]
fn debian_waits_for_room_and_sees_no_error() {
    let world = World::start(3);
    world.have_pools();
    let pools = [world.small_pool("n1", ROOM), world.small_pool("n2", ROOM)];
    let [here, there] = &pools;
    let image = world.debian_image("n1");
    world.import("root", &image, &["n1"]);
    world.make_volume_in(SMALL, "data", "768M", &["n1", "n2"]);
    let (guest, boot) = world.boot_debian("n1", &["root", "data"]);
    let data = world.data_disk("n1", "data");
    guest.settles_on(&data);
    let ledger = Ledger::start(&guest);
    guest.files_begin();
    let goes_on = || {
        ledger.goes_on(GOES_ON);
        guest.files_go_on(GOES_ON);
    };
    goes_on();

    // One of two pools is full: its replica leaves the set, the guest goes on with the other and waits for nothing.
    there.fill();
    until("the replica to be left behind, and why", SETTLE, || {
        let volume = world.volume("n1", "data");
        let full =
            |it: &Replica| it.node == "n2" && it.why.as_deref().is_some_and(|why| why.contains("the pool is full"));
        let left = volume.in_sync() == ["n1"].into() && volume.replicas.iter().any(full);
        if left { Ok(()) } else { Err(format!("{volume:?}")) }
    });
    goes_on();
    let vm = world.vm("n2", "web");
    assert_eq!((vm.runtime.as_str(), vm.trouble), ("running", None));

    // So is the last one: the guest stands still, and whoever asks is told why.
    here.fill();
    let stands_still = || {
        let vm = world.vm("n3", "web");
        let why = vm.trouble.as_deref().is_some_and(|why| why.contains("volume data: the pool is full"));
        if vm.runtime == "paused" && vm.phase == "running" && why { Ok(()) } else { Err(format!("{vm:?}")) }
    };
    until("the guest to stand still, and why", SETTLE, stands_still);
    until("the cluster to say so", SETTLE, || {
        let told = world.cluster("n2").problems;
        let named = |it: &Problem| it.what.contains("VM web stands still") && it.what.contains("the pool is full");
        if told.iter().any(named) { Ok(()) } else { Err(format!("{told:?}")) }
    });
    let (since, before) = (Instant::now(), ledger.acknowledged());
    while since.elapsed() < FULL {
        let vm = world.vm("n3", "web");
        assert!(vm.runtime == "paused" && vm.trouble.is_some(), "it does not stand still any more: {vm:?}");
    }
    let meanwhile = ledger.acknowledged() - before;

    // There is room again: it goes on by itself, and the other replica is given what it missed once there is room for that.
    here.make_room();
    goes_on();
    until("nothing to be told any more", SETTLE, || {
        let vm = world.vm("n3", "web");
        if vm.runtime == "running" && vm.trouble.is_none() { Ok(()) } else { Err(format!("{vm:?}")) }
    });
    eprintln!("    {meanwhile} commits in {} s without room", FULL.as_secs());
    world.in_sync("n1", "data", &["n1"]);
    there.make_room();
    world.in_sync("n1", "data", &["n1", "n2"]);
    goes_on();

    assert_eq!(guest.is_up(), boot, "it is the same guest");
    let entries = ledger.close();
    guest.files_are_whole();
    entries.are_in(&guest);
    guest.disks_are_well();
    guest.leaves(&data);
    world.switch_off("n1");
    world.replicas_are_equal("n1", "data");
    drop(world);
    pools.iter().for_each(SmallPool::is_gone);
}

/// The guest up on n1, with its root there alone, and a volume `data` with replicas on n1 and n2 as its second disk.
fn with_data(world: &World) -> (Client, String) {
    world.have_pools();
    let image = world.debian_image("n1");
    world.import("root", &image, &["n1"]);
    world.make_volume("data", "768M", &["n1", "n2"]);
    world.boot_debian("n1", &["root", "data"])
}

fn flip_a_byte(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).expect("it can be opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it can be read");
    file.write_all_at(&[!byte[0]], at).expect("it can be written");
}
