//! A replica of this node in one session.
//!
//! ```text
//!   submit(ask) --> inbox --poll--> Seat: Works (the open replica, its log) --> done
//!                                     ^ taken by a newer session, with what is under way
//! ```
//!
//! A keeper is made by [`crate::Keepers`], belongs to whoever asks things of the replica, and is driven by that one's task: there is no
//! task between. What it works with, [`works::Works`], lies in a [`Seat`] that the registry knows, behind a lock that is taken once a
//! poll: so whoever overtakes the session takes the works from it at once, whatever the other task does, and waits until what
//! was under way has ended. From then on nothing that comes through the older keeper reaches the replica (DESIGN, rule 4).

pub(crate) mod seat;
pub(crate) mod works;

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use self::seat::{Seat, Taken};
use crate::side::{Ask, Broken, Done, Side};

/// See the module's text.
#[derive(Debug)]
pub struct Keeper {
    seat: Arc<Seat>,
    inbox: Vec<Ask>,
}

impl Keeper {
    pub(crate) fn new(seat: Arc<Seat>) -> Self {
        Self { seat, inbox: Vec::new() }
    }
}

impl Side for Keeper {
    fn submit(&mut self, ask: Ask) {
        self.inbox.push(ask);
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Done>) -> Poll<Result<(), Broken>> {
        match self.seat.poll(cx, &mut self.inbox, done) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(Taken { why }) => Poll::Ready(Err(Broken { why })),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.seat.leave();
    }
}
