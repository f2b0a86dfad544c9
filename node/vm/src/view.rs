//! What the log says of one VM, as far as its core must know.

use pollux_state::{
    ClusterState,
    id::{Generation, NodeId, OpId, Owner, VmId},
    operation::{MoveWishes, OperationKind},
    vm::{Desired, Phase},
};

/// The newest known state of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The place in the log it is as of.
    pub index: u64,
    /// The VM; `None`: never heard of, or deleted.
    pub vm: Option<Seen>,
}

/// The parts of a VM's record that decide what its nodes do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The fencing number.
    pub generation: Generation,
    /// Who may run it.
    pub phase: Phase,
    /// What the user wants.
    pub desired: Desired,
    /// Where it is to be started.
    pub home: NodeId,
    /// Start it again when its daemon ended.
    pub autostart: bool,
    /// Starts that failed in a row.
    pub failed_starts: u32,
    /// Its volumes are made. Before that the log refuses whoever would start it.
    pub ready: bool,
    /// The move under way is to be cancelled.
    pub cancel: bool,
    /// How the move under way is wished to be.
    pub wishes: Option<MoveWishes>,
}

impl View {
    /// Nothing known.
    pub const NOTHING: Self = Self { index: 0, vm: None };

    /// What `state`, applied up to `index`, says of `vm`.
    #[must_use]
    pub fn of(state: &ClusterState, index: u64, vm: VmId) -> Self {
        let seen = state.vms.get(&vm).map(|vm| {
            let operation = vm.phase.moving().and_then(|(op, _, _)| state.operations.get(&op));
            let wishes = operation.and_then(|operation| match &operation.kind {
                OperationKind::Migrate { wishes, .. } => Some(*wishes),
                OperationKind::MoveVolume { .. } => None,
            });
            Seen {
                generation: vm.generation,
                phase: vm.phase.clone(),
                desired: vm.desired,
                home: vm.home,
                autostart: vm.spec.autostart,
                failed_starts: vm.failed_starts,
                ready: vm.spec.disks.iter().all(|disk| state.why_not_ready(disk.volume).is_none()),
                cancel: operation.is_some_and(|operation| operation.cancel),
                wishes,
            }
        });
        Self { index, vm: seen }
    }
}

impl Seen {
    /// May `who` let effects of the VM out, as of this view?
    #[must_use]
    pub fn owned_by(&self, who: Owner) -> bool {
        self.phase.owner() == Some(who)
    }

    /// The move `op` is under way and undecided.
    #[must_use]
    pub fn moving(&self, op: OpId) -> bool {
        matches!(&self.phase, Phase::Moving { op: current, .. } if *current == op)
    }
}
