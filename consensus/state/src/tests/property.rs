//! Whatever is proposed by whomever, in any order and any number of times, every step is allowed and every state is sound.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};
use core::cell::RefCell;

use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};

use pollux_wire::{codec, limits::Limit};

use super::world::*;
use crate::{
    ClusterState, Command, Outcome, Proposal, Rules,
    command::Comparison,
    id::{Generation, Incarnation, NodeId, OpId, Owner, PoolId, ReplicaId, VmId, VolumeId},
    invariant,
    operation::{Along, OperationKind},
    vm::{Desired, Disk, StopCause},
    volume::{Pool, Purpose, Volume},
};

/// Something that somebody may propose, relative to what holds when it comes: most of it sensible, some of it late, early,
/// repeated or a stranger's.
#[derive(Debug, Clone)]
struct Deed {
    what: u8,
    /// Mostly somebody whose business it is, sometimes anybody.
    meddler: Option<u64>,
    vm: u64,
    node: u64,
    /// Added to the current generation.
    generation: i64,
    /// Added to the current life, or the current version of a set.
    life: i64,
    variant: u8,
    /// The id of an earlier proposal instead of a new one.
    repeat: Option<prop::sample::Index>,
}

fn off_by() -> impl Strategy<Value = i64> {
    prop_oneof![12 => Just(0), 1 => Just(-1), 1 => Just(1), 1 => Just(-2)]
}

fn deed(what: impl Strategy<Value = u8>) -> impl Strategy<Value = Deed> {
    (
        what,
        prop::option::weighted(0.15, 0..6_u64),
        1..4_u64,
        1..5_u64,
        off_by(),
        off_by(),
        any::<u8>(),
        prop::option::weighted(0.08, any::<prop::sample::Index>()),
    )
        .prop_map(|(what, meddler, vm, node, generation, life, variant, repeat)| Deed {
            what,
            meddler,
            vm,
            node,
            generation,
            life,
            variant,
            repeat,
        })
}

/// About VMs and nodes alone: the numbers below this. The rest is about pools and volumes.
const OF_VMS: u8 = 24;
const DEEDS: u8 = 54;
/// From this on, a volume's move is taken a step further.
const FORWARD: u8 = 50;

fn about_vms() -> impl Strategy<Value = Vec<Deed>> {
    prop::collection::vec(deed(0..OF_VMS), 1..160)
}

fn about_disks() -> impl Strategy<Value = Vec<Deed>> {
    prop::collection::vec(deed(prop_oneof![1 => 0..OF_VMS, 5 => OF_VMS..DEEDS]), 1..240)
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let mixed = prop::collection::vec(deed(0..DEEDS), 1..240);
    prop_oneof![about_vms(), about_disks(), mixed]
}

/// Which kinds of command were accepted, and which refused.
type Tally = BTreeSet<(String, bool)>;

/// Two copies of one log, and what the past promised.
struct Drive {
    rules: Rules,
    state: ClusterState,
    twin: ClusterState,
    past: Vec<Proposal>,
    /// Rule 1, as it stands: the one owner that each generation of each VM ever had.
    owners: BTreeMap<(VmId, Generation), Owner>,
    /// The same of volumes: who may have written.
    writers: BTreeMap<(VolumeId, Generation), Owner>,
}

impl Drive {
    fn new(rules: Rules) -> Self {
        let mut world = World::with_web_on_data();
        world.accept(N1, set_desired(Desired::Running));
        let (owners, writers) = (BTreeMap::new(), BTreeMap::new());
        Self { rules, twin: world.state.clone(), state: world.state, past: Vec::new(), owners, writers }
    }

