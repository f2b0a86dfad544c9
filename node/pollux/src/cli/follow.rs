//! Following an operation to its end: live progress on a terminal, one line per phase elsewhere.
//!
//! [`Advance`] is what is shown and never goes backwards, although what it is fed may: a new round has more pages left than the
//! end of the one before, another node may answer with an older view. The operation itself does not depend on anybody following.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pollux_api::{OperationKind, OperationResult, OperationView, PauseView, ProgressView};

use crate::api::client::Client;

use super::{
    exit::{Exit, Failure},
    looking::{Patience, news, unless_interrupted, until},
    output::{Format, bytes, note, show, span},
};

/// Bytes of a guest page.
const PAGE_BYTES: u64 = 4096;
/// The bar's length: thousandths of what is to be sent.
const BAR_LENGTH: u64 = 1000;
/// What moves take their steps by, in order; [`ProgressView::phase`] is one of them.
const PHASES: [&str; 7] = ["mirroring", "comparing", "queued", "preparing", "copying", "switching", "arriving"];
/// Those of [`PHASES`] that are about volumes; the rest is about memory.
const OF_VOLUMES: usize = 2;

/// How far an operation is, as shown.
#[derive(Debug, Clone, Default, PartialEq)]
struct Advance {
    /// Which of [`PHASES`]; `None`: nothing was heard yet.
    phase: Option<usize>,
    round: u32,
    sent_bytes: u64,
    wire_bytes: u64,
    thousandths: u64,
}

impl Advance {
    /// Take news in. Says whether a phase began that was not shown before.
    fn take(&mut self, news: &ProgressView) -> bool {
        let phase = PHASES.iter().position(|&phase| phase == news.phase).or(self.phase);
        let entered = phase > self.phase;
        if self.is_of_volumes() && phase >= Some(OF_VOLUMES) {
            *self = Self::default();
        }
        self.phase = self.phase.max(phase);
        self.round = self.round.max(news.round);
        self.sent_bytes = self.sent_bytes.max(news.sent_bytes);
        self.wire_bytes = self.wire_bytes.max(news.wire_bytes);
        let all = news.sent_bytes.saturating_add(news.pages_left.saturating_mul(PAGE_BYTES));
        if all > 0 {
            let done = u128::from(news.sent_bytes) * u128::from(BAR_LENGTH) / u128::from(all);
            // The bar is full when the operation says that it ended, not before.
            self.thousandths = self.thousandths.max(u64::try_from(done).unwrap_or(BAR_LENGTH).min(BAR_LENGTH - 1));
        }
        entered
    }

    fn is_of_volumes(&self) -> bool {
        self.phase.is_some_and(|phase| phase < OF_VOLUMES)
    }

    fn word(&self) -> &'static str {
        self.phase.map_or("preparing", |phase| PHASES[phase])
    }

    /// What stands beside the bar.
    fn text(&self, news: &ProgressView) -> String {
        let mut text = self.word().to_owned();
        if self.is_of_volumes() {
            let left = news.pages_left.saturating_mul(PAGE_BYTES);
            text.push_str(" volumes");
            if self.sent_bytes > 0 || left > 0 {
                text.push_str(&format!("  {} copied, {} left", bytes(self.sent_bytes), bytes(left)));
            }
            return text;
        }
        text.push_str(&format!("  round {}", self.round.max(1)));
        if self.sent_bytes > 0 {
            text.push_str(&format!("  {} sent", bytes(self.sent_bytes)));
        }
        if self.wire_bytes > 0 {
            text.push_str(&format!(" ({} on the wire)", bytes(self.wire_bytes)));
        }
        if news.mib_per_s > 0.0 {
            text.push_str(&format!("  {:.0} MiB/s", news.mib_per_s));
        }
        if news.dirty_pages_per_s > 0 {
            text.push_str(&format!("  dirty {}/s", bytes(news.dirty_pages_per_s.saturating_mul(PAGE_BYTES))));
        }
        if news.throttle_percent > 0 {
            text.push_str(&format!("  guest slowed by {} %", news.throttle_percent));
        }
        if let Some(blackout) = news.predicted_blackout_ms {
            text.push_str(&format!("  blackout ~{blackout} ms"));
        }
        if let Some(eta) = news.eta_s.filter(|eta| *eta > 0) {
            text.push_str(&format!("  about {} left", span(eta.saturating_mul(1000))));
        }
        text
    }
}

