//! Whatever is proposed by whomever, in any order and any number of times, every step is allowed and every state is sound.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::{String, ToString},
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
    id::{Generation, Incarnation, NodeId, OpId, Owner, VmId},
    invariant,
    vm::{Desired, StopCause},
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
    /// Added to the current life.
    life: i64,
    variant: u8,
    /// The id of an earlier proposal instead of a new one.
    repeat: Option<prop::sample::Index>,
}

fn off_by() -> impl Strategy<Value = i64> {
    prop_oneof![12 => Just(0), 1 => Just(-1), 1 => Just(1), 1 => Just(-2)]
}

fn deed() -> impl Strategy<Value = Deed> {
    (
        0..22_u8,
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

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    prop::collection::vec(deed(), 1..160)
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
}

impl Drive {
    fn new(rules: Rules) -> Self {
        let world = World::with_web();
        Self { rules, twin: world.state.clone(), state: world.state, past: Vec::new(), owners: BTreeMap::new() }
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
        Ok(applied.outcome)
    }

    fn proposal(&self, deed: &Deed) -> Proposal {
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
                Command::BeginMove { vm, expect, to: node, wishes: wishes(blackout_ms_max) }
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
            16 => create(["web", "db", "mail"][usize::from(deed.variant % 3)], node, desired(deed.variant)),
            17 => {
                let home = deed.variant.is_multiple_of(3).then_some(node);
                Command::SetDesired { vm, desired: desired(deed.variant), home }
            }
            18 => Command::DeleteVm { vm },
            19 => Command::ReleaseLost { vm, expect, operator: "carol".to_string() },
            20 if deed.variant.is_multiple_of(2) => {
                Command::HeardAgain { op: self.some_operation(deed), silence_ms: 100 }
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
        let id = op_id(1_000_000 + self.past.len() as u64);
        Proposal { id, by, at: NOON + u64::from(deed.variant), command }
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
    fixed_runner(256).run(&deeds(), |deeds| drive(&Rules::default(), &deeds, &tally)).expect("all allowed");

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

#[test]
fn without_the_comparison_of_generations_the_same_deeds_break_a_rule() {
    let weak = Rules::without_generation_check();
    let outcome = fixed_runner(256).run(&deeds(), |deeds| drive(&weak, &deeds, &RefCell::default()));
    match outcome {
        Err(TestError::Fail(reason, _)) => assert!(reason.message().contains("names its generation"), "{reason}"),
        other => panic!("the checks did not notice: {other:?}"),
    }
}
