//! Events on their way to the machine's owner: bounded, and the reader never waits.
//!
//! When the queue is full, what goes first is an event that tells nothing about the machine's state; when there is none,
//! the oldest that a later one of the same name supersedes. So the last STOP, RESUME, SHUTDOWN, RESET, GUEST_PANICKED and
//! BLOCK_IO_ERROR are never lost. MIGRATION does not pass through the queue: its latest status is watched.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::Value;
use tokio::sync::{Notify, watch};

/// Events that may wait.
const EVENTS_MAX: usize = 256;

/// Events that say what the machine does now.
const STATES: [&str; 6] = ["STOP", "RESUME", "SHUTDOWN", "RESET", "GUEST_PANICKED", "BLOCK_IO_ERROR"];

/// Something QEMU reported by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// QEMU's name of it.
    pub name: String,
    /// What it says; null when nothing.
    pub data: Value,
}

/// How far the latest migration got; `run` counts those that began.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct MigrationRun {
    pub(crate) run: u64,
    pub(crate) status: String,
}

impl MigrationRun {
    /// Its end: `Ok` when it completed, or the status it ended in.
    pub(crate) fn ended(&self) -> Option<Result<(), String>> {
        match self.status.as_str() {
            "completed" => Some(Ok(())),
            "failed" | "cancelled" | "cancelling" => Some(Err(self.status.clone())),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct EventQueue {
    queue: Mutex<(VecDeque<Event>, bool)>,
    arrived: Notify,
    dropped: AtomicU64,
    migration: watch::Sender<MigrationRun>,
}

impl Default for EventQueue {
    fn default() -> Self {
        let migration = watch::Sender::new(MigrationRun::default());
        Self { queue: Mutex::default(), arrived: Notify::new(), dropped: AtomicU64::new(0), migration }
    }
}

impl EventQueue {
    pub(crate) fn push(&self, event: Event) {
        if event.name == "MIGRATION" {
            let status = event.data["status"].as_str().unwrap_or_default().to_owned();
            self.migration.send_modify(|migration| {
                migration.run += u64::from(status == "setup");
                migration.status = status;
            });
            return;
        }
        let mut queue = self.queue.lock().expect("no holder panics");
        queue.0.push_back(event);
        if queue.0.len() > EVENTS_MAX {
            let victim = victim(&queue.0);
            queue.0.remove(victim);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        self.arrived.notify_one();
    }

    /// No more will come.
    pub(crate) fn close(&self) {
        self.queue.lock().expect("no holder panics").1 = true;
        self.arrived.notify_one();
    }

    pub(crate) async fn next(&self) -> Option<Event> {
        loop {
            {
                let mut queue = self.queue.lock().expect("no holder panics");
                match (queue.0.pop_front(), queue.1) {
                    (Some(event), _) => return Some(event),
                    (None, true) => {
                        // The one permit may be needed again by the next call.
                        self.arrived.notify_one();
                        return None;
                    }
                    (None, false) => {}
                }
            }
            self.arrived.notified().await;
        }
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn migration(&self) -> watch::Receiver<MigrationRun> {
        self.migration.subscribe()
    }
}

/// Which event a full queue loses.
fn victim(queue: &VecDeque<Event>) -> usize {
    let idle = queue.iter().position(|event| !STATES.contains(&event.name.as_str()));
    let superseded =
        || (0..queue.len()).find(|&at| queue.iter().skip(at + 1).any(|later| later.name == queue[at].name));
    idle.or_else(superseded).expect("more events than names of states")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str) -> Event {
        Event { name: name.to_owned(), data: Value::Null }
    }

    #[tokio::test]
    async fn a_flood_loses_no_last_state() {
        let queue = EventQueue::default();
        queue.push(event("SHUTDOWN"));
        for _ in 0..2000 {
            queue.push(event("STOP"));
            queue.push(event("RTC_CHANGE"));
            queue.push(event("RESUME"));
        }
        queue.push(event("GUEST_PANICKED"));
        queue.close();

        let mut names = Vec::new();
        while let Some(event) = queue.next().await {
            names.push(event.name);
        }
        assert_eq!(names.len(), EVENTS_MAX);
        assert_eq!(queue.dropped(), 6002 - EVENTS_MAX as u64);
        assert_eq!(names.first().unwrap(), "SHUTDOWN");
        assert_eq!(names[names.len() - 3..], ["STOP", "RESUME", "GUEST_PANICKED"]);
        assert_eq!(queue.next().await, None, "the end is seen by every later call");
    }

    #[test]
    fn a_migration_is_counted_when_it_begins() {
        let queue = EventQueue::default();
        let told = |status: &str| {
            queue.push(Event { name: "MIGRATION".to_owned(), data: serde_json::json!({ "status": status }) });
            queue.migration().borrow().clone()
        };
        assert_eq!(told("setup").ended(), None);
        assert_eq!((told("completed").run, told("completed").ended()), (1, Some(Ok(()))));
        assert_eq!((told("setup").run, told("failed").ended()), (2, Some(Err("failed".to_owned()))));
    }
}
