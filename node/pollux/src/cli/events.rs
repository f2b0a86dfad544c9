//! `pollux events`: what happened, and what happens from now on, each event once and in order.
//!
//! Events are numbered without gaps, and the number of the last one told is the cursor: whoever goes on after it misses nothing
//! and sees nothing twice, at whatever node. The cluster remembers the last 1024; what it dropped before it could be told is
//! told as a gap, never passed over.

use std::time::Duration;

use clap::Args;
use pollux_api::{ErrorKind, EventView, EventsView};

use super::{
    Context,
    exit::Failure,
    output::{Format, moment, note, show, streamed, until_interrupted, write},
};

pub(crate) const EXAMPLES: &str = "\
Examples:
  pollux events --follow
  pollux events --follow --after 1234 -o json      # goes on after event 1234, one JSON object a line

The number before each event is the cursor. Events that the cluster does not remember any more (it keeps the last 1024) are told
as a gap: a line that begins with `--`, or an object {\"gap\": {\"after\", \"first\", \"missed\"}}.";

/// One wait for news, in milliseconds.
const WAIT_MS: u64 = 10_000;
/// Between two questions that nobody could answer, in milliseconds.
const RETRY_MS: u64 = 500;

/// Which events.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Go on with what happens from now on, until Ctrl-C.
    #[arg(long, short)]
    follow: bool,
    /// Only what came after the event of this number: where an earlier run ended.
    #[arg(long, value_name = "CURSOR")]
    after: Option<u64>,
}

pub(crate) async fn run(context: &Context, verb: &Events) -> Result<(), Failure> {
    let first = context.client.events(verb.after, Duration::ZERO).await?;
    if !verb.follow {
        return show(context.format, &first, |found| told(Format::Table, found, verb.after).unwrap_or_default());
    }
    let mut cursor = first.cursor;
    let ended = until_interrupted(go_on(context, first, verb.after, &mut cursor)).await;
    note(&format!("to go on from here: pollux events --follow --after {cursor}"));
    ended
}

/// Tells what is found, and waits for more, until nobody reads it any more. `cursor` is what was told last.
async fn go_on(
    context: &Context,
    mut found: EventsView,
    mut after: Option<u64>,
    cursor: &mut u64,
) -> Result<(), Failure> {
    let mut unseen = false;
    loop {
        if !write(told(context.format, &found, after)?.as_bytes())? {
            return Ok(());
        }
        *cursor = found.cursor;
        after = Some(found.cursor);
        found = loop {
            match context.client.events(after, Duration::from_millis(WAIT_MS)).await {
                Ok(found) => break found,
                Err(error) if error.kind == ErrorKind::Unavailable => {
                    if !std::mem::replace(&mut unseen, true) {
                        note(&format!("pollux: {error}; trying again until Ctrl-C"));
                    }
                    tokio::time::sleep(Duration::from_millis(RETRY_MS)).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        unseen = false;
    }
}

/// Events one after the other, as there is no end to put a bracket at, and before them what is missing.
fn told(format: Format, found: &EventsView, after: Option<u64>) -> Result<String, Failure> {
    let mut text = String::new();
    if let (Some(after), Some(first), 1..) = (after, found.events.first().map(|event| event.number), found.missed) {
        let gap = serde_json::json!({ "gap": { "after": after, "first": first, "missed": found.missed } });
        text += &streamed(format, &gap, |_| {
            format!("-- events {} to {} are not remembered any more: {} missed\n", after + 1, first - 1, found.missed)
        })?;
    }
    for event in &found.events {
        text += &streamed(format, event, line)?;
    }
    Ok(text)
}

fn line(event: &EventView) -> String {
    format!("{:>6}  {}  {}\n", event.number, moment(event.at), event.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64) -> EventView {
        let text = format!("VM web starts on n{number}");
        EventView { number, at: 1_700_000_000_000, node: None, vm: Some("web".into()), operation: None, text }
    }

    /// A cluster that remembers events 8 to 10.
    fn remembered(after: Option<u64>) -> EventsView {
        EventsView::after((8..=10).map(event), after)
    }

    #[test]
    fn a_reader_goes_on_where_it_was_and_is_told_what_it_missed() {
        for (after, missed, cursor, count) in [
            (None, 0, 10, 3),
            (Some(0), 7, 10, 3),
            (Some(6), 1, 10, 3),
            (Some(7), 0, 10, 3),
            (Some(9), 0, 10, 1),
            (Some(10), 0, 10, 0),
            (Some(11), 0, 11, 0),
        ] {
            let found = remembered(after);
            assert_eq!((found.missed, found.cursor, found.events.len()), (missed, cursor, count), "after {after:?}");
        }
        let nothing = EventsView::after(std::iter::empty(), None);
        assert_eq!((nothing.missed, nothing.cursor), (0, 0));
    }

    #[test]
    fn a_gap_is_a_line_of_its_own_in_every_format() {
        let found = remembered(Some(5));
        let text = told(Format::Table, &found, Some(5)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "-- events 6 to 7 are not remembered any more: 2 missed");
        assert_eq!((lines[1], lines.len()), ("     8  2023-11-14T22:13:20Z  VM web starts on n8", 4));
        let json = told(Format::Json, &found, Some(5)).unwrap();
        let lines: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0], serde_json::json!({ "gap": { "after": 5, "first": 8, "missed": 2 } }));
        assert_eq!(lines[1..].iter().map(|line| line["number"].as_u64().unwrap()).collect::<Vec<_>>(), [8, 9, 10]);
        assert!(told(Format::Yaml, &found, Some(5)).unwrap().starts_with("---\ngap:\n"));
        assert!(!told(Format::Table, &remembered(Some(7)), Some(7)).unwrap().contains("--"), "nothing is missing");
    }
}
