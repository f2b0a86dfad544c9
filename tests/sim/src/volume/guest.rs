//! A guest: it writes, reads and flushes, several at once, often in the same places; what fails is parked and asked again.

use std::{collections::BTreeMap, ops::Range};

use pollux_mirror::{Answer, Change, EXTENT_BYTES, Event, Kind, Request, RequestId};

use super::{
    EXTENTS, UNIT_BYTES,
    oracle::Stamp,
    store::units,
    world::{Happening, World},
};

/// Requests at once.
const REQUESTS_MAX: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Guest {
    pub(super) open: BTreeMap<RequestId, Open>,
    last: u64,
    pub(super) acknowledged: u64,
    pub(super) parked: u64,
}

/// What was asked.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub(super) kind: Kind,
    pub(super) range: Range<u64>,
    pub(super) stamp: Stamp,
    /// When, by the oracle.
    asked: u64,
    /// It failed, and will be asked again.
    pub(super) parked: bool,
}

impl World {
    pub(super) fn act(&mut self, host: u64) {
        if !self.is_host(host) {
            return;
        }
        // In the end it only reads, so that all come to rest; unless it never stops.
        let pause = match (&self.hot, self.calm) {
            (Some(_), _) => 5,
            (None, true) => 60,
            (None, false) => self.rng.below(30),
        };
        self.put(pause, Happening::Act(host));
        let paused = self.host.as_ref().is_some_and(|host| host.paused);
        if paused || self.guest.open.len() >= REQUESTS_MAX {
            return;
        }
        let durable = self.rng.chance(100);
        let kind = match self.rng.below(20) {
            _ if self.hot.is_some() => Kind::Change { change: Change::Write, durable },
            0..=10 if !self.calm => Kind::Change { change: Change::Write, durable },
            11 if !self.calm => Kind::Change { change: Change::Trim, durable },
            12 if !self.calm => Kind::Change { change: Change::Zero { punch: true }, durable },
            13 | 14 => Kind::Flush,
            _ => Kind::Read,
        };
        let range = if kind == Kind::Flush { 0..0 } else { self.some_range() };
        self.guest.last += 1;
        // Zeros, too, are told apart by who wrote them.
        let stamp = self.guest.last;
        let id = RequestId(self.guest.last);
        let asked = self.oracle.now();
        if kind.changes() {
            self.oracle.asked(units(&range), stamp);
        }
        self.ask_mirror(id, Open { kind, range, stamp, asked, parked: false });
    }

    fn some_range(&mut self) -> Range<u64> {
        if let Some(hot) = &self.hot {
            return hot.clone();
        }
        // Few places, so that requests meet; sometimes across the border of two extents, or at the end.
        let extent = self.rng.below(EXTENTS) * EXTENT_BYTES;
        let first = match self.rng.below(8) {
            0 => (extent + EXTENT_BYTES).min(self.size) / UNIT_BYTES - 2,
            _ => (extent / UNIT_BYTES + self.rng.below(12)).min(self.size / UNIT_BYTES - 1),
        };
        let start = first * UNIT_BYTES;
        start..(start + self.rng.between(1, 6) * UNIT_BYTES).min(self.size)
    }

    fn ask_mirror(&mut self, id: RequestId, open: Open) {
        let request = Request { id, kind: open.kind, range: open.range.clone() };
        self.guest.open.insert(id, open);
        self.apply(Event::Request(request));
    }

    /// The device is told.
    pub(super) fn answered(&mut self, id: RequestId, answer: &Answer, data: &[(u64, Stamp)]) {
        let Some(open) = self.guest.open.get(&id).cloned() else {
            self.violation = Some(format!("{id:?} is answered, which nobody asks"));
            return;
        };
        if let Err(failure) = answer {
            self.guest.parked += 1;
            self.guest.open.entry(id).and_modify(|open| open.parked = true);
            self.trace.line(self.now, format_args!("{id:?} is parked: {failure}"));
            let (pause, host) = (self.rng.between(50, 400), self.lives);
            return self.put(pause, Happening::Again { host, request: id });
        }
        self.guest.open.remove(&id);
        self.guest.acknowledged += 1;
        match open.kind {
            Kind::Read => {
                for (unit, stamp) in data {
                    if let Err(what) = self.oracle.read(*unit, *stamp) {
                        self.violation = Some(format!("{id:?}: {what}"));
                    }
                }
                if data.len() as u64 != units(&open.range).count() as u64 {
                    self.violation = Some(format!("{id:?} read {} units of {:?}", data.len(), open.range));
                }
            }
            Kind::Change { durable, .. } => self.oracle.acknowledged(units(&open.range), open.stamp, durable),
            Kind::Flush => self.oracle.flushed(open.asked),
        }
    }

    /// As QEMU does with what it parked: the same again, under another number.
    pub(super) fn again(&mut self, host: u64, request: RequestId) {
        if !self.is_host(host) {
            return;
        }
        if self.host.as_ref().is_some_and(|host| host.paused) {
            return self.put(50, Happening::Again { host, request });
        }
        if let Some(mut open) = self.guest.open.remove(&request) {
            self.guest.last += 1;
            open.parked = false;
            open.asked = self.oracle.now();
            self.ask_mirror(RequestId(self.guest.last), open);
        }
    }
}
