//! Which of a VM's volumes go along when it moves, from where to where, and what stands in the way.

use std::collections::BTreeMap;

use pollux_api::{DiskMoveView, Obstacle, Storage};
use pollux_state::{
    ClusterState,
    id::{NodeId, PoolId, ReplicaId},
    operation::Along,
    vm::Vm,
    volume::Volume,
};

use super::super::{forward, run::Daemon};
use crate::volumes::PoolUsage;

/// What a user wants to become of a VM's volumes.
#[derive(Debug, Clone, Default)]
pub(in crate::daemon) struct Wish {
    pub(in crate::daemon) storage: Storage,
    /// The pool at the target.
    pub(in crate::daemon) pool: Option<String>,
}

/// What would become of them.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Plan {
    pub(in crate::daemon) along: Vec<Along>,
    pub(in crate::daemon) disks: Vec<DiskMoveView>,
    pub(in crate::daemon) obstacles: Vec<Obstacle>,
}

/// What becomes of one volume.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It is in sync at the target, in this pool.
    There(PoolId),
    /// It is used from where it is.
    Afar,
    /// A replica in this pool of the target takes the place of that one.
    Along(ReplicaId, PoolId),
}

/// What would become of the volumes of `vm` if it moved to `to`. Pools are asked what they have when something is to be copied.
pub(in crate::daemon) async fn plan(daemon: &Daemon, state: &ClusterState, vm: &Vm, to: NodeId, wish: &Wish) -> Plan {
    let mut plan = Plan::default();
    let source = vm.phase.owner().map_or(vm.home, |owner| owner.node);
    for it in vm.spec.disks.iter().filter_map(|disk| state.volumes.get(&disk.volume)) {
        let place = |pool: PoolId| Some(state.place_of(pool));
        let mut view = DiskMoveView { volume: it.name.clone(), from: None, to: None, copy_bytes: None };
        match fate(state, it, (source, to), wish) {
            Ok(Fate::There(pool)) => view.to = place(pool),
            Ok(Fate::Afar) => {}
            Ok(Fate::Along(from, pool)) => {
                (view.from, view.to) = (Some(state.place_of_replica(it, from)), place(pool));
                plan.along.push(Along { volume: it.id, from, pool, version: it.version });
            }
            Err(why) => plan.obstacles.push(Obstacle::new("storage", why)),
        }
        plan.disks.push(view);
    }
    if !plan.along.is_empty() {
        plan.weigh(state, &usage(daemon, state, to, &plan.along).await);
    }
    plan
}

/// What the pools of the target and of the replicas that would be read say of themselves.
async fn usage(daemon: &Daemon, state: &ClusterState, to: NodeId, along: &[Along]) -> Vec<PoolUsage> {
    let copied = along.iter().filter_map(|it| state.volumes.get(&it.volume));
    let mut nodes: Vec<NodeId> = copied.filter_map(|it| state.node_of_replica(it, it.authority)).collect();
    nodes.push(to);
    nodes.sort_unstable();
    nodes.dedup();
    let asked = futures::future::join_all(nodes.iter().map(|node| forward::pools(daemon, state, *node))).await;
    asked.into_iter().flatten().flatten().collect()
}

