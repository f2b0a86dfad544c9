//! Who emits: whether two copies of the guest ever sent frames at the same time.
//!
//! What a guest emits is what its node writes into the TAP, and the kernel counts that as *received* on the TAP. The
//! [`Sampler`] reads those counters of all nodes every millisecond or two, each in the node's own network namespace, and the
//! [`Judge`] says what the growth means.
//!
//! # The rule
//!
//! One node emits, and at a move another takes over. The old owner falls silent before the new one speaks, and an owner that was
//! replaced cannot be back within [`TENURE_MIN`], because no move is that fast. So two nodes are owners at the same time when one
//! that was just replaced emits again. Both growing in one and the same sample, in which their order cannot be seen, is a
//! handover as long as only the new one emits afterwards; such samples are counted as `undecided`. Two copies that emit at the same
//! time for longer than one sample do not escape this, and neither does one frame of a stale copy while the owner is busy.
//! `switches` tells how often the emitter changed: with a busy guest exactly once for every move.
//!
//! The rule takes it that there is one guest: all TAPs whose name begins with the prefix count as its own.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::{
    gaps::{Gaps, milliseconds},
    instrument::{Instrument, TOTAL},
};

/// Shortest time after which a replaced owner may be the owner again.
pub const TENURE_MIN: Duration = Duration::from_millis(200);
/// Most bytes read of one node's interface table.
const TABLE_BYTES_MAX: usize = 64 << 10;

/// What was seen in one window, or in all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OwnersReport {
    /// The window's name.
    pub window: String,
    /// Nodes that emitted at the same time, at most. 0 if nobody emitted.
    pub owners_max: usize,
    /// How often the emitting node changed.
    pub switches: u64,
    /// Handovers whose order cannot be seen, because both nodes emitted between two samples.
    pub undecided: u64,
    /// The nodes that emitted, sorted.
    pub emitters: BTreeSet<String>,
    /// Frames emitted by all nodes.
    pub frames: u64,
    /// Samples taken.
    pub samples: u64,
    /// Longest time between two samples, in milliseconds: the resolution at its worst.
    pub longest_sample_gap_ms: f64,
}

impl OwnersReport {
    fn add(&mut self, other: &Self) {
        self.owners_max = self.owners_max.max(other.owners_max);
        self.switches += other.switches;
        self.undecided += other.undecided;
        self.emitters.extend(other.emitters.iter().cloned());
        self.frames += other.frames;
        self.samples += other.samples;
        self.longest_sample_gap_ms = self.longest_sample_gap_ms.max(other.longest_sample_gap_ms);
    }
}

/// The rule, fed with samples. It has no clock and reads nothing.
#[derive(Debug)]
struct Judge {
    names: Vec<String>,
    owner: Option<usize>,
    /// When each node was last replaced as the owner.
    replaced: Vec<Option<Instant>>,
    samples: Gaps,
    window: OwnersReport,
    total: OwnersReport,
}

impl Judge {
    fn new(names: Vec<String>, start: Instant) -> Self {
        let replaced = vec![None; names.len()];
        let total = OwnersReport { window: TOTAL.to_owned(), ..OwnersReport::default() };
        Self { names, owner: None, replaced, samples: Gaps::new(start), window: OwnersReport::default(), total }
    }

    /// Takes in how many frames each node emitted since the sample before.
    fn sample(&mut self, now: Instant, frames: &[u64]) {
        self.samples.event(now);
        self.window.samples += 1;
        let emitting: Vec<usize> = (0..frames.len()).filter(|node| frames[*node] > 0).collect();
        if emitting.is_empty() {
            return;
        }
        self.window.frames += frames.iter().sum::<u64>();
        self.window.emitters.extend(emitting.iter().map(|node| self.names[*node].clone()));

        let others: Vec<usize> = emitting.iter().copied().filter(|node| Some(*node) != self.owner).collect();
        self.window.owners_max = self.window.owners_max.max(self.owners(now, emitting.len(), &others));

        let Some(new) = others.first().copied() else { return };
        if let Some(old) = self.owner.replace(new) {
            self.replaced[old] = Some(now);
            self.window.switches += 1;
            self.window.undecided += u64::from(emitting.contains(&old));
        }
    }

