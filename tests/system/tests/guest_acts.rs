//! A guest that does something of its own in the middle of its own move: it switches itself off, starts over, or crashes.

use pollux_system_tests::{
    World,
    faults::{Hold, Place},
    views::Vm,
    waiting::{SETTLE, until},
};

#[test]
fn a_guest_that_switches_itself_off_while_it_is_copied_is_off_and_the_move_says_so() {
    let world = World::start(3);
    let (guest, _) = world.boot("n1");
    let hold = Hold::make(&world, "n1", Place::Round);
    let begun = world.begin_detached("n3", "n2");
    hold.is_reached(&world, "n3", &begun);
    guest.tell("POWEROFF");

    let ended = world.ended("n3", &begun);
    drop(hold);
    assert!(ended.is("failed"), "{ended:?}");
    let reason = ended.reason.as_deref().unwrap_or_default();
    assert!(reason.contains("switched itself off"), "{reason}");
    let vm = world.settled("n3");
    assert_eq!((vm.phase.as_str(), vm.desired.as_str()), ("stopped", "stopped"));
    assert!(guest.is_silent());

    // It can be started and moved as if nothing had been.
    let _: Vm = world.pollux("n1", &["vm", "start", "web", "--wait"]).json();
    guest.boot();
    world.moves("n3", "n2");
}

#[test]
fn a_guest_that_starts_over_while_it_is_copied_arrives_in_its_new_life() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n1");
    let hold = Hold::make(&world, "n1", Place::Round);
    let begun = world.begin_detached("n3", "n2");
    hold.is_reached(&world, "n3", &begun);
    guest.tell("REBOOT");
    let after = until("the guest's next life", SETTLE, || {
        let now = guest.boot();
        if now == boot { Err(now) } else { Ok(now) }
    });
    drop(hold);

    let ended = world.ended("n3", &begun);
    assert!(ended.is("succeeded"), "{ended:?}");
    assert_eq!(world.settled("n3").on(), "n2");
    assert_eq!(guest.boot(), after, "what the firmware and the kernel wrote anew was moved, too");
    guest.ask("FILL 24 random");
    guest.check_memory();
}

#[test]
fn a_guest_that_crashes_while_it_is_copied_ends_the_move_or_is_moved_as_it_is_but_is_in_one_place() {
    let world = World::start(3);
    let (guest, _) = world.boot("n1");
    let hold = Hold::make(&world, "n1", Place::Round);
    let begun = world.begin_detached("n3", "n2");
    hold.is_reached(&world, "n3", &begun);
    guest.tell("PANIC");
    until("the crashed guest to fall silent", SETTLE, || {
        if guest.is_silent() { Ok(()) } else { Err("it answers".into()) }
    });
    drop(hold);

    let ended = world.ended("n3", &begun);
    assert!(ended.is("succeeded") || ended.reason.is_some(), "{ended:?}");
    let _: Vm = world.pollux("n3", &["vm", "stop", "web", "--force"]).json();
    let _: Vm = world.pollux("n3", &["vm", "start", "web", "--wait"]).json();
    guest.boot();
    world.settled("n3");
}