    fn step(&mut self, deed: &Deed) -> Result<Outcome, String> {
        let mut proposal = self.proposal(deed);
        if let Some(earlier) = deed.repeat.filter(|_| !self.past.is_empty()) {
            proposal = earlier.get(&self.past).clone();
        }
        let index = self.past.len() as u64 + 100;
        self.past.push(proposal.clone());
        let before = self.state.clone();
        let applied = self.state.apply_with(&self.rules, index, &proposal);
        let twins = self.twin.apply_with(&self.rules, index, &proposal);
        if (&twins, &self.twin) != (&applied, &self.state) {
            return Err("two copies of one log differ".to_string());
        }
        invariant::check(&before, &self.state, &proposal, &applied.outcome).map_err(|it| it.to_string())?;
        self.state.check().map_err(|it| it.to_string())?;
        for vm in self.state.vms.values() {
            let Some(owner) = vm.phase.owner() else { continue };
            let first = *self.owners.entry((vm.id, vm.generation)).or_insert(owner);
            if first != owner {
                return Err(format!("{} has two owners at {}: {first} and {owner}", vm.spec.name, vm.generation));
            }
        }
        for volume in self.state.volumes.values() {
            let Some(writer) = self.state.writer(volume) else { continue };
            let first = *self.writers.entry((volume.id, volume.generation)).or_insert(writer);
            if first != writer {
                return Err(format!("{} has two writers at {}: {first}, {writer}", volume.name, volume.generation));
            }
        }
        Ok(applied.outcome)
    }

    fn proposal(&self, deed: &Deed) -> Proposal {
        let (by, command) = if deed.what < OF_VMS { self.of_vms(deed) } else { self.of_disks(deed) };
        let id = op_id(1_000_000 + self.past.len() as u64);
        Proposal { id, by, at: NOON + u64::from(deed.variant), command }
    }

    fn of_vms(&self, deed: &Deed) -> (NodeId, Command) {
        let vm = VmId(deed.vm.min(self.state.last_vm.0 + 1));
        let known = self.state.vms.get(&vm);
        let node = NodeId(deed.node);
        let expect = Generation(known.map_or(0, |vm| vm.generation.0).saturating_add_signed(deed.generation));
        let moving = known.and_then(|vm| vm.phase.moving());
        let op = moving.map_or_else(|| self.some_operation(deed), |(op, ..)| op);
        let (source, target) = moving.map_or((node, node), |(_, from, to)| (from.node, to.node));
        let home = known.map_or(node, |vm| vm.home);
        let owner = known.and_then(|vm| vm.phase.owner()).map_or(home, |owner| owner.node);
        let entitled = match deed.what {
            0..=2 => home,
            3 | 4 => owner,
            7..=11 => target,
            12 if deed.variant.is_multiple_of(2) => source,
            12 => target,
            _ => node,
        };
        let by = deed.meddler.map_or(entitled, NodeId);
        let current = self.state.nodes.get(&by).map_or(0, |node| node.incarnation.0);
        let incarnation = Incarnation(current.saturating_add_signed(deed.life));
        let command = match deed.what {
            0..=2 => Command::Claim { vm, expect, incarnation },
            3 | 4 => Command::Release { vm, expect, incarnation, cause: cause(deed.variant) },
            5 | 6 => {
                let blackout_ms_max = if deed.variant == 0 { 0 } else { 300 };
                let along = if deed.variant.is_multiple_of(3) { self.along(vm, node, deed) } else { vec![] };
                Command::BeginMove { vm, expect, to: node, wishes: wishes(blackout_ms_max), along }
            }
            7 | 8 => Command::Switchover { vm, op, expect, incarnation },
            9 | 10 => Command::Arrived { vm, op, expect, report: report() },
            11 => Command::GiveBack { vm, op, expect, reason: "no".to_string() },
            12 => Command::AbortMove { vm, op, expect, reason: "no".to_string() },
            13 => Command::TakeBack { vm, expect, operator: "carol".to_string() },
            14 if deed.variant.is_multiple_of(3) => {
                Command::HeardAgain { op: self.some_operation(deed), silence_ms: 100 }
            }
            14 => Command::Cancel { op },
            15 => start_incarnation(by, incarnation),
            16 => {
                let mut spec = spec(["web", "db", "mail"][usize::from(deed.variant % 3)]);
                if deed.variant.is_multiple_of(2) {
                    spec.disks.push(Disk::data(VolumeId(deed.vm)));
                }
                Command::CreateVm { spec, home: node, desired: desired(deed.variant) }
            }
            17 | 22 => {
                let home = deed.variant.is_multiple_of(3).then_some(node);
                Command::SetDesired { vm, desired: desired(deed.variant), home }
            }
            18 => Command::DeleteVm { vm },
            19 | 23 => Command::ReleaseLost { vm, expect, operator: "carol".to_string() },
            20 if deed.variant.is_multiple_of(2) => {
                let arrived = self.state.operations.values().find_map(|operation| match operation.kind {
                    OperationKind::Migrate { to, .. } if operation.ended.is_some() => Some((to, operation.id)),
                    OperationKind::Migrate { .. } | OperationKind::MoveVolume { .. } => None,
                });
                let (to, op) = arrived.unwrap_or((by, op));
                return (deed.meddler.map_or(to, NodeId), Command::HeardAgain { op, silence_ms: 100 });
            }
            20 => {
                let after = self.state.nodes.get(&node).map_or(0, |node| node.incarnation.0);
                let after = Incarnation(after.saturating_add_signed(deed.life));
                let heir = NodeId(1 + (deed.node + u64::from(deed.variant)) % 4);
                Command::RemoveNode { node, after, heir, lost: deed.variant.is_multiple_of(3) }
            }
            _ => match deed.variant % 3 {
                0 => found(),
                1 => token(NodeId(3 + deed.node), NOON + 200),
                _ => join(NodeId(3 + deed.node)),
            },
        };
        (by, command)
    }

