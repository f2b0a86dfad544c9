//! QEMU's control protocol: one JSON object per line, over an inherited socket.
//!
//! Two tasks own the socket and end with it: one writes commands in order, with a descriptor where one belongs to them;
//! one reads replies, which go to whoever waits for that command, and events, which go into a bounded queue ([`events`]).
//! A reply that comes late is not an error of QEMU's: the command stays outstanding, and its reply is taken when it comes.

mod events;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

pub use events::Event;
pub(crate) use events::{EventQueue, MigrationRun};

/// Commands without a reply at any time.
const OUTSTANDING_MAX: usize = 64;

/// How long the greeting may take, and with it the initialisation of the machine.
const GREETING_DEADLINE: Duration = Duration::from_secs(60);

/// A command did not get its reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QmpError {
    /// Not yet: the command is still being carried out.
    #[error("QEMU has not answered `{command}` within {waited:?}; it may still carry it out")]
    Slow {
        /// The command.
        command: String,
        /// How long was waited.
        waited: Duration,
    },
    /// QEMU refused it.
    #[error("QEMU refused `{command}`: {description}")]
    Rejected {
        /// The command.
        command: String,
        /// QEMU's word for the kind of error.
        class: String,
        /// QEMU's reason.
        description: String,
    },
    /// The connection has ended; whether the command was carried out is not known.
    #[error("the connection to QEMU ended before it answered `{command}`: {reason}")]
    Closed {
        /// The command.
        command: String,
        /// Why it ended.
        reason: String,
    },
    /// Too many commands have no reply.
    #[error("`{command}` was not sent: {OUTSTANDING_MAX} commands have no answer yet")]
    Busy {
        /// The command.
        command: String,
    },
}

type Outcome = Result<Value, (String, String)>;

#[derive(Debug)]
struct Waiting {
    command: &'static str,
    reply: oneshot::Sender<Outcome>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<HashMap<u64, Waiting>>,
    events: EventQueue,
    late: AtomicU64,
}

struct Outgoing {
    line: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

/// A connection to a QEMU whose capabilities are negotiated.
#[derive(Debug)]
pub struct Qmp {
    shared: Arc<Shared>,
    outbox: mpsc::Sender<Outgoing>,
    closed: watch::Receiver<Option<String>>,
    next: AtomicU64,
}

/// A command on its way. Dropping it does not take the command back.
#[derive(Debug)]
pub struct Pending {
    command: &'static str,
    reply: oneshot::Receiver<Outcome>,
    closed: watch::Receiver<Option<String>>,
}

impl Pending {
    /// Waits for the reply. After [`QmpError::Slow`] it may be called again: the reply may still come. After any other
    /// result it must not.
    ///
    /// # Errors
    /// When there is no reply yet or ever, or QEMU refused.
    pub async fn wait(&mut self, deadline: Duration) -> Result<Value, QmpError> {
        let command = self.command.to_owned();
        match tokio::time::timeout(deadline, &mut self.reply).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err((class, description)))) => Err(QmpError::Rejected { command, class, description }),
            Ok(Err(_)) => Err(closed(command, &self.closed)),
            Err(_) => Err(QmpError::Slow { command, waited: deadline }),
        }
    }
}

fn closed(command: String, reason: &watch::Receiver<Option<String>>) -> QmpError {
    let reason = reason.borrow().clone().unwrap_or_else(|| "it was closed".to_owned());
    QmpError::Closed { command, reason }
}

impl Qmp {
    /// Waits for the greeting and negotiates; from then on the machine is initialised and answers.
    ///
    /// # Errors
    /// When QEMU does not greet, exits, or refuses.
    pub async fn connect(socket: UnixStream, tasks: &TaskTracker) -> Result<Self, QmpError> {
        const GREETING: &str = "the greeting";
        let broken =
            |error: std::io::Error| QmpError::Closed { command: GREETING.to_owned(), reason: error.to_string() };
        socket.set_nonblocking(true).map_err(broken)?;
        let socket = Arc::new(tokio::net::UnixStream::from_std(socket).map_err(broken)?);
        let (outbox, outgoing) = mpsc::channel(OUTSTANDING_MAX);
        let (closing, closed_why) = watch::channel(None);
        let (greeted, greeting) = oneshot::channel();
        let shared =
            Arc::new(Shared { waiting: Mutex::default(), events: EventQueue::default(), late: AtomicU64::new(0) });

        let reader = wire::Reader::new(Arc::clone(&socket));
        tasks.spawn(read(reader, Arc::clone(&shared), greeted, closing));
        tasks.spawn(write(socket, outgoing, closed_why.clone()));
        let qmp = Self { shared, outbox, closed: closed_why, next: AtomicU64::new(1) };
        match tokio::time::timeout(GREETING_DEADLINE, greeting).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(closed(GREETING.to_owned(), &qmp.closed)),
            Err(_) => return Err(QmpError::Slow { command: GREETING.to_owned(), waited: GREETING_DEADLINE }),
        }
        qmp.execute("qmp_capabilities", json!({}), GREETING_DEADLINE).await?;
        Ok(qmp)
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    /// See [`QmpError`]; after [`QmpError::Slow`] it may still be carried out.
    pub async fn execute(
        &self,
        command: &'static str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        self.begin(command, arguments, None)?.wait(deadline).await
    }

