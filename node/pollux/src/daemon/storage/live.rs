//! How a volume is that is in use: only the node that uses it knows.

use std::collections::BTreeSet;

use pollux_state::id::VolumeId;
use pollux_volume::VolumeStatus;
use serde::{Deserialize, Serialize};

use super::super::run::Daemon;

/// A volume in use. Travels between daemons as JSON, so that either may be newer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::daemon) struct Live {
    /// Its replicas.
    pub(super) replicas: Vec<LiveReplica>,
    /// Requests without an answer.
    pub(super) open: u64,
    /// Why the last request failed, until one succeeds.
    pub(super) trouble: Option<String>,
}

/// A replica as who uses the volume sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct LiveReplica {
    pub(super) id: u64,
    pub(super) sound: bool,
    pub(super) reached: bool,
    pub(super) lacks: u64,
    pub(super) copied: u64,
    pub(super) why: Option<String>,
}

/// How a volume is that this node uses.
pub(in crate::daemon) fn here(daemon: &Daemon, volume: VolumeId) -> Option<Live> {
    daemon.volumes()?.status(volume).map(Live::from)
}

/// What was copied to these replicas, and what is left, in bytes.
pub(super) fn copied<'a>(told: impl Iterator<Item = &'a Live>, replicas: &BTreeSet<u64>) -> (u64, u64) {
    let of_them = told.flat_map(|live| &live.replicas).filter(|it| replicas.contains(&it.id));
    of_them.fold((0, 0), |(copied, left), it| (copied + it.copied, left + it.lacks))
}

impl From<VolumeStatus> for Live {
    fn from(status: VolumeStatus) -> Self {
        let replicas = status.replicas.into_iter().map(|it| LiveReplica {
            id: it.id.0,
            sound: it.sound,
            reached: it.reached,
            lacks: it.lacks,
            copied: it.copied,
            why: it.why,
        });
        Self {
            replicas: replicas.collect(),
            open: status.open as u64,
            trouble: status.trouble.or_else(|| status.over.map(str::to_owned)),
        }
    }
}
