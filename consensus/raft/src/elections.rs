//! When a node may stand for election.
//!
//! openraft 0.9 has no pre-vote: a node cut off from the others keeps raising its vote, and when it comes back that higher
//! vote deposes a leader nobody else had a quarrel with. So openraft may start an election here only while a majority of
//! the voters (of each of the two sets, during a change of membership) says that it, too, hears no leader and that the
//! asker's log is not behind its own. A node that is cut off gets no such majority; when the leader is dead the rest
//! gets it in one round trip, long before openraft's own timeout ends, so nothing is lost when it matters.
//!
//! Safety does not depend on it: votes and the log decide as ever, this only keeps elections from being started.
//!
//! One task per node, from start to shutdown.

use std::collections::BTreeSet;

use futures::{StreamExt, stream::FuturesUnordered};
use pollux_state::id::NodeId;

use crate::{
    consensus::Consensus,
    knowledge::{Knowledge, Silent, Word},
    message::{MayStand, Standing},
    peers::Peers,
    store::log::LogStore,
    timing::Timing,
    types::Raft,
};

/// Answers [`MayStand`].
pub(crate) async fn may_stand(raft: &Raft, log: &LogStore, timing: &Timing, asker: &Standing) -> Result<bool, Silent> {
    Ok(Knowledge::of(raft, log, timing.lease()).await?.grants(asker))
}

/// Opens and closes the gate until the consensus layer stops.
pub(crate) async fn run(consensus: Consensus) {
    let mut words = consensus.words();
    loop {
        let word = words.borrow_and_update().clone();
        let open = match word {
            Word::Known(mine) if !mine.leading && !mine.hears_leader => {
                majority_agrees(consensus.node(), &mine, consensus.peers(), consensus.timing()).await
            }
            // One that cannot say how far its log goes must not lead.
            Word::Known(_) | Word::None | Word::Silent => false,
        };
        consensus.raft().runtime_config().elect(open);
        if matches!(*words.borrow(), Word::Silent) {
            return consensus.raft().runtime_config().elect(false);
        }
        tokio::select! {
            () = consensus.stopping() => return,
            changed = words.changed() => if changed.is_err() { return },
        }
    }
}

async fn majority_agrees(me: NodeId, mine: &Knowledge, peers: &Peers, timing: &Timing) -> bool {
    let others: BTreeSet<u64> = mine.voters.iter().flatten().copied().filter(|id| *id != me.0).collect();
    let request = Standing { last_log: mine.last_log };
    let mut answers: FuturesUnordered<_> = others
        .into_iter()
        .map(|id| {
            let answer = peers.ask::<MayStand>(NodeId(id), None, &request, timing.election_min / 2);
            async move { (id, answer.await) }
        })
        .collect();
    let mut agreeing = BTreeSet::from([me.0]);
    while !mine.is_majority(&agreeing) {
        match answers.next().await {
            Some((id, Ok(true))) => {
                agreeing.insert(id);
            }
            Some((_, Ok(false) | Err(_))) => {}
            None => return false,
        }
    }
    true
}
