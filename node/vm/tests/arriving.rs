//! A move seen from its target, and what a restarted target does about it.

mod desk;

use desk::*;
use pollux_state::{
    Command,
    id::Generation,
    vm::{Desired, Phase, StopCause},
};
use pollux_vm::{Effect, Effects, Event};

fn arriving_here() -> Phase {
    Phase::Arriving { op: OP, from: OTHER, to: ME }
}

fn receiving() -> Desk {
    let mut desk = Desk::new();
    desk.seen.home = OTHER.node;
    let fx = desk.decided(5, coming_here(OP));
    let admit = Effect::Admit { op: OP, from: OTHER, generation: Generation(5) };
    assert_eq!(fx, [admit, Effect::Launch { standby: true, generation: Generation(5) }]);
    desk
}

/// Everything is here; the switchover is proposed.
fn loading() -> (Desk, Effects) {
    let mut desk = receiving();
    desk.hear(Event::MachineReady);
    let fx = desk.hear(received(desk.now));
    let switchover = Command::Switchover { vm: VM, op: OP, expect: Generation(5), incarnation: ME.incarnation };
    assert_eq!((fx.first(), proposed(&fx)), (Some(&Effect::Load), Some(&switchover)));
    (desk, fx)
}

/// It won and has loaded; that its guest may act is being recorded.
fn committing() -> Desk {
    let (mut desk, fx) = loading();
    desk.hear(Event::Loaded);
    let fx = desk.answer(&fx, owned(6));
    assert_eq!(fx, [Effect::CommitToRun { op: OP }]);
    desk
}

fn arrived() -> (Desk, Effects) {
    let mut desk = committing();
    let fx = desk.hear(Event::CommittedToRun);
    assert!(resumes(&fx), "{fx:?}");
    let fx = desk.hear(Event::Resumed);
    (desk, fx)
}

#[test]
fn a_move_that_succeeds_is_recorded_resumed_announced_and_reported_in_this_order() {
    let (mut desk, fx) = loading();
    assert!(desk.hear(Event::Loaded).is_empty(), "the log has not decided");
    assert_eq!(desk.core.gate(), None);

    assert_eq!(desk.answer(&fx, owned(6)), [Effect::CommitToRun { op: OP }]);
    assert_eq!(desk.core.gate(), None, "it is not recorded yet");

    let fx = desk.hear(Event::CommittedToRun);
    let resume = Effect::Resume { generation: Generation(6) };
    assert!(matches!(&fx[..], [r, Effect::Disconnect { .. }] if *r == resume), "{fx:?}");

    let fx = desk.hear(Event::Resumed);
    assert_eq!(fx.first(), Some(&Effect::Announce));
    assert!(matches!(proposed(&fx), Some(Command::Arrived { op: OP, expect: Generation(6), .. })), "{fx:?}");

    assert!(desk.answer(&fx, owned(6)).is_empty());
    assert_eq!((desk.core.doing(), desk.core.gate()), ("running", Some(Generation(6))));
}

#[test]
fn a_switchover_that_is_won_before_the_device_state_is_loaded_waits_for_it() {
    let (mut desk, fx) = loading();
    assert!(desk.answer(&fx, owned(6)).is_empty());
    assert_eq!(desk.hear(Event::Loaded), [Effect::CommitToRun { op: OP }]);
    assert!(resumes(&desk.hear(Event::CommittedToRun)));
}

#[test]
fn a_target_that_cannot_record_that_its_guest_runs_gives_it_back() {
    let mut desk = committing();
    let fx = desk.hear(Event::CommitToRunFailed("the disk is full".into()));
    assert!(!resumes(&fx) && fx.contains(&Effect::Discard), "{fx:?}");
    let fx = desk.hear(Event::Gone);
    assert!(matches!(proposed(&fx), Some(Command::GiveBack { op: OP, expect: Generation(6), .. })), "{fx:?}");
}

#[test]
fn a_leader_lost_while_it_is_recorded_is_read_again_before_the_guest_acts() {
    let mut desk = committing();
    let read = desk.hear(Event::LeaderLost);
    let fx = desk.hear(Event::CommittedToRun);
    assert!(!resumes(&fx), "{fx:?}");
    assert!(resumes(&desk.confirm(&read, 2)));
}

#[test]
fn a_target_that_lost_leaves_nothing_behind() {
    let (mut desk, fx) = loading();
    desk.hear(Event::Loaded);
    assert!(desk.answer(&fx, too_late()).is_empty());
    let fx = desk.decided(5, running(OTHER));
    assert!(matches!(fx[..], [Effect::Disconnect { .. }, Effect::Discard]), "{fx:?}");
    desk.hear(Event::Gone);
    assert!(desk.core.is_idle());
}

