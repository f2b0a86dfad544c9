//! A daemon sleeps for longer than the kernel lets its guests' frames pass unasked, and wakes (DESIGN, rule 5).

use std::{thread, time::Duration};

use pollux_system_tests::{
    World,
    waiting::{SETTLE, until},
};

/// Longer than the time of the kernel's fence.
const LONG: Duration = Duration::from_secs(7);
/// Long enough for a daemon that is awake to be heard.
const LISTEN: Duration = Duration::from_secs(3);

#[test]
fn a_daemon_that_slept_lets_nothing_out_before_it_has_asked_the_log() {
    let world = World::start(3);
    let leader = world.leader("n1");
    let node = world.nodes().into_iter().find(|node| *node != leader).expect("a node that follows");
    let (guest, boot) = world.boot(node);

    // Awake, it needs nobody: the loss of the control plane does not stop the data plane (rule 6).
    world.cut(node);
    thread::sleep(LONG);
    assert_eq!(guest.boot(), boot, "a guest fell silent because its node was cut off");

    // Having slept, it needs an answer of the log, and cannot have one.
    world.pause(node);
    thread::sleep(LONG);
    world.resume(node);
    until("the node to know that its guest is shut off", SETTLE, || {
        let vm: pollux_system_tests::views::Vm = world.pollux(node, &["vm", "show", "web", "--stale"]).try_json()?;
        if vm.runtime == "fenced" { Ok(()) } else { Err(format!("{vm:?}")) }
    });
    let listening = std::time::Instant::now();
    while listening.elapsed() < LISTEN {
        assert!(guest.is_silent(), "the guest of a daemon that slept is heard before the log was asked");
    }

    // It asks by itself, and all is as it was.
    world.heal();
    assert_eq!(guest.boot(), boot);
    let vm = world.settled(node);
    assert_eq!(vm.on(), node);
    world.healthy();
}

#[test]
fn a_daemon_that_slept_in_a_whole_cluster_is_heard_again_by_itself() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n2");

    world.pause("n2");
    thread::sleep(LONG);
    world.resume("n2");

    assert_eq!(guest.boot(), boot);
    world.settled("n1");
    world.healthy();
}
