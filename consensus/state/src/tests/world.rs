//! A cluster in which stories happen: three nodes, and whatever VMs the story wants.

use alloc::{
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};
use core::net::SocketAddr;

use crate::{
    Applied, ClusterState, Command, Outcome, Proposal, Refusal, Rules, UnixMs,
    command::Comparison,
    id::{ClusterId, Generation, Incarnation, MacAddr, NodeId, OpId, Owner, PoolId, ReplicaId, VmId, VolumeId},
    invariant,
    node::Facts,
    operation::{Along, CopyReport, MoveReport, MoveWishes, OperationResult, PauseParts},
    vm::{Desired, Disk, Nic, Phase, StopCause, Vm, VmSpec},
    volume::{Purpose, Volume},
};

pub(super) const N1: NodeId = NodeId(1);
pub(super) const N2: NodeId = NodeId(2);
pub(super) const N3: NodeId = NodeId(3);
/// The VM of most stories.
pub(super) const WEB: VmId = VmId(1);
/// The volume of most stories.
pub(super) const DATA: VolumeId = VolumeId(1);
/// `n1:fast`, `n2:fast`, `n3:fast` and `n1:slow`.
pub(super) const P1: PoolId = PoolId(1);
pub(super) const P2: PoolId = PoolId(2);
pub(super) const P3: PoolId = PoolId(3);
pub(super) const SLOW: PoolId = PoolId(4);
/// The replicas of `data` in `n1:fast` and `n2:fast`, and the one that is added first.
pub(super) const R1: ReplicaId = ReplicaId(1);
pub(super) const R2: ReplicaId = ReplicaId(2);
pub(super) const R3: ReplicaId = ReplicaId(3);
/// What people give volumes in stories.
pub(super) const GIB: u64 = 1 << 30;
pub(super) const FIRST_LIFE: Incarnation = Incarnation(1);
/// Where clocks of stories begin.
pub(super) const NOON: UnixMs = 1_800_000_000_000;

#[derive(Clone)]
pub(super) struct World {
    pub(super) state: ClusterState,
    pub(super) rules: Rules,
    pub(super) now: UnixMs,
    index: u64,
    proposals: u64,
}

impl World {
    pub(super) fn empty() -> Self {
        Self { state: ClusterState::default(), rules: Rules::default(), now: NOON, index: 0, proposals: 0 }
    }

    /// n1, n2 and n3, each in its first life.
    pub(super) fn three_nodes() -> Self {
        let mut world = Self::empty();
        world.accept(N1, found());
        for node in [N2, N3] {
            world.accept(N1, token(node, NOON + 1_000));
            world.accept(N1, join(node));
        }
        for node in [N1, N2, N3] {
            world.restart(node);
        }
        world
    }

    /// Three nodes and the VM `web`, wanted running on n1, never started yet.
    pub(super) fn with_web() -> Self {
        let mut world = Self::three_nodes();
        world.accept(N1, create("web", N1, Desired::Running));
        world
    }

    /// `web` runs on n1 at generation 1.
    pub(super) fn with_web_running() -> Self {
        let mut world = Self::with_web();
        world.accept(N1, claim(0, FIRST_LIFE));
        world
    }

    /// `web` moves from n1 to n2, still at generation 1.
    pub(super) fn with_web_moving() -> (Self, OpId) {
        let mut world = Self::with_web_running();
        let Outcome::Accepted(op) = world.accept(N3, begin_move(1, N2)) else { panic!("a move has an operation") };
        (world, op)
    }

    /// `web` switched over from n1 to n2, at generation 2.
    pub(super) fn with_web_arriving() -> (Self, OpId) {
        let (mut world, op) = Self::with_web_moving();
        world.accept(N2, switchover(op, 1, FIRST_LIFE));
        (world, op)
    }

    /// Three nodes with pools, and the volume `data`, just created in `n1:fast` and `n2:fast`.
    pub(super) fn with_new_data() -> Self {
        let mut world = Self::three_nodes();
        for (node, name) in [(N1, "fast"), (N2, "fast"), (N3, "fast"), (N1, "slow")] {
            world.accept(node, add_pool(name));
        }
        world.accept(N3, create_volume("data", &[P1, P2]));
        world
    }

    /// The same, with both replicas made.
    pub(super) fn with_data() -> Self {
        let mut world = Self::with_new_data();
        world.accept(N1, made(R1));
        world.accept(N2, made(R2));
        world
    }

