//! How long the guest is silent: a numbered datagram every millisecond, and the longest gap between two answers.
//!
//! A sender and a receiver thread share a [`Tally`]. The sender keeps to its schedule and leaves out what it missed, for a
//! burst after a pause would measure nothing. What the machine took from the sender itself is told as `longest_send_gap_ms`:
//! a gap between answers can only be blamed on the guest as far as it is longer than that.

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    gaps::{Gaps, milliseconds},
    instrument::{Instrument, TOTAL},
};

/// How far back an answer is recognised as the second one to the same datagram.
const REMEMBERED_PROBES: usize = 65_536;
/// How soon the receiver notices that it is to stop.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(50);
/// Longest answer looked at.
const ANSWER_BYTES_MAX: usize = 256;

/// What was seen in one window, or in all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlackoutReport {
    /// The window's name.
    pub window: String,
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams answered, each counted once.
    pub answered: u64,
    /// Further answers to a datagram that was answered already, as two copies of one guest would give them.
    pub duplicates: u64,
    /// Datagrams received that are no answer to a probe.
    pub garbled: u64,
    /// Longest time between two answers, in milliseconds.
    pub longest_gap_ms: f64,
    /// Longest time between two datagrams sent, in milliseconds: the part of a gap that is the prober's own.
    pub longest_send_gap_ms: f64,
    /// The boots that answered, sorted.
    pub boot_ids: BTreeSet<String>,
    /// Answers to a later datagram that carried no higher count: the guest woke up with older memory.
    pub counter_regressions: u64,
}

impl BlackoutReport {
    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.duplicates += other.duplicates;
        self.garbled += other.garbled;
        self.longest_gap_ms = self.longest_gap_ms.max(other.longest_gap_ms);
        self.longest_send_gap_ms = self.longest_send_gap_ms.max(other.longest_send_gap_ms);
        self.boot_ids.extend(other.boot_ids.iter().cloned());
        self.counter_regressions += other.counter_regressions;
    }
}

/// The account that sender and receiver keep. It has no socket and no clock of its own.
#[derive(Debug)]
struct Tally {
    window: BlackoutReport,
    total: BlackoutReport,
    answers: Gaps,
    sends: Gaps,
    /// The last answered probe of each slot.
    answered: Vec<u64>,
    /// The highest count that the current boot told, and the probe that it answered.
    latest: Option<(String, u64, u64)>,
}

impl Tally {
    fn new(start: Instant) -> Self {
        Self {
            window: BlackoutReport::default(),
            total: BlackoutReport { window: TOTAL.to_owned(), ..BlackoutReport::default() },
            answers: Gaps::new(start),
            sends: Gaps::new(start),
            answered: vec![0; REMEMBERED_PROBES],
            latest: None,
        }
    }

    fn sent(&mut self, now: Instant) {
        self.window.sent += 1;
        self.sends.event(now);
    }

    fn received(&mut self, datagram: &[u8], now: Instant) {
        let Some((probe, count, boot)) = parse(datagram) else {
            self.window.garbled += 1;
            return;
        };
        self.answers.event(now);
        // The remainder is below the number of slots, which is a usize.
        let slot = usize::try_from(probe % REMEMBERED_PROBES as u64).unwrap_or_default();
        if std::mem::replace(&mut self.answered[slot], probe) == probe {
            self.window.duplicates += 1;
        } else {
            self.window.answered += 1;
        }
        self.window.boot_ids.insert(boot.to_owned());
        match &mut self.latest {
            // An answer overtaken by a later probe's may well carry the lower count.
            Some((known, highest, at)) if known == boot => {
                if count > *highest {
                    (*highest, *at) = (count, probe);
                } else if probe > *at {
                    self.window.counter_regressions += 1;
                    (*highest, *at) = (count, probe);
                }
            }
            _ => self.latest = Some((boot.to_owned(), count, probe)),
        }
    }

    fn close_window(&mut self, name: &str, now: Instant) -> BlackoutReport {
        let mut report = std::mem::take(&mut self.window);
        name.clone_into(&mut report.window);
        report.longest_gap_ms = milliseconds(self.answers.close_window(now));
        report.longest_send_gap_ms = milliseconds(self.sends.close_window(now));
        self.total.add(&report);
        report
    }
}

/// Takes `probe <number> <count> <boot>` apart. Probes count from 1, so that an empty slot is none.
fn parse(datagram: &[u8]) -> Option<(u64, u64, &str)> {
    let mut words = std::str::from_utf8(datagram).ok()?.split(' ');
    let ("probe", probe, count, boot) = (words.next()?, words.next()?, words.next()?, words.next()?) else {
        return None;
    };
    (words.next().is_none() && !boot.is_empty()).then_some(())?;
    let probe = probe.parse().ok().filter(|probe| *probe > 0)?;
    Some((probe, count.parse().ok()?, boot))
}

