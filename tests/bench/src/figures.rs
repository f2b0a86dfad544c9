//! What is measured of a move, and what many moves come to.

use std::time::Duration;

use pollux_bench::Spread;

use crate::{case::Case, mover::System};

/// A figure, in the order in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metric {
    /// From the wish to the answer that it is done, in seconds.
    Total,
    /// What crossed the cable between the nodes, in bytes.
    Wire,
    /// Guest memory moved per second, in 10^6 bytes: the guest's whole memory, whatever was sent of it and how often, by the
    /// time for which the move kept the wire busy.
    Rate,
    /// The client's longest silence, in milliseconds.
    Blackout,
    /// How long the guest stood still, as the hypervisor reports it, in milliseconds.
    Pause,
}

impl Metric {
    pub(crate) const ALL: [Self; 5] = [Self::Total, Self::Wire, Self::Rate, Self::Blackout, Self::Pause];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Total => "total_s",
            Self::Wire => "wire_bytes",
            Self::Rate => "guest_mb_s",
            Self::Blackout => "blackout_ms",
            Self::Pause => "pause_ms",
        }
    }

    /// Digits after the point that mean something.
    pub(crate) fn digits(self) -> usize {
        match self {
            Self::Total => 2,
            Self::Wire => 0,
            Self::Rate | Self::Blackout | Self::Pause => 1,
        }
    }
}

/// One move.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moved {
    pub(crate) total: Duration,
    pub(crate) wire_bytes: u64,
    pub(crate) wire_busy: Duration,
    pub(crate) blackout_ms: f64,
    pub(crate) pause_ms: f64,
}

impl Moved {
    pub(crate) fn figure(&self, metric: Metric, case: Case) -> f64 {
        match metric {
            Metric::Total => self.total.as_secs_f64(),
            Metric::Wire => self.wire_bytes as f64,
            Metric::Rate => {
                let megabytes = f64::from(case.memory_mib()) * f64::from(1 << 20) / 1e6;
                megabytes / self.wire_busy.as_secs_f64()
            }
            Metric::Blackout => self.blackout_ms,
            Metric::Pause => self.pause_ms,
        }
    }
}

/// Pollux and one of its peers, in one figure of one case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Comparison {
    pub(crate) case: Case,
    pub(crate) metric: Metric,
    pub(crate) pollux: Spread,
    pub(crate) peer: Spread,
    pub(crate) peer_is: System,
}

impl Comparison {
    /// Of the medians.
    pub(crate) fn ratio(&self) -> f64 {
        self.pollux.median / self.peer.median
    }
}

/// Every metric of a case, beside every peer. Nothing where a system has not moved.
pub(crate) fn compare(case: Case, moves: &[(System, Moved)]) -> Vec<Comparison> {
    let spread = |system, metric: Metric| {
        let of = moves.iter().filter(|(by, _)| *by == system);
        Spread::of(of.map(|(_, moved)| moved.figure(metric, case)))
    };
    let both = |(metric, peer_is)| {
        let (pollux, peer) = (spread(System::Pollux, metric)?, spread(peer_is, metric)?);
        Some(Comparison { case, metric, pollux, peer, peer_is })
    };
    Metric::ALL.iter().flat_map(|metric| System::PEERS.map(|peer| (*metric, peer))).filter_map(both).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(total_ms: u64, blackout_ms: f64) -> Moved {
        Moved {
            total: Duration::from_millis(total_ms),
            wire_bytes: 1000,
            wire_busy: Duration::from_millis(total_ms / 2),
            blackout_ms,
            pause_ms: 10.0,
        }
    }

    #[test]
    fn the_rate_is_the_whole_memory_by_the_busy_time() {
        let rate = moved(2000, 1.0).figure(Metric::Rate, Case::Idle);
        assert!((rate - 536.870_912).abs() < 1e-9, "{rate}");
    }

    #[test]
    fn ratios_are_of_medians_and_each_peer_has_its_own() {
        let moves = [
            (System::Pollux, moved(1000, 50.0)),
            (System::PrecopyTcp, moved(2000, 100.0)),
            (System::MultifdTls, moved(4000, 200.0)),
            (System::Pollux, moved(3000, 150.0)),
        ];
        let comparisons = compare(Case::Idle, &moves);
        assert_eq!(comparisons.len(), Metric::ALL.len() * System::PEERS.len());
        let ratio = |metric, peer| {
            let found = comparisons.iter().find(|found| found.metric == metric && found.peer_is == peer);
            found.unwrap().ratio()
        };
        assert!((ratio(Metric::Total, System::PrecopyTcp) - 1.0).abs() < 1e-9);
        assert!((ratio(Metric::Blackout, System::MultifdTls) - 0.5).abs() < 1e-9);
        assert!(compare(Case::Idle, &moves[..2]).iter().all(|found| found.peer_is == System::PrecopyTcp));
    }
}
