//! The network between nodes breaks in the middle of a move, and is mended.

use pollux_system_tests::{
    World,
    cli::exit,
    views::{Ended, Node},
    waiting::{SETTLE, until},
};

/// A guest that no link carries away: the move goes on copying until something ends it.
const NEVER_DONE: &[&str] = &["--max-blackout", "35ms"];

#[test]
fn a_cut_between_source_and_target_fails_the_move_and_the_next_one_succeeds() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n1");
    guest.ask("FILL 96 random");
    guest.ask("DIRTY 96 200");
    let watch = world.watch(&guest);

    let mut following = world.begin_move("n1", "n2", NEVER_DONE);
    assert!(following.reaches("copying", SETTLE));
    world.cut("n1:n2");

    // Both still hear the third node, so that the cluster can decide.
    let answer = following.ends(SETTLE).code(exit::FAILED);
    let ended: Ended = answer.value();
    let reason = ended.reason.expect("a move that failed says why");
    assert!(reason.contains("connection"), "it names the connection: {reason}");

    world.heal();
    world.healthy();
    let vm = world.settled("n1");
    assert_eq!((vm.on(), vm.runtime.as_str()), ("n1", "running"));
    guest.ask("DIRTY 96 5");
    world.moves("n1", "n2");
    world.settled("n3");

    guest.check_memory();
    watch.finish().nothing_lost(&boot);
}

#[test]
fn a_source_cut_off_from_everyone_while_copying_ends_up_in_one_place_with_nothing_lost() {
    let world = World::start(3);
    let leader = world.leader("n1");
    let source = world.nodes().into_iter().find(|node| *node != leader).expect("a node that follows");
    cut_off_and_mended(&world, source, "copying");
}

#[test]
fn a_leader_cut_off_from_everyone_at_the_switchover_of_its_vm_ends_up_in_one_place_with_nothing_lost() {
    let world = World::start(3);
    let leader = world.leader("n1");
    cut_off_and_mended(&world, &leader, "switching");
}

fn cut_off_and_mended(world: &World, source: &str, phase: &str) {
    let others: Vec<&str> = world.nodes().into_iter().filter(|node| *node != source).collect();
    let (target, witness) = (others[0], others[1]);
    let (guest, boot) = world.boot(source);
    guest.ask("FILL 96 random");
    guest.ask("DIRTY 96 20");
    let watch = world.watch(&guest);

    let mut following = world.begin_move(source, target, &[]);
    let reached = following.reaches(phase, SETTLE);
    world.cut(source);
    assert!(reached, "there was a moment to cut at");
    drop(following);

    // The others say that it is gone, and nobody starts a second copy: nobody can know that the first is dead.
    until("the others to count the source out", SETTLE, || {
        let node: Node = world.pollux(witness, &["node", "show", source]).try_json()?;
        if node.health == "down" { Ok(()) } else { Err(format!("{node:?}")) }
    });
    let meanwhile = watch.mark("cut off");
    meanwhile.one_owner();
    world.heal();

    let ended = world.move_ended(witness);
    let vm = world.settled(witness);
    eprintln!("cut at {phase}: {:?} {:?}, on {}", ended.result, ended.reason, vm.on());
    assert_eq!(vm.on(), if ended.is("succeeded") { target } else { source }, "{ended:?}");
    assert_eq!(guest.boot(), boot, "no daemon died, and so no guest did");
    guest.check_memory();
    watch.finish().nothing_lost(&boot);
    world.healthy();
}
