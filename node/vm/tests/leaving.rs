//! A move seen from its source: every arrow of `role/source.rs`.

mod desk;

use desk::*;
use pollux_state::{
    Command,
    id::Generation,
    vm::{Desired, Phase, StopCause},
};
use pollux_vm::{Effect, Effects, Event};

fn arriving_there() -> Phase {
    Phase::Arriving { op: OP, from: ME, to: OTHER }
}

/// The move was decided and the source has called its target.
fn connecting() -> Desk {
    let mut desk = Desk::with_running_guest();
    let fx = desk.decided(5, moving_away(OP));
    assert_eq!(fx, [Effect::Connect { op: OP, to: OTHER, generation: Generation(5), bandwidth: None }]);
    desk
}

/// The first round is on its way; the log has been read once.
fn copying() -> Desk {
    let mut desk = connecting();
    let fx = desk.hear(Event::PeerReady);
    assert!(fx.contains(&Effect::SendRound { round: 1 }), "{fx:?}");
    desk.confirm(&fx, 2);
    desk
}

/// What is left fits the budget: how long does a commit take now?
fn probing() -> (Desk, Effects) {
    let mut desk = copying();
    assert_eq!(desk.hear(Event::RoundLanded(round(10_000, 100))), [Effect::Scan]);
    let fx = desk.hear(Event::Scanned { pending_pages: 10 });
    assert!(matches!(fx[..], [Effect::Confirm { .. }]), "{fx:?}");
    (desk, fx)
}

fn pausing() -> Desk {
    let (mut desk, fx) = probing();
    assert_eq!(desk.confirm(&fx, 3), [Effect::Pause]);
    assert_eq!(desk.core.gate(), Some(Generation(5)), "what the guest sent before it stands still may leave");
    desk
}

fn handing_over() -> Desk {
    let mut desk = pausing();
    let fx = desk.hear(Event::Paused);
    assert!(matches!(fx[..], [Effect::HandOver { .. }]), "{fx:?}");
    assert_eq!(desk.core.gate(), None);
    desk
}

fn handed_over() -> Desk {
    let mut desk = handing_over();
    assert!(desk.hear(Event::HandedOver).is_empty());
    assert_eq!(desk.core.doing(), "handed over");
    desk
}

#[test]
fn a_move_that_succeeds_ends_the_machine_only_when_the_target_runs_it() {
    let mut desk = handed_over();

    assert!(desk.decided(6, arriving_there()).is_empty(), "the target won; the copy here stays");
    assert!(desk.wait(3_600_000).is_empty(), "however long it takes");

    let fx = desk.decided(6, running(OTHER));
    assert!(matches!(fx[..], [Effect::Disconnect { .. }, Effect::Discard]), "{fx:?}");
    desk.hear(Event::Gone);
    assert!(desk.core.is_idle());
}

#[test]
fn nothing_resumes_because_a_timer_fired() {
    let mut desk = handed_over();
    let fx = desk.wait(LIMITS.decide_ms);
    assert!(aborts_because(&fx, "in time"), "{fx:?}");

    for _ in 0..100 {
        let fx = desk.wait(60_000);
        assert!(!resumes(&fx), "the outcome of the abort is unknown: {fx:?}");
    }
    assert_eq!(desk.core.gate(), None);
}

#[test]
fn an_abort_that_the_log_granted_lets_the_guest_go_on() {
    let mut desk = handed_over();
    let fx = desk.wait(LIMITS.decide_ms);
    let fx = desk.answer(&fx, owned(5));
    assert_eq!(fx, [Effect::Resume { generation: Generation(5) }]);
    assert_eq!(desk.hear(Event::Resumed), [Effect::Announce]);
    assert_eq!(desk.core.doing(), "running");
}

#[test]
fn an_abort_that_came_too_late_leaves_the_guest_paused() {
    let mut desk = handed_over();
    let fx = desk.wait(LIMITS.decide_ms);
    assert!(desk.answer(&fx, too_late()).is_empty());
    assert!(!resumes(&desk.decided(6, arriving_there())));
    assert_eq!((desk.core.doing(), desk.core.gate()), ("handed over", None));
}

