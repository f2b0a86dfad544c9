//! The promise itself: a VM that moves from node to node under load, and a client that notices nothing but a short pause.

use std::time::Duration;

use pollux_system_tests::{World, waiting::until};

const MOVES: u64 = 20;
/// What the guest keeps rewriting: MiB, and MB/s.
const DIRTY: &str = "DIRTY 24 8";
/// Requests that the client wants to see acknowledged between two moves, so that every move happens under load.
const ACKED_BETWEEN: u64 = 20;

#[test]
fn long_twenty_moves_in_a_row_lose_nothing_and_break_no_connection() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n1");
    guest.ask("FILL 24 text");
    guest.ask(DIRTY);
    let before = world.settled("n1");
    let watch = world.watch(&guest);

    let nodes = world.nodes();
    for step in 1..=MOVES {
        let to = nodes[usize::try_from(step).unwrap() % nodes.len()];
        // Any node can be asked: each in turn.
        let via = nodes[usize::try_from(step / 3).unwrap() % nodes.len()];
        world.moves(via, to);

        let vm = world.vm(to, "web");
        assert_eq!((vm.on(), vm.phase.as_str(), vm.home.as_str()), (to, "running", to), "after move {step}: {vm:?}");
        assert_eq!(vm.generation, before.generation + step, "the generation rises by one with each move");

        let mut acked = 0;
        until("the client to be served between two moves", Duration::from_secs(30), || {
            acked += watch.mark(&format!("after-{step}")).ledger.acked;
            if acked >= ACKED_BETWEEN { Ok(()) } else { Err(format!("{acked} requests")) }
        });
    }

    world.settled("n2");
    guest.check_memory();
    // What it wrote to its console when it booted, twenty hosts ago, has come along.
    let log = world.pollux("n1", &["vm", "log", "web"]).out;
    assert_eq!(log.matches("pollux-guest ready").count(), 1, "{log}");
    let seen = watch.finish();
    seen.nothing_lost(&boot);
    assert_eq!(seen.owners.switches, MOVES, "the emitter changes once with each move: {:?}", seen.owners);
    assert!(guest.hello().counter > 0, "the guest still counts");
}
