//! A cluster in which stories happen: three nodes, and whatever VMs the story wants.

use alloc::{
    format,
    string::{String, ToString},
    vec,
};
use core::net::SocketAddr;

use crate::{
    Applied, ClusterState, Command, Outcome, Proposal, Refusal, Rules, UnixMs,
    id::{ClusterId, Generation, Incarnation, MacAddr, NodeId, OpId, Owner, VmId},
    invariant,
    node::Facts,
    operation::{MoveReport, MoveWishes, OperationResult, PauseParts},
    vm::{Desired, Nic, Phase, StopCause, Vm, VmSpec},
};

pub(super) const N1: NodeId = NodeId(1);
pub(super) const N2: NodeId = NodeId(2);
pub(super) const N3: NodeId = NodeId(3);
/// The VM of most stories.
pub(super) const WEB: VmId = VmId(1);
pub(super) const FIRST_LIFE: Incarnation = Incarnation(1);
/// Where clocks of stories begin.
pub(super) const NOON: UnixMs = 1_800_000_000_000;

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
    Command::BeginMove { vm: WEB, expect: Generation(expect), to, wishes: wishes(300) }
}

/// With a blackout of at most so many milliseconds, and nothing else.
pub(super) fn wishes(blackout_ms_max: u32) -> MoveWishes {
    MoveWishes { blackout_ms_max, bandwidth: None, throttle: false }
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

pub(super) fn take_back(expect: u64) -> Command {
    Command::TakeBack { vm: WEB, expect: Generation(expect), operator: "carol".to_string() }
}
