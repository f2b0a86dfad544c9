//! Looking at something again and again until it is what somebody waits for: an operation, a VM, a volume, work on one. Level-triggered:
//! each look is at what is, and a lost one costs nothing. What is waited for does not depend on anybody looking.

use std::time::Duration;

use pollux_api::{ApiError, ErrorKind};
use tokio::time::{self, Instant};

use super::exit::Failure;
use crate::api::client::Tagged;

/// One wait for news.
const WAIT: Duration = Duration::from_millis(10_000);
/// While nobody can answer (a daemon that starts again, an election), how long to go on asking where there is no other limit.
const BLIND_MAX: Duration = Duration::from_millis(30_000);
/// Between two questions that nobody answered.
const RETRY: Duration = Duration::from_millis(500);

/// For how long to look.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// Until it is over, as long as somebody answers.
    Unlimited,
    /// Until then. That nobody answers is no reason to give up before.
    Until(Instant),
}

/// Why there was no end to be seen.
#[derive(Debug)]
pub(crate) enum Unseen<V> {
    /// The time was over, and this was seen last.
    Late(V),
    /// Nobody can say how it is: what was seen last, and why.
    Lost(V, ApiError),
}

impl<V> Unseen<V> {
    /// What was seen last, and why no more: where there is no limit, nobody can say.
    pub(crate) fn lost(self) -> (V, ApiError) {
        match self {
            Self::Lost(last, error) => (last, error),
            Self::Late(last) => (last, ApiError::unavailable("nobody has looked any more")),
        }
    }
}

/// Looks until `judge` sees an end. `look` answers when there is news, or the time that it is given is over.
pub(crate) async fn until<V, T>(
    first: V,
    patience: Patience,
    mut look: impl AsyncFnMut(Duration) -> Result<V, ApiError>,
    mut judge: impl FnMut(&V) -> Option<T>,
) -> Result<T, Unseen<V>> {
    let (mut now, mut heard) = (first, Instant::now());
    loop {
        if let Some(end) = judge(&now) {
            return Ok(end);
        }
        let left = match patience {
            Patience::Unlimited => WAIT,
            Patience::Until(end) => end.saturating_duration_since(Instant::now()).min(WAIT),
        };
        if left.is_zero() {
            return Err(Unseen::Late(now));
        }
        let waits = match patience {
            Patience::Unlimited => heard.elapsed() < BLIND_MAX,
            Patience::Until(_) => true,
        };
        match look(left).await {
            Ok(seen) => (now, heard) = (seen, Instant::now()),
            // Whatever this error says of itself: what was asked for was accepted.
            Err(error) if error.kind == ErrorKind::Unavailable && waits => time::sleep(left.min(RETRY)).await,
            Err(error) => return Err(Unseen::Lost(now, error)),
        }
    }
}

/// What a look has seen; the next one waits for something else than that.
pub(crate) fn news<V: Clone>(seen: &mut Option<Tagged<V>>, tagged: Tagged<V>) -> V {
    let view = tagged.view.clone();
    *seen = Some(tagged);
    view
}

/// Leaves it alone when somebody presses Ctrl-C, and says so.
pub(crate) async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, Failure>>,
    interrupted: impl FnOnce() -> Failure,
) -> Result<T, Failure> {
    tokio::select! {
        end = work => end,
        _ = tokio::signal::ctrl_c() => Err(interrupted()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers one after the other; then always the last.
    fn answers(told: &'static [Result<u32, ErrorKind>]) -> impl AsyncFnMut(Duration) -> Result<u32, ApiError> {
        let mut next = 0;
        async move |_: Duration| {
            let at = next.min(told.len() - 1);
            next += 1;
            told[at].map_err(|kind| {
                let leaderless = kind == ErrorKind::Unavailable;
                if leaderless { ApiError::unavailable("no leader") } else { ApiError::not_found("gone") }
            })
        }
    }

    fn seven(seen: &u32) -> Option<u32> {
        (*seen == 7).then_some(*seen)
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_for_a_while_is_asked_again_and_not_for_ever() {
        let told = &[Ok(1), Err(ErrorKind::Unavailable), Err(ErrorKind::Unavailable), Ok(7)];
        assert!(matches!(until(0, Patience::Unlimited, answers(told), seven).await, Ok(7)));

        let (silent, since) = (&[Ok(1), Err(ErrorKind::Unavailable)], Instant::now());
        let lost = until(0, Patience::Unlimited, answers(silent), seven).await;
        assert!(matches!(lost, Err(Unseen::Lost(1, _))), "{lost:?}");
        assert!((BLIND_MAX..BLIND_MAX + 2 * RETRY).contains(&since.elapsed()), "{:?}", since.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn with_a_limit_it_is_looked_until_then_whoever_answers() {
        let (silent, since) = (&[Ok(1), Err(ErrorKind::Unavailable)], Instant::now());
        let patience = Patience::Until(since + 2 * BLIND_MAX);
        let late = until(0, patience, answers(silent), seven).await;
        assert!(matches!(late, Err(Unseen::Late(1))), "{late:?}");
        assert!((2 * BLIND_MAX..3 * BLIND_MAX).contains(&since.elapsed()), "{:?}", since.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_so_at_first_need_not_be_asked_for() {
        let never = answers(&[Err(ErrorKind::NotFound)]);
        assert!(matches!(until(7, Patience::Until(Instant::now()), never, seven).await, Ok(7)));
        let lost = until(1, Patience::Unlimited, answers(&[Err(ErrorKind::NotFound)]), seven).await;
        assert!(matches!(lost, Err(Unseen::Lost(1, _))), "another answer is one: {lost:?}");
    }
}
