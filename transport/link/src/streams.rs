//! The streams of one connection that a peer opened. Each is one exchange on a task of its own: its header is read, role,
//! admission and size are checked, and only then does the service hear of it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use pollux_wire::{
    fault,
    frame::{Opening, StreamKind},
    limits, method as methods,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    endpoint::Shared,
    exchange::{self, Answer},
    role::Roles,
    service::{Class, Fault, Peer},
    stream::{DEADLINE, RecvStream, SendStream, StreamError},
};

/// A stream's header follows its opening at once; a peer that opens and says nothing is not waited for longer than this.
const OPENING_MAX: Duration = Duration::from_secs(5);
/// A call is given up this long after its caller's patience is over, so that the caller's own deadline comes first and is
/// what it reports.
const GRACE: Duration = Duration::from_millis(100);
/// An answer has this long to be taken by a peer whose patience may be over.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// One connection of a peer.
struct Served {
    shared: Arc<Shared>,
    peer: Peer,
    class: Class,
    calls: Semaphore,
    sessions: Semaphore,
}

/// Serves a connection until it ends.
pub(crate) async fn serve(shared: Arc<Shared>, connection: quinn::Connection, peer: Peer, class: Class) {
    let calls = Semaphore::new(shared.limits.calls_per_connection);
    let sessions = Semaphore::new(shared.limits.sessions_per_connection);
    let served = Arc::new(Served { shared, peer, class, calls, sessions });
    tracing::debug!(node = %peer.node, address = %peer.address, ?class, "a peer connected");
    // The transport bounds how many of these tasks there are: a peer has so many streams and no more.
    while let Ok((send, recv)) = connection.accept_bi().await {
        let (this, stop) = (served.clone(), served.shared.stop.clone());
        served.shared.tasks.spawn(async move {
            let stream = this.stream(SendStream::new(send), RecvStream::new(recv));
            stop.run_until_cancelled(stream).await;
        });
    }
}

impl Served {
    async fn stream(&self, mut send: SendStream, mut recv: RecvStream) {
        let opening = match timeout(OPENING_MAX, exchange::read_opening(&mut recv)).await {
            Ok(Ok(Some(opening))) => opening,
            Ok(Err(StreamError::Lost(_) | StreamError::Abandoned(_))) => return,
            Ok(Ok(None) | Err(StreamError::Ended | StreamError::Closed)) | Err(_) => {
                self.shared.counting.malformed.add();
                tracing::warn!(node = %self.peer.node, "a stream that starts with no header");
                return;
            }
        };
        if let Err(fault) = self.check(opening) {
            tracing::warn!(node = %self.peer.node, ?opening, %fault, "refused");
            self.answer(&mut send, Answer::Refused(fault)).await;
            return;
        }
        match opening.kind {
            StreamKind::Call => self.call(opening, send, recv).await,
            StreamKind::Session => self.session(opening, send, recv).await,
            StreamKind::Join => unreachable!("a join was refused by the check"),
        }
    }

    /// Whether the service should hear of it at all.
    fn check(&self, opening: Opening) -> Result<(), Fault> {
        let Peer { node, role, .. } = self.peer;
        let counting = &self.shared.counting;
        let method = opening.method;
        if !self.shared.service.admits(node) {
            counting.not_admitted.add();
            return Err(Fault::new(fault::NOT_ADMITTED, format!("{node} is no longer part of the cluster")));
        }
        let (what, roles, limit_bytes) = match opening.kind {
            StreamKind::Call => ("call", self.shared.service.allowed(method), methods::limit(method).bytes()),
            StreamKind::Session if self.class == Class::Bulk => {
                ("session", self.shared.service.allowed_session(method), limits::SESSION_HEADER_BYTES_MAX)
            }
            StreamKind::Session | StreamKind::Join => ("exchange on this connection", Roles::None, 0),
        };
        if roles == Roles::None {
            counting.unknown_method.add();
            return Err(Fault::new(fault::METHOD, format!("there is no {what} {method}")));
        }
        if !roles.contain(role) {
            counting.wrong_role.add();
            return Err(Fault::new(fault::ROLE, format!("{what} {method} is not for a {role}, which {node} is")));
        }
        if usize::try_from(opening.body_bytes).map_or(true, |size_bytes| size_bytes > limit_bytes) {
            counting.oversize.add();
            let size_bytes = opening.body_bytes;
            let text = format!("{what} {method} has {size_bytes} bytes, more than the {limit_bytes} it may have");
            return Err(Fault::new(fault::TOO_LARGE, text));
        }
        Ok(())
    }

