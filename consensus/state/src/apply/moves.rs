//! Live migration: a move completes or leaves the VM where it was (DESIGN, rule 17).
//!
//! Each step names the operation *and* compares the generation. Until the switchover is committed the source owns the VM
//! and either side may end the move; from then on the target owns it and only it gives the right back, unless an operator
//! declares it dead. Of a switchover and an abort (or a cancelled operation) whichever is committed first is the truth.

use alloc::{format, string::String};

use super::{About, Step};
use crate::{
    command::{Outcome, Refusal},
    id::{Generation, Incarnation, NodeId, OpId, Owner, VmId},
    limits::{BANDWIDTH, BLACKOUT_MS, NAME_MAX},
    operation::{Along, MoveReport, MoveWishes, Operation, OperationKind, OperationResult},
    text::{clip, plain},
    vm::{Desired, Phase, Vm},
};

/// A move as the VM's phase tells it.
#[derive(Clone, Copy)]
struct Move {
    op: OpId,
    from: Owner,
    to: Owner,
}

impl Step<'_> {
    pub(super) fn begin_move(
        &mut self,
        id: VmId,
        expect: Generation,
        to: NodeId,
        wishes: MoveWishes,
        along: &[Along],
    ) -> Result<Outcome, Refusal> {
        let (op, at) = (self.proposal.id, self.proposal.at);
        if self.state.operations.contains_key(&op) {
            // The same proposal, repeated after its outcome was forgotten: an operation id is as good a memory.
            return Ok(Outcome::Accepted(op));
        }
        let vm = self.vm_at(id, expect)?;
        let (from, cold) = match (&vm.phase, vm.desired) {
            (Phase::Running { owner }, Desired::Running) => (owner.node, false),
            (Phase::Stopped { .. }, Desired::Stopped { .. }) => (vm.home, true),
            (Phase::Running { .. }, Desired::Stopped { .. }) => {
                return Err(Refusal::wrong_phase(
                    vm,
                    "it is wanted stopped and will be; wait until it is, or start it",
                ));
            }
            (Phase::Stopped { .. }, Desired::Running) => {
                return Err(Refusal::wrong_phase(vm, "it is to be started; wait until it runs, or stop it first"));
            }
            (Phase::Moving { .. } | Phase::Arriving { .. }, _) => {
                return Err(Refusal::wrong_phase(vm, "it is moving; wait until that is over, or cancel it"));
            }
        };
        if let Some(waiting) = self.state.waiting_move_of(id) {
            let why = format!("operation {waiting} is about to move it; cancel that first, or wait for it");
            return Err(Refusal::wrong_phase(vm, why));
        }
        let target = self.node(to)?;
        if to == from {
            let has = if cold { "is its home" } else { "runs it" };
            return Err(Refusal::invalid("to", format!("{} {has} already; choose another node", target.name)));
        }
        if target.incarnation == Incarnation::default() {
            return Err(Refusal::invalid("to", format!("the daemon of {} never started; start it", target.name)));
        }
        if let Some(owner) = vm.phase.owner() {
            self.current_life(vm, owner)?;
        }
        if !BLACKOUT_MS.contains(&wishes.blackout_ms_max) {
            let (least, most, asked) = (BLACKOUT_MS.start(), BLACKOUT_MS.end(), wishes.blackout_ms_max);
            return Err(Refusal::invalid("max-blackout", format!("{asked} ms; give {least} to {most} ms")));
        }
        allowed(wishes.bandwidth)?;
        self.can_go_along(id, to, along)?;
        let vm_name = vm.spec.name.clone();
        self.make_room_for_operation()?;

        let kind =
            OperationKind::Migrate { vm: id, vm_name: vm_name.clone(), from, to, generation: expect, wishes, cold };
        let operation =
            Operation { id: op, kind, cancel: false, index: self.index, started: at, begun: None, ended: None };
        self.state.operations.insert(op, operation);
        self.begin_along(op, along)?;
        self.advance_queue();
        if self.state.operations.get(&op).is_some_and(Operation::waits) {
            let (source, target) = (self.node_name(from), self.node_name(to));
            let about = About { node: Some(to), vm: Some(id), op: Some(op), ..About::default() };
            let what = if along.is_empty() { "others to end" } else { "its volumes to be copied" };
            self.event(about, format!("the move of VM {vm_name} from {source} to {target} waits for {what}"));
        }
        Ok(Outcome::Accepted(op))
    }

    /// What nobody outside could know from the hypervisor: when the guest was heard of again. Told once.
    pub(super) fn heard_again(&mut self, op: OpId, silence_ms: u32) -> Result<Outcome, Refusal> {
        let by = self.proposal.by;
        let Some(operation) = self.state.operations.get_mut(&op) else { return Err(Refusal::NoSuchOperation(op)) };
        let OperationKind::Migrate { to, .. } = operation.kind else {
            return Err(Refusal::invalid("op", "no guest falls silent while a volume moves"));
        };
        let Some((_, OperationResult::Succeeded(report))) = &mut operation.ended else {
            return Err(Refusal::invalid("op", "only a move that is done has a silence to be told"));
        };
        if by != to {
            return Err(Refusal::invalid("op", "only the target of a move tells when its guest was heard again"));
        }
        if report.silence_ms.is_some() {
            return Err(Refusal::Ended(op));
        }
        report.silence_ms = Some(silence_ms);
        Ok(Outcome::Done)
    }

    /// The target has every byte. A cancelled operation does not stand in its way: the abort that the source makes of it
    /// does, if it is committed first.
    pub(super) fn switchover(
        &mut self,
        id: VmId,
        op: OpId,
        expect: Generation,
        incarnation: Incarnation,
    ) -> Result<Outcome, Refusal> {
        let by = self.proposal.by;
        let vm = self.vm_at(id, expect)?;
        let Move { from, to, .. } = moving(vm, op)?;
        if by != to.node {
            return Err(Refusal::not_yours(vm, by, format!("it is moving to {}", self.node_name(to.node))));
        }
        if incarnation != to.incarnation {
            return Err(Refusal::stale(vm, Owner { node: by, incarnation }, to.incarnation));
        }
        self.current_life(vm, to)?;

        let name = vm.spec.name.clone();
        let generation = self.enter(id, Phase::Arriving { op, from, to })?;
        let (source, target) = (self.node_name(from.node), self.node_name(to.node));
        let about = About { node: Some(to.node), vm: Some(id), op: Some(op), ..About::default() };
        self.event(about, format!("VM {name} switches over from {source} to {target}"));
        Ok(Outcome::Owned(generation))
    }

    pub(super) fn arrived(
        &mut self,
        id: VmId,
        op: OpId,
        expect: Generation,
        report: &MoveReport,
    ) -> Result<Outcome, Refusal> {
        let by = self.proposal.by;
        let vm = self.vm_at(id, expect)?;
        let Move { to, .. } = arriving(vm, op)?;
        if by != to.node {
            return Err(Refusal::not_yours(vm, by, format!("{} has it", self.node_name(to.node))));
        }
        self.current_life(vm, to)?;

        let generation = self.enter(id, Phase::Running { owner: to })?;
        let vm = self.vm_mut(id)?;
        vm.home = to.node;
        vm.failed_starts = 0;
        let name = vm.spec.name.clone();
        self.end_operation(op, OperationResult::Succeeded(report.clone()));
        let about = About { node: Some(to.node), vm: Some(id), op: Some(op), ..About::default() };
        let text = format!("VM {name} runs on {} after a pause of {} ms", self.node_name(to.node), report.pause_ms);
        self.event(about, text);
        Ok(Outcome::Owned(generation))
    }

    /// The target cannot run it. Any life of the target may say so: a later one knows that the copy died with the earlier.
    pub(super) fn give_back(
        &mut self,
        id: VmId,
        op: OpId,
        expect: Generation,
        reason: &str,
    ) -> Result<Outcome, Refusal> {
        let by = self.proposal.by;
        let vm = self.vm_at(id, expect)?;
        let running = arriving(vm, op)?;
        if by != running.to.node {
            let why = format!("{} has it, and only that node gives it back", self.node_name(running.to.node));
            return Err(Refusal::not_yours(vm, by, why));
        }
        let vm_name = vm.spec.name.clone();
        let (source, target) = (self.node_name(running.from.node), self.node_name(by));
        let text = format!("{target} could not run VM {vm_name} and gave it back to {source}: {reason}");
        self.back_to_source(id, running, OperationResult::Failed { reason: plain(reason) }, &text)
    }

    pub(super) fn abort_move(
        &mut self,
        id: VmId,
        op: OpId,
        expect: Generation,
        reason: &str,
    ) -> Result<Outcome, Refusal> {
        let by = self.proposal.by;
        let vm = self.vm_at(id, expect)?;
        let running = moving(vm, op)?;
        if by != running.from.node && by != running.to.node {
            return Err(Refusal::not_yours(vm, by, "only the source and the target of a move end it"));
        }
        let cancelled = self.state.operations.get(&op).is_some_and(|operation| operation.cancel);
        let (source, target) = (self.node_name(running.from.node), self.node_name(running.to.node));
        let vm_name = &vm.spec.name;
        let (result, text) = if cancelled {
            let text = format!("the move of VM {vm_name} to {target} was cancelled; it stays on {source}");
            (OperationResult::Cancelled, text)
        } else {
            let text = format!("the move of VM {vm_name} to {target} is off, it stays on {source}: {reason}");
            (OperationResult::Failed { reason: plain(reason) }, text)
        };
        self.back_to_source(id, running, result, &text)
    }

    /// An operator's word that the target is dead. It is the operator's responsibility, so the log keeps the name.
    pub(super) fn take_back(&mut self, id: VmId, expect: Generation, operator: &str) -> Result<Outcome, Refusal> {
        let vm = self.vm_at(id, expect)?;
        let Phase::Arriving { op, from, to } = vm.phase else {
            return Err(Refusal::wrong_phase(
                vm,
                "only a VM whose target fell silent after switching over is taken back",
            ));
        };
        let operator = clip(operator.trim(), NAME_MAX);
        if operator.is_empty() {
            return Err(Refusal::invalid("operator", "say who declares the target dead"));
        }
        let (source, target) = (self.node_name(from.node), self.node_name(to.node));
        let reason = format!("{operator} declared {target}, the target, dead");
        let text = format!("{operator} declared {target} dead and took VM {} back to {source}", vm.spec.name);
        let back = self.back_to_source(id, Move { op, from, to }, OperationResult::Failed { reason }, &text);
        self.keep_all_of(id);
        back
    }

    /// The way every move that did not arrive ends: the source may run the VM, again or still.
    fn back_to_source(
        &mut self,
        id: VmId,
        Move { op, from, .. }: Move,
        result: OperationResult,
        text: &str,
    ) -> Result<Outcome, Refusal> {
        let generation = self.enter(id, Phase::Running { owner: from })?;
        self.end_operation(op, result);
        self.event(About { node: Some(from.node), vm: Some(id), op: Some(op), ..About::default() }, text);
        Ok(Outcome::Owned(generation))
    }
}