/// Where progress is shown.
enum Screen {
    Bar(ProgressBar),
    Lines,
}

impl Screen {
    fn open() -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines;
        }
        let bar = ProgressBar::with_draw_target(Some(BAR_LENGTH), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:24}] {wide_msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Self::Bar(bar)
    }

    fn begin(&self, operation: &OperationView) {
        let title = format!("{} {} -> {}", operation.vm, operation.from, operation.to);
        match self {
            Self::Bar(bar) => {
                bar.set_prefix(title);
                bar.set_message(operation.phase.clone());
            }
            Self::Lines => note(&format!("{title}: {}", first_word(operation))),
        }
    }

    fn news(&self, operation: &OperationView, advance: &Advance, entered: bool) {
        let Some(news) = &operation.progress else { return };
        match self {
            Self::Bar(bar) => {
                bar.set_message(advance.text(news));
                bar.set_position(advance.thousandths);
            }
            Self::Lines if entered => {
                note(&format!("{} {} -> {}: {}", operation.vm, operation.from, operation.to, advance.text(news)));
            }
            Self::Lines => {}
        }
    }

    fn close(&self) {
        match self {
            Self::Bar(bar) => bar.finish_and_clear(),
            Self::Lines => {}
        }
    }
}

/// What a move does before its source tells.
fn first_word(operation: &OperationView) -> &'static str {
    match operation.phase.as_str() {
        "mirroring" => "mirroring volumes to the target",
        "queued" => "queued: waits for other moves of its nodes",
        _ => "preparing",
    }
}

/// Follow operation `first` until it ends, and return how it ended. Ctrl-C leaves it alone and says how to look again.
pub(crate) async fn follow(client: &Client, first: OperationView) -> Result<OperationView, Failure> {
    let screen = Screen::open();
    screen.begin(&first);
    let id = first.id.clone();
    let end = unless_interrupted(until_ended(client, first, &screen), || {
        let todo = format!("`pollux op watch {0}` follows it, `pollux op cancel {0}` ends it", short(&id));
        Failure::new(Exit::Interrupted, format!("detached; operation {id} goes on")).todo(todo)
    });
    let end = end.await;
    screen.close();
    end
}

async fn until_ended(client: &Client, first: OperationView, screen: &Screen) -> Result<OperationView, Failure> {
    let (id, mut advance, mut seen) = (first.id.clone(), Advance::default(), None);
    let look = async |wait| {
        let tagged = client.operation_after(&id, seen.as_ref(), wait).await;
        tagged.map(|tagged| news(&mut seen, tagged))
    };
    let judge = |now: &OperationView| {
        let entered = now.progress.as_ref().is_some_and(|news| advance.take(news));
        screen.news(now, &advance, entered);
        now.result.is_some().then(|| now.clone())
    };
    until(first, Patience::Unlimited, look, judge).await.map_err(|unseen| {
        let (_, why) = unseen.lost();
        // Whatever the error says of itself: the operation was accepted.
        Failure::new(Exit::TimedOut, format!("lost sight of operation {id}, which goes on: {why}"))
            .todo(format!("`pollux op watch {}` looks again", short(&id)))
    })
}

/// The first digits of an operation's id, enough for people.
pub(crate) fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// Print how an operation ended, and turn an end that is not a success into the exit code for it.
pub(crate) fn conclude(format: Format, operation: &OperationView) -> Result<(), Failure> {
    show(format, &summary(operation), |_| match operation.result {
        Some(OperationResult::Succeeded) => success(operation).unwrap_or_default(),
        Some(OperationResult::Failed | OperationResult::Cancelled) | None => String::new(),
    })?;
    let subject = format!("moving {} from {} to {}", operation.vm, operation.from, operation.to);
    match operation.result {
        Some(OperationResult::Succeeded) | None => Ok(()),
        Some(OperationResult::Failed) => {
            let why = operation.reason.as_deref().unwrap_or("no reason was given");
            Err(Failure::new(Exit::Failed, format!("{subject} failed: {why}")))
        }
        Some(OperationResult::Cancelled) => Err(Failure::new(Exit::Cancelled, format!("{subject} was cancelled"))),
    }
}

/// The value that a verb which follows an operation ends with.
pub(crate) fn summary(operation: &OperationView) -> serde_json::Value {
    let mut value = serde_json::json!({ "operation": operation.id, "result": operation.result });
    if let Some(reason) = &operation.reason {
        value["reason"] = reason.as_str().into();
    }
    if let Some(report) = &operation.report {
        value["report"] = serde_json::json!(report);
    }
    value
}

