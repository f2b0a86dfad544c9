//! Whoever follows the events misses none, also when the daemon that is asked is killed and comes back.

use pollux_system_tests::{
    World,
    cli::exit,
    views::Happened,
    waiting::{SETTLE, until},
};

#[test]
fn a_follower_hears_every_event_once_although_its_daemon_is_restarted() {
    let world = World::start(3);
    let leader = world.leader("n1");
    let asked = world.nodes().into_iter().find(|node| *node != leader).unwrap();
    let before: Happened = world.pollux(asked, &["events"]).json();
    let events = world.events_after(asked, before.cursor);

    let _ = world.pollux(&leader, &["cluster", "token", "--node", "n7"]).code(exit::OK);
    let mut heard = vec![events.next(SETTLE).expect("an event while its daemon lives")];
    assert!(heard[0].text.contains("n7"), "{heard:?}");

    // What happens while its daemon is dead, and that it lives again.
    world.kill(asked);
    let _ = world.pollux(&leader, &["cluster", "token", "--node", "n8"]).code(exit::OK);
    world.start_again(asked);
    while !heard.last().unwrap().text.contains(&format!("the daemon of {asked} started again")) {
        heard.push(events.next(SETTLE).unwrap_or_else(|| panic!("no further event after {heard:?}")));
    }
    assert!(heard.iter().any(|event| event.text.contains("n8")), "{heard:?}");
    let numbers: Vec<u64> = heard.iter().map(|event| event.number).collect();
    let gapless: Vec<u64> = (before.cursor + 1..).take(numbers.len()).collect();
    assert_eq!(numbers, gapless, "each once, in order");

    // A later reader goes on where this one was, at another node.
    let last = numbers[numbers.len() - 1];
    let after = |cursor: u64| world.pollux(&leader, &["events", "--after", &cursor.to_string()]);
    until("another node to have them all", SETTLE, || {
        let found: Happened = after(before.cursor).try_json()?;
        if found.cursor >= last { Ok(()) } else { Err(format!("{found:?}")) }
    });
    assert_eq!(after(last - 1).json::<Happened>().events[0].number, last);

    // A cursor of another cluster would wait for ever.
    after(1_000_000).refused(exit::CONFLICT, &["1000000"]);
}
