//! The cluster's state as the API shows it: names for numbers, one object at a time.

use std::collections::BTreeMap;

use pollux_raft::{NodeHealth, Status as ConsensusStatus, Verdict};
use pollux_state::{
    ClusterState, UnixMs,
    event::Event,
    id::{NodeId, VmId},
    node::Node,
    operation::{CopyReport, MoveReport, Operation, OperationKind, OperationResult},
    vm::{self, Vm},
    volume::{Stage, Volume},
};
use pollux_vm::event::{MovePhase, Progress};

use super::forward::Doing;
use crate::vm::Status;

/// What a view is made from.
pub(super) struct Sight<'a> {
    pub(super) state: &'a ClusterState,
    pub(super) consensus: &'a ConsensusStatus,
    /// What the leader thinks of the nodes; `None`: it could not be asked.
    pub(super) health: Option<&'a BTreeMap<NodeId, NodeHealth>>,
}

impl Sight<'_> {
    pub(super) fn node(&self, node: &Node) -> pollux_api::NodeView {
        let facts = &node.facts;
        let health = self.health.and_then(|health| health.get(&node.id));
        let voter = self.consensus.voters.contains(&node.id);
        pollux_api::NodeView {
            id: node.id.0,
            name: node.name.clone(),
            address: node.address.to_string(),
            incarnation: node.incarnation.0,
            role: if voter { pollux_api::NodeRole::Voter } else { pollux_api::NodeRole::Learner },
            leader: self.consensus.leader == Some(node.id),
            health: match health.map(|health| health.verdict) {
                Some(Verdict::Alive) => pollux_api::Health::Alive,
                Some(Verdict::Suspect) => pollux_api::Health::Suspect,
                Some(Verdict::Down) => pollux_api::Health::Down,
                None => pollux_api::Health::Unknown,
            },
            silent_ms: health.map(|health| health.silent_ms),
            version: facts.version.clone(),
            qemu: facts.qemu.clone(),
            accelerator: facts.accelerator.clone(),
            memory_mib: facts.memory_mib,
            uefi: facts.uefi().unwrap_or_default().to_owned(),
            processors: facts.processors,
            bridges: facts.bridges.clone(),
            kernel: facts.kernel.clone(),
            tracking: if facts.tracking_refused.is_empty() { "ok".into() } else { facts.tracking_refused.clone() },
            lacks: facts.lacks().map(str::to_owned).collect(),
            refused: None,
        }
    }

    pub(super) fn node_name(&self, node: NodeId) -> String {
        self.state.name_of(node).map_or_else(|| node.to_string(), str::to_owned)
    }

    fn vm_name(&self, vm: VmId) -> String {
        self.state.vms.get(&vm).map_or_else(|| vm.to_string(), |vm| vm.spec.name.clone())
    }

    pub(super) fn vm(&self, vm: &Vm, doing: Doing) -> pollux_api::VmView {
        let spec = &vm.spec;
        let peer = match &vm.phase {
            vm::Phase::Moving { to, .. } => Some(to.node),
            vm::Phase::Arriving { from, .. } => Some(from.node),
            vm::Phase::Stopped { .. } | vm::Phase::Running { .. } => None,
        };
        pollux_api::VmView {
            id: vm.id.0,
            name: spec.name.clone(),
            desired: match vm.desired {
                vm::Desired::Running => pollux_api::Desired::Running,
                vm::Desired::Stopped { .. } => pollux_api::Desired::Stopped,
            },
            phase: match vm.phase {
                vm::Phase::Stopped { .. } => pollux_api::Phase::Stopped,
                vm::Phase::Running { .. } => pollux_api::Phase::Running,
                vm::Phase::Moving { .. } => pollux_api::Phase::Moving,
                vm::Phase::Arriving { .. } => pollux_api::Phase::Arriving,
            },
            node: vm.phase.owner().map(|owner| self.node_name(owner.node)),
            peer: peer.map(|node| self.node_name(node)),
            home: self.node_name(vm.home),
            generation: vm.generation.0,
            runtime: doing.runtime.unwrap_or(pollux_api::Runtime::Unknown),
            trouble: doing.trouble,
            unsaved: doing.unsaved,
            memory_mib: spec.memory_mib,
            vcpus: spec.vcpus,
            nics: spec
                .nics
                .iter()
                .map(|nic| pollux_api::NicView { mac: nic.mac.to_string(), bridge: nic.bridge.clone(), mtu: nic.mtu })
                .collect(),
            disks: spec.data_disks().enumerate().map(|(at, disk)| self.disk(spec, at, disk)).collect(),
            firmware: spec.firmware().and_then(|id| self.state.volumes.get(&id)).map(|volume| volume.name.clone()),
            kernel: spec.kernel.clone(),
            initrd: spec.initrd.clone(),
            append: spec.append.clone(),
            machine: spec.machine.clone(),
            cpu: spec.cpu.clone(),
            autostart: spec.autostart,
            since: vm.since,
            created: vm.created,
            stop_cause: match &vm.phase {
                vm::Phase::Stopped { cause } => Some(stop_cause(cause)),
                vm::Phase::Running { .. } | vm::Phase::Moving { .. } | vm::Phase::Arriving { .. } => None,
            },
            failed_starts: vm.failed_starts,
            operation: vm
                .phase
                .moving()
                .map(|(op, _, _)| op)
                .or_else(|| self.state.waiting_move_of(vm.id))
                .map(|op| op.to_string()),
        }
    }

    fn disk(&self, spec: &vm::VmSpec, at: usize, disk: &vm::Disk) -> pollux_api::DiskView {
        let volume = self.state.volumes.get(&disk.volume);
        pollux_api::DiskView {
            volume: volume.map_or_else(|| disk.volume.to_string(), |volume| volume.name.clone()),
            size_bytes: volume.map(|volume| volume.size).unwrap_or_default(),
            boot: at == 0 && spec.kernel.is_empty(),
        }
    }

    /// How far the log says that it is.
    fn phase_of(&self, operation: &Operation) -> &'static str {
        if operation.ended.is_some() {
            return "ended";
        }
        match operation.kind {
            OperationKind::Migrate { .. } if operation.waits() && self.mirrors(operation) => "mirroring",
            OperationKind::Migrate { .. } if operation.waits() => "queued",
            OperationKind::Migrate { vm, .. } => {
                let arriving = self.state.vms.get(&vm).is_some_and(|vm| vm.has_switched_over(operation.id));
                if arriving { "arriving" } else { "moving" }
            }
            OperationKind::MoveVolume { volume, .. } => match self.state.volumes.get(&volume).and_then(Volume::stage) {
                Some(Stage::Copying) | None => "copying",
                Some(Stage::Comparing) => "comparing",
                Some(Stage::Kept { .. }) => "kept",
            },
        }
    }

    /// A volume that goes along with the VM is not at the target yet.
    fn mirrors(&self, operation: &Operation) -> bool {
        self.state.moved_by(operation.id).any(|it| !matches!(it.stage(), Some(Stage::Kept { .. })))
    }

    pub(super) fn operation(
        &self,
        operation: &Operation,
        progress: Option<pollux_api::ProgressView>,
    ) -> pollux_api::OperationView {
        let (kind, from, to, wishes) = match &operation.kind {
            OperationKind::Migrate { from, to, wishes, .. } => {
                (pollux_api::OperationKind::Migrate, self.node_name(*from), self.node_name(*to), Some(wishes))
            }
            OperationKind::MoveVolume { from_place, to_place, .. } => {
                (pollux_api::OperationKind::MoveVolume, from_place.clone(), to_place.clone(), None)
            }
        };
        let (result, reason, report) = match operation.ended.as_ref().map(|(_, result)| result) {
            None => (None, None, None),
            Some(OperationResult::Succeeded(report)) => {
                (Some(pollux_api::OperationResult::Succeeded), None, Some(report_view(report)))
            }
            Some(OperationResult::Failed { reason }) => {
                (Some(pollux_api::OperationResult::Failed), Some(reason.clone()), None)
            }
            Some(OperationResult::Cancelled) => (Some(pollux_api::OperationResult::Cancelled), None, None),
            Some(OperationResult::VolumeMoved(_) | OperationResult::Relocated) => {
                (Some(pollux_api::OperationResult::Succeeded), None, None)
            }
        };
        pollux_api::OperationView {
            id: operation.id.to_string(),
            kind,
            vm: operation.subject().to_owned(),
            from,
            to,
            blackout_ms_max: wishes.map_or(0, |wishes| wishes.blackout_ms_max),
            bandwidth: operation.kind.bandwidth(),
            allow_throttle: wishes.is_some_and(|wishes| wishes.throttle),
            phase: self.phase_of(operation).into(),
            cancel: operation.cancel,
            started: operation.started,
            ended: operation.ended.as_ref().map(|(at, _)| *at),
            result,
            reason,
            report,
            progress,
            copy: copy_view(operation),
        }
    }

    pub(super) fn event(&self, event: &Event) -> pollux_api::EventView {
        pollux_api::EventView {
            number: event.number,
            at: event.at,
            node: event.node.map(|node| self.node_name(node)),
            vm: event.vm.map(|vm| self.vm_name(vm)),
            operation: event.op.map(|op| op.to_string()),
            text: event.text.clone(),
        }
    }
}

