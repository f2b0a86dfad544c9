//! What the pause of a move was made of, taken by the shell as it carries out effects and hears of events. For people: nothing
//! is decided by it.

use std::time::Duration;

use pollux_state::{Command, operation::PauseParts};
use pollux_vm::{Effect, Event};
use tokio::time::Instant;

/// One VM's, on one end of its move. Every mark is of the move under way: what begins anew overwrites it.
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    /// The guest was told to stand still.
    paused: Option<Instant>,
    /// Everything has arrived, after a pause of so many milliseconds at the source.
    received: Option<(Instant, u32)>,
    asked: Option<Instant>,
    loading: Option<Instant>,
    resuming: Option<Instant>,
    parts: PauseParts,
}

impl Stopwatch {
    /// An effect is about to be carried out.
    #[expect(clippy::wildcard_enum_match_arm, reason = "only what a pause is made of")]
    pub(super) fn begins(&mut self, effect: &Effect) {
        let now = Some(Instant::now());
        match effect {
            Effect::Load => self.loading = now,
            Effect::Propose { command: Command::Switchover { .. }, .. } => self.asked = now,
            Effect::CommitToRun { .. } => self.resuming = now,
            _ => {}
        }
    }

    /// The guest is paused from here on.
    pub(super) fn pauses(&mut self, at: Instant) {
        (self.paused, self.parts) = (Some(at), PauseParts::default());
    }

    /// An event is about to be applied. `switched`: as of it, the switchover is known to be committed.
    #[expect(clippy::wildcard_enum_match_arm, reason = "only what a pause is made of")]
    pub(super) fn happens(&mut self, event: &Event, switched: bool) {
        let stop = |since: &mut Option<Instant>, part: &mut u32| {
            if let Some(since) = since.take() {
                *part = micros(since.elapsed());
            }
        };
        if switched {
            stop(&mut self.asked, &mut self.parts.commit_us);
        }
        match event {
            Event::Paused => {
                if let Some(paused) = self.paused {
                    self.parts.stop_us = micros(paused.elapsed());
                }
            }
            Event::AllReceived { report, .. } => {
                self.received = Some((Instant::now(), report.pause_ms));
                self.parts = report.parts;
            }
            Event::Loaded => stop(&mut self.loading, &mut self.parts.load_us),
            Event::Resumed => stop(&mut self.resuming, &mut self.parts.resume_us),
            _ => {}
        }
    }

    /// When the pause was asked for at the source.
    pub(super) fn paused(&self) -> Instant {
        self.paused.unwrap_or_else(Instant::now)
    }

    /// What is known so far.
    pub(super) fn parts(&self) -> PauseParts {
        self.parts
    }

    /// Since when the guest is not heard of, if it came by a move.
    pub(super) fn silence(&self) -> Option<Silence> {
        self.received.map(|(received, before_ms)| Silence { received, before_ms })
    }
}

/// A guest was paused at the source and has not been heard of since.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    received: Instant,
    before_ms: u32,
}

impl Silence {
    /// How long it lasted, if the guest was heard at `heard`: in milliseconds.
    pub(super) fn until_ms(self, heard: Instant) -> u32 {
        let here_ms = heard.saturating_duration_since(self.received).as_millis();
        u32::try_from(here_ms).unwrap_or(u32::MAX).saturating_add(self.before_ms)
    }
}

/// In whole microseconds.
pub(super) fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use pollux_state::operation::MoveReport;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_part_is_from_its_effect_to_its_event() {
        let wait = |ms| tokio::time::sleep(Duration::from_millis(ms));
        let mut watch = Stopwatch::default();
        let parts = PauseParts { stop_us: 1_000, pages_us: 2_000, save_us: 3_000, ..PauseParts::default() };
        let report = MoveReport { pause_ms: 6, parts, ..MoveReport::default() };
        watch.happens(&Event::AllReceived { report, at: 0 }, false);
        watch.begins(&Effect::Load);
        wait(10).await;
        watch.happens(&Event::Loaded, false);
        watch.begins(&Effect::CommitToRun { op: pollux_state::id::OpId([1; 16]) });
        wait(3).await;
        watch.happens(&Event::Resumed, false);
        wait(100).await;

        assert_eq!(watch.parts(), PauseParts { load_us: 10_000, resume_us: 3_000, ..parts });
        assert_eq!(watch.silence().map(|silence| silence.until_ms(Instant::now())), Some(6 + 113));
    }
}
