//! Pools, and what goes with the node that they are on.

use alloc::{collections::BTreeSet, format, string::String};

use super::{About, Step};
use crate::{
    command::{Outcome, Refusal},
    id::{NodeId, PoolId},
    limits::{POOL_PATH_MAX, POOLS_MAX},
    operation::{Operation, OperationKind, OperationResult},
    spec::{check_name, check_path},
    text::{list, plain},
    volume::{Pool, Volume},
};

impl Step<'_> {
    /// By the node itself, which has looked at the directory and claimed it.
    pub(super) fn add_pool(&mut self, name: &str, path: &str) -> Result<Outcome, Refusal> {
        let (node, since) = (self.proposal.by, self.proposal.at);
        check_name("pool", name)?;
        check_path("path", path, POOL_PATH_MAX)?;
        let mut here = self.state.pools.values().filter(|pool| pool.node == node);
        if let Some(same) = here.find(|pool| pool.name == name || pool.path == path) {
            let place = self.state.place_of(same.id);
            if same.name == name {
                return Err(Refusal::NameTaken(place));
            }
            return Err(Refusal::invalid(
                "path",
                format!("it is pool {place} already; use that, or give another path"),
            ));
        }
        if self.state.pools.len() >= POOLS_MAX {
            return Err(Refusal::full("pools", POOLS_MAX));
        }
        let id = self.state.last_pool.next();
        self.state.last_pool = id;
        self.state.pools.insert(id, Pool { id, node, name: name.into(), path: path.into(), since });
        let text = format!("pool {} was added: {path}", self.state.place_of(id));
        self.event(About { node: Some(node), ..About::default() }, text);
        Ok(Outcome::PoolAdded(id))
    }

    pub(super) fn remove_pool(&mut self, id: PoolId) -> Result<Outcome, Refusal> {
        let (node, place) = (self.pool(id)?.node, self.state.place_of(id));
        let within = |volume: &&Volume| volume.replicas.values().any(|replica| replica.pool == id);
        let used = list(self.state.volumes.values().filter(within).map(|volume| volume.name.as_str()));
        if !used.is_empty() {
            let why =
                format!("it holds replicas of {used}; move them first (`pollux volume move`), or delete the volumes");
            return Err(Refusal::PoolInUse { pool: place, why: plain(&why) });
        }
        self.state.pools.remove(&id);
        self.event(About { node: Some(node), ..About::default() }, format!("pool {place} was removed"));
        Ok(Outcome::Done)
    }

    /// Why volumes keep `node` in the cluster, if they do.
    pub(super) fn disks_keep(&self, node: NodeId, lost: bool) -> Option<String> {
        let named = |keeps: &dyn Fn(&Volume) -> bool| {
            list(self.state.volumes.values().filter(|volume| keeps(volume)).map(|volume| volume.name.as_str()))
        };
        let pools = self.pools_of(node);
        let last = named(&|volume| !volume.can_spare(|id| volume.is_in(id, &pools)));
        if !last.is_empty() {
            return Some(format!(
                "its pools hold the last replica in sync of {last}; move them away first (`pollux volume move`), bring the \
                 host back, or give them up (`pollux volume delete`)"
            ));
        }
        if lost {
            return None;
        }
        let held = named(&|volume| volume.replicas.keys().any(|id| volume.is_in(*id, &pools)));
        if !held.is_empty() {
            return Some(format!(
                "its pools hold replicas of {held}; move them away first (`pollux volume move`). If the host is lost for \
                 good, an operator can say so: --lost --operator WHO"
            ));
        }
        let works = |volume: &&Volume| self.occupied(volume).is_some_and(|hold| hold.owner.node == node);
        let volume = self.state.volumes.values().find(works)?;
        let doing = volume.holder.map_or("working on it", |hold| hold.purpose.doing());
        Some(format!("volume {} is in its hands, it is {doing}; wait until that is over", volume.name))
    }

    /// Its pools, what is in them, and what it holds. Returns how many volumes have a replica less.
    pub(super) fn forget_disks_of(&mut self, node: NodeId) -> usize {
        let (pools, name) = (self.pools_of(node), self.node_name(node));
        let mut moves = alloc::vec::Vec::new();
        let mut poorer = 0;
        for volume in self.state.volumes.values_mut() {
            if volume.holder.is_some_and(|hold| hold.owner.node == node) {
                volume.pass_on();
            }
            let gone: BTreeSet<_> = volume.replicas.keys().copied().filter(|id| volume.is_in(*id, &pools)).collect();
            if gone.is_empty() {
                continue;
            }
            poorer += 1;
            let ends =
                |moving: &&mut crate::volume::VolumeMove| gone.contains(&moving.from) || gone.contains(&moving.to);
            if let Some(moving) = volume.moving.as_mut().filter(ends) {
                // The replica that came stays, if there is one: it is not whose node was lost.
                moves.push(moving.op);
                volume.moving = None;
            }
            volume.forget(|id| gone.contains(&id));
        }
        for op in moves {
            // A VM that has set out, or is there, does not turn back for a replica.
            let vms = |it: &Operation| matches!(it.kind, OperationKind::Migrate { .. }) && !it.waits();
            if self.state.operations.get(&op).is_some_and(vms) {
                continue;
            }
            let reason = format!("{name} was removed from the cluster, with a replica that the move was from or to");
            self.end_operation(op, OperationResult::Failed { reason });
        }
        self.state.pools.retain(|id, _| !pools.contains(id));
        poorer
    }

    fn pools_of(&self, node: NodeId) -> BTreeSet<PoolId> {
        self.state.pools.values().filter(|pool| pool.node == node).map(|pool| pool.id).collect()
    }

    /// These pools, as people write them.
    pub(super) fn places(&self, pools: &[PoolId]) -> String {
        let places: alloc::vec::Vec<String> = pools.iter().map(|pool| self.state.place_of(*pool)).collect();
        list(places.iter().map(String::as_str))
    }
}
