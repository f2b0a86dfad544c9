//! What must hold of every step from one state of pools and volumes to the next (DESIGN, rules 1, 4, 12, 15, 17 and 19).

use alloc::{collections::BTreeSet, format, string::ToString};

use super::{Violation, disks::story, hold};
use crate::{
    ClusterState,
    command::{Command, Proposal},
    id::{OpId, Owner, ReplicaId},
    operation::{Along, Operation, OperationKind},
    vm::{Desired, Phase, Vm},
    volume::{Hold, Purpose, Replica, Volume, VolumeMove},
};

/// One step, seen from its ends.
struct Between<'a> {
    before: &'a ClusterState,
    after: &'a ClusterState,
    proposal: &'a Proposal,
}

pub(super) fn check_disks(before: &ClusterState, after: &ClusterState, proposal: &Proposal) -> Result<(), Violation> {
    let between = Between { before, after, proposal };
    between.check_pools()?;
    let minted = (before.last_volume, before.last_replica) <= (after.last_volume, after.last_replica)
        && before.last_replica <= after.last_replica;
    hold(minted, "the last volume's and the last replica's id never fall", || after.last_volume.to_string())?;
    for (id, old) in &before.volumes {
        if let Some(new) = after.volumes.get(id) {
            between.check_volume(old, new)?;
        } else {
            let asked = proposal.command.compares_volume() == Some((old.id, old.generation))
                && matches!(proposal.command, Command::DeleteVolume { .. });
            let free = old.user.is_none() && old.moving.is_none() && between.occupier(old).is_none();
            hold(asked && free, "a volume is forgotten only when asked for and nobody's", || story(old))?;
        }
    }
    for (id, new) in after.volumes.iter().filter(|(id, _)| !before.volumes.contains_key(id)) {
        hold(*id > before.last_volume, "the id of a volume is never used again", || id.to_string())?;
        let fresh = new.replicas.iter().all(|(id, replica)| *id > before.last_replica && !replica.made);
        hold(fresh, "a new volume's replicas are new and still to be made", || story(new))?;
        let nobodys = new.user.is_none() && new.holder.is_none() && new.set.len() == new.replicas.len();
        hold(nobodys, "a new volume is nobody's, and all its replicas count", || story(new))?;
    }
    Ok(())
}

