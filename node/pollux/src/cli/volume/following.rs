//! Following work on a volume that one daemon does and remembers: a transfer, a comparison. A bar on a terminal, one line per phase
//! elsewhere.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pollux_api::ApiError;

use super::super::{
    exit::Failure,
    looking::{Patience, news, until},
    output::note,
};
use crate::api::client::{Client, Tagged};

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
    let (begun, mut phase, mut seen) = (first.clone(), String::new(), None);
    let look = async |wait| {
        let tagged = begun.look(client, seen.as_ref(), wait).await;
        tagged.map(|tagged| news(&mut seen, tagged))
    };
    let judge = |now: &W| {
        match &bar {
            Some(bar) => {
                let (done, all) = now.done();
                bar.set_length(all);
                bar.set_position(done);
                bar.set_message(now.line());
            }
            None if now.phase() != phase && !now.is_over() => note(&now.line()),
            None => {}
        }
        now.phase().clone_into(&mut phase);
        now.is_over().then(|| now.clone())
    };
    let end = until(first, Patience::Unlimited, look, judge).await;
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    end.map_err(|unseen| {
        let (last, error) = unseen.lost();
        last.lost(&error)
    })
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("[{bar:24}] {wide_msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
