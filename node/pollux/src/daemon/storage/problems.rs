//! What is wrong with volumes, and what to do about it.

use pollux_api::Problem;
use pollux_state::{
    ClusterState,
    id::ReplicaId,
    volume::{Purpose, Replica, Volume},
};

use super::{super::backend::problem, Down};

/// Why a replica does not count.
enum Fault {
    /// Its node cannot use it: why.
    Failed(String),
    /// Its node is down: which.
    Down(String),
    /// It lacks something.
    Behind,
}

/// Volumes that have fewer replicas than they should have, or none.
pub(in crate::daemon) fn of(state: &ClusterState, down: &Down) -> Vec<Problem> {
    state.volumes.values().filter_map(|volume| of_volume(state, volume, down)).collect()
}

/// The same of one.
pub(in crate::daemon) fn of_volume(state: &ClusterState, volume: &Volume, down: &Down) -> Option<Problem> {
    if let Some(problem) = interrupted(state, volume) {
        return Some(problem);
    }
    let faults: Vec<(String, Fault)> = volume
        .replicas
        .iter()
        .filter_map(|(id, replica)| Some((state.place_of(replica.pool), fault(state, volume, (*id, replica), down)?)))
        .collect();
    let (place, first) = faults.first()?;
    let (all, name) = (volume.replicas.len(), &volume.name);
    let sound = all - faults.len();
    let told: Vec<String> = faults.iter().map(|(place, fault)| fault.told(place)).collect();
    let told = told.join("; ");
    if sound == 0 {
        let what = format!("volume {name} cannot be used, none of its replicas can be: {told}");
        return Some(problem(what, first.todo(name, place, false)));
    }
    let what = format!("volume {name} has {sound} of {all} replicas in sync: {told}");
    Some(problem(what, first.todo(name, place, true)))
}

/// Whoever filled it with what is in a file ended before that was done.
fn interrupted(state: &ClusterState, volume: &Volume) -> Option<Problem> {
    let lives = volume.holder.is_some_and(|hold| hold.purpose == Purpose::Import && state.lives(hold.owner));
    if !volume.incomplete || lives {
        return None;
    }
    let name = &volume.name;
    let what = format!("an import into volume {name} was never finished: what is in it is half of something");
    Some(problem(what, format!("delete it (`pollux volume delete {name}`) and import it again")))
}

fn fault(state: &ClusterState, volume: &Volume, (id, replica): (ReplicaId, &Replica), down: &Down) -> Option<Fault> {
    // One that a move brings is no loss while it is not there.
    let coming = volume.moving.is_some_and(|moving| moving.to == id);
    if let Some(why) = &replica.failed {
        return Some(Fault::Failed(why.clone()));
    }
    let node = state.node_of_replica(volume, id)?;
    if down.contains(&node) {
        return Some(Fault::Down(state.name_of(node).unwrap_or_default().to_owned()));
    }
    // One that is to be made will be in a moment.
    (replica.made && !coming && !volume.set.contains(&id)).then_some(Fault::Behind)
}

impl Fault {
    fn told(&self, place: &str) -> String {
        match self {
            Self::Failed(why) => format!("that in {place} cannot be used ({why})"),
            Self::Down(node) => format!("that in {place} is out of reach, {node} is down"),
            Self::Behind => format!("that in {place} lacks writes"),
        }
    }

    fn todo(&self, volume: &str, place: &str, others: bool) -> String {
        match self {
            Self::Failed(_) if others => format!(
                "mend what it names, and it is taken up again by itself; or replace it: `pollux volume replica add {volume} \
                 NODE:POOL`, then `pollux volume replica remove {volume} {place}`"
            ),
            Self::Failed(_) => "mend what it names; it is taken up again by itself".to_owned(),
            Self::Down(node) => format!("bring {node} back: what is there then catches up by itself"),
            Self::Behind => format!("it catches up by itself; `pollux volume show {volume}` tells how far it is"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use pollux_state::{
        id::{Incarnation, NodeId, Owner, PoolId},
        volume::{Hold, Pool},
    };

    use super::*;
    use crate::volumes::fixture::volume;

    /// A volume with replicas 1 and 2 in pools of n1 and n2, both in sync.
    pub(in super::super) fn data() -> (ClusterState, Volume) {
        let mut state = ClusterState::default();
        for id in [1, 2] {
            let (node, name, path) = (NodeId(id), "fast".to_owned(), "/srv/fast".to_owned());
            state.pools.insert(PoolId(id), Pool { id: PoolId(id), node, name, path, since: 0 });
        }
        (state, volume(&[1, 2], &[1, 2]))
    }

    #[test]
    fn a_volume_that_is_whole_is_no_problem_and_one_that_is_not_is_told_once_with_what_to_do() {
        let (state, whole) = data();
        let none = Down::new();
        assert_eq!(of_volume(&state, &whole, &none), None);

        let down = Down::from([NodeId(2)]);
        let problem = of_volume(&state, &whole, &down).expect("n2 is down");
        assert!(problem.what.starts_with("volume data has 1 of 2 replicas in sync"), "{problem:?}");

        let behind = Volume { set: BTreeSet::from([ReplicaId(1)]), ..whole.clone() };
        let problem = of_volume(&state, &behind, &none).expect("one is behind");
        assert!(problem.what.contains("lacks writes") && problem.todo.contains("by itself"), "{problem:?}");

        let mut failed = whole.clone();
        failed.replicas.get_mut(&ReplicaId(2)).expect("it").failed = Some("its log is torn".into());
        let problem = of_volume(&state, &failed, &none).expect("one failed");
        assert!(
            problem.what.contains("its log is torn") && problem.todo.contains("replica remove data"),
            "{problem:?}"
        );

        let all = of_volume(&state, &whole, &Down::from([NodeId(1), NodeId(2)])).expect("all are down");
        assert!(all.what.starts_with("volume data cannot be used"), "{all:?}");
    }

    #[test]
    fn half_of_an_import_is_told_as_that() {
        let (state, volume) = data();
        let owner = Owner { node: NodeId(1), incarnation: Incarnation(4) };
        let holder = Some(Hold { owner, purpose: Purpose::Import, since: 0 });
        let half = Volume { incomplete: true, holder, ..volume };
        let problem = of_volume(&state, &half, &Down::new()).expect("that life is over");
        assert!(problem.what.contains("never finished") && problem.todo.contains("volume delete data"), "{problem:?}");
    }
}
