//! Volumes come, grow and go.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::ToString,
};

use super::{About, Step};
use crate::{
    command::{Outcome, Refusal},
    id::{Generation, PoolId, VolumeId},
    limits::{REPLICAS_AT_FIRST_MAX, VOLUMES_MAX},
    spec::{check_name, check_size},
    text::size as sized,
    volume::{Replica, Volume},
};

impl Step<'_> {
    /// Its replicas are the set from the start, and their nodes make them when they see it. Nobody writes before that.
    pub(super) fn create_volume(&mut self, name: &str, size: u64, pools: &[PoolId]) -> Result<Outcome, Refusal> {
        check_name("volume", name)?;
        check_size(size)?;
        if self.state.volumes.values().any(|volume| volume.name == name) {
            return Err(Refusal::NameTaken(name.to_string()));
        }
        if pools.is_empty() || pools.len() > REPLICAS_AT_FIRST_MAX {
            let why = format!("{} of them; give 1 to {REPLICAS_AT_FIRST_MAX}, one for each replica", pools.len());
            return Err(Refusal::invalid("pools", why));
        }
        let mut different = BTreeSet::new();
        for pool in pools {
            self.pool(*pool)?;
            if !different.insert(*pool) {
                let why =
                    format!("{} stands there twice; two replicas in one pool are lost together", self.places(&[*pool]));
                return Err(Refusal::invalid("pools", why));
            }
        }
        if self.state.volumes.len() >= VOLUMES_MAX {
            return Err(Refusal::full("volumes", VOLUMES_MAX));
        }
        let mut replicas = BTreeMap::new();
        let authority = self.state.last_replica.next();
        for pool in pools {
            self.state.last_replica = self.state.last_replica.next();
            replicas.insert(self.state.last_replica, Replica { pool: *pool, made: false, failed: None });
        }
        let id = self.state.last_volume.next();
        self.state.last_volume = id;
        let volume = Volume {
            id,
            name: name.to_string(),
            size,
            generation: Generation::default(),
            user: None,
            holder: None,
            set: replicas.keys().copied().collect(),
            replicas,
            version: 1,
            authority,
            created: self.proposal.at,
            moving: None,
            incomplete: false,
        };
        self.state.volumes.insert(id, volume);
        let text = format!("volume {name} of {} was created in {}", sized(size), self.places(pools));
        self.event(About { volume: Some(id), ..About::default() }, text);
        Ok(Outcome::VolumeCreated(id))
    }

    /// Nodes that see it gone delete what they have of it.
    pub(super) fn delete_volume(&mut self, id: VolumeId, expect: Generation) -> Result<Outcome, Refusal> {
        let volume = self.volume_at(id, expect)?;
        self.nobodys(volume)?;
        self.at_rest(volume)?;
        let text = format!("volume {} was deleted", volume.name);
        self.state.volumes.remove(&id);
        self.event(About { volume: Some(id), ..About::default() }, text);
        Ok(Outcome::Done)
    }

    pub(super) fn grow_volume(&mut self, id: VolumeId, size: u64) -> Result<Outcome, Refusal> {
        let volume = self.volume(id)?;
        check_size(size)?;
        if size <= volume.size {
            let (now, asked) = (sized(volume.size), sized(size));
            return Err(Refusal::volume(volume, format!("it has {now}, and {asked} is not more; a volume only grows")));
        }
        self.user_rests(volume)?;
        self.at_rest(volume)?;
        let volume = self.volume_mut(id)?;
        volume.size = size;
        if volume.holder.is_some() {
            // What it works on is not what it began with.
            volume.pass_on();
        }
        let text = format!("volume {} has {} now", volume.name, sized(size));
        self.event(About { volume: Some(id), ..About::default() }, text);
        Ok(Outcome::Done)
    }

    /// No VM has it.
    pub(super) fn nobodys(&self, volume: &Volume) -> Result<(), Refusal> {
        let Some(vm) = volume.user.and_then(|vm| self.state.vms.get(&vm)) else { return Ok(()) };
        let (vm, name) = (&vm.spec.name, &volume.name);
        let why = format!("VM {vm} has it; take it away first: `pollux volume detach {name}`");
        Err(Refusal::volume(volume, why))
    }

    /// No move of it is under way, and nobody works on it who would not be interrupted.
    fn at_rest(&self, volume: &Volume) -> Result<(), Refusal> {
        if let Some(moving) = &volume.moving {
            let why = format!("operation {} moves a replica of it; wait for that to end, or cancel it", moving.op);
            return Err(Refusal::volume(volume, why));
        }
        self.unoccupied(volume)
    }
}
