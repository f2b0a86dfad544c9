//! What has to be copied before replicas that were apart are one volume again (DESIGN, rules 14 and 15).

use alloc::collections::{BTreeMap, BTreeSet};

use pollux_wire::id::ReplicaId;

use crate::{
    grains::{Extents, Grains},
    marks::Marks,
};

/// What the log beside a replica says, as far as one can be asked.
pub type Report = Marks;

/// What a [`crate::Mirror`] begins with.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What each replica lacks.
    pub lacks: BTreeMap<ReplicaId, Grains>,
    /// What may differ within the set.
    pub active: Extents,
    /// Replicas that members have notes of and that are none of the volume's any more: each is told as [`crate::Event::Removed`].
    pub gone: BTreeSet<ReplicaId>,
}

/// For a volume of `size` bytes with these `replicas`, of which `members` are the set and `authority`, one of them, is the one
/// whose content counts: what lacks where. `reports` has what can be reached, the authority among it.
///
/// Members differ in what is active on any of them: requests that were under way when everything ended. A member that cannot be
/// reached is taken to lack the same; it will be found out of reach, and leave. A replica outside of the set lacks what a member
/// noted, and what is active anywhere. One that no member has a note of lacks everything.
#[must_use]
pub fn reunite(
    size: u64,
    replicas: &BTreeSet<ReplicaId>,
    members: &BTreeSet<ReplicaId>,
    authority: ReplicaId,
    reports: &BTreeMap<ReplicaId, Report>,
) -> Plan {
    let of_members = || reports.iter().filter(|(id, _)| members.contains(id)).map(|(_, report)| report);
    let mut active = Extents::default();
    of_members().for_each(|report| active.union(report.active()));
    let mut differing = Grains::from(&active);
    differing.clip(size);
    let lacks = |id: &ReplicaId| {
        if *id == authority {
            return Grains::default();
        }
        let mut lacks = differing.clone();
        if !members.contains(id) {
            let notes = of_members().filter_map(|report| report.missing().get(id));
            match (notes.clone().next(), reports.get(id)) {
                (Some(_), Some(own)) => {
                    notes.for_each(|note| lacks.union(note));
                    lacks.union(&Grains::from(own.active()));
                    lacks.clip(size);
                }
                // Nobody knows, or not everything.
                (None, _) | (_, None) => lacks.insert(&(0..size)),
            }
        }
        lacks
    };
    let gone = of_members().flat_map(|report| report.missing().keys()).filter(|id| !replicas.contains(id)).copied();
    Plan { lacks: replicas.iter().map(|id| (*id, lacks(id))).collect(), gone: gone.collect(), active }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{grains::EXTENT_BYTES, marks::Record};

    const SIZE: u64 = 16 * EXTENT_BYTES;
    const R1: ReplicaId = ReplicaId(1);
    const R2: ReplicaId = ReplicaId(2);
    const R3: ReplicaId = ReplicaId(3);

    fn extent(number: u64) -> Extents {
        Extents::touching(&(number * EXTENT_BYTES..number * EXTENT_BYTES + 1))
    }

    fn marks(records: &[Record]) -> Marks {
        Marks::replay(records)
    }

    fn plan(members: &[ReplicaId], reports: &[(ReplicaId, Marks)]) -> Plan {
        let all = [R1, R2, R3].into();
        reunite(SIZE, &all, &members.iter().copied().collect(), R1, &reports.iter().cloned().collect())
    }

    #[test]
    fn members_are_equal_but_for_what_is_active_on_any_of_them() {
        let reports =
            [(R1, marks(&[Record::Active(extent(1))])), (R2, marks(&[Record::Active(extent(2))])), (R3, marks(&[]))];
        let plan = plan(&[R1, R2, R3], &reports);
        assert!(plan.lacks[&R1].is_empty(), "its content counts");
        let mut both = extent(1);
        both.union(&extent(2));
        assert_eq!((&plan.lacks[&R2], &plan.lacks[&R3]), (&Grains::from(&both), &Grains::from(&both)));
        assert_eq!(plan.active, both);
    }

    #[test]
    fn who_was_outside_lacks_what_was_noted_and_what_either_side_left_unfinished() {
        let noted = Grains::touching(&(5 * EXTENT_BYTES..5 * EXTENT_BYTES + 1));
        let first = marks(&[Record::Missing(R2, noted.clone()), Record::Active(extent(1))]);
        let second = marks(&[Record::Active(extent(7))]);
        let plan = plan(&[R1], &[(R1, first), (R2, second)]);
        let mut wanted = noted;
        wanted.union(&Grains::from(&extent(1)));
        wanted.union(&Grains::from(&extent(7)));
        assert_eq!(plan.lacks[&R2], wanted);
        assert_eq!(plan.lacks[&R3].bytes(), SIZE, "nobody has a note of it");
    }

    #[test]
    fn a_note_of_one_that_was_removed_is_told() {
        let first = marks(&[Record::Missing(R2, Grains::default()), Record::Missing(ReplicaId(9), Grains::default())]);
        assert_eq!(plan(&[R1], &[(R1, first)]).gone, [ReplicaId(9)].into());
    }

    #[test]
    fn one_that_cannot_be_asked_lacks_everything_outside_and_what_is_active_inside() {
        let first = marks(&[Record::Missing(R2, Grains::default()), Record::Active(extent(1))]);
        let plan = plan(&[R1, R3], &[(R1, first)]);
        assert_eq!(plan.lacks[&R2].bytes(), SIZE);
        assert_eq!(plan.lacks[&R3], Grains::from(&extent(1)));
    }
}