#[test]
fn a_guest_that_is_given_back_goes_on_after_a_read_at_the_new_generation() {
    let mut desk = handed_over();
    desk.decided(6, arriving_there());
    let fx = desk.decided(7, running(ME));
    assert!(!resumes(&fx), "{fx:?}");
    assert_eq!(desk.confirm(&fx, 2), [Effect::Resume { generation: Generation(7) }]);
    assert_eq!(desk.core.gate(), Some(Generation(7)));
}

#[test]
fn before_the_pause_an_abort_costs_the_guest_nothing() {
    let mut desk = copying();
    let fx = desk.hear(Event::SessionLost("timed out".into()));
    assert!(matches!(fx.first(), Some(Effect::Disconnect { .. })), "{fx:?}");
    assert!(aborts_because(&fx, "connection to the target was lost"), "{fx:?}");
    assert_eq!(desk.core.gate(), Some(Generation(5)));

    assert!(desk.answer(&fx, owned(5)).is_empty(), "it never stopped");
    assert_eq!(desk.core.doing(), "running");
}

#[test]
fn a_pause_that_was_begun_is_waited_for_before_the_guest_goes_on() {
    let mut desk = pausing();
    let fx = desk.hear(Event::SessionLost("timed out".into()));
    assert!(!resumes(&desk.answer(&fx, owned(5))), "QEMU has yet to say that it paused");
    assert_eq!(desk.hear(Event::Paused), [Effect::Resume { generation: Generation(5) }]);
}

#[test]
fn a_hand_over_that_was_begun_is_waited_for_before_the_guest_goes_on() {
    let mut desk = handing_over();
    let fx = desk.hear(Event::SessionLost("timed out".into()));
    assert!(!resumes(&desk.answer(&fx, owned(5))), "the device state is being saved");
    let fx = desk.hear(Event::HandOverFailed("the connection is gone".into()));
    assert_eq!(fx, [Effect::Resume { generation: Generation(5) }]);
}

#[test]
fn a_target_that_refuses_or_is_never_ready_ends_the_move() {
    let fx = connecting().hear(Event::PeerRefused("no room".into()));
    assert!(aborts_because(&fx, "no room"), "{fx:?}");

    let mut desk = connecting();
    assert_eq!(desk.core.deadline(), Some(desk.now + LIMITS.connect_ms));
    let fx = desk.wait(LIMITS.connect_ms);
    assert!(aborts_because(&fx, "in time"), "{fx:?}");
}

#[test]
fn a_user_cancels_the_move_or_wants_the_vm_stopped() {
    let mut desk = copying();
    desk.seen.cancel = true;
    assert!(aborts_because(&desk.told(), "cancelled"));

    let mut desk = copying();
    desk.seen.desired = Desired::Stopped { force: false };
    let fx = desk.told();
    assert!(aborts_because(&fx, "stopped"), "{fx:?}");
    assert_eq!(desk.answer(&fx, owned(5)), [Effect::PowerButton]);
}

#[test]
fn a_guest_that_writes_faster_than_the_link_carries_stays() {
    let mut desk = copying();
    for _ in 0..100 {
        let fx = desk.hear(Event::RoundLanded(round(10_000, 1_000)));
        if !fx.contains(&Effect::Scan) {
            break;
        }
        let fx = desk.hear(Event::Scanned { pending_pages: 10_000 });
        if proposed(&fx).is_some() {
            assert!(aborts_because(&fx, "faster than the link"), "{fx:?}");
            return;
        }
    }
    panic!("the move goes on for ever");
}

