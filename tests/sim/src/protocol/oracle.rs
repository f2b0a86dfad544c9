//! The one who sees everything at once: the truth of the log, every machine on every node, and the ledger of the outside
//! client. Each check names the rule of DESIGN, section 4, that it stands for.

use std::collections::{BTreeMap, BTreeSet};

use pollux_state::{
    ClusterState,
    id::{Generation, NodeId, OpId, Owner, VmId},
    vm::{Desired, Phase, StopCause},
};

use super::{
    Time,
    agenda::Process,
    guest::{Frame, Machine, Snapshot, State},
    world::World,
};

/// What it remembers.
#[derive(Default)]
pub(super) struct Oracle {
    /// Per VM the last acknowledged count.
    pub(super) ledger: BTreeMap<VmId, Frame>,
    /// Per VM when it was last acknowledged.
    pub(super) served: BTreeMap<VmId, Time>,
    /// Per VM the guest as it was when it was last paused for a move.
    paused: BTreeMap<VmId, Snapshot>,
    /// Boots that were let run: never twice under one claim.
    booted: BTreeSet<(VmId, u64)>,
    /// Generations under which a frame reached the client.
    acted: BTreeSet<(VmId, Generation)>,
    /// VMs that were wanted stopped since they were last claimed.
    unwanted: BTreeSet<VmId>,
    /// Moves of which the target was sent everything: for how long there had been a leader by then.
    pub(super) handed: BTreeMap<OpId, Time>,
    /// Moves that their source wanted to be off while it had its copy.
    pub(super) called_off: BTreeSet<OpId>,
    /// Moves that were given up before their target could have been heard, and how.
    pub(super) too_early: BTreeMap<OpId, String>,
    /// How often the last whole copy was given up, and why that was right.
    pub(super) given_up: BTreeMap<&'static str, u64>,
    pub(super) left: u64,
    pub(super) acknowledged: u64,
    pub(super) dropped: u64,
    pub(super) fenced: u64,
    pub(super) lost_asleep: u64,
    pub(super) moves: u64,
    pub(super) aborted: u64,
    pub(super) given_back: u64,
    pub(super) taken_back: u64,
    pub(super) released_lost: u64,
    pub(super) revived: u64,
}

impl Oracle {
    pub(super) fn paused(&mut self, vm: VmId, guest: Snapshot) {
        self.paused.insert(vm, guest);
    }

    pub(super) fn wished(&mut self, vm: VmId, desired: Desired) {
        if desired != Desired::Running {
            self.unwanted.insert(vm);
        }
    }

    pub(super) fn claimed(&mut self, vm: VmId, anew: bool) {
        self.unwanted.remove(&vm);
        self.revived += u64::from(anew);
    }

    /// An operator gave up what a dead target may have acknowledged.
    pub(super) fn forgive(&mut self, vm: VmId) {
        self.ledger.remove(&vm);
    }
}

impl World {
    /// Holds at every instant.
    pub(super) fn check(&mut self) {
        let mut broken = None;
        let mut emitters: Vec<(VmId, NodeId)> = Vec::new();
        for (place, node) in self.nodes.iter().enumerate() {
            let Some(daemon) = &node.daemon else { continue };
            let clocks = self.clocks(place);
            for (vm, part) in &daemon.parts {
                let Some(machine) = &part.machine else { continue };
                let truth = self.log.state.vms.get(vm);
                if machine.emits(clocks) && node.suspended_since.is_none() {
                    let owner = truth.and_then(|vm| vm.phase.owner());
                    if owner != daemon.life {
                        broken = Some(format!("{vm} can act on {} while the log says {owner:?} (rule 1)", node.id));
                    }
                    if let Some((_, other)) = emitters.iter().find(|(other, _)| other == vm) {
                        broken = Some(format!("{vm} can act on {} and on {other} (rule 1)", node.id));
                    }
                    emitters.push((*vm, node.id));
                }
                let arriving = truth
                    .is_some_and(|vm| matches!(vm.phase, Phase::Arriving { from, .. } if Some(from) == daemon.life));
                if arriving && machine.state == State::Runs {
                    broken = Some(format!("the source of {vm} runs although its target won (rule 17)"));
                }
            }
        }
        if let Some(broken) = broken {
            self.violate(broken);
        }
    }

    /// A core lets its guest act.
    pub(super) fn check_resume(&mut self, process: Process, vm: VmId, generation: Generation) {
        let node = self.nodes[process.node].id;
        let truth = self.log.state.vms.get(&vm).map(|vm| (vm.phase.owner(), vm.generation));
        let Some(daemon) = self.daemon(process) else { return };
        let (life, leaving) = (daemon.life, daemon.leaving);
        let Some(part) = daemon.parts.get(&vm) else { return };
        let (doubt, shown) = (part.doubt, part.shown);
        let Some(machine) = &part.machine else {
            return self.violate(format!("{vm} is to act on {node}, where it has no machine"));
        };
        if leaving {
            return self.violate(format!("{vm} is let act on {node} by a daemon that ends (rule 18)"));
        }
        let (standby, acted, loaded, boot) = (machine.standby, machine.acted, machine.loaded, machine.boot());
        let guest = machine.guest.clone();
        if truth != Some((life, generation)) {
            self.violate(format!("{vm} is let act on {node} at {generation} while the log says {truth:?} (rule 2)"));
        }
        if shown.is_none_or(|shown| shown < doubt) {
            self.violate(format!("{vm} is let act on {node} though nothing was read since {doubt} (rule 3)"));
        }
        if acted {
            return;
        }
        if standby {
            let whole = loaded && guest.device == guest.digest() && self.oracle.paused.get(&vm) == Some(&guest);
            if !whole {
                self.violate(format!("{vm} goes on at {node} with other memory or device state than it had (rule 17)"));
            }
        } else if !self.oracle.booted.insert((vm, boot)) {
            self.violate(format!("{vm} is booted a second time under one claim (rule 17)"));
        }
    }

