//! What an actor asks of the log: proposals that are repeated until they are answered or withdrawn, and reads.

use std::time::Duration;

use pollux_raft::ProposeError;
use pollux_state::{Command, Proposal, id::OpId, limits::FENCE_MS};
use pollux_vm::{Event, Limits, Ticket, View};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        hold::{self, Place},
        wall_ms,
    },
    Actor, Mail,
};
use crate::metrics::{self, Proposed};

/// One attempt to put a proposal into the log, or to read it, in milliseconds. The next follows with the same id.
const ATTEMPT_MS: u64 = 2_000;
// An answer that was waited for as long as one attempt may take is still young enough to act on ...
const _: () = assert!(ATTEMPT_MS < Limits::USUAL.sure_ms);
// ... and what a core acts on, the kernel believes.
const _: () = assert!(Limits::USUAL.sure_ms < FENCE_MS);
/// Pause between attempts, in milliseconds.
const AGAIN_MS: u64 = 100;
/// A guest that has sent nothing for so long after its move has nothing to say, in milliseconds.
const SILENCE_MS_MAX: u64 = 60_000;

impl Actor {
    pub(super) fn propose(&mut self, ticket: Ticket, mut command: Command) {
        if let Command::Arrived { op, report, .. } = &mut command {
            report.parts = self.stopwatch.parts();
            self.arrival = Some((ticket, *op));
        }
        let proposal = Proposal { id: self.shared.mint(), by: self.me.node, at: wall_ms(), command };
        let cancel = CancellationToken::new();
        self.asks.insert(ticket, cancel.clone());
        let (consensus, post) = (self.shared.consensus.clone(), self.post.clone());
        self.note(ticket);
        self.shared.spawn(cancel.run_until_cancelled_owned(async move {
            if matches!(proposal.command, Command::Switchover { .. }) {
                hold::at(Place::Switchover).await;
            } else if matches!(proposal.command, Command::Arrived { .. }) {
                hold::at(Place::Arrived).await;
            }
            let asked = Instant::now();
            loop {
                match consensus.propose(proposal.clone(), Duration::from_millis(ATTEMPT_MS)).await {
                    Ok(applied) => {
                        let refused = matches!(applied.outcome, pollux_state::Outcome::Refused(_));
                        let outcome = if refused { Proposed::Refused } else { Proposed::Applied };
                        metrics::proposed(asked.elapsed(), outcome);
                        if let pollux_state::Outcome::Refused(why) = &applied.outcome {
                            tracing::info!(command = ?proposal.command, %why, "refused by the log");
                        }
                        let answer = Event::Answered { ticket, index: applied.index, outcome: applied.outcome };
                        // An actor that is gone needs no answer.
                        let _ = post.send(Mail::Event(answer)).await;
                        return;
                    }
                    Err(error @ ProposeError::Refused { .. }) => {
                        tracing::error!(%error, command = ?proposal.command, "the log does not even look at it");
                        tokio::time::sleep(Duration::from_millis(ATTEMPT_MS)).await;
                    }
                    Err(error @ (ProposeError::Unknown { .. } | ProposeError::NoLeader { .. })) => {
                        tracing::debug!(%error, "the proposal's outcome is not known; asking again");
                    }
                }
                tokio::time::sleep(Duration::from_millis(AGAIN_MS)).await;
            }
        }));
    }

    /// Tells the log when the guest was heard of again after its move. Once, for people: if it is lost, nothing else is.
    pub(super) fn listen_for_guest(&self, op: OpId) {
        let Some(guest) = self.guest.borrow().clone() else { return };
        let Some(silence) = self.stopwatch.silence() else { return };
        let consensus = self.shared.consensus.clone();
        let (id, by, cancel) = (self.shared.mint(), self.me.node, self.ended.clone());
        self.shared.spawn(cancel.run_until_cancelled_owned(async move {
            let Ok(heard) = tokio::time::timeout(Duration::from_millis(SILENCE_MS_MAX), guest.heard()).await else {
                return;
            };
            let command = Command::HeardAgain { op, silence_ms: silence.until_ms(heard) };
            let proposal = Proposal { id, by, at: wall_ms(), command };
            if let Err(error) = consensus.propose(proposal, Duration::from_millis(ATTEMPT_MS)).await {
                tracing::debug!(%op, %error, "when the guest was heard again is not in the log");
            }
        }));
    }

    pub(super) fn confirm(&mut self, ticket: Ticket) {
        self.reading.cancel();
        self.reading = CancellationToken::new();
        let reading = self.reading.clone();
        let (consensus, post, vm) = (self.shared.consensus.clone(), self.post.clone(), self.vm);
        let (applied, clock, guest) = (self.applied.clone(), self.shared.clock, self.guest.subscribe());
        self.shared.spawn(reading.run_until_cancelled_owned(async move {
            loop {
                if let Some(guest) = &*guest.borrow() {
                    guest.note(ticket);
                }
                let asked = Instant::now();
                let began = clock.now();
                match consensus.linearizable(Duration::from_millis(ATTEMPT_MS)).await {
                    Ok(_) => {
                        let took_ms = u32::try_from(asked.elapsed().as_millis()).unwrap_or(u32::MAX);
                        let view = {
                            let applied = applied.borrow();
                            View::of(&applied.state, applied.applied, vm)
                        };
                        // The core must see the state that was read before it hears that it is current.
                        if post.send(Mail::Event(Event::Decided(view))).await.is_ok() {
                            let _ = post.send(Mail::Event(Event::Confirmed { ticket, began, took_ms })).await;
                        }
                        return;
                    }
                    Err(error) => tracing::debug!(%error, "the log could not be read; asking again"),
                }
                tokio::time::sleep(Duration::from_millis(AGAIN_MS)).await;
            }
        }));
    }

    /// The log is about to be asked: from here on the kernel counts how old the answer is.
    fn note(&self, question: Ticket) {
        if let Some(guest) = &*self.guest.borrow() {
            guest.note(question);
        }
    }
}
