//! Where a session has the works of a replica, until it leaves or a newer one takes them.

use std::{
    future::poll_fn,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use pollux_mirror::{Failure, Tag};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::works::Works;
use crate::{
    claim::Claim,
    side::{Ask, Done},
};

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) claim: Claim,
    /// What it leaves behind is seen to its end here.
    tasks: TaskTracker,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// The session has the works; who is to be woken when it has them no more.
    Has { works: Box<Works>, waker: Option<Waker> },
    /// A newer generation has them: everything is refused, and these have not been told.
    Fenced(Vec<Tag>),
    /// The session has ended; told or not.
    Ended { why: String, told: bool },
    /// Nobody is there.
    Empty,
}

/// Why the works are taken from a session.
#[derive(Debug, Clone)]
pub(crate) enum Why {
    /// For a newer generation.
    Fenced,
    /// For anything else.
    Ended(String),
}

/// The session is over.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) why: String,
}

impl Seat {
    pub(crate) fn new(claim: Claim, works: Box<Works>, tasks: TaskTracker) -> Arc<Self> {
        Arc::new(Self { claim, tasks, state: Mutex::new(State::Has { works, waker: None }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins what is in the inbox, goes on with everything, and appends what has ended: whether there was anything.
    pub(super) fn poll(&self, cx: &mut Context<'_>, inbox: &mut Vec<Ask>, done: &mut Vec<Done>) -> Result<bool, Taken> {
        let before = done.len();
        match &mut *self.state() {
            State::Has { works, waker } => {
                for ask in inbox.drain(..) {
                    works.begin(ask, done);
                }
                works.poll(cx, done);
                match waker {
                    Some(waker) if waker.will_wake(cx.waker()) => {}
                    _ => *waker = Some(cx.waker().clone()),
                }
            }
            State::Fenced(tags) => {
                let tags = tags.drain(..).chain(inbox.drain(..).map(|ask| ask.tag));
                done.extend(tags.map(|tag| Done { tag, outcome: Err(Failure::Fenced) }));
            }
            State::Ended { why, told } => {
                inbox.clear();
                if !mem::replace(told, true) {
                    return Err(Taken { why: mem::take(why) });
                }
            }
            State::Empty => unreachable!("who has left does not come back"),
        }
        Ok(done.len() > before)
    }

    /// Takes the works from the session, with what is under way; it hears of it. `None`: it has left, or they were taken before.
    pub(crate) fn take(&self, why: Why) -> Option<Box<Works>> {
        let mut state = self.state();
        let next = match (&*state, why) {
            (State::Has { works, .. }, Why::Fenced) => State::Fenced(works.tags()),
            (State::Has { .. }, Why::Ended(why)) => State::Ended { why, told: false },
            // It was taken for a newer session of the same generation, and now there is a newer generation.
            (State::Ended { .. }, Why::Fenced) => State::Fenced(Vec::new()),
            (State::Fenced(_) | State::Ended { .. } | State::Empty, _) => return None,
        };
        let State::Has { works, waker } = mem::replace(&mut *state, next) else { return None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some(works)
    }

    /// The session leaves. What is under way is seen to its end; then the replica is closed.
    pub(super) fn leave(self: &Arc<Self>) {
        let mut state = self.state();
        match &*state {
            State::Has { works, .. } if !works.is_idle() => {}
            State::Has { .. } | State::Fenced(_) | State::Ended { .. } | State::Empty => {
                let left = mem::replace(&mut *state, State::Empty);
                drop(state);
                drop(left);
                return;
            }
        }
        drop(state);
        // At the runtime's end the kernel ends what is under way, and the lock with it.
        let Ok(runtime) = Handle::try_current() else { return };
        let seat = Arc::clone(self);
        self.tasks.spawn_on(
            poll_fn(move |cx| {
                let mut done = Vec::new();
                let mut state = seat.state();
                let State::Has { works, waker } = &mut *state else { return Poll::Ready(()) };
                works.poll(cx, &mut done);
                *waker = Some(cx.waker().clone());
                if works.is_idle() {
                    let left = mem::replace(&mut *state, State::Empty);
                    drop(state);
                    drop(left);
                    return Poll::Ready(());
                }
                Poll::Pending
            }),
            &runtime,
        );
    }
}

/// Waits until nothing is under way any more.
pub(crate) async fn drain(works: &mut Works) {
    let mut done = Vec::new();
    poll_fn(|cx| {
        works.poll(cx, &mut done);
        done.clear();
        if works.is_idle() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