impl Between<'_> {
    fn check_pools(&self) -> Result<(), Violation> {
        let Self { before, after, proposal } = self;
        hold(after.last_pool >= before.last_pool, "the last pool id never falls", || after.last_pool.to_string())?;
        for (id, old) in &before.pools {
            match after.pools.get(id) {
                Some(new) => hold(old == new, "what a pool is never changes", || id.to_string())?,
                None => {
                    let asked = matches!(proposal.command, Command::RemovePool { pool } if pool == *id);
                    let gone = after.is_removed(old.node);
                    hold(asked || gone, "a pool goes when asked for, or with its node", || id.to_string())?;
                }
            }
        }
        for (id, new) in after.pools.iter().filter(|(id, _)| !before.pools.contains_key(id)) {
            let own = *id > before.last_pool && new.node == proposal.by;
            hold(own, "a node adds pools of its own, under new ids", || id.to_string())?;
        }
        Ok(())
    }

    fn check_volume(&self, old: &Volume, new: &Volume) -> Result<(), Violation> {
        let what = || format!("{} became {}", story(old), story(new));
        hold((&old.name, old.created) == (&new.name, new.created), "what a volume is never changes", what)?;
        let grown = matches!(self.proposal.command, Command::GrowVolume { volume, .. } if volume == old.id)
            && self.after.writer(new).is_none()
            && new.size > old.size;
        hold(old.size == new.size || grown, "a volume grows only, and while nobody writes to it", what)?;
        self.check_hands(old, new)?;
        self.check_replicas(old, new)?;
        self.check_set(old, new)?;
        self.check_move(old, new)
    }

    /// The right to write: it changes hands by a step of the generation, and no step of the generation is without a reason.
    fn check_hands(&self, old: &Volume, new: &Volume) -> Result<(), Violation> {
        let what = || format!("{} became {}", story(old), story(new));
        let (was, is) = (self.before.writer(old), self.after.writer(new));
        let changed = old.user != new.user || old.holder != new.holder || was != is;
        let expected = if changed { old.generation.next() } else { old.generation };
        hold(
            new.generation == expected,
            "a volume's generation rises by one when its hands change, and only then",
            what,
        )?;
        let named = self.proposal.command.compares_volume() == Some((old.id, old.generation));
        if old.user != new.user {
            let way = match (&self.proposal.command, old.user, new.user) {
                (Command::AttachVolume { vm, .. }, None, Some(user)) => named && *vm == user,
                (Command::DetachVolume { vm, .. }, Some(user), None) => named && *vm == user,
                (Command::CreateVm { .. }, None, Some(user)) => user > self.before.last_vm,
                (Command::DeleteVm { vm }, Some(user), None) => *vm == user,
                _ => false,
            };
            hold(way, "a volume gets and loses its VM only when asked for", what)?;
            let rests = |vm: Option<&Vm>| vm.is_none_or(|vm| vm.phase.owner().is_none());
            let user = old.user.or(new.user);
            let still = rests(user.and_then(|vm| self.before.vms.get(&vm)))
                && rests(user.and_then(|vm| self.after.vms.get(&vm)));
            hold(still, "a volume gets and loses its VM while that is stopped", what)?;
        }
        let imports = new.holder.is_some_and(|held| held.purpose == Purpose::Import);
        hold(!imports || new.incomplete, "an import has not ended before its node says so", what)?;
        let done = matches!(self.proposal.command, Command::DropVolume { done, .. } if done)
            && old.holder.is_some_and(|held| held.purpose == Purpose::Import && held.owner.node == self.proposal.by);
        hold(new.incomplete || !old.incomplete || done, "an import has not ended before its node says so", what)?;
        if let Some(held) = new.holder.filter(|_| old.holder != new.holder) {
            let asked = matches!(self.proposal.command, Command::HoldVolume { .. });
            let own = held.owner.node == self.proposal.by && self.after.lives(held.owner);
            hold(asked && named && own, "a node holds a volume only for itself, in its current life", what)?;
            let rests = |vm: &Vm| matches!(vm.phase, Phase::Stopped { .. }) && vm.desired != Desired::Running;
            let user = new.user.and_then(|vm| self.after.vms.get(&vm));
            hold(user.is_none_or(rests), "nobody holds a volume whose VM is to run", what)?;
            let free = old.holder.is_none_or(|was| !self.before.lives(was.owner) || was.purpose.yields());
            hold(free, "nobody takes a volume from who works on it and does not yield", what)?;
        }
        Ok(())
    }

    fn check_replicas(&self, old: &Volume, new: &Volume) -> Result<(), Violation> {
        let what = || format!("{} became {}", story(old), story(new));
        for (id, was) in &old.replicas {
            let Some(is) = new.replicas.get(id) else {
                hold(self.may_go(old, *id), "a replica goes only when asked for, or with its node", what)?;
                continue;
            };
            hold(was.pool == is.pool, "a replica stays in its pool", what)?;
            hold(is.made || !was.made, "what was made was made", what)?;
            if was != is {
                let told = matches!(self.proposal.command,
                    Command::ReplicaMade { volume, replica } | Command::ReplicaFailed { volume, replica, .. }
                        if (volume, replica) == (old.id, *id));
                let own = self.before.node_of_replica(old, *id) == Some(self.proposal.by);
                hold(told && own, "how a replica is, its node tells", what)?;
            }
        }
        for (id, is) in new.replicas.iter().filter(|(id, _)| !old.replicas.contains_key(id)) {
            let asked = matches!(self.proposal.command,
                Command::AddReplica { volume, pool, version } | Command::BeginVolumeMove { volume, pool, version, .. }
                    if (volume, pool, version) == (old.id, is.pool, old.version));
            let asked = asked || self.along(old).is_some_and(|it| (it.pool, it.version) == (is.pool, old.version));
            let fresh = *id > self.before.last_replica && !is.made && !new.set.contains(id);
            hold(asked && fresh, "a replica comes when asked for, new, and outside of the set", what)?;
        }
        Ok(())
    }

    /// Who asked for it, and saw the set as it was.
    fn may_go(&self, old: &Volume, id: ReplicaId) -> bool {
        match (&self.proposal.command, &old.moving) {
            (Command::RemoveReplica { volume, replica, version }, moving) => {
                let moves = moving.is_some_and(|moving| id == moving.from || id == moving.to);
                (*volume, *replica, *version) == (old.id, id, old.version) && !moves
            }
            (Command::EndVolumeMove { volume, op, version }, Some(moving)) => {
                let there = self.vms_operation(*op).is_none_or(|operation| operation.ended.is_some());
                (*volume, *op, *version) == (old.id, moving.op, old.version) && id == moving.from && there
            }
            (Command::Compared { op, .. }, Some(moving)) => *op == moving.op && self.written(old) && id == moving.to,
            (Command::Cancel { op }, Some(moving)) => *op == moving.op && id == moving.to,
            (Command::RemoveNode { node, .. }, moving) => {
                let with_node = self.after.is_removed(*node) && self.before.node_of_replica(old, id) == Some(*node);
                with_node || moving.is_some_and(|moving| self.left_behind(old, moving, id))
            }
            (_, Some(moving)) => self.left_behind(old, *moving, id),
            _ => false,
        }
    }

    /// How the volume is to go along with its VM, if that was asked for.
    fn along(&self, old: &Volume) -> Option<&Along> {
        let Command::BeginMove { vm, along, .. } = &self.proposal.command else { return None };
        along.iter().find(|it| it.volume == old.id && old.user == Some(*vm))
    }

    /// What was created for a VM's move goes with it when it does not arrive, whatever it was that ended it, if it did not count.
    fn left_behind(&self, old: &Volume, moving: VolumeMove, id: ReplicaId) -> bool {
        id == moving.to && !old.set.contains(&id) && self.failed(moving.op)
    }

    /// A VM's move that failed by this step.
    fn failed(&self, op: OpId) -> bool {
        let ran = self.vms_operation(op).is_some_and(|operation| operation.ended.is_none());
        ran && self.after.operations.get(&op).is_some_and(|now| now.ended.is_some() && !now.is_done())
    }

    /// The operation, if it is a VM's, as it was.
    fn vms_operation(&self, op: OpId) -> Option<&Operation> {
        self.before.operations.get(&op).filter(|it| matches!(it.kind, OperationKind::Migrate { .. }))
    }

    fn check_set(&self, old: &Volume, new: &Volume) -> Result<(), Violation> {
        let what = || format!("{} became {}", story(old), story(new));
        let about = !old.replicas.keys().eq(new.replicas.keys()) || old.set != new.set;
        let voided = matches!(self.proposal.command, Command::LeaveSet { volume, .. } if volume == old.id);
        let expected = if about || voided { old.version.saturating_add(1) } else { old.version };
        hold(
            new.version == expected,
            "the version rises by one with each entry about the replicas, and only then",
            what,
        )?;
        let came: BTreeSet<_> = new.set.difference(&old.set).copied().collect();
        let left: BTreeSet<_> = old.set.difference(&new.set).copied().collect();
        for id in &came {
            let said = matches!(self.proposal.command, Command::JoinSet { volume, replica, version, .. }
                if (volume, replica, version) == (old.id, *id, old.version));
            let sound = new.replicas.get(id).is_some_and(Replica::is_sound);
            hold(
                said && sound && self.written(old),
                "only the writer says who has everything, of a set it knows",
                what,
            )?;
        }
        for id in &left {
            let said = matches!(self.proposal.command, Command::LeaveSet { volume, replica, version, .. }
                if (volume, replica, version) == (old.id, *id, old.version))
                && self.written(old);
            let went = !new.replicas.contains_key(id) && self.may_go(old, *id);
            hold(said || went, "who leaves the set is left behind by the writer, or removed", what)?;
        }
        let sound = |id: &&ReplicaId| old.replicas.get(*id).is_some_and(Replica::is_sound);
        let went = left.iter().filter(|id| !new.replicas.contains_key(id));
        let spared = went.filter(|id| sound(id)).count() == 0 || new.set.iter().any(|id| sound(&id));
        hold(spared, "the last replica that is sound is never removed", what)?;
        let right = old.authority == new.authority || !new.set.contains(&old.authority);
        hold(right, "whose content counts changes only when it left the set", what)
    }

    fn check_move(&self, old: &Volume, new: &Volume) -> Result<(), Violation> {
        let what = || format!("{} became {}", story(old), story(new));
        match (&old.moving, &new.moving) {
            (None, None) => Ok(()),
            (None, Some(moving)) => {
                let asked = matches!(self.proposal.command, Command::BeginVolumeMove { volume, from, .. }
                        if (volume, from) == (old.id, moving.from));
                let asked = asked || self.along(old).is_some_and(|it| it.from == moving.from);
                let begun = moving.op == self.proposal.id && asked;
                hold(begun && moving.kept.is_none(), "a volume's move begins when asked for", what)
            }
            (Some(was), Some(is)) => {
                let same = (was.op, was.from, was.to) == (is.op, is.from, is.to);
                let back = (was.op, was.from, was.to) == (is.op, is.to, is.from) && self.failed(was.op);
                hold(same || back, "what moves a volume never changes, but for turning back", what)?;
                if back {
                    let whole = old.set.contains(&was.to) && (is.kept.is_none() || is.kept == was.kept);
                    return hold(whole, "what turns back is whole", what);
                }
                let fell = is.kept.is_none() && !new.set.contains(&is.to);
                let said = matches!(self.proposal.command, Command::Compared { volume, op, version, .. }
                    if (volume, op, version) == (old.id, is.op, old.version))
                    && was.kept.is_none()
                    && old.set.contains(&was.to)
                    && self.written(old);
                hold(was.kept == is.kept || fell || said, "a copy counts as equal when its writer compared it", what)
            }
            (Some(was), None) => {
                // One of the two goes, never both.
                let (from, to) = (new.replicas.contains_key(&was.from), new.replicas.contains_key(&was.to));
                let alone = old.set.len() == 1 && old.set.contains(&was.to);
                let proved = was.kept.is_some() || alone || self.removes_a_node();
                // With the word that a host is off nothing goes that may be all that is left; and a user may want both.
                let dead = self.proposal.command.declares_dead();
                let over = self.vms_operation(was.op).is_some_and(|operation| operation.ended.is_some());
                let wished = over
                    && matches!(self.proposal.command, Command::Cancel { op } | Command::Compared { op, .. } if op == was.op);
                hold(
                    from != to || (self.removes_a_node() && !from) || (from && (dead || wished)),
                    "a move ends with one of its replicas gone",
                    what,
                )?;
                hold(from || proved, "the old replica goes only after the new one was found equal", what)?;
                let sound = new.replicas.get(&was.to).is_some_and(Replica::is_sound);
                hold(
                    from || sound || self.removes_a_node(),
                    "the old replica goes only if the new one can be used",
                    what,
                )
            }
        }
    }

    fn removes_a_node(&self) -> bool {
        matches!(self.proposal.command, Command::RemoveNode { .. })
    }

    /// Whoever proposes has the right to write to it, at the generation that it names.
    fn written(&self, old: &Volume) -> bool {
        let named = self.proposal.command.compares_volume() == Some((old.id, old.generation));
        let own = |writer: Owner| writer.node == self.proposal.by && self.before.lives(writer);
        named && self.before.writer(old).is_some_and(own)
    }

    /// Who works on it and is not to be interrupted.
    fn occupier(&self, old: &Volume) -> Option<Hold> {
        old.holder.filter(|held| self.before.lives(held.owner) && !held.purpose.yields())
    }
}
