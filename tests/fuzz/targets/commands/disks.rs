//! Proposals about pools and volumes.

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use pollux_state::{
    Command,
    command::Comparison,
    id::{Generation, Incarnation, NodeId, OpId, PoolId, ReplicaId, VmId, VolumeId},
    operation::CopyReport,
    volume::Purpose,
};

use super::{Log, NODES, NOON, VMS, off_by, text};

const VOLUMES: u64 = 3;
const MIB: u64 = 1 << 20;

impl Log {
    /// Each of three nodes has a pool, and two of them a replica of the first volume.
    pub(super) fn with_disks(mut self) -> Self {
        for node in 1..=3 {
            self.propose(NodeId(node), NOON, Command::AddPool { name: "fast".into(), path: "/srv/fast".into() });
        }
        let pools = vec![PoolId(1), PoolId(2)];
        self.propose(NodeId(1), NOON, Command::CreateVolume { name: "volume-1".into(), size: MIB, pools });
        for node in 1..=2 {
            let made = Command::ReplicaMade { volume: VolumeId(1), replica: ReplicaId(node) };
            self.propose(NodeId(node), NOON, made);
        }
        self
    }

    pub(super) fn about_disks(&self, input: &mut Unstructured<'_>) -> Result<(NodeId, Command)> {
        let volume = VolumeId(input.int_in_range(1..=VOLUMES)?);
        let known = self.state.volumes.get(&volume);
        let expect = Generation(off_by(input, known.map_or(0, |it| it.generation.0))?);
        let version = off_by(input, known.map_or(1, |it| it.version))?;
        let replicas: Vec<ReplicaId> = known.map(|it| it.replicas.keys().copied().collect()).unwrap_or_default();
        let replica = match known.and_then(|it| it.moving) {
            Some(moving) if input.arbitrary()? => moving.to,
            _ if replicas.is_empty() => ReplicaId(9),
            _ => *input.choose(&replicas)?,
        };
        let op = known.and_then(|it| it.moving).map_or(OpId([9; 16]), |moving| moving.op);
        let (node, pool) = (NodeId(input.int_in_range(1..=NODES)?), PoolId(input.int_in_range(1..=NODES + 1)?));
        let vm = VmId(input.int_in_range(1..=VMS)?);
        let what = input.int_in_range(0..=17_u8)?;
        let by = match what {
            _ if input.ratio(1, 8)? => None,
            5 | 6 => known.and_then(|it| self.state.node_of_replica(it, replica)),
            9..=11 | 16 => known.and_then(|it| self.state.writer(it)).map(|writer| writer.node),
            15 => known.and_then(|it| it.holder).map(|held| held.owner.node),
            _ => None,
        };
        let by = by.unwrap_or(node);
        let life = self.state.nodes.get(&by).map_or(0, |node| node.incarnation.0);
        let incarnation = Incarnation(off_by(input, life)?);
        let command = match what {
            0 => Command::AddPool { name: text(input)?, path: format!("/{}", text(input)?) },
            1 => Command::RemovePool { pool },
            2 => {
                let mut pools = vec![pool];
                if input.arbitrary()? {
                    pools.push(PoolId(input.int_in_range(1..=NODES)?));
                }
                let size = if input.ratio(1, 8)? { input.arbitrary()? } else { MIB };
                Command::CreateVolume { name: format!("{volume}"), size, pools }
            }
            3 => Command::DeleteVolume { volume, expect },
            4 => Command::GrowVolume { volume, size: u64::from(input.arbitrary::<u8>()?) * MIB },
            5 => Command::ReplicaMade { volume, replica },
            6 => Command::ReplicaFailed { volume, replica, reason: text(input)? },
            7 => Command::AddReplica { volume, pool, version },
            8 => Command::RemoveReplica { volume, replica, version },
            9 => Command::LeaveSet { volume, replica, generation: expect, version, why: text(input)? },
            10 | 11 => Command::JoinSet { volume, replica, generation: expect, version },
            12 => Command::AttachVolume { vm, volume, expect, boot: input.arbitrary()? },
            13 => Command::DetachVolume { vm, volume, expect },
            14 => {
                let purpose = *input.choose(&[Purpose::Import, Purpose::Export, Purpose::Copy, Purpose::Verify])?;
                Command::HoldVolume { volume, expect, incarnation, purpose }
            }
            15 => Command::DropVolume { volume, expect, done: input.arbitrary()? },
            16 => {
                let equal = input.ratio(3, 4)?;
                let comparison =
                    if equal { Comparison::Equal(CopyReport::default()) } else { Comparison::Different(text(input)?) };
                Command::Compared { volume, op, generation: expect, version, comparison }
            }
            _ => match input.int_in_range(0..=2_u8)? {
                0 => Command::BeginVolumeMove {
                    volume,
                    from: replica,
                    pool,
                    keep_ms: input.arbitrary()?,
                    version,
                    bandwidth: input.arbitrary()?,
                },
                1 => Command::Cancel { op },
                _ => Command::EndVolumeMove { volume, op, version },
            },
        };
        Ok((by, command))
    }
}