#[test]
fn a_quorum_that_is_too_slow_is_waited_for_with_a_round_in_between_and_not_for_ever() {
    let (mut desk, mut fx) = probing();
    for next in 2..100 {
        fx = desk.confirm(&fx, 200);
        if proposed(&fx).is_some() {
            assert!(aborts_because(&fx, "200 ms to agree"), "{fx:?}");
            return;
        }
        assert_eq!(fx, [Effect::SendRound { round: next }]);
        desk.hear(Event::RoundLanded(round(10, 1)));
        fx = desk.hear(Event::Scanned { pending_pages: 0 });
    }
    panic!("the move goes on for ever");
}

#[test]
fn a_leader_lost_while_the_quorum_is_probed_does_not_leave_the_move_hanging() {
    let (mut desk, old) = probing();
    let fx = desk.hear(Event::LeaderLost);
    assert!(desk.confirm(&old, 2).is_empty(), "that read proves nothing now");
    assert_eq!(desk.confirm(&fx, 2), [Effect::Pause]);
}

#[test]
fn a_machine_that_ends_before_everything_was_handed_over_is_told_to_the_log() {
    for mut desk in [connecting(), copying(), probing().0, pausing()] {
        let fx = desk.hear(Event::MachineEnded("signal 9".into()));
        assert!(releases_because(&fx, &StopCause::QemuEnded("signal 9".into())), "{}: {fx:?}", desk.core.doing());
        assert_eq!(desk.core.gate(), None);
    }
}

/// Its last word to the target may be on its way: then the guest is alive there.
#[test]
fn a_machine_that_ends_while_it_hands_over_waits_for_what_became_of_that() {
    let mut desk = handing_over();
    let fx = desk.hear(Event::MachineEnded("signal 9".into()));
    assert_eq!(proposed(&fx), None, "{fx:?}");
    let fx = desk.hear(Event::HandOverFailed("no device state".into()));
    assert!(releases_because(&fx, &StopCause::QemuEnded("signal 9".into())), "{fx:?}");

    let mut desk = handing_over();
    desk.hear(Event::MachineEnded("signal 9".into()));
    let fx = desk.hear(Event::HandedOver);
    assert_eq!(proposed(&fx), None, "the target has everything: {fx:?}");
}

/// The guest is alive at the target or nowhere: to call the move off would only lose it.
#[test]
fn whose_machine_ended_after_that_calls_nothing_off_but_for_the_targets_silence() {
    let reasons: [fn(&mut Desk) -> Effects; 4] = [
        |desk| desk.hear(Event::SessionLost("timed out".into())),
        |desk| desk.hear(Event::PeerRefused("no such move".into())),
        |desk| {
            desk.seen.cancel = true;
            desk.told()
        },
        |desk| {
            desk.seen.desired = Desired::Stopped { force: false };
            desk.told()
        },
    ];
    for reason in reasons {
        let mut desk = handed_over();
        desk.hear(Event::MachineEnded("signal 9".into()));
        let fx = reason(&mut desk);
        assert_eq!(proposed(&fx), None, "{fx:?}");
        assert!(!fx.iter().any(|effect| matches!(effect, Effect::Disconnect { .. })), "{fx:?}");
        assert_eq!(desk.core.deadline(), Some(desk.now + LIMITS.decide_ms));
        let read = desk.wait(LIMITS.decide_ms);
        assert_eq!(proposed(&read), None, "is there a leader whom the target could have told? {read:?}");
        let fx = desk.confirm(&read, 2);
        assert!(matches!(proposed(&fx), Some(Command::AbortMove { .. })), "{fx:?}");

        // Nor while it is still to be heard whether the target has everything.
        let mut desk = handing_over();
        desk.hear(Event::MachineEnded("signal 9".into()));
        assert_eq!(proposed(&reason(&mut desk)), None);
        assert_eq!(proposed(&desk.hear(Event::HandedOver)), None);
    }
}

#[test]
fn the_targets_silence_counts_from_when_there_was_a_leader_to_tell() {
    let mut desk = handed_over();
    desk.hear(Event::MachineEnded("signal 9".into()));
    desk.wait(LIMITS.decide_ms - 1);
    desk.hear(Event::LeaderLost);
    assert_eq!(proposed(&desk.wait(LIMITS.decide_ms - 1)), None);
    let read = desk.wait(1);
    assert!(aborts_because(&desk.confirm(&read, 2), "in time"));
}

