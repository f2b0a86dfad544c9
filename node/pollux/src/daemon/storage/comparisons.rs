//! What came of comparing volumes' replicas: each node knows what it found, and the newest word about a volume counts.

use std::collections::BTreeMap;

use pollux_api::{ComparedView, DifferingReplica, Problem};
use pollux_state::{
    ClusterState,
    id::{ReplicaId, VolumeId},
    volume::Volume,
};

use super::{
    super::{
        backend::{Api, problem},
        forward,
    },
    Down,
};
use crate::volumes::Compared;

/// The newest of each volume.
pub(in crate::daemon) type Newest = BTreeMap<VolumeId, Compared>;

impl Api {
    /// Asks every node that can be expected to answer.
    pub(in crate::daemon) async fn comparisons(&self, state: &ClusterState, down: &Down) -> Newest {
        if state.volumes.values().all(|volume| volume.replicas.len() < 2) {
            return Newest::new();
        }
        let nodes = state.nodes.keys().filter(|node| !down.contains(node));
        let ask = nodes.map(|node| forward::compared(&self.0, state, *node));
        newest(futures::future::join_all(ask).await.into_iter().flatten())
    }
}

fn newest(told: impl Iterator<Item = Vec<(VolumeId, Compared)>>) -> Newest {
    let mut newest = Newest::new();
    for (volume, compared) in told.flatten() {
        match newest.get(&volume) {
            Some(known) if known.at >= compared.at => {}
            Some(_) | None => drop(newest.insert(volume, compared)),
        }
    }
    newest
}

/// For people, as long as those replicas are there.
pub(super) fn view(state: &ClusterState, volume: &Volume, compared: &Compared) -> ComparedView {
    let there = compared.differs.iter().filter(|it| volume.replicas.contains_key(&ReplicaId(it.replica)));
    ComparedView {
        at: compared.at,
        by: compared.by.clone(),
        whole: compared.whole,
        left_out_bytes: compared.left_out,
        differs: there
            .map(|it| DifferingReplica {
                place: state.place_of_replica(volume, ReplicaId(it.replica)),
                bytes: it.bytes,
                first: it.first,
            })
            .collect(),
    }
}

/// Volumes whose replicas were found to differ.
pub(in crate::daemon) fn problems_of(state: &ClusterState, newest: &Newest) -> Vec<Problem> {
    let found = newest.iter().filter_map(|(id, compared)| {
        let volume = state.volumes.get(id)?;
        let name = &volume.name;
        let view = view(state, volume, compared);
        let told: Vec<String> = view
            .differs
            .iter()
            .map(|it| format!("{} in {} bytes, the first at {}", it.place, it.bytes, it.first))
            .collect();
        if told.is_empty() {
            return None;
        }
        let authority = state.place_of_replica(volume, volume.authority);
        let what = format!(
            "volume {name}: what is in {authority} counts, and these hold something else: {}; found by {}",
            told.join("; "),
            view.by
        );
        let todo = format!(
            "look at the logs of those disks; then `pollux volume verify {name} --repair`, or, if the disk of {authority} is the bad one, \
             `pollux volume replica remove {name} {authority}`"
        );
        Some(problem(what, todo))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::{super::problems::tests::data, *};
    use crate::volumes::Differing;

    fn compared(at: u64, differs: &[u64]) -> Compared {
        let differs = differs.iter().map(|replica| Differing { replica: *replica, bytes: 65_536, first: 4_096 });
        Compared { at, by: "scrub".into(), whole: true, left_out: 0, differs: differs.collect() }
    }

    #[test]
    fn the_newest_word_about_a_volume_counts() {
        let (mut state, volume) = data();
        state.volumes.insert(volume.id, volume.clone());
        let told = |words: &[Compared]| newest(words.iter().map(|word| vec![(volume.id, word.clone())]));
        let problems = problems_of(&state, &told(&[compared(2, &[2]), compared(1, &[])]));
        assert_eq!(problems.len(), 1);
        assert!(problems[0].what.starts_with("volume data: ") && problems[0].todo.contains("--repair"), "{problems:?}");
        assert!(problems_of(&state, &told(&[compared(1, &[2]), compared(2, &[])])).is_empty(), "it was repaired since");
        assert!(problems_of(&state, &told(&[compared(2, &[7])])).is_empty(), "that replica is gone");
        assert!(problems_of(&ClusterState::default(), &told(&[compared(2, &[2])])).is_empty(), "the volume is gone");
    }
}
