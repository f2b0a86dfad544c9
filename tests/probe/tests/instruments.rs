//! The instruments against a guest that behaves, and against guests that fail. An instrument that cannot find a fault is no proof
//! of its absence.

mod fake;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use fake::FakeGuest;
use pollux_probe::{
    blackout::Blackout,
    guest::Guest,
    instrument::{Instrument, converse},
    ledger::{Ledger, LedgerOptions, LedgerReport},
};

fn ledger(guest: &FakeGuest) -> Ledger {
    Ledger::start(LedgerOptions {
        target: guest.tcp,
        connections: 4,
        requests_per_second: 1000,
        patience: Duration::from_secs(2),
    })
}

/// Lets a ledger fill up: marks windows until this many requests were acknowledged in them. Returns the last window.
fn fill(ledger: &Ledger, requests: u64) -> LedgerReport {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut acked = 0;
    loop {
        let report = ledger.mark("fill");
        acked += report.acked;
        if acked >= requests {
            return report;
        }
        assert!(Instant::now() < deadline, "only {acked} of {requests} requests were acknowledged");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_faithful_guest_has_a_clean_ledger() {
    let guest = FakeGuest::start();
    let ledger = ledger(&guest);
    fill(&ledger, 500);

    // A pause is a stall, and nothing else.
    guest.pause(Duration::from_millis(80));
    std::thread::sleep(Duration::from_millis(20));
    let paused = ledger.mark("paused");
    assert!(paused.longest_stall_ms >= 70.0, "{paused:?}");

    let total = ledger.finish();
    assert!(total.acked >= 500 && total.read_back > 100, "{total:?}");
    assert_eq!((total.lost_acks, total.regressions, total.refused, total.unverified), (0, 0, 0, 0));
    assert_eq!((total.tcp_resets, total.reconnects, total.connections), (0, 0, 4));
    assert_eq!(total.boot_ids, BTreeSet::from(["b0".to_owned()]));
}

#[test]
fn older_memory_shows_in_the_counter_and_in_what_was_stored() {
    let guest = FakeGuest::start();
    let ledger = ledger(&guest);
    fill(&ledger, 300);
    let older = guest.memory.lock().unwrap().clone();
    fill(&ledger, 300);
    *guest.memory.lock().unwrap() = older;
    fill(&ledger, 300);
    let total = ledger.finish();
    assert!(total.lost_acks > 50, "{total:?}");
    assert!(total.regressions >= 2, "the counter and the version went back: {total:?}");
}

#[test]
fn one_forgotten_value_is_found_at_the_latest_in_the_end() {
    let guest = FakeGuest::start();
    let ledger = ledger(&guest);
    while guest.memory.lock().unwrap().values.remove("c2.0.3").is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    fill(&ledger, 20);
    assert_eq!(ledger.finish().lost_acks, 1);
}

#[test]
fn a_broken_connection_is_a_reset_and_loses_nothing_by_itself() {
    let guest = FakeGuest::start();
    let ledger = ledger(&guest);
    fill(&ledger, 100);
    guest.break_connections();
    fill(&ledger, 100);
    let total = ledger.finish();
    assert_eq!((total.tcp_resets, total.reconnects), (4, 4), "{total:?}");
    assert_eq!((total.lost_acks, total.unverified), (0, 0), "{total:?}");
}

#[test]
fn a_fresh_boot_is_told_even_if_the_connections_seem_to_live() {
    let guest = FakeGuest::start();
    let ledger = ledger(&guest);
    fill(&ledger, 100);
    *guest.memory.lock().unwrap() = fake::Memory { boot: "b1".to_owned(), ..fake::Memory::default() };
    fill(&ledger, 600);
    let total = ledger.finish();
    assert!(total.lost_acks > 0, "{total:?}");
    assert_eq!(total.boot_ids, BTreeSet::from(["b0".to_owned(), "b1".to_owned()]));
}

#[test]
fn a_guest_that_is_gone_leaves_values_unverified_and_the_end_comes_in_time() {
    let guest = FakeGuest::start();
    let ledger = ledger(&guest);
    fill(&ledger, 100);
    // Connections stay open and nothing answers any more.
    let memory = guest.memory.lock().unwrap();
    let begin = Instant::now();
    let total = ledger.finish();
    drop(memory);
    assert!(total.unverified > 0, "{total:?}");
    assert!(total.tcp_resets >= 4, "{total:?}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn a_silence_is_a_gap_in_its_window_and_in_the_total() {
    let guest = FakeGuest::start();
    Guest::wait(guest.tcp, Duration::from_secs(5)).unwrap();
    let blackout = Blackout::start(guest.udp, Duration::from_millis(1)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let quiet = blackout.mark("quiet");

    guest.pause(Duration::from_millis(150));
    std::thread::sleep(Duration::from_millis(50));
    let silent = blackout.mark("silent");
    let total = blackout.finish();

    assert!(quiet.sent >= 20 && quiet.answered >= 10, "{quiet:?}");
    assert!(silent.longest_gap_ms >= 140.0 && quiet.longest_gap_ms < silent.longest_gap_ms, "{quiet:?} {silent:?}");
    assert!((total.longest_gap_ms - silent.longest_gap_ms).abs() < 1e-9, "{total:?}");
    assert_eq!((total.duplicates, total.garbled, total.counter_regressions), (0, 0, 0));
}

#[test]
fn older_memory_and_another_boot_show_in_the_datagrams() {
    let guest = FakeGuest::start();
    let blackout = Blackout::start(guest.udp, Duration::from_millis(1)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    guest.memory.lock().unwrap().datagrams = 0;
    std::thread::sleep(Duration::from_millis(50));
    assert!(blackout.mark("older").counter_regressions >= 1);
    guest.memory.lock().unwrap().boot = "b1".to_owned();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(blackout.finish().boot_ids.len(), 2);
}

#[test]
fn the_conversation_prints_a_line_for_every_window_and_the_total() {
    let guest = FakeGuest::start();
    let mut output = Vec::new();
    converse(ledger(&guest), &b"mark one\n\nmark two\n"[..], &mut output).unwrap();
    let reports: Vec<LedgerReport> =
        String::from_utf8(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let windows: Vec<&str> = reports.iter().map(|report| report.window.as_str()).collect();
    assert_eq!(windows, ["one", "two", "total"]);

    let blackout = Blackout::start(guest.udp, Duration::from_millis(1)).unwrap();
    assert!(converse(blackout, &b"makr one\n"[..], Vec::new()).is_err());
}
