//! What each unit of the volume may hold.

use std::collections::{BTreeMap, BTreeSet};

/// A value: which request wrote it; 0: nobody.
pub(super) type Stamp = u64;

/// See the module of the simulation.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    units: BTreeMap<u64, Unit>,
    clock: u64,
}

#[derive(Debug)]
struct Unit {
    /// What a read may show, besides what is pending: one value, or after an end those that may have survived it.
    legal: BTreeSet<Stamp>,
    /// What was acknowledged, or seen, since the last flush that covers it, and the newest before: when, and what.
    history: Vec<(u64, Stamp)>,
    /// Asked for and not acknowledged.
    pending: BTreeSet<Stamp>,
}

impl Default for Unit {
    fn default() -> Self {
        Self { legal: [0].into(), history: vec![(0, 0)], pending: BTreeSet::new() }
    }
}

impl Oracle {
    /// A moment: what was acknowledged before it has a smaller number.
    pub(super) fn now(&self) -> u64 {
        self.clock
    }

    pub(super) fn asked(&mut self, units: impl Iterator<Item = u64>, stamp: Stamp) {
        for unit in units {
            self.units.entry(unit).or_default().pending.insert(stamp);
        }
    }

    pub(super) fn acknowledged(&mut self, units: impl Iterator<Item = u64>, stamp: Stamp, durable: bool) {
        self.clock += 1;
        for number in units {
            let unit = self.units.entry(number).or_default();
            unit.pending.remove(&stamp);
            unit.legal = [stamp].into();
            if durable {
                unit.history.clear();
            }
            unit.history.push((self.clock, stamp));
        }
    }

    /// A flush that was asked for at `asked` was acknowledged.
    pub(super) fn flushed(&mut self, asked: u64) {
        for unit in self.units.values_mut().filter(|unit| unit.legal.len() == 1) {
            let covered = unit.history.iter().map(|(at, _)| *at).filter(|at| *at <= asked).max().unwrap_or(0);
            unit.history.retain(|(at, _)| *at >= covered);
        }
    }

    pub(super) fn read(&mut self, number: u64, seen: Stamp) -> Result<(), String> {
        self.clock += 1;
        let clock = self.clock;
        let unit = self.units.entry(number).or_default();
        if !unit.legal.contains(&seen) && !unit.pending.contains(&seen) {
            return Err(format!("unit {number} reads as {seen}, which it may not: {unit:?}"));
        }
        if unit.legal != BTreeSet::from([seen]) {
            unit.legal = [seen].into();
            unit.history.push((clock, seen));
        }
        Ok(())
    }

    /// The guest has ended, and begins anew from a replica; `weak`: from one that has lost what it had not synced.
    pub(super) fn restarted(&mut self, weak: bool) {
        self.clock += 1;
        for unit in self.units.values_mut() {
            let pending = std::mem::take(&mut unit.pending);
            if weak {
                unit.legal = unit.history.iter().map(|(_, stamp)| *stamp).collect();
            }
            unit.legal.extend(&pending);
            if !pending.is_empty() || weak {
                // Which of them it is nobody knows before it is read.
                unit.history.extend(unit.legal.iter().map(|stamp| (self.clock, *stamp)));
            }
        }
    }

    /// What it may hold in the end.
    pub(super) fn check_end(&self, number: u64, held: Stamp) -> Result<(), String> {
        match self.units.get(&number) {
            None if held == 0 => Ok(()),
            Some(unit) if unit.legal.contains(&held) || unit.pending.contains(&held) => Ok(()),
            unit => Err(format!("unit {number} holds {held} in the end, which it may not: {unit:?}")),
        }
    }
}
