//! Starting, stopping and ending, where no move is under way.

mod desk;

use desk::*;
use pollux_state::{
    Command,
    id::Generation,
    vm::{Desired, StopCause},
};
use pollux_vm::{Effect, Event, View};

#[test]
fn a_vm_that_is_wanted_is_claimed_then_made_then_let_run() {
    let mut desk = Desk::new();

    let fx = desk.decided(4, STOPPED);
    let claim = Command::Claim { vm: VM, expect: Generation(4), incarnation: ME.incarnation };
    assert_eq!(proposed(&fx), Some(&claim));
    assert_eq!(fx.len(), 1, "nothing is made before the log agrees: {fx:?}");

    let fx = desk.answer(&fx, owned(5));
    assert_eq!(fx, [Effect::Launch { standby: false, generation: Generation(5) }]);
    assert_eq!(desk.core.gate(), None);

    let fx = desk.hear(Event::MachineReady);
    assert_eq!(fx, [Effect::Resume { generation: Generation(5) }]);
    assert_eq!(desk.core.gate(), Some(Generation(5)));

    assert!(desk.hear(Event::Resumed).is_empty());
    assert_eq!(desk.core.doing(), "running");
}

#[test]
fn a_vm_that_is_not_wanted_or_lives_elsewhere_is_left_alone() {
    let mut desk = Desk::new();
    desk.seen.desired = Desired::Stopped { force: false };
    assert!(desk.told().is_empty());

    desk.seen.desired = Desired::Running;
    desk.seen.home = OTHER.node;
    assert!(desk.told().is_empty());
    assert!(desk.decided(5, running(OTHER)).is_empty());
    assert!(desk.core.is_idle());
}

#[test]
fn a_vm_whose_volumes_are_not_made_is_claimed_when_they_are() {
    let mut desk = Desk::new();
    desk.seen.ready = false;
    assert!(desk.told().is_empty(), "the log would refuse it, again and again");
    desk.seen.ready = true;
    assert!(matches!(proposed(&desk.told()), Some(Command::Claim { .. })));
}

#[test]
fn after_a_lost_leader_nothing_runs_before_a_read_that_began_later() {
    let mut desk = Desk::new();
    let fx = desk.decided(4, STOPPED);
    desk.answer(&fx, owned(5));

    desk.hear(Event::LeaderLost);
    let first = desk.hear(Event::MachineReady);
    assert!(matches!(first[..], [Effect::Confirm { .. }]), "{first:?}");

    let second = desk.hear(Event::LeaderLost);
    let fx = desk.confirm(&first, 2);
    assert!(!resumes(&fx), "that read began before the leader was lost again: {fx:?}");

    let fx = desk.confirm(&second, 2);
    assert_eq!(fx, [Effect::Resume { generation: Generation(5) }]);
}

#[test]
fn a_start_that_fails_is_given_up_and_tried_again_after_a_pause() {
    let mut desk = Desk::new();
    let fx = desk.decided(4, STOPPED);
    desk.answer(&fx, owned(5));

    let fx = desk.hear(Event::MachineFailed("no memory".into()));
    let cause = StopCause::StartFailed("no memory".into());
    assert!(releases_because(&fx, &cause), "{fx:?}");

    let fx = desk.answer(&fx, owned(6));
    assert_eq!(fx, [Effect::Discard]);
    desk.seen.failed_starts = 2;
    desk.decided(6, pollux_state::vm::Phase::Stopped { cause });

    assert!(desk.hear(Event::Gone).is_empty(), "it waits");
    assert_eq!(desk.core.deadline(), Some(desk.now + 2 * LIMITS.restart_ms));
    assert!(desk.wait(LIMITS.restart_ms).is_empty());
    let fx = desk.wait(LIMITS.restart_ms);
    assert!(matches!(proposed(&fx), Some(Command::Claim { .. })), "{fx:?}");
}

