//! What Prometheus is told of pools and volumes.

use std::collections::BTreeMap;

use pollux_api::{ReplicaState, VolumeHealth, VolumeView};
use pollux_state::ClusterState;

use super::{Down, live_here, usage_here, views};
use crate::{
    daemon::run::Daemon,
    metrics::{HEALTHS, PoolSample, Sample, VolumeSample},
    volumes::Volumes,
};

/// Adds what this node's pools have, how the volumes are that it uses, and how many of the cluster's are whole.
pub(in crate::daemon) async fn look(daemon: &Daemon, state: &ClusterState, sample: &mut Sample) {
    let compared: BTreeMap<_, _> = daemon.volumes().map(Volumes::compared).unwrap_or_default().into_iter().collect();
    for volume in state.volumes.values() {
        let live = live_here(daemon, volume.id);
        let view = views::volume(state, volume, &Down::new(), live.as_ref());
        if let Some(word) = health(view.health) {
            *sample.healths.entry(word).or_default() += 1;
        }
        if live.is_some() {
            let found = compared.get(&volume.id);
            let differs = found.map_or(0, |it| it.differs.iter().map(|it| it.bytes).sum());
            sample.volumes.push(of_volume(view, (differs, found.map_or(0, |it| it.at))));
        }
    }
    for usage in usage_here(daemon).await {
        let name = state.pools.get(&usage.pool).map(|pool| pool.name.clone());
        let space = usage.space.ok().map(|space| (space.size, space.free, space.used));
        sample.pools.extend(name.map(|name| PoolSample { name, space }));
    }
}

fn of_volume(view: VolumeView, compared: (u64, u64)) -> VolumeSample {
    let in_sync = view.replicas.iter().filter(|replica| replica.state == ReplicaState::Insync);
    VolumeSample {
        in_sync: in_sync.count() as u64,
        replicas: view.replicas.len() as u64,
        lacks: view.replicas.iter().filter_map(|replica| replica.lacks_bytes).fold(0, u64::saturating_add),
        open: view.open_requests.unwrap_or_default(),
        troubled: view.trouble.is_some(),
        compared,
        size: view.size_bytes,
        name: view.name,
    }
}

/// The word for it; `None`: it is not known.
fn health(health: VolumeHealth) -> Option<&'static str> {
    let at = match health {
        VolumeHealth::Making => 0,
        VolumeHealth::Ready => 1,
        VolumeHealth::Degraded => 2,
        VolumeHealth::Failed => 3,
        VolumeHealth::Unknown => return None,
    };
    Some(HEALTHS[at])
}