    /// How many owners it takes to explain a sample in which so many nodes emitted, these of them not the owner so far.
    fn owners(&self, now: Instant, emitting: usize, others: &[usize]) -> usize {
        let just_replaced = |node: &usize| {
            self.replaced[*node].is_some_and(|at: Instant| now.saturating_duration_since(at) < TENURE_MIN)
        };
        let back = others.iter().any(just_replaced);
        let beside_owner = emitting > others.len();
        match (beside_owner, back) {
            // The owner and, if anyone, the one that takes over from it.
            (true, false) => emitting.saturating_sub(1).max(1),
            (true, true) | (false, false) => emitting,
            // The owner of this moment did not emit in this sample, but it did within the tenure.
            (false, true) => emitting + 1,
        }
    }

    fn close_window(&mut self, name: &str, now: Instant) -> OwnersReport {
        let mut report = std::mem::take(&mut self.window);
        name.clone_into(&mut report.window);
        report.longest_sample_gap_ms = milliseconds(self.samples.close_window(now));
        self.total.add(&report);
        report
    }
}

/// One node's interface table, read in its own network namespace from any thread.
#[derive(Debug)]
struct Table {
    file: File,
    prefix: String,
    frames: Option<u64>,
}

impl Table {
    /// A thread enters the namespace and opens its own view of the table; the opened file stays with that namespace.
    fn open(netns: &Path, prefix: &str) -> io::Result<Self> {
        let namespace = File::open(netns)?;
        let opened = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/net/dev")
        });
        let file = opened.join().map_err(|_| io::Error::other("the thread that enters the namespace panicked"))??;
        Ok(Self { file, prefix: prefix.to_owned(), frames: None })
    }

    /// Frames emitted since the last call. A TAP that went away took its count with it: then nothing grew.
    fn grown(&mut self, buffer: &mut [u8]) -> io::Result<u64> {
        let mut length = 0;
        while length < buffer.len() {
            match self.file.read_at(&mut buffer[length..], length as u64)? {
                0 => break,
                more => length += more,
            }
        }
        let frames = received_frames(&String::from_utf8_lossy(&buffer[..length]), &self.prefix);
        // What was counted before the first sample was not emitted since.
        let before = self.frames.replace(frames).unwrap_or(frames);
        Ok(frames.saturating_sub(before))
    }
}

/// Adds up the received packets of all interfaces whose name begins with the prefix, in the format of `/proc/net/dev`.
fn received_frames(table: &str, prefix: &str) -> u64 {
    let taps =
        table.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim().starts_with(prefix));
    taps.filter_map(|(_, numbers)| numbers.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

/// A node to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The node's name, for the report.
    pub node: String,
    /// Its network namespace, as a path.
    pub netns: PathBuf,
}

/// The running instrument. Dropping it stops its thread, too.
#[derive(Debug)]
pub struct Sampler {
    judge: Arc<Mutex<Judge>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    /// Starts to read the counters of every node's TAPs with this prefix every `interval`. Needs the right to enter the
    /// namespaces.
    pub fn start(nodes: &[Watched], prefix: &str, interval: Duration) -> io::Result<Self> {
        let mut tables = Vec::with_capacity(nodes.len());
        for Watched { node, netns } in nodes {
            let table = Table::open(netns, prefix);
            tables.push(table.map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("cannot enter the namespace {} of {node}: {error}", netns.display()),
                )
            })?);
        }
        let names = nodes.iter().map(|watched| watched.node.clone()).collect();
        let judge = Arc::new(Mutex::new(Judge::new(names, Instant::now())));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (judge, stop) = (Arc::clone(&judge), Arc::clone(&stop));
            move || watch(tables, interval, &judge, &stop)
        });
        Ok(Self { judge, stop, thread: Some(thread) })
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has been told on standard error; what it saw until then is still the report.
            let _ = thread.join();
        }
    }
}

impl Instrument for Sampler {
    type Report = OwnersReport;