    fn of_disks(&self, deed: &Deed) -> (NodeId, Command) {
        let next = if deed.what >= FORWARD { self.forward(deed) } else { None };
        if let Some(step) = next {
            return step;
        }
        let volume = VolumeId(deed.vm.min(self.state.last_volume.0 + 1));
        let known = self.state.volumes.get(&volume);
        let (node, pool) = (NodeId(deed.node), PoolId(deed.node));
        let pick = |of: Vec<ReplicaId>| of.get(usize::from(deed.variant) % of.len().max(1)).copied();
        let any = known.and_then(|it| pick(it.replicas.keys().copied().collect())).unwrap_or(ReplicaId(99));
        let outside =
            known.and_then(|it| pick(it.replicas.keys().copied().filter(|id| !it.set.contains(id)).collect()));
        let unmade = known.and_then(|it| it.replicas.iter().find(|(_, replica)| !replica.made)).map(|(id, _)| *id);
        let replica = match deed.what {
            29..=31 => unmade.unwrap_or(any),
            37..=39 => outside.unwrap_or(any),
            _ => any,
        };
        let expect = Generation(known.map_or(0, |it| it.generation.0).saturating_add_signed(deed.generation));
        let version = known.map_or(0, |it| it.version).saturating_add_signed(deed.life);
        let op = known.and_then(|it| it.moving).map_or_else(|| self.some_operation(deed), |moving| moving.op);
        let vm =
            known.and_then(|it| it.user).filter(|_| deed.what == 41).unwrap_or(VmId(1 + u64::from(deed.variant % 3)));
        let writer = known.and_then(|it| self.state.writer(it)).map(|writer| writer.node);
        let holder = known.and_then(|it| it.holder).map(|held| held.owner.node);
        let entitled = match deed.what {
            29..=32 => known.and_then(|it| self.state.node_of_replica(it, replica)),
            35..=39 | 46 | 47 => writer,
            44 => holder,
            _ => None,
        };
        let by = deed.meddler.map_or(entitled.unwrap_or(node), NodeId);
        let incarnation = Incarnation(self.state.nodes.get(&by).map_or(0, |node| node.incarnation.0));
        let incarnation = Incarnation(incarnation.0.saturating_add_signed(deed.life));
        let name = ["data", "logs", "root"][usize::from(deed.variant % 3)];
        let command = match deed.what {
            24 => add_pool(["fast", "slow"][usize::from(deed.variant % 2)]),
            25 => Command::RemovePool { pool: PoolId(u64::from(deed.variant % 8)) },
            26 => create_volume(name, &[pool, PoolId(1 + deed.node % 4)][..1 + usize::from(deed.variant % 2)]),
            27 => Command::DeleteVolume { volume, expect },
            28 => Command::GrowVolume { volume, size: (9 + u64::from(deed.variant)) * GIB },
            29..=31 => Command::ReplicaMade { volume, replica },
            32 => Command::ReplicaFailed { volume, replica, reason: "torn".to_string() },
            33 => Command::AddReplica { volume, pool, version },
            34 => Command::RemoveReplica { volume, replica, version },
            35 | 36 => Command::LeaveSet { volume, replica, generation: expect, version, why: "no answer".to_string() },
            37..=39 => Command::JoinSet { volume, replica, generation: expect, version },
            40 => Command::AttachVolume { vm, volume, expect, boot: deed.variant.is_multiple_of(2) },
            41 => Command::DetachVolume { vm, volume, expect },
            42 | 43 => Command::HoldVolume { volume, expect, incarnation, purpose: purpose(deed.variant) },
            44 => Command::DropVolume { volume, expect, done: !deed.variant.is_multiple_of(4) },
            45 | FORWARD.. => {
                Command::BeginVolumeMove { volume, from: replica, pool, keep_ms: 1_000, version, bandwidth: None }
            }
            46 | 47 => {
                let equal = Comparison::Equal(copy_report());
                let different = Comparison::Different("4 KiB at 0".to_string());
                let comparison = if deed.variant.is_multiple_of(4) { different } else { equal };
                Command::Compared { volume, op, generation: expect, version, comparison }
            }
            48 => Command::EndVolumeMove { volume, op, version },
            _ if deed.variant.is_multiple_of(2) => Command::Cancel { op },
            // Of a volume whose VM rests.
            _ => Command::SetDesired { vm, desired: Desired::Stopped { force: false }, home: None },
        };
        (by, command)
    }

