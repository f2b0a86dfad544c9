//! The source of a warm move: the guest stands still from the first byte to the last.

mod desk;

use desk::*;
use pollux_state::{Command, Outcome, id::Generation, operation::MoveWishes, vm::Phase};
use pollux_vm::{Effect, Event};

/// The target is there, and the guest is being paused.
fn pausing() -> Desk {
    let mut desk = Desk::with_running_guest();
    desk.seen.wishes = desk.seen.wishes.map(|wishes| MoveWishes { warm: true, ..wishes });
    desk.decided(5, moving_away(OP));
    let fx = desk.hear(Event::PeerReady);
    assert!(matches!(fx[..], [Effect::Confirm { .. }]), "can the cluster decide? {fx:?}");
    assert_eq!(desk.confirm(&fx, 200), [Effect::Pause], "nothing is sent of a guest that runs");
    desk
}

/// The one round is on its way.
fn sending() -> Desk {
    let mut desk = pausing();
    assert_eq!(desk.hear(Event::Paused), [Effect::SendRound { round: 1 }]);
    assert_eq!((desk.core.doing(), desk.core.gate()), ("suspended", None));
    desk
}

#[test]
fn one_round_is_sent_of_a_guest_that_stands_still_and_then_all_the_rest() {
    let mut desk = sending();
    assert!(desk.wait(3_600_000).is_empty(), "however long it takes");
    assert_eq!(desk.hear(Event::RoundLanded(round(1_000_000, 60_000))), [Effect::Scan]);
    let fx = desk.hear(Event::Scanned { pending_pages: 3 });
    let [Effect::HandOver { report }] = &fx[..] else { panic!("{fx:?}") };
    assert_eq!((report.rounds, report.pages), (1, 1_000_000));
    assert!(desk.hear(Event::HandedOver).is_empty());

    let arriving = Phase::Arriving { op: OP, from: ME, to: OTHER };
    assert!(desk.decided(6, arriving).is_empty(), "the copy here stays");
    assert_eq!(desk.decided(6, running(OTHER)).last(), Some(&Effect::Discard));
}

#[test]
fn a_warm_move_that_is_called_off_continues_the_guest_where_it_was() {
    // While it was being paused, and while it stood still.
    for (begin, still_runs) in [(pausing as fn() -> Desk, true), (sending, false)] {
        let mut desk = begin();
        desk.seen.cancel = true;
        let fx = desk.told();
        assert!(aborts_because(&fx, "cancelled"), "{fx:?}");
        assert!(!resumes(&fx), "not before the log agrees");
        let mut fx = desk.answer(&fx, Outcome::Owned(Generation(5)));
        desk.seen.cancel = false;
        fx.extend(desk.decided(5, running(ME)));
        if still_runs {
            assert!(!resumes(&fx), "what was begun ends first");
            fx.extend(desk.hear(Event::Paused));
        }
        assert!(fx.contains(&Effect::Resume { generation: Generation(5) }), "{fx:?}");
    }
}

#[test]
fn a_target_that_is_lost_meanwhile_calls_it_off() {
    let mut desk = sending();
    let fx = desk.hear(Event::SessionLost("the link broke".into()));
    assert!(aborts_because(&fx, "the link broke"), "{fx:?}");
    assert!(matches!(proposed(&fx), Some(Command::AbortMove { expect: Generation(5), .. })), "{fx:?}");
}

/// Whether it may go on here only the log can say (DESIGN, rule 3): it stands still until that answers, and what is copied meanwhile is
/// copied.
#[test]
fn without_a_quorum_it_stands_still_until_there_is_one_and_nothing_but_the_log_continues_it() {
    let mut desk = sending();
    assert!(desk.hear(Event::LeaderLost).is_empty());
    assert!(desk.wait(3_600_000).is_empty(), "no timer continues it");
    let fx = desk.hear(Event::PeerRefused("the target took nothing of what was sent to it for 10 s".into()));
    assert!(aborts_because(&fx, "took nothing"), "{fx:?}");
    for _ in 0..100 {
        assert!(!resumes(&desk.wait(60_000)), "what becomes of that is not known");
    }
    assert_eq!(desk.core.gate(), None);

    let read = desk.decided(5, running(ME));
    assert!(!resumes(&read), "the local copy of the log may be old: {read:?}");
    assert_eq!(desk.confirm(&read, 2), [Effect::Resume { generation: Generation(5) }]);
}