    async fn call(&self, opening: Opening, mut send: SendStream, mut recv: RecvStream) {
        let until = Instant::now() + patience(opening);
        let Some((body, permit)) = self.begin(opening, &self.calls, &mut send, &mut recv, until).await else { return };
        self.shared.counting.calls_served.add();
        let served = self.shared.service.call(self.peer, self.class, opening.method, body);
        let answer = match timeout_at(until + GRACE, served).await {
            Ok(Ok(body)) => self.fitting(opening.method, body),
            Ok(Err(fault)) => Answer::Fault(fault),
            Err(_) => {
                self.shared.counting.overdue.add();
                tracing::warn!(node = %self.peer.node, method = opening.method, "gave up a call: its time is over");
                send.reset(DEADLINE);
                return;
            }
        };
        drop(permit);
        self.answer(&mut send, answer).await;
    }

    async fn session(&self, opening: Opening, mut send: SendStream, mut recv: RecvStream) {
        let until = Instant::now() + patience(opening);
        let Some((header, _permit)) = self.begin(opening, &self.sessions, &mut send, &mut recv, until).await else {
            return;
        };
        if exchange::write_answer(&mut send, Answer::Done(Bytes::new())).await.is_err() {
            return; // The peer has given up already.
        }
        self.shared.counting.sessions_served.add();
        self.shared.service.session(self.peer, opening.method, header, send, recv).await;
    }

    /// The body, and a place to serve it in. `None`: refused or abandoned.
    async fn begin<'a>(
        &self,
        opening: Opening,
        places: &'a Semaphore,
        send: &mut SendStream,
        recv: &mut RecvStream,
        until: Instant,
    ) -> Option<(Bytes, SemaphorePermit<'a>)> {
        let size_bytes = usize::try_from(opening.body_bytes).ok()?;
        // Abandoned, lost, or too slow: nobody waits for an answer.
        let body = timeout_at(until, exchange::read_body(recv, size_bytes)).await.ok()?.ok()?;
        // Half of the patience that is left: a refusal that arrives in time tells the caller that nothing was done.
        let left = until.saturating_duration_since(Instant::now());
        match timeout(left / 2, places.acquire()).await {
            Ok(permit) => Some((body, permit.ok()?)),
            Err(_) => {
                self.shared.counting.busy.add();
                let text = format!("{} has as much running here as it may", self.peer.node);
                self.answer(send, Answer::Refused(Fault::new(fault::BUSY, text))).await;
                None
            }
        }
    }

    fn fitting(&self, method: u16, body: Bytes) -> Answer {
        let limit_bytes = methods::limit(method).bytes();
        if body.len() <= limit_bytes {
            return Answer::Done(body);
        }
        self.shared.counting.oversize.add();
        let size_bytes = body.len();
        let text = format!(
            "call {method} was executed, but its answer has {size_bytes} bytes, more than the {limit_bytes} it may have"
        );
        Answer::Fault(Fault::new(fault::ANSWER_TOO_LARGE, text))
    }

    async fn answer(&self, send: &mut SendStream, answer: Answer) {
        let written = timeout(ANSWER_MAX, exchange::write_answer(send, answer)).await;
        if matches!(written, Ok(Ok(()))) {
            // Refused only when the caller has stopped the stream, and then it does not want the answer.
            let _ = send.finish();
        }
    }
}

fn patience(opening: Opening) -> Duration {
    Duration::from_millis(opening.patience_ms.into()).min(limits::DEADLINE_MAX)
}