    /// The same, and the stopped VM `web` has it. The volume is at generation 1.
    pub(super) fn with_web_on_data() -> Self {
        let mut world = Self::with_data();
        let stopped = Desired::Stopped { force: false };
        let spec = VmSpec { disks: vec![Disk::data(DATA)], ..spec("web") };
        world.accept(N1, Command::CreateVm { spec, home: N1, desired: stopped });
        world
    }

    /// The same, and `web` runs on n1. The volume is at generation 2.
    pub(super) fn with_web_writing() -> Self {
        let mut world = Self::with_web_on_data();
        world.accept(N1, set_desired(Desired::Running));
        world.accept(N1, claim(0, FIRST_LIFE));
        world
    }

    /// The same, and `data` moves from `n1:fast` to `n3:fast`, where the new replica was just made.
    pub(super) fn with_data_moving() -> (Self, OpId) {
        let mut world = Self::with_web_writing();
        let Outcome::Accepted(op) = world.accept(N2, move_data(P3, 1)) else { panic!("a move has an operation") };
        world.accept(N3, made(R3));
        (world, op)
    }

    pub(super) fn data(&self) -> &Volume {
        &self.state.volumes[&DATA]
    }

    /// What holds for `data`: generation and version, and who is in the set.
    pub(super) fn set(&self) -> (u64, u64, Vec<ReplicaId>) {
        let data = self.data();
        (data.generation.0, data.version, data.set.iter().copied().collect())
    }

    pub(super) fn writer(&self) -> Option<Owner> {
        self.state.writer(self.data())
    }

    /// A new proposal, so a new id.
    pub(super) fn proposal(&mut self, by: NodeId, command: Command) -> Proposal {
        self.proposals += 1;
        Proposal { id: op_id(self.proposals), by, at: self.now, command }
    }

    /// The next entry of the log, with everything checked that must hold.
    pub(super) fn apply(&mut self, proposal: &Proposal) -> Applied {
        self.index += 1;
        let before = self.state.clone();
        let applied = self.state.apply_with(&self.rules, self.index, proposal);
        let first = before.outcomes.get(&proposal.id).map_or(self.index, |applied| applied.index);
        assert_eq!(applied.index, first, "an answer tells where its entry took effect first");
        if self.rules == Rules::default() {
            invariant::check(&before, &self.state, proposal, &applied.outcome).expect("the step is allowed");
            self.state.check().expect("the state is sound");
        }
        applied
    }

    pub(super) fn propose(&mut self, by: NodeId, command: Command) -> Outcome {
        let proposal = self.proposal(by, command);
        self.apply(&proposal).outcome
    }

    #[track_caller]
    pub(super) fn accept(&mut self, by: NodeId, command: Command) -> Outcome {
        let outcome = self.propose(by, command.clone());
        if let Outcome::Refused(refusal) = &outcome {
            panic!("{command:?} was refused: {refusal}");
        }
        outcome
    }

    #[track_caller]
    pub(super) fn refuse(&mut self, by: NodeId, command: Command) -> Refusal {
        let outcome = self.propose(by, command.clone());
        let Outcome::Refused(refusal) = outcome else { panic!("{command:?} was accepted: {outcome:?}") };
        refusal
    }

    /// The node's daemon starts; its new life.
    pub(super) fn restart(&mut self, node: NodeId) -> Incarnation {
        let after = self.state.nodes[&node].incarnation;
        let outcome = self.accept(node, start_incarnation(node, after));
        let Outcome::Incarnation(incarnation) = outcome else {
            panic!("a daemon that starts gets a life: {outcome:?}")
        };
        incarnation
    }

    pub(super) fn web(&self) -> &Vm {
        &self.state.vms[&WEB]
    }

    /// What holds for `web`: generation and phase.
    pub(super) fn standing(&self) -> (Generation, Phase) {
        (self.web().generation, self.web().phase.clone())
    }

    pub(super) fn result(&self, op: OpId) -> Option<&OperationResult> {
        self.state.operations[&op].ended.as_ref().map(|(_, result)| result)
    }

    pub(super) fn last_event(&self) -> &str {
        self.state.events.back().map_or("", |event| &event.text)
    }
}

/// `op` failed, and its reason names all of `words`.
#[track_caller]
pub(super) fn assert_failed(world: &World, op: OpId, words: &[&str]) {
    match world.result(op) {
        Some(OperationResult::Failed { reason }) => {
            assert!(words.iter().all(|word| reason.contains(word)), "{reason:?} names {words:?}");
        }
        other => panic!("the operation failed, not {other:?}"),
    }
}

