//! What happens in the cluster, as it happens: `pollux cluster events --follow`.

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

/// The events of one operation. Dropping it stops listening.
#[derive(Debug)]
pub struct Events {
    operation: String,
    child: Child,
    told: Receiver<Event>,
}

impl Events {
    pub(crate) fn follow(operation: &str, mut command: Command) -> Self {
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
        Self { operation: operation.to_owned(), child, told }
    }

    /// Waits until an event of the operation says this, also if it was before. `false`: it did not within `limit`.
    #[must_use]
    pub fn hears(&self, what: &str, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            match self.told.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(event) if event.operation.as_ref() == Some(&self.operation) && event.text.contains(what) => {
                    return true;
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
