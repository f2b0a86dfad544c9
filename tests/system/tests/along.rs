//! VMs that take their volumes along: live, warm and cold; and those that do not arrive, whose volumes stay.

use std::net::Ipv4Addr;

use pollux_system_tests::{
    World,
    cli::exit,
    views::{Ended, Preflight, Vm},
    waiting::{SETTLE, until},
};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 10);
const BLOCKS: u32 = 2048;
/// Where little is copied slowly.
const FEW: u32 = 1024;
const RATE: u32 = 100;

#[test]
fn long_a_vm_takes_its_volumes_along_live_warm_and_cold() {
    let world = World::start(3);
    world.have_pools();
    world.make_volume("data", "64M", &["n1"]);
    world.make_volume("logs", "16M", &["n1", "n2"]);
    let guest = world.create("web", "n1", ADDRESS, &["--volume", "data", "--volume", "logs"]);
    let boot = guest.boot();
    guest.works_on_disk(BLOCKS, RATE);
    guest.disk_goes_on(SETTLE);

    // What is not there is told, and not copied by who does not want it to be.
    let told: Preflight = world.pollux("n2", &["vm", "migrate", "web", "--to", "n3", "--dry-run"]).json();
    let disks: Vec<_> = told.targets[0].disks.iter().map(|it| (it.volume.as_str(), it.from.as_deref())).collect();
    assert_eq!(disks, [("data", Some("n1:fast")), ("logs", Some("n1:fast"))]);
    assert!(told.targets[0].disks[0].copy_bytes.is_some_and(|bytes| bytes >= 4096), "{told:?}");
    let refused = world.pollux("n2", &["vm", "migrate", "web", "--to", "n3", "--compute-only"]);
    refused.refused(exit::CONFLICT, &["volume data has no replica on n3", "--from-afar"]);
    let refused = world.pollux("n2", &["vm", "migrate", "web", "--to", "n2", "--with-storage"]);
    refused.refused(exit::CONFLICT, &["volume logs is on n2 already", "n1:fast would stay"]);

    // Live: both are at the target before the VM is, and what they replace goes after.
    world.moves("n2", "n3");
    assert_eq!(world.vm("n1", "web").on(), "n3");
    world.in_sync("n1", "data", &["n3"]);
    world.in_sync("n1", "logs", &["n2", "n3"]);
    guest.disk_goes_on(SETTLE);
    world.pool_is_empty("n1");

    // Warm: the same, with a guest that stands still.
    let began = world.pollux("n2", &["vm", "migrate", "web", "--to", "n2", "--warm"]).code(exit::OK);
    let ended: Ended = began.value();
    assert_eq!(ended.report.map(|report| report.rounds), Some(2), "one while it stands still, and the rest");
    world.in_sync("n1", "data", &["n2"]);
    world.in_sync("n1", "logs", &["n2", "n3"]);
    assert_eq!(guest.boot(), boot, "it is the same guest");
    guest.works_on_disk(BLOCKS, 0);
    guest.checks_disk();

    // Cold: it is stopped, and stays so; where it is at home it is started.
    let _: Vm = world.pollux("n1", &["vm", "stop", "web"]).json();
    let ended: Ended = world.pollux("n3", &["vm", "migrate", "web", "--to", "n1"]).code(exit::OK).value();
    assert!(ended.result.as_deref() == Some("succeeded") && ended.report.is_none(), "{ended:?}");
    let vm = world.vm("n3", "web");
    assert_eq!((vm.phase.as_str(), vm.desired.as_str(), vm.home.as_str()), ("stopped", "stopped", "n1"));
    world.in_sync("n1", "data", &["n1"]);
    world.in_sync("n1", "logs", &["n1", "n3"]);
    world.pool_is_empty("n2");
    world.replicas_are_equal("n1", "logs");
    let _: Vm = world.pollux("n2", &["vm", "start", "web"]).json();
    assert_ne!(guest.boot(), boot, "it is started anew");
    assert_ne!(guest.adopts_disk(BLOCKS), 0, "what it wrote is there");
}

#[test]
fn long_a_vm_that_does_not_set_out_leaves_its_volume_where_it_was() {
    let world = World::start(3);
    world.have_pools();
    world.make_volume("data", "32M", &["n1"]);
    let guest = world.create("web", "n1", ADDRESS, &["--volume", "data"]);
    let boot = guest.boot();
    guest.works_on_disk(FEW, 10 * RATE);
    // Holes are copied in no time.
    until("the guest to have written enough to be copied", SETTLE, || {
        let work = guest.disk_work();
        if work.writes > u64::from(FEW) { Ok(()) } else { Err(format!("{work:?}")) }
    });
    let stays = |why: &str| {
        until(why, SETTLE, || {
            let volume = world.volume("n1", "data");
            if volume.replicas.len() == 1 { Ok(()) } else { Err(format!("{volume:?}")) }
        });
        world.in_sync("n1", "data", &["n1"]);
        for node in ["n2", "n3"] {
            world.pool_is_empty(node);
        }
        assert_eq!((world.vm("n2", "web").on(), guest.boot()), ("n1", boot.clone()));
        guest.disk_goes_on(SETTLE);
    };
    let mirroring = |to: &str| {
        // So slowly that it can be seen.
        let words = ["vm", "migrate", "web", "--to", to, "--bandwidth", "2MB", "--detach"];
        let begun: Ended = world.pollux("n1", &words).json();
        until("its volume to be on its way", SETTLE, || {
            let seen = world.operation("n1", &begun.operation);
            let copies = seen.progress.as_ref().is_some_and(|it| it.phase == "mirroring" && it.sent_bytes > 0);
            if seen.phase == "mirroring" && copies { Ok(()) } else { Err(format!("{seen:?}")) }
        });
        assert_eq!(world.vm("n3", "web").operation.as_deref(), Some(begun.operation.as_str()));
        begun.operation
    };

    let operation = mirroring("n2");
    let ended: Ended = world.pollux("n3", &["op", "cancel", &operation]).json();
    assert_eq!(ended.result.as_deref(), Some("cancelled"));
    stays("the copy to be gone after a cancellation");

    // The target dies with half a copy, and comes back.
    let operation = mirroring("n3");
    world.kill("n3");
    let _: Ended = world.pollux("n1", &["op", "cancel", &operation]).json();
    world.start_again("n3");
    stays("the copy to be gone from a node that was dead when it was given up");

    // The target dies with half a copy, comes back, and the move goes on.
    let operation = mirroring("n3");
    world.kill("n3");
    world.start_again("n3");
    let _: serde_json::Value = world.pollux("n1", &["volume", "show", "data"]).json();
    let ended = until("the move to end", SETTLE * 3, || world.has_ended("n1", &operation));
    assert!(ended.is("succeeded"), "{ended:?}");
    world.in_sync("n1", "data", &["n3"]);
    world.pool_is_empty("n1");
    assert_eq!(guest.boot(), boot, "it is the same guest");
    guest.works_on_disk(FEW, 0);
    guest.checks_disk();
}
