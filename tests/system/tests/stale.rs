//! Reads without a quorum: refused, or with their age.

use std::{thread, time::Duration};

use pollux_system_tests::{World, cli::exit};
use serde_json::Value;

#[test]
fn without_a_quorum_only_stale_reads_answer_and_say_how_old_they_are() {
    let world = World::start(3);
    let fresh: Vec<Value> = world.pollux("n3", &["node", "list"]).json();
    assert!(fresh.iter().all(|node| node.get("age_ms").is_none()), "{fresh:?}");

    world.kill("n1");
    world.kill("n2");
    thread::sleep(Duration::from_secs(3));

    for verb in [["node", "list"], ["vm", "list"], ["op", "list"]] {
        world.pollux("n3", &verb).refused(exit::UNAVAILABLE, &["no quorum", "n3"]);
    }
    world.pollux("n3", &["vm", "why", "web"]).refused(exit::UNAVAILABLE, &["no quorum", "n3"]);
    let old: Vec<Value> = world.pollux("n3", &["node", "list", "--stale"]).json();
    assert_eq!(old.len(), 3);
    for node in &old {
        let age = node["age_ms"].as_u64().unwrap_or_else(|| panic!("it says no age: {node}"));
        assert!((3_000..60_000).contains(&age), "{node}");
    }
    let table = world.command("n3", &["node", "list", "--stale"]).output().expect("it runs");
    assert!(String::from_utf8_lossy(&table.stdout).starts_with("as of "), "{table:?}");

    // The one screen that always answers.
    let status = world.pollux("n3", &["cluster", "status"]).json::<Value>();
    assert_eq!((&status["quorum"], &status["healthy"]), (&Value::Bool(false), &Value::Bool(false)));
    assert!(status["touched_ms"].as_u64().is_some_and(|ms| ms >= 3_000), "{status}");

    world.pollux("n3", &["vm", "stop", "web", "--stale"]).refused(exit::USAGE, &["--stale"]);
}
