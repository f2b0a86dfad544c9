//! What is wrong with volumes, and what to do about it.

use pollux_api::Problem;
use pollux_state::{
    ClusterState,
    id::ReplicaId,
    volume::{Replica, Volume},
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
