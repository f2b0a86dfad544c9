//! What a move puts on the wire, as the kernel counts it at the source's end of the cable between the nodes.
//!
//! The guests' and clients' network has cables of its own, so neither probes nor answers are counted. What passes there
//! besides the move is what the nodes say to each other (a few KB/s), whoever moves. The counters are also sampled, to tell how
//! long the move kept the wire busy.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use pollux_lab::Host;

/// The cable between the nodes.
const CABLE: &str = "cluster0";
/// Between two samples.
const SAMPLE: Duration = Duration::from_millis(2);
/// Copying has begun when so much was sent; what comes before it (greetings, the operation's entry in the log) is far less.
const BEGUN_BYTES: u64 = 1 << 20;
/// It is over when no more than this is still to come; what comes after it (the log again) is less. Packed device state, which
/// belongs to the move, is more.
const AFTER_BYTES: u64 = 16 << 10;

/// Samples under way.
#[derive(Debug)]
pub(crate) struct Wire {
    stop: Arc<AtomicBool>,
    sampling: JoinHandle<Result<Vec<Sample>>>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    sent: u64,
    received: u64,
}

/// What a move cost the wire.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traffic {
    /// Both directions, as the kernel counts them: whole frames, where one frame may be as large as 64 KiB.
    pub(crate) bytes: u64,
    /// From the first MiB to the last byte.
    pub(crate) busy: Duration,
}

impl Wire {
    /// Starts to look at the source's cable.
    pub(crate) fn watch(source: &Host) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (source, until) = (source.clone(), Arc::clone(&stop));
        let sampling = thread::spawn(move || source.within(|| sample(&until))?);
        Self { stop, sampling }
    }

    /// Ends it.
    pub(crate) fn end(self) -> Result<Traffic> {
        self.stop.store(true, Ordering::Relaxed);
        let samples = self.sampling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        traffic(&samples).context("nothing was copied")
    }
}

fn sample(stop: &AtomicBool) -> Result<Vec<Sample>> {
    let mut samples = vec![read()?];
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(SAMPLE);
        samples.push(read()?);
    }
    Ok(samples)
}

fn read() -> Result<Sample> {
    // This thread's own namespace, which is not that of the process.
    let text = fs::read_to_string("/proc/thread-self/net/dev").context("the interface counters cannot be read")?;
    let (received, sent) = counters(&text).with_context(|| format!("there is no interface {CABLE}"))?;
    Ok(Sample { at: Instant::now(), sent, received })
}

/// Bytes received and sent.
fn counters(text: &str) -> Option<(u64, u64)> {
    let fields = text.lines().find_map(|line| line.trim_start().strip_prefix(CABLE)?.strip_prefix(':'))?;
    let mut fields = fields.split_ascii_whitespace();
    Some((fields.next()?.parse().ok()?, fields.nth(7)?.parse().ok()?))
}

fn traffic(samples: &[Sample]) -> Option<Traffic> {
    let (first, last) = (samples.first()?, samples.last()?);
    let sent = last.sent - first.sent;
    let at = |bytes: u64| samples.iter().find(|sample| sample.sent - first.sent >= bytes).map(|sample| sample.at);
    let (begin, end) = (at(BEGUN_BYTES)?, at(sent - AFTER_BYTES)?);
    Some(Traffic { bytes: sent + last.received - first.received, busy: end.saturating_duration_since(begin) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_counters_are_found_in_their_columns() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes ...\n\
                    lo:  1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n  cluster0: 111 2 3 4 5 6 7 8 999 10 11 12 13 14 15 16\n";
        assert_eq!(counters(text), Some((111, 999)));
        assert_eq!(counters("cluster1: 1 2 3 4 5 6 7 8 9"), None);
    }

    #[test]
    fn busy_is_the_wire_from_the_first_mib_to_the_last_byte() {
        let start = Instant::now();
        let sample = |ms, sent| Sample { at: start + Duration::from_millis(ms), sent, received: 5 + sent / 100 };
        let mib = 1 << 20;
        let samples = [
            sample(0, 1000),
            sample(100, 9000),
            sample(110, 1000 + mib),
            sample(400, 80 * mib),
            sample(410, 90 * mib),
            sample(900, 90 * mib + 10_000),
        ];
        let traffic = traffic(&samples).unwrap();
        assert_eq!(traffic.busy, Duration::from_millis(300));
        assert_eq!(traffic.bytes, 90 * mib + 9_000 + (90 * mib + 10_000) / 100 - 10);
    }

    #[test]
    fn a_wire_on_which_nothing_was_copied_tells_nothing() {
        let at = Instant::now();
        assert!(traffic(&[Sample { at, sent: 7, received: 7 }; 3]).is_none());
    }
}
