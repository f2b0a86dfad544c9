//! What users do, each through some node, each believing what that node's copy of the state says.

use pollux_state::{
    Command, Proposal,
    id::{NodeId, OpId, VmId},
    operation::MoveWishes,
    vm::{Desired, Phase, Vm, VmSpec},
};

use super::{
    Control,
    agenda::Happening,
    fence::{FENCE_MS, LOST_AFTER_MS},
    world::{NODES, Node, VMS, World},
};

/// How often a user is an operator who looks for VMs of dead hosts, out of a thousand.
const RELEASE_PERMILLE: u64 = 80;
/// How often one looks after a host that has been silent for long, while there is one, out of a thousand.
const WORRY_PERMILLE: u64 = 300;

impl World {
    /// One deed now, and the next is set.
    pub(super) fn user(&mut self) {
        if self.calm {
            return;
        }
        let pause = self.soon(10, self.temper.user_ms);
        self.put(pause, Happening::User);
        let node = self.rng.index(NODES);
        if self.nodes[node].daemon.is_none() {
            return;
        }
        let vms: Vec<Vm> = self.nodes[node].state.vms.values().cloned().collect();
        if vms.len() < VMS {
            let home = self.some_node();
            return self.create_vm(node, home);
        }
        if let Some(vm) = self.vm_of_a_sleeper()
            && self.rng.chance(WORRY_PERMILLE)
        {
            return if matches!(vm.phase, Phase::Arriving { .. }) {
                self.take_back(&vm)
            } else {
                self.release_lost(vm.id)
            };
        }
        let vm = &vms[self.rng.index(vms.len())];
        if self.rng.chance(RELEASE_PERMILLE) {
            return self.release_lost(vm.id);
        }
        if let Some(command) = self.wish(vm) {
            self.send_as_user(node, command);
        }
    }

    pub(super) fn some_node(&mut self) -> NodeId {
        let node = self.rng.index(NODES);
        self.nodes[node].id
    }

    fn wish(&mut self, vm: &Vm) -> Option<Command> {
        let wish = |desired, home| Some(Command::SetDesired { vm: vm.id, desired, home });
        match (&vm.phase, self.rng.below(100)) {
            (Phase::Running { .. }, 0..75) => {
                let blackout_ms_max = u32::try_from(self.soon(50, 400)).unwrap_or(u32::MAX);
                let (throttle, warm) = (self.rng.chance(300), self.rng.chance(150));
                let wishes = MoveWishes { blackout_ms_max, bandwidth: None, throttle, warm };
                let to = self.some_node();
                Some(Command::BeginMove { vm: vm.id, expect: vm.generation, to, wishes, along: Vec::new() })
            }
            (Phase::Moving { op, .. } | Phase::Arriving { op, .. }, 0..20) => Some(Command::Cancel { op: *op }),
            (Phase::Arriving { .. }, 20..70) => {
                self.take_back(vm);
                None
            }
            (Phase::Stopped { .. }, 0..60) => {
                let home = self.some_node();
                wish(Desired::Running, Some(home).filter(|_| self.rng.chance(500)))
            }
            (Phase::Stopped { .. }, 60..65) => Some(Command::DeleteVm { vm: vm.id }),
            (_, 75..85) => wish(Desired::Stopped { force: self.rng.chance(500) }, None),
            (_, 85..95) => wish(Desired::Running, None),
            _ => None,
        }
    }

    /// A user has had enough of a move.
    pub(super) fn cancel_move(&mut self, node: usize, vm: VmId) {
        if let Some((op, ..)) = self.log.state.vms.get(&vm).and_then(|vm| vm.phase.moving()) {
            self.send_as_user(node, Command::Cancel { op });
        }
    }

    /// What an operator may declare lost: a host whose daemon is dead, and stays dead until the log has it; and one that was
    /// silent for so long that none of its guests is heard any more, dead or not.
    fn is_lost(&mut self, node: usize) -> bool {
        let control = self.settings.control;
        let host = &self.nodes[node];
        let out_of_reach = !host.linked && control == Some(Control::CarelessOperator);
        let patience = if control == Some(Control::HastyOperator) { FENCE_MS / 2 } else { LOST_AFTER_MS };
        let Some(daemon) = &host.daemon else { return true };
        let asleep = daemon.stopped.is_some_and(|since| self.now - since >= patience);
        self.oracle.lost_asleep += u64::from(asleep && !self.log.down);
        asleep || out_of_reach
    }

    /// One that a host has the right to run which has been silent for so long that it may be given up.
    fn vm_of_a_sleeper(&mut self) -> Option<Vm> {
        let asleep = |node: &Node| {
            let stopped = node.daemon.as_ref().and_then(|daemon| daemon.stopped);
            stopped.is_some_and(|since| self.now - since >= LOST_AFTER_MS)
        };
        let owned = |vm: &&Vm| vm.phase.owner().is_some_and(|owner| asleep(&self.nodes[self.node_of(owner.node)]));
        let vms: Vec<&Vm> = self.log.state.vms.values().filter(owned).collect();
        if vms.is_empty() { None } else { Some(vms[self.rng.index(vms.len())].clone()) }
    }

    /// An operator goes and looks at the target.
    fn take_back(&mut self, vm: &Vm) {
        let Some(Phase::Arriving { to, .. }) = self.log.state.vms.get(&vm.id).map(|vm| vm.phase.clone()) else {
            return;
        };
        if !self.is_lost(self.node_of(to.node)) || self.log.down {
            return;
        }
        let expect = self.log.state.vms[&vm.id].generation;
        let command = Command::TakeBack { vm: vm.id, expect, operator: "joan".into() };
        let proposal = self.user_proposal(0, command);
        self.append(proposal);
    }

    /// The same operator looks at the owner of a VM, wherever it is in its life.
    fn release_lost(&mut self, vm: VmId) {
        let Some(known) = self.log.state.vms.get(&vm) else { return };
        let (expect, Some(owner)) = (known.generation, known.phase.owner()) else { return };
        if !self.is_lost(self.node_of(owner.node)) || self.log.down {
            return;
        }
        let command = Command::ReleaseLost { vm, expect, operator: "joan".into() };
        let proposal = self.user_proposal(0, command);
        self.append(proposal);
    }

    fn send_as_user(&mut self, node: usize, command: Command) {
        let proposal = self.user_proposal(node, command);
        let delay = self.leader_delay();
        self.put(delay, Happening::Append { proposal, sender: node, from: None });
    }

    fn user_proposal(&mut self, node: usize, command: Command) -> Proposal {
        Proposal { id: OpId(self.rng.bytes()), by: self.nodes[node].id, at: self.now, command }
    }

    pub(super) fn create_vm(&mut self, node: usize, home: NodeId) {
        self.created += 1;
        let spec = VmSpec {
            name: format!("vm-{}", self.created),
            memory_mib: 64,
            vcpus: 1,
            kernel: "/boot/vmlinuz".into(),
            initrd: String::new(),
            append: String::new(),
            nics: Vec::new(),
            machine: "pc-q35-7.2".into(),
            cpu: "qemu64".into(),
            autostart: self.rng.chance(700),
            disks: Vec::new(),
        };
        self.send_as_user(node, Command::CreateVm { spec, home, desired: Desired::Running });
    }
}
