//! What an operator asks before and after a move: why the VM is here, why it is not there, and what it has cost.

use pollux_system_tests::{
    World,
    cli::exit,
    views::Why,
    waiting::{SETTLE, until},
};

#[test]
fn a_vm_tells_why_it_is_here_and_a_node_what_it_has_done() {
    let world = World::start(3);
    let (guest, _) = world.boot("n1");
    let why = |via: &str| -> Why { world.pollux(via, &["vm", "why", "web"]).json() };

    let at_home = why("n3");
    assert!(at_home.because.unwrap().text.contains("starts on n1"));
    assert_eq!(at_home.last_move, None);
    assert_eq!(at_home.nodes.iter().map(|node| node.fits).collect::<Vec<_>>(), [true; 3], "{:?}", at_home.nodes);
    assert!(at_home.nodes[0].here && !at_home.nodes[1].here);

    world.moves("n3", "n2");
    guest.hello();
    let moved = why("n3");
    assert!(moved.because.unwrap().text.contains("runs on n2 after a pause"));
    assert!(moved.last_move.unwrap().is("succeeded"));

    // A node that is gone is named, and what it cannot be asked is not made up.
    world.kill("n3");
    until("n3 to be told as the place where it cannot be", SETTLE, || {
        let told = world.pollux("n1", &["vm", "why", "web"]).try_json::<Why>()?;
        let n3 = told.nodes.iter().find(|node| node.node == "n3").unwrap();
        match n3.obstacles.first() {
            Some(first) if !n3.fits && first.about == "peer" => Ok(()),
            _ => Err(format!("{told:?}")),
        }
    });
    world.start_again("n3");

    // A stopped VM is told as such, and still where it could run.
    let _ = world.pollux("n1", &["vm", "stop", "web", "--force"]).code(exit::OK);
    let stopped = why("n1");
    assert!(stopped.because.unwrap().text.contains("stopped on n2"));
    assert!(stopped.nodes.iter().all(|node| !node.here), "{:?}", stopped.nodes);

    // Moves are counted where they began, frames where they passed.
    let metrics = |node: &str| {
        let output = world.command(node, &["metrics"]).output().expect("`pollux` can be started");
        String::from_utf8(output.stdout).expect("text")
    };
    let (source, target) = (metrics("n1"), metrics("n2"));
    let has = |text: &str, line: &str| text.lines().any(|found| found == line);
    for line in [
        "pollux_moves_started_total 1",
        "pollux_moves_ended_total{result=\"succeeded\"} 1",
        "pollux_move_pause_seconds_count 1",
        "pollux_qemu_processes 0",
        "pollux_raft_has_leader 1",
        "pollux_vms{phase=\"stopped\"} 1",
    ] {
        assert!(has(&source, line), "{line} is not in {source}");
    }
    assert!(has(&target, "pollux_moves_started_total 0"), "{target}");
    for (node, text) in [("n1", &source), ("n2", &target)] {
        let sent = text.lines().find_map(|line| {
            line.strip_prefix("pollux_gate_frames_total{direction=\"out\",outcome=\"passed\"} ")?.parse::<u64>().ok()
        });
        assert!(sent.is_some_and(|sent| sent > 0), "{node} let no frame of the guest out: {text}");
    }
}
