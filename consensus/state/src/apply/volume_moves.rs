//! A replica takes another's place (DESIGN, section 6: storage migration; rule 17).
//!
//! The new replica is created by the operation and removed by it if it does not succeed; the old one goes only after the new one
//! was in the set and its digest was right. Whoever wants to undo it cancels it, up to then.

use alloc::format;

use super::{About, Step, moves::allowed};
use crate::{
    command::{Comparison, Outcome, Refusal},
    id::{Generation, OpId, PoolId, ReplicaId, VolumeId},
    limits::KEEP_MS_MAX,
    operation::{Operation, OperationKind, OperationResult},
    text::plain,
    volume::{Kept, Stage, Volume, VolumeMove},
};

impl Step<'_> {
    pub(super) fn begin_volume_move(
        &mut self,
        id: VolumeId,
        (from, pool): (ReplicaId, PoolId),
        keep_ms: u64,
        bandwidth: Option<u64>,
        version: u64,
    ) -> Result<Outcome, Refusal> {
        let (op, at) = (self.proposal.id, self.proposal.at);
        if self.state.operations.contains_key(&op) {
            // As of a VM's move.
            return Ok(Outcome::Accepted(op));
        }
        let volume = self.volume_of(id, version)?;
        self.movable_replica(volume, from)?;
        self.room_for_replica(volume, pool)?;
        if keep_ms > KEEP_MS_MAX {
            let most = KEEP_MS_MAX / 86_400_000;
            return Err(Refusal::invalid("keep", format!("{} s; give at most {most} days", keep_ms / 1000)));
        }
        allowed(bandwidth)?;
        let volume_name = volume.name.clone();
        let from_place = self.state.place_of_replica(volume, from);
        let to_place = self.state.place_of(pool);
        self.make_room_for_operation()?;

        let text = format!("volume {volume_name} begins to move from {from_place} to {to_place}");
        let to = self.new_replica(id, pool)?;
        self.volume_mut(id)?.moving = Some(VolumeMove { op, from, to, kept: None });
        let kind =
            OperationKind::MoveVolume { volume: id, volume_name, from, to, from_place, to_place, keep_ms, bandwidth };
        let operation =
            Operation { id: op, kind, cancel: false, index: self.index, started: at, begun: Some(at), ended: None };
        self.state.operations.insert(op, operation);
        self.event(About { op: Some(op), volume: Some(id), ..About::default() }, text);
        Ok(Outcome::Accepted(op))
    }

    /// A replica that another can take the place of: its own, while it does not move.
    pub(super) fn movable_replica(&self, volume: &Volume, from: ReplicaId) -> Result<(), Refusal> {
        self.known_replica(volume, from)?;
        let Some(moving) = &volume.moving else { return Ok(()) };
        let why = format!("operation {} moves a replica of it already; cancel that first, or wait for it", moving.op);
        Err(Refusal::volume(volume, why))
    }

    /// Said by the writer, of a set that did not change while it compared.
    pub(super) fn compared(
        &mut self,
        id: VolumeId,
        op: OpId,
        seen: (Generation, u64),
        comparison: &Comparison,
    ) -> Result<Outcome, Refusal> {
        let volume = self.written(id, seen)?;
        let moving = moved_by(volume, op)?;
        if volume.stage() != Some(Stage::Comparing) {
            return Err(Refusal::volume(volume, "its new replica is not in sync, or was compared already"));
        }
        let (name, place) = (volume.name.clone(), self.state.place_of_replica(volume, moving.to));
        let about = About { op: Some(op), volume: Some(id), ..About::default() };
        match comparison {
            Comparison::Equal(report) => {
                let kept = Kept { since: self.proposal.at, report: *report };
                self.volume_mut(id)?.moving = Some(VolumeMove { kept: Some(kept), ..moving });
                let old = self.state.volumes.get(&id).map(|it| self.state.place_of_replica(it, moving.from));
                let old = old.unwrap_or_default();
                self.event(about, format!("volume {name} has moved to {place}; the replica in {old} is kept for now"));
            }
            Comparison::Different(place_of) => {
                let reason = format!("the copy in {place} is not equal to what it was copied from: {place_of}");
                let ended = self.state.operations.get(&op).is_some_and(|it| it.ended.is_some());
                if ended && !self.state.operations.get(&op).is_some_and(Operation::is_done) {
                    // On its way back: which of the two is right a person has to say.
                    self.keep_all_by(op);
                } else {
                    self.spare(volume, moving.to)?;
                    self.give_up(id, moving)?;
                }
                // A VM that is on its way, or there, uses what its volume has left; one that waits does not begin.
                let waits = self.state.operations.get(&op).is_none_or(|it| it.begun.is_none() && it.ended.is_none());
                if waits || !self.is_vms(op) {
                    self.end_operation(op, OperationResult::Failed { reason: plain(&reason) });
                }
                self.event(about, format!("the move of volume {name} failed: {reason}"));
            }
        }
        Ok(Outcome::Done)
    }

    /// The old replica goes. Whoever proposes it has counted the time that the user wished; no clock is read here.
    pub(super) fn end_volume_move(&mut self, id: VolumeId, op: OpId, version: u64) -> Result<Outcome, Refusal> {
        let volume = self.volume_of(id, version)?;
        let moving = moved_by(volume, op)?;
        if self.is_vms(op) && self.state.operations.get(&op).is_some_and(|it| it.ended.is_none()) {
            return Err(Refusal::volume(volume, "its VM is not there yet; the old replica stays until then"));
        }
        // With nobody left to be compared with, it is the volume.
        let alone = volume.set.len() == 1 && volume.set.contains(&moving.to);
        let report = match moving.kept {
            Some(kept) => kept.report,
            None if alone => crate::operation::CopyReport::default(),
            None => {
                let why = "its new replica was not found equal to the others yet; the old one stays until then";
                return Err(Refusal::volume(volume, why));
            }
        };
        self.spare(volume, moving.from)?;
        let arrived = self.known_replica(volume, moving.to)?;
        if let Some(reason) = &arrived.failed {
            let why = format!("its new replica cannot be used: {reason}; the old one stays until that is mended");
            return Err(Refusal::volume(volume, why));
        }
        let (name, old) = (volume.name.clone(), self.state.place_of_replica(volume, moving.from));
        let new = self.state.place_of_replica(volume, moving.to);

        let volume = self.volume_mut(id)?;
        volume.moving = None;
        let version = volume.forget(|replica| replica == moving.from);
        if !self.is_vms(op) {
            self.end_operation(op, OperationResult::VolumeMoved(report));
        }
        let text = format!("volume {name} is in {new} now; the replica in {old} was removed");
        self.event(About { op: Some(op), volume: Some(id), ..About::default() }, text);
        Ok(Outcome::Set(version))
    }

    /// At once: nothing has to be stopped first, and whatever is still written to the new replica is written to one that does not
    /// count.
    pub(super) fn cancel_volume_move(&mut self, id: VolumeId, op: OpId) -> Result<Outcome, Refusal> {
        let volume = self.volume(id)?;
        let moving = moved_by(volume, op)?;
        self.spare(volume, moving.to)?;
        let (name, new) = (volume.name.clone(), self.state.place_of_replica(volume, moving.to));

        self.give_up(id, moving)?;
        if let Some(operation) = self.state.operations.get_mut(&op) {
            operation.cancel = true;
        }
        self.end_operation(op, OperationResult::Cancelled);
        let text = format!("a user cancelled the move of volume {name} to {new}; it stays where it was");
        self.event(About { op: Some(op), volume: Some(id), ..About::default() }, text);
        Ok(Outcome::Done)
    }

    /// What the operation created goes.
    fn give_up(&mut self, id: VolumeId, moving: VolumeMove) -> Result<(), Refusal> {
        let volume = self.volume_mut(id)?;
        volume.moving = None;
        volume.forget(|replica| replica == moving.to);
        Ok(())
    }
}

/// The move `op` of this volume, if it is the one under way.
fn moved_by(volume: &Volume, op: OpId) -> Result<VolumeMove, Refusal> {
    let over = || Refusal::volume(volume, format!("the move {op} is over or was never its own"));
    volume.moving.filter(|moving| moving.op == op).ok_or_else(over)
}