    fn mark(&self, name: &str) -> OwnersReport {
        lock(&self.judge).close_window(name, Instant::now())
    }

    fn finish(mut self) -> OwnersReport {
        self.stop();
        let mut judge = lock(&self.judge);
        judge.close_window("rest", Instant::now());
        judge.total.clone()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(judge: &Mutex<Judge>) -> MutexGuard<'_, Judge> {
    judge.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch(mut tables: Vec<Table>, interval: Duration, judge: &Mutex<Judge>, stop: &AtomicBool) {
    let mut buffer = vec![0; TABLE_BYTES_MAX];
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        // A table that can no longer be read is that of a node which is gone, and emits nothing.
        let frames: Vec<u64> = tables.iter_mut().map(|table| table.grown(&mut buffer).unwrap_or(0)).collect();
        lock(judge).sample(Instant::now(), &frames);
        due = (due + interval).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds one sample every 2 ms; a letter is a node that emits, a point is nobody, brackets hold one sample.
    fn judge(samples: &str) -> OwnersReport {
        let start = Instant::now();
        let mut judge = Judge::new(vec!["a".into(), "b".into(), "c".into()], start);
        let mut at = start;
        let mut inside = false;
        let mut frames = [0; 3];
        for letter in samples.chars() {
            match letter {
                '[' => inside = true,
                ']' => inside = false,
                'a' => frames[0] += 1,
                'b' => frames[1] += 1,
                'c' => frames[2] += 1,
                _ => {}
            }
            if !inside {
                at += Duration::from_millis(2);
                judge.sample(at, &std::mem::take(&mut frames));
            }
        }
        judge.close_window("w", at)
    }

    #[test]
    fn a_move_has_one_owner_at_any_time() {
        let report = judge("aaaa.aa....bbbb.bb");
        assert_eq!((report.owners_max, report.switches, report.undecided), (1, 1, 0));
        assert_eq!(report.emitters, BTreeSet::from(["a".to_owned(), "b".to_owned()]));
        assert_eq!(judge("....").owners_max, 0);
    }

    #[test]
    fn moves_there_and_back_with_time_between_have_one_owner() {
        let tenure = "b".repeat(150);
        let report = judge(&format!("aaa..{tenure}..aaa..{}ccc", "a".repeat(150)));
        assert_eq!((report.owners_max, report.switches), (1, 3));
    }

    #[test]
    fn a_handover_inside_one_sample_is_one_owner_but_undecided() {
        let report = judge("aaa[ab]bbb");
        assert_eq!((report.owners_max, report.switches, report.undecided), (1, 1, 1));
    }

    #[test]
    fn two_that_emit_alternately_or_together_are_two_owners() {
        assert_eq!(judge("aaababab").owners_max, 2);
        assert_eq!(judge("aaa[ab][ab]bb").owners_max, 2);
        assert_eq!(judge("aaa[ab]b...abbb").owners_max, 2);
    }

    #[test]
    fn one_late_frame_of_a_stale_copy_is_two_owners() {
        assert_eq!(judge("aaa..bbbbbb.abbbb").owners_max, 2);
        // Also when it wakes up long after: the owner it seemed to replace emits at once again.
        assert_eq!(judge(&format!("aaa..{}a{}", "b".repeat(500), "b".repeat(5))).owners_max, 2);
    }

    #[test]
    fn three_at_once_are_not_one_handover() {
        assert_eq!(judge("aaa[abc]").owners_max, 2);
        assert_eq!(judge("aaa[abc][abc]").owners_max, 3);
    }

    #[test]
    fn only_the_received_packets_of_taps_count() {
        let table = "Inter-|   Receive                |  Transmit\n face |bytes    packets errs|bytes    packets\n    \
                     lo:     100       9    0 0 0 0 0 0   100 9 0 0 0 0 0 0\npx1a2b: 4200      40    0 0 0 0 0 0   1 2 0 0 0 0 0 0\n   \
                     px2:0 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        assert_eq!(received_frames(table, "px"), 42);
        assert_eq!(received_frames(table, "px2"), 2);
        assert_eq!(received_frames("", "px"), 0);
    }
}
