//! A stop is a decision: it is in the log before QEMU ends, so that nothing takes it for a death.

use pollux_system_tests::{
    World,
    cli::exit,
    views::Vm,
    waiting::{SETTLE, until},
};

#[test]
fn a_stop_stays_a_stop_whoever_wanted_it() {
    let world = World::start(3);
    let (guest, first) = world.boot("n2");

    // The guest switches itself off.
    guest.tell("POWEROFF");
    let vm = stopped(&world);
    assert_eq!(vm.stop_cause.as_deref(), Some("the guest switched itself off"));
    world.settled("n1");
    world.restart("n2");
    world.healthy();
    let vm = world.settled("n1");
    assert_eq!(vm.phase, "stopped", "a daemon that starts does not start what was stopped: {vm:?}");
    assert_eq!(vm.stop_cause.as_deref(), Some("the guest switched itself off"));
    assert!(guest.is_silent());

    // A user starts it: another boot.
    let _: Vm = world.pollux("n1", &["vm", "start", "web", "--wait"]).json();
    let second = guest.boot();
    assert_ne!(second, first);

    // A user presses its power button.
    let vm: Vm = world.pollux("n3", &["vm", "stop", "web"]).json();
    assert_eq!((vm.phase.as_str(), vm.stop_cause.as_deref()), ("stopped", Some("stopped by a user")));
    // What it wrote last can still be read, and what it wrote in the life before.
    let log = world.pollux("n1", &["vm", "log", "web"]);
    assert_eq!((log.code, log.out.matches("pollux-guest ready").count()), (exit::OK, 1), "{log:?}");

    // A guest that has crashed does not react to its power button; the plug still works.
    let _: Vm = world.pollux("n1", &["vm", "start", "web", "--wait"]).json();
    let third = guest.boot();
    assert_ne!(third, second);
    guest.tell("PANIC");
    until("the crashed guest to fall silent", SETTLE, || {
        if guest.is_silent() { Ok(()) } else { Err("it answers".into()) }
    });
    world.pollux("n1", &["vm", "stop", "web", "--timeout", "2s"]).refused(exit::TIMED_OUT, &["web", "n2"]);
    let vm: Vm = world.pollux("n1", &["vm", "stop", "web", "--force"]).json();
    assert_eq!((vm.phase.as_str(), vm.desired.as_str()), ("stopped", "stopped"));
    world.settled("n1");

    // What is stopped can be forgotten, and its name is free again.
    let _: Vm = world.pollux("n1", &["vm", "delete", "web"]).json();
    world.pollux("n3", &["vm", "show", "web"]).refused(exit::NOT_FOUND, &["web"]);
}

fn stopped(world: &World) -> Vm {
    until("the stop to be committed", SETTLE, || {
        let vm = world.vm("n1", "web");
        if vm.phase == "stopped" && vm.desired == "stopped" { Ok(vm) } else { Err(format!("{vm:?}")) }
    })
}