pub(super) fn op_id(number: u64) -> OpId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    OpId(bytes)
}

/// Life `incarnation` of `node`.
pub(super) fn life(node: NodeId, incarnation: u64) -> Owner {
    Owner { node, incarnation: Incarnation(incarnation) }
}

pub(super) fn running(owner: Owner) -> Phase {
    Phase::Running { owner }
}

pub(super) fn stopped(cause: StopCause) -> Phase {
    Phase::Stopped { cause }
}

pub(super) fn name(node: NodeId) -> String {
    format!("n{}", node.0)
}

pub(super) fn address(node: NodeId) -> SocketAddr {
    let host = u8::try_from(node.0 % 250).expect("it is below 250") + 1;
    let port = u16::try_from(7000 + node.0).expect("stories have few nodes");
    SocketAddr::from(([192, 0, 2, host], port))
}

/// Each node's own in every test: its key, and the hash of its token's secret.
pub(super) fn bytes(node: NodeId) -> [u8; 32] {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&node.0.to_be_bytes());
    bytes
}

pub(super) fn spec(name: &str) -> VmSpec {
    let serial = name.bytes().fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let [a, b, c, d] = serial.to_be_bytes();
    VmSpec {
        name: name.to_string(),
        memory_mib: 512,
        vcpus: 2,
        kernel: "/srv/guest/vmlinuz".to_string(),
        initrd: "/srv/guest/initrd".to_string(),
        append: "console=ttyS0".to_string(),
        nics: vec![Nic { mac: MacAddr([0x52, 0x54, a, b, c, d]), bridge: "lan0".to_string(), mtu: 1500 }],
        machine: "pc-q35-7.2".to_string(),
        cpu: "qemu64,+ssse3".to_string(),
        autostart: true,
        disks: Vec::new(),
    }
}

pub(super) fn found() -> Command {
    Command::Found { cluster: ClusterId([0xc0; 16]), name: name(N1), address: address(N1), key: bytes(N1) }
}

pub(super) fn token(node: NodeId, expires: UnixMs) -> Command {
    Command::AddToken { secret_hash: bytes(node), node_name: name(node), expires }
}

pub(super) fn join(node: NodeId) -> Command {
    Command::Join { secret_hash: bytes(node), name: name(node), address: address(node), key: bytes(node) }
}

pub(super) fn start_incarnation(node: NodeId, after: Incarnation) -> Command {
    let facts = Facts { qemu: "QEMU emulator version 10.0.2".to_string(), ..Facts::default() };
    Command::StartIncarnation { after, address: address(node), facts }
}

pub(super) fn create(name: &str, home: NodeId, desired: Desired) -> Command {
    Command::CreateVm { spec: spec(name), home, desired }
}

pub(super) fn set_desired(desired: Desired) -> Command {
    Command::SetDesired { vm: WEB, desired, home: None }
}

pub(super) fn claim(expect: u64, incarnation: Incarnation) -> Command {
    Command::Claim { vm: WEB, expect: Generation(expect), incarnation }
}

pub(super) fn release(expect: u64, incarnation: Incarnation, cause: StopCause) -> Command {
    Command::Release { vm: WEB, expect: Generation(expect), incarnation, cause }
}

pub(super) fn begin_move(expect: u64, to: NodeId) -> Command {
    Command::BeginMove { vm: WEB, expect: Generation(expect), to, wishes: wishes(300), along: vec![] }
}

/// `web` moves to n3, and `data` with it: from the replica `from` to `n3:fast`.
pub(super) fn move_with_data(expect: u64, from: ReplicaId, version: u64) -> Command {
    let along = vec![Along { volume: DATA, from, pool: P3, version }];
    Command::BeginMove { vm: WEB, expect: Generation(expect), to: N3, wishes: wishes(300), along }
}

/// With a blackout of at most so many milliseconds, and nothing else.
pub(super) fn wishes(blackout_ms_max: u32) -> MoveWishes {
    MoveWishes { blackout_ms_max, bandwidth: None, throttle: false, warm: false }
}

pub(super) fn switchover(op: OpId, expect: u64, incarnation: Incarnation) -> Command {
    Command::Switchover { vm: WEB, op, expect: Generation(expect), incarnation }
}

