//! Whatever is proposed by whomever, in any order: every step is allowed, every state is sound, and a snapshot of it is the
//! same. Unlike `log_entries`, whose bytes are the encoding, these make commands that mostly fit what is there.
#![no_main]

#[path = "commands/disks.rs"]
mod disks;

use std::net::SocketAddr;

use libfuzzer_sys::{
    arbitrary::{Result, Unstructured},
    fuzz_target,
};
use pollux_state::{
    ClusterState, Command, Proposal,
    id::{ClusterId, Generation, Incarnation, MacAddr, NodeId, OpId, VmId, VolumeId},
    invariant,
    limits::NIC_MTU_DEFAULT,
    node::Facts,
    operation::{Along, MoveReport, MoveWishes, OperationKind},
    vm::{Desired, Disk, Nic, StopCause, VmSpec},
};
use pollux_wire::{
    codec::{decode, encode},
    limits::Limit,
};

const NODES: u64 = 4;
const VMS: u64 = 4;
const NOON: u64 = 1_800_000_000_000;
/// Entries of one log: each costs a copy of the state.
const ENTRIES_MAX: usize = 64;
/// Entries between two snapshots.
const SNAPSHOT_EVERY: u64 = 16;

#[derive(Default)]
struct Log {
    state: ClusterState,
    index: u64,
    past: Vec<Proposal>,
}

impl Log {
    fn apply(&mut self, proposal: Proposal) {
        self.index += 1;
        let before = self.state.clone();
        let applied = self.state.apply(self.index, &proposal);
        let step = invariant::check(&before, &self.state, &proposal, &applied.outcome);
        step.unwrap_or_else(|violation| panic!("{proposal:?}: {violation}"));
        self.state.check().unwrap_or_else(|violation| panic!("{proposal:?}: {violation}"));
        if self.index.is_multiple_of(SNAPSHOT_EVERY) {
            let bytes = encode(&self.state, Limit::State).expect("a state fits");
            assert_eq!(decode::<ClusterState>(&bytes, Limit::State).as_ref(), Ok(&self.state));
        }
        self.past.push(proposal);
    }

    fn propose(&mut self, by: NodeId, at: u64, command: Command) {
        let id = OpId(u128::from(self.index).to_be_bytes());
        self.apply(Proposal { id, by, at, command });
    }

    /// Three nodes in their first lives, and a volume.
    fn founded() -> Self {
        let mut log = Self::default();
        let first = NodeId(1);
        let cluster = ClusterId([7; 16]);
        log.propose(first, NOON, Command::Found { cluster, name: "n1".into(), address: address(1), key: [1; 32] });
        for node in 2..=3 {
            let (secret_hash, name) = ([node; 32], format!("n{node}"));
            let token = Command::AddToken { secret_hash, node_name: name.clone(), expires: NOON + 1_000 };
            log.propose(first, NOON, token);
            let (address, key) = (address(node.into()), [node; 32]);
            log.propose(first, NOON, Command::Join { secret_hash, name, address, key });
        }
        for node in 1..=3 {
            let (after, address, facts) = (Incarnation(0), address(node), Facts::default());
            log.propose(NodeId(node), NOON, Command::StartIncarnation { after, address, facts });
        }
        log.with_disks()
    }

