//! Following work on a volume that one daemon does and remembers: a transfer, a comparison. A bar on a terminal, one line per phase
//! elsewhere.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pollux_api::{ApiError, ErrorKind};
use tokio::time::{self, Instant};

use super::super::{exit::Failure, output::note};
use crate::api::client::{Client, Tagged};

/// One wait for news.
const WAIT: Duration = Duration::from_millis(5_000);
/// While nobody can answer, how long to go on asking, in milliseconds.
const BLIND_MS_MAX: u64 = 30_000;
/// Between two questions that nobody answered, in milliseconds.
const RETRY_MS: u64 = 500;

/// Such work, as it is seen.
pub(super) trait Work: Clone {
    /// Nothing more will be told of it.
    fn is_over(&self) -> bool;
    /// What it is doing, in a word.
    fn phase(&self) -> &str;
    /// How much of how much is done, in bytes.
    fn done(&self) -> (u64, u64);
    /// All of that in a line.
    fn line(&self) -> String;
    /// How it is once it has changed, or after a while.
    async fn look(
        &self,
        client: &Client,
        seen: Option<&Tagged<Self>>,
        wait: Duration,
    ) -> Result<Tagged<Self>, ApiError>;
    /// Nobody knows how it is any more.
    fn lost(&self, error: &ApiError) -> Failure;
}

/// Until it is over. A daemon that does not answer is asked again for a while.
pub(super) async fn until_over<W: Work>(client: &Client, first: W) -> Result<W, Failure> {
    let bar = std::io::stderr().is_terminal().then(bar);
    let (mut now, mut heard, mut phase) = (first, Instant::now(), String::new());
    let mut seen: Option<Tagged<W>> = None;
    while !now.is_over() {
        match &bar {
            Some(bar) => {
                let (done, all) = now.done();
                bar.set_length(all);
                bar.set_position(done);
                bar.set_message(now.line());
            }
            None if now.phase() != phase => note(&now.line()),
            None => {}
        }
        now.phase().clone_into(&mut phase);
        match now.look(client, seen.as_ref(), WAIT).await {
            Ok(tagged) => {
                heard = Instant::now();
                now = tagged.view.clone();
                seen = Some(tagged);
            }
            Err(error)
                if error.kind == ErrorKind::Unavailable && heard.elapsed() < Duration::from_millis(BLIND_MS_MAX) =>
            {
                time::sleep(Duration::from_millis(RETRY_MS)).await;
            }
            Err(error) => return Err(now.lost(&error)),
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(now)
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("[{bar:24}] {wide_msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
