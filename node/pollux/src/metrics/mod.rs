//! What this node measures, for Prometheus: every name there is, and how the figures come about.
//!
//! ```text
//!   something ends (a move, a proposal) --- record ---> recorder <--- sample --- GET /metrics: what can be looked up then
//! ```
//!
//! The recorder is the process's; where none was installed (tests, the simulator) recording does nothing. All of [`ALL`] is
//! there from the first moment on, at zero if need be, so that a rule that watches it never looks at nothing, but for what is of
//! one volume or one pool: that is there for as long as the volume is in use here, or the pool is this node's. No other label can
//! take more values than there are nodes, words of the API or reasons for a refusal. `docs/metrics.md` is held to this table.

mod moves;
mod sample;
mod storage;

use std::{net::SocketAddr, time::Duration};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

pub(crate) use moves::{Known as KnownMoves, count as count_moves, from as moves_from};
pub(crate) use sample::{PHASES, RUNTIMES, Raft, Sample};
pub(crate) use storage::{HEALTHS, PoolSample, VolumeSample};

/// What a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only rises, until the daemon is started again.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How often something took how much.
    Histogram,
}

/// One figure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Its labels, separated by spaces.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for people: the tests hold the documentation and the text to it")
    )]
    pub(crate) labels: &'static str,
    pub(crate) help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal [$labels:literal] $help:literal;)*) => {
        $(pub(crate) const $constant: &str = $name;)*
        /// All figures there are, in the order in which people read them.
        pub(crate) const ALL: &[Metric] =
            &[$(Metric { name: $name, kind: Kind::$kind, labels: $labels, help: $help },)*];
    };
}

metrics! {
    BUILD_INFO = Gauge "pollux_build_info" ["version qemu accelerator"] "Always 1, once its life is committed; what runs here.";
    INCARNATION = Gauge "pollux_node_incarnation" [""] "Which life its daemon is in; 0 until it is committed.";

    VMS = Gauge "pollux_vms" ["phase"] "VMs of the cluster by who may run them, as this node knows.";
    VMS_HERE = Gauge "pollux_vms_here" ["runtime"] "VMs that this node owns, by what it does with them.";
    VMS_FAILING = Gauge "pollux_vms_failing" [""] "VMs of the cluster that are wanted running and do not start.";
    QEMU_PROCESSES = Gauge "pollux_qemu_processes" [""] "QEMUs on this node, standbys included.";

    MOVES_STARTED = Counter "pollux_moves_started_total" [""] "Moves away from this node that were accepted.";
    MOVES_ENDED = Counter "pollux_moves_ended_total" ["result"] "Moves away from this node that ended.";
    MOVES_UNDER_WAY = Gauge "pollux_moves_under_way" [""] "Moves away from this node that have not ended.";
    MOVE_PAUSE = Histogram "pollux_move_pause_seconds" [""] "How long guests moved from here stood still.";
    MOVE_BLACKOUT = Histogram "pollux_move_blackout_seconds" [""] "How long no frame of guests moved from here left a node, seen from outside.";
    MOVE_TIME = Histogram "pollux_move_seconds" [""] "How long moves from here took that succeeded.";
    MOVE_ROUNDS = Histogram "pollux_move_rounds" [""] "Passes over memory of moves from here that succeeded.";
    MOVE_BYTES = Counter "pollux_move_sent_bytes_total" [""] "Bytes on the wire of moves from here that succeeded.";
    MOVE_PENDING = Gauge "pollux_move_pending_bytes" [""] "Guest memory that moves under way from here have still to send.";
    MOVE_RATE = Gauge "pollux_move_rate_bytes_per_second" [""] "Guest memory per second that moves under way from here send.";
    MOVE_DIRTY = Gauge "pollux_move_dirty_bytes_per_second" [""] "Guest memory per second that guests on their way from here write.";

    VOLUMES = Gauge "pollux_volumes" ["health"] "Volumes of the cluster by how many of their replicas are in sync, as this node knows.";
    VOLUME_SIZE = Gauge "pollux_volume_size_bytes" ["volume"] "Size of a volume that this node uses.";
    VOLUME_IN_SYNC = Gauge "pollux_volume_replicas_in_sync" ["volume"] "Replicas of it that hold every acknowledged write and can be reached.";
    VOLUME_REPLICAS = Gauge "pollux_volume_replicas" ["volume"] "Replicas that it should have.";
    VOLUME_LACKS = Gauge "pollux_volume_lacking_bytes" ["volume"] "Bytes that its other replicas lack, all together.";
    VOLUME_OPEN = Gauge "pollux_volume_open_requests" ["volume"] "Requests of its guest without an answer.";
    VOLUME_TROUBLED = Gauge "pollux_volume_troubled" ["volume"] "1 if its guest's last request failed.";
    VOLUME_DIFFERS = Gauge "pollux_volume_differing_bytes" ["volume"] "Bytes in which its replicas were found to differ when this node compared them last.";
    VOLUME_COMPARED = Gauge "pollux_volume_compared_timestamp_seconds" ["volume"] "When this node found that last, in seconds since 1970; 0: never since its daemon began.";
    POOL_SIZE = Gauge "pollux_pool_size_bytes" ["pool"] "Size of a pool of this node.";
    POOL_FREE = Gauge "pollux_pool_free_bytes" ["pool"] "Bytes that can still be written there.";
    POOL_USED = Gauge "pollux_pool_used_bytes" ["pool"] "Bytes that replicas take of it.";
    POOL_READY = Gauge "pollux_pool_ready" ["pool"] "0 if the pool cannot be used.";

    GATE_FRAMES = Counter "pollux_gate_frames_total" ["direction outcome"] "Frames of guests on this node, and what became of them.";
    GATE_BYTES = Counter "pollux_gate_bytes_total" ["direction"] "Bytes of those that passed.";

    TERM = Gauge "pollux_raft_term" [""] "The term this node is in.";
    IS_LEADER = Gauge "pollux_raft_is_leader" [""] "1 if this node leads.";
    HAS_LEADER = Gauge "pollux_raft_has_leader" [""] "1 if this node knows who leads.";
    VOTERS = Gauge "pollux_raft_voters" [""] "Nodes that vote.";
    LOG_INDEX = Gauge "pollux_raft_log_index" ["what"] "Index of the last entry in this node's log, applied, in its snapshot.";
    LEADER_CHANGES = Counter "pollux_raft_leader_changes_total" [""] "How often this node has come to know another leader.";
    TERMS = Counter "pollux_raft_terms_total" [""] "Terms that began while this node watched.";
    ELECTIONS = Counter "pollux_raft_elections_total" [""] "Elections for which this node stood.";
    SPURIOUS_ELECTIONS = Counter "pollux_raft_spurious_elections_total" [""] "Those among them that it did not win: a term for nothing.";
    TOUCHED = Gauge "pollux_raft_touched_seconds" [""] "Since this node was last in touch with whoever leads.";
    PROPOSAL = Histogram "pollux_proposal_seconds" ["outcome"] "How long changes that this node asked for took to be agreed on, repeats included.";

    PEERS = Gauge "pollux_link_peers" ["class"] "Other nodes that this node has a connection to.";
    CONNECTIONS = Counter "pollux_link_connections_total" ["side"] "Connections between daemons that were opened.";
    SERVED = Counter "pollux_link_served_total" ["what"] "Calls, sessions and joins that this node served.";
    REFUSALS = Counter "pollux_link_refusals_total" ["why"] "What this node refused from others, or gave up, by why.";
}

