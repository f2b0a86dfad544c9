//! What happened, line by line: the last lines are kept for a failure's report, all of them make the hash that two runs of
//! one seed must share.

use std::{collections::VecDeque, fmt};

use super::Time;

/// Lines of a failure's report.
const KEPT: usize = 200;

/// See the module.
pub(super) struct Trace {
    lines: VecDeque<String>,
    hash: u64,
    print: bool,
}

impl Trace {
    pub(super) fn new(print: bool) -> Self {
        Self { lines: VecDeque::with_capacity(KEPT), hash: 0xCBF2_9CE4_8422_2325, print }
    }

    pub(super) fn line(&mut self, now: Time, text: fmt::Arguments<'_>) {
        let line = format!("{now:>7} {text}");
        // FNV-1a.
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        if self.print {
            println!("{line}");
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn tail(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}
