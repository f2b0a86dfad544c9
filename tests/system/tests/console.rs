//! Somebody sits at a guest's console, from a node that does not run it, and stays there while it moves.

use pollux_system_tests::{
    World,
    cli::exit,
    waiting::{SETTLE, until},
};

#[test]
fn a_console_is_typed_at_from_any_node_and_follows_the_vm() {
    let world = World::start(3);
    let (_guest, _) = world.boot("n1");

    // From a node that neither runs it nor will.
    let mut console = world.console("n3", "web", &[]);
    console.notes("attached to web on n1", SETTLE);
    console.shows("pollux-guest ready", SETTLE);
    console.type_in("echo first-$((6 * 7))\n");
    console.shows("first-42", SETTLE);

    // Somebody else sits down at another node: both are told, both see.
    let mut other = world.console("n2", "web", &["--last", "0"]);
    other.notes("somebody else is attached", SETTLE);
    console.notes("somebody else is attached", SETTLE);
    other.type_in("echo other-$((2 * 21))\n");
    console.shows("other-42", SETTLE);

    world.moves("n2", "n2");
    console.notes("attached to web on n2", SETTLE);
    console.type_in("echo second-$((20 + 22))\n");
    for console in [&console, &other] {
        console.shows("second-42", SETTLE);
        assert_eq!(console.times("second-42"), 1, "what the guest wrote is shown once");
    }
    assert_eq!(console.times("first-42"), 1, "and nothing of it again after the move");
    assert_eq!(other.times("first-42"), 0, "with --last 0 nothing of before");

    // What came through a pipe is answered before the program ends.
    assert_eq!(other.hang_up(), Some(exit::OK));
    console.notes("nobody else is attached any more", SETTLE);

    // The log has what the console showed, whoever typed.
    let log = world.pollux("n1", &["vm", "log", "web"]).out;
    for said in ["first-42", "other-42", "second-42"] {
        assert_eq!(log.matches(said).count(), 1, "{said} in {log}");
    }
}

#[test]
fn a_console_outlives_the_daemon_it_was_asked_of_and_a_guest_that_is_off() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n1");
    let mut console = world.console("n2", "web", &["--last", "0"]);
    console.notes("attached to web on n1", SETTLE);

    world.kill("n2");
    console.notes("trying again", SETTLE);
    world.start_again("n2");
    until("the console to be attached again", SETTLE, || {
        console.type_in("echo third-$((40 + 2))\n");
        if console.times("third-42") > 0 { Ok(()) } else { Err("nothing".into()) }
    });

    let _ = world.pollux("n3", &["vm", "stop", "web", "--force"]).code(exit::OK);
    console.type_in("nobody hears this\n");
    console.notes("does not run", SETTLE);
    let _ = world.pollux("n3", &["vm", "start", "web"]).code(exit::OK);
    console.shows("pollux-guest ready", SETTLE);
    assert_eq!(
        console.times("nobody hears this"),
        0,
        "what was typed at a machine that was off is not typed at its boot"
    );
    assert_ne!(guest.boot(), boot, "it booted afresh");

    world.pollux("n1", &["vm", "console", "wbe"]).refused(exit::USAGE, &["console"]);
    let mut command = world.command("n1", &["vm", "console", "wbe"]);
    assert_eq!(command.output().unwrap().status.code(), Some(exit::NOT_FOUND));
    let _ = world.pollux("n3", &["vm", "stop", "web", "--force"]).code(exit::OK);
    let _ = world.pollux("n3", &["vm", "delete", "web"]).code(exit::OK);
    console.notes("the VM is deleted", SETTLE);
}
