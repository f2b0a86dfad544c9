//! What a mirror that ends in order says to the one that goes on elsewhere with the same guest (docs/adr/0017).
//!
//! After an end that nobody saw the members of the set may differ in whatever was under way, and all but one of them leave
//! ([`crate::reunite`]). When a guest is moved nothing is under way: it is paused, and has its answers. Then its mirror knows that
//! all members hold the same, and the seal says so. It says nothing of stable storage: what was not flushed yet is active, and
//! a member whose host has lost power since has lost it.

use alloc::collections::{BTreeMap, BTreeSet};

use pollux_wire::id::{Generation, ReplicaId};
use serde::{Deserialize, Serialize};

use crate::{
    grains::{Extents, Grains},
    reunite::{Plan, Report, reunite},
};

/// All members of the set hold the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Of the mirror that says so. It means something to the generation that follows, and to no other: in between, somebody
    /// else may have written.
    pub generation: Generation,
    /// Of the set, as that mirror knew it.
    pub version: u64,
    /// Who.
    pub members: BTreeSet<ReplicaId>,
    /// Extents that are not known to be on stable storage everywhere.
    pub active: Extents,
}

/// Why a guest that lives cannot go on with its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// No replica is in reach of which it is certain that it has what the guest has seen: try again.
    #[error("no replica of the set that has kept what was written can be reached")]
    Unreached,
    /// Every replica of the set has lost what was not flushed. As after a power failure, the guest has to be started anew.
    #[error("the hosts of all replicas of the set were started anew, and have lost what was not flushed")]
    Lost,
}

