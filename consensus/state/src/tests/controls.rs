//! What the comparison of generations protects from: the same stories without it end badly.

use super::world::*;
use crate::{
    Command, Outcome, Rules,
    id::{Generation, NodeId, Owner, ReplicaId},
    vm::{Desired, StopCause},
    volume::Purpose,
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
    let elsewhere = Command::SetDesired { vm: WEB, desired: Desired::Running, home: Some(N2) };
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
    let elsewhere = Command::SetDesired { vm: WEB, desired: Desired::Running, home: Some(N2) };
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

/// What was acknowledged, and what of it each replica has: a write is acknowledged when everybody in the set has it, and reaches
/// nobody else.
#[derive(Default)]
struct Ledger {
    acknowledged: u64,
    has: alloc::collections::BTreeMap<ReplicaId, u64>,
}

impl Ledger {
    fn write(&mut self, world: &World) {
        self.acknowledged += 1;
        for replica in &world.data().set {
            self.has.insert(*replica, self.acknowledged);
        }
    }

    /// What is read after everything was off: from the replica that counts.
    fn lost(&self, world: &World) -> u64 {
        self.acknowledged - self.has.get(&world.data().authority).copied().unwrap_or_default()
    }
}

/// n1 had caught r2 up and proposed to take it in; nothing was heard of that. r2 failed again, and n1 left it behind once more,
/// which makes the unknown entry void. Writes went on without r2; then r1 failed. Returns how many acknowledged writes the volume
/// has lost.
fn a_join_that_comes_late(rules: Rules) -> u64 {
    let mut world = World::with_web_writing();
    let mut ledger = Ledger::default();
    ledger.write(&world);
    world.rules = rules;
    world.accept(N1, leave(R2, 2, 1));
    let late = world.proposal(N1, join_set(R2, 2, 2));
    world.accept(N1, leave(R2, 2, 2));
    ledger.write(&world);

    world.apply(&late);
    let version = world.data().version;
    world.propose(N1, leave(R1, 2, version));
    ledger.lost(&world)
}

#[test]
fn a_late_join_takes_in_nobody_who_lacks_something() {
    assert_eq!(a_join_that_comes_late(Rules::default()), 0);
}

#[test]
fn without_the_comparison_of_versions_a_late_join_loses_what_was_acknowledged() {
    assert_eq!(a_join_that_comes_late(Rules::without_version_check()), 1);
}

/// n1 had caught r2 up and proposed to take it in, as the writer that it was then; the proposal was slow. Meanwhile `web` was
/// stopped and started, and its new writer, which knows nothing of that, writes to r1 alone. Returns how many acknowledged writes
/// the volume has lost when r1 fails.
fn a_word_about_the_set_that_comes_late(rules: Rules) -> u64 {
    let mut world = World::with_web_writing();
    let mut ledger = Ledger::default();
    ledger.write(&world);
    world.rules = rules;
    world.accept(N1, leave(R2, 2, 1));
    let late = world.proposal(N1, join_set(R2, 2, 2));
    world.accept(N1, release(1, FIRST_LIFE, StopCause::Operator));
    world.accept(N1, claim(2, FIRST_LIFE));
    ledger.write(&world);
    world.apply(&late);
    let (generation, version) = (world.data().generation.0, world.data().version);
    world.propose(N1, leave(R1, generation, version));
    ledger.lost(&world)
}

#[test]
fn a_late_word_of_an_earlier_writer_changes_no_set() {
    assert_eq!(a_word_about_the_set_that_comes_late(Rules::default()), 0);
}

#[test]
fn without_the_comparison_of_generations_an_earlier_writers_word_loses_what_was_acknowledged() {
    assert_eq!(a_word_about_the_set_that_comes_late(Rules::without_generation_check()), 1);
}

/// A user saw `data` unused and had it deleted; the order was slow. Meanwhile it was attached, used and detached. Returns whether
/// it is still there.
fn a_deletion_that_comes_late(rules: Rules) -> bool {
    let mut world = World::with_data();
    world.rules = rules;
    world.accept(N1, create("web", N1, Desired::Stopped { force: false }));
    let late = world.proposal(N3, Command::DeleteVolume { volume: DATA, expect: Generation(0) });
    world.accept(N1, attach(0));
    world.accept(N1, detach(1));
    world.apply(&late);
    world.state.volumes.contains_key(&DATA)
}

#[test]
fn a_late_deletion_takes_nothing_that_was_used_since() {
    assert!(a_deletion_that_comes_late(Rules::default()));
    assert!(!a_deletion_that_comes_late(Rules::without_generation_check()));
}

/// n2 saw `data` unused and took it for an import; the proposal was slow. Meanwhile n1 began to verify it. Returns who is told
/// that it may write.
fn a_hold_that_comes_late(rules: Rules) -> Option<Owner> {
    let mut world = World::with_data();
    world.rules = rules;
    let late = world.proposal(N2, hold(0, 1, Purpose::Import));
    world.accept(N1, hold(0, 1, Purpose::Verify));
    world.apply(&late);
    world.writer()
}

#[test]
fn a_late_hold_takes_nothing_from_who_holds_since() {
    assert_eq!(a_hold_that_comes_late(Rules::default()), Some(life(N1, 1)));
    assert_eq!(a_hold_that_comes_late(Rules::without_generation_check()), Some(life(N2, 1)));
}
