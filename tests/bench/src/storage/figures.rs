//! What is measured of a disk's move, and what is told of many.

use std::{fmt, time::Duration};

use pollux_bench::{Row, Spread};

use super::System;

const CASE: &str = "quarter-full";
/// Longest that the guest may wait for its disk, in milliseconds (DESIGN, section 9).
const STALL_MS_MAX: f64 = 50.0;

/// One move.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moved {
    pub(super) total: Duration,
    pub(super) equal: Duration,
    pub(super) wire_bytes: u64,
    pub(super) idle_p99_us: u64,
    pub(super) p99_us: u64,
    pub(super) longest_ms: u64,
}

/// A figure, in the order in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Metric {
    /// From the wish to the answer that it is done, in seconds.
    Total,
    /// Until both held the same, in seconds; what Pollux does after that, it compares them.
    Equal,
    /// What crossed the cable between the nodes, in bytes.
    Wire,
    /// What 99 in a hundred writes of the guest's did not exceed while its disk moved, in microseconds.
    P99,
    /// The same in the second before.
    IdleP99,
    /// The longest that the guest waited for anything it asked of its disk, in milliseconds.
    Longest,
}

impl Metric {
    const ALL: [Self; 6] = [Self::Total, Self::Equal, Self::Wire, Self::P99, Self::IdleP99, Self::Longest];

    fn name(self) -> &'static str {
        match self {
            Self::Total => "total_s",
            Self::Equal => "equal_s",
            Self::Wire => "wire_bytes",
            Self::P99 => "write_p99_us",
            Self::IdleP99 => "before_p99_us",
            Self::Longest => "longest_ms",
        }
    }

    /// Digits after the point that mean something.
    fn digits(self) -> usize {
        match self {
            Self::Total | Self::Equal => 2,
            Self::Wire | Self::P99 | Self::IdleP99 | Self::Longest => 0,
        }
    }
}

impl Moved {
    fn figure(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Total => self.total.as_secs_f64(),
            Metric::Equal => self.equal.as_secs_f64(),
            Metric::Wire => self.wire_bytes as f64,
            Metric::P99 => self.p99_us as f64,
            Metric::IdleP99 => self.idle_p99_us as f64,
            Metric::Longest => self.longest_ms as f64,
        }
    }
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { total, equal, wire_bytes, idle_p99_us, p99_us, longest_ms } = self;
        write!(
            f,
            "{:7.2} s, equal after {:7.2} s; {:6.0} MB on the wire; writes took {p99_us} us (p99; {idle_p99_us} before), \
             the longest wait {longest_ms} ms",
            total.as_secs_f64(),
            equal.as_secs_f64(),
            *wire_bytes as f64 / 1e6
        )
    }
}

/// Pollux and a peer, in one figure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Comparison {
    metric: Metric,
    pollux: Spread,
    peer: Spread,
    peer_is: System,
}

pub(super) fn compare(moves: &[(System, Moved)]) -> Vec<Comparison> {
    let spread = |system, metric| {
        let of = moves.iter().filter(|(by, _)| *by == system);
        Spread::of(of.map(|(_, moved)| moved.figure(metric)))
    };
    let both = |(metric, peer_is)| {
        let (pollux, peer) = (spread(System::Pollux, metric)?, spread(peer_is, metric)?);
        Some(Comparison { metric, pollux, peer, peer_is })
    };
    Metric::ALL.iter().flat_map(|metric| System::PEERS.map(|peer| (*metric, peer))).filter_map(both).collect()
}

pub(crate) fn rows(comparisons: &[Comparison]) -> Vec<Row> {
    let row = |it: &Comparison| Row::of(CASE, it.metric.name(), it.pollux.median, it.peer.median, it.peer_is.name());
    comparisons.iter().map(row).collect()
}

/// Medians, and in parentheses the least and the most.
pub(crate) fn table(comparisons: &[Comparison]) -> String {
    let mut lines = vec![format!("{:14} {:>34} {:>34} {:>6}  PEER'S NAME", "METRIC", "POLLUX", "PEER", "RATIO")];
    for Comparison { metric, pollux, peer, peer_is } in comparisons {
        let digits = metric.digits();
        let text = |it: &Spread| format!("{:.digits$} ({:.digits$} - {:.digits$})", it.median, it.least, it.most);
        let (ours, theirs, ratio) = (text(pollux), text(peer), pollux.median / peer.median);
        lines.push(format!("{:14} {ours:>34} {theirs:>34} {ratio:>6.2}  {}", metric.name(), peer_is.name()));
    }
    lines.join("\n")
}

/// The guest sees no stall above what is allowed.
pub(crate) fn verdicts(comparisons: &[Comparison]) -> Vec<String> {
    let ours = comparisons.iter().find(|it| it.metric == Metric::Longest).map(|it| it.pollux);
    let judge = |Spread { median, most, .. }: Spread| {
        let met = if most <= STALL_MS_MAX { "met   " } else { "MISSED" };
        format!("{met}  {CASE} longest_ms {median:.0}, at most {most:.0}; {STALL_MS_MAX:.0} is allowed")
    };
    ours.map(judge).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(seconds: u64, longest_ms: u64) -> Moved {
        let total = Duration::from_secs(seconds);
        Moved { total, equal: total / 2, wire_bytes: 1_000, idle_p99_us: 1, p99_us: 2, longest_ms }
    }

    #[test]
    fn a_stall_is_judged_by_the_longest_of_all_runs() {
        let with = |longest_ms| {
            let mut moves = vec![(System::Pollux, moved(4, 20)), (System::Pollux, moved(4, longest_ms))];
            moves.push((System::QemuMirror, moved(2, 90)));
            compare(&moves)
        };
        assert!(verdicts(&with(50))[0].starts_with("met"));
        assert!(verdicts(&with(51))[0].starts_with("MISSED"));
        assert!(verdicts(&[]).is_empty());
    }

    #[test]
    fn rows_and_table_have_a_line_for_each_metric_and_peer_that_was_measured() {
        let comparisons = compare(&[(System::Pollux, moved(4, 1)), (System::QemuMirror, moved(2, 1))]);
        assert_eq!(rows(&comparisons)[0], Row::of(CASE, "total_s", 4.0, 2.0, "qemu-mirror"));
        assert_eq!(comparisons.len(), Metric::ALL.len());
        let table = table(&comparisons);
        let places: Vec<_> = table.lines().map(|line| line.find("qemu-").or_else(|| line.find("PEER'S"))).collect();
        assert!(places.iter().all(|place| *place == places[0]), "{table}");
    }
}
