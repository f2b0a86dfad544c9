use pollux_wire::id::Generation;
use proptest::prelude::*;

use super::{Gate, OpenRefused, Refusal, Verdict};

const G1: Generation = Generation(1);
const G2: Generation = Generation(2);
const G3: Generation = Generation(3);

#[test]
fn a_new_gate_lets_nothing_through() {
    let mut gate = Gate::closed();

    assert_eq!(gate.check(G1), Verdict::Refuse(Refusal::Closed));
    assert_eq!((gate.passed(), gate.refused()), (0, 1));
}

#[test]
fn only_the_committed_generation_passes() {
    let mut gate = Gate::closed();
    gate.open(G2).unwrap();

    assert_eq!(gate.check(G1), Verdict::Refuse(Refusal::Stale { stamp: G1, committed: G2 }));
    assert_eq!(gate.check(G2), Verdict::Pass);
    assert_eq!(gate.check(G3), Verdict::Refuse(Refusal::Ahead { stamp: G3, committed: G2 }));
    assert_eq!((gate.passed(), gate.refused()), (1, 2));
}

#[test]
fn a_closed_gate_reopens_at_the_same_generation_but_never_at_a_lower_one() {
    let mut gate = Gate::closed();
    gate.open(G2).unwrap();
    gate.close();

    assert_eq!(gate.open(G1), Err(OpenRefused::Superseded { asked: G1, highest: G2 }));
    assert_eq!(gate.check(G1), Verdict::Refuse(Refusal::Closed), "a refused open leaves the gate closed");
    gate.open(G2).unwrap();
    assert_eq!(gate.check(G2), Verdict::Pass);
}

#[test]
fn a_refused_open_leaves_an_open_gate_as_it_was() {
    let mut gate = Gate::closed();
    gate.open(G3).unwrap();

    assert!(gate.open(G2).is_err());

    assert_eq!(gate.open_at(), Some(G3));
}

#[test]
fn a_fence_closes_the_gate_of_an_older_owner_and_leaves_the_owner_itself_alone() {
    let mut gate = Gate::closed();
    gate.open(G2).unwrap();

    gate.fence(G2);
    assert_eq!(gate.check(G2), Verdict::Pass);
    gate.fence(G3);
    assert_eq!(gate.check(G2), Verdict::Refuse(Refusal::Closed));
    assert!(gate.open(G2).is_err());
    gate.open(G3).unwrap();
}

#[test]
fn what_a_frame_claims_does_not_shut_out_the_owner() {
    let mut gate = Gate::closed();
    let _ = gate.check(Generation(u64::MAX));

    gate.open(G1).unwrap();

    assert_eq!(gate.check(G1), Verdict::Pass);
}

#[test]
fn nobody_owns_the_frames_of_a_vm_that_never_ran() {
    assert_eq!(Gate::closed().open(Generation(0)), Err(OpenRefused::NeverRan));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Open(u64),
    Close,
    Fence(u64),
    Frame(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6_u64).prop_map(Step::Open),
        Just(Step::Close),
        (0..6_u64).prop_map(Step::Fence),
        (0..6_u64).prop_map(Step::Frame),
    ]
}

proptest! {
    /// The gate against the plainest statement of its rule: a frame passes if and only if the last thing that succeeded
    /// was an open at the frame's generation and nothing higher was committed since.
    #[test]
    fn in_any_order_of_events_only_the_latest_owner_emits(steps in prop::collection::vec(step(), 0..64)) {
        let mut gate = Gate::closed();
        let mut committed_max = 0;
        let mut owner = None;
        let mut judged = 0;
        for step in steps {
            match step {
                Step::Open(generation) => {
                    let allowed = generation > 0 && generation >= committed_max;
                    prop_assert_eq!(gate.open(Generation(generation)).is_ok(), allowed);
                    if allowed {
                        owner = Some(generation);
                        committed_max = generation;
                    }
                }
                Step::Close => {
                    gate.close();
                    owner = None;
                }
                Step::Fence(generation) => {
                    gate.fence(Generation(generation));
                    committed_max = committed_max.max(generation);
                    owner = owner.filter(|held| *held >= generation);
                }
                Step::Frame(stamp) => {
                    judged += 1;
                    let passes = gate.check(Generation(stamp)) == Verdict::Pass;
                    prop_assert_eq!(passes, owner == Some(stamp));
                    prop_assert!(!passes || stamp == committed_max, "a frame of a generation that is over left");
                }
            }
            prop_assert_eq!(gate.highest(), Generation(committed_max));
        }
        prop_assert_eq!(gate.passed() + gate.refused(), judged);
    }
}

/// One VM that moves from host to host. Each host keeps its QEMU running under the generation it started with, as a
/// daemon would that slept through the move, and every host's gate hears of each commit. Says how many frames left from
/// QEMUs that were no longer the owner's.
fn frames_of_former_owners(judge: fn(&mut Gate, Generation) -> Verdict) -> usize {
    const MOVES: u64 = 5;
    let mut gates: Vec<Gate> = Vec::new();
    let mut escaped = 0;
    for current in 1..=MOVES {
        gates.push(Gate::closed());
        for gate in &mut gates {
            // The hole that the check is for: a shell that opens every gate on every commit. Only the stamp is left to
            // tell the owner's QEMU from the others.
            gate.open(Generation(current)).unwrap();
        }
        for (gate, stamp) in gates.iter_mut().zip(1..) {
            let passes = judge(gate, Generation(stamp)) == Verdict::Pass;
            escaped += usize::from(passes && stamp != current);
            assert!(passes || stamp != current, "the owner itself was shut out");
        }
    }
    escaped
}

#[test]
fn a_former_owner_that_slept_through_the_move_emits_nothing() {
    assert_eq!(frames_of_former_owners(Gate::check), 0);
}

/// Negative control: the same story with a gate that forgets to compare must end in frames of two owners.
#[test]
fn without_the_generation_check_a_former_owner_emits() {
    let blind: fn(&mut Gate, Generation) -> Verdict = |gate, _stamp| match gate.open_at() {
        Some(_) => Verdict::Pass,
        None => Verdict::Refuse(Refusal::Closed),
    };

    assert!(frames_of_former_owners(blind) > 0);
}
