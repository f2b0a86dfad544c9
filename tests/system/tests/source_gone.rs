//! The source's host dies in the middle of a move, and the target calls the move off: the replica that was made there is all there is.

use std::net::Ipv4Addr;

use pollux_system_tests::{
    World,
    cli::exit,
    faults::{Hold, Place},
    views::{Ended, Vm},
    waiting::{SETTLE, until},
};

const BLOCKS: u32 = 1024;
const RATE: u32 = 200;

#[test]
fn long_a_target_that_gives_up_because_its_source_is_dead_keeps_the_replica() {
    let world = World::start(3);
    world.have_pools();
    world.make_volume("data", "16M", &["n1"]);
    let guest = world.create("web", "n1", Ipv4Addr::new(10, 78, 0, 10), &["--volume", "data"]);
    let boot = guest.boot();
    guest.works_on_disk(BLOCKS, RATE);
    guest.disk_goes_on(SETTLE);

    // The volume is there; the first round of the memory is.
    let hold = Hold::make(&world, "n1", Place::Round);
    let begun: Ended = world.pollux("n2", &["vm", "migrate", "web", "--to", "n3", "--detach"]).json();
    hold.is_reached(&world, "n2", &begun.operation);
    world.in_sync("n2", "data", &["n1", "n3"]);
    guest.works_on_disk(BLOCKS, 0);
    guest.ask("DISKFLUSH");
    world.kill("n1");
    drop(hold);

    let ended = until("the target to call the move off", SETTLE, || world.has_ended("n2", &begun.operation));
    assert!(ended.is("failed"), "{ended:?}");
    let there = || {
        let volume = world.volume("n2", "data");
        let kept = volume.replicas.iter().find(|it| it.node == "n3" && it.in_sync).map(|it| world.data_of(&volume, it));
        kept.filter(|data| data.exists()).ok_or_else(|| format!("{volume:?}"))
    };
    there().expect("what was copied is kept");

    // With an operator's word that the host is off, the VM goes on with it.
    until("n1 to be given up", SETTLE, || {
        let answer = world.pollux("n2", &["vm", "release", "web", "--operator", "carol", "--yes"]);
        if answer.code == exit::OK { Ok(()) } else { Err(answer.err) }
    });
    there().expect("and it is still kept");
    let _: Vm = world.pollux("n2", &["vm", "start", "web", "--node", "n3"]).json();
    assert_ne!(guest.boot(), boot, "it is started anew");
    assert_ne!(guest.adopts_disk(BLOCKS), 0, "what it wrote is there");
    guest.checks_disk();
}
