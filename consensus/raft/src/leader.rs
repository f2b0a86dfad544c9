//! Who leads, as a value to wait on: openraft's own report changes with much else besides.

use pollux_state::id::NodeId;

use crate::consensus::Consensus;

/// Passes the leader on until the consensus layer stops.
pub(crate) async fn run(consensus: Consensus) {
    let mut leadership = consensus.leadership();
    loop {
        let leader = leadership.borrow_and_update().current_leader.map(NodeId);
        consensus.leads(leader);
        tokio::select! {
            () = consensus.stopping() => break,
            changed = leadership.changed() => if changed.is_err() { break },
        }
    }
    consensus.leads(None);
}
