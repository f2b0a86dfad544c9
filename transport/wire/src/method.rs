//! The numbers of calls and sessions. A number is never reused for something else; a method that changes its meaning gets
//! a new number. Which roles may use each is the service's business, not the wire's.

use crate::limits::Limit;

/// Consensus: append entries, or a heartbeat without any.
pub const APPEND: u16 = 1;
/// Consensus: a request for a vote.
pub const VOTE: u16 = 2;
/// Consensus: one chunk of a snapshot.
pub const SNAPSHOT: u16 = 3;
/// Consensus: a proposal brought to the leader.
pub const PROPOSE: u16 = 4;
/// Consensus: which index a linearizable read has to wait for.
pub const READ_INDEX: u16 = 5;
/// Consensus: a node tells the leader that it lives.
pub const HEARTBEAT: u16 = 6;
/// Consensus: which nodes the leader believes alive.
pub const LIVENESS: u16 = 7;
/// Consensus: a node's own view of the consensus.
pub const STATUS: u16 = 8;
/// Consensus: would you vote for me? Asked before an election is begun.
pub const MAY_STAND: u16 = 9;

/// The numbers of consensus calls.
pub const CONSENSUS: core::ops::RangeInclusive<u16> = 1..=31;
/// The numbers of calls and sessions between the two ends of one VM's replication.
pub const VM: core::ops::RangeInclusive<u16> = 32..=63;
/// The numbers of calls between daemons.
pub const DAEMON: core::ops::RangeInclusive<u16> = 64..=95;

/// VM session: the control stream of one replication.
pub const VM_CONTROL: u16 = 32;
/// VM session: one stream of page frames.
pub const VM_PAGES: u16 = 33;
/// VM session: device state.
pub const VM_DEVICES: u16 = 34;
/// VM session: one stream of page frames that are unpacked, counted and dropped: what can link and target take?
pub const VM_PROBE: u16 = 35;

/// Daemon: a request of the local API that another node has to answer.
pub const FORWARD: u16 = 64;
/// Daemon: what a node can do: processor, memory, QEMU build, bridges.
pub const FACTS: u16 = 65;
/// Daemon session: the console of a guest, for a user at another node.
pub const CONSOLE: u16 = 66;
/// Daemon session: one replica of a volume, for who writes the volume.
pub const REPLICA: u16 = 67;

/// The largest request body of a method, and the largest answer to it.
#[must_use]
pub const fn limit(method: u16) -> Limit {
    match method {
        1..=31 => Limit::Consensus,
        _ => Limit::Control,
    }
}
