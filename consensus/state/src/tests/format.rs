//! The log is on disk for years: its format is pinned here, and the state survives being written down.

use alloc::{
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};

use pollux_wire::{
    codec,
    limits::{Limit, STATE_BYTES_MAX},
};

use super::world::*;
use crate::{
    ClusterState, Command, Outcome, Proposal, Refusal,
    event::Event,
    id::{Generation, Incarnation, MacAddr, NodeId, Owner, PoolId, ReplicaId, VmId, VolumeId},
    limits::*,
    node::{Facts, JoinToken, Node, Removed},
    operation::{OperationKind, OperationResult},
    vm::{Desired, Disk, Nic, StopCause, Vm, VmSpec},
    volume::{Hold, Kept, Pool, Purpose, Replica, Volume, VolumeMove},
};

/// One proposal per kind of command, in the order of their declaration. The `match` is here to not compile when a command is
/// added: add one here, and a line to the pinned format.
pub(super) fn one_of_each() -> Vec<Proposal> {
    let op = op_id(0xabcd);
    let commands = vec![
        found(),
        token(N2, NOON + 1),
        join(N2),
        start_incarnation(N1, FIRST_LIFE),
        create("web", N1, Desired::Running),
        Command::SetDesired { vm: WEB, desired: Desired::Stopped { force: true }, home: Some(N2) },
        Command::DeleteVm { vm: WEB },
        claim(6, Incarnation(3)),
        release(7, Incarnation(3), StopCause::QemuEnded("signal 9".to_string())),
        move_with_data(7, R1, 3),
        switchover(op, 7, Incarnation(4)),
        arrived(op, 8),
        give_back(op, 8),
        abort_move(op, 7),
        take_back(8),
        Command::Cancel { op },
        Command::HeardAgain { op, silence_ms: 131 },
        release_lost(8),
        remove(N2),
        add_pool("fast"),
        Command::RemovePool { pool: P2 },
        create_volume("data", &[P1, P2]),
        Command::DeleteVolume { volume: DATA, expect: Generation(4) },
        Command::GrowVolume { volume: DATA, size: 20 * GIB },
        made(R1),
        failed(R2, "the directory is read-only"),
        Command::AddReplica { volume: DATA, pool: P3, version: 5 },
        Command::RemoveReplica { volume: DATA, replica: R2, version: 6 },
        leave(R2, 3, 7),
        join_set(R2, 3, 8),
        attach(4),
        detach(5),
        hold(6, 3, Purpose::Verify),
        drop_hold(7),
        move_data(P3, 9),
        equal(op, 8, 10),
        end_move(op, 11),
        different(op, 8, 10),
    ];
    for command in &commands {
        match command {
            Command::Found { .. }
            | Command::AddToken { .. }
            | Command::Join { .. }
            | Command::StartIncarnation { .. }
            | Command::CreateVm { .. }
            | Command::SetDesired { .. }
            | Command::DeleteVm { .. }
            | Command::Claim { .. }
            | Command::Release { .. }
            | Command::BeginMove { .. }
            | Command::Switchover { .. }
            | Command::Arrived { .. }
            | Command::GiveBack { .. }
            | Command::AbortMove { .. }
            | Command::TakeBack { .. }
            | Command::Cancel { .. }
            | Command::HeardAgain { .. }
            | Command::ReleaseLost { .. }
            | Command::RemoveNode { .. }
            | Command::AddPool { .. }
            | Command::RemovePool { .. }
            | Command::CreateVolume { .. }
            | Command::DeleteVolume { .. }
            | Command::GrowVolume { .. }
            | Command::ReplicaMade { .. }
            | Command::ReplicaFailed { .. }
            | Command::AddReplica { .. }
            | Command::RemoveReplica { .. }
            | Command::LeaveSet { .. }
            | Command::JoinSet { .. }
            | Command::AttachVolume { .. }
            | Command::DetachVolume { .. }
            | Command::HoldVolume { .. }
            | Command::DropVolume { .. }
            | Command::BeginVolumeMove { .. }
            | Command::Compared { .. }
            | Command::EndVolumeMove { .. } => {}
        }
    }
    let number = |(at, command): (usize, Command)| Proposal { id: op_id(at as u64), by: N1, at: NOON, command };
    commands.into_iter().enumerate().map(number).collect()
}