#[test]
fn a_move_that_was_called_off_is_not_any_more_once_nothing_is_left_here() {
    let mut desk = handed_over();
    let fx = desk.hear(Event::SessionLost("timed out".into()));
    let (abort, _) = proposal(&fx).expect("the guest could go on here");
    let fx = desk.hear(Event::MachineEnded("signal 9".into()));
    assert_eq!(fx, [Effect::Withdraw { ticket: abort }]);
}

#[test]
fn a_machine_that_ends_after_that_matters_only_if_the_guest_comes_back() {
    let mut desk = handed_over();
    assert!(desk.hear(Event::MachineEnded("signal 9".into())).is_empty(), "the guest is alive at the target");

    desk.decided(6, arriving_there());
    let fx = desk.decided(7, running(ME));
    assert!(releases_because(&fx, &StopCause::QemuEnded("signal 9".into())), "{fx:?}");
}

#[test]
fn a_guest_that_ended_here_is_released_even_if_it_is_given_back_into_another_move() {
    let mut desk = handing_over();
    desk.hear(Event::MachineEnded("signal 9".into()));
    desk.decided(6, arriving_there());
    assert_eq!(desk.core.doing(), "handing over", "whether the target has everything is not heard yet");

    let fx = desk.decided(7, moving_away(NEXT_OP));
    assert!(releases_because(&fx, &StopCause::QemuEnded("signal 9".into())), "{fx:?}");
    assert!(!fx.contains(&Effect::Discard), "not before the log agrees");
}

#[test]
fn a_proposal_that_has_become_pointless_does_not_keep_back_its_successor() {
    // Cut off while its machine ended, this node learns in one step that the target won and gave the guest back.
    let mut desk = pausing();
    let fx = desk.hear(Event::MachineEnded("signal 9".into()));
    assert!(matches!(proposed(&fx), Some(Command::Release { expect: Generation(5), .. })), "{fx:?}");

    let fx = desk.decided(7, running(ME));
    assert!(matches!(fx[0], Effect::Withdraw { .. }), "{fx:?}");
    assert!(matches!(proposed(&fx), Some(Command::Release { expect: Generation(7), .. })), "{fx:?}");
}

#[test]
fn a_move_that_follows_another_at_once_finds_the_guest_still_there() {
    // The abort and the next move come in one step of the local copy of the log.
    let mut desk = copying();
    let fx = desk.decided(5, moving_away(NEXT_OP));
    assert!(!fx.contains(&Effect::Discard), "the guest is ours: {fx:?}");
    assert!(
        fx.contains(&Effect::Connect { op: NEXT_OP, to: OTHER, generation: Generation(5), bandwidth: None }),
        "{fx:?}"
    );

    let mut desk = handed_over();
    let fx = desk.decided(5, moving_away(NEXT_OP));
    assert!(!fx.contains(&Effect::Discard), "the guest is ours: {fx:?}");
    assert_eq!(desk.confirm(&fx, 2), [Effect::Resume { generation: Generation(5) }]);
    let fx = desk.hear(Event::Resumed);
    assert!(
        fx.contains(&Effect::Connect { op: NEXT_OP, to: OTHER, generation: Generation(5), bandwidth: None }),
        "{fx:?}"
    );
}

#[test]
fn the_source_is_taken_back_like_given_back() {
    let mut desk = handed_over();
    desk.decided(6, arriving_there());
    desk.hear(Event::LeaderLost);
    let fx = desk.decided(7, running(ME));
    assert_eq!(desk.confirm(&fx, 2), [Effect::Resume { generation: Generation(7) }]);
    assert!(!matches!(proposed(&fx), Some(Command::Claim { .. })));
}