/// What the owning node's actor is doing, in the API's words. `waits`: a guest that may run stands still for its disk.
pub(super) fn runtime(status: Option<&Status>, waits: bool) -> pollux_api::Runtime {
    match status.map(|status| (status.doing, status.progress.is_some())) {
        None | Some(("idle", _)) => pollux_api::Runtime::None,
        Some(("starting", _)) => pollux_api::Runtime::Starting,
        Some(("running", true)) => pollux_api::Runtime::Sending,
        Some(("running", false)) if waits => pollux_api::Runtime::Paused,
        Some(("running", false)) => pollux_api::Runtime::Running,
        Some(("fenced", _)) => pollux_api::Runtime::Fenced,
        Some(("handing over", _)) => pollux_api::Runtime::Saving,
        Some(("suspended" | "handed over" | "resuming", _)) => pollux_api::Runtime::Paused,
        Some(("receiving" | "loading" | "deciding", _)) => pollux_api::Runtime::Receiving,
        Some(("stopping" | "ending", _)) => pollux_api::Runtime::Stopping,
        Some(_) => pollux_api::Runtime::Unknown,
    }
}

/// `since`: when it became so. Not when it is looked at, or whoever waits for news would find some every time.
pub(super) fn progress_view(progress: &Progress, since: UnixMs) -> pollux_api::ProgressView {
    #[expect(clippy::cast_precision_loss, reason = "a speed for people")]
    let mib_per_s = progress.bytes_per_s as f64 / f64::from(1 << 20);
    pollux_api::ProgressView {
        phase: match progress.phase {
            MovePhase::Preparing => "preparing",
            MovePhase::Copying => "copying",
            MovePhase::SwitchingOver => "switching",
            MovePhase::Deciding => "arriving",
        }
        .into(),
        round: progress.round,
        sent_bytes: progress.memory_bytes,
        wire_bytes: progress.wire_bytes,
        pages_left: progress.pending_pages,
        dirty_pages_per_s: progress.dirty_pages_per_s,
        mib_per_s,
        predicted_blackout_ms: (progress.predicted_blackout_ms > 0).then_some(progress.predicted_blackout_ms),
        eta_s: eta_s(progress),
        throttle_percent: progress.throttle_percent,
        updated: since,
    }
}