fn success(operation: &OperationView) -> Option<String> {
    if operation.kind == OperationKind::MoveVolume {
        let OperationView { vm: volume, from, to, .. } = operation;
        return Some(format!("volume {volume} is in {to}, and not in {from} any more\n"));
    }
    let Some(report) = operation.report.as_ref() else {
        let OperationView { vm, from, to, .. } = operation;
        return Some(format!("{vm} is at home on {to} now, stopped as it was on {from}\n"));
    };
    let slowed = match report.throttle_percent {
        0 => String::new(),
        percent => format!("; the guest was slowed down by up to {percent} % and has its speed back"),
    };
    Some(format!(
        "{} runs on {}: stood still for {} ms ({}); {} round{} and {} on the wire in {}{slowed}\n",
        operation.vm,
        operation.to,
        report.pause_ms,
        parts(&report.parts),
        report.rounds,
        if report.rounds == 1 { "" } else { "s" },
        bytes(report.wire_bytes),
        span(report.total_ms),
    ))
}

/// What a pause was made of. What happens at the same time stands together.
pub(crate) fn parts(parts: &PauseView) -> String {
    let ms = |us: u32| format!("{}.{}", us / 1000, us % 1000 / 100);
    format!(
        "stop {}, last pages {} | state {}, commit {} | load {}, continue {} ms",
        ms(parts.stop_us),
        ms(parts.pages_us),
        ms(parts.save_us),
        ms(parts.commit_us),
        ms(parts.load_us),
        ms(parts.resume_us)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(phase: &str, round: u32, sent_bytes: u64, pages_left: u64) -> ProgressView {
        ProgressView { phase: phase.into(), round, sent_bytes, pages_left, ..ProgressView::default() }
    }

    #[test]
    fn progress_never_goes_backwards() {
        let mut shown = Advance::default();
        assert!(shown.take(&news("copying", 1, 900 * PAGE_BYTES, 100)), "a phase begins");
        assert_eq!((shown.word(), shown.thousandths), ("copying", 900));

        assert!(!shown.take(&news("copying", 2, 950 * PAGE_BYTES, 950)), "the next round has much to do again");
        assert_eq!((shown.round, shown.thousandths), (2, 900));

        assert!(!shown.take(&news("preparing", 1, 10, 5)), "another node answers with an old view");
        assert_eq!((shown.word(), shown.round, shown.sent_bytes), ("copying", 2, 950 * PAGE_BYTES));

        assert!(!shown.take(&news("tidying", 3, 950 * PAGE_BYTES, 0)), "a newer daemon's word is not a step back");
        assert_eq!((shown.word(), shown.thousandths), ("copying", BAR_LENGTH - 1), "full only when it has ended");
    }

    #[test]
    fn volumes_come_first_and_are_not_counted_as_memory() {
        let mut shown = Advance::default();
        let first = news("mirroring", 0, 0, 1000);
        assert!(shown.take(&first), "a phase begins");
        assert_eq!(shown.text(&first), "mirroring volumes  0 B copied, 3.9 MiB left");
        assert!(!shown.take(&news("mirroring", 0, 900 * PAGE_BYTES, 100)));
        assert_eq!(shown.thousandths, 900);
        assert!(shown.take(&news("comparing", 0, 1000 * PAGE_BYTES, 0)));
        assert!(shown.take(&news("copying", 1, 10 * PAGE_BYTES, 90)));
        assert_eq!((shown.sent_bytes, shown.thousandths), (10 * PAGE_BYTES, 100), "memory begins at its beginning");
        assert!(!shown.take(&news("mirroring", 0, 900 * PAGE_BYTES, 100)), "an old view");
        assert_eq!(shown.word(), "copying");
    }

    #[test]
    fn the_line_beside_the_bar_says_what_matters() {
        let mut shown = Advance::default();
        let mut news = news("copying", 2, 300 << 20, 4000);
        news.wire_bytes = 80 << 20;
        news.mib_per_s = 412.4;
        news.dirty_pages_per_s = 2560;
        news.predicted_blackout_ms = Some(38);
        news.eta_s = Some(3);
        shown.take(&news);
        insta::assert_snapshot!(shown.text(&news), @"copying  round 2  300 MiB sent (80.0 MiB on the wire)  412 MiB/s  dirty 10.0 MiB/s  blackout ~38 ms  about 3s left");
    }
}
