//! Which nodes vote: an odd number, at most [`VOTERS_MAX`], alive.
//!
//! Pure: given who votes now and what the leader knows of the nodes, [`next`] says who should. It changes no more than it
//! must: a change that costs something is made because a voter was removed, because there are more or fewer voters than
//! nodes allow, or because one has been dead for long and another node can take its place; in this order. No change leaves
//! the new voters without a living majority.
//!
//! An even number is no better than the odd one below it: of four, as of three, one may be lost, and of two, as of one,
//! none. So of two nodes one votes (docs/adr/0014).

use std::collections::BTreeSet;

/// Most nodes that vote. With five, two may be lost at once; more would only make every decision slower.
pub const VOTERS_MAX: usize = 5;

/// How many of so many nodes vote once all of them are well: the largest odd number that there are nodes for.
#[must_use]
pub const fn voters_of(nodes: usize) -> usize {
    let most = if nodes < VOTERS_MAX { nodes } else { VOTERS_MAX };
    if most == 0 { 0 } else { most - (most + 1) % 2 }
}

/// What the leader thinks of a node, as far as its vote is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Life {
    /// Heard lately.
    Well,
    /// Not heard, but not for long: it may be starting again.
    Overdue,
    /// Silent for so long that another node should have its vote.
    Dead,
}

/// A node that may vote.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) id: u64,
    pub(crate) life: Life,
    /// Its daemon has started at least once, and it has (nearly) all of the leader's log.
    pub(crate) able: bool,
}

/// Who should vote instead of `voters`; `None`: all is well, or nothing can be done now. `members` are the nodes of the
/// cluster without the removed ones, by id; `replace`: a dead voter may be replaced now.
pub(crate) fn next(
    voters: &BTreeSet<u64>,
    leader: Option<u64>,
    members: &[Candidate],
    replace: bool,
) -> Option<BTreeSet<u64>> {
    let plan = Plan::new(voters, leader, members);
    let removed = plan.keep.len() < voters.len();
    if removed || plan.keep.len() > plan.most {
        return plan.best();
    }
    plan.grown().or_else(|| plan.replaced().filter(|_| replace))
}

struct Plan<'a> {
    leader: Option<u64>,
    /// Voters that are still members: the leader first, then by how they are.
    keep: Vec<&'a Candidate>,
    /// Others that could vote at once.
    spare: Vec<&'a Candidate>,
    /// How many should vote.
    most: usize,
}

impl<'a> Plan<'a> {
    fn new(voters: &BTreeSet<u64>, leader: Option<u64>, members: &'a [Candidate]) -> Self {
        let votes = |candidate: &&Candidate| voters.contains(&candidate.id);
        let mut keep: Vec<&Candidate> = members.iter().filter(votes).collect();
        keep.sort_by_key(|voter| (leader != Some(voter.id), voter.life, voter.id));
        let able = |candidate: &&Candidate| !votes(candidate) && candidate.able;
        let started = members.iter().filter(able);
        let spare: Vec<&Candidate> = started.filter(|candidate| candidate.life == Life::Well).collect();
        let counted = members.iter().filter(|candidate| votes(candidate) || candidate.able).count();
        Self { leader, keep, spare, most: voters_of(counted) }
    }

    /// The largest odd number of voters with a living majority: those that are, then others that are well, then whoever is
    /// left.
    fn best(&self) -> Option<BTreeSet<u64>> {
        let (well, unwell): (Vec<&Candidate>, Vec<_>) =
            self.keep.iter().copied().partition(|voter| voter.life == Life::Well || self.leader == Some(voter.id));
        let ranked: Vec<&Candidate> = well.into_iter().chain(self.spare.iter().copied()).chain(unwell).collect();
        let sizes = (1..=self.most.min(ranked.len())).rev().filter(|size| size % 2 == 1);
        sizes.map(|size| &ranked[..size]).find(|chosen| self.decide(chosen)).map(ids)
    }

    /// More voters, if there are enough that are able to make the number odd.
    fn grown(&self) -> Option<BTreeSet<u64>> {
        let size = voters_of((self.keep.len() + self.spare.len()).min(self.most));
        let more = size.checked_sub(self.keep.len()).filter(|more| *more > 0)?;
        let chosen: Vec<&Candidate> = self.keep.iter().chain(&self.spare[..more]).copied().collect();
        self.decide(&chosen).then(|| ids(&chosen))
    }

    /// One dead voter's place for one that is well.
    fn replaced(&self) -> Option<BTreeSet<u64>> {
        let dead = |voter: &&&Candidate| voter.life == Life::Dead && self.leader != Some(voter.id);
        let (gone, new) = (self.keep.iter().find(dead)?, self.spare.first()?);
        let stay = self.keep.iter().filter(|voter| voter.id != gone.id);
        let chosen: Vec<&Candidate> = stay.chain([new]).copied().collect();
        self.decide(&chosen).then(|| ids(&chosen))
    }

    /// Whether those that live among `chosen` are a majority of them.
    fn decide(&self, chosen: &[&Candidate]) -> bool {
        let living = chosen.iter().filter(|voter| voter.life == Life::Well || self.leader == Some(voter.id)).count();
        living * 2 > chosen.len()
    }
}

