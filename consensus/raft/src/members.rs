//! The leader's task that keeps the membership as it should be, without anybody asking for it.
//!
//! Level-triggered: it compares the nodes in the applied state with openraft's membership and takes one step towards what
//! should be, until both agree. A leader that dies half way leaves the rest to the next one. Nodes learn as soon as they
//! have joined; who votes is [`voters`](crate::voters)'s to say; nodes that were removed are let go once they do not vote. A
//! node becomes a voter only when it has the log and answers: a voter that is not there would count against every majority.

use std::{collections::BTreeMap, collections::BTreeSet, time::Duration};

use openraft::{ChangeMembers, ServerState};
use pollux_state::{
    ClusterState,
    detector::{NodeHealth, Verdict},
    id::{Incarnation, NodeId},
};
use tokio::time::{Instant, timeout};

use crate::{
    consensus::Consensus,
    message::{MayStand, Standing},
    types::{Member, Membership, Metrics},
    voters::{self, Candidate, Life},
};

/// A learner may become a voter when it lacks at most so many entries.
const VOTER_LAG_MAX: u64 = 64;
/// Longest one change of membership may take before the world is looked at anew.
const STEP_MAX: Duration = Duration::from_secs(5);
/// How often the world is looked at when nothing has changed.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// A pause between two replacements of dead voters is at most so many times the shortest.
const PACE_MAX: u32 = 32;

/// One step of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Learn(u64, Member),
    Vote(BTreeSet<u64>),
    /// A dead voter's vote goes to another node.
    Replace(BTreeSet<u64>),
    Forget(BTreeSet<u64>),
}

/// What to do next, if anything. `candidates` as [`candidates`] makes them; `me`: the leader; `replace`: a dead voter may be
/// replaced now.
fn next_step(
    state: &ClusterState,
    membership: &Membership,
    me: u64,
    candidates: &[Candidate],
    replace: bool,
) -> Option<Step> {
    let unknown = state.nodes.values().find(|node| membership.get_node(&node.id.0).is_none());
    if let Some(node) = unknown {
        return Some(Step::Learn(node.id.0, Member { name: node.name.clone(), address: node.address }));
    }
    let configs = membership.get_joint_config();
    let voting = configs.last()?;
    if configs.len() > 1 {
        // Somebody died between the two halves of a change.
        return Some(Step::Vote(voting.clone()));
    }
    let leader = (!state.is_removed(NodeId(me))).then_some(me);
    if let Some(new) = voters::next(voting, leader, candidates, false) {
        return Some(Step::Vote(new));
    }
    let gone = membership.nodes().map(|(id, _)| *id).filter(|id| state.is_removed(NodeId(*id)) && !voting.contains(id));
    let gone: BTreeSet<u64> = gone.collect();
    if !gone.is_empty() {
        return Some(Step::Forget(gone));
    }
    voters::next(voting, leader, candidates, replace).map(Step::Replace)
}

/// Every member as the leader `me` sees it. Without a list (it leads since a moment ago) nobody else is well.
pub(crate) fn candidates(
    state: &ClusterState,
    metrics: &Metrics,
    me: NodeId,
    health: Option<&[NodeHealth]>,
    patience: Duration,
) -> Vec<Candidate> {
    let dead = |health: &NodeHealth| u128::from(health.silent_ms) >= patience.as_millis();
    let life = |id: NodeId| match health.and_then(|all| all.iter().find(|health| health.node == id)) {
        _ if id == me => Life::Well,
        Some(health) if health.verdict == Verdict::Alive && health.incarnation.is_some() => Life::Well,
        Some(health) if health.verdict == Verdict::Down && dead(health) => Life::Dead,
        Some(_) | None => Life::Overdue,
    };
    let candidate = |(id, node): (&NodeId, &pollux_state::node::Node)| Candidate {
        id: id.0,
        life: life(*id),
        // One that has joined and never started may never do so.
        able: node.incarnation != Incarnation::default() && has_the_log(metrics, id.0),
    };
    state.nodes.iter().map(candidate).collect()
}

fn has_the_log(metrics: &Metrics, id: u64) -> bool {
    let matched = metrics.replication.as_ref().and_then(|all| all.get(&id)).copied().flatten();
    match (matched, metrics.last_log_index) {
        (Some(matched), Some(last)) => matched.index + VOTER_LAG_MAX >= last,
        (None, _) | (_, None) => false,
    }
}

/// How fast dead voters are replaced. Hosts that come and go by turns would otherwise have the votes passed round for ever:
/// each replacement doubles the pause before the next, and a quiet time ends that.
#[derive(Debug)]
struct Pace {
    first: Duration,
    pause: Duration,
    /// The next may not be before.
    due: Option<Instant>,
}

impl Pace {
    fn new(first: Duration) -> Self {
        Self { first, pause: first, due: None }
    }

    fn allows(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| now >= due)
    }

    fn replaced(&mut self, now: Instant) {
        let most = self.first * PACE_MAX;
        if self.due.is_some_and(|due| now >= due + most) {
            self.pause = self.first;
        }
        self.due = Some(now + self.pause);
        self.pause = (self.pause * 2).min(most);
    }
}

