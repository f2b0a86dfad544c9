//! The ledger itself: what the guest acknowledged, and whether it stands by it. No sockets, no clock of its own.
//!
//! Two things are held against the guest. Its *numbers* (the counter, the register's version) may never go back: an answer must
//! be higher than every answer that had come in when the request was sent. And every *value* whose `PUT` was acknowledged must be
//! read back. A `PUT` whose connection broke may have happened or not, now or a little later; its key is struck out and never used
//! again, so that whatever becomes of it says nothing wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use crate::{gaps::milliseconds, instrument::TOTAL};

/// What was seen in one window, or in all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LedgerReport {
    /// The window's name.
    pub window: String,
    /// Requests acknowledged.
    pub acked: u64,
    /// Acknowledged requests that the guest no longer knew of afterwards.
    pub lost_acks: u64,
    /// How often the counter or the register's version went back.
    pub regressions: u64,
    /// Requests that the guest refused.
    pub refused: u64,
    /// Values read and compared.
    pub read_back: u64,
    /// Acknowledged values that could not be compared in the end, because the guest did not answer.
    pub unverified: u64,
    /// Connections that ended and were not ended here, or on which an answer did not come in time.
    pub tcp_resets: u64,
    /// Connections set up again after one was lost.
    pub reconnects: u64,
    /// Connections open when the window ended.
    pub connections: u64,
    /// The boots that answered, sorted.
    pub boot_ids: BTreeSet<String>,
    /// Longest time between a request and its answer, in milliseconds, reconnecting included.
    pub longest_stall_ms: f64,
}

impl LedgerReport {
    fn add(&mut self, other: &Self) {
        self.acked += other.acked;
        self.lost_acks += other.lost_acks;
        self.regressions += other.regressions;
        self.refused += other.refused;
        self.read_back += other.read_back;
        self.unverified += other.unverified;
        self.tcp_resets += other.tcp_resets;
        self.reconnects += other.reconnects;
        self.connections = other.connections;
        self.boot_ids.extend(other.boot_ids.iter().cloned());
        self.longest_stall_ms = self.longest_stall_ms.max(other.longest_stall_ms);
    }
}

/// A number of the guest's that only rises.
#[derive(Debug, Default)]
struct Rising {
    highest: u64,
    /// Counts how often the number went back; a loss is told once, not by every request that was under way.
    falls: u64,
}

/// What was known when a request was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    floor: u64,
    falls: u64,
}

impl Rising {
    fn sent(&self) -> Sent {
        Sent { floor: self.highest, falls: self.falls }
    }

    /// Returns how far the number is below what it must be.
    fn answered(&mut self, sent: Sent, number: u64, least: u64) -> u64 {
        let missing = if sent.falls == self.falls { least.saturating_sub(number) } else { 0 };
        if missing > 0 {
            self.falls += 1;
            self.highest = number;
        } else {
            self.highest = self.highest.max(number);
        }
        missing
    }
}

/// The account of all connections.
#[derive(Debug)]
pub(super) struct Book {
    window: LedgerReport,
    total: LedgerReport,
    counter: Rising,
    version: Rising,
    /// The acknowledged value of each key.
    values: BTreeMap<String, String>,
    /// Since when each connection has been waiting for an answer.
    waiting: Vec<Option<Instant>>,
    open: u64,
}

impl Book {
    pub(super) fn new(connections: usize) -> Self {
        Self {
            window: LedgerReport::default(),
            total: LedgerReport { window: TOTAL.to_owned(), ..LedgerReport::default() },
            counter: Rising::default(),
            version: Rising::default(),
            values: BTreeMap::new(),
            waiting: vec![None; connections],
            open: 0,
        }
    }

    /// A connection starts to wait, unless it has been waiting since a request that got no answer.
    pub(super) fn wait(&mut self, connection: usize, now: Instant) {
        self.waiting[connection].get_or_insert(now);
    }

    /// A connection got an answer.
    pub(super) fn answer(&mut self, connection: usize, now: Instant) {
        if let Some(since) = self.waiting[connection].take() {
            self.stalled(since, now);
        }
    }

    fn stalled(&mut self, since: Instant, now: Instant) {
        let stall = milliseconds(now.saturating_duration_since(since));
        self.window.longest_stall_ms = self.window.longest_stall_ms.max(stall);
    }

    pub(super) fn connected(&mut self, again: bool, boot: String) {
        self.open += 1;
        self.window.reconnects += u64::from(again);
        self.booted(boot);
    }

    pub(super) fn booted(&mut self, boot: String) {
        self.window.boot_ids.insert(boot);
    }

    pub(super) fn disconnected(&mut self) {
        self.open -= 1;
        self.window.tcp_resets += 1;
    }

    pub(super) fn refused(&mut self) {
        self.window.refused += 1;
    }

    pub(super) fn counter_sent(&self) -> Sent {
        self.counter.sent()
    }

    /// `INC` was acknowledged with this number.
    pub(super) fn incremented(&mut self, sent: Sent, number: u64) {
        self.window.acked += 1;
        self.counter_is(sent, number, sent.floor + 1);
    }

    /// `GET` told the counter.
    pub(super) fn counter_read(&mut self, sent: Sent, number: u64) {
        self.counter_is(sent, number, sent.floor);
    }

