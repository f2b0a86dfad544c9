//! Who may run a VM on its home, through starts, stops and restarts of daemons.

use alloc::string::ToString;

use super::world::*;
use crate::{
    Command, Outcome, Refusal,
    id::{Generation, Incarnation, NodeId, VmId},
    limits::STEADY_RUN_MS,
    vm::{Desired, Phase, StopCause},
};

const STOP: Desired = Desired::Stopped { force: false };
const SECOND_LIFE: Incarnation = Incarnation(2);

#[test]
fn the_home_claims_a_vm_that_is_wanted_running() {
    let mut world = World::with_web();
    assert_eq!(world.accept(N1, claim(0, FIRST_LIFE)), Outcome::Owned(Generation(1)));
    assert_eq!(world.standing(), (Generation(1), running(life(N1, 1))));
    assert_eq!(world.last_event(), "VM web starts on n1");
}

#[test]
fn of_two_claims_of_one_generation_one_counts_and_the_other_learns_what_holds() {
    let mut world = World::with_web_running();
    let refusal = world.refuse(N1, claim(0, FIRST_LIFE));
    let expected = Refusal::Generation {
        vm: "web".to_string(),
        expected: Generation(0),
        current: Generation(1),
        phase: running(life(N1, 1)),
    };
    assert_eq!(refusal, expected);
    assert_eq!(refusal.to_string(), "VM web is at g1 (running in node-1/i1), not at g0: another change came first");
    assert!(matches!(world.refuse(N1, claim(1, FIRST_LIFE)), Refusal::WrongPhase { .. }), "it owns it already");
}

#[test]
fn nobody_but_the_home_in_its_current_life_claims() {
    let mut world = World::with_web();
    let refusal = world.refuse(N2, claim(0, FIRST_LIFE));
    assert!(matches!(&refusal, Refusal::NotYours { by: N2, why, .. } if why == "its home is n1"));
    assert_eq!(refusal.standing(), Some((Generation(0), &stopped(StopCause::New))));

    let future = world.refuse(N1, claim(0, SECOND_LIFE));
    assert!(matches!(future, Refusal::StaleIncarnation { current: FIRST_LIFE, .. }));
    world.restart(N1);
    let past = world.refuse(N1, claim(0, FIRST_LIFE));
    assert!(matches!(&past, Refusal::StaleIncarnation { current: SECOND_LIFE, .. }));
    assert_eq!(past.standing(), Some((Generation(0), &stopped(StopCause::New))));

    world.accept(N1, set_desired(STOP));
    assert!(matches!(world.refuse(N1, claim(0, SECOND_LIFE)), Refusal::WrongPhase { .. }));
    let nothing = Command::Claim { vm: VmId(9), expect: Generation(0), incarnation: SECOND_LIFE };
    assert_eq!(world.refuse(N1, nothing), Refusal::NoSuchVm("vm-9".to_string()));
}

#[test]
fn a_node_whose_daemon_never_started_owns_nothing() {
    let mut world = World::with_web();
    let n4 = NodeId(4);
    world.accept(N1, token(n4, NOON + 1_000));
    world.accept(N1, join(n4));
    world.accept(N1, Command::SetDesired { vm: WEB, desired: Desired::Running, home: Some(n4) });
    assert!(matches!(world.refuse(n4, claim(0, Incarnation(0))), Refusal::NotYours { .. }));
    let first = world.restart(n4);
    world.accept(n4, claim(0, first));
}

#[test]
fn a_daemon_that_came_back_does_not_own_what_its_earlier_life_ran() {
    let mut world = World::with_web_running();
    world.restart(N1);
    assert_eq!(world.standing(), (Generation(1), running(life(N1, 1))), "only the node itself may tell");

    // The earlier life's words come late.
    assert!(matches!(world.refuse(N1, release(1, FIRST_LIFE, StopCause::Operator)), Refusal::StaleIncarnation { .. }));
    // The new one starts it anew.
    assert_eq!(world.accept(N1, claim(1, SECOND_LIFE)), Outcome::Owned(Generation(2)));
    assert_eq!(world.standing(), (Generation(2), running(life(N1, 2))));
    assert_eq!(world.last_event(), "VM web starts anew after a restart of the daemon on n1");
}

#[test]
fn a_restart_of_the_source_ends_its_move() {
    let (mut world, op) = World::with_web_moving();
    world.restart(N1);
    world.accept(N1, claim(1, SECOND_LIFE));
    assert_eq!(world.standing(), (Generation(2), running(life(N1, 2))));
    assert_failed(&world, op, &["n1", "source", "restarted"]);
    assert!(matches!(world.refuse(N2, switchover(op, 1, FIRST_LIFE)), Refusal::Generation { .. }));
}

#[test]
fn the_owner_does_not_claim_what_it_is_moving() {
    let (mut world, _) = World::with_web_moving();
    assert!(matches!(world.refuse(N1, claim(1, FIRST_LIFE)), Refusal::WrongPhase { .. }));
}

#[test]
fn an_operators_stop_is_an_entry_and_stays_one() {
    let mut world = World::with_web_running();
    world.accept(N2, set_desired(Desired::Stopped { force: true }));
    assert_eq!(world.accept(N1, release(1, FIRST_LIFE, StopCause::Operator)), Outcome::Owned(Generation(2)));
    assert_eq!(world.standing(), (Generation(2), stopped(StopCause::Operator)));
    assert_eq!(world.web().desired, STOP);
    assert_eq!(world.last_event(), "VM web stopped on n1: a user asked for it");
    assert!(matches!(
        world.refuse(N1, release(2, FIRST_LIFE, StopCause::Operator)),
        Refusal::WrongPhase { why, .. } if why == "it is stopped already"
    ));
}

