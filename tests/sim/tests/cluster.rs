//! Whole nodes over fixed seeds, and the proof that the simulation would notice if something were wrong.

use std::time::Duration;

use pollux_sim::cluster::{Control, Outcome, Settings, run};

/// Seeds of the daily run; `pollux-sim` runs more.
const SEEDS: u64 = 8;
/// Each defect must show within this many seeds.
const CONTROL_SEEDS: u64 = 20;

#[test]
fn fixed_seeds_break_no_rule_and_converge() {
    let settings = Settings { faults: Duration::from_secs(15), ..Settings::default() };
    let mut total = Outcome::default();
    for seed in 0..SEEDS {
        match run(seed, &settings) {
            Ok(outcome) => total.add(&outcome),
            Err(failure) => panic!("{failure}"),
        }
    }
    // A simulation in which nothing happens proves nothing.
    let Outcome { moves, crashes, faults, frames, .. } = total;
    let busy = moves >= SEEDS && crashes >= SEEDS && faults > 3 * SEEDS && frames > 1_000 * SEEDS;
    assert!(busy, "too little happened: {total:?}");
}

/// The defect is found, and by a rule that it breaks.
fn must_break(control: Control, rules: &[&str]) {
    let settings = Settings { faults: Duration::from_secs(10), control: Some(control), ..Settings::default() };
    let failure = (0..CONTROL_SEEDS).find_map(|seed| run(seed, &settings).err());
    let failure = failure.expect("a defect that nobody notices: the simulation proves nothing");
    let told = rules.iter().any(|rule| failure.what.contains(rule));
    assert!(told, "found, but not by what it breaks: {failure}");
    let story = failure.to_string();
    let replay = format!("-- cluster --seed {} --trace --seconds 10 --control {}", failure.seed, control.name());
    assert!(story.contains(&replay), "it does not tell how to replay it: {story}");
}

#[test]
fn with_one_page_forgotten_per_scan_a_rule_breaks() {
    must_break(Control::ForgetOnePage, &["over other memory"]);
}

#[test]
fn with_a_guest_that_goes_on_in_its_pause_a_rule_breaks() {
    must_break(Control::PauseInVain, &["was saved while it ran", "rule 1", "memory went back"]);
}

#[test]
fn with_disks_that_forget_a_rule_breaks() {
    let rules = ["another state than others", "is not in the state", "earlier life", "went back", "panic", "converge"];
    must_break(Control::ForgetfulDisk, &rules);
}