#[test]
fn a_guest_that_switches_itself_off_keeps_its_machine_until_the_log_agrees() {
    let mut desk = Desk::with_running_guest();

    assert_eq!(desk.hear(Event::GuestOff), [Effect::CloseGate, Effect::Settle]);
    assert!(desk.told().is_empty(), "whoever may use its disks next has nothing to copy");
    let fx = desk.hear(Event::Settled);
    assert!(releases_because(&fx, &StopCause::GuestPowerOff), "{fx:?}");
    assert!(desk.wait(A_SECOND).is_empty(), "an answer that does not come is not a yes");

    let fx = desk.answer(&fx, owned(6));
    assert_eq!(fx, [Effect::Discard]);
    desk.seen.desired = Desired::Stopped { force: false };
    desk.decided(6, STOPPED);
    assert!(desk.hear(Event::Gone).is_empty());
    assert!(desk.core.is_idle());
}

#[test]
fn a_stop_presses_the_power_button_once() {
    let mut desk = Desk::with_running_guest();
    desk.seen.desired = Desired::Stopped { force: false };

    assert_eq!(desk.told(), [Effect::PowerButton]);
    assert!(desk.told().is_empty());
    assert_eq!(desk.core.gate(), Some(Generation(5)), "the guest may take its time");

    desk.hear(Event::GuestOff);
    let fx = desk.hear(Event::Settled);
    assert!(releases_because(&fx, &StopCause::Operator), "{fx:?}");
}

#[test]
fn a_forced_stop_does_not_wait_for_the_disks_of_a_guest_that_is_off() {
    let mut desk = Desk::with_running_guest();
    desk.seen.desired = Desired::Stopped { force: false };
    desk.told();
    assert_eq!(desk.hear(Event::GuestOff), [Effect::CloseGate, Effect::Settle]);
    assert!(desk.hear(Event::MachineEnded("signal 9".into())).is_empty(), "what is being settled is not QEMU's");

    desk.seen.desired = Desired::Stopped { force: true };
    let fx = desk.told();
    assert!(releases_because(&fx, &StopCause::Operator), "{fx:?}");
    assert!(desk.hear(Event::Settled).is_empty(), "once is enough");
}

#[test]
fn a_guest_that_is_off_and_not_its_owners_any_more_is_discarded_at_once() {
    let mut desk = Desk::with_running_guest();
    desk.hear(Event::GuestOff);
    assert_eq!(desk.decided(6, running(OTHER)), [Effect::Discard]);
}

#[test]
fn a_forced_stop_asks_the_log_and_not_the_guest() {
    let mut desk = Desk::with_running_guest();
    desk.seen.desired = Desired::Stopped { force: true };

    let fx = desk.told();
    assert_eq!(fx.first(), Some(&Effect::CloseGate));
    assert!(releases_because(&fx, &StopCause::Operator), "{fx:?}");
    assert_eq!(desk.answer(&fx, owned(6)), [Effect::Discard]);
}

#[test]
fn a_machine_that_ends_by_itself_is_told_to_the_log() {
    let mut desk = Desk::with_running_guest();
    let fx = desk.hear(Event::MachineEnded("signal 9".into()));
    assert_eq!(fx.first(), Some(&Effect::CloseGate));
    assert!(releases_because(&fx, &StopCause::QemuEnded("signal 9".into())), "{fx:?}");
}

#[test]
fn a_guest_that_was_told_to_run_and_does_not_is_told_to_the_log() {
    let mut desk = Desk::new();
    let fx = desk.decided(4, STOPPED);
    desk.answer(&fx, owned(5));
    desk.hear(Event::MachineReady);
    assert_eq!(desk.core.gate(), Some(Generation(5)));
    let fx = desk.hear(Event::NotResumed("no bridge".into()));
    assert!(releases_because(&fx, &StopCause::QemuEnded("no bridge".into())), "{fx:?}");
    assert_eq!(desk.core.gate(), None);
}

#[test]
fn last_words_however_long_fit_the_log() {
    let mut desk = Desk::with_running_guest();
    let fx = desk.hear(Event::MachineEnded("x".repeat(100_000)));
    let Some(Command::Release { cause: StopCause::QemuEnded(why), .. }) = proposed(&fx) else { panic!("{fx:?}") };
    assert_eq!(why.len(), pollux_state::limits::TEXT_MAX);
}