impl Plan {
    /// How much is to be copied, and whether there is room for it.
    fn weigh(&mut self, state: &ClusterState, usage: &[PoolUsage]) {
        let spaces = || usage.iter().filter_map(|usage| Some((usage.pool, usage.space.as_ref().ok()?)));
        let taken: BTreeMap<ReplicaId, u64> = spaces().flat_map(|(_, space)| space.replicas.iter().copied()).collect();
        let mut needed: BTreeMap<PoolId, u64> = BTreeMap::new();
        for along in &self.along {
            let Some(it) = state.volumes.get(&along.volume) else { continue };
            let bytes = taken.get(&it.authority).copied();
            *needed.entry(along.pool).or_default() += bytes.unwrap_or_default();
            if let Some(view) = self.disks.iter_mut().find(|view| view.volume == it.name) {
                view.copy_bytes = bytes;
            }
        }
        for (pool, bytes) in needed {
            let place = state.place_of(pool);
            let asked = usage.iter().find(|usage| usage.pool == pool).map(|usage| &usage.space);
            let why = match asked {
                Some(Ok(space)) if space.free < bytes => {
                    let (bytes, free) = (mib(bytes), mib(space.free));
                    format!("{bytes} MiB of volumes would go to {place}, which has {free} MiB free")
                }
                Some(Ok(_)) => continue,
                Some(Err(why)) => format!("{place}, where its volumes would go, cannot be used: {why}"),
                None => format!("the node of {place}, where its volumes would go, does not say what is free there"),
            };
            self.obstacles.push(Obstacle::new("storage", why));
        }
    }
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// What becomes of `it` when its VM goes `from` one node `to` another, or why that cannot be.
fn fate(state: &ClusterState, it: &Volume, (from, to): (NodeId, NodeId), wish: &Wish) -> Result<Fate, String> {
    let (name, on) =
        (&it.name, |node: NodeId| it.replicas.keys().find(|id| state.node_of_replica(it, **id) == Some(node)));
    let (target, source) = (state.name_of(to).unwrap_or("the target"), state.name_of(from).unwrap_or("the source"));
    if wish.storage == Storage::FromAfar {
        return Ok(Fate::Afar);
    }
    let there: Vec<ReplicaId> =
        it.replicas.keys().copied().filter(|id| state.node_of_replica(it, *id) == Some(to)).collect();
    if let Some(whole) = there.iter().find(|id| it.set.contains(id)) {
        let stays = on(from).filter(|_| wish.storage == Storage::With);
        if let Some(stays) = stays.map(|id| state.place_of_replica(it, *id)) {
            return Err(format!(
                "volume {name} is on {target} already, and its replica in {stays} would stay on {source}; move that elsewhere \
                 (`pollux volume move {name} --from {stays} --to NODE:POOL`), or leave --with-storage away"
            ));
        }
        return it.replicas.get(whole).map(|it| Fate::There(it.pool)).ok_or_else(|| format!("{whole} is gone"));
    }
    if let Some(behind) = there.first().map(|id| state.place_of_replica(it, *id)) {
        return Err(format!(
            "the replica of volume {name} in {behind} is not in sync yet; wait until it is (`pollux volume show {name}`), or \
             use the volume from where it is: --from-afar"
        ));
    }
    if wish.storage == Storage::ComputeOnly {
        return Err(format!(
            "volume {name} has no replica on {target}; leave --compute-only away to have one made there first, or use it from \
             where it is: --from-afar"
        ));
    }
    if let Some(moving) = &it.moving {
        return Err(format!("operation {} moves a replica of volume {name}; wait for it, or cancel it", moving.op));
    }
    let goes = on(from).copied().unwrap_or(it.authority);
    let like = it.replicas.get(&goes).and_then(|it| state.pools.get(&it.pool)).map(|pool| pool.name.as_str());
    pool(state, to, wish.pool.as_deref(), like).map(|pool| Fate::Along(goes, pool)).map_err(|why| {
        format!("volume {name} has no replica on {target}, and none can be made there: {why}; or use it from afar: --from-afar")
    })
}

/// The pool of `to` that was named, or that is called as the one the volume comes from, or the only one.
fn pool(state: &ClusterState, to: NodeId, named: Option<&str>, like: Option<&str>) -> Result<PoolId, String> {
    let node = state.name_of(to).unwrap_or("the target");
    let pools: Vec<_> = state.pools.values().filter(|pool| pool.node == to).collect();
    let called = |name: &str| pools.iter().find(|pool| pool.name == name).map(|pool| pool.id);
    let names = || pools.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>().join(", ");
    match (named, pools.as_slice()) {
        (_, []) => Err(format!("{node} has no pool (`pollux pool add {node}:NAME DIRECTORY`)")),
        (Some(name), _) => called(name).ok_or_else(|| format!("{node} has no pool {name}, but {}", names())),
        (None, [only]) => Ok(only.id),
        (None, _) => {
            like.and_then(called).ok_or_else(|| format!("{node} has the pools {}; say which: --pool", names()))
        }
    }
}

#[cfg(test)]
mod tests {
    use pollux_state::{
        id::{Incarnation, OpId, VolumeId},
        node::{Facts, Node},
        volume::{Pool, VolumeMove},
    };

    use super::*;
    use crate::volumes::fixture::volume;

    const N1: NodeId = NodeId(1);
    const N3: NodeId = NodeId(3);

    /// Three nodes with a pool `fast` each, and `n3:slow`.
    fn cluster() -> ClusterState {
        let mut state = ClusterState::default();
        for (id, node, name) in [(1, 1, "fast"), (2, 2, "fast"), (3, 3, "fast"), (4, 3, "slow")] {
            let (id, node) = (PoolId(id), NodeId(node));
            let pool = Pool { id, node, name: name.into(), path: format!("/{id}"), since: 0 };
            state.pools.insert(id, pool);
            let address = ([127, 0, 0, 1], 1).into();
            let (facts, incarnation) = (Facts::default(), Incarnation(1));
            let name = format!("n{}", node.0);
            let it = Node { id: node, name, address, key: [0; 32], incarnation, joined: 0, facts, authority: false };
            state.nodes.insert(node, it);
        }
        state
    }

