//! The source's daemon is killed in the middle of a move, and its guest with it: the VM starts again at its home, or runs at
//! the target that had won.

use pollux_system_tests::{World, waiting::SETTLE};

#[test]
fn a_source_that_dies_while_copying_takes_the_guest_with_it_and_starts_it_again() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n2");
    guest.ask("FILL 96 random");

    let mut following = world.begin_move("n2", "n3", &[]);
    assert!(following.reaches("copying", SETTLE));
    world.kill("n2");
    drop(following);
    world.start_again("n2");

    let ended = world.move_ended("n1");
    let vm = world.settled("n1");
    if ended.is("succeeded") {
        // The whole copy was faster than the kill.
        assert_eq!((vm.on(), guest.boot()), ("n3", boot));
    } else {
        assert!(ended.is("failed"), "{ended:?}");
        let reason = ended.reason.as_deref().unwrap_or_default();
        assert!(reason.contains("source"), "the reason names the source: {reason}");
        assert_eq!(vm.on(), "n2", "it starts again at its home");
        assert_ne!(guest.boot(), boot, "it is a fresh boot");
    }
    world.healthy();
    world.moves("n1", "n1");
}

#[test]
fn a_source_that_dies_at_the_switchover_leaves_one_copy() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n2");

    let mut following = world.begin_move("n2", "n3", &[]);
    let _ = following.reaches("switching", SETTLE);
    world.kill("n2");
    drop(following);
    world.start_again("n2");

    let ended = world.move_ended("n1");
    let vm = world.settled("n1");
    match ended.result.as_deref() {
        // The target had every byte and won.
        Some("succeeded") => assert_eq!((vm.on(), guest.boot()), ("n3", boot)),
        Some("failed") => {
            assert_eq!(vm.on(), "n2");
            assert_ne!(guest.boot(), boot, "the source died and its guest with it");
        }
        other => panic!("a move that nobody cancelled ended as {other:?}: {ended:?}"),
    }
    world.healthy();
}
