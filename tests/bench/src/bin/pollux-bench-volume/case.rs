//! What fio does, and what of it counts.

/// What fio does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// fio's word for it.
    pub(crate) pattern: &'static str,
    pub(crate) block_bytes: u32,
    /// Requests under way.
    pub(crate) depth: u32,
    pub(crate) reads: bool,
    /// What counts: operations, else bytes.
    pub(crate) small: bool,
    /// Over more than the activity log keeps hot, so that nearly every write has to be marked first.
    pub(crate) wide: bool,
    /// Each write to another extent, none of which was written to since the server was started.
    pub(crate) cold: bool,
}

pub(crate) const CASES: [Case; 8] = [
    Case::small("rand-read-4k-qd16", "randread", 16, true),
    Case::small("rand-write-4k-qd16", "randwrite", 16, false),
    Case::small("rand-read-4k-qd1", "randread", 1, true),
    Case::small("rand-write-4k-qd1", "randwrite", 1, false),
    Case::large("seq-read-1m", "read", true),
    Case::large("seq-write-1m", "write", false),
    Case { cold: true, ..Case::small("cold-write-4k-qd1", WARM_UP_PATTERN, 1, false) },
    Case { wide: true, ..Case::small("wide-write-4k-qd16", "randwrite", 16, false) },
];

/// fio's word for one block in each extent of 4 MiB: the next 4,092 KiB are left out.
pub(crate) const WARM_UP_PATTERN: &str = "write:4092k";

impl Case {
    const fn small(name: &'static str, pattern: &'static str, depth: u32, reads: bool) -> Self {
        Self { name, pattern, block_bytes: 4 << 10, depth, reads, small: true, wide: false, cold: false }
    }

    const fn large(name: &'static str, pattern: &'static str, reads: bool) -> Self {
        Self { name, pattern, block_bytes: 1 << 20, depth: 4, reads, small: false, wide: false, cold: false }
    }

    /// One write in each extent comes before it, so that all are hot: what is measured is how it goes on, not how it begins.
    pub(crate) fn warms_up(self) -> bool {
        !self.reads && !self.cold && !self.wide
    }

    /// What counts of it.
    pub(crate) fn metrics(self) -> [Metric; 2] {
        [if self.small { Metric::Iops } else { Metric::MbPerS }, Metric::P99]
    }
}

/// A figure of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metric {
    Iops,
    MbPerS,
    /// Of the time from asking to answer, in microseconds.
    P99,
}

impl Metric {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Iops => "iops",
            Self::MbPerS => "mb_s",
            Self::P99 => "p99_us",
        }
    }
}

/// What was seen in a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) iops: f64,
    pub(crate) mb_per_s: f64,
    pub(crate) p99_us: f64,
}

impl Seen {
    pub(crate) fn figure(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Iops => self.iops,
            Metric::MbPerS => self.mb_per_s,
            Metric::P99 => self.p99_us,
        }
    }
}
