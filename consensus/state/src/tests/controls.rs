//! What the comparison of generations protects from: the same stories without it end badly.

use super::world::*;
use crate::{
    Outcome, Rules,
    id::{NodeId, Owner},
    vm::{Desired, StopCause},
};

/// n1 stopped `web` and, its first answer being late, said so twice. Between the two the user started it again. Returns who
/// was told to run it and was told nothing else since.
fn a_release_that_comes_late(rules: Rules) -> alloc::vec::Vec<NodeId> {
    let mut world = World::with_web_running();
    world.rules = rules;
    let mut told = alloc::vec::Vec::new();
    let late = world.proposal(N1, release(1, FIRST_LIFE, StopCause::Operator));
    world.accept(N1, release(1, FIRST_LIFE, StopCause::Operator));
    world.accept(N3, set_desired(Desired::Running));
    world.accept(N1, claim(2, FIRST_LIFE));
    told.push(N1);

    // The user, who sees it stopped if the late word counts, starts it elsewhere.
    world.apply(&late);
    let elsewhere = crate::Command::SetDesired { vm: WEB, desired: Desired::Running, home: Some(N2) };
    if world.propose(N3, elsewhere) == Outcome::Done {
        let generation = world.web().generation.0;
        world.accept(N2, claim(generation, FIRST_LIFE));
        told.push(N2);
    }
    told
}

#[test]
fn a_late_release_stops_nothing() {
    assert_eq!(a_release_that_comes_late(Rules::default()), [N1]);
}

#[test]
fn without_the_comparison_a_late_release_makes_two_copies() {
    assert_eq!(a_release_that_comes_late(Rules::without_generation_check()), [N1, N2]);
}

/// n1 fell silent, and an operator who believed it lost released `web` at generation 1; the order was slow. Meanwhile n1 came
/// back and started `web` anew. Returns who was told to run it and was told nothing else since.
fn a_word_of_loss_that_comes_late(rules: Rules) -> alloc::vec::Vec<NodeId> {
    let mut world = World::with_web_running();
    world.rules = rules;
    let late = world.proposal(N3, release_lost(1));
    let life = world.restart(N1);
    world.accept(N1, claim(1, life));
    let mut told = alloc::vec![N1];

    world.apply(&late);
    let elsewhere = crate::Command::SetDesired { vm: WEB, desired: Desired::Running, home: Some(N2) };
    if world.propose(N3, elsewhere) == Outcome::Done {
        let generation = world.web().generation.0;
        world.accept(N2, claim(generation, FIRST_LIFE));
        told.push(N2);
    }
    told
}

#[test]
fn a_late_word_of_loss_takes_nothing_from_a_host_that_came_back() {
    assert_eq!(a_word_of_loss_that_comes_late(Rules::default()), [N1]);
}

#[test]
fn without_the_comparison_a_late_word_of_loss_makes_two_copies() {
    assert_eq!(a_word_of_loss_that_comes_late(Rules::without_generation_check()), [N1, N2]);
}

/// An operator saw that n2 fell silent at generation 2 and took `web` back; the order was slow. Meanwhile n2 had given it
/// back by itself, and a second move was under way to n3, which had switched over. Returns who owns it in the end.
fn an_override_that_comes_late(rules: Rules) -> Option<Owner> {
    let (mut world, op) = World::with_web_arriving();
    world.rules = rules;
    let late = world.proposal(N3, take_back(2));
    world.accept(N2, give_back(op, 2));
    let Outcome::Accepted(second) = world.accept(N3, begin_move(3, N3)) else { panic!("accepted") };
    world.accept(N3, switchover(second, 3, FIRST_LIFE));
    world.apply(&late);
    world.web().phase.owner()
}

#[test]
fn a_late_override_takes_nothing_from_a_later_target() {
    assert_eq!(an_override_that_comes_late(Rules::default()), Some(life(N3, 1)));
}

#[test]
fn without_the_comparison_a_late_override_revives_a_source_while_the_target_runs() {
    assert_eq!(an_override_that_comes_late(Rules::without_generation_check()), Some(life(N1, 1)));
}