    /// The volumes of `vm`, to whichever pool is on `to`.
    fn along(&self, vm: VmId, to: NodeId, deed: &Deed) -> Vec<Along> {
        let of_vm = self.state.volumes.values().filter(|it| it.user == Some(vm));
        let one = |it: &Volume| {
            let free = |pool: &&Pool| pool.node == to && it.replicas.values().all(|replica| replica.pool != pool.id);
            let pool = self.state.pools.values().find(free)?.id;
            let from = *it.replicas.keys().next()?;
            Some(Along { volume: it.id, from, pool, version: it.version.saturating_add_signed(deed.life) })
        };
        of_vm.filter_map(one).collect()
    }

    /// What a move of a volume that is under way needs next.
    fn forward(&self, deed: &Deed) -> Option<(NodeId, Command)> {
        let volume = self.state.volumes.values().find(|it| it.moving.is_some())?;
        let (id, moving, generation, version) = (volume.id, volume.moving?, volume.generation, volume.version);
        let (op, replica) = (moving.op, moving.to);
        let by = NodeId(deed.node);
        if !volume.replicas[&replica].is_sound() {
            let node = self.state.node_of_replica(volume, replica)?;
            return Some((node, Command::ReplicaMade { volume: id, replica }));
        }
        let vm = self.state.operations.get(&op).and_then(|operation| match operation.kind {
            OperationKind::Migrate { vm, .. } if !operation.is_done() => self.state.vms.get(&vm),
            OperationKind::Migrate { .. } | OperationKind::MoveVolume { .. } => None,
        });
        if let (Some(vm), Some((op, _, to))) = (vm, vm.and_then(|vm| vm.phase.moving())) {
            let (vm, expect, incarnation) = (vm.id, vm.generation, to.incarnation);
            let switched = self.state.vms[&vm].has_switched_over(op);
            let arrived = Command::Arrived { vm, op, expect, report: report() };
            let command = if switched { arrived } else { Command::Switchover { vm, op, expect, incarnation } };
            return Some((to.node, command));
        }
        if moving.kept.is_some() {
            return Some((by, Command::EndVolumeMove { volume: id, op, version }));
        }
        let Some(writer) = self.state.writer(volume) else {
            let incarnation = self.state.nodes.get(&by)?.incarnation;
            let purpose = Purpose::Copy;
            return Some((by, Command::HoldVolume { volume: id, expect: generation, incarnation, purpose }));
        };
        let comparison = Comparison::Equal(copy_report());
        let command = if volume.set.contains(&replica) {
            Command::Compared { volume: id, op, generation, version, comparison }
        } else {
            Command::JoinSet { volume: id, replica, generation, version }
        };
        Some((writer.node, command))
    }

