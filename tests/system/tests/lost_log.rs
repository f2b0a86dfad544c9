//! What a node must not forget: a host whose log is gone is not that node any more (DESIGN, rule 19).

use std::fs;

use pollux_system_tests::{World, views::Vm};

#[test]
fn a_node_whose_log_is_gone_does_not_take_part_under_its_old_name() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n1");
    let directory = world.host("n3").dir().expect("a node has a state directory").to_owned();
    world.kill("n3");
    let (log, aside) = (directory.join("log"), directory.join("log.aside"));
    fs::rename(&log, &aside).expect("the log of a dead daemon can be moved");

    let started = world.pollux("n3", &["node", "run", "--dir", directory.to_str().expect("a path in UTF-8")]);
    assert_eq!(started.code, 1, "{started:?}");
    for said in ["raft.redb", "put the right one back", "join as a new node"] {
        assert!(started.err.contains(said), "it does not say {said:?}: {started:?}");
    }
    assert!(!log.join("raft.redb").exists(), "it was given no empty one in its place");

    // The others go on, with the guest and without it.
    assert_eq!(guest.boot(), boot);
    let _: Vm = world.pollux("n2", &["vm", "stop", "web", "--force"]).json();

    // With its own log it is itself again.
    if log.exists() {
        fs::remove_dir(&log).expect("it is empty");
    }
    fs::rename(&aside, &log).expect("and put back");
    world.start_again("n3");
    world.healthy();
}
