//! The figures that are looked up when somebody asks.

use std::collections::BTreeMap;

use pollux_net::Counters as Frames;
use pollux_vm::{event::Progress, pages::PAGE_BYTES};

use super::{
    BUILD_INFO, CONNECTIONS, ELECTIONS, GATE_BYTES, GATE_FRAMES, HAS_LEADER, INCARNATION, IS_LEADER, LOG_INDEX,
    MOVE_DIRTY, MOVE_PENDING, MOVE_RATE, MOVES_UNDER_WAY, PEERS, QEMU_PROCESSES, REFUSALS, SERVED, SPURIOUS_ELECTIONS,
    TERM, TERMS, TOUCHED, VMS, VMS_FAILING, VMS_HERE, VOTERS,
    storage::{self, PoolSample, VolumeSample},
};

/// The phases a VM can be in, in the API's words.
pub(crate) const PHASES: [&str; 4] = ["stopped", "running", "moving", "arriving"];
/// What a node can be doing with a VM that it owns, in the API's words.
pub(crate) const RUNTIMES: [&str; 9] =
    ["none", "starting", "running", "paused", "sending", "saving", "receiving", "stopping", "fenced"];

/// What a look found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample {
    pub(crate) version: String,
    pub(crate) qemu: String,
    pub(crate) accelerator: String,
    pub(crate) incarnation: u64,
    /// VMs of the cluster, by phase.
    pub(crate) phases: BTreeMap<&'static str, u64>,
    /// VMs that this node owns, by runtime.
    pub(crate) runtimes: BTreeMap<&'static str, u64>,
    pub(crate) failing: u64,
    pub(crate) machines: u64,
    /// Moves from here that have not ended.
    pub(crate) under_way: u64,
    /// Where those stand that have begun.
    pub(crate) progress: Vec<Progress>,
    pub(crate) frames: Frames,
    pub(crate) raft: Raft,
    pub(crate) link: pollux_link::Counters,
    /// Other nodes with a connection, by its class.
    pub(crate) peers: BTreeMap<&'static str, u64>,
    /// Volumes of the cluster, by health.
    pub(crate) healths: BTreeMap<&'static str, u64>,
    /// Volumes that this node uses.
    pub(crate) volumes: Vec<VolumeSample>,
    /// Pools of this node.
    pub(crate) pools: Vec<PoolSample>,
}

/// The consensus, as this node sees it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Raft {
    pub(crate) term: u64,
    pub(crate) leads: bool,
    pub(crate) has_leader: bool,
    pub(crate) voters: u64,
    pub(crate) last: u64,
    pub(crate) applied: u64,
    pub(crate) snapshot: u64,
    /// Since it was last in touch with whoever leads; `None`: it never was.
    pub(crate) touched_ms: Option<u64>,
    pub(crate) counts: pollux_raft::Counts,
}

impl Sample {
    /// Shows what was found.
    pub(crate) fn set(&self) {
        // What runs here is known when this life of the daemon is.
        if self.incarnation > 0 {
            let (version, qemu, accelerator) = (self.version.clone(), self.qemu.clone(), self.accelerator.clone());
            ::metrics::gauge!(BUILD_INFO, "version" => version, "qemu" => qemu, "accelerator" => accelerator).set(1.0);
        }
        gauge(INCARNATION, self.incarnation);
        self.vms();
        storage::set_healths(&self.healths);
        self.moves();
        self.gate();
        self.consensus();
        self.links();
    }

    /// What was found of pools and volumes in use, as Prometheus reads it: the recorder has none of it.
    pub(crate) fn storage(&self) -> String {
        storage::text(&self.volumes, &self.pools)
    }

    fn vms(&self) {
        let among = |found: &BTreeMap<&'static str, u64>, word| found.get(word).copied().unwrap_or_default();
        for phase in PHASES {
            ::metrics::gauge!(VMS, "phase" => phase).set(float(among(&self.phases, phase)));
        }
        for runtime in RUNTIMES {
            ::metrics::gauge!(VMS_HERE, "runtime" => runtime).set(float(among(&self.runtimes, runtime)));
        }
        gauge(VMS_FAILING, self.failing);
        gauge(QEMU_PROCESSES, self.machines);
    }

    fn moves(&self) {
        let sum = |of: fn(&Progress) -> u64| self.progress.iter().map(of).fold(0, u64::saturating_add);
        gauge(MOVES_UNDER_WAY, self.under_way);
        gauge(MOVE_PENDING, sum(|progress| progress.pending_pages.saturating_mul(PAGE_BYTES as u64)));
        gauge(MOVE_RATE, sum(|progress| progress.bytes_per_s));
        gauge(MOVE_DIRTY, sum(|progress| progress.dirty_pages_per_s.saturating_mul(PAGE_BYTES as u64)));
    }

    fn gate(&self) {
        let frames = &self.frames;
        for (direction, outcome, count) in [
            ("out", "passed", frames.frames_out),
            ("out", "refused_closed", frames.refused_closed),
            ("out", "refused_stale", frames.refused_stale),
            ("out", "refused_ahead", frames.refused_ahead),
            ("out", "malformed", frames.malformed_out),
            ("out", "lost", frames.lost_out),
            ("out", "announced", frames.announced),
            ("in", "passed", frames.frames_in),
            ("in", "dropped_closed", frames.dropped_in_closed),
            ("in", "dropped_full", frames.dropped_in_full),
        ] {
            ::metrics::counter!(GATE_FRAMES, "direction" => direction, "outcome" => outcome).absolute(count);
        }
        ::metrics::counter!(GATE_BYTES, "direction" => "out").absolute(frames.bytes_out);
        ::metrics::counter!(GATE_BYTES, "direction" => "in").absolute(frames.bytes_in);
    }

