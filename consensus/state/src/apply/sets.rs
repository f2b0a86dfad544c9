//! Replicas, and who of them is in the in-sync set (DESIGN, rules 12, 14 and 15).
//!
//! The set never becomes empty. Only the volume's writer, in the life that is its node's current one, says who falls behind and who
//! has caught up, and it is compared: the generation at which it writes, and the version of the set that it knows. Users add
//! replicas, which are outside, and remove them.

use alloc::{format, string::String};

use super::{About, Step};
use crate::{
    command::{Outcome, Refusal},
    id::{Generation, PoolId, ReplicaId, VolumeId},
    limits::{FAILED_MAX, REPLICAS_MAX},
    text::clip,
    volume::{Replica, Volume},
};

impl Step<'_> {
    pub(super) fn replica_made(&mut self, id: VolumeId, replica: ReplicaId) -> Result<Outcome, Refusal> {
        let known = self.own_replica(id, replica)?;
        if known.is_sound() {
            return Ok(Outcome::Done);
        }
        let again = known.made;
        let it = self.replica_mut(id, replica)?;
        (it.made, it.failed) = (true, None);
        let how = if again { "is in order again" } else { "was made" };
        self.event_of_replica(id, replica, |place, volume| format!("the replica of volume {volume} in {place} {how}"));
        Ok(Outcome::Done)
    }

    /// What it means for the set is for the writer to say.
    pub(super) fn replica_failed(
        &mut self,
        id: VolumeId,
        replica: ReplicaId,
        reason: &str,
    ) -> Result<Outcome, Refusal> {
        let reason = clip(reason, FAILED_MAX);
        if self.own_replica(id, replica)?.failed.as_ref() == Some(&reason) {
            return Ok(Outcome::Done);
        }
        self.replica_mut(id, replica)?.failed = Some(reason.clone());
        self.event_of_replica(id, replica, |place, volume| {
            format!("the replica of volume {volume} in {place} cannot be used: {reason}")
        });
        Ok(Outcome::Done)
    }

    pub(super) fn add_replica(&mut self, id: VolumeId, pool: PoolId, version: u64) -> Result<Outcome, Refusal> {
        let volume = self.volume_of(id, version)?;
        self.room_for_replica(volume, pool)?;
        let replica = self.new_replica(id, pool)?;
        self.event_of_replica(id, replica, |place, volume| format!("volume {volume} gets a replica in {place}"));
        Ok(Outcome::ReplicaAdded(replica))
    }

    pub(super) fn remove_replica(
        &mut self,
        id: VolumeId,
        replica: ReplicaId,
        version: u64,
    ) -> Result<Outcome, Refusal> {
        let volume = self.volume_of(id, version)?;
        self.known_replica(volume, replica)?;
        if let Some(moving) = volume.moving.filter(|moving| replica == moving.from || replica == moving.to) {
            let why = format!("operation {} moves that replica; wait for it to end, or cancel it", moving.op);
            return Err(Refusal::volume(volume, why));
        }
        self.spare(volume, replica)?;
        self.event_of_replica(id, replica, |place, volume| {
            format!("the replica of volume {volume} in {place} was removed")
        });
        let version = self.volume_mut(id)?.forget(|id| id == replica);
        Ok(Outcome::Set(version))
    }

    pub(super) fn leave_set(
        &mut self,
        id: VolumeId,
        replica: ReplicaId,
        seen: (Generation, u64),
        why: &str,
    ) -> Result<Outcome, Refusal> {
        let volume = self.written(id, seen)?;
        self.known_replica(volume, replica)?;
        let member = volume.set.contains(&replica);
        if member && volume.set.len() == 1 {
            let place = self.state.place_of_replica(volume, replica);
            return Err(Refusal::volume(
                volume,
                format!("its replica in {place} is the last in sync, and cannot leave"),
            ));
        }
        let version = self.volume_mut(id)?.change_set(|set| {
            set.remove(&replica);
        });
        if member {
            self.event_of_replica(id, replica, |place, volume| {
                format!("the replica of volume {volume} in {place} is not in sync any more: {why}")
            });
        }
        Ok(Outcome::Set(version))
    }

    pub(super) fn join_set(
        &mut self,
        id: VolumeId,
        replica: ReplicaId,
        seen: (Generation, u64),
    ) -> Result<Outcome, Refusal> {
        let volume = self.written(id, seen)?;
        let known = self.known_replica(volume, replica)?;
        let place = self.state.place_of(known.pool);
        if let Some(reason) = &known.failed {
            return Err(Refusal::volume(volume, format!("its replica in {place} cannot be used: {reason}")));
        }
        if !known.made {
            return Err(Refusal::volume(volume, format!("its replica in {place} is not made yet")));
        }
        if volume.set.contains(&replica) {
            return Err(Refusal::volume(volume, format!("its replica in {place} is in sync already")));
        }
        let version = self.volume_mut(id)?.change_set(|set| {
            set.insert(replica);
        });
        self.event_of_replica(id, replica, |place, volume| {
            format!("the replica of volume {volume} in {place} is in sync")
        });
        Ok(Outcome::Set(version))
    }

    /// The volume, if whoever proposes has the right to write to it, at this generation, and knows the set as it is.
    pub(super) fn written(&self, id: VolumeId, (generation, version): (Generation, u64)) -> Result<&Volume, Refusal> {
        let by = self.proposal.by;
        self.volume_at(id, generation)?;
        let volume = self.volume_of(id, version)?;
        let why: String = match self.state.writer(volume) {
            Some(writer) if writer.node == by && self.state.lives(writer) => return Ok(volume),
            Some(writer) if writer.node == by => format!("it was {writer} who wrote to it, and that life is over"),
            Some(writer) => format!("{} writes to it", self.node_name(writer.node)),
            None => "nobody writes to it now".into(),
        };
        Err(Refusal::not_the_writer(volume, by, why))
    }

    pub(super) fn known_replica<'a>(&self, volume: &'a Volume, replica: ReplicaId) -> Result<&'a Replica, Refusal> {
        let unknown = || Refusal::NoSuchReplica { volume: volume.name.clone(), replica };
        volume.replicas.get(&replica).ok_or_else(unknown)
    }

    /// The volume gets along without this one.
    pub(super) fn spare(&self, volume: &Volume, replica: ReplicaId) -> Result<(), Refusal> {
        if volume.can_spare(|id| id == replica) {
            return Ok(());
        }
        let place = self.state.place_of_replica(volume, replica);
        let why =
            format!("its replica in {place} is the last in sync that can be used; without it everything would be lost");
        Err(Refusal::volume(volume, why))
    }

    pub(super) fn room_for_replica(&self, volume: &Volume, pool: PoolId) -> Result<(), Refusal> {
        self.pool(pool)?;
        if volume.replicas.values().any(|replica| replica.pool == pool) {
            let why = format!("it has a replica in {} already; choose another pool", self.state.place_of(pool));
            return Err(Refusal::volume(volume, why));
        }
        if volume.replicas.len() >= REPLICAS_MAX {
            let why = format!("it has {REPLICAS_MAX} replicas, and none has more; remove one first");
            return Err(Refusal::volume(volume, why));
        }
        Ok(())
    }

    /// Outside of the set. The version rises, so that of two who saw the same replicas one is refused.
    pub(super) fn new_replica(&mut self, id: VolumeId, pool: PoolId) -> Result<ReplicaId, Refusal> {
        let replica = self.state.last_replica.next();
        let volume = self.volume_mut(id)?;
        volume.replicas.insert(replica, Replica { pool, made: false, failed: None });
        volume.change_set(|_| {});
        self.state.last_replica = replica;
        Ok(replica)
    }

    /// A replica in a pool of whoever proposes.
    fn own_replica(&self, id: VolumeId, replica: ReplicaId) -> Result<&Replica, Refusal> {
        let volume = self.volume(id)?;
        let known = self.known_replica(volume, replica)?;
        let (by, node) = (self.proposal.by, self.state.node_of_replica(volume, replica));
        if node != Some(by) {
            let why = format!("its replica in {} is another node's", self.state.place_of(known.pool));
            return Err(Refusal::volume(volume, why));
        }
        Ok(known)
    }

    fn replica_mut(&mut self, id: VolumeId, replica: ReplicaId) -> Result<&mut Replica, Refusal> {
        let volume = self.volume_mut(id)?;
        let unknown = Refusal::NoSuchReplica { volume: volume.name.clone(), replica };
        volume.replicas.get_mut(&replica).ok_or(unknown)
    }

    /// While it is still known where the replica is.
    fn event_of_replica(&mut self, id: VolumeId, replica: ReplicaId, text: impl FnOnce(&str, &str) -> String) {
        let Some(volume) = self.state.volumes.get(&id) else { return };
        let node = self.state.node_of_replica(volume, replica);
        let text = text(&self.state.place_of_replica(volume, replica), &volume.name);
        self.event(About { node, volume: Some(id), ..About::default() }, text);
    }
}