/// Bounds of seconds that somebody waits.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0];
/// Bounds of seconds that a move takes.
const MOVE_SECONDS: [f64; 10] = [0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 1800.0];
const ROUNDS: [f64; 8] = [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0];

/// How an attempt to change something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proposed {
    Applied,
    Refused,
    Unknown,
}

impl Proposed {
    const ALL: [Self; 3] = [Self::Applied, Self::Refused, Self::Unknown];

    const fn word(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

/// Makes the process's recorder. Once per process; a second daemon in it would share the first one's.
pub(crate) fn install() -> Result<PrometheusHandle, BuildError> {
    let recorder = recorder()?;
    let handle = recorder.handle();
    // Taken already: its owner shows what is recorded.
    let _ = ::metrics::set_global_recorder(recorder);
    begin();
    Ok(handle)
}

fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let bounds = |name: &str| Matcher::Full(name.to_owned());
    Ok(PrometheusBuilder::new()
        .set_buckets_for_metric(bounds(MOVE_PAUSE), &SECONDS)?
        .set_buckets_for_metric(bounds(MOVE_BLACKOUT), &SECONDS)?
        .set_buckets_for_metric(bounds(PROPOSAL), &SECONDS)?
        .set_buckets_for_metric(bounds(MOVE_TIME), &MOVE_SECONDS)?
        .set_buckets_for_metric(bounds(MOVE_ROUNDS), &ROUNDS)?
        .build_recorder())
}

/// Says what everything is, and begins what is counted from now on at zero.
fn begin() {
    for metric in ALL {
        match metric.kind {
            Kind::Counter => ::metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => ::metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => ::metrics::describe_histogram!(metric.name, metric.help),
        }
    }
    moves::begin();
    ::metrics::counter!(LEADER_CHANGES).absolute(0);
    for outcome in Proposed::ALL {
        drop(::metrics::histogram!(PROPOSAL, "outcome" => outcome.word()));
    }
}

/// What the recorder shows, in the order of [`ALL`] and the values of each name in order: it has none of its own.
pub(crate) fn ordered(shown: &str) -> String {
    let mut families: Vec<(usize, String)> =
        shown.split("\n\n").map(str::trim).filter(|text| !text.is_empty()).map(family).collect();
    families.sort();
    families.iter().flat_map(|(_, text)| [text.as_str(), "\n"]).collect()
}

/// All lines of one name, and its place among the names.
fn family(text: &str) -> (usize, String) {
    let (comments, mut values): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with('#'));
    let metric =
        ALL.iter().position(|metric| comments.iter().any(|line| line.starts_with(&format!("# TYPE {} ", metric.name))));
    // The bounds of a histogram stand in their own order.
    if metric.is_none_or(|at| ALL[at].kind != Kind::Histogram) {
        values.sort_unstable();
    }
    let lines = comments.into_iter().chain(values);
    (metric.unwrap_or(ALL.len()), lines.flat_map(|line| [line, "\n"]).collect())
}

