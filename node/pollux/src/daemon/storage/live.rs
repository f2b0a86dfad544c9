//! How a volume is that is in use: only the node that uses it knows.

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
    pub(super) why: Option<String>,
}

/// How a volume is that this node uses.
pub(in crate::daemon) fn here(daemon: &Daemon, volume: VolumeId) -> Option<Live> {
    daemon.volumes()?.status(volume).map(Live::from)
}

impl From<VolumeStatus> for Live {
    fn from(status: VolumeStatus) -> Self {
        let replicas = status.replicas.into_iter().map(|it| LiveReplica {
            id: it.id.0,
            sound: it.sound,
            reached: it.reached,
            lacks: it.lacks,
            why: it.why,
        });
        Self {
            replicas: replicas.collect(),
            open: status.open as u64,
            trouble: status.trouble.or_else(|| status.over.map(str::to_owned)),
        }
    }
}