/// The first round is on its way, and the user allowed the guest to be slowed down.
fn copying_with_throttle() -> Desk {
    let mut desk = Desk::with_running_guest();
    desk.seen.wishes = desk.seen.wishes.map(|wishes| pollux_state::operation::MoveWishes { throttle: true, ..wishes });
    desk.decided(5, moving_away(OP));
    let fx = desk.hear(Event::PeerReady);
    desk.confirm(&fx, 2);
    desk
}

/// Rounds that do not help, until something other than another round is wanted.
fn stall(desk: &mut Desk) -> Effects {
    loop {
        desk.hear(Event::RoundLanded(round(50_000, 1_000)));
        let fx = desk.hear(Event::Scanned { pending_pages: 50_000 });
        if !matches!(fx[..], [Effect::SendRound { .. }]) {
            return fx;
        }
    }
}

fn slowed(fx: &Effects) -> Option<u8> {
    fx.iter().find_map(|effect| if let Effect::Throttle { percent } = effect { Some(*percent) } else { None })
}

#[test]
fn a_guest_that_may_not_be_slowed_down_is_not() {
    let mut desk = copying();
    let fx = stall(&mut desk);
    assert_eq!(slowed(&fx), None);
    let (_, Command::AbortMove { reason, .. }) = proposal(&fx).expect("it gives up") else { panic!("{fx:?}") };
    assert!(reason.contains("--allow-throttle") && reason.contains("--max-blackout"), "{reason}");
}

#[test]
fn a_guest_is_slowed_down_step_by_step_and_the_move_given_up_only_after_the_last() {
    let mut desk = copying_with_throttle();
    for percent in pollux_vm::convergence::THROTTLE_PERCENTS {
        let fx = stall(&mut desk);
        assert_eq!(slowed(&fx), Some(percent), "{fx:?}");
        assert!(fx.iter().any(|effect| matches!(effect, Effect::SendRound { .. })), "{fx:?}");
    }
    let fx = stall(&mut desk);
    let (_, Command::AbortMove { reason, .. }) = proposal(&fx).expect("it gives up") else { panic!("{fx:?}") };
    assert!(reason.contains("slowed down by 99 %"), "{reason}");
    let fx = desk.decided(5, running(ME));
    assert_eq!(slowed(&fx), Some(0), "and it has its speed back: {fx:?}");
}

#[test]
fn a_slowed_guest_has_its_speed_back_before_it_is_paused() {
    let mut desk = copying_with_throttle();
    stall(&mut desk);
    desk.hear(Event::RoundLanded(round(50_000, 1_000)));
    let fx = desk.hear(Event::Scanned { pending_pages: 10 });
    let fx = desk.confirm(&fx, 3);
    assert_eq!(fx, [Effect::Throttle { percent: 0 }, Effect::Pause]);
}

#[test]
fn a_slowed_guest_has_its_speed_back_however_the_move_ends() {
    let ends: [fn(&mut Desk) -> Effects; 3] = [
        |desk| {
            desk.seen.cancel = true;
            let fx = desk.told();
            desk.answer(&fx, pollux_state::Outcome::Owned(Generation(5)))
        },
        |desk| desk.decided(5, running(ME)),
        |desk| desk.hear(Event::MachineEnded("signal 9".into())),
    ];
    for end in ends {
        let mut desk = copying_with_throttle();
        assert_eq!(slowed(&stall(&mut desk)), Some(20));
        let fx = end(&mut desk);
        assert_eq!(slowed(&fx), Some(0), "{fx:?}");
    }
}

#[test]
fn a_guest_that_cannot_be_slowed_down_is_told_why_when_it_does_not_converge() {
    let mut desk = copying_with_throttle();
    stall(&mut desk);
    desk.hear(Event::NotThrottled("no cpu controller".into()));
    let fx = stall(&mut desk);
    let (_, Command::AbortMove { reason, .. }) = proposal(&fx).expect("it gives up") else { panic!("{fx:?}") };
    assert!(reason.contains("no cpu controller"), "{reason}");
}
