//! A VM with a mirrored volume: replicas are killed, cut off and stopped in their tracks, the VM moves, everything dies at once;
//! and what the guest wrote is there, on every replica alike.

use pollux_system_tests::{
    World,
    views::Vm,
    waiting::{SETTLE, until},
};

const BLOCKS: u32 = 2048;
const RATE: u32 = 100;

#[test]
fn long_a_mirrored_disk_outlives_its_replicas_and_moves_with_its_vm() {
    let world = World::start(3);
    world.have_pools();
    world.make_volume("data", "64M", &["n1", "n2"]);
    let guest = world.create("web", "n1", std::net::Ipv4Addr::new(10, 78, 0, 10), &["--volume", "data"]);
    let boot = guest.boot();
    guest.works_on_disk(BLOCKS, RATE);

    // A replica's node is killed: the guest goes on, and the replica comes back with what it missed.
    world.kill("n2");
    world.in_sync("n1", "data", &["n1"]);
    guest.disk_goes_on(SETTLE);
    world.start_again("n2");
    world.in_sync("n1", "data", &["n1", "n2"]);

    // The way to it is cut, and mended.
    world.cut("n1:n2");
    world.in_sync("n1", "data", &["n1"]);
    guest.disk_goes_on(SETTLE);
    world.heal();
    world.in_sync("n1", "data", &["n1", "n2"]);

    // Its host stops in its tracks, and wakes up with requests of then.
    world.pause("n2");
    world.in_sync("n1", "data", &["n1"]);
    world.resume("n2");
    world.in_sync("n1", "data", &["n1", "n2"]);

    // The VM moves to the other replica, to a node without one, and back. Its host has yet to be heard of by the leader.
    world.healthy();
    for (to, more) in [("n2", [].as_slice()), ("n3", &["--from-afar"]), ("n1", &["--compute-only"])] {
        let generation = world.volume("n1", "data").generation;
        world.moves_with("n1", to, more);
        assert!(world.volume("n1", "data").generation > generation, "the right to write has gone over");
        guest.disk_goes_on(SETTLE);
        world.in_sync("n1", "data", &["n1", "n2"]);
    }

    assert_eq!(guest.boot(), boot, "it is the same guest");
    guest.works_on_disk(BLOCKS, 0);
    guest.checks_disk();
    let _: Vm = world.pollux("n1", &["vm", "stop", "web"]).json();
    world.replicas_are_equal("n1", "data");
}

#[test]
fn long_what_was_flushed_is_there_after_everything_died_at_once() {
    let world = World::start(3);
    world.have_pools();
    world.make_volume("data", "64M", &["n1", "n2"]);
    let guest = world.create("web", "n1", std::net::Ipv4Addr::new(10, 78, 0, 10), &["--volume", "data"]);
    let boot = guest.boot();
    guest.works_on_disk(BLOCKS, RATE);
    guest.disk_goes_on(SETTLE);
    let flushed = guest.flushes_disk();
    guest.disk_goes_on(SETTLE);

    for node in world.nodes() {
        world.kill(node);
    }
    for node in world.nodes() {
        until("all to be gone", SETTLE, || world.has(node, 0));
    }
    for node in world.nodes() {
        world.start_again(node);
    }
    assert_ne!(guest.boot(), boot, "its memory is gone");
    let found = guest.adopts_disk(BLOCKS);
    assert!(found >= flushed, "the blocks' numbers came to {flushed} when they were flushed, and to {found} now");
    guest.works_on_disk(BLOCKS, RATE);
    world.in_sync("n1", "data", &["n1", "n2"]);
    guest.disk_goes_on(SETTLE);
    guest.works_on_disk(BLOCKS, 0);
    guest.ask("DISKCHECK");
    let _: Vm = world.pollux("n1", &["vm", "stop", "web"]).json();
    world.replicas_are_equal("n1", "data");
}
