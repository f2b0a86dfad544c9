//! A user thinks better of a move.

use pollux_system_tests::{World, cli::exit, views::Ended, waiting::SETTLE};

#[test]
fn a_move_that_is_cancelled_while_copying_leaves_the_vm_where_it_was() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n1");
    guest.ask("FILL 96 random");
    guest.ask("DIRTY 96 200");
    let before = world.settled("n1");
    let watch = world.watch(&guest);

    let mut following = world.begin_move("n1", "n2", &["--max-blackout", "35ms"]);
    assert!(following.reaches("copying", SETTLE));
    let operation = world.last_operation("n3");

    // Cancelled is what this verb is to bring about, and no success of the one that asked for the move.
    let cancelled: Ended = world.pollux("n3", &["op", "cancel", &operation.id[..10]]).json();
    assert_eq!((cancelled.operation.as_str(), cancelled.result.as_deref()), (operation.id.as_str(), Some("cancelled")));
    let _ = following.ends(SETTLE).code(exit::CANCELLED);

    let vm = world.settled("n2");
    assert_eq!((vm.on(), vm.generation), ("n1", before.generation), "nothing changed hands");
    world.has("n2", 0).expect("nothing is left at the target");
    world.pollux("n2", &["op", "cancel", &operation.id]).refused(exit::CONFLICT, &[&operation.id]);
    let _ = world.pollux("n1", &["op", "watch", &operation.id]).code(exit::CANCELLED);

    guest.check_memory();
    watch.finish().nothing_lost(&boot);
}
