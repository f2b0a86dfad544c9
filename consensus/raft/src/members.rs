//! The leader's task that lets joined nodes take part, without anybody asking for it.
//!
//! Level-triggered: it compares the nodes in the applied state with openraft's membership and takes one step towards what
//! should be, until both agree. A leader that dies half way leaves the rest to the next one. Nodes learn as soon as they
//! have joined; the first three of them that have started vote. A node becomes a voter only when it has the log and answers: a voter that
//! is not there would count against every majority.

use std::{collections::BTreeMap, collections::BTreeSet, time::Duration};

use openraft::{ChangeMembers, ServerState};
use pollux_state::{
    id::{Incarnation, NodeId},
    node::Node,
};
use tokio::time::timeout;

use crate::{
    consensus::Consensus,
    message::{MayStand, Standing},
    types::{Member, Membership, Metrics},
};

/// How many nodes vote: the first so many, by id.
pub(crate) const VOTERS: usize = 3;
/// A learner may become a voter when it lacks at most so many entries.
const VOTER_LAG_MAX: u64 = 64;
/// Longest one change of membership may take before the world is looked at anew.
const STEP_MAX: Duration = Duration::from_secs(5);
/// How often the world is looked at when nothing has changed.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// One step of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Learn(u64, Member),
    Vote(BTreeSet<u64>),
}

/// What to do next, if anything.
fn next_step(
    nodes: &BTreeMap<NodeId, Node>,
    membership: &Membership,
    up_to_date: impl Fn(u64) -> bool,
) -> Option<Step> {
    let unknown = nodes.values().find(|node| membership.get_node(&node.id.0).is_none());
    if let Some(node) = unknown {
        return Some(Step::Learn(node.id.0, Member { name: node.name.clone(), address: node.address }));
    }
    let configs = membership.get_joint_config();
    let voters = configs.last()?;
    // One that has joined and never started may never do so.
    let started = nodes.values().filter(|node| node.incarnation != Incarnation::default()).map(|node| node.id.0);
    let next = started.take(VOTERS).find(|id| !voters.contains(id) && up_to_date(*id));
    match next.filter(|_| voters.len() < VOTERS) {
        Some(id) => Some(Step::Vote(voters.iter().copied().chain([id]).collect())),
        // Somebody died between the two halves of a change.
        None if configs.len() > 1 => Some(Step::Vote(voters.clone())),
        None => None,
    }
}

fn has_the_log(metrics: &Metrics, id: u64) -> bool {
    let matched = metrics.replication.as_ref().and_then(|all| all.get(&id)).copied().flatten();
    match (matched, metrics.last_log_index) {
        (Some(matched), Some(last)) => matched.index + VOTER_LAG_MAX >= last,
        (None, _) | (_, None) => false,
    }
}

