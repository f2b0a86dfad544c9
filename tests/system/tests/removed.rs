//! A host that is lost for good, and comes back after all: what it ran is somebody else's now, and it is no node any more
//! (DESIGN, rules 17 and 19).

use pollux_system_tests::{
    World,
    cli::exit,
    views::Vm,
    waiting::{SETTLE, until},
};

#[test]
fn a_lost_host_is_given_up_by_name_and_is_a_stranger_when_it_returns() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n3");

    // While it lives nobody is believed who says otherwise.
    let lost = ["node", "remove", "n3", "--lost", "--operator", "carol", "--yes"];
    world.pollux("n1", &lost).refused(exit::CONFLICT, &["n3", "not lost"]);
    world.pollux("n1", &["node", "remove", "n3", "--yes"]).refused(exit::CONFLICT, &["n3", "web"]);
    world
        .pollux("n1", &["vm", "release", "web", "--operator", "carol", "--yes"])
        .refused(exit::CONFLICT, &["n3", "alive"]);
    assert_eq!(guest.boot(), boot);

    let directory = world.host("n3").dir().expect("a node has a state directory").to_owned();
    world.kill("n3");
    until("n3 is counted dead", SETTLE, || {
        let health = world.node("n1", "n3").health;
        if health == "down" { Ok(()) } else { Err(health) }
    });
    world.pollux("n1", &["node", "remove", "n3", "--yes"]).refused(exit::CONFLICT, &["n3", "web"]);
    // A host that is dead by the heartbeats may only sleep; what it could still send is waited for.
    let removed = until("n3 is given up", SETTLE, || {
        let answer = world.pollux("n2", &lost);
        if answer.code == exit::OK {
            return Ok(answer);
        }
        answer.refused(exit::CONFLICT, &["n3", "silent", "try again in"]);
        Err(answer.err)
    });
    assert!(removed.out.contains("web"), "it says what was released: {removed:?}");

    let vm = world.vm("n1", "web");
    assert_eq!((vm.phase.as_str(), vm.desired.as_str()), ("stopped", "stopped"));
    assert!(vm.stop_cause.is_some_and(|cause| cause.contains("carol")), "the log keeps the name");
    let _: Vm = world.pollux("n1", &["vm", "start", "web", "--node", "n1", "--wait"]).json();
    let elsewhere = guest.boot();
    assert_ne!(elsewhere, boot);

    // It is back: nothing of it starts, it says why, and ends.
    let run = ["node", "run", "--dir", directory.to_str().expect("a path in UTF-8")];
    let returned = world.pollux("n3", &run);
    assert_eq!(returned.code, exit::CONFLICT, "{returned:?}");
    for said in ["n3 was removed", "new token"] {
        assert!(returned.err.contains(said), "it does not say {said:?}: {returned:?}");
    }
    assert_eq!(guest.boot(), elsewhere);
    world.pollux("n1", &["node", "show", "n3"]).refused(exit::NOT_FOUND, &["n3"]);
}