pub(super) fn arrived(op: OpId, expect: u64) -> Command {
    Command::Arrived { vm: WEB, op, expect: Generation(expect), report: report() }
}

pub(super) fn report() -> MoveReport {
    let parts = PauseParts {
        stop_us: 1_200,
        pages_us: 4_000,
        save_us: 9_000,
        commit_us: 4_000,
        load_us: 11_000,
        resume_us: 2_500,
    };
    MoveReport {
        rounds: 4,
        wire_bytes: 90_000_000,
        pages: 131_072,
        zero_pages: 90_000,
        pause_ms: 35,
        total_ms: 2_100,
        parts,
        throttle_percent: 20,
        silence_ms: None,
    }
}

pub(super) fn give_back(op: OpId, expect: u64) -> Command {
    Command::GiveBack { vm: WEB, op, expect: Generation(expect), reason: "QEMU refused the device state".to_string() }
}

pub(super) fn abort_move(op: OpId, expect: u64) -> Command {
    Command::AbortMove { vm: WEB, op, expect: Generation(expect), reason: "the link broke".to_string() }
}

pub(super) fn release_lost(expect: u64) -> Command {
    Command::ReleaseLost { vm: WEB, expect: Generation(expect), operator: "carol".to_string() }
}

/// `node`, last seen in its first life, leaves its stopped VMs to n1.
pub(super) fn remove(node: NodeId) -> Command {
    Command::RemoveNode { node, after: FIRST_LIFE, heir: N1, lost: false }
}

pub(super) fn add_pool(name: &str) -> Command {
    Command::AddPool { name: name.to_string(), path: format!("/srv/{name}") }
}

pub(super) fn create_volume(name: &str, pools: &[PoolId]) -> Command {
    Command::CreateVolume { name: name.to_string(), size: 10 * GIB, pools: pools.to_vec() }
}

pub(super) fn made(replica: ReplicaId) -> Command {
    Command::ReplicaMade { volume: DATA, replica }
}

pub(super) fn failed(replica: ReplicaId, reason: &str) -> Command {
    Command::ReplicaFailed { volume: DATA, replica, reason: reason.to_string() }
}

pub(super) fn leave(replica: ReplicaId, generation: u64, version: u64) -> Command {
    let why = "it does not answer".to_string();
    Command::LeaveSet { volume: DATA, replica, generation: Generation(generation), version, why }
}

pub(super) fn join_set(replica: ReplicaId, generation: u64, version: u64) -> Command {
    Command::JoinSet { volume: DATA, replica, generation: Generation(generation), version }
}

pub(super) fn attach(expect: u64) -> Command {
    Command::AttachVolume { vm: WEB, volume: DATA, expect: Generation(expect), boot: false }
}

pub(super) fn detach(expect: u64) -> Command {
    Command::DetachVolume { vm: WEB, volume: DATA, expect: Generation(expect) }
}

pub(super) fn hold(expect: u64, incarnation: u64, purpose: Purpose) -> Command {
    let incarnation = Incarnation(incarnation);
    Command::HoldVolume { volume: DATA, expect: Generation(expect), incarnation, purpose }
}

pub(super) fn drop_hold(expect: u64) -> Command {
    Command::DropVolume { volume: DATA, expect: Generation(expect), done: true }
}

/// The replica in `n1:fast` goes, the new one is in `pool`; undo for ten minutes.
pub(super) fn move_data(pool: PoolId, version: u64) -> Command {
    Command::BeginVolumeMove { volume: DATA, from: R1, pool, keep_ms: 600_000, version, bandwidth: None }
}

pub(super) fn copy_report() -> CopyReport {
    CopyReport { copied_bytes: 3 * GIB, copy_ms: 40_000, compare_ms: 9_000 }
}

pub(super) fn equal(op: OpId, generation: u64, version: u64) -> Command {
    let comparison = Comparison::Equal(copy_report());
    Command::Compared { volume: DATA, op, generation: Generation(generation), version, comparison }
}

pub(super) fn different(op: OpId, generation: u64, version: u64) -> Command {
    let comparison = Comparison::Different("4 KiB at 12345".to_string());
    Command::Compared { volume: DATA, op, generation: Generation(generation), version, comparison }
}

pub(super) fn end_move(op: OpId, version: u64) -> Command {
    Command::EndVolumeMove { volume: DATA, op, version }
}

pub(super) fn take_back(expect: u64) -> Command {
    Command::TakeBack { vm: WEB, expect: Generation(expect), operator: "carol".to_string() }
}
