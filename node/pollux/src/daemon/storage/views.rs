//! Pools and volumes as the API shows them: what was decided, and what their nodes say now.

use pollux_api::{
    PoolState, PoolView, ReplicaState, ReplicaView, VolumeHealth, VolumeMoveView, VolumeView, WriterView,
};
use pollux_state::{
    ClusterState,
    id::ReplicaId,
    operation::OperationKind,
    volume::{Pool, Replica, Stage, Volume},
};

use super::{
    Down,
    live::{Live, LiveReplica},
};
use crate::volumes::PoolUsage;

/// `told`: what its node said; `None`: nothing.
pub(super) fn pool(state: &ClusterState, pool: &Pool, told: Option<&[PoolUsage]>) -> PoolView {
    let node = state.name_of(pool.node).map_or_else(|| pool.node.to_string(), str::to_owned);
    let within = || {
        let all = state.volumes.values();
        all.filter(|volume| volume.replicas.values().any(|replica| replica.pool == pool.id))
    };
    let of_it = told.map(|told| told.iter().find(|usage| usage.pool == pool.id).map(|usage| &usage.space));
    let (how, why, space) = match of_it {
        None => (PoolState::Unknown, Some(format!("{node} does not answer")), None),
        Some(None) => (PoolState::Unknown, Some(format!("{node} has yet to hear of it")), None),
        Some(Some(Ok(space))) => (PoolState::Ready, None, Some(space)),
        Some(Some(Err(why))) => (PoolState::Failed, Some(why.clone()), None),
    };
    PoolView {
        place: state.place_of(pool.id),
        node,
        name: pool.name.clone(),
        path: pool.path.clone(),
        state: how,
        why,
        size_bytes: space.map(|space| space.size),
        free_bytes: space.map(|space| space.free),
        used_bytes: space.map(|space| space.used),
        promised_bytes: within().map(|volume| volume.size).fold(0, u64::saturating_add),
        replicas: within().count() as u64,
        since: pool.since,
    }
}

/// `live`: what the node says that uses it; `None`: nobody does, or it does not answer.
pub(super) fn volume(state: &ClusterState, volume: &Volume, down: &Down, live: Option<&Live>) -> VolumeView {
    let replicas: Vec<ReplicaView> =
        volume.replicas.iter().map(|(id, it)| replica(state, volume, (*id, it), down, live)).collect();
    let user = volume.user.and_then(|vm| state.vms.get(&vm));
    let vm = user.map(|vm| vm.spec.name.clone());
    VolumeView {
        id: volume.id.0,
        name: volume.name.clone(),
        size_bytes: volume.size,
        health: health(volume, &replicas),
        incomplete: volume.incomplete,
        writer: state.writer(volume).map(|writer| WriterView {
            node: state.name_of(writer.node).map_or_else(|| writer.node.to_string(), str::to_owned),
            doing: match (&vm, volume.holder) {
                (_, Some(hold)) => hold.purpose.doing().to_owned(),
                (Some(vm), None) => format!("running VM {vm}"),
                (None, None) => "using it".to_owned(),
            },
        }),
        vm,
        firmware: user.is_some_and(|vm| vm.spec.firmware() == Some(volume.id)),
        generation: volume.generation.0,
        version: volume.version,
        replicas,
        moving: volume.moving.map(|moving| VolumeMoveView {
            operation: moving.op.to_string(),
            from: state.place_of_replica(volume, moving.from),
            to: state.place_of_replica(volume, moving.to),
            phase: match volume.stage() {
                Some(Stage::Comparing) => "comparing",
                Some(Stage::Kept { .. }) => "kept",
                Some(Stage::Copying) | None => "copying",
            }
            .to_owned(),
            keep_ms: match state.operations.get(&moving.op).map(|operation| &operation.kind) {
                Some(OperationKind::MoveVolume { keep_ms, .. }) => *keep_ms,
                Some(OperationKind::Migrate { .. }) | None => 0,
            },
        }),
        open_requests: live.map(|live| live.open),
        trouble: live.and_then(|live| live.trouble.clone()),
        compared: None,
        created: volume.created,
    }
}

