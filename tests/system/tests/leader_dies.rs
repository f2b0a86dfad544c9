//! The leader is killed in the middle of a move.

use pollux_system_tests::{World, waiting::SETTLE};

#[test]
fn a_leader_that_is_neither_source_nor_target_may_die_and_the_guest_does_not_notice() {
    let world = World::start(3);
    let leader = world.leader("n1");
    let others: Vec<&str> = world.nodes().into_iter().filter(|node| *node != leader).collect();
    let &[source, target] = others.as_slice() else { panic!("three nodes, one of them leads: {others:?}") };
    let (guest, boot) = world.boot(source);
    guest.ask("FILL 64 random");
    guest.ask("DIRTY 64 10");
    let watch = world.watch(&guest);

    let mut following = world.begin_move(source, target, &[]);
    assert!(following.reaches("copying", SETTLE));
    world.kill(&leader);

    // Two of three are a quorum: the move comes to an end without the dead one.
    let ended = world.move_ended(source);
    world.start_again(&leader);
    let vm = world.settled(source);
    if ended.is("succeeded") {
        assert_eq!(vm.on(), target);
    } else {
        assert!(ended.is("failed") && ended.reason.is_some(), "{ended:?}");
        assert_eq!(vm.on(), source);
    }
    assert_eq!(guest.boot(), boot);
    guest.check_memory();
    watch.finish().nothing_lost(&boot);
    world.healthy();
}

#[test]
fn a_leader_that_is_the_target_may_die_and_the_guest_stays() {
    let world = World::start(3);
    let leader = world.leader("n1");
    let source = world.nodes().into_iter().find(|node| *node != leader).expect("a node that follows");
    let (guest, boot) = world.boot(source);
    guest.ask("FILL 96 random");

    let mut following = world.begin_move(source, &leader, &[]);
    assert!(following.reaches("copying", SETTLE));
    world.kill(&leader);

    let ended = world.move_ended(source);
    world.start_again(&leader);
    let vm = world.settled(source);
    if world.switched_over(source, &ended.id) {
        assert!(vm.on() == leader || guest.boot() == boot, "{vm:?}");
    } else {
        assert!(ended.is("failed"), "{ended:?}");
        assert_eq!((vm.on(), guest.boot()), (source, boot));
        guest.check_memory();
    }
    world.healthy();
}
