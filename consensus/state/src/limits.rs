//! Every limit of what a cluster remembers (DESIGN, rule 20). Sizes of text are in bytes. Together they keep the largest
//! state there can be below [`pollux_wire::limits::STATE_BYTES_MAX`], which a test builds and measures.

/// Members, the dead included.
pub const NODES_MAX: usize = 256;
/// Removed nodes whose names and keys are remembered; the first removed make room. That a number is never given again needs
/// no memory: it is below [`crate::ClusterState::last_node`].
pub const REMOVED_MAX: usize = 256;
/// VMs.
pub const VMS_MAX: usize = 4096;
/// Join tokens. Expired ones make room for new ones.
pub const TOKENS_MAX: usize = 64;
/// Operations remembered, running ones included. Finished ones make room for new ones, the earliest accepted first.
pub const OPERATIONS_MAX: usize = 256;
/// Events remembered. The oldest make room for new ones.
pub const EVENTS_MAX: usize = 1024;
/// Proposals whose outcome is remembered. A proposal repeated after this many others is taken for a new one, which the
/// comparison of generations then refuses.
pub const OUTCOMES_MAX: usize = 8192;

/// Pools.
pub const POOLS_MAX: usize = 1024;
/// Volumes.
pub const VOLUMES_MAX: usize = 4096;
/// Replicas that a volume is created with.
pub const REPLICAS_AT_FIRST_MAX: usize = 3;
/// Replicas of one volume: as many as it may be created with, and one that takes another's place.
pub const REPLICAS_MAX: usize = 4;
/// The size of a volume in bytes, least and most.
pub const VOLUME_BYTES: core::ops::RangeInclusive<u64> = 1 << 20..=16 << 40;
/// What the size of a volume is a multiple of, in bytes.
pub const VOLUME_BLOCK_BYTES: u64 = 4096;
/// Volumes of one VM.
pub const DISKS_MAX: usize = 8;
/// The path of a pool.
pub const POOL_PATH_MAX: usize = 1024;
/// Why a replica cannot be used. Longer texts are cut.
pub const FAILED_MAX: usize = 160;
/// How long an old replica may be kept after a move, in milliseconds: four weeks. Longer than that is a copy, not a way back.
pub const KEEP_MS_MAX: u64 = 28 * 24 * 3_600_000;

/// The name of a node, a VM, a pool or a volume.
pub const NAME_MAX: usize = 40;
/// A path.
pub const PATH_MAX: usize = 4096;
/// A kernel command line.
pub const APPEND_MAX: usize = 2048;
/// The name of a bridge: what Linux allows an interface.
pub const BRIDGE_MAX: usize = 15;
/// A QEMU machine type.
pub const MACHINE_MAX: usize = 40;
/// A QEMU CPU model with its switches.
pub const CPU_MAX: usize = 128;
/// Network cards of one VM.
pub const NICS_MAX: usize = 8;
/// The MTU of a network card in bytes, least and most: what IPv6 needs at least, and what switches that carry large frames have
/// in common.
pub const NIC_MTU: core::ops::RangeInclusive<u32> = 1_280..=9_000;
/// The MTU of a network card of which nothing is said, in bytes: Ethernet's own.
pub const NIC_MTU_DEFAULT: u32 = 1_500;
/// Guest memory in MiB, least and most.
pub const MEMORY_MIB: core::ops::RangeInclusive<u64> = 32..=1_048_576;
/// Virtual processors, least and most.
pub const VCPUS: core::ops::RangeInclusive<u32> = 1..=64;
/// So long after a daemon was last awake, in milliseconds, its kernel lets no frame of its guests pass (DESIGN, rule 5). Several
/// times the interval at which it is kept, or a busy host would silence its guests.
pub const FENCE_MS: u64 = 5_000;
/// A host has to be silent for so long, in milliseconds, before a person's word that it is lost is taken: one that only slept
/// sends nothing more after twice [`FENCE_MS`] (a question put just before, and the time that its answer grants), and a second
/// is for what clocks and messages are late by.
pub const LOST_AFTER_MS: u64 = 2 * FENCE_MS + 1_000;

/// Longest blackout that can be wished for, in milliseconds, least and most.
pub const BLACKOUT_MS: core::ops::RangeInclusive<u32> = 10..=60_000;
/// Bytes per second that a move can be held to, least and most: below the least, a move of any size takes days; the most is
/// beyond any link.
pub const BANDWIDTH: core::ops::RangeInclusive<u64> = 100_000..=1_000_000_000_000;
/// Moves that copy at once from or to one node. Further ones wait: more at once would each take longer, and every guest
/// would be slowed down for all of that time.
pub const MOVES_PER_NODE_MAX: usize = 2;

/// A reason, a cause, a sentence. Longer ones are cut.
pub const TEXT_MAX: usize = 512;
/// One of the facts a node reports about itself. Longer ones are cut.
pub const FACT_MAX: usize = 256;
/// Bridges a node reports. Further ones are left out.
pub const BRIDGES_MAX: usize = 256;
/// Facts a node reports under [`crate::node::Facts::extra`]. Further ones are left out.
pub const EXTRA_FACTS_MAX: usize = 16;

/// A VM whose QEMU ended by itself after at least this many milliseconds had been started well.
pub const STEADY_RUN_MS: u64 = 60_000;
