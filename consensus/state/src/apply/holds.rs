//! Work on a volume while no VM runs with it: who does it has the right to write for that time, fenced like an owner's.

use alloc::format;

use super::{About, Step};
use crate::{
    command::{Outcome, Refusal},
    id::{Generation, Incarnation, Owner, VolumeId},
    vm::{Desired, Phase},
    volume::{Hold, Purpose, Volume},
};

/// No import into it was cut short.
pub(super) fn complete(volume: &Volume) -> Result<(), Refusal> {
    if volume.incomplete {
        let why = "an import into it was never finished, and it holds half of something; import it again, or delete it";
        return Err(Refusal::volume(volume, why));
    }
    Ok(())
}

impl Step<'_> {
    pub(super) fn hold_volume(
        &mut self,
        id: VolumeId,
        expect: Generation,
        incarnation: Incarnation,
        purpose: Purpose,
    ) -> Result<Outcome, Refusal> {
        let owner = Owner { node: self.proposal.by, incarnation };
        let since = self.proposal.at;
        let volume = self.volume_at(id, expect)?;
        if incarnation == Incarnation::default() || !self.state.lives(owner) {
            return Err(Refusal::not_the_writer(
                volume,
                owner.node,
                format!("{owner} is not its daemon's current life"),
            ));
        }
        self.user_rests(volume)?;
        match purpose {
            // Or it could be started with half of what is imported.
            Purpose::Import => self.nobodys(volume)?,
            Purpose::Export => complete(volume)?,
            Purpose::Copy | Purpose::Verify => {}
        }
        if let Some((_, replica)) = volume.unmade().next() {
            let place = self.state.place_of(replica.pool);
            return Err(Refusal::volume(volume, format!("its replica in {place} is not made yet; wait until it is")));
        }
        if let Some(hold) = self.living_hold(volume).filter(|hold| purpose.yields() || !hold.purpose.yields()) {
            return Err(self.occupied_by(volume, hold));
        }

        let volume = self.volume_mut(id)?;
        let generation = volume.pass_on();
        volume.holder = Some(Hold { owner, purpose, since });
        volume.incomplete |= purpose == Purpose::Import;
        let name = volume.name.clone();
        if !purpose.yields() {
            let text = format!("{} holds volume {name}: it is {}", self.node_name(owner.node), purpose.doing());
            self.event(About { node: Some(owner.node), volume: Some(id), ..About::default() }, text);
        }
        Ok(Outcome::Owned(generation))
    }

    /// Any life of the holder's node may say so: an earlier one's work ended with it.
    pub(super) fn drop_volume(&mut self, id: VolumeId, expect: Generation, done: bool) -> Result<Outcome, Refusal> {
        let by = self.proposal.by;
        let volume = self.volume_at(id, expect)?;
        let Some(hold) = volume.holder.filter(|hold| hold.owner.node == by) else {
            return Err(Refusal::not_the_writer(volume, by, "it does not hold it"));
        };
        let volume = self.volume_mut(id)?;
        let generation = volume.pass_on();
        if done && hold.purpose == Purpose::Import {
            volume.incomplete = false;
        }
        let name = volume.name.clone();
        if !hold.purpose.yields() {
            let how = if done { "is done with" } else { "gave up" };
            let text = format!("{} {how} volume {name}: it was {}", self.node_name(by), hold.purpose.doing());
            self.event(About { node: Some(by), volume: Some(id), ..About::default() }, text);
        }
        Ok(Outcome::Owned(generation))
    }

    /// The VM that has it, if one has, is stopped and is to be.
    pub(super) fn user_rests(&self, volume: &Volume) -> Result<(), Refusal> {
        let Some(vm) = volume.user.and_then(|vm| self.state.vms.get(&vm)) else { return Ok(()) };
        if vm.desired == Desired::Running || !matches!(vm.phase, Phase::Stopped { .. }) {
            let name = &vm.spec.name;
            let why = format!("VM {name} runs with it, or is about to; run `pollux vm stop {name}` first");
            return Err(Refusal::volume(volume, why));
        }
        Ok(())
    }

    /// Who works on it, in a life that is not over.
    fn living_hold(&self, volume: &Volume) -> Option<Hold> {
        volume.holder.filter(|hold| self.state.lives(hold.owner))
    }

    /// Who works on it and is not to be interrupted.
    pub(super) fn occupied(&self, volume: &Volume) -> Option<Hold> {
        self.living_hold(volume).filter(|hold| !hold.purpose.yields())
    }

    pub(super) fn unoccupied(&self, volume: &Volume) -> Result<(), Refusal> {
        self.occupied(volume).map_or(Ok(()), |hold| Err(self.occupied_by(volume, hold)))
    }

    fn occupied_by(&self, volume: &Volume, hold: Hold) -> Refusal {
        let (node, doing) = (self.node_name(hold.owner.node), hold.purpose.doing());
        Refusal::volume(volume, format!("{node} is {doing}; wait until that is over"))
    }
}
