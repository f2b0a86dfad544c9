//! The cores' clock on a host that is suspended, and what a core makes of it. Time is tokio's own, which stands still where the
//! host does.

use std::cell::Cell;

use pollux_state::{
    Outcome,
    id::{Generation, Incarnation, NodeId, Owner, VmId},
    vm::{Desired, Phase, StopCause},
};
use pollux_vm::{Effect, Effects, Event, Limits, View, VmCore, view::Seen};
use tokio::time::advance;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

thread_local! {
    static SUSPENDED: Cell<Duration> = const { Cell::new(Duration::from_secs(7_000)) };
}

/// This test's host.
fn told() -> Duration {
    SUSPENDED.get()
}

fn suspend(time: Duration) {
    SUSPENDED.set(SUSPENDED.get() + time);
}

#[tokio::test(start_paused = true)]
async fn the_time_in_which_the_host_was_suspended_passes() {
    let clock = Clock::start_by(told);
    assert_eq!(clock.now(), 0, "whatever was before the daemon");
    advance(MINUTE).await;
    assert_eq!(clock.now(), 60_000);
    suspend(MINUTE);
    assert_eq!(clock.now(), 120_000);
    advance(MINUTE).await;
    assert_eq!(clock.now(), 180_000);
}

#[tokio::test(start_paused = true)]
async fn a_timer_fires_at_its_time_though_it_stood_still_for_a_while() {
    let clock = Clock::start_by(told);
    let begun = Instant::now();
    assert_eq!(clock.timer(90_000), begun + Duration::from_secs(90));

    advance(Duration::from_secs(20)).await;
    suspend(MINUTE);

    tokio::time::sleep_until(clock.timer(90_000)).await;
    assert_eq!(clock.now(), 90_000);
    assert_eq!(Instant::now() - begun, Duration::from_secs(30));
    suspend(MINUTE);
    assert!(clock.timer(90_000) <= Instant::now(), "what is over is due");
}

/// A guest was granted to a daemon, whose host was suspended for a minute before the guest could be let run. By `clock`, what
/// the core then wants done.
async fn granted_before_a_suspension(clock: Clock) -> Effects {
    let (me, vm) = (Owner { node: NodeId(1), incarnation: Incarnation(3) }, VmId(7));
    let mut core = VmCore::new(me, vm, Limits::default(), None);
    let seen = Seen {
        ready: true,
        generation: Generation(4),
        phase: Phase::Stopped { cause: StopCause::Operator },
        desired: Desired::Running,
        home: me.node,
        autostart: true,
        failed_starts: 0,
        cancel: false,
        wishes: None,
    };
    let asked = core.on(clock.now(), Event::Decided(View { index: 100, vm: Some(seen) }));
    let ticket =
        asked.iter().find_map(|effect| if let Effect::Propose { ticket, .. } = effect { Some(*ticket) } else { None });
    let answer = Event::Answered {
        ticket: ticket.expect("it claims its guest"),
        index: 101,
        outcome: Outcome::Owned(Generation(5)),
    };
    let launched = core.on(clock.now(), answer);
    assert!(launched.iter().any(|effect| matches!(effect, Effect::Launch { .. })), "{launched:?}");
    advance(Duration::from_secs(1)).await;

    suspend(MINUTE);

    core.on(clock.now(), Event::MachineReady)
}

fn lets_it_run(effects: &Effects) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Resume { .. }))
}

#[tokio::test(start_paused = true)]
async fn a_daemon_whose_host_was_suspended_asks_again_before_it_lets_a_guest_run() {
    let effects = granted_before_a_suspension(Clock::start_by(told)).await;
    assert!(!lets_it_run(&effects), "{effects:?}");
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Confirm { .. })), "{effects:?}");
}

/// Negative control: the same by a clock that stands still with its host.
#[tokio::test(start_paused = true)]
async fn by_a_clock_that_stands_still_it_lets_the_guest_run() {
    let effects = granted_before_a_suspension(Clock::start_by(|| Duration::ZERO)).await;
    assert!(lets_it_run(&effects), "the control itself is broken: {effects:?}");
}
