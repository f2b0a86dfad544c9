//! The volumes of a VM: only while it is stopped does it get or lose one. Whenever the right to run it changes hands, so does the
//! right to write to them (DESIGN, rules 1 and 4).

use alloc::{format, vec::Vec};

use super::{About, Step, holds::complete};
use crate::{
    command::{Outcome, Refusal},
    id::{Generation, VmId, VolumeId},
    limits::DISKS_MAX,
    vm::{Desired, Disk, Phase, Vm},
    volume::Volume,
};

impl Step<'_> {
    pub(super) fn attach_volume(
        &mut self,
        vm_id: VmId,
        id: VolumeId,
        expect: Generation,
        boot: bool,
    ) -> Result<Outcome, Refusal> {
        let volume = self.volume_at(id, expect)?;
        let vm = self.stopped(vm_id)?;
        self.attachable(volume)?;
        if vm.spec.disks.len() >= DISKS_MAX {
            return Err(Refusal::wrong_phase(vm, format!("it has {DISKS_MAX} volumes, and no VM has more")));
        }
        let text = format!("VM {} has volume {} now", vm.spec.name, volume.name);

        let disks = &mut self.vm_mut(vm_id)?.spec.disks;
        disks.insert(if boot { 0 } else { disks.len() }, Disk::data(id));
        let volume = self.volume_mut(id)?;
        volume.user = Some(vm_id);
        let generation = volume.pass_on();
        self.event(About { vm: Some(vm_id), volume: Some(id), ..About::default() }, text);
        Ok(Outcome::Owned(generation))
    }

    pub(super) fn detach_volume(&mut self, vm_id: VmId, id: VolumeId, expect: Generation) -> Result<Outcome, Refusal> {
        let volume = self.volume_at(id, expect)?;
        let vm = self.stopped(vm_id)?;
        if volume.user != Some(vm_id) {
            return Err(Refusal::volume(volume, format!("VM {} does not have it", vm.spec.name)));
        }
        if let Some(moving) = volume.moving.filter(|moving| self.is_vms(moving.op)) {
            let why = format!("operation {} moves it with VM {}; cancel that, or wait for it", moving.op, vm.spec.name);
            return Err(Refusal::volume(volume, why));
        }
        if vm.spec.firmware() == Some(id) {
            let why = format!(
                "the firmware of VM {0} keeps its variables in it; it is free again when {0} is deleted",
                vm.spec.name
            );
            return Err(Refusal::volume(volume, why));
        }
        if vm.spec.kernel.is_empty() && vm.spec.data_disks().count() == 1 {
            let why = format!("VM {0} boots from it; give {0} another first, or delete {0}", vm.spec.name);
            return Err(Refusal::volume(volume, why));
        }
        let text = format!("VM {} has volume {} no more", vm.spec.name, volume.name);

        self.vm_mut(vm_id)?.spec.disks.retain(|disk| disk.volume != id);
        let volume = self.volume_mut(id)?;
        volume.user = None;
        let generation = volume.pass_on();
        self.event(About { vm: Some(vm_id), volume: Some(id), ..About::default() }, text);
        Ok(Outcome::Owned(generation))
    }

    /// A VM that nobody runs and nobody is about to start.
    fn stopped(&self, id: VmId) -> Result<&Vm, Refusal> {
        let vm = self.vm(id)?;
        if vm.desired == Desired::Running || !matches!(vm.phase, Phase::Stopped { .. }) {
            let why =
                format!("its volumes change only while it is stopped; run `pollux vm stop {}` first", vm.spec.name);
            return Err(Refusal::wrong_phase(vm, why));
        }
        Ok(vm)
    }

    pub(super) fn attachable(&self, volume: &Volume) -> Result<(), Refusal> {
        self.nobodys(volume)?;
        self.unoccupied(volume)?;
        complete(volume)
    }

    /// All volumes in the specification of `vm` get this user: it, when it was created, or nobody.
    pub(super) fn give_disks_to(&mut self, vm: VmId, user: Option<VmId>) {
        for id in self.disks_of(vm) {
            if let Some(volume) = self.state.volumes.get_mut(&id) {
                volume.user = user;
                volume.pass_on();
            }
        }
    }

    /// The right to run `vm` changed hands.
    pub(super) fn pass_on_disks(&mut self, vm: VmId) {
        for id in self.disks_of(vm) {
            if let Some(volume) = self.state.volumes.get_mut(&id) {
                volume.pass_on();
            }
        }
    }

    fn disks_of(&self, vm: VmId) -> Vec<VolumeId> {
        let vm = self.state.vms.get(&vm);
        vm.map(|vm| vm.spec.disks.iter().map(|disk| disk.volume).collect()).unwrap_or_default()
    }
}
