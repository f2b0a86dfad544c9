//! A volume for tests of what is made of one.

use pollux_state::{
    id::{Generation, PoolId, ReplicaId, VolumeId},
    volume::{Replica, Volume},
};

/// A volume with replicas in these pools, numbered like them; those of `set` are in sync, and the first of them counts.
pub(crate) fn volume(pools: &[u64], set: &[u64]) -> Volume {
    let replica = |pool: &u64| (ReplicaId(*pool), Replica { pool: PoolId(*pool), made: true, failed: None });
    Volume {
        id: VolumeId(1),
        name: "data".into(),
        size: 1 << 30,
        generation: Generation(3),
        user: None,
        holder: None,
        replicas: pools.iter().map(replica).collect(),
        set: set.iter().map(|id| ReplicaId(*id)).collect(),
        version: 1,
        authority: ReplicaId(set[0]),
        created: 0,
        moving: None,
        incomplete: false,
    }
}
