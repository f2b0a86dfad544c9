//! Taking and giving up the right to run a VM on its home (DESIGN, rules 1 and 18).

use alloc::format;

use super::{About, Step};
use crate::{
    command::{Outcome, Refusal},
    id::{Generation, Incarnation, OpId, Owner, VmId},
    limits::STEADY_RUN_MS,
    operation::OperationResult,
    text::plain,
    vm::{Desired, Phase, StopCause, Vm},
};

impl Step<'_> {
    /// The home starts the VM from nothing: it was stopped, or what an earlier life of the same node ran is gone.
    pub(super) fn claim(&mut self, id: VmId, expect: Generation, incarnation: Incarnation) -> Result<Outcome, Refusal> {
        let by = self.proposal.by;
        let owner = Owner { node: by, incarnation };
        let vm = self.vm_at(id, expect)?;
        if vm.home != by {
            return Err(Refusal::not_yours(vm, by, format!("its home is {}", self.node_name(vm.home))));
        }
        self.current_life(vm, owner)?;
        if vm.desired != Desired::Running {
            return Err(Refusal::wrong_phase(vm, "it is wanted stopped; start it first"));
        }
        let failed_move = self.claimable(vm, owner)?;
        if let Some(why) = vm.spec.disks.iter().find_map(|disk| self.state.why_not_ready(disk.volume)) {
            return Err(Refusal::wrong_phase(vm, why));
        }
        let revived = !matches!(vm.phase, Phase::Stopped { .. });
        let vm_name = vm.spec.name.clone();

        let generation = self.enter(id, Phase::Running { owner })?;
        let home = self.node_name(by);
        if let Some(op) = failed_move {
            let reason = format!("the daemon of {home}, the source, was restarted, and the guest with it");
            self.end_operation(op, OperationResult::Failed { reason });
        }
        let how = if revived { "starts anew after a restart of the daemon" } else { "starts" };
        let about = About { node: Some(by), vm: Some(id), op: failed_move, ..About::default() };
        self.event(about, format!("VM {vm_name} {how} on {home}"));
        Ok(Outcome::Owned(generation))
    }

    /// Whether `owner` may start it from nothing, and the move that this ends.
    fn claimable(&self, vm: &Vm, owner: Owner) -> Result<Option<OpId>, Refusal> {
        let (holder, failed_move) = match &vm.phase {
            Phase::Stopped { .. } => return Ok(None),
            Phase::Running { owner } => (*owner, None),
            Phase::Moving { op, from, .. } => (*from, Some(*op)),
            Phase::Arriving { to, .. } => {
                let target = self.node_name(to.node);
                let why = format!(
                    "it switched over to {target}, which has yet to say that it runs or to give it back; if {target} is \
                     lost for good, an operator can take it back"
                );
                return Err(Refusal::wrong_phase(vm, why));
            }
        };
        if holder.node != owner.node {
            let why = format!("it runs on {}", self.node_name(holder.node));
            return Err(Refusal::not_yours(vm, owner.node, why));
        }
        if holder.incarnation >= owner.incarnation {
            return Err(Refusal::wrong_phase(vm, "this life of the daemon owns it already"));
        }
        Ok(failed_move)
    }

    /// The owner gives the right up. A later life of its node may say so in its place: the earlier one's guest is gone.
    pub(super) fn release(
        &mut self,
        id: VmId,
        expect: Generation,
        incarnation: Incarnation,
        cause: &StopCause,
    ) -> Result<Outcome, Refusal> {
        let (by, at) = (self.proposal.by, self.proposal.at);
        let vm = self.vm_at(id, expect)?;
        let (owner, failed_move) = match &vm.phase {
            Phase::Running { owner } => (*owner, None),
            Phase::Moving { op, from, .. } => (*from, Some(*op)),
            // The target won it and its guest may have acted: the source's older copy must not act again.
            Phase::Arriving { op, to, .. } => (*to, Some(*op)),
            Phase::Stopped { .. } => return Err(Refusal::wrong_phase(vm, "it is stopped already")),
        };
        let end = if matches!(vm.phase, Phase::Arriving { .. }) { "target" } else { "source" };
        if owner.node != by {
            return Err(Refusal::not_yours(vm, by, format!("it runs on {}", self.node_name(owner.node))));
        }
        self.current_life(vm, Owner { node: by, incarnation })?;
        let Some(cause) = kept(cause) else {
            return Err(Refusal::invalid(
                "cause",
                "a VM that ran is not new, and its own node does not call itself lost; say why it stopped",
            ));
        };

        let vm = self.vm_mut(id)?;
        vm.failed_starts = failed_starts(vm, &cause, at);
        if stays_stopped(vm, &cause) {
            vm.desired = Desired::Stopped { force: false };
        }
        let vm_name = vm.spec.name.clone();
        let generation = self.enter(id, Phase::Stopped { cause: cause.clone() })?;
        let place = self.node_name(by);
        if let Some(op) = failed_move {
            let reason = format!("the VM stopped on {place}, the {end}: {cause}");
            self.end_operation(op, OperationResult::Failed { reason: plain(&reason) });
        }
        let about = About { node: Some(by), vm: Some(id), op: failed_move, ..About::default() };
        self.event(about, format!("VM {vm_name} stopped on {place}: {cause}"));
        Ok(Outcome::Owned(generation))
    }
}

/// The cause as it is remembered; `None` if it cannot be one.
fn kept(cause: &StopCause) -> Option<StopCause> {
    match cause {
        StopCause::New | StopCause::HostLost(_) => None,
        StopCause::GuestPowerOff | StopCause::Operator | StopCause::DaemonEnded => Some(cause.clone()),
        StopCause::QemuEnded(seen) => Some(StopCause::QemuEnded(plain(seen))),
        StopCause::StartFailed(seen) => Some(StopCause::StartFailed(plain(seen))),
    }
}

/// Whether the VM is to stay stopped: the guest or a user wanted it so, or nobody wants it back by itself.
fn stays_stopped(vm: &Vm, cause: &StopCause) -> bool {
    match cause {
        StopCause::GuestPowerOff => true,
        StopCause::DaemonEnded => vm.desired == Desired::Running && !vm.spec.autostart,
        // A user's wish is in the log already, and may have changed since: a start after the stop counts.
        StopCause::Operator => matches!(vm.desired, Desired::Stopped { .. }),
        StopCause::New | StopCause::QemuEnded(_) | StopCause::StartFailed(_) | StopCause::HostLost(_) => false,
    }
}

/// How many starts in a row came to nothing, this stop included. The time that passed is by clocks of nodes and may be
/// wrong; it decides no more than how long to wait before the next start.
fn failed_starts(vm: &Vm, cause: &StopCause, at: u64) -> u32 {
    match cause {
        StopCause::New | StopCause::DaemonEnded | StopCause::HostLost(_) => vm.failed_starts,
        StopCause::GuestPowerOff | StopCause::Operator => 0,
        StopCause::StartFailed(_) => vm.failed_starts.saturating_add(1),
        StopCause::QemuEnded(_) if at.saturating_sub(vm.since) >= STEADY_RUN_MS => 1,
        StopCause::QemuEnded(_) => vm.failed_starts.saturating_add(1),
    }
}