fn ids(chosen: &[&Candidate]) -> BTreeSet<u64> {
    chosen.iter().map(|voter| voter.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `w` well, `b` well but behind (or never started), `o` overdue, `d` dead, `.` not a member; the first is node 1.
    fn members(lives: &str) -> Vec<Candidate> {
        let candidate = |(at, letter): (usize, char)| {
            let life = match letter {
                'w' | 'b' => Life::Well,
                'o' => Life::Overdue,
                'd' => Life::Dead,
                _ => return None,
            };
            Some(Candidate { id: at as u64 + 1, life, able: letter != 'b' })
        };
        lives.chars().enumerate().filter_map(candidate).collect()
    }

    fn change(voters: &[u64], lives: &str) -> Option<Vec<u64>> {
        let voters = voters.iter().copied().collect();
        next(&voters, Some(1), &members(lives), true).map(|set| set.into_iter().collect())
    }

    fn without_leader(voters: &[u64], lives: &str) -> Option<Vec<u64>> {
        let voters = voters.iter().copied().collect();
        next(&voters, None, &members(lives), true).map(|set| set.into_iter().collect())
    }

    #[test]
    fn an_odd_number_votes_and_at_most_five() {
        let wanted: Vec<usize> = (0..9).map(voters_of).collect();
        assert_eq!(wanted, [0, 1, 1, 3, 3, 5, 5, 5, 5]);
    }

    #[test]
    fn voters_come_in_pairs() {
        assert_eq!(change(&[1], "w"), None);
        assert_eq!(change(&[1], "ww"), None, "the second of two nodes would be one more to lose");
        assert_eq!(change(&[1], "www"), Some(vec![1, 2, 3]));
        assert_eq!(change(&[1, 2, 3], "wwww"), None);
        assert_eq!(change(&[1, 2, 3], "wwwww"), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(change(&[1, 2, 3, 4, 5], "wwwwwww"), None);
        assert_eq!(change(&[1], "wwwww"), Some(vec![1, 2, 3, 4, 5]), "all at once, if all are able");
    }

    #[test]
    fn one_that_is_not_able_keeps_no_other_from_voting_but_the_number_odd() {
        assert_eq!(change(&[1], "wbw"), None);
        assert_eq!(change(&[1], "wbww"), Some(vec![1, 3, 4]));
        assert_eq!(change(&[1], "wow"), None);
        assert_eq!(change(&[1, 2, 3], "wwwwd"), None);
    }

    #[test]
    fn an_even_number_is_made_odd() {
        assert_eq!(change(&[1, 2], "ww"), Some(vec![1]), "the leader stays");
        assert_eq!(change(&[1, 2], "www"), Some(vec![1, 2, 3]));
        assert_eq!(change(&[1, 2, 3, 4], "wwdw"), Some(vec![1, 2, 4]), "the dead one goes");
    }

    #[test]
    fn a_dead_voter_is_replaced_by_one_that_is_well() {
        assert_eq!(change(&[1, 2, 3], "wwdw"), Some(vec![1, 2, 4]));
        assert_eq!(change(&[1, 2, 3], "wwow"), None, "it may be back in a moment");
        assert_eq!(change(&[1, 2, 3], "wwdo"), None);
        assert_eq!(change(&[1, 2, 3], "wwdb"), None);
        assert_eq!(change(&[1, 2, 3], "wwd"), None, "better a dead voter than an even number");
        assert_eq!(change(&[1, 2, 4], "wwww"), None, "one that came back does not get its vote back");
        assert_eq!(change(&[1, 2, 3, 4, 5], "wddwwww"), Some(vec![1, 3, 4, 5, 6]), "one at a time");
    }

    #[test]
    fn a_dead_voter_waits_for_its_turn() {
        let voters = BTreeSet::from([1, 2, 3]);
        assert_eq!(next(&voters, Some(1), &members("wwdw"), false), None);
        assert_eq!(next(&voters, Some(1), &members("wwdww"), false), Some(BTreeSet::from([1, 2, 3, 4, 5])));
    }

    #[test]
    fn a_removed_voter_is_let_go_at_once_and_never_at_the_cost_of_the_quorum() {
        assert_eq!(change(&[1, 2, 3], "ww."), Some(vec![1]), "two nodes: one votes");
        assert_eq!(change(&[1, 2, 3], "ww.w"), Some(vec![1, 2, 4]));
        assert_eq!(change(&[1, 2, 3], "w.dd"), Some(vec![1]), "the dead could decide nothing");
        assert_eq!(change(&[1, 2, 3], "w.dw"), Some(vec![1, 3, 4]));
        assert_eq!(change(&[1, 2, 3, 4, 5], "wwww."), Some(vec![1, 2, 3]));
        assert_eq!(change(&[1, 2, 3, 4, 5], "wdww."), Some(vec![1, 3, 4]));
    }

    #[test]
    fn a_removed_leader_leaves_its_vote_to_the_others() {
        assert_eq!(without_leader(&[1, 2, 3], ".ww"), Some(vec![2]));
        assert_eq!(without_leader(&[1, 2, 3], ".www"), Some(vec![2, 3, 4]));
        assert_eq!(without_leader(&[1], ".w"), Some(vec![2]));
        assert_eq!(without_leader(&[1], ".b"), None, "nobody could decide");
        assert_eq!(without_leader(&[1], ".d"), None);
    }
}
