//! What users want of VMs.

use alloc::{
    format,
    string::{String, ToString},
};

use super::{About, Step};
use crate::{
    command::{Outcome, Refusal},
    id::{Generation, MacAddr, NodeId, OpId, VmId},
    limits::VMS_MAX,
    operation::{OperationKind, OperationResult},
    vm::{Desired, Phase, StopCause, Vm, VmSpec},
};

impl Step<'_> {
    pub(super) fn create_vm(&mut self, spec: &VmSpec, home: NodeId, desired: Desired) -> Result<Outcome, Refusal> {
        spec.validate()?;
        let home_name = self.node(home)?.name.clone();
        if self.state.vms.values().any(|vm| vm.spec.name == spec.name) {
            return Err(Refusal::NameTaken(spec.name.clone()));
        }
        if let Some((mac, other)) = spec.nics.iter().find_map(|nic| Some((nic.mac, self.user_of(nic.mac)?))) {
            return Err(Refusal::invalid("nics", format!("{mac} is VM {other}'s; give another")));
        }
        for disk in &spec.disks {
            self.attachable(self.volume(disk.volume)?)?;
        }
        if self.state.vms.len() >= VMS_MAX {
            return Err(Refusal::full("VMs", VMS_MAX));
        }
        let (id, now) = (self.state.last_vm.next(), self.proposal.at);
        let vm = Vm {
            id,
            spec: spec.clone(),
            desired,
            home,
            generation: Generation::default(),
            phase: Phase::Stopped { cause: StopCause::New },
            failed_starts: 0,
            since: now,
            created: now,
        };
        self.state.last_vm = id;
        self.state.vms.insert(id, vm);
        self.give_disks_to(id, Some(id));
        let about = About { node: Some(home), vm: Some(id), ..About::default() };
        self.event(about, format!("VM {} was created on {home_name}", spec.name));
        Ok(Outcome::Created(id))
    }

    /// Any node may carry a user's wish. Allowed in every phase: the owner sees it and acts.
    pub(super) fn set_desired(&mut self, id: VmId, desired: Desired, home: Option<NodeId>) -> Result<Outcome, Refusal> {
        let vm = self.vm(id)?;
        let before = (vm.desired, vm.home);
        let home = home.unwrap_or(vm.home);
        self.node(home)?;
        if home != vm.home && !matches!(vm.phase, Phase::Stopped { .. }) {
            let why = "it can be given another home only while it is stopped; stop it first, or migrate it";
            return Err(Refusal::wrong_phase(vm, why));
        }
        let vm = self.vm_mut(id)?;
        vm.desired = desired;
        vm.home = home;
        if desired == Desired::Running {
            vm.failed_starts = 0;
        }
        let name = vm.spec.name.clone();
        if before != (desired, home) {
            let place = self.node_name(home);
            let text = match desired {
                Desired::Running => format!("VM {name} is wanted running on {place}"),
                Desired::Stopped { force: false } => format!("VM {name} is wanted stopped"),
                Desired::Stopped { force: true } => format!("VM {name} is wanted stopped at once"),
            };
            self.event(About { node: Some(home), vm: Some(id), ..About::default() }, text);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn delete_vm(&mut self, id: VmId) -> Result<Outcome, Refusal> {
        let vm = self.vm(id)?;
        if vm.desired == Desired::Running || !matches!(vm.phase, Phase::Stopped { .. }) {
            let why = format!("it is not stopped; run `pollux vm stop {}` first", vm.spec.name);
            return Err(Refusal::wrong_phase(vm, why));
        }
        let text = format!("VM {} was deleted", vm.spec.name);
        self.give_disks_to(id, None);
        self.state.vms.remove(&id);
        self.event(About { vm: Some(id), ..About::default() }, text);
        Ok(Outcome::Done)
    }

    /// A wish, no order: the source sees it and aborts, unless the switchover was committed first.
    pub(super) fn cancel(&mut self, op: OpId) -> Result<Outcome, Refusal> {
        let Some(operation) = self.state.operations.get(&op) else {
            return Err(Refusal::NoSuchOperation(op));
        };
        if operation.ended.is_some() {
            return if self.keep_all_by(op) { Ok(Outcome::Done) } else { Err(Refusal::Ended(op)) };
        }
        let (first, waits) = (!operation.cancel, operation.waits());
        let (vm, vm_name, to) = match &operation.kind {
            OperationKind::Migrate { vm, vm_name, to, .. } => (*vm, vm_name.clone(), *to),
            OperationKind::MoveVolume { volume, .. } => return self.cancel_volume_move(*volume, op),
        };
        if let Some(arriving) = self.state.vms.get(&vm).filter(|vm| vm.has_switched_over(op)) {
            let why =
                format!("its switchover to {} was committed; it cannot be cancelled any more", self.node_name(to));
            return Err(Refusal::wrong_phase(arriving, why));
        }
        if let Some(operation) = self.state.operations.get_mut(&op) {
            operation.cancel = true;
        }
        if waits {
            self.end_operation(op, OperationResult::Cancelled);
        }
        if first {
            let text = format!("a user cancelled the move of VM {vm_name} to {}", self.node_name(to));
            self.event(About { node: None, vm: Some(vm), op: Some(op), ..About::default() }, text);
        }
        Ok(Outcome::Done)
    }

    fn user_of(&self, mac: MacAddr) -> Option<String> {
        let uses = |vm: &&Vm| vm.spec.nics.iter().any(|nic| nic.mac == mac);
        self.state.vms.values().find(uses).map(|vm| vm.spec.name.to_string())
    }
}