/// The running instrument. Dropping it stops its threads, too.
#[derive(Debug)]
pub struct Blackout {
    tally: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Blackout {
    /// Starts to send a datagram to the guest's UDP port every `interval`.
    pub fn start(target: SocketAddr, interval: Duration) -> io::Result<Self> {
        let local: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(local)?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(RECEIVE_TIMEOUT))?;
        let receiving = socket.try_clone()?;

        let tally = Arc::new(Mutex::new(Tally::new(Instant::now())));
        let stop = Arc::new(AtomicBool::new(false));
        let threads = vec![
            thread::spawn({
                let (tally, stop) = (Arc::clone(&tally), Arc::clone(&stop));
                move || send(&socket, interval, &tally, &stop)
            }),
            thread::spawn({
                let (tally, stop) = (Arc::clone(&tally), Arc::clone(&stop));
                move || receive(&receiving, &tally, &stop)
            }),
        ];
        Ok(Self { tally, stop, threads })
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in a thread has been told on standard error; what it counted until then is still the report.
            let _ = thread.join();
        }
    }
}

impl Instrument for Blackout {
    type Report = BlackoutReport;

    fn mark(&self, name: &str) -> BlackoutReport {
        lock(&self.tally).close_window(name, Instant::now())
    }

    fn finish(mut self) -> BlackoutReport {
        let mut tally = lock(&self.tally);
        tally.close_window("rest", Instant::now());
        let total = tally.total.clone();
        drop(tally);
        self.stop();
        total
    }
}

impl Drop for Blackout {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(socket: &UdpSocket, interval: Duration, tally: &Mutex<Tally>, stop: &AtomicBool) {
    let mut due = Instant::now();
    for probe in 1_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        lock(tally).sent(Instant::now());
        // A datagram that the network refuses is one without an answer.
        let _ = socket.send(format!("probe {probe}").as_bytes());
        due = (due + interval).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn receive(socket: &UdpSocket, tally: &Mutex<Tally>, stop: &AtomicBool) {
    let mut buffer = [0; ANSWER_BYTES_MAX];
    while !stop.load(Ordering::Relaxed) {
        // A timeout, or the echo of a refused datagram: neither is an answer.
        if let Ok(length) = socket.recv(&mut buffer) {
            lock(tally).received(&buffer[..length], Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> (Tally, Instant) {
        let start = Instant::now();
        (Tally::new(start), start)
    }

    #[test]
    fn answers_are_counted_once_and_gaps_measured_between_them() {
        let (mut tally, start) = tally();
        let at = |ms| start + Duration::from_millis(ms);
        for ms in 1..=3 {
            tally.sent(at(ms));
            tally.received(format!("probe {ms} {ms} b0").as_bytes(), at(ms));
        }
        tally.sent(at(9));
        tally.received(b"probe 4 4 b0", at(10));
        let report = tally.close_window("w", at(10));
        assert_eq!((report.sent, report.answered, report.duplicates, report.counter_regressions), (4, 4, 0, 0));
        assert!((report.longest_gap_ms - 7.0).abs() < 1e-9, "{report:?}");
        assert!((report.longest_send_gap_ms - 6.0).abs() < 1e-9, "{report:?}");
    }

    #[test]
    fn a_second_answer_is_told_as_one() {
        let (mut tally, start) = tally();
        tally.received(b"probe 1 1 b0", start);
        tally.received(b"probe 1 2 b0", start);
        let report = tally.close_window("w", start);
        assert_eq!((report.answered, report.duplicates), (1, 1));
    }

    #[test]
    fn older_memory_is_told_from_answers_out_of_order() {
        let (mut tally, start) = tally();
        for (probe, count) in [(1, 1), (3, 3), (2, 2), (4, 4)] {
            tally.received(format!("probe {probe} {count} b0").as_bytes(), start);
        }
        assert_eq!(tally.close_window("out of order", start).counter_regressions, 0);
        tally.received(b"probe 5 2 b0", start);
        tally.received(b"probe 6 3 b0", start);
        assert_eq!(tally.close_window("older", start).counter_regressions, 1);
        tally.received(b"probe 7 1 b1", start);
        let report = tally.close_window("another boot", start);
        assert_eq!(report.counter_regressions, 0);
        assert_eq!(tally.total.boot_ids, BTreeSet::from(["b0".to_owned(), "b1".to_owned()]));
    }

    #[test]
    fn what_is_no_answer_is_garbled() {
        let (mut tally, start) = tally();
        let nonsense: [&[u8]; 7] =
            [b"", b"probe", b"probe 1 2", b"probe 0 1 b", b"probe 1 2 ", b"probe 1 2 b c", b"\xff\xff"];
        for datagram in nonsense {
            tally.received(datagram, start);
        }
        let report = tally.close_window("w", start);
        assert_eq!((report.garbled, report.answered), (7, 0));
    }
}