#[test]
fn what_is_refused_is_asked_again_only_after_a_pause() {
    let mut desk = Desk::new();
    let fx = desk.decided(4, STOPPED);
    assert!(desk.answer(&fx, too_late()).is_empty());
    assert!(desk.told().is_empty());
    let again = desk.core.deadline().expect("the core wants to be woken");

    let fx = desk.wait(again - desk.now);
    assert!(matches!(proposed(&fx), Some(Command::Claim { .. })), "{fx:?}");
}

#[test]
fn a_proposal_is_withdrawn_when_its_generation_has_passed() {
    let mut desk = Desk::new();
    let fx = desk.decided(4, STOPPED);
    let (ticket, _) = proposal(&fx).expect("a claim");
    assert_eq!(desk.decided(5, running(OTHER)), [Effect::Withdraw { ticket }]);
}

#[test]
fn a_claim_that_was_granted_was_wanted_whatever_the_local_copy_of_the_log_still_says() {
    let mut desk = Desk::new();
    let claim = desk.decided(4, STOPPED);
    desk.seen.desired = Desired::Stopped { force: false };
    desk.told();

    // The log: wanted again, then the claim; the copy here has not come that far.
    let fx = desk.answer(&claim, owned(5));
    assert_eq!(fx, [Effect::Launch { standby: false, generation: Generation(5) }]);
}

#[test]
fn an_older_view_changes_nothing() {
    let mut desk = Desk::with_running_guest();
    assert!(desk.hear(Event::Decided(View::NOTHING)).is_empty());
    assert_eq!(desk.core.gate(), Some(Generation(5)));
}

/// The target may have everything, and be about to say so.
#[test]
fn what_an_earlier_life_was_moving_away_is_left_to_its_target_for_a_while() {
    let moving = pollux_state::vm::Phase::Moving { op: OP, from: ME_BEFORE, to: OTHER };
    let mut desk = Desk::new();
    let fx = desk.decided(4, moving.clone());
    assert_eq!(proposed(&fx), None, "{fx:?}");
    assert_eq!(desk.core.deadline(), Some(desk.now + LIMITS.decide_ms));
    let read = desk.wait(LIMITS.decide_ms);
    assert_eq!(proposed(&read), None, "is there a leader whom the target could have told? {read:?}");
    let fx = desk.confirm(&read, 2);
    assert!(matches!(proposed(&fx), Some(Command::Claim { .. })), "{fx:?}");

    let mut desk = Desk::new();
    desk.decided(4, moving);
    let fx = desk.decided(4, running(ME_BEFORE));
    assert!(matches!(proposed(&fx), Some(Command::Claim { .. })), "the target gave up: {fx:?}");
}

/// Without a leader the target cannot say anything either.
#[test]
fn the_target_is_waited_for_anew_when_a_leader_was_lost_or_found() {
    let mut desk = Desk::new();
    desk.decided(4, pollux_state::vm::Phase::Moving { op: OP, from: ME_BEFORE, to: OTHER });
    desk.wait(LIMITS.decide_ms - 1);
    assert_eq!(proposed(&desk.hear(Event::LeaderLost)), None);
    assert_eq!(desk.core.deadline(), Some(desk.now + LIMITS.decide_ms));
    assert_eq!(proposed(&desk.wait(LIMITS.decide_ms - 1)), None);
    let read = desk.wait(1);
    let fx = desk.confirm(&read, 2);
    let (claim, _) = proposal(&fx).filter(|(_, it)| matches!(it, Command::Claim { .. })).expect("a claim");

    // Nor is what it had proposed insisted on when that leader, too, is gone.
    assert_eq!(desk.hear(Event::LeaderLost), [Effect::Withdraw { ticket: claim }]);
}

#[test]
fn what_an_earlier_life_ran_is_claimed_anew_or_given_up() {
    let mut desk = Desk::new();
    let fx = desk.decided(4, running(ME_BEFORE));
    assert!(matches!(proposed(&fx), Some(Command::Claim { .. })), "{fx:?}");

    let mut desk = Desk::new();
    desk.seen.autostart = false;
    let fx = desk.decided(4, running(ME_BEFORE));
    assert!(releases_because(&fx, &StopCause::DaemonEnded), "{fx:?}");
}