#[test]
fn a_standby_that_fails_before_the_decision_aborts_the_move_once_it_is_gone() {
    let failures = [
        Event::MachineFailed("no memory".into()),
        Event::MachineEnded("signal 9".into()),
        Event::LoadFailed("a section is missing".into()),
    ];
    for failure in failures {
        let mut desk = receiving();
        let fx = desk.hear(failure.clone());
        assert!(matches!(fx[..], [Effect::Disconnect { .. }, Effect::Discard]), "{failure:?}: {fx:?}");
        let fx = desk.hear(Event::Gone);
        assert!(aborts_because(&fx, "target"), "{failure:?}: {fx:?}");
        // Once the log says so, its own word is not repeated any more.
        let fx = desk.decided(5, running(OTHER));
        assert!(matches!(fx[..], [Effect::Withdraw { .. }]), "{failure:?}: {fx:?}");
    }
}

#[test]
fn a_standby_that_fails_after_it_won_is_given_back() {
    let (mut desk, fx) = loading();
    desk.answer(&fx, owned(6));
    let fx = desk.hear(Event::LoadFailed("a section is missing".into()));
    assert!(fx.contains(&Effect::Discard), "{fx:?}");
    let fx = desk.hear(Event::Gone);
    assert!(matches!(proposed(&fx), Some(Command::GiveBack { op: OP, expect: Generation(6), .. })), "{fx:?}");
}

#[test]
fn a_standby_that_fails_while_the_log_decides_is_given_back_if_it_won() {
    let (mut desk, switchover) = loading();
    desk.hear(Event::LoadFailed("a section is missing".into()));
    desk.hear(Event::Gone);
    let fx = desk.answer(&switchover, owned(6));
    assert!(matches!(proposed(&fx), Some(Command::GiveBack { op: OP, expect: Generation(6), .. })), "{fx:?}");
}

#[test]
fn a_source_that_is_lost_early_ends_the_move_and_late_does_not() {
    let mut desk = receiving();
    desk.hear(Event::MachineReady);
    assert!(desk.hear(Event::SessionLost("timed out".into())).contains(&Effect::Discard));

    let (mut desk, _) = loading();
    assert!(desk.hear(Event::SessionLost("timed out".into())).is_empty(), "everything is here");
    assert!(desk.hear(Event::PeerAbandoned("impatient".into())).is_empty(), "the log decides");
}

#[test]
fn a_standby_that_is_not_ready_in_time_ends_the_move() {
    let mut desk = receiving();
    assert_eq!(desk.core.deadline(), Some(desk.now + LIMITS.connect_ms));
    assert!(desk.wait(LIMITS.connect_ms).contains(&Effect::Discard));
    let fx = desk.hear(Event::Gone);
    assert!(aborts_because(&fx, "in time"), "{fx:?}");
}

#[test]
fn a_source_that_never_connects_ends_the_move() {
    let mut desk = receiving();
    desk.hear(Event::MachineReady);
    assert!(desk.wait(LIMITS.connect_ms).contains(&Effect::Discard));
    let fx = desk.hear(Event::Gone);
    assert!(aborts_because(&fx, "the source did not connect"), "{fx:?}");

    let mut desk = receiving();
    desk.hear(Event::SourceConnected);
    desk.hear(Event::MachineReady);
    assert_eq!(desk.core.deadline(), None, "a connected source may take as long as it likes");
    assert!(desk.wait(10 * LIMITS.connect_ms).is_empty());
}

#[test]
fn a_cancel_that_its_source_cannot_hear_ends_the_move_at_the_target() {
    let mut desk = receiving();
    desk.seen.cancel = true;
    assert!(desk.decided(5, coming_here(OP)).contains(&Effect::Discard));
    let fx = desk.hear(Event::Gone);
    assert!(aborts_because(&fx, "cancelled"), "{fx:?}");
}

#[test]
fn a_guest_that_certainly_did_not_run_at_the_target_is_given_back() {
    let mut desk = committing();
    desk.hear(Event::CommittedToRun);
    let fx = desk.hear(Event::NotResumed("no bridge".into()));
    assert!(matches!(fx[..], [Effect::CloseGate, Effect::Discard]), "{fx:?}");
    let fx = desk.hear(Event::Gone);
    assert!(matches!(proposed(&fx), Some(Command::GiveBack { op: OP, expect: Generation(6), .. })), "{fx:?}");
}

/// Whatever the next life finds: this one knows that the guest did not run.
#[test]
fn a_target_whose_daemon_ends_in_order_gives_the_guest_up_before() {
    let (mut desk, _) = loading();
    assert!(desk.core.owes_an_answer());
    let fx = desk.hear(Event::Leaving);
    assert!(fx.contains(&Effect::Discard), "{fx:?}");
    let fx = desk.hear(Event::Gone);
    assert!(aborts_because(&fx, "the daemon of the target node ends"), "{fx:?}");
    assert!(desk.core.owes_an_answer(), "the log has not answered");
    desk.decided(5, running(OTHER));
    assert!(!desk.core.owes_an_answer());

    let mut desk = committing();
    desk.hear(Event::Leaving);
    let fx = desk.hear(Event::Gone);
    assert!(matches!(proposed(&fx), Some(Command::GiveBack { op: OP, expect: Generation(6), .. })), "{fx:?}");
}