    fn consensus(&self) {
        let raft = &self.raft;
        gauge(TERM, raft.term);
        gauge(IS_LEADER, u64::from(raft.leads));
        gauge(HAS_LEADER, u64::from(raft.has_leader));
        gauge(VOTERS, raft.voters);
        for (what, index) in [("last", raft.last), ("applied", raft.applied), ("snapshot", raft.snapshot)] {
            ::metrics::gauge!(LOG_INDEX, "what" => what).set(float(index));
        }
        ::metrics::counter!(TERMS).absolute(raft.counts.terms);
        ::metrics::counter!(ELECTIONS).absolute(raft.counts.elections);
        ::metrics::counter!(SPURIOUS_ELECTIONS).absolute(raft.counts.spurious_elections);
        if let Some(ms) = raft.touched_ms {
            ::metrics::gauge!(TOUCHED).set(float(ms) / 1000.0);
        }
    }

    fn links(&self) {
        let link = &self.link;
        for class in ["consensus", "bulk"] {
            let count = self.peers.get(class).copied().unwrap_or_default();
            ::metrics::gauge!(PEERS, "class" => class).set(float(count));
        }
        ::metrics::counter!(CONNECTIONS, "side" => "accepted").absolute(link.connections_accepted);
        ::metrics::counter!(CONNECTIONS, "side" => "dialled").absolute(link.connections_dialled);
        for (what, count) in
            [("calls", link.calls_served), ("sessions", link.sessions_served), ("joins", link.joins_served)]
        {
            ::metrics::counter!(SERVED, "what" => what).absolute(count);
        }
        for (why, count) in link.all_refusals() {
            ::metrics::counter!(REFUSALS, "why" => why).absolute(count);
        }
    }
}

fn gauge(name: &'static str, value: u64) {
    ::metrics::gauge!(name).set(float(value));
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people and graphs: 15 digits of it")]
pub(super) fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A node that runs two VMs, one of which it is moving away.
    pub(in crate::metrics) fn example() -> Sample {
        Sample {
            version: "0.1.0".into(),
            qemu: "QEMU 10.0.2 \"Debian\"".into(),
            accelerator: "tcg".into(),
            incarnation: 4,
            phases: [("running", 1), ("moving", 1)].into(),
            runtimes: [("running", 1), ("sending", 1)].into(),
            machines: 2,
            under_way: 1,
            progress: vec![Progress {
                pending_pages: 100,
                bytes_per_s: 5 << 20,
                dirty_pages_per_s: 7,
                ..Progress::default()
            }],
            frames: Frames { frames_out: 10, bytes_out: 1000, refused_stale: 1, ..Frames::default() },
            raft: Raft {
                term: 3,
                leads: true,
                has_leader: true,
                voters: 3,
                last: 90,
                applied: 88,
                snapshot: 0,
                touched_ms: Some(250),
                counts: pollux_raft::Counts { terms: 2, spurious_elections: 1, ..pollux_raft::Counts::default() },
            },
            link: pollux_link::Counters {
                wrong_cluster: 2,
                connections_dialled: 4,
                ..pollux_link::Counters::default()
            },
            peers: [("consensus", 2)].into(),
            healths: [("degraded", 1)].into(),
            volumes: vec![VolumeSample {
                name: "data".into(),
                size: 1 << 30,
                replicas: 2,
                in_sync: 1,
                lacks: 4096,
                open: 3,
                troubled: false,
                compared: (65_536, 1_700_000_000_000),
            }],
            pools: vec![
                PoolSample { name: "fast".into(), space: Some((100, 60, 10)) },
                PoolSample { name: "slow".into(), space: None },
            ],
            ..Sample::default()
        }
    }

    #[test]
    fn a_look_shows_what_there_is_and_what_there_is_none_of() {
        let recorder = super::super::recorder().unwrap();
        let text = ::metrics::with_local_recorder(&recorder, || {
            example().set();
            recorder.handle().render() + &example().storage()
        });
        for line in [
            "pollux_build_info{version=\"0.1.0\",qemu=\"QEMU 10.0.2 \\\"Debian\\\"\",accelerator=\"tcg\"} 1",
            "pollux_vms{phase=\"moving\"} 1",
            "pollux_vms{phase=\"arriving\"} 0",
            "pollux_vms_here{runtime=\"sending\"} 1",
            "pollux_move_pending_bytes 409600",
            "pollux_move_dirty_bytes_per_second 28672",
            "pollux_gate_frames_total{direction=\"out\",outcome=\"refused_stale\"} 1",
            "pollux_gate_bytes_total{direction=\"out\"} 1000",
            "pollux_volumes{health=\"degraded\"} 1",
            "pollux_volume_replicas_in_sync{volume=\"data\"} 1",
            "pollux_pool_free_bytes{pool=\"fast\"} 60",
            "pollux_pool_ready{pool=\"slow\"} 0",
            "pollux_raft_is_leader 1",
            "pollux_raft_log_index{what=\"applied\"} 88",
            "pollux_raft_spurious_elections_total 1",
            "pollux_raft_touched_seconds 0.25",
            "pollux_link_peers{class=\"bulk\"} 0",
            "pollux_link_refusals_total{why=\"wrong_cluster\"} 2",
            "pollux_link_refusals_total{why=\"garbage\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        assert!(!text.contains("pollux_pool_free_bytes{pool=\"slow\"}"), "nobody knows that");
    }
}
