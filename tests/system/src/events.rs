//! What happens in the cluster, as it happens: `pollux events --follow`.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use crate::views::Event;

/// Events that may wait to be heard; the program waits then.
const EVENTS_MAX: usize = 1024;

/// Events as they are told, of one operation or all. Dropping it stops listening.
#[derive(Debug)]
pub struct Events {
    operation: Option<String>,
    child: Child,
    told: Receiver<Event>,
}

impl Events {
    pub(crate) fn follow(operation: Option<&str>, mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("`pollux` can be started");
        let stdout = child.stdout.take().expect("standard output is a pipe");
        let (tell, told) = sync_channel(EVENTS_MAX);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).expect("each line is one event");
                if tell.send(event).is_err() {
                    return;
                }
            }
        });
        Self { operation: operation.map(str::to_owned), child, told }
    }

    /// Waits for the next event. `None`: there was none within `limit`.
    #[must_use]
    pub fn next(&self, limit: Duration) -> Option<Event> {
        let end = Instant::now() + limit;
        loop {
            match self.told.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(event) if self.operation.is_none() || event.operation == self.operation => return Some(event),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Waits until an event says this, also if it was before. `false`: it did not within `limit`.
    #[must_use]
    pub fn hears(&self, what: &str, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let next = || self.next(end.saturating_duration_since(Instant::now()));
        std::iter::from_fn(next).any(|event| event.text.contains(what))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
