//! How often leadership changed, counted from the votes that this node has seen. For people and for metrics.

use serde::Serialize;

use crate::types::Vote;

/// Counted since the consensus layer was started; all of them only rise. Beside each its name among the metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// `pollux_raft_terms_total`: terms that began while this node watched.
    pub terms: u64,
    /// `pollux_raft_leader_changes_total`: another node leads than before. The first leader known is no change, and one that
    /// is elected again is none.
    pub leader_changes: u64,
    /// `pollux_raft_elections_total`: elections for which this node stood.
    pub elections: u64,
    /// `pollux_raft_spurious_elections_total`: those among them that it did not win. Each cost the cluster a term for nothing.
    pub spurious_elections: u64,
}

/// What the counting needs to remember.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    counts: Counts,
    term: Option<u64>,
    leader: Option<u64>,
    /// The term for which this node stands and has neither won nor lost.
    standing: Option<u64>,
}

impl Counting {
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// The newest vote of node `me`. Votes in between may have been missed; they are not counted then.
    pub(crate) fn see(&mut self, me: u64, vote: &Vote) {
        let id = vote.leader_id();
        let (term, node, won) = (id.term, id.node_id, vote.is_committed());
        // What a restarted node finds in its store began before it watched.
        let newer = self.term.is_some_and(|known| term > known);
        self.term = self.term.max(Some(term));
        self.counts.terms += u64::from(newer);
        if self.standing.is_some_and(|standing| standing < term || node != me) {
            self.standing = None;
            self.counts.spurious_elections += 1;
        }
        if node == me {
            self.counts.elections += u64::from(newer);
            if won {
                self.standing = None;
            } else if newer {
                self.standing = Some(term);
            }
        }
        if won && self.leader != Some(node) {
            self.counts.leader_changes += u64::from(self.leader.is_some());
            self.leader = Some(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn won(term: u64, node: u64) -> Vote {
        Vote::new_committed(term, node)
    }

    fn stands(term: u64, node: u64) -> Vote {
        Vote::new(term, node)
    }

    fn counted(votes: &[Vote]) -> Counts {
        let mut counting = Counting::default();
        votes.iter().for_each(|vote| counting.see(1, vote));
        counting.counts()
    }

    #[test]
    fn a_quiet_cluster_counts_nothing_however_often_it_is_looked_at() {
        assert_eq!(counted(&[won(4, 2), won(4, 2), won(4, 2)]), Counts::default());
    }

    #[test]
    fn what_is_found_at_the_start_began_before() {
        assert_eq!(counted(&[stands(4, 1), stands(4, 1)]), Counts::default());
    }

    #[test]
    fn an_election_that_is_won_is_not_spurious() {
        let counts = counted(&[won(4, 2), stands(5, 1), won(5, 1)]);
        assert_eq!(counts, Counts { terms: 1, leader_changes: 1, elections: 1, spurious_elections: 0 });
    }

    #[test]
    fn elections_that_are_lost_or_come_to_nothing_are() {
        let lost = counted(&[won(4, 2), stands(5, 1), stands(6, 3), won(6, 3)]);
        assert_eq!(lost, Counts { terms: 2, leader_changes: 1, elections: 1, spurious_elections: 1 });
        let nothing = counted(&[won(4, 2), stands(5, 1), stands(6, 1), won(6, 1)]);
        assert_eq!(nothing, Counts { terms: 2, leader_changes: 1, elections: 2, spurious_elections: 1 });
    }

    #[test]
    fn a_leader_that_is_elected_again_is_no_change() {
        let counts = counted(&[won(4, 2), stands(5, 2), won(5, 2)]);
        assert_eq!(counts, Counts { terms: 1, ..Counts::default() });
    }
}
