//! Every daemon is killed at once and started again: what the cluster agreed on is there, and every VM is as it was wished.

use std::net::Ipv4Addr;

use pollux_system_tests::{
    World,
    views::Vm,
    waiting::{SETTLE, until},
};

const SECOND: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 11);

#[test]
fn a_cluster_that_died_whole_comes_back_with_its_vms_and_its_history() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n1");
    let fleeting = world.create("fleeting", "n3", SECOND, &["--no-autostart"]);
    fleeting.boot();
    world.moves("n3", "n2");
    let before = world.cluster("n1");
    let history = world.operations("n1");

    for node in world.nodes() {
        world.kill(node);
    }
    for node in world.nodes() {
        until("no guest to outlive its daemon", SETTLE, || world.has(node, 0));
    }
    for node in world.nodes() {
        world.start_again(node);
    }
    world.healthy();

    let after = world.cluster("n3");
    assert_eq!((after.id, after.voters), (before.id, before.voters));
    assert_eq!(world.operations("n3"), history, "the operation that ended is remembered as it ended");

    let web = world.settled("n1");
    assert_eq!((web.on(), web.home.as_str()), ("n2", "n2"), "it starts again where it had moved to");
    assert_ne!(guest.boot(), boot, "it is a fresh boot: its memory died with the daemon");

    let stopped: Vm = world.vm("n2", "fleeting");
    assert_eq!((stopped.phase.as_str(), stopped.desired.as_str()), ("stopped", "stopped"), "{stopped:?}");
    let cause = stopped.stop_cause.as_deref().unwrap_or_default();
    assert!(cause.contains("daemon"), "it says why it does not run: {cause:?}");
    assert!(fleeting.is_silent());

    // What was not started again by itself can be started by a user.
    let _: Vm = world.pollux("n1", &["vm", "start", "fleeting", "--wait"]).json();
    fleeting.boot();
}
