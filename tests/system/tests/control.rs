//! A move that is told how to go: beforehand, while it waits, and while it runs.

use std::net::Ipv4Addr;

use pollux_system_tests::{
    World,
    cli::exit,
    faults::{Hold, Place},
    views::{Ended, Preflight},
    waiting::SETTLE,
};

/// More words for a guest that keeps its processor and its memory busy.
const FAST: [&str; 2] = ["FILL 96 random", "DIRTY 96 4000"];

#[test]
fn a_guest_too_fast_for_its_link_converges_when_it_may_be_slowed_down_and_has_its_speed_back() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n1");
    FAST.iter().for_each(|words| drop(guest.ask(words)));
    let watch = world.watch(&guest);
    let words = ["--bandwidth", "60MB", "--allow-throttle", "--max-blackout", "300ms"];
    let answer = world.begin_move("n1", "n2", &words).ends(SETTLE * 2).code(exit::OK);
    let ended: Ended = answer.value();
    let report = ended.report.expect("a move that succeeded says what it cost");
    assert!(report.throttle_percent > 0, "it would not have converged otherwise: {report:?}");
    assert_eq!(guest.boot(), boot);
    guest.ask("DIRTY 96 5");
    guest.check_memory();
    watch.finish().nothing_lost(&boot);
    // Nothing of the throttle is left, on either node.
    assert_eq!(pollux_system_tests::census::throttled(), Vec::<String>::new());
}

#[test]
fn a_dry_run_names_every_reason_and_starts_nothing() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n1");

    let answer = world.pollux("n3", &["vm", "migrate", "web", "--dry-run"]).code(exit::OK);
    let all: Preflight = answer.value();
    let fits: Vec<(&str, bool)> = all.targets.iter().map(|target| (target.node.as_str(), target.fits)).collect();
    assert_eq!(fits, [("n2", true), ("n3", true)]);

    let one: Preflight =
        world.pollux("n3", &["vm", "migrate", "web", "--to", "n2", "--dry-run"]).code(exit::OK).value();
    let forecast = one.targets[0].forecast.as_ref().expect("a node asked for by name has a forecast");
    assert!(forecast.converges && forecast.rounds >= 2 && forecast.memory_bytes > 32 << 20, "{forecast:?}");
    assert!(forecast.blackout_ms > 0 && forecast.copy_bytes_per_s > 1 << 20, "{forecast:?}");

    // A guest that cannot be carried away is known beforehand.
    FAST.iter().for_each(|words| drop(guest.ask(words)));
    let words = ["vm", "migrate", "web", "--to", "n2", "--dry-run", "--bandwidth", "10MB"];
    world.pollux("n3", &words).refused(exit::FAILED, &["would not come to an end"]);
    guest.ask("DIRTY 96 5");

    // Two reasons at once: its kernel is not there, and it is not up.
    world.kill("n2");
    world.pollux("n1", &["vm", "migrate", "web", "--to", "n2", "--dry-run"]).refused(exit::CONFLICT, &["n2"]);
    world.start_again("n2");
    world.healthy();

    assert!(world.operations("n1").is_empty(), "nothing was started");
    assert_eq!(guest.boot(), boot);
    world.pollux("n1", &["vm", "migrate", "web", "--to", "n1", "--dry-run"]).refused(exit::CONFLICT, &["n1"]);
}

#[test]
fn moves_wait_for_their_turn_and_a_waiting_one_is_cancelled_at_once() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n1");
    let other = world.create("other", "n1", Ipv4Addr::new(10, 78, 0, 11), &[]);
    let third = world.create("third", "n1", Ipv4Addr::new(10, 78, 0, 12), &[]);
    other.boot();
    third.boot();

    let hold = Hold::make(&world, "n1", Place::Round);
    let moves = |name: &str| -> Ended { world.pollux("n2", &["vm", "migrate", name, "--to", "n2", "--detach"]).json() };
    let (first, second, waiting) = (moves("web"), moves("other"), moves("third"));
    hold.is_reached(&world, "n2", &first.operation);
    assert_eq!(world.operation("n2", &waiting.operation).phase, "queued");
    world.pollux("n2", &["vm", "migrate", "third", "--to", "n3"]).refused(exit::CONFLICT, &["third", "waits"]);
    let cancelled: Ended = world.pollux("n2", &["op", "cancel", &waiting.operation]).json();
    assert_eq!(cancelled.result.as_deref(), Some("cancelled"));

    let again = moves("third");
    assert_eq!(world.operation("n2", &again.operation).phase, "queued");
    drop(hold);
    for begun in [&first, &second, &again] {
        let ended = world.ended("n2", &begun.operation);
        assert!(ended.is("succeeded"), "{ended:?}");
    }
    assert_eq!(guest.boot(), boot);
    world.settled("n2");
}