    /// A core ends a machine.
    pub(super) fn check_discard(&mut self, process: Process, vm: VmId) {
        self.check_last_copy(process, vm);
        let phase = self.log.state.vms.get(&vm).map(|vm| vm.phase.clone());
        let Some(daemon) = self.daemon(process) else { return };
        let life = daemon.life;
        let machine = daemon.parts.get(&vm).and_then(|part| part.machine.as_ref());
        let Some(machine) = machine.filter(|machine| machine.alive() && machine.acted) else { return };
        let off = machine.state == State::Off;
        let Some(phase) = phase else { return };
        if phase.owner() == life {
            self.violate(format!("{vm} is ended on its owner {life:?} (off: {off}) before the log agreed (rule 1)"));
        }
        if matches!(phase, Phase::Arriving { from, .. } if Some(from) == life) {
            self.violate(format!("the source of {vm} gives up its copy before the target runs it (rule 17)"));
        }
    }

    /// A VM was given up in the log: is it true, what is said of why?
    pub(super) fn released(&mut self, before: &ClusterState, vm: VmId, by: NodeId, cause: &StopCause) {
        let owner = before.vms.get(&vm).and_then(|vm| vm.phase.owner());
        let Some(owner) = owner else { return };
        let host = &self.nodes[self.node_of(owner.node)];
        let daemon = host.daemon.as_ref().filter(|daemon| daemon.life == Some(owner));
        let machine: Option<&Machine> = daemon.and_then(|daemon| daemon.parts.get(&vm)?.machine.as_ref());
        let runs = machine.is_some_and(|machine| matches!(machine.state, State::Runs | State::Still) && machine.acted);
        let current = before.nodes.get(&by).map(|node| node.incarnation);
        let false_word = match cause {
            StopCause::DaemonEnded => owner.node != by || current <= Some(owner.incarnation),
            StopCause::Operator => !self.oracle.unwanted.contains(&vm),
            StopCause::GuestPowerOff | StopCause::QemuEnded(_) | StopCause::StartFailed(_) => runs,
            StopCause::New | StopCause::HostLost(_) => true,
        };
        if false_word {
            self.violate(format!("{vm} was given up by {by} because of {cause:?}, which is not true (rule 1)"));
        }
    }

    /// A target gave a VM back: its guest must not have acted there, for the source's copy is older.
    pub(super) fn given_back(&mut self, before: &ClusterState, vm: VmId) {
        self.oracle.given_back += 1;
        let generation = before.vms.get(&vm).map(|vm| vm.generation);
        if generation.is_some_and(|generation| self.oracle.acted.contains(&(vm, generation))) {
            self.violate(format!("{vm} was given back by a target at which its guest had acted (rule 17)"));
        }
    }

    /// The bridges are told where the VM is.
    pub(super) fn announced(&mut self, process: Process, vm: VmId) {
        let owner = self.log.state.vms.get(&vm).and_then(|vm| vm.phase.owner());
        let clocks = self.clocks(process.node);
        let Some(daemon) = self.daemon(process) else { return };
        // It leaves as any frame does.
        let machine = daemon.parts.get(&vm).and_then(|part| part.machine.as_ref());
        if daemon.life != owner && machine.is_some_and(|machine| machine.fence.passes(clocks)) {
            self.violate(format!("{vm} is announced where it is not: the log says {owner:?} (rule 1)"));
        }
    }

    /// A frame passed a gate and reaches the client.
    pub(super) fn emitted(&mut self, vm: VmId, by: Owner, generation: Generation, frame: Frame) {
        let truth = self.log.state.vms.get(&vm).map(|vm| (vm.phase.owner(), vm.generation));
        if truth != Some((Some(by), generation)) {
            self.violate(format!("{by} let a frame of {vm} out at {generation} while the log says {truth:?} (rule 1)"));
        }
        if let Some(last) = self.oracle.ledger.get(&vm)
            && (frame.boot, frame.counter) <= (last.boot, last.counter)
        {
            let what = format!("{vm} acknowledges {frame:?} after {last:?}: its memory went back (rule 17)");
            self.violate(what);
        }
        self.oracle.ledger.insert(vm, frame);
        self.oracle.acted.insert((vm, generation));
        self.oracle.acknowledged += 1;
        let now = self.now;
        self.oracle.served.insert(vm, now);
    }
}