/// A cluster with a VM in every phase, a token used and one unused, moves that ended in every way, and answers of many kinds.
fn one_of_everything() -> ClusterState {
    let mut world = World::with_web_running();
    let begin = |world: &mut World, generation| {
        let outcome = world.accept(N3, begin_move(generation, N2));
        let Outcome::Accepted(op) = outcome else { panic!("accepted, not {outcome:?}") };
        op
    };
    let op = begin(&mut world, 1);
    world.accept(N1, abort_move(op, 1));
    let op = begin(&mut world, 1);
    world.accept(N3, Command::Cancel { op });
    world.accept(N1, abort_move(op, 1));
    let op = begin(&mut world, 1);
    world.accept(N2, switchover(op, 1, FIRST_LIFE));
    world.accept(N2, arrived(op, 2));
    world.accept(N1, token(NodeId(4), NOON + 1_000));

    let create = |world: &mut World, name: &str| {
        let outcome = world.accept(N1, create(name, N1, Desired::Running));
        let Outcome::Created(vm) = outcome else { panic!("created, not {outcome:?}") };
        vm
    };
    create(&mut world, "new");
    for (name, switched) in [("moving", false), ("arriving", true)] {
        let vm = create(&mut world, name);
        world.accept(N1, Command::Claim { vm, expect: Generation(0), incarnation: FIRST_LIFE });
        let begin = Command::BeginMove { vm, expect: Generation(1), to: N3, wishes: wishes(50), along: vec![] };
        let Outcome::Accepted(op) = world.accept(N2, begin) else { panic!("accepted") };
        if switched {
            world.accept(N3, Command::Switchover { vm, op, expect: Generation(1), incarnation: FIRST_LIFE });
        }
    }
    let vm = create(&mut world, "broken");
    world.accept(N1, Command::Claim { vm, expect: Generation(0), incarnation: FIRST_LIFE });
    let cause = StopCause::StartFailed("no kernel".to_string());
    world.accept(N1, Command::Release { vm, expect: Generation(1), incarnation: FIRST_LIFE, cause });

    world.accept(N1, token(NodeId(5), NOON + 1_000));
    world.accept(
        N1,
        Command::Join {
            secret_hash: bytes(NodeId(5)),
            name: name(NodeId(5)),
            address: address(NodeId(5)),
            key: bytes(NodeId(5)),
        },
    );
    world.accept(N1, Command::RemoveNode { node: NodeId(4), after: Incarnation(0), heir: N1, lost: false });
    let vm = create(&mut world, "lost");
    world.accept(N1, Command::Claim { vm, expect: Generation(0), incarnation: FIRST_LIFE });
    world.accept(N2, Command::ReleaseLost { vm, expect: Generation(1), operator: "carol".to_string() });

    disks(&mut world);
    world.refuse(N1, found());
    world.refuse(NodeId(4), claim(9, FIRST_LIFE));
    world.refuse(N1, remove(N2));
    world.refuse(N1, claim(9, FIRST_LIFE));
    world.refuse(N1, claim(2, FIRST_LIFE));
    world.refuse(N2, claim(2, Incarnation(7)));
    world.refuse(N1, begin_move(2, NodeId(9)));
    world.refuse(N1, Command::DeleteVm { vm: WEB });
    world.refuse(N1, Command::Cancel { op });
    world.refuse(N1, Command::Cancel { op: op_id(9_999) });
    world.state
}