/// Seconds until what is left has been copied, what the guest writes meanwhile included; `None`: it writes faster.
fn eta_s(progress: &Progress) -> Option<u64> {
    let page = pollux_vm::pages::PAGE_BYTES as u64;
    let gains = progress.bytes_per_s.checked_sub(progress.dirty_pages_per_s.saturating_mul(page))?;
    progress.pending_pages.saturating_mul(page).checked_div(gains)
}

fn copy_view(operation: &Operation) -> Option<pollux_api::CopyView> {
    let Some((_, OperationResult::VolumeMoved(report))) = operation.ended else { return None };
    let CopyReport { copied_bytes, copy_ms, compare_ms } = report;
    Some(pollux_api::CopyView { copied_bytes, copy_ms, compare_ms })
}

fn report_view(report: &MoveReport) -> pollux_api::ReportView {
    pollux_api::ReportView {
        rounds: report.rounds,
        wire_bytes: report.wire_bytes,
        pages: report.pages,
        zero_pages: report.zero_pages,
        pause_ms: report.pause_ms,
        total_ms: report.total_ms,
        parts: pollux_api::PauseView {
            stop_us: report.parts.stop_us,
            pages_us: report.parts.pages_us,
            save_us: report.parts.save_us,
            commit_us: report.parts.commit_us,
            load_us: report.parts.load_us,
            resume_us: report.parts.resume_us,
        },
        throttle_percent: report.throttle_percent,
        silence_ms: report.silence_ms,
    }
}

fn stop_cause(cause: &vm::StopCause) -> String {
    match cause {
        vm::StopCause::New => "never started".into(),
        vm::StopCause::GuestPowerOff => "the guest switched itself off".into(),
        vm::StopCause::Operator => "stopped by a user".into(),
        vm::StopCause::DaemonEnded => "its node's daemon ended".into(),
        vm::StopCause::QemuEnded(why) => format!("QEMU ended: {why}"),
        vm::StopCause::StartFailed(why) => format!("it could not be started: {why}"),
        vm::StopCause::HostLost(who) => format!("its host was lost: {who}"),
    }
}
