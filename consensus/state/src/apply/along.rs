//! Volumes that go along with their VM (DESIGN, section 6: live migration; rule 17).
//!
//! Each is moved by the VM's operation as it would be by one of its own, and first: the VM's turn comes when all of them are whole at
//! the target. The replicas that they replace are kept until the VM is there. If it does not arrive, what the operation created goes: at
//! once while it does not count, and otherwise as the old ones would have gone, by the volume's writer.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use super::{About, Step};
use crate::{
    command::Refusal,
    id::{NodeId, OpId, ReplicaId, VmId, VolumeId},
    limits::DISKS_MAX,
    operation::{Along, OperationKind},
    volume::{Stage, VolumeMove},
};

impl Step<'_> {
    /// Whether these volumes of `vm` can go along to `to`. Nothing is changed.
    pub(super) fn can_go_along(&self, vm: VmId, to: NodeId, along: &[Along]) -> Result<(), Refusal> {
        if along.len() > DISKS_MAX {
            return Err(Refusal::invalid("along", format!("{} volumes; a VM has at most {DISKS_MAX}", along.len())));
        }
        for (at, it) in along.iter().enumerate() {
            let volume = self.volume_of(it.volume, it.version)?;
            let twice = along.iter().take(at).any(|other| other.volume == it.volume);
            if volume.user != Some(vm) || twice {
                let why = if twice { "it is named twice" } else { "it is not this VM's" };
                return Err(Refusal::volume(volume, why));
            }
            self.movable_replica(volume, it.from)?;
            self.room_for_replica(volume, it.pool)?;
            if self.pool(it.pool)?.node != to {
                let why =
                    format!("{} is not on {}, where its VM goes", self.state.place_of(it.pool), self.node_name(to));
                return Err(Refusal::volume(volume, why));
            }
        }
        Ok(())
    }

    pub(super) fn begin_along(&mut self, op: OpId, along: &[Along]) -> Result<(), Refusal> {
        for it in along {
            let to = self.new_replica(it.volume, it.pool)?;
            let volume = self.volume_mut(it.volume)?;
            volume.moving = Some(VolumeMove { op, from: it.from, to, kept: None });
            let name = volume.name.clone();
            let (from, to) = self.ends_of(it.volume, it.from, to);
            let text = format!("volume {name} begins to move from {from} to {to}, with its VM");
            self.event(About { op: Some(op), volume: Some(it.volume), ..About::default() }, text);
        }
        Ok(())
    }

    /// All volumes that go along by `op` are whole at the target.
    pub(super) fn along_is_there(&self, op: OpId) -> bool {
        self.state.moved_by(op).all(|it| matches!(it.stage(), Some(Stage::Kept { .. })))
    }

    /// The VM of `op` did not arrive: its volumes stay where they were.
    pub(super) fn leave_behind(&mut self, op: OpId) {
        if !self.is_vms(op) {
            return;
        }
        for (id, moving) in self.moved_with(op) {
            self.stay(id, moving);
        }
    }

    /// What was created goes at once if it does not count yet. One that is whole may be all that is left by now: who ends a move does not
    /// know whether the others still live. It goes back by the same way that it came: the volume's writer lets it go, once the one that stays
    /// is in sync.
    fn stay(&mut self, id: VolumeId, moving: VolumeMove) {
        let VolumeMove { op, from, to, kept } = moving;
        let (old, new) = self.ends_of(id, from, to);
        let Some(volume) = self.state.volumes.get_mut(&id) else { return };
        let text = if volume.set.contains(&to) {
            let kept = kept.filter(|_| volume.set.contains(&from));
            volume.moving = Some(VolumeMove { op, from: to, to: from, kept });
            format!("volume {} stays in {old}; the replica in {new} goes once nothing depends on it", volume.name)
        } else {
            volume.moving = None;
            volume.forget(|it| it == to);
            format!("volume {} stays in {old}; the replica in {new} was removed", volume.name)
        };
        self.event(About { op: Some(op), volume: Some(id), ..About::default() }, text);
    }

    /// A host may be lost for good: of what moves with this VM all replicas stay.
    pub(super) fn keep_all_of(&mut self, vm: VmId) {
        let with_vm = self.state.volumes.values().filter(|it| it.user == Some(vm));
        let moves: Vec<(VolumeId, VolumeMove)> = with_vm.filter_map(|it| Some((it.id, it.moving?))).collect();
        for (id, moving) in moves.into_iter().filter(|(_, moving)| self.is_vms(moving.op)).collect::<Vec<_>>() {
            self.keep_both(id, moving);
        }
    }

    /// Whoever wants the rest of an ended VM's move to end: nothing goes, and what is not wanted can be removed.
    pub(super) fn keep_all_by(&mut self, op: OpId) -> bool {
        let moves = self.moved_with(op);
        let any = !moves.is_empty();
        moves.into_iter().for_each(|(id, moving)| self.keep_both(id, moving));
        any
    }

    fn keep_both(&mut self, id: VolumeId, VolumeMove { op, from, to, .. }: VolumeMove) {
        let (one, other) = self.ends_of(id, from, to);
        let Some(volume) = self.state.volumes.get_mut(&id) else { return };
        volume.moving = None;
        let text = format!("volume {} keeps its replicas in {one} and {other}", volume.name);
        self.event(About { op: Some(op), volume: Some(id), ..About::default() }, text);
    }

    fn moved_with(&self, op: OpId) -> Vec<(VolumeId, VolumeMove)> {
        self.state.moved_by(op).filter_map(|it| Some((it.id, it.moving?))).collect()
    }

    /// The operation is a VM's, with which volumes may go.
    pub(super) fn is_vms(&self, op: OpId) -> bool {
        self.state.operations.get(&op).is_some_and(|it| matches!(it.kind, OperationKind::Migrate { .. }))
    }

    /// Where two replicas of a volume are, for sentences.
    fn ends_of(&self, id: VolumeId, from: ReplicaId, to: ReplicaId) -> (String, String) {
        let Some(volume) = self.state.volumes.get(&id) else { return (from.to_string(), to.to_string()) };
        (self.state.place_of_replica(volume, from), self.state.place_of_replica(volume, to))
    }
}