    fn some_operation(&self, deed: &Deed) -> OpId {
        let mut known = self.state.operations.keys();
        known.nth(usize::from(deed.variant) % self.state.operations.len().max(1)).copied().unwrap_or(op_id(5))
    }
}

fn cause(variant: u8) -> StopCause {
    match variant % 6 {
        0 => StopCause::New,
        1 => StopCause::GuestPowerOff,
        2 => StopCause::Operator,
        3 => StopCause::DaemonEnded,
        4 => StopCause::QemuEnded("signal 9".to_string()),
        _ => StopCause::StartFailed("no kernel".to_string()),
    }
}

fn purpose(variant: u8) -> Purpose {
    match variant % 4 {
        0 => Purpose::Import,
        1 => Purpose::Export,
        2 => Purpose::Copy,
        _ => Purpose::Verify,
    }
}

fn desired(variant: u8) -> Desired {
    match variant % 5 {
        0 => Desired::Stopped { force: false },
        1 => Desired::Stopped { force: true },
        _ => Desired::Running,
    }
}

fn kind(command: &Command) -> String {
    let text = format!("{command:?}");
    text.split(' ').next().unwrap_or_default().to_string()
}

fn drive(rules: &Rules, deeds: &[Deed], tally: &RefCell<Tally>) -> Result<(), TestCaseError> {
    let mut drive = Drive::new(rules.clone());
    for deed in deeds {
        let outcome = drive.step(deed).map_err(TestCaseError::fail)?;
        let command = &drive.past.last().expect("just proposed").command;
        tally.borrow_mut().insert((kind(command), !matches!(outcome, Outcome::Refused(_))));
    }
    let bytes = codec::encode(&drive.state, Limit::State).map_err(|it| TestCaseError::fail(it.to_string()))?;
    prop_assert_eq!(codec::decode::<ClusterState>(&bytes, Limit::State), Ok(drive.state), "it survives a snapshot");
    Ok(())
}

/// The same cases each time, so that what they reach can be asserted.
fn fixed_runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

proptest! {
    #![proptest_config(Config { cases: 256, ..Config::default() })]

    #[test]
    fn every_step_is_allowed_and_every_state_is_sound(deeds in deeds()) {
        drive(&Rules::default(), &deeds, &RefCell::default())?;
    }
}

#[test]
fn the_random_deeds_reach_every_command_both_ways() {
    let tally = RefCell::default();
    fixed_runner(256).run(&about_vms(), |deeds| drive(&Rules::default(), &deeds, &tally)).expect("all allowed");
    fixed_runner(128).run(&about_disks(), |deeds| drive(&Rules::default(), &deeds, &tally)).expect("all allowed");

    let tally = tally.into_inner();
    let missing: Vec<_> = super::format::one_of_each()
        .iter()
        .map(|proposal| kind(&proposal.command))
        .flat_map(|kind| [(kind.clone(), true), (kind, false)])
        // The cluster was founded before, and a member's daemon may always start.
        .filter(|it| !["Found", "StartIncarnation"].contains(&it.0.as_str()) && !tally.contains(it))
        .collect();
    assert!(missing.is_empty(), "never tried: {missing:?}");
}

/// What breaks under `weak`, at the first of the same deeds at which anything does.
fn what_breaks(weak: &Rules, deeds: &impl Strategy<Value = Vec<Deed>>) -> String {
    match fixed_runner(256).run(deeds, |deeds| drive(weak, &deeds, &RefCell::default())) {
        Err(TestError::Fail(reason, _)) => reason.message().to_string(),
        other => panic!("the checks did not notice: {other:?}"),
    }
}

#[test]
fn without_the_comparison_of_generations_the_same_deeds_break_a_rule() {
    let weak = Rules::without_generation_check();
    let broken = what_breaks(&weak, &about_vms());
    assert!(broken.contains("names its generation"), "{broken}");
    let broken = what_breaks(&weak, &prop::collection::vec(deed(OF_VMS..DEEDS), 1..160));
    assert!(broken.contains("volume") || broken.contains("the writer"), "{broken}");
}

#[test]
fn without_the_comparison_of_versions_the_same_deeds_break_a_rule() {
    let broken = what_breaks(&Rules::without_version_check(), &about_disks());
    assert!(broken.contains("replica") || broken.contains("of a set it knows"), "{broken}");
}
