//! The kernel's fence ran out while a guest was let act: the log is asked before it is let again.

mod desk;

use desk::*;
use pollux_vm::{Effect, Event, Ticket};

fn asked(fx: &[Effect]) -> Option<Ticket> {
    fx.iter().find_map(|effect| if let Effect::Confirm { ticket } = effect { Some(*ticket) } else { None })
}

#[test]
fn a_guest_that_was_shut_off_is_let_go_on_by_a_question_asked_later() {
    let mut desk = Desk::with_running_guest();
    let before = desk.core.proof();

    let fx = desk.hear(Event::FenceExpired);
    assert!(matches!(fx[..], [Effect::Confirm { .. }]), "nothing is unlocked on what was known before: {fx:?}");
    assert!(desk.core.is_fenced());
    assert_eq!(desk.core.proof(), None);

    let question = asked(&fx);
    assert_eq!(desk.confirm(&fx, 2), [Effect::Unlock]);
    assert!(!desk.core.is_fenced());
    assert_eq!(desk.core.proof(), question, "by this question it is unlocked");
    assert!(before < question);
}

#[test]
fn a_question_asked_before_the_fence_ran_out_again_unlocks_nothing() {
    let mut desk = Desk::with_running_guest();
    let first = desk.hear(Event::FenceExpired);
    let second = desk.hear(Event::FenceExpired);

    assert!(desk.confirm(&first, 2).is_empty());
    assert_eq!(desk.confirm(&second, 2), [Effect::Unlock]);
}

#[test]
fn who_finds_after_a_sleep_that_the_vm_is_elsewhere_ends_its_copy() {
    let mut desk = Desk::with_running_guest();
    let fx = desk.hear(Event::FenceExpired);

    let gone = desk.decided(7, running(OTHER));
    assert_eq!(gone, [Effect::CloseGate, Effect::Discard]);
    assert!(!desk.confirm(&fx, 2).contains(&Effect::Unlock));
    assert!(!desk.core.is_fenced());
}

#[test]
fn a_closed_gate_needs_no_unlocking() {
    let mut desk = Desk::new();
    let fx = desk.decided(4, STOPPED);
    desk.answer(&fx, owned(5));

    desk.hear(Event::FenceExpired);

    assert!(!desk.core.is_fenced());
}

#[test]
fn a_guest_is_let_run_by_the_question_that_made_it_certain() {
    let mut desk = Desk::new();
    let fx = desk.decided(4, STOPPED);
    let (claim, _) = proposal(&fx).expect("it is claimed");
    desk.answer(&fx, owned(5));

    assert!(resumes(&desk.hear(Event::MachineReady)));

    assert_eq!(desk.core.proof(), Some(claim));
}