/// Runs on every node, acts where it leads, until the consensus stops.
pub(crate) async fn run(consensus: Consensus) {
    let mut view = consensus.watch();
    let mut leadership = consensus.leadership();
    loop {
        if leadership.borrow_and_update().state == ServerState::Leader {
            tokio::select! {
                () = consensus.stopping() => return,
                () = advance(&consensus) => {}
            }
        }
        tokio::select! {
            () = consensus.stopping() => return,
            // A core that has failed changes nothing more, and says so at once, again and again.
            Ok(()) = view.changed() => {}
            Ok(()) = leadership.changed() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Takes steps until there is none to take.
async fn advance(consensus: &Consensus) {
    loop {
        let metrics = consensus.raft().metrics().borrow().clone();
        let state = consensus.watch().borrow().state.clone();
        let step = next_step(&state.nodes, metrics.membership_config.membership(), |id| has_the_log(&metrics, id));
        let Some(step) = step else { return };
        tracing::info!(?step, "changing the membership");
        let changed = match step {
            Step::Learn(id, member) => {
                let learn = ChangeMembers::AddNodes(BTreeMap::from([(id, member)]));
                timeout(STEP_MAX, consensus.raft().change_membership(learn, true)).await
            }
            Step::Vote(voters) => {
                if !newcomers_answer(consensus, &metrics, &voters).await {
                    return;
                }
                let vote = ChangeMembers::ReplaceAllVoters(voters);
                timeout(STEP_MAX, consensus.raft().change_membership(vote, true)).await
            }
        };
        match changed {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the membership did not change; it will be tried again");
                return;
            }
            Err(_) => {
                tracing::warn!("the membership did not change in time; it will be tried again");
                return;
            }
        }
    }
}

async fn newcomers_answer(consensus: &Consensus, metrics: &Metrics, voters: &BTreeSet<u64>) -> bool {
    let standing = Standing { last_log: metrics.last_applied };
    let current: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
    for id in voters.difference(&current) {
        let address = consensus.known_address(NodeId(*id));
        let wait = consensus.timing().election_min;
        // What it answers does not matter here, only that it does.
        if consensus.peers().ask::<MayStand>(NodeId(*id), address, &standing, wait).await.is_err() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use pollux_state::node::Facts;

    use super::*;

    fn nodes(ids: &[u64]) -> BTreeMap<NodeId, Node> {
        let node = |id: &u64| Node {
            id: NodeId(*id),
            name: format!("n{id}"),
            address: "127.0.0.1:1".parse().unwrap(),
            key: [0; 32],
            incarnation: Incarnation(1),
            facts: Facts::default(),
            joined: 0,
            authority: false,
        };
        ids.iter().map(|id| (NodeId(*id), node(id))).collect()
    }

    fn membership(configs: &[&[u64]], learners: &[u64]) -> Membership {
        let sets: Vec<BTreeSet<u64>> = configs.iter().map(|set| set.iter().copied().collect()).collect();
        let known: BTreeSet<u64> = sets.iter().flatten().copied().chain(learners.iter().copied()).collect();
        Membership::new(sets, known)
    }

    fn votes(ids: &[u64]) -> Option<Step> {
        Some(Step::Vote(ids.iter().copied().collect()))
    }

    #[test]
    fn a_joined_node_first_learns_and_then_votes() {
        let nodes = nodes(&[1, 2]);
        let learn = next_step(&nodes, &membership(&[&[1]], &[]), |_| true);
        assert!(matches!(learn, Some(Step::Learn(2, _))));
        assert_eq!(next_step(&nodes, &membership(&[&[1]], &[2]), |_| true), votes(&[1, 2]));
        assert_eq!(next_step(&nodes, &membership(&[&[1, 2]], &[]), |_| true), None);
    }

    #[test]
    fn a_node_that_is_behind_does_not_vote_yet() {
        assert_eq!(next_step(&nodes(&[1, 2]), &membership(&[&[1]], &[2]), |_| false), None);
        let third = next_step(&nodes(&[1, 2, 3]), &membership(&[&[1]], &[2, 3]), |id| id == 3);
        assert_eq!(third, votes(&[1, 3]), "others need not wait for it");
    }

    #[test]
    fn the_first_three_vote_and_later_ones_learn() {
        let nodes = nodes(&[1, 2, 3, 4]);
        assert_eq!(next_step(&nodes, &membership(&[&[1, 2, 3]], &[4]), |_| true), None);
        assert_eq!(next_step(&nodes, &membership(&[&[1, 2]], &[3, 4]), |id| id == 4), None);
    }

    #[test]
    fn a_node_that_never_started_keeps_no_other_from_voting() {
        let mut nodes = nodes(&[1, 2, 3, 4]);
        let ghost = nodes.get_mut(&NodeId(2)).unwrap();
        ghost.incarnation = Incarnation(0);
        assert_eq!(next_step(&nodes, &membership(&[&[1, 3]], &[2, 4]), |_| true), votes(&[1, 3, 4]));

        nodes.get_mut(&NodeId(2)).unwrap().incarnation = Incarnation(1);
        let full = next_step(&nodes, &membership(&[&[1, 3, 4]], &[2]), |_| true);
        assert_eq!(full, None, "it comes too late, and an even number of voters would be worse than three");
    }

    #[test]
    fn a_change_that_was_left_half_done_is_finished() {
        let half = membership(&[&[1], &[1, 2]], &[]);
        assert_eq!(next_step(&nodes(&[1, 2]), &half, |_| true), votes(&[1, 2]));
    }
}