#[test]
fn a_guests_own_power_off_is_never_mistaken_for_a_death() {
    let mut world = World::with_web_running();
    world.accept(N1, release(1, FIRST_LIFE, StopCause::GuestPowerOff));
    assert_eq!(world.web().desired, STOP);
    world.restart(N1);
    assert!(matches!(world.refuse(N1, claim(2, SECOND_LIFE)), Refusal::WrongPhase { .. }), "nothing starts it again");
}

#[test]
fn after_the_daemon_ended_autostart_decides() {
    for (autostart, desired) in [(true, Desired::Running), (false, STOP)] {
        let mut world = World::three_nodes();
        let mut spec = spec("web");
        spec.autostart = autostart;
        world.accept(N1, Command::CreateVm { spec, home: N1, desired: Desired::Running });
        world.accept(N1, claim(0, FIRST_LIFE));
        world.restart(N1);
        world.accept(N1, release(1, SECOND_LIFE, StopCause::DaemonEnded));
        assert_eq!(world.web().desired, desired, "autostart: {autostart}");
    }
}

#[test]
fn only_its_owners_node_releases_a_vm() {
    let mut world = World::with_web_running();
    let refusal = world.refuse(N2, release(1, FIRST_LIFE, StopCause::Operator));
    assert!(matches!(&refusal, Refusal::NotYours { why, .. } if why == "it runs on n1"));
    assert_eq!(refusal.standing(), Some((Generation(1), &running(life(N1, 1)))));
    assert!(matches!(world.refuse(N1, release(0, FIRST_LIFE, StopCause::Operator)), Refusal::Generation { .. }));
    assert!(matches!(world.refuse(N1, release(1, FIRST_LIFE, StopCause::New)), Refusal::Invalid { .. }));
}

#[test]
fn a_vm_that_stops_while_it_moves_ends_the_move() {
    let (mut world, op) = World::with_web_moving();
    world.accept(N1, release(1, FIRST_LIFE, StopCause::GuestPowerOff));
    assert_eq!(world.standing(), (Generation(2), stopped(StopCause::GuestPowerOff)));
    assert_failed(&world, op, &["stopped on n1", "the guest switched itself off"]);
}

#[test]
fn between_two_nodes_nobody_claims_and_the_source_releases_nothing() {
    let (mut world, op) = World::with_web_arriving();
    let arriving = Phase::Arriving { op, from: life(N1, 1), to: life(N2, 1) };
    let refusal = world.refuse(N1, release(2, FIRST_LIFE, StopCause::Operator));
    assert!(matches!(&refusal, Refusal::NotYours { .. }));
    assert_eq!(refusal.standing(), Some((Generation(2), &arriving)));
    world.restart(N1);
    assert!(matches!(
        world.refuse(N1, claim(2, SECOND_LIFE)),
        Refusal::WrongPhase { why, .. } if why.contains("switched over to n2")
    ));
    world.restart(N2);
    assert!(matches!(world.refuse(N2, claim(2, SECOND_LIFE)), Refusal::NotYours { .. }));
    assert_eq!(world.standing(), (Generation(2), arriving));
}

#[test]
fn a_target_whose_guest_may_have_acted_releases_what_it_won_and_the_source_starts_anew() {
    let (mut world, op) = World::with_web_arriving();
    world.restart(N2);
    world.accept(N2, release(2, SECOND_LIFE, StopCause::DaemonEnded));
    assert_eq!(world.standing(), (Generation(3), stopped(StopCause::DaemonEnded)));
    assert_failed(&world, op, &["stopped on n2, the target"]);
    // Its home is still the source, and it is still wanted: a fresh boot, never the older copy.
    world.accept(N1, claim(3, FIRST_LIFE));
    assert_eq!(world.standing(), (Generation(4), running(life(N1, 1))));
}

#[test]
fn a_start_that_came_after_the_stop_counts() {
    let mut world = World::with_web_running();
    world.accept(N2, set_desired(Desired::Stopped { force: true }));
    world.accept(N2, set_desired(Desired::Running));
    world.accept(N1, release(1, FIRST_LIFE, StopCause::Operator));
    assert_eq!(world.web().desired, Desired::Running);
}

#[test]
fn starts_that_fail_in_a_row_are_counted_until_one_holds() {
    let mut world = World::with_web();
    let failed = || StopCause::StartFailed("no such kernel".to_string());
    let died = || StopCause::QemuEnded("killed by signal 11".to_string());
    let mut generation = 0;
    let mut run = |world: &mut World, cause: StopCause, lasted: u64| {
        world.accept(N1, claim(generation, FIRST_LIFE));
        world.now += lasted;
        world.accept(N1, release(generation + 1, FIRST_LIFE, cause));
        generation += 2;
        world.web().failed_starts
    };
    assert_eq!(run(&mut world, failed(), 10), 1);
    assert_eq!(run(&mut world, failed(), 10), 2);
    assert_eq!(run(&mut world, died(), STEADY_RUN_MS - 1), 3, "it hardly ran");
    assert_eq!(world.web().desired, Desired::Running, "it is to be tried again");
    assert_eq!(run(&mut world, died(), STEADY_RUN_MS), 1, "it had run well before");

    world.accept(N3, set_desired(Desired::Running));
    assert_eq!(world.web().failed_starts, 0, "a user's start is a new beginning");
}
