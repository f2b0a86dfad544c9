//! A guest that writes its memory faster than the link carries it cannot be moved within the blackout wished for. That is no
//! defect, so it ends in a report, and the guest has noticed nothing.

use pollux_system_tests::{World, cli::exit, views::Ended};

#[test]
fn a_guest_faster_than_the_link_stays_and_the_report_names_both_speeds() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n1");
    guest.ask("FILL 96 random");
    guest.ask("DIRTY 96 4000");
    let watch = world.watch(&guest);

    let answer = world.pollux("n1", &["vm", "migrate", "web", "--to", "n2", "--max-blackout", "35ms"]);
    let answer = answer.code(exit::FAILED);
    let ended: Ended = answer.value();
    assert_eq!(ended.result.as_deref(), Some("failed"));
    let reason = ended.reason.expect("a move that failed says why");
    assert!(reason.matches("MiB/s").count() == 2, "it names what the guest writes and what the link carries: {reason}");
    assert!(answer.complaint().error.contains(&reason), "the complaint is the report");

    let vm = world.settled("n1");
    assert_eq!((vm.on(), vm.runtime.as_str()), ("n1", "running"));
    guest.check_memory();
    watch.finish().nothing_lost(&boot);

    // A calmer guest moves.
    guest.ask("DIRTY 96 5");
    world.moves("n2", "n2");
    assert_eq!(guest.boot(), boot);
    guest.check_memory();
}
