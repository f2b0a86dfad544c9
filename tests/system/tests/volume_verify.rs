//! A disk under one replica makes something else of what it was given: that is found, told with where, and repaired.

use std::net::Ipv4Addr;

use pollux_system_tests::{World, cli::exit, disks::Verification, views::Vm, waiting::SETTLE};

/// What the guest's load writes: the first 8 MiB.
const BLOCKS: u32 = 2048;
const RATE: u32 = 100;
/// What it wrote once, and where in that something rots.
const WRITE_ONCE: &str = "dd if=/dev/urandom of=/dev/vda bs=1M seek=40 count=4 conv=fsync";
const ROT_AT: u64 = 41 << 20;

fn verify(world: &World, more: &[&str], code: i32) -> Verification {
    // n3 has no replica and runs nothing: whoever writes is asked, or it does it itself.
    let answer = world.pollux("n3", &[&["volume", "verify", "data"], more].concat());
    answer.code(code).value()
}

/// It is found where it is, and on the replica on which it is; then it is repaired.
fn is_found_and_repaired(world: &World, by: &str) {
    world.rots("n1", "data", ("n2", ROT_AT));
    let found = verify(world, &[], exit::DIFFERS);
    assert_eq!((found.result.as_str(), found.node.as_str()), ("different", by), "{found:?}");
    for replica in &found.replicas {
        assert!(replica.compared, "{found:?}");
        let rotten = replica.places.iter().any(|place| (place.start..place.end).contains(&ROT_AT));
        assert_eq!((rotten, replica.differs_bytes > 0), (replica.place == "n2:fast", rotten), "{found:?}");
    }

    let repaired = verify(world, &["--repair"], exit::OK);
    let bytes: u64 = repaired.replicas.iter().map(|replica| replica.repaired_bytes).sum();
    assert!(repaired.result == "equal" && bytes > 0, "{repaired:?}");
    let equal = verify(world, &[], exit::OK);
    assert!(equal.result == "equal" && equal.compared_bytes == 64 << 20, "{equal:?}");
}

#[test]
fn long_what_a_disk_made_of_a_replica_is_found_and_repaired_while_the_guest_writes_and_while_it_is_off() {
    let world = World::start(3);
    world.have_pools();
    world.make_volume("data", "64M", &["n1", "n2"]);
    let guest = world.create("web", "n1", Ipv4Addr::new(10, 78, 0, 10), &["--volume", "data"]);
    guest.boot();
    let wrote = guest.run(WRITE_ONCE, SETTLE);
    assert_eq!(wrote.code, 0, "{wrote:?}");
    guest.works_on_disk(BLOCKS, RATE);
    assert_eq!(verify(&world, &[], exit::OK).result, "equal");

    is_found_and_repaired(&world, "n1");
    guest.disk_goes_on(SETTLE);
    guest.works_on_disk(BLOCKS, 0);
    guest.checks_disk();

    let _: Vm = world.pollux("n1", &["vm", "stop", "web"]).json();
    is_found_and_repaired(&world, "n3");
    world.replicas_are_equal("n1", "data");
    // Nobody holds it any more.
    let _: Vm = world.pollux("n1", &["vm", "start", "web"]).json();
    guest.boot();
}