    /// One more proposal: most of it fits, some of it is late, early, repeated or a stranger's.
    fn another(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        if input.ratio(1, 16)? && !self.past.is_empty() {
            let again = input.choose(&self.past)?.clone();
            self.apply(again);
            return Ok(());
        }
        if input.ratio(2, 5)? {
            let (by, command) = self.about_disks(input)?;
            self.propose(by, NOON, command);
            return Ok(());
        }
        let vm = VmId(input.int_in_range(1..=VMS)?);
        let known = self.state.vms.get(&vm);
        let (generation, moving) = known.map_or((0, None), |vm| (vm.generation.0, vm.phase.moving()));
        let expect = Generation(off_by(input, generation)?);
        let node = NodeId(input.int_in_range(1..=NODES)?);
        let operations: Vec<OpId> = self.state.operations.keys().copied().collect();
        let op = match moving {
            Some((op, ..)) if !input.ratio(1, 8)? => op,
            _ if operations.is_empty() => OpId([9; 16]),
            _ => *input.choose(&operations)?,
        };
        let (from, to) = self.state.operations.get(&op).map_or((node, node), |operation| match operation.kind {
            OperationKind::Migrate { from, to, .. } => (from, to),
            OperationKind::MoveVolume { .. } => (node, node),
        });
        let home = known.map_or(node, |vm| vm.home);
        let owner = known.and_then(|vm| vm.phase.owner()).map_or(home, |owner| owner.node);
        let what = input.int_in_range(0..=19_u8)?;
        let by = match what {
            _ if input.ratio(1, 8)? => node,
            0 => home,
            1 => owner,
            2 => from,
            3..=8 => to,
            _ => node,
        };
        let life = |of: NodeId| self.state.nodes.get(&of).map_or(0, |node| node.incarnation.0);
        let incarnation = Incarnation(off_by(input, life(by))?);
        let command = match what {
            0 => Command::Claim { vm, expect, incarnation },
            1 => Command::Release { vm, expect, incarnation, cause: cause(input)? },
            2 => Command::AbortMove { vm, op, expect, reason: text(input)? },
            3 | 4 => Command::Switchover { vm, op, expect, incarnation },
            5 | 6 => Command::Arrived { vm, op, expect, report: MoveReport::default() },
            7 => Command::GiveBack { vm, op, expect, reason: text(input)? },
            8 => Command::HeardAgain { op, silence_ms: input.arbitrary()? },
            9 => Command::TakeBack { vm, expect, operator: text(input)? },
            10 => Command::ReleaseLost { vm, expect, operator: text(input)? },
            11 | 12 => Command::BeginMove { vm, expect, to: node, wishes: wishes(input)?, along: self.along(input, vm, node)? },
            13 => Command::SetDesired { vm, desired: desired(input)?, home: input.ratio(1, 4)?.then_some(node) },
            14 => Command::DeleteVm { vm },
            15 => Command::Cancel { op },
            16 => Command::StartIncarnation { after: incarnation, address: address(by.0), facts: facts(input)? },
            17 => Command::CreateVm { spec: spec(input, vm)?, home: node, desired: desired(input)? },
            18 => {
                let after = Incarnation(off_by(input, life(node))?);
                let heir = NodeId(input.int_in_range(1..=NODES)?);
                Command::RemoveNode { node, after, heir, lost: input.arbitrary()? }
            }
            _ => self.member(input)?,
        };
        let at = NOON.saturating_add(input.arbitrary::<u32>()?.into());
        self.propose(by, at, command);
        Ok(())
    }

    /// Some of a VM's volumes, to pools of the node or of any.
    fn along(&self, input: &mut Unstructured<'_>, vm: VmId, to: NodeId) -> Result<Vec<Along>> {
        let mut along = Vec::new();
        for it in self.state.volumes.values().filter(|it| it.user == Some(vm)) {
            let pools = self.state.pools.values().filter(|pool| pool.node == to).map(|pool| pool.id);
            let (pools, replicas): (Vec<_>, Vec<_>) = (pools.collect(), it.replicas.keys().copied().collect());
            if pools.is_empty() || input.ratio(1, 3)? {
                continue;
            }
            let (pool, from) = (*input.choose(&pools)?, *input.choose(&replicas)?);
            along.push(Along { volume: it.id, from, pool, version: off_by(input, it.version)? });
        }
        Ok(along)
    }

    /// Of who is in the cluster.
    fn member(&self, input: &mut Unstructured<'_>) -> Result<Command> {
        let who = input.int_in_range(1..=6_u8)?;
        let (secret_hash, key, address) = ([who; 32], [who; 32], address(who.into()));
        let name = if input.ratio(1, 8)? { text(input)? } else { format!("n{who}") };
        Ok(match input.int_in_range(0..=4_u8)? {
            0 => Command::Found { cluster: ClusterId([who; 16]), name, address, key },
            1 | 2 => {
                let expires = NOON.saturating_add(input.arbitrary::<u32>()?.into());
                Command::AddToken { secret_hash, node_name: name, expires }
            }
            _ => Command::Join { secret_hash, name, address, key },
        })
    }
}