/// A change was asked for, and this came of it after so long.
pub(crate) fn proposed(took: Duration, outcome: Proposed) {
    ::metrics::histogram!(PROPOSAL, "outcome" => outcome.word()).record(took.as_secs_f64());
}

/// This node has come to know another leader.
pub(crate) fn leader_changed() {
    ::metrics::counter!(LEADER_CHANGES).increment(1);
}

/// The metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// Nothing can listen there.
    #[error("metrics cannot be served on {address}: {source}; choose another address with --metrics, or none")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The figures contradict each other.
    #[error("the metrics' bounds make no sense: {0}")]
    Bounds(#[from] BuildError),
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const DOCS: &str = include_str!("../../../../docs/metrics.md");

    /// The names of what is exported, as a scrape sees them.
    fn exported(text: &str) -> BTreeSet<(String, String)> {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types.map(|line| line.split_once(' ').map(|(name, kind)| (name.to_owned(), kind.to_owned())).unwrap()).collect()
    }

    fn word(kind: Kind) -> &'static str {
        match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }

    #[test]
    fn what_is_exported_is_what_is_documented() {
        let documented: Vec<String> =
            DOCS.lines().filter(|line| line.starts_with("| `pollux_")).map(str::to_owned).collect();
        let table: Vec<String> = ALL
            .iter()
            .map(|metric| {
                let labels: Vec<String> = metric.labels.split_whitespace().map(|label| format!("`{label}`")).collect();
                format!("| `{}` | {} | {} | {} |", metric.name, word(metric.kind), labels.join(", "), metric.help)
            })
            .collect();
        assert_eq!(documented, table, "docs/metrics.md and the table in metrics/mod.rs differ");

        let recorder = recorder().unwrap();
        let text = ::metrics::with_local_recorder(&recorder, || {
            begin();
            for outcome in Proposed::ALL {
                proposed(Duration::from_millis(7), outcome);
            }
            sample::tests::example().set();
            recorder.handle().render() + &sample::tests::example().storage()
        });
        let wanted: BTreeSet<_> =
            ALL.iter().map(|metric| (metric.name.to_owned(), word(metric.kind).to_owned())).collect();
        assert_eq!(exported(&text), wanted, "{text}");
        for metric in ALL {
            let labels: Vec<&str> = metric.labels.split_whitespace().collect();
            // A name may be the beginning of another's.
            let of_it = |line: &&str| {
                let name = line.split(['{', ' ']).next().unwrap_or_default();
                ["", "_bucket", "_sum", "_count"].iter().any(|part| name.strip_suffix(part) == Some(metric.name))
            };
            let lines: Vec<&str> = text.lines().filter(of_it).collect();
            assert!(!lines.is_empty(), "{} has no value", metric.name);
            assert!(labels.iter().all(|label| lines[0].contains(&format!("{label}=\""))), "{lines:?} lacks {labels:?}");
            assert!(
                text.contains(&format!("# HELP {} {}", metric.name, metric.help)),
                "{} is not described",
                metric.name
            );
        }
        let ordered = ordered(&text);
        let names: Vec<&str> =
            ordered.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        assert_eq!(
            names,
            ALL.iter().map(|metric| metric.name).collect::<Vec<_>>(),
            "in the order of the documentation"
        );
        let mut lines: [Vec<&str>; 2] =
            [text.as_str(), &ordered].map(|text| text.lines().filter(|line| !line.is_empty()).collect());
        lines.iter_mut().for_each(|lines| lines.sort_unstable());
        assert_eq!(lines[0], lines[1], "and nothing is lost by ordering");
        assert!(text.contains("pollux_proposal_seconds_bucket{outcome=\"applied\",le=\"0.01\"} 1"), "{text}");
    }

    #[test]
    fn everything_counted_is_there_before_anything_has_happened() {
        let recorder = recorder().unwrap();
        let text = ::metrics::with_local_recorder(&recorder, || {
            begin();
            sample::tests::example().set();
            recorder.handle().render() + &sample::tests::example().storage()
        });
        for line in [
            "pollux_moves_started_total 0",
            "pollux_moves_ended_total{result=\"failed\"} 0",
            "pollux_raft_leader_changes_total 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
    }
}