/// What a mirror begins with whose guest lives and was served by another mirror until now. As [`reunite`], which is for guests
/// that are started.
///
/// `seal`: what the other one said, if it could. `generation`: of this mirror. `forgot`: members whose host was started anew since the
/// other one asked them last, or with which it had no session.
///
/// # Errors
/// [`Unfit`].
pub fn take_over(
    (size, generation): (u64, Generation),
    replicas: &BTreeSet<ReplicaId>,
    (version, members): (u64, &BTreeSet<ReplicaId>),
    authority: ReplicaId,
    seal: Option<&Seal>,
    forgot: &BTreeSet<ReplicaId>,
    reports: &BTreeMap<ReplicaId, Report>,
) -> Result<Plan, Unfit> {
    let kept = |id: &ReplicaId| members.contains(id) && !forgot.contains(id);
    let reached = || reports.keys().copied().filter(kept);
    let counts = if reached().any(|id| id == authority) { Some(authority) } else { reached().next() };
    // Members can only have become fewer: nobody joins a set whose mirror is sealed.
    let holds = |seal: &&Seal| {
        seal.generation.0.checked_add(1) == Some(generation.0)
            && seal.version <= version
            && members.is_subset(&seal.members)
    };
    let Some(seal) = seal.filter(holds) else {
        let authority = counts.ok_or(if members.is_subset(forgot) { Unfit::Lost } else { Unfit::Unreached })?;
        return Ok(reunite(size, replicas, members, authority, reports));
    };
    let mut plan = reunite(size, replicas, members, counts.unwrap_or(authority), reports);
    plan.active.union(&seal.active);
    let mut unflushed = Grains::from(&plan.active);
    unflushed.clip(size);
    for (id, lacks) in &mut plan.lacks {
        if kept(id) {
            *lacks = Grains::default();
        } else {
            lacks.union(&unflushed);
        }
    }
    let whole = members.iter().any(|id| plan.lacks.get(id).is_some_and(Grains::is_empty));
    if whole { Ok(plan) } else { Err(Unfit::Lost) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        grains::EXTENT_BYTES,
        marks::{Marks, Record},
    };

    const SIZE: u64 = 16 * EXTENT_BYTES;
    const R1: ReplicaId = ReplicaId(1);
    const R2: ReplicaId = ReplicaId(2);
    const R3: ReplicaId = ReplicaId(3);
    const BOTH: [ReplicaId; 2] = [R1, R2];

    fn extent(number: u64) -> Extents {
        Extents::touching(&(number * EXTENT_BYTES..number * EXTENT_BYTES + 1))
    }

    fn seal() -> Seal {
        Seal { generation: Generation(7), version: 3, members: BOTH.into(), active: extent(1) }
    }

    /// Of three replicas the first two are the set, and were writing to extent 1.
    fn taken(generation: u64, seal: Option<&Seal>, forgot: &[ReplicaId], reached: &[ReplicaId]) -> Result<Plan, Unfit> {
        let outside = [Record::Missing(R3, Grains::touching(&(0..1)))];
        let report = Marks::replay([Record::Active(extent(1))].iter().chain(&outside));
        let reports = reached.iter().map(|id| (*id, report.clone())).collect();
        let all = [R1, R2, R3].into();
        let forgot = forgot.iter().copied().collect();
        take_over((SIZE, Generation(generation)), &all, (4, &BOTH.into()), R1, seal, &forgot, &reports)
    }

    #[test]
    fn who_is_sealed_lacks_nothing_and_what_was_not_flushed_is_active_still() {
        let plan = taken(8, Some(&seal()), &[], &[R1, R2, R3]).unwrap();
        assert!(BOTH.iter().all(|id| plan.lacks[id].is_empty()), "{plan:?}");
        assert_eq!(plan.active, extent(1));
        assert!(plan.lacks[&R3].touches(&(0..1)), "who was outside lacks what it lacked");

        let plan = taken(8, Some(&seal()), &[], &[R2]).unwrap();
        assert!(plan.lacks[&R1].is_empty(), "one that cannot be reached is as whole as when it was sealed");
        assert!(taken(8, Some(&seal()), &[], &[]).is_ok());
    }

    #[test]
    fn a_host_that_was_started_anew_since_has_lost_what_was_not_flushed() {
        let plan = taken(8, Some(&seal()), &[R1], &[R1, R2]).unwrap();
        assert_eq!((&plan.lacks[&R1], plan.lacks[&R2].is_empty()), (&Grains::from(&extent(1)), true));
        assert_eq!(taken(8, Some(&seal()), &BOTH, &BOTH), Err(Unfit::Lost));

        let flushed = Seal { active: Extents::default(), ..seal() };
        let none = BTreeMap::from([(R1, Marks::default())]);
        let plan =
            take_over((SIZE, Generation(8)), &BOTH.into(), (3, &BOTH.into()), R1, Some(&flushed), &BOTH.into(), &none);
        assert!(plan.unwrap().lacks[&R1].is_empty(), "there was nothing to lose");
    }

    #[test]
    fn a_seal_of_another_time_says_nothing() {
        for (what, generation, seal) in [
            ("no seal", 8, None),
            ("somebody may have written between", 9, Some(seal())),
            ("its own generation's", 7, Some(seal())),
            ("a set that the log has not got to", 8, Some(Seal { version: 5, ..seal() })),
            ("another set", 8, Some(Seal { members: [R1].into(), ..seal() })),
        ] {
            let plan = taken(generation, seal.as_ref(), &[], &BOTH).unwrap();
            assert_eq!((plan.lacks[&R1].is_empty(), &plan.lacks[&R2]), (true, &Grains::from(&extent(1))), "{what}");
        }
    }

    #[test]
    fn without_a_seal_one_counts_that_has_kept_what_was_written() {
        let plan = taken(8, None, &[R1], &BOTH).unwrap();
        assert_eq!((plan.lacks[&R1].is_empty(), plan.lacks[&R2].is_empty()), (false, true));
        assert_eq!(taken(8, None, &[R1], &[R1]), Err(Unfit::Unreached), "the other may have it");
        assert_eq!(taken(8, None, &BOTH, &BOTH), Err(Unfit::Lost));
    }
}
