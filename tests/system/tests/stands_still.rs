//! A guest stands still because the pool of its only replica is full: what stopping and moving it do then.

use std::net::Ipv4Addr;

use pollux_system_tests::{
    World,
    cli::exit,
    client::Client,
    small_pool::SMALL,
    views::{Ended, Vm},
    waiting::{SETTLE, until},
};

const BLOCKS: u32 = 2048;
const RATE: u32 = 100;

fn stands_still(world: &World) {
    until("the guest to stand still", SETTLE, || {
        let vm = world.vm("n2", "web");
        let full = vm
            .trouble
            .as_deref()
            .is_some_and(|why| ["the pool is full", "No space left"].iter().any(|it| why.contains(it)));
        if vm.runtime == "paused" && full { Ok(()) } else { Err(format!("{vm:?}")) }
    });
}

fn starts(world: &World, guest: &Client) {
    let _: Vm = world.pollux("n1", &["vm", "start", "web", "--wait"]).json();
    guest.boot();
}

#[test]
fn long_a_guest_without_room_stops_when_there_is_some_or_by_force_and_goes_on_where_there_is() {
    let world = World::start(3);
    world.have_pools();
    let pool = world.small_pool("n1", 96 << 20);
    world.make_volume_in(SMALL, "data", "64M", &["n1"]);
    let guest = world.create("web", "n1", Ipv4Addr::new(10, 78, 0, 10), &["--volume", "data"]);
    guest.boot();
    pool.fill();
    guest.works_on_disk(BLOCKS, RATE);
    stands_still(&world);

    // It cannot hear its power button. It stops by itself once there is room.
    let refused = world.pollux("n3", &["vm", "stop", "web", "--timeout", "2s"]);
    refused.refused(exit::TIMED_OUT, &["web stands still on n1", "volume data"]);
    assert_eq!(world.vm("n2", "web").phase, "running");
    pool.make_room();
    until("it to stop", SETTLE, || {
        let vm = world.vm("n2", "web");
        if vm.phase == "stopped" { Ok(()) } else { Err(format!("{vm:?}")) }
    });

    // The plug works without any.
    starts(&world, &guest);
    pool.fill();
    guest.works_on_disk(BLOCKS, RATE);
    stands_still(&world);
    let vm: Vm = world.pollux("n3", &["vm", "stop", "web", "--force"]).json();
    assert_eq!(vm.phase, "stopped");

    // What it cannot write here it writes where it goes: a replica that has room comes first, and then it goes on.
    pool.make_room();
    starts(&world, &guest);
    pool.fill();
    guest.works_on_disk(BLOCKS, RATE);
    stands_still(&world);
    let ended: Ended =
        world.pollux("n3", &["vm", "migrate", "web", "--to", "n2", "--pool", "fast"]).code(exit::OK).value();
    assert_eq!(ended.result.as_deref(), Some("succeeded"), "{ended:?}");
    world.in_sync("n3", "data", &["n2"]);
    guest.disk_goes_on(SETTLE);
    guest.works_on_disk(BLOCKS, 0);
    guest.checks_disk();
    drop(world);
    pool.is_gone();
}
