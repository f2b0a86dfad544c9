//! Replicas move from pool to pool and from node to node under a guest that writes, and whatever happens meanwhile. A few cells of
//! the table run always; `deploy/test --all` plays every one.

use std::net::Ipv4Addr;

use pollux_system_tests::{
    World,
    disks::{POOL, Volume},
    views::{Operation, Vm},
    volume_faults::{Phase, Strike, VolumeTable, pools_hold_nothing_else},
    waiting::SETTLE,
};

const SLOW: &str = "slow";
const BLOCKS: u32 = 4096;
const RATE: u32 = 200;
/// From where to where, ten in a row: from pool to pool on one node, from node to node, and back.
const MOVES: [(&str, &str); 10] = [
    ("n1:fast", "n1:slow"),
    ("n2:fast", "n3:fast"),
    ("n1:slow", "n2:slow"),
    ("n3:fast", "n1:fast"),
    ("n2:slow", "n2:fast"),
    ("n1:fast", "n3:slow"),
    ("n2:fast", "n1:fast"),
    ("n3:slow", "n3:fast"),
    ("n1:fast", "n1:slow"),
    ("n3:fast", "n2:fast"),
];

#[test]
fn long_ten_moves_in_a_row_under_a_guest_that_writes_lose_nothing() {
    let world = World::start(3);
    world.have_pools();
    for node in world.nodes() {
        world.have_pool(node, SLOW);
    }
    world.make_volume("data", "64M", &["n1", "n2"]);
    let guest = world.create("web", "n1", Ipv4Addr::new(10, 78, 0, 10), &["--volume", "data"]);
    let boot = guest.boot();
    guest.works_on_disk(BLOCKS, RATE);
    let watch = world.watch(&guest);

    for (number, (from, to)) in MOVES.into_iter().enumerate() {
        guest.disk_goes_on(SETTLE);
        // Any node can be asked: each in turn.
        let via = world.nodes()[number % 3];
        let ended: Operation = world.pollux(via, &["volume", "move", "data", "--from", from, "--to", to]).json();
        assert!(ended.is("succeeded"), "{from} -> {to}: {ended:?}");
        let volume: Volume = world.volume(via, "data");
        let places: Vec<&str> = volume.replicas.iter().map(|replica| replica.place.as_str()).collect();
        assert!(places.contains(&to) && !places.contains(&from) && places.len() == 2, "{from} -> {to}: {volume:?}");
        let work = guest.disk_work();
        assert_eq!(work.errors, 0, "{from} -> {to}: {work:?}");
    }

    guest.works_on_disk(BLOCKS, 0);
    guest.ask("DISKCHECK");
    assert_eq!(guest.boot(), boot, "it is the same guest");
    watch.finish().nothing_lost(&boot);
    let _: Vm = world.pollux("n1", &["vm", "stop", "web"]).json();
    world.replicas_are_equal("n1", "data");
    pools_hold_nothing_else(&world, "n1", &[POOL, SLOW]);
}

fn play(cells: impl IntoIterator<Item = (Phase, Strike)>) {
    let mut table = VolumeTable::lay();
    for (phase, strike) in cells {
        table.play(phase, strike);
    }
}

#[test]
fn long_a_move_is_cancelled_in_every_phase_and_leaves_nothing() {
    play(Phase::ALL.map(|phase| (phase, Strike::Cancel)));
}

#[test]
#[ignore = "part of the whole table: deploy/test --all"]
fn long_whoever_is_killed_in_some_phase_the_move_comes_to_its_end() {
    play([
        (Phase::Reaching, Strike::Target),
        (Phase::Joining, Strike::Leader),
        (Phase::Comparing, Strike::Writer),
        (Phase::Kept, Strike::Source),
        (Phase::Ending, Strike::Target),
    ]);
}

/// The whole row of one fault.
macro_rules! row {
    ($($name:ident: $strike:ident),* $(,)?) => {
        $(
            #[test]
            #[ignore = "part of the whole table: deploy/test --all"]
            fn $name() {
                play(Phase::ALL.map(|phase| (phase, Strike::$strike)));
            }
        )*
    };
}

row! {
    table_volume_nothing: Nothing,
    table_volume_writer: Writer,
    table_volume_source: Source,
    table_volume_target: Target,
    table_volume_leader: Leader,
}