    fn wish(storage: Storage) -> Wish {
        Wish { storage, pool: None }
    }

    /// From n1 to n3.
    fn fate_of(it: &Volume, wish: &Wish) -> Result<Fate, String> {
        fate(&cluster(), it, (N1, N3), wish)
    }

    #[test]
    fn what_is_at_the_target_stays_and_what_is_not_goes_along() {
        let auto = wish(Storage::Auto);
        assert_eq!(fate_of(&volume(&[1, 3], &[1, 3]), &auto), Ok(Fate::There(PoolId(3))));
        let fast = PoolId(3);
        assert_eq!(fate_of(&volume(&[1, 2], &[2, 1]), &auto), Ok(Fate::Along(ReplicaId(1), fast)), "the source's goes");
        assert_eq!(fate_of(&volume(&[2], &[2]), &auto), Ok(Fate::Along(ReplicaId(2), fast)), "or the one that counts");
        let slow = Wish { pool: Some("slow".into()), ..auto };
        assert_eq!(fate_of(&volume(&[1], &[1]), &slow), Ok(Fate::Along(ReplicaId(1), PoolId(4))));
        assert_eq!(fate_of(&volume(&[1], &[1]), &wish(Storage::FromAfar)), Ok(Fate::Afar));
    }

    #[test]
    fn what_cannot_be_is_told_with_what_to_do() {
        let told = |it: &Volume, wish: &Wish, words: &[&str]| {
            let why = fate_of(it, wish).expect_err("it cannot be");
            assert!(words.iter().all(|word| why.contains(word)), "{why} says {words:?}");
        };
        told(&volume(&[1, 3], &[1]), &wish(Storage::Auto), &["n3:fast is not in sync", "--from-afar"]);
        told(&volume(&[1], &[1]), &wish(Storage::ComputeOnly), &["no replica on n3", "--compute-only away"]);
        told(&volume(&[1, 3], &[1, 3]), &wish(Storage::With), &["n1:fast would stay on n1", "--with-storage"]);
        let other = Wish { pool: Some("huge".into()), ..Wish::default() };
        told(&volume(&[1], &[1]), &other, &["no pool huge", "fast, slow"]);
        let moving = VolumeMove { op: OpId([7; 16]), from: ReplicaId(1), to: ReplicaId(2), kept: None };
        told(&Volume { moving: Some(moving), ..volume(&[1, 2], &[1]) }, &Wish::default(), &["cancel it"]);

        let mut state = cluster();
        state.pools.retain(|_, pool| pool.node != N3);
        let why = fate(&state, &volume(&[1], &[1]), (N1, N3), &Wish::default()).expect_err("no pool");
        assert!(why.contains("pollux pool add n3:NAME"), "{why}");
        let mut state = cluster();
        state.pools.get_mut(&PoolId(3)).expect("there").name = "quick".into();
        let why = fate(&state, &volume(&[1], &[1]), (N1, N3), &Wish::default()).expect_err("two pools");
        assert!(why.contains("quick, slow; say which: --pool"), "{why}");
    }

    #[test]
    fn there_must_be_room_for_what_is_copied() {
        let mut state = cluster();
        state.volumes.insert(VolumeId(1), volume(&[1], &[1]));
        let usage = |free: u64| {
            let space = |free, replicas| Ok(crate::volumes::Space { size: 1 << 40, free, used: 0, replicas });
            let source = PoolUsage { pool: PoolId(1), space: space(0, vec![(ReplicaId(1), 700 << 20)]) };
            [source, PoolUsage { pool: PoolId(3), space: space(free, Vec::new()) }]
        };
        let planned = |usage: &[PoolUsage]| {
            let along = vec![Along { volume: VolumeId(1), from: ReplicaId(1), pool: PoolId(3), version: 1 }];
            let view = DiskMoveView { volume: "data".into(), from: None, to: None, copy_bytes: None };
            let mut plan = Plan { along, disks: vec![view], obstacles: Vec::new() };
            plan.weigh(&state, usage);
            plan
        };
        let fits = planned(&usage(701 << 20));
        assert_eq!((fits.disks[0].copy_bytes, fits.obstacles.len()), (Some(700 << 20), 0));
        let full = planned(&usage(699 << 20));
        assert!(full.obstacles[0].what.contains("700 MiB of volumes would go to n3:fast, which has 699 MiB free"));
        assert!(planned(&[]).obstacles[0].what.contains("does not say"), "nobody answered");
    }
}
