//! How a benchmark ends: by itself, or because a user or the machine wants it to.

use tokio::signal::unix::{SignalKind, signal};

/// Exit code after a signal, as a shell would tell it of SIGINT.
pub const INTERRUPTED: u8 = 130;

/// What comes of `work`; `None`: SIGINT, SIGTERM or SIGHUP came first.
pub async fn unless_interrupted<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        outcome = work => Some(outcome),
        () = interrupted() => None,
    }
}

async fn interrupted() {
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => drop(signal.recv().await),
            // Then it ends this process as it always would.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::hangup()) => {}
    }
}

#[cfg(test)]
mod tests {
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::*;

    #[tokio::test]
    async fn what_ends_by_itself_was_not_interrupted() {
        assert_eq!(unless_interrupted(async { 7 }).await, Some(7));
    }

    #[tokio::test]
    async fn each_signal_ends_it() {
        for wanted in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            // Sent once the other waits.
            let sends = async { kill(Pid::this(), wanted).unwrap() };
            let (outcome, ()) = tokio::join!(unless_interrupted(std::future::pending::<()>()), sends);
            assert_eq!(outcome, None, "{wanted}");
        }
    }
}