/// Pools, and volumes that are used, held, out of sync, moving in every stage and moved.
fn disks(world: &mut World) {
    for (node, name) in [(N1, "fast"), (N2, "fast"), (N3, "fast"), (N1, "slow")] {
        world.accept(node, add_pool(name));
    }
    let volume = |world: &mut World, name: &str, pools: &[PoolId]| {
        let Outcome::VolumeCreated(volume) = world.accept(N1, create_volume(name, pools)) else { panic!("created") };
        let replicas = world.state.volumes[&volume].replicas.clone();
        for (replica, pool) in replicas.into_iter().map(|(id, replica)| (id, replica.pool)) {
            world.accept(world.state.pools[&pool].node, Command::ReplicaMade { volume, replica });
        }
        volume
    };
    let held = volume(world, "held", &[P1, P2]);
    let purpose = Purpose::Import;
    let hold = Command::HoldVolume { volume: held, expect: Generation(0), incarnation: FIRST_LIFE, purpose };
    world.accept(N2, hold);
    let replica = *world.state.volumes[&held].set.last().expect("two");
    let (generation, why) = (Generation(1), "no answer".to_string());
    world.accept(N2, Command::LeaveSet { volume: held, replica, generation, version: 1, why });
    world.accept(N2, Command::ReplicaFailed { volume: held, replica, reason: "its disk is full".to_string() });

    let (used, variables) = (volume(world, "used", &[P1]), volume(world, "variables", &[P1]));
    let spec =
        VmSpec { disks: vec![Disk::data(used), Disk::firmware(variables)], kernel: String::new(), ..spec("disks") };
    let spec = VmSpec { initrd: String::new(), append: String::new(), ..spec };
    let Outcome::Created(vm) = world.accept(N1, Command::CreateVm { spec, home: N1, desired: Desired::Running }) else {
        panic!("created")
    };
    world.accept(N1, Command::Claim { vm, expect: Generation(0), incarnation: FIRST_LIFE });
    for stage in 0..3 {
        let from = world.state.volumes[&used].authority;
        let pool = [P2, P3, P1][stage];
        let mut version = world.state.volumes[&used].version;
        let begin =
            Command::BeginVolumeMove { volume: used, from, pool, keep_ms: 1_000, version, bandwidth: Some(1_000_000) };
        let Outcome::Accepted(op) = world.accept(N1, begin) else { panic!("accepted") };
        let replica = world.state.last_replica;
        world.accept(world.state.pools[&pool].node, Command::ReplicaMade { volume: used, replica });
        version += 1;
        world.accept(N1, Command::JoinSet { volume: used, replica, generation: Generation(2), version });
        version += 1;
        let Command::Compared { comparison, .. } = (if stage == 1 { different(op, 2, 1) } else { equal(op, 2, 1) })
        else {
            panic!("compared")
        };
        world.accept(N1, Command::Compared { volume: used, op, generation: Generation(2), version, comparison });
        if stage == 0 {
            world.accept(N1, Command::EndVolumeMove { volume: used, op, version });
        }
    }
    for (volume, version) in [(held, 1), (used, 1)] {
        world.refuse(N1, Command::DeleteVolume { volume, expect: Generation(9) });
        world.refuse(N1, Command::RemoveReplica { volume, replica: ReplicaId(99), version });
    }
    world.refuse(N1, leave(R1, 1, 2));
    world.refuse(N1, Command::RemovePool { pool: P1 });
    world.refuse(N1, Command::RemovePool { pool: PoolId(99) });
    world.refuse(N1, Command::GrowVolume { volume: VolumeId(99), size: GIB });
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(digits: &str) -> Vec<u8> {
    let pairs = (0..digits.len()).step_by(2).map(|at| &digits[at..at + 2]);
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal digits")).collect()
}

/// If this fails, logs that exist can no longer be read: a change of the format needs a version of its own and a way from the
/// previous one.
#[test]
fn the_format_of_the_log_is_what_it_was() {
    let encode = |proposal: &Proposal| hex(&codec::encode(proposal, Limit::Small).expect("it can be written"));
    let lines: Vec<String> = one_of_each().iter().map(encode).collect();
    let pinned: Vec<&str> = include_str!("golden/proposals.hex").lines().collect();
    assert!(lines == pinned, "the format changed; it is now:\n{}", lines.join("\n"));
    for (proposal, pinned) in one_of_each().iter().zip(pinned) {
        assert_eq!(&codec::decode::<Proposal>(&from_hex(pinned), Limit::Small).expect("it can be read"), proposal);
    }
}

/// The same for snapshots. The wording of events and refusals may change; what was written down stays readable.
#[test]
fn a_snapshot_that_was_written_can_still_be_read() {
    let now = one_of_everything();
    let bytes = from_hex(include_str!("golden/state.hex").trim());
    let fresh = || hex(&codec::encode(&now, Limit::State).expect("it can be written"));
    let Ok(then) = codec::decode::<ClusterState>(&bytes, Limit::State) else {
        panic!("it cannot be read; a new one is:\n{}", fresh())
    };
    assert_eq!(codec::encode(&then, Limit::State).as_deref(), Ok(&bytes[..]));
    then.check().expect("sound");
    assert_eq!((&then.cluster, &then.nodes, &then.tokens), (&now.cluster, &now.nodes, &now.tokens));
    assert_eq!(then.removed, now.removed);
    assert_eq!((&then.vms, &then.operations), (&now.vms, &now.operations));
    assert_eq!((&then.pools, &then.volumes), (&now.pools, &now.volumes));
    assert!(then.outcomes.keys().eq(now.outcomes.keys()));
}

#[test]
fn the_largest_state_there_can_be_fits_into_a_snapshot() {
    let mut state = one_of_everything();
    let fact = || "f".repeat(FACT_MAX);
    let text = || "t".repeat(TEXT_MAX);
    let facts = Facts {
        version: fact(),
        kernel: fact(),
        qemu: fact(),
        accelerator: fact(),
        memory_mib: 1,
        processors: 1,
        bridges: vec!["b".repeat(BRIDGE_MAX); BRIDGES_MAX],
        tracking_refused: fact(),
        extra: (0..EXTRA_FACTS_MAX).map(|at| (format!("{at:0FACT_MAX$}"), fact())).collect(),
    };
    let node = Node { name: "n".repeat(NAME_MAX), facts, ..state.nodes[&N1].clone() };
    state.nodes.extend((0..NODES_MAX as u64).map(|id| (NodeId(id), node.clone())));
    let nic = Nic { mac: MacAddr([2; 6]), bridge: "b".repeat(BRIDGE_MAX), mtu: 9_000 };
    let spec = VmSpec {
        name: "v".repeat(NAME_MAX),
        kernel: "/".repeat(PATH_MAX),
        initrd: "/".repeat(PATH_MAX),
        append: "a".repeat(APPEND_MAX),
        nics: vec![nic; NICS_MAX],
        machine: "m".repeat(MACHINE_MAX),
        cpu: "c".repeat(CPU_MAX),
        disks: vec![Disk::data(VolumeId(u64::MAX)); DISKS_MAX],
        ..spec("web")
    };
    let phase = stopped(StopCause::QemuEnded(text()));
    let vm = Vm { spec, phase: phase.clone(), ..state.vms[&WEB].clone() };
    state.vms.extend((0..VMS_MAX as u64).map(|id| (VmId(id), vm.clone())));
    let refusal = Refusal::WrongPhase { vm: "v".repeat(NAME_MAX), why: text(), current: Generation(1), phase };
    let ids = (0..OUTCOMES_MAX as u64).map(|number| op_id(1_000_000 + number));
    state.outcomes =
        ids.clone().map(|id| (id, crate::Applied { index: 1, outcome: Outcome::Refused(refusal.clone()) })).collect();
    state.outcome_order = ids.collect();
    let mut operation = state.operations.values().next().expect("there are some").clone();
    let place = || "p".repeat(2 * NAME_MAX + 1);
    operation.kind = OperationKind::MoveVolume {
        volume: VolumeId(u64::MAX),
        volume_name: "v".repeat(NAME_MAX),
        from: ReplicaId(u64::MAX),
        to: ReplicaId(u64::MAX),
        from_place: place(),
        to_place: place(),
        keep_ms: KEEP_MS_MAX,
        bandwidth: Some(u64::MAX),
    };
    operation.ended = Some((NOON, OperationResult::Failed { reason: text() }));
    state.operations = (0..OPERATIONS_MAX as u64).map(|number| (op_id(number), operation.clone())).collect();
    let volume = Some(VolumeId(u64::MAX));
    let event = Event { number: 1, at: NOON, node: Some(N1), vm: Some(WEB), op: Some(op_id(1)), text: text(), volume };
    state.events = vec![event; EVENTS_MAX].into();
    let token = JoinToken { node_name: "n".repeat(NAME_MAX), expires: NOON, used: Some(([1; 32], N1)) };
    let removed = Removed { name: "n".repeat(NAME_MAX), key: [9; 32], at: NOON, index: 1 };
    state.removed = (0..REMOVED_MAX as u64).map(|id| (NodeId(id), removed.clone())).collect();
    state.tokens = (0..TOKENS_MAX as u64).map(|number| (bytes(NodeId(number)), token.clone())).collect();

    let (name, path) = ("p".repeat(NAME_MAX), "/".repeat(POOL_PATH_MAX));
    let pool = Pool { id: PoolId(u64::MAX), node: NodeId(u64::MAX), name, path, since: u64::MAX };
    state.pools = (0..POOLS_MAX as u64).map(|id| (PoolId(u64::MAX - id), pool.clone())).collect();
    let replica = Replica { pool: PoolId(u64::MAX), made: true, failed: Some("f".repeat(FAILED_MAX)) };
    let replicas = (0..REPLICAS_MAX as u64).map(|id| (ReplicaId(u64::MAX - id), replica.clone()));
    let replicas: alloc::collections::BTreeMap<_, _> = replicas.collect();
    let owner = Owner { node: NodeId(u64::MAX), incarnation: Incarnation(u64::MAX) };
    let (from, to, report) = (ReplicaId(u64::MAX), ReplicaId(u64::MAX), copy_report());
    let volume = Volume {
        id: VolumeId(u64::MAX),
        name: "v".repeat(NAME_MAX),
        size: u64::MAX,
        generation: Generation(u64::MAX),
        user: Some(VmId(u64::MAX)),
        holder: Some(Hold { owner, purpose: Purpose::Verify, since: u64::MAX }),
        set: replicas.keys().copied().collect(),
        replicas,
        version: u64::MAX,
        authority: ReplicaId(u64::MAX),
        created: u64::MAX,
        moving: Some(VolumeMove { op: op_id(1), from, to, kept: Some(Kept { since: u64::MAX, report }) }),
        incomplete: true,
    };
    state.volumes = (0..VOLUMES_MAX as u64).map(|id| (VolumeId(u64::MAX - id), volume.clone())).collect();

    let bytes = codec::encode(&state, Limit::State).expect("it fits");
    assert!(bytes.len() < STATE_BYTES_MAX, "{} bytes", bytes.len());
    assert_eq!(codec::decode::<ClusterState>(&bytes, Limit::State), Ok(state), "and is read back");
}
