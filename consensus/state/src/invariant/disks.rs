//! What must hold of pools and volumes in every state (DESIGN, rules 1, 12 and 15).

use alloc::{
    collections::BTreeSet,
    format,
    string::{String, ToString},
};

use super::{Violation, hold};
use crate::{
    ClusterState,
    limits::REPLICAS_MAX,
    operation::OperationKind,
    spec::{check_name, check_size},
    volume::{Purpose, Volume},
};

impl ClusterState {
    pub(super) fn check_disks(&self) -> Result<(), Violation> {
        self.check_pools()?;
        let (mut names, mut replicas) = (BTreeSet::new(), BTreeSet::new());
        for (id, volume) in &self.volumes {
            let minted = *id == volume.id && id.0 > 0 && *id <= self.last_volume;
            hold(minted, "a volume is filed under its id, which is not above the last minted", || volume.name.clone())?;
            hold(names.insert(&volume.name), "names of volumes are unique", || volume.name.clone())?;
            for replica in volume.replicas.keys() {
                let own = replicas.insert(replica) && replica.0 > 0 && *replica <= self.last_replica;
                hold(own, "a replica is one volume's, with an id not above the last minted", || replica.to_string())?;
            }
            self.check_volume(volume)?;
            self.check_hands(volume)?;
            self.check_volume_move(volume)?;
        }
        for vm in self.vms.values() {
            let has = |volume: &Volume| volume.user == Some(vm.id);
            let there = vm.spec.disks.iter().all(|disk| self.volumes.get(&disk.volume).is_some_and(has));
            hold(there, "a VM's volumes exist and are its own", || vm.spec.name.clone())?;
        }
        Ok(())
    }

    fn check_pools(&self) -> Result<(), Violation> {
        let (mut names, mut paths) = (BTreeSet::new(), BTreeSet::new());
        for (id, pool) in &self.pools {
            let place = || self.place_of(*id);
            let minted = *id == pool.id && id.0 > 0 && *id <= self.last_pool;
            hold(minted, "a pool is filed under its id, which is not above the last minted", place)?;
            hold(self.nodes.contains_key(&pool.node), "a pool's node is a member", place)?;
            hold(names.insert((pool.node, &pool.name)), "names of pools are unique on their node", place)?;
            hold(paths.insert((pool.node, &pool.path)), "a directory is one pool", place)?;
        }
        Ok(())
    }

    fn check_volume(&self, volume: &Volume) -> Result<(), Violation> {
        let name = || story(volume);
        let possible = check_name("volume", &volume.name).is_ok() && check_size(volume.size).is_ok();
        hold(possible, "a volume is one that could be asked for", name)?;
        hold(!volume.set.is_empty(), "an in-sync set is never empty", name)?;
        let known = volume.set.iter().all(|id| volume.replicas.contains_key(id));
        hold(known, "who is in the set is a replica of the volume", name)?;
        hold(volume.set.contains(&volume.authority), "the authority is in the set", name)?;
        hold(volume.replicas.len() <= REPLICAS_MAX, "everything is bounded", name)?;
        let pools: BTreeSet<_> = volume.replicas.values().map(|replica| replica.pool).collect();
        hold(pools.len() == volume.replicas.len(), "two replicas of a volume are never in one pool", name)?;
        let places = pools.iter().all(|pool| self.pools.contains_key(pool));
        hold(places, "a replica's pool exists", name)
    }

    /// Who may write to it, and when nobody may.
    fn check_hands(&self, volume: &Volume) -> Result<(), Violation> {
        let name = || story(volume);
        let user = volume.user.map(|id| self.vms.get(&id));
        let has = user.is_none_or(|vm| vm.is_some_and(|vm| vm.spec.disks.iter().any(|disk| disk.volume == volume.id)));
        hold(has, "who uses a volume is a VM that has it", name)?;
        let owner = user.flatten().and_then(|vm| vm.phase.owner());
        if let Some(held) = volume.holder {
            hold(owner.is_none(), "nobody holds a volume with which a VM runs", name)?;
            hold(self.lived(held.owner), "a holder is a life that its node has had", name)?;
            let alone = held.purpose != Purpose::Import || volume.user.is_none();
            hold(alone, "what is being imported is no VM's", name)?;
        }
        let whole = volume.user.is_none() || !volume.incomplete;
        hold(whole, "no VM has what was imported by halves", name)?;
        let writer = self.writer(volume);
        hold(writer == owner.or(volume.holder.map(|held| held.owner)), "one has the right to write, or nobody", name)?;
        let whole = writer.is_none() || volume.unmade().next().is_none();
        hold(whole, "nobody writes to a volume before all of its set are made", name)?;
        hold(writer.is_none() || volume.generation.0 > 0, "who writes has a generation to write at", name)
    }

    fn check_volume_move(&self, volume: &Volume) -> Result<(), Violation> {
        let Some(moving) = volume.moving else { return Ok(()) };
        let name = || story(volume);
        let there = moving.from != moving.to
            && volume.replicas.contains_key(&moving.from)
            && volume.replicas.contains_key(&moving.to);
        hold(there, "a volume moves from one of its replicas to another", name)?;
        let whole = moving.kept.is_none() || volume.set.contains(&moving.to);
        hold(whole, "the old replica is only kept for as long as the new one is in the set", name)?;
        let same = self.operations.get(&moving.op).is_some_and(|operation| match operation.kind {
            OperationKind::MoveVolume { volume: id, from, to, .. } => {
                operation.ended.is_none() && (id, from, to) == (volume.id, moving.from, moving.to)
            }
            // What is left goes after the VM is there, or is not.
            OperationKind::Migrate { .. } => true,
        });
        hold(same, "a volume's move and its operation tell the same, and neither has ended", name)
    }
}

pub(super) fn story(volume: &Volume) -> String {
    let Volume { name, generation, version, set, authority, user, holder, .. } = volume;
    format!(
        "volume {name} ({generation}, version {version}, set {set:?} of {authority}, user {user:?}, holder {holder:?})"
    )
}
