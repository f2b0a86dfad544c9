//! What happened.

use serde::{Deserialize, Serialize};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Rises by one with each event.
    pub number: u64,
    /// When.
    pub at: u64,
    /// About which node.
    pub node: Option<String>,
    /// About which VM.
    pub vm: Option<String>,
    /// Part of which operation.
    pub operation: Option<String>,
    /// What happened, one sentence.
    pub text: String,
}

/// What happened after some event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsView {
    /// Where to go on: the number of the last event that was told, here or before.
    pub cursor: u64,
    /// Events after the one asked for that the cluster does not remember any more.
    pub missed: u64,
    /// Those it does, oldest first.
    pub events: Vec<EventView>,
}

impl EventsView {
    /// Of the events that are kept, those after number `after`; all of them when nobody says where to go on. Events are
    /// numbered without gaps, so what was dropped before the first of them is known although it is gone.
    #[must_use]
    pub fn after(kept: impl Iterator<Item = EventView>, after: Option<u64>) -> Self {
        let events: Vec<EventView> = kept.filter(|event| after.is_none_or(|after| event.number > after)).collect();
        let missed = after.zip(events.first()).map_or(0, |(after, first)| first.number - after - 1);
        let cursor = events.last().map_or(after.unwrap_or_default(), |event| event.number);
        Self { cursor, missed, events }
    }
}