    fn counter_is(&mut self, sent: Sent, number: u64, least: u64) {
        let lost = self.counter.answered(sent, number, least);
        self.window.lost_acks += lost;
        self.window.regressions += u64::from(lost > 0);
    }

    pub(super) fn put_sent(&self) -> Sent {
        self.version.sent()
    }

    /// `PUT` was acknowledged with this version.
    pub(super) fn put(&mut self, sent: Sent, version: u64, key: &str, value: String) {
        self.window.acked += 1;
        // The lost values themselves are found when they are read back.
        let missing = self.version.answered(sent, version, sent.floor + 1);
        self.window.regressions += u64::from(missing > 0);
        self.values.insert(key.to_owned(), value);
    }

    /// Whether `PUT` happened will never be known for sure.
    pub(super) fn put_unknown(&mut self, key: &str) {
        self.values.remove(key);
    }

    /// `GET` of the key told this value, or that there is none.
    pub(super) fn value_read(&mut self, key: &str, value: Option<&str>) {
        let Some(acknowledged) = self.values.get(key) else { return };
        self.window.acked += 1;
        self.window.read_back += 1;
        if value != Some(acknowledged) {
            self.window.lost_acks += 1;
            self.values.remove(key);
        }
    }

    /// Whether a value is acknowledged under this key.
    pub(super) fn knows(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    pub(super) fn unverified(&mut self, keys: u64) {
        self.window.unverified += keys;
    }

    pub(super) fn close_window(&mut self, name: &str, now: Instant) -> LedgerReport {
        for since in self.waiting.clone().into_iter().flatten() {
            self.stalled(since, now);
        }
        let mut report = std::mem::take(&mut self.window);
        name.clone_into(&mut report.window);
        report.connections = self.open;
        self.total.add(&report);
        report
    }

    pub(super) fn total(&self) -> LedgerReport {
        self.total.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_counter_that_rises_loses_nothing_whatever_the_order_of_answers() {
        let mut book = Book::new(2);
        let (first, second) = (book.counter_sent(), book.counter_sent());
        book.incremented(second, 2);
        book.incremented(first, 1);
        let third = book.counter_sent();
        book.counter_read(third, 2);
        book.incremented(third, 3);
        let report = book.close_window("w", Instant::now());
        assert_eq!((report.acked, report.lost_acks, report.regressions), (3, 0, 0));
    }

    #[test]
    fn a_counter_that_goes_back_loses_as_many_as_are_missing_and_only_once() {
        let mut book = Book::new(2);
        let sent = book.counter_sent();
        book.incremented(sent, 10);
        let (one, other) = (book.counter_sent(), book.counter_sent());
        // 11 was due; 8 means that 8, 9 and 10 had been forgotten.
        book.incremented(one, 8);
        book.incremented(other, 9);
        let after = book.counter_sent();
        book.incremented(after, 10);
        let report = book.close_window("w", Instant::now());
        assert_eq!((report.lost_acks, report.regressions), (3, 1));
    }

    #[test]
    fn the_same_number_twice_is_a_lost_acknowledgement() {
        let mut book = Book::new(1);
        let sent = book.counter_sent();
        book.incremented(sent, 5);
        let sent = book.counter_sent();
        book.incremented(sent, 5);
        assert_eq!(book.close_window("w", Instant::now()).lost_acks, 1);
    }

    #[test]
    fn a_value_is_the_one_acknowledged_last_or_lost() {
        let mut book = Book::new(1);
        for (version, value) in [(1, "old"), (2, "new")] {
            let sent = book.put_sent();
            book.put(sent, version, "k", value.to_owned());
        }
        book.value_read("k", Some("new"));
        assert_eq!(book.close_window("kept", Instant::now()).lost_acks, 0);
        book.value_read("k", Some("old"));
        book.value_read("k", Some("old"));
        assert_eq!(book.close_window("older", Instant::now()).lost_acks, 1);

        let sent = book.put_sent();
        book.put(sent, 2, "l", "v".to_owned());
        book.value_read("l", None);
        let report = book.close_window("gone", Instant::now());
        assert_eq!((report.lost_acks, report.regressions), (1, 1));
        assert_eq!(book.total().lost_acks, 2);
    }

    #[test]
    fn an_unknown_put_proves_nothing_either_way() {
        let mut book = Book::new(1);
        let sent = book.put_sent();
        book.put(sent, 1, "k", "old".to_owned());
        book.put_unknown("k");
        book.value_read("k", Some("new"));
        let report = book.close_window("w", Instant::now());
        assert_eq!((report.lost_acks, report.read_back), (0, 0));
    }

    #[test]
    fn a_stall_is_told_while_it_lasts_and_whole_when_it_ends() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut book = Book::new(2);
        book.wait(0, at(0));
        book.wait(1, at(0));
        book.answer(1, at(5));
        assert!((book.close_window("open", at(30)).longest_stall_ms - 30.0).abs() < 1e-9);
        book.wait(0, at(40));
        book.answer(0, at(70));
        assert!((book.close_window("ended", at(70)).longest_stall_ms - 70.0).abs() < 1e-9);
    }
}
