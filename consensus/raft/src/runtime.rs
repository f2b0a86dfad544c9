//! The runtime openraft runs on: tokio, with randomness that a seed can fix.
//!
//! openraft draws one number per life of a node: its election timeout. In a simulation that number must follow from the
//! simulation's seed, so [`with_seed`] fixes it for everything polled inside.

use std::{future::Future, time::Duration};

use openraft::{AsyncRuntime, OptionalSend, TokioInstant, TokioRuntime};
use rand::{Error, RngCore, SeedableRng, rngs::StdRng, rngs::ThreadRng};

tokio::task_local! {
    static SEED: u64;
}

/// Runs `future`; numbers drawn inside follow from `seed`, if there is one.
pub(crate) async fn with_seed<F: Future>(seed: Option<u64>, future: F) -> F::Output {
    match seed {
        Some(seed) => SEED.scope(seed, future).await,
        None => future.await,
    }
}

/// Random numbers: the operating system's, or those that follow from a seed.
#[derive(Debug)]
pub(crate) enum Dice {
    Loaded(Box<StdRng>),
    Fair(ThreadRng),
}

impl RngCore for Dice {
    fn next_u32(&mut self) -> u32 {
        match self {
            Self::Loaded(rng) => rng.next_u32(),
            Self::Fair(rng) => rng.next_u32(),
        }
    }

    fn next_u64(&mut self) -> u64 {
        match self {
            Self::Loaded(rng) => rng.next_u64(),
            Self::Fair(rng) => rng.next_u64(),
        }
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        match self {
            Self::Loaded(rng) => rng.fill_bytes(dest),
            Self::Fair(rng) => rng.fill_bytes(dest),
        }
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        match self {
            Self::Loaded(rng) => rng.try_fill_bytes(dest),
            Self::Fair(rng) => rng.try_fill_bytes(dest),
        }
    }
}

/// tokio with [`Dice`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Runtime;

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Dice;
    type OneshotSender<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiverError = <TokioRuntime as AsyncRuntime>::OneshotReceiverError;
    type OneshotReceiver<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotReceiver<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        match SEED.try_with(|seed| *seed) {
            Ok(seed) => Dice::Loaded(Box::new(StdRng::seed_from_u64(seed))),
            Err(_) => Dice::Fair(rand::thread_rng()),
        }
    }

    fn oneshot<T: OptionalSend>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        TokioRuntime::oneshot()
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    #[tokio::test]
    async fn a_seed_fixes_the_numbers_and_only_inside() {
        let draw = || async { Runtime::thread_rng().gen_range(0..u64::MAX) };

        let first = with_seed(Some(7), draw()).await;
        let again = with_seed(Some(7), draw()).await;
        let other = with_seed(Some(8), draw()).await;
        let fair = with_seed(None, draw()).await;

        assert_eq!(first, again);
        assert_ne!(first, other);
        assert_ne!(first, fair);
    }
}
