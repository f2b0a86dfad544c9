//! Who leads, as a value to wait on.
//!
//! openraft names a leader until it knows of another: a node that is cut off, the old leader among them, goes on naming
//! the last one for as long as the cut lasts. Here a leader counts only while it is heard: a follower heard it, or a leader
//! heard a majority, no longer ago than its lease.
//!
//! One task per node, from start to shutdown.

use pollux_state::id::NodeId;
use tokio::time::timeout;

use crate::{consensus::Consensus, elections::Knowledge};

/// Passes the leader on until the consensus layer stops.
pub(crate) async fn run(consensus: Consensus) {
    let mut leadership = consensus.leadership();
    loop {
        let named = leadership.borrow_and_update().current_leader.map(NodeId);
        let leader = if named.is_some() && is_heard(&consensus).await { named } else { None };
        consensus.leads(leader);
        tokio::select! {
            () = consensus.stopping() => break,
            changed = leadership.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(consensus.timing().heartbeat) => {}
        }
    }
    consensus.leads(None);
}

/// Whether this node is in touch with whoever leads. A core that does not answer is in touch with nobody.
async fn is_heard(consensus: &Consensus) -> bool {
    let lease = consensus.timing().lease();
    let knowledge = Knowledge::of(consensus.raft(), consensus.log(), lease);
    let Ok(Ok(knowledge)) = timeout(lease, knowledge).await else { return false };
    if !knowledge.leading {
        return knowledge.hears_leader;
    }
    let acknowledged_ms = consensus.raft().metrics().borrow().millis_since_quorum_ack;
    acknowledged_ms.is_some_and(|ms| u128::from(ms) <= lease.as_millis())
}
