//! Who leads, as a value to wait on.
//!
//! openraft names a leader until it knows of another: a node that is cut off, the old leader among them, goes on naming
//! the last one for as long as the cut lasts. Here a leader counts only while it is heard: a follower heard it, or a leader
//! heard a majority, no longer ago than its lease.
//!
//! One task per node, from start to shutdown.

use pollux_state::id::NodeId;

use crate::{
    consensus::Consensus,
    knowledge::{Knowledge, Word},
};

/// Passes the leader on until the consensus layer stops.
pub(crate) async fn run(consensus: Consensus) {
    let leadership = consensus.leadership();
    let mut words = consensus.words();
    loop {
        let word = words.borrow_and_update().clone();
        let leader = match word {
            Word::Known(knowledge) if is_heard(&consensus, &knowledge) => {
                leadership.borrow().current_leader.map(NodeId)
            }
            Word::Known(_) | Word::None => None,
            Word::Silent => break,
        };
        consensus.leads(leader);
        tokio::select! {
            () = consensus.stopping() => break,
            changed = words.changed() => if changed.is_err() { break },
        }
    }
    consensus.leads(None);
}

/// Whether this node is in touch with whoever leads.
fn is_heard(consensus: &Consensus, knowledge: &Knowledge) -> bool {
    if !knowledge.leading {
        return knowledge.hears_leader;
    }
    hears_a_majority(consensus)
}

/// Whether this node, if it leads, was heard by a majority no longer ago than its lease.
pub(crate) fn hears_a_majority(consensus: &Consensus) -> bool {
    let acknowledged_ms = consensus.raft().metrics().borrow().millis_since_quorum_ack;
    acknowledged_ms.is_some_and(|ms| u128::from(ms) <= consensus.timing().lease().as_millis())
}
