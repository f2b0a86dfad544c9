//! What happened, line by line: the last lines are kept for a failure's report, all of them make the hash that two runs of
//! one seed must share.

use std::{collections::VecDeque, fmt};

/// Lines of a failure's report.
const KEPT: usize = 200;

/// See the module.
pub(crate) struct Trace {
    lines: VecDeque<String>,
    hash: u64,
    print: bool,
}

impl Trace {
    pub(crate) fn new(print: bool) -> Self {
        Self { lines: VecDeque::with_capacity(KEPT), hash: 0xCBF2_9CE4_8422_2325, print }
    }

    pub(crate) fn line(&mut self, now: u64, text: fmt::Arguments<'_>) {
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

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn tail(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}