/// The move `op` of this VM, if it has not switched over.
fn moving(vm: &Vm, op: OpId) -> Result<Move, Refusal> {
    match vm.phase {
        Phase::Moving { op: running, from, to } if running == op => Ok(Move { op, from, to }),
        Phase::Arriving { op: running, .. } if running == op => {
            Err(Refusal::wrong_phase(vm, "its switchover was committed first"))
        }
        Phase::Stopped { .. } | Phase::Running { .. } | Phase::Moving { .. } | Phase::Arriving { .. } => {
            Err(Refusal::wrong_phase(vm, no_such_move(op)))
        }
    }
}

/// The move `op` of this VM, if it switched over and has not ended.
fn arriving(vm: &Vm, op: OpId) -> Result<Move, Refusal> {
    match vm.phase {
        Phase::Arriving { op: running, from, to } if running == op => Ok(Move { op, from, to }),
        Phase::Moving { op: running, .. } if running == op => {
            Err(Refusal::wrong_phase(vm, "its move has not switched over yet"))
        }
        Phase::Stopped { .. } | Phase::Running { .. } | Phase::Moving { .. } | Phase::Arriving { .. } => {
            Err(Refusal::wrong_phase(vm, no_such_move(op)))
        }
    }
}

fn no_such_move(op: OpId) -> String {
    format!("the move {op} is over or was never its own")
}

/// How fast something may be copied, if that was said.
pub(super) fn allowed(bandwidth: Option<u64>) -> Result<(), Refusal> {
    let Some(asked) = bandwidth.filter(|asked| !BANDWIDTH.contains(asked)) else { return Ok(()) };
    let (least, most) = (BANDWIDTH.start(), BANDWIDTH.end());
    Err(Refusal::invalid("bandwidth", format!("{asked} bytes/s; give {least} to {most} bytes/s")))
}