/// Runs on every node, acts where it leads, until the consensus stops.
pub(crate) async fn run(consensus: Consensus) {
    let mut view = consensus.watch();
    let mut leadership = consensus.leadership();
    let mut pace = Pace::new(consensus.timing().voter_patience);
    loop {
        if leadership.borrow_and_update().state == ServerState::Leader {
            tokio::select! {
                () = consensus.stopping() => return,
                () = advance(&consensus, &mut pace) => {}
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
async fn advance(consensus: &Consensus, pace: &mut Pace) {
    loop {
        let metrics = consensus.raft().metrics().borrow().clone();
        let state = consensus.watch().borrow().state.clone();
        let (me, patience) = (consensus.node(), consensus.timing().voter_patience);
        let health = consensus.ear().health(metrics.current_term);
        let candidates = candidates(&state, &metrics, me, health.as_deref(), patience);
        let replace = pace.allows(Instant::now());
        let step = next_step(&state, metrics.membership_config.membership(), me.0, &candidates, replace);
        let Some(step) = step else { return };
        tracing::info!(?step, "changing the membership");
        let replaces = matches!(step, Step::Replace(_));
        let (change, retain) = match step {
            Step::Learn(id, member) => (ChangeMembers::AddNodes(BTreeMap::from([(id, member)])), true),
            Step::Vote(voters) | Step::Replace(voters) => {
                if !newcomers_answer(consensus, &metrics, &voters).await {
                    return;
                }
                (ChangeMembers::ReplaceAllVoters(voters), true)
            }
            Step::Forget(nodes) => (ChangeMembers::RemoveNodes(nodes), false),
        };
        match timeout(STEP_MAX, consensus.raft().change_membership(change, retain)).await {
            Ok(Ok(_)) => {
                if replaces {
                    pace.replaced(Instant::now());
                }
            }
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
    use pollux_state::node::{Facts, Node};

    use super::*;

    fn state(ids: &[u64], last: u64) -> ClusterState {
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
        let nodes = ids.iter().map(|id| (NodeId(*id), node(id))).collect();
        ClusterState { nodes, last_node: NodeId(last), ..ClusterState::default() }
    }

    fn membership(configs: &[&[u64]], learners: &[u64]) -> Membership {
        let sets: Vec<BTreeSet<u64>> = configs.iter().map(|set| set.iter().copied().collect()).collect();
        let known: BTreeSet<u64> = sets.iter().flatten().copied().chain(learners.iter().copied()).collect();
        Membership::new(sets, known)
    }

    fn step(state: &ClusterState, membership: &Membership) -> Option<Step> {
        let well = |id: &NodeId| Candidate { id: id.0, life: Life::Well, able: true };
        let candidates: Vec<Candidate> = state.nodes.keys().map(well).collect();
        next_step(state, membership, 1, &candidates, true)
    }

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    #[test]
    fn a_joined_node_first_learns_and_then_votes() {
        let state = state(&[1, 2, 3], 3);
        assert!(matches!(step(&state, &membership(&[&[1]], &[2])), Some(Step::Learn(3, _))));
        assert_eq!(step(&state, &membership(&[&[1]], &[2, 3])), Some(Step::Vote(set(&[1, 2, 3]))));
        assert_eq!(step(&state, &membership(&[&[1, 2, 3]], &[])), None);
    }

    #[test]
    fn a_change_that_was_left_half_done_is_finished() {
        let half = membership(&[&[1], &[1, 2, 3]], &[]);
        assert_eq!(step(&state(&[1, 2, 3], 3), &half), Some(Step::Vote(set(&[1, 2, 3]))));
    }

    #[test]
    fn a_removed_node_first_loses_its_vote_and_is_then_let_go() {
        let state = state(&[1, 2, 4], 4);
        let first = step(&state, &membership(&[&[1, 2, 3]], &[4]));
        assert_eq!(first, Some(Step::Vote(set(&[1, 2, 4]))));
        assert_eq!(step(&state, &membership(&[&[1, 2, 4]], &[3])), Some(Step::Forget(set(&[3]))));
        assert_eq!(step(&state, &membership(&[&[1, 2, 4]], &[])), None);
    }

    #[test]
    fn a_node_that_the_state_does_not_know_yet_is_not_taken_for_removed() {
        let young = state(&[], 0);
        assert_eq!(step(&young, &membership(&[&[1]], &[])), None, "before the first entry is applied");
    }

    #[test]
    fn replacements_slow_down_and_a_quiet_time_ends_that() {
        let (start, first) = (Instant::now(), Duration::from_secs(1));
        let mut pace = Pace::new(first);
        assert!(pace.allows(start));
        pace.replaced(start);
        assert!(!pace.allows(start + first / 2) && pace.allows(start + first));
        pace.replaced(start + first);
        assert!(!pace.allows(start + first * 2) && pace.allows(start + first * 3));
        pace.replaced(start + first * 3 + first * PACE_MAX);
        assert!(pace.allows(start + first * 4 + first * PACE_MAX), "as at the first time");
    }
}
