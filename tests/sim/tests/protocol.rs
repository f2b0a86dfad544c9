//! The migration protocol over fixed seeds, and the proof that the simulation would notice if it were wrong.

use pollux_sim::{
    Failure,
    protocol::{Control, Outcome, Settings, run},
};
use pollux_state::Rules;

/// Seeds of the daily run; `pollux-sim` runs more.
const SEEDS: u64 = 500;
/// Each defect must show within this many seeds.
const CONTROL_SEEDS: u64 = 3_000;

fn first_failure(settings: &Settings) -> Option<Box<Failure>> {
    (0..CONTROL_SEEDS).find_map(|seed| run(seed, settings).err())
}

/// The defect is found, and by a rule that it breaks.
fn must_break(settings: &Settings, rules: &[&str]) {
    let failure = first_failure(settings).expect("a defect that nobody notices: the simulation proves nothing");
    let told = rules.iter().any(|rule| failure.what.contains(rule));
    assert!(told, "found, but not by what it breaks: {failure}");
}

#[test]
fn fixed_seeds_break_no_rule_and_converge() {
    let settings = Settings::default();
    let mut total = Outcome::default();
    for seed in 0..SEEDS {
        match run(seed, &settings) {
            Ok(outcome) => total.add(&outcome),
            Err(failure) => panic!("{failure}"),
        }
    }
    // A simulation in which nothing happens proves nothing either.
    let Outcome { moves, aborted, given_back, taken_back, released_lost, revived, fenced, lost_asleep, left, .. } =
        total;
    let overridden = taken_back > 0 && released_lost > SEEDS / 20 && lost_asleep > SEEDS / 20 && fenced > SEEDS;
    let busy = moves > SEEDS && aborted > SEEDS && given_back > SEEDS / 10 && overridden && revived > SEEDS / 10;
    assert!(busy && left > SEEDS / 10, "too little happened: {total:?}");
    // Exceptions that are the rule would prove nothing, nor would a whole copy that nobody ever needed.
    let given_up = |exception: &str| total.given_up.get(exception).copied().unwrap_or_default();
    let rare = given_up("silent") + given_up("called_off") < SEEDS / 50 && given_up("may_have_acted") < SEEDS / 5;
    assert!(rare && total.given_up.len() > 1, "whole copies are given up lightly: {total:?}");
}

#[test]
fn a_seed_gives_the_same_trace_every_time() {
    let settings = Settings::default();
    for seed in [1, 77, 4_242] {
        let (first, second) = (run(seed, &settings).map_err(|it| it.what), run(seed, &settings).map_err(|it| it.what));
        assert_eq!(first, second);
    }
    let hash = |seed| run(seed, &settings).map(|outcome| outcome.trace_hash).map_err(|it| it.what);
    assert_ne!(hash(1), hash(2));
}

#[test]
fn a_failure_tells_how_to_replay_it() {
    let settings = Settings { control: Some(Control::ResumeBeforeCommit), ..Settings::default() };
    let failure = first_failure(&settings).expect("a defect that shows").to_string();
    assert!(failure.contains("cargo run -p pollux-sim -- protocol --seed "), "{failure}");
    assert!(failure.contains("--control resume-before-commit"), "{failure}");
    assert!(failure.lines().count() > 50, "{failure}");
}

#[test]
fn without_the_generation_check_a_rule_breaks() {
    let rules = Rules::without_generation_check();
    must_break(&Settings { rules, check_state: false, ..Settings::default() }, &["rule 1)", "rule 2)", "rule 17)"]);
}

#[test]
fn with_resume_on_timeout_a_rule_breaks() {
    let settings = Settings { control: Some(Control::ResumeOnTimeout), ..Settings::default() };
    must_break(&settings, &["rule 1)", "rule 17)"]);
}

#[test]
fn with_one_page_forgotten_per_round_a_rule_breaks() {
    let settings = Settings { control: Some(Control::ForgetOnePage), ..Settings::default() };
    must_break(&settings, &["other memory or device state"]);
}

#[test]
fn with_a_target_that_does_not_wait_for_the_log_a_rule_breaks() {
    let settings = Settings { control: Some(Control::ResumeBeforeCommit), ..Settings::default() };
    must_break(&settings, &["rule 1)"]);
}

#[test]
fn with_an_operator_who_does_not_look_a_rule_breaks() {
    let settings = Settings { control: Some(Control::CarelessOperator), ..Settings::default() };
    must_break(&settings, &["rule 1)"]);
}

#[test]
fn with_a_target_that_gives_back_what_has_acted_a_rule_breaks() {
    let settings = Settings { control: Some(Control::AlwaysUntouched), ..Settings::default() };
    must_break(&settings, &["its guest had acted", "memory went back"]);
}

#[test]
fn with_answers_that_never_age_a_rule_breaks() {
    let settings = Settings { control: Some(Control::AnswersNeverAge), ..Settings::default() };
    must_break(&settings, &["(rule 2)", "(rule 3)"]);
}

#[test]
fn with_a_clock_that_stands_still_while_the_host_is_suspended_a_rule_breaks() {
    let settings = Settings { control: Some(Control::CoresClockStandsStill), ..Settings::default() };
    must_break(&settings, &["(rule 2)"]);
}

#[test]
fn with_an_operator_who_does_not_wait_a_rule_breaks() {
    let settings = Settings { control: Some(Control::HastyOperator), ..Settings::default() };
    must_break(&settings, &["rule 1)"]);
}

#[test]
fn without_the_fence_a_rule_breaks() {
    let settings = Settings { control: Some(Control::NoFence), ..Settings::default() };
    must_break(&settings, &["rule 1)"]);
}

#[test]
fn with_a_fence_that_sleeps_with_its_host_a_rule_breaks() {
    let settings = Settings { control: Some(Control::FenceSleepsToo), ..Settings::default() };
    must_break(&settings, &["rule 1)"]);
}

/// Each of these gives up a guest whose memory is whole somewhere.
fn must_give_up_a_whole_copy(control: Control) {
    let settings = Settings { control: Some(control), ..Settings::default() };
    must_break(&settings, &["a whole copy of it survived"]);
}

#[test]
fn with_a_restarted_source_that_does_not_wait_for_its_target_a_rule_breaks() {
    must_give_up_a_whole_copy(Control::HastySource);
}

#[test]
fn with_ends_that_outrun_what_became_of_a_resume_a_rule_breaks() {
    must_give_up_a_whole_copy(Control::EndsOutrunResumes);
}

#[test]
fn with_ends_that_outrun_what_became_of_handing_over_a_rule_breaks() {
    must_give_up_a_whole_copy(Control::EndsOutrunHandOvers);
}

#[test]
fn with_daemons_that_end_without_a_word_a_rule_breaks() {
    must_give_up_a_whole_copy(Control::SilentLeaving);
}

#[test]
fn with_a_target_that_never_gives_back_what_did_not_act_a_rule_breaks() {
    must_give_up_a_whole_copy(Control::NeverUntouched);
}