fn replica(
    state: &ClusterState,
    volume: &Volume,
    (id, replica): (ReplicaId, &Replica),
    down: &Down,
    live: Option<&Live>,
) -> ReplicaView {
    let node = state.node_of_replica(volume, id);
    let name = node.and_then(|node| state.name_of(node)).unwrap_or_default().to_owned();
    let in_sync = volume.set.contains(&id);
    let seen = live.and_then(|live| live.replicas.iter().find(|seen| seen.id == id.0));
    let is_down = node.is_some_and(|node| down.contains(&node));
    let (how, why) = judge(replica, in_sync, seen, is_down.then(|| format!("{name} is down")));
    ReplicaView {
        id: id.0,
        place: state.place_of(replica.pool),
        node: name,
        state: how,
        in_sync,
        authority: volume.authority == id,
        lacks_bytes: seen.filter(|_| how != ReplicaState::Insync).map(|seen| seen.lacks),
        why,
    }
}

/// Its node's word goes first, then that of who uses it, then what the leader thinks of its node.
fn judge(
    replica: &Replica,
    in_sync: bool,
    seen: Option<&LiveReplica>,
    down: Option<String>,
) -> (ReplicaState, Option<String>) {
    if let Some(why) = &replica.failed {
        return (ReplicaState::Failed, Some(why.clone()));
    }
    if !replica.made {
        return (ReplicaState::Making, down);
    }
    if let Some(seen) = seen {
        let why = seen.why.clone();
        return match (seen.reached, in_sync && seen.sound) {
            (true, true) => (ReplicaState::Insync, None),
            (true, false) => (ReplicaState::Behind, why),
            (false, _) => (ReplicaState::Unreachable, why.or(down)),
        };
    }
    match (down, in_sync) {
        (Some(down), _) => (ReplicaState::Unreachable, Some(down)),
        (None, true) => (ReplicaState::Insync, None),
        (None, false) => (ReplicaState::Behind, None),
    }
}

fn health(volume: &Volume, replicas: &[ReplicaView]) -> VolumeHealth {
    let sound = |replica: &ReplicaView| replica.state == ReplicaState::Insync;
    if volume.unmade().next().is_some() {
        VolumeHealth::Making
    } else if !replicas.iter().any(sound) {
        VolumeHealth::Failed
    } else if replicas.iter().filter(|it| !is_on_its_way(volume, it)).all(sound) {
        VolumeHealth::Ready
    } else {
        VolumeHealth::Degraded
    }
}

/// A replica that a move brings is no loss while it is not there yet.
fn is_on_its_way(volume: &Volume, replica: &ReplicaView) -> bool {
    !replica.in_sync && volume.moving.is_some_and(|moving| moving.to.0 == replica.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Replica {
        Replica { pool: pollux_state::id::PoolId(1), made: true, failed: None }
    }

    fn seen(sound: bool, reached: bool) -> LiveReplica {
        LiveReplica { id: 1, sound, reached, lacks: 4096, copied: 0, why: Some("it was slow".into()) }
    }

    #[test]
    fn a_replica_is_what_its_node_then_its_user_then_the_leader_says() {
        let down = || Some("n2 is down".to_owned());
        let failed = Replica { failed: Some("its log is torn".into()), ..made() };
        let state = |replica: &Replica, in_sync, seen: Option<&LiveReplica>, down| judge(replica, in_sync, seen, down);

        let (how, why) = state(&failed, true, Some(&seen(true, true)), None);
        assert_eq!((how, why.as_deref()), (ReplicaState::Failed, Some("its log is torn")));
        let unmade = Replica { made: false, ..made() };
        assert_eq!(state(&unmade, true, None, None).0, ReplicaState::Making);
        assert_eq!(
            state(&made(), true, Some(&seen(true, true)), down()).0,
            ReplicaState::Insync,
            "its user reaches it"
        );
        assert_eq!(
            state(&made(), true, Some(&seen(false, true)), None).0,
            ReplicaState::Behind,
            "it has failed just now"
        );
        assert_eq!(state(&made(), false, Some(&seen(false, true)), None).1.as_deref(), Some("it was slow"));
        assert_eq!(state(&made(), true, Some(&seen(true, false)), None).0, ReplicaState::Unreachable);
        assert_eq!(state(&made(), true, None, down()).0, ReplicaState::Unreachable, "nobody uses it");
        assert_eq!(state(&made(), true, None, None).0, ReplicaState::Insync);
        assert_eq!(state(&made(), false, None, None).0, ReplicaState::Behind);
    }
}