fn address(node: u64) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node.to_le_bytes()[0]], 7700))
}

fn off_by(input: &mut Unstructured<'_>, right: u64) -> Result<u64> {
    Ok(match input.int_in_range(0..=15_u8)? {
        0 => right.saturating_sub(1),
        1 => right + 1,
        2 => input.arbitrary()?,
        _ => right,
    })
}

fn text(input: &mut Unstructured<'_>) -> Result<String> {
    Ok(input.arbitrary::<&str>()?.to_owned())
}

fn cause(input: &mut Unstructured<'_>) -> Result<StopCause> {
    Ok(match input.int_in_range(0..=6_u8)? {
        0 => StopCause::New,
        1 => StopCause::GuestPowerOff,
        2 => StopCause::Operator,
        3 => StopCause::DaemonEnded,
        4 => StopCause::QemuEnded(text(input)?),
        5 => StopCause::StartFailed(text(input)?),
        _ => StopCause::HostLost(text(input)?),
    })
}

fn desired(input: &mut Unstructured<'_>) -> Result<Desired> {
    Ok(match input.int_in_range(0..=3_u8)? {
        0 => Desired::Stopped { force: false },
        1 => Desired::Stopped { force: true },
        _ => Desired::Running,
    })
}

fn wishes(input: &mut Unstructured<'_>) -> Result<MoveWishes> {
    let blackout_ms_max = if input.ratio(1, 8)? { input.arbitrary()? } else { 300 };
    let bandwidth = if input.ratio(1, 8)? { Some(input.arbitrary()?) } else { None };
    Ok(MoveWishes { blackout_ms_max, bandwidth, throttle: input.arbitrary()?, warm: input.arbitrary()? })
}

fn facts(input: &mut Unstructured<'_>) -> Result<Facts> {
    let mut facts = Facts { memory_mib: input.arbitrary()?, ..Facts::default() };
    if input.ratio(1, 4)? {
        facts.version = text(input)?;
        facts.bridges.push(text(input)?);
        facts.extra.insert(text(input)?, text(input)?);
    }
    Ok(facts)
}

fn spec(input: &mut Unstructured<'_>, vm: VmId) -> Result<VmSpec> {
    let mut spec = VmSpec {
        name: format!("vm-{}", vm.0),
        memory_mib: 256,
        vcpus: 1,
        kernel: "/boot/vmlinuz".into(),
        initrd: String::new(),
        append: String::new(),
        nics: Vec::new(),
        machine: "pc-q35-7.2".into(),
        cpu: "qemu64".into(),
        autostart: input.arbitrary()?,
        disks: Vec::new(),
    };
    for _ in 0..input.int_in_range(0..=2)? {
        let mac = MacAddr([0x52, 0x54, 0, 0, 0, input.int_in_range(0..=7)?]);
        spec.nics.push(Nic { mac, bridge: "br0".into(), mtu: NIC_MTU_DEFAULT });
    }
    if input.ratio(1, 2)? {
        spec.disks.push(Disk::data(VolumeId(input.int_in_range(1..=3)?)));
    }
    match input.int_in_range(0..=15_u8)? {
        0 => spec.name = text(input)?,
        1 => spec.kernel = text(input)?,
        2 => spec.append = text(input)?,
        3 => spec.machine = text(input)?,
        4 => spec.cpu = text(input)?,
        5 => spec.memory_mib = input.arbitrary()?,
        6 => spec.vcpus = input.arbitrary()?,
        7 => spec.nics.push(Nic { mac: MacAddr(input.arbitrary()?), bridge: text(input)?, mtu: input.arbitrary()? }),
        _ => {}
    }
    Ok(spec)
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    // Also what comes before a cluster is founded, and instead of it.
    let founded = input.ratio(15, 16).unwrap_or(true);
    let mut log = if founded { Log::founded() } else { Log::default() };
    for _ in 0..ENTRIES_MAX {
        if input.is_empty() || log.another(&mut input).is_err() {
            break;
        }
    }
});