    /// Sends a command, with a descriptor if it takes one, and returns without waiting. Commands are carried out in the
    /// order of these calls.
    ///
    /// # Errors
    /// When the connection has ended or too many commands are outstanding.
    pub fn begin(
        &self,
        command: &'static str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
    ) -> Result<Pending, QmpError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string().into_bytes();
        line.push(b'\n');
        let (reply, receiver) = oneshot::channel();
        {
            // Entered and sent under one lock, so that the order is one and the reader finds the entry.
            let mut waiting = self.shared.waiting.lock().expect("no holder panics");
            if waiting.len() >= OUTSTANDING_MAX {
                return Err(QmpError::Busy { command: command.to_owned() });
            }
            match self.outbox.try_send(Outgoing { line, descriptor }) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(_)) => return Err(QmpError::Busy { command: command.to_owned() }),
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(closed(command.to_owned(), &self.closed)),
            }
            // The reader clears the table once when it ends; an entry made after that would wait for ever.
            if self.closed.borrow().is_none() {
                waiting.insert(id, Waiting { command, reply });
            }
        }
        Ok(Pending { command, reply: receiver, closed: self.closed.clone() })
    }

    /// The next event, or `None` when the connection has ended and all were taken. One consumer at a time: an event goes
    /// to one caller. Cancelling it loses nothing.
    pub async fn next_event(&self) -> Option<Event> {
        self.shared.events.next().await
    }

    /// Events that were left out because nobody took them in time; never one that tells the last state.
    #[must_use]
    pub fn events_dropped(&self) -> u64 {
        self.shared.events.dropped()
    }

    /// Replies that came after their caller had stopped waiting.
    #[must_use]
    pub fn late_replies(&self) -> u64 {
        self.shared.late.load(Ordering::Relaxed)
    }

    /// Why the connection ended, if it has.
    #[must_use]
    pub fn closed(&self) -> Option<String> {
        self.closed.borrow().clone()
    }

    /// Waits until the latest migration has ended, with the capability `events` on and after it was begun.
    ///
    /// # Errors
    /// QEMU's word for how it ended, if it did not complete.
    pub async fn migration_ended(&self) -> Result<(), String> {
        let mut migration = self.migration();
        let ended = migration.wait_for(|now| now.ended().is_some()).await.ok().and_then(|run| run.ended());
        ended.unwrap_or_else(|| Err("the connection ended".to_owned()))
    }

    pub(crate) fn migration(&self) -> watch::Receiver<MigrationRun> {
        self.shared.events.migration()
    }
}

/// Carries the outbox to the socket; ends when the [`Qmp`] is dropped or the reading task has ended.
async fn write(
    socket: Arc<tokio::net::UnixStream>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    mut closed: watch::Receiver<Option<String>>,
) {
    loop {
        let next = tokio::select! {
            next = outgoing.recv() => next,
            _ = closed.wait_for(Option::is_some) => None,
        };
        let Some(Outgoing { line, descriptor }) = next else { break };
        if let Err(error) = wire::send(&socket, &line, descriptor).await {
            tracing::debug!(%error, "QMP: cannot send a command");
            break;
        }
    }
    // QEMU sees the end of the connection, and the reading task ends, also when only one of the ends is ours.
    let _ = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both);
}

/// Carries replies and events from the socket; ends when it closes or QEMU says something that is not QMP.
async fn read(
    mut reader: wire::Reader,
    shared: Arc<Shared>,
    greeted: oneshot::Sender<()>,
    closing: watch::Sender<Option<String>>,
) {
    let mut greeted = Some(greeted);
    let reason = loop {
        let message = match reader.next().await {
            Ok(message) => message,
            Err(reason) => break reason,
        };
        match message {
            wire::Message::Greeting => {
                greeted.take().map(|greeted| greeted.send(()));
            }
            wire::Message::Event(event) => shared.events.push(event),
            wire::Message::Reply { id, outcome } => {
                let waiting = shared.waiting.lock().expect("no holder panics").remove(&id);
                let Some(Waiting { command, reply }) = waiting else {
                    break format!("QEMU answered command {id}, which was never sent");
                };
                if let Err(outcome) = reply.send(outcome) {
                    shared.late.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(command, ?outcome, "QMP: a late reply");
                }
            }
            wire::Message::Other(text) => tracing::debug!(text, "QMP: a message of an unknown kind"),
        }
    };
    tracing::debug!(reason, "QMP: the connection ended");
    {
        let mut waiting = shared.waiting.lock().expect("no holder panics");
        closing.send_replace(Some(reason));
        waiting.clear();
    }
    shared.events.close();
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub(crate) fn read_line(line: &[u8]) {
    let _ = wire::parse(line);
}
