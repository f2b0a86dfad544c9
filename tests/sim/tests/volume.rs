//! A mirrored volume over fixed seeds, and the proof that the simulation would notice if it were wrong.

use pollux_sim::{
    Failure,
    volume::{Control, Outcome, Settings, run},
};

/// Seeds of the daily run; `pollux-sim` runs more.
const SEEDS: u64 = 400;
/// Each defect must show within this many seeds.
const CONTROL_SEEDS: u64 = 2_000;

/// The defect is found, and by a rule that it breaks.
fn must_break(control: Control, rules: &[&str]) {
    let settings = Settings { control: Some(control), ..Settings::default() };
    let failure = (0..CONTROL_SEEDS).find_map(|seed| run(seed, &settings).err());
    let failure: Box<Failure> = failure.expect("a defect that nobody notices: the simulation proves nothing");
    let told = rules.iter().any(|rule| failure.what.contains(rule));
    assert!(told, "found, but not by what it breaks: {failure}");
}

#[test]
fn fixed_seeds_break_no_rule_and_all_replicas_come_together() {
    let mut total = Outcome::default();
    for seed in 0..SEEDS {
        match run(seed, &Settings::default()) {
            Ok(outcome) => total.add(&outcome),
            Err(failure) => panic!("{failure}"),
        }
    }
    // A simulation in which nothing happens proves nothing either.
    let Outcome {
        acknowledged,
        parked,
        hosts,
        left,
        joined,
        moved,
        sealed,
        back,
        stopped,
        added,
        removed,
        compared,
        ..
    } = total;
    let busy =
        acknowledged > SEEDS * 100 && parked > SEEDS * 10 && hosts > SEEDS * 2 && left > SEEDS && joined > SEEDS / 3;
    let busy = busy && compared > SEEDS * 10 && added > SEEDS / 4 && removed > SEEDS / 4;
    let busy = busy && moved > SEEDS / 2 && sealed > SEEDS / 2 && back > SEEDS / 4 && stopped > SEEDS / 20;
    assert!(busy, "too little happened: {total:?}");
}

#[test]
fn a_seed_gives_the_same_trace_every_time() {
    let hash = |seed| run(seed, &Settings::default()).map(|outcome| outcome.trace_hash).map_err(|it| it.what);
    assert_eq!(hash(77), hash(77));
    assert_ne!(hash(1), hash(2));
}

#[test]
fn acknowledging_before_the_replica_has_it_is_found() {
    must_break(Control::AcknowledgeEarly, &["rule 12"]);
}

#[test]
fn leaving_the_set_without_an_entry_is_found() {
    must_break(Control::LeaveWithoutEntry, &["rule 12"]);
}

#[test]
fn taking_writes_of_an_older_generation_is_found() {
    must_break(
        Control::AcceptOlder,
        &["which it may not", "the replicas differ", "rule 12", "rule 14", "when compared"],
    );
}

#[test]
fn writing_without_the_activity_log_is_found() {
    must_break(Control::NoActivityLog, &["which it may not", "the replicas differ", "rule 14"]);
}

#[test]
fn losing_one_grain_of_what_lacks_is_found() {
    must_break(Control::ForgetOneGrain, &["which it may not", "the replicas differ", "rule 14"]);
}

#[test]
fn a_flush_in_vain_is_found() {
    must_break(Control::FlushInVain, &["which it may not", "rule 14"]);
}

#[test]
fn a_seal_although_something_is_open_is_found() {
    must_break(Control::SealOpen, &["which it may not", "the replicas differ", "rule 12", "rule 14"]);
}

#[test]
fn noting_too_little_of_a_replica_that_was_added_is_found() {
    must_break(Control::NoteTooLittle, &["which it may not", "the replicas differ", "rule 14", "differ before"]);
}

#[test]
fn a_digest_in_vain_is_found() {
    must_break(Control::DigestInVain, &["is rotten; found: false"]);
}