#[test]
fn a_daemon_that_ends_is_no_target_any_more() {
    let (mut desk, _) = loading();
    desk.hear(Event::Leaving);
    desk.hear(Event::Gone);
    desk.decided(5, running(OTHER));
    let fx = desk.decided(5, coming_here(NEXT_OP));
    let aborts = matches!(proposed(&fx), Some(Command::AbortMove { op: NEXT_OP, .. }));
    assert!(aborts && !fx.iter().any(|effect| matches!(effect, Effect::Admit { .. })), "{fx:?}");
}

/// The same when its machine's end is heard of first.
#[test]
fn a_machine_that_ended_before_it_was_let_run_is_given_back_too() {
    let mut desk = committing();
    desk.hear(Event::CommittedToRun);
    let fx = desk.hear(Event::MachineEnded("out of memory".into()));
    assert_eq!(proposed(&fx), None, "whether it ran is still to be heard: {fx:?}");
    let fx = desk.hear(Event::NotResumed("it has ended".into()));
    assert!(matches!(fx[..], [Effect::CloseGate, Effect::Discard]), "{fx:?}");
    let fx = desk.hear(Event::Gone);
    assert!(matches!(proposed(&fx), Some(Command::GiveBack { op: OP, expect: Generation(6), .. })), "{fx:?}");

    let mut desk = committing();
    desk.hear(Event::CommittedToRun);
    desk.hear(Event::MachineEnded("out of memory".into()));
    let fx = desk.hear(Event::ResumeUnknown("it may have run".into()));
    assert!(releases_because(&fx, &StopCause::QemuEnded("it may have run".into())), "{fx:?}");
}

#[test]
fn what_the_log_answered_long_ago_lets_nothing_run() {
    // The switchover was repeated until it was answered, or this process was stopped: the right may have moved on.
    let (mut desk, fx) = loading();
    desk.hear(Event::Loaded);
    desk.wait(LIMITS.sure_ms + 1);
    let fx = desk.answer(&fx, owned(6));
    assert!(!fx.contains(&Effect::CommitToRun { op: OP }), "{fx:?}");
    assert_eq!(desk.confirm(&fx, 2), [Effect::CommitToRun { op: OP }]);
    desk.wait(LIMITS.sure_ms + 1);
    let fx = desk.hear(Event::CommittedToRun);
    assert!(!resumes(&fx), "{fx:?}");
}

#[test]
fn a_stop_that_is_wanted_while_it_arrives_is_carried_out_at_the_target() {
    let (mut desk, _) = arrived();
    desk.seen.desired = Desired::Stopped { force: true };
    desk.seen.home = OTHER.node;
    let fx = desk.decided(6, arriving_here());
    assert!(releases_because(&fx, &StopCause::Operator), "{fx:?}");
    let fx = desk.answer(&fx, owned(7));
    assert!(
        matches!(fx[..], [Effect::Withdraw { .. }, Effect::Discard]),
        "nor is its arrival reported any more: {fx:?}"
    );
}

#[test]
fn a_machine_that_ends_before_the_arrival_is_reported_is_released_and_not_given_back() {
    let (mut desk, _) = arrived();
    let fx = desk.hear(Event::MachineEnded("signal 9".into()));
    assert!(releases_because(&fx, &StopCause::QemuEnded("signal 9".into())), "{fx:?}");
}

#[test]
fn an_arrival_answered_again_much_later_does_not_undo_the_next_move() {
    // The report was repeated because its first answer was lost; meanwhile the VM moves on and is paused to be handed over.
    let (mut desk, arrival) = arrived();
    desk.decided(6, running(ME));
    desk.decided(6, moving_away(NEXT_OP));
    let fx = desk.hear(Event::PeerReady);
    desk.confirm(&fx, 2);
    desk.hear(Event::RoundLanded(round(10_000, 100)));
    let fx = desk.hear(Event::Scanned { pending_pages: 0 });
    desk.confirm(&fx, 2);
    desk.hear(Event::Paused);
    desk.hear(Event::HandedOver);

    let fx = desk.answer(&arrival, owned(6));
    assert!(!resumes(&fx), "its target may have won: {fx:?}");
    assert_eq!((desk.core.doing(), desk.core.gate()), ("handed over", None));
}

#[test]
fn a_target_restarted_before_the_switchover_aborts_the_move() {
    let mut desk = Desk::after_restart(Some(OP));
    let fx = desk.decided(5, Phase::Moving { op: OP, from: OTHER, to: ME_BEFORE });
    assert!(aborts_because(&fx, "restarted"), "{fx:?}");
}

#[test]
fn a_target_restarted_before_its_guest_could_act_gives_it_back() {
    let mut desk = Desk::after_restart(Some(OP));
    let fx = desk.decided(6, Phase::Arriving { op: OP, from: OTHER, to: ME_BEFORE });
    assert!(matches!(proposed(&fx), Some(Command::GiveBack { op: OP, .. })), "{fx:?}");
}

#[test]
fn a_target_restarted_after_its_guest_may_have_acted_does_not_give_an_older_copy_back() {
    for untouched in [None, Some(NEXT_OP)] {
        let mut desk = Desk::after_restart(untouched);
        let fx = desk.decided(6, Phase::Arriving { op: OP, from: OTHER, to: ME_BEFORE });
        assert!(releases_because(&fx, &StopCause::DaemonEnded), "{fx:?}");
    }
}
