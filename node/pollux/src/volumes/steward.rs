//! What the writer of a volume does about its move, beside the mirror, which copies: it compares, waits as long as the old replica is
//! to be kept, and says to the log when that is over. And who does it when nobody writes: the node of the authority holds the
//! volume for as long as there is something to copy.
//!
//! Level-triggered: another writer goes on where this one was, with nothing but what the log says.

use std::{
    collections::BTreeSet,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use pollux_disk::Disk as _;
use pollux_state::{
    ClusterState, Command, UnixMs,
    command::Comparison,
    id::{Generation, OpId, ReplicaId, VolumeId},
    operation::{CopyReport, OperationKind},
    volume::{Purpose, Stage, Volume, VolumeMove},
};
use pollux_volume::VolumeHandle;

use super::{Volumes, news, turns::Comparer, verify::ROUNDS_MAX};
use crate::vm::{hold, wall_ms};

/// What could not be done is tried again after this, in milliseconds.
const AGAIN_MS: u64 = 2_000;

/// Until when the replica that goes by a move is kept, if that is known: of a VM's move, until that has ended.
pub(super) fn kept_until(state: &ClusterState, volume: &Volume) -> Option<(VolumeMove, UnixMs)> {
    let moving = volume.moving?;
    let Some(Stage::Kept { since }) = volume.stage() else { return None };
    let operation = state.operations.get(&moving.op)?;
    let keep_ms = match &operation.kind {
        OperationKind::MoveVolume { keep_ms, .. } => *keep_ms,
        // One that has failed turns its volumes back by the same way.
        OperationKind::Migrate { .. } if operation.ended.is_some() => 0,
        OperationKind::Migrate { .. } => return None,
    };
    Some((moving, since.saturating_add(keep_ms)))
}

/// How fast the operation that moves a volume may copy, if it says so.
fn bandwidth(state: &ClusterState, moving: VolumeMove) -> Option<u64> {
    state.operations.get(&moving.op)?.kind.bandwidth()
}

/// Who is to go by now, and when that may change without an entry.
pub(super) fn going(state: &ClusterState, volume: &Volume) -> (BTreeSet<ReplicaId>, Option<Duration>) {
    let Some((moving, until)) = kept_until(state, volume) else { return (BTreeSet::new(), None) };
    let left = until.saturating_sub(wall_ms());
    if left == 0 { ([moving.from].into(), None) } else { (BTreeSet::new(), Some(Duration::from_millis(left))) }
}

/// The end of a move, as the log was asked for it last. What it answers depends on the volume and the operation alone, so it is not
/// asked again before one of them is another: each question is an entry in everybody's log.
#[derive(Debug, Default)]
struct Ending(Option<(Volume, bool)>);

impl Ending {
    /// What to ask now, if anything. First the mirror lets the old replica go, so that nobody misses it.
    fn due(&mut self, state: &ClusterState, it: &Volume) -> Option<Command> {
        let (going, _) = going(state, it);
        let moving = it.moving.filter(|moving| going.contains(&moving.from) && !it.set.contains(&moving.from))?;
        let over = state.operations.get(&moving.op).is_some_and(|operation| operation.ended.is_some());
        let now = (it.clone(), over);
        if self.0.as_ref() == Some(&now) {
            return None;
        }
        self.0 = Some(now);
        Some(Command::EndVolumeMove { volume: it.id, op: moving.op, version: it.version })
    }
}

/// There is something that a writer would have to do.
fn wants_a_writer(state: &ClusterState, volume: &Volume) -> bool {
    let outside = volume.replicas.iter().any(|(id, replica)| replica.is_sound() && !volume.set.contains(id));
    let moves = match volume.stage() {
        Some(Stage::Comparing) => true,
        Some(Stage::Kept { .. }) => kept_until(state, volume).is_some_and(|(_, until)| until <= wall_ms()),
        Some(Stage::Copying) | None => false,
    };
    (outside || moves) && !volume.incomplete
}

impl Volumes {
    /// Looks after the move of a volume that is in use here under `generation`.
    pub(super) async fn steward(self, id: VolumeId, generation: Generation, handle: VolumeHandle) {
        let mut applied = self.0.consensus.watch();
        let mut compared: Option<(OpId, u64)> = None;
        let mut limited: Option<u64> = None;
        let mut ending = Ending::default();
        loop {
            let state = applied.borrow_and_update().state.clone();
            let Some(it) = state.volumes.get(&id).filter(|it| it.generation == generation) else { return };
            let mut again = None;
            let most = it.moving.and_then(|moving| bandwidth(&state, moving));
            if most != limited {
                handle.limit_copying(most).await;
                limited = most;
            }
            match (it.moving, it.stage()) {
                (Some(moving), Some(Stage::Comparing)) if compared != Some((moving.op, it.version)) => {
                    if self.compare(&state, it, moving, &handle).await {
                        compared = Some((moving.op, it.version));
                    } else {
                        again = Some(Duration::from_millis(AGAIN_MS));
                    }
                }
                (Some(moving), Some(Stage::Kept { .. })) if kept_until(&state, it).is_some() => {
                    handle.prefer(vec![moving.to]).await;
                    again = going(&state, it).1;
                    if let Some(command) = ending.due(&state, it) {
                        hold::at(hold::Place::VolumeEnd).await;
                        if let pollux_state::Outcome::Refused(why) = self.propose(command).await {
                            tracing::info!(volume = it.name, %why, "the end of a move was refused by the log");
                        }
                    }
                }
                _ => {}
            }
            if !handle.is_in_use() {
                return;
            }
            if !news(&mut applied, again).await {
                return;
            }
        }
    }

    /// Compares the replicas, and tells the log what came of it. `false`: nothing did.
    async fn compare(&self, state: &Arc<ClusterState>, it: &Volume, moving: VolumeMove, handle: &VolumeHandle) -> bool {
        // Whoever compares them now finds what this would; it waits rather than make that one begin anew.
        let _turn = self.0.turns.take(it.id, Comparer::Move).await;
        if self
            .state()
            .volumes
            .get(&it.id)
            .is_none_or(|now| (now.generation, now.version) != (it.generation, it.version))
        {
            return false;
        }
        hold::at(hold::Place::VolumeCompare).await;
        let begun = wall_ms();
        let accepted = state.operations.get(&moving.op).map_or(begun, |operation| operation.started);
        let copied = handle.status().borrow().replicas.iter().find(|it| it.id == moving.to).map_or(0, |it| it.copied);
        let found = tokio::select! {
            found = handle.compare_fully(0..it.size, (it.authority, false), ROUNDS_MAX, |_| ()) => found,
            // Called off, or of a set that is not the one any more.
            () = self.is_another(it.id, (it.generation, it.version)) => None,
        };
        let Some(found) = found else { return false };
        let first = found.differs.values().filter_map(|difference| difference.places.first()).map(|it| it.start).min();
        let comparison = if let Some(first) = first {
            let differs: Vec<String> = found.differs.keys().map(|id| state.place_of_replica(it, *id)).collect();
            Comparison::Different(format!(
                "{} does not hold what {} holds, from byte {first} on",
                differs.join(", "),
                state.place_of_replica(it, it.authority)
            ))
        } else if !found.left_out.is_empty() {
            let bytes = found.left_out_bytes();
            tracing::warn!(
                volume = it.name,
                bytes,
                "replicas did not tell in time what they hold; they are asked again"
            );
            return false;
        } else {
            Comparison::Equal(CopyReport {
                copied_bytes: copied,
                copy_ms: begun.saturating_sub(accepted),
                compare_ms: wall_ms().saturating_sub(begun),
            })
        };
        let (volume, op, generation, version) = (it.id, moving.op, it.generation, it.version);
        let command = Command::Compared { volume, op, generation, version, comparison };
        if let pollux_state::Outcome::Refused(why) = self.propose(command).await {
            tracing::info!(volume = it.name, %why, "what came of a comparison was refused by the log");
        }
        true
    }

    /// Returns when what is known of a volume's set, or who may write to it, is not so any more.
    async fn is_another(&self, id: VolumeId, known: (Generation, u64)) {
        let mut applied = self.0.consensus.watch();
        let now = |state: &ClusterState| state.volumes.get(&id).map(|it| (it.generation, it.version));
        // Without any more decisions the daemon ends.
        let _ = applied.wait_for(|view| now(&view.state) != Some(known)).await;
    }

    /// Holds volumes of which nobody has the right to write for as long as something is to be copied or compared.
    pub(super) async fn care(self) {
        let mut applied = self.0.consensus.watch();
        loop {
            let state = applied.borrow_and_update().state.clone();
            for it in state.volumes.values() {
                let here = state.node_of_replica(it, it.authority) == Some(self.0.me.node);
                let free = state.writer(it).is_none_or(|writer| !state.lives(writer));
                let wanted = here && free && it.unmade().next().is_none() && wants_a_writer(&state, it);
                if wanted && self.cared().insert(it.id) {
                    let (this, id) = (self.clone(), it.id);
                    self.spawn(async move {
                        this.care_for(id).await;
                        // What could not be begun is not tried at the speed of the log.
                        tokio::time::sleep(Duration::from_millis(AGAIN_MS)).await;
                        this.cared().remove(&id);
                    });
                }
            }
            // A window may end without an entry.
            if !news(&mut applied, Some(Duration::from_millis(AGAIN_MS))).await {
                return;
            }
        }
    }

    fn cared(&self) -> MutexGuard<'_, BTreeSet<VolumeId>> {
        self.0.cared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn care_for(&self, id: VolumeId) {
        let mut held = match self.hold(id, Purpose::Copy).await {
            Ok(held) => held,
            // Somebody else has it by now, or its replicas cannot be reached; it is looked at again.
            Err(why) => return tracing::info!(volume = %id, why, "a volume cannot be worked on"),
        };
        let generation = held.generation();
        let mut applied = self.0.consensus.watch();
        let done = async {
            loop {
                let state = applied.borrow_and_update().state.clone();
                let held = state.volumes.get(&id).filter(|it| it.generation == generation);
                if held.is_none_or(|it| !wants_a_writer(&state, it)) || applied.changed().await.is_err() {
                    return;
                }
            }
        };
        let mut nothing = Vec::new();
        let working = async {
            loop {
                std::future::poll_fn(|cx| held.disk().poll(cx, &mut nothing)).await;
            }
        };
        tokio::select! {
            () = done => {}
            () = working => {}
        }
        if let Err(why) = held.release(true).await {
            tracing::debug!(volume = %id, why, "a volume that was worked on was taken over");
        }
    }
}

#[cfg(test)]
mod tests {
    use pollux_state::{operation::Operation, volume::Kept};

    use super::{super::fixture::volume, *};

    const OP: OpId = OpId([7; 16]);
    const OLD: ReplicaId = ReplicaId(1);
    const NEW: ReplicaId = ReplicaId(2);

    /// A volume whose new replica was found equal, and whose old one has left the set.
    fn moved() -> (ClusterState, Volume) {
        let kept = Some(Kept { since: 0, report: CopyReport::default() });
        let moving = Some(VolumeMove { op: OP, from: OLD, to: NEW, kept });
        let it = Volume { version: 5, moving, ..volume(&[OLD.0, NEW.0], &[NEW.0]) };
        let kind = OperationKind::MoveVolume {
            volume: it.id,
            volume_name: it.name.clone(),
            from: OLD,
            to: NEW,
            from_place: "n1:fast".into(),
            to_place: "n2:fast".into(),
            keep_ms: 0,
            bandwidth: Some(1_000_000),
        };
        let operation = Operation { id: OP, kind, cancel: false, index: 1, started: 0, begun: Some(0), ended: None };
        let mut state = ClusterState::default();
        state.operations.insert(OP, operation);
        (state, it)
    }

    #[test]
    fn what_the_log_refused_is_asked_again_when_it_knows_something_else_and_not_before() {
        let ((state, mut it), mut ending) = (moved(), Ending::default());
        let asked = Some(Command::EndVolumeMove { volume: it.id, op: OP, version: 5 });
        assert_eq!(ending.due(&state, &it), asked);
        // Refused; other decisions come and go.
        assert!((0..100).all(|_| ending.due(&state, &it).is_none()));

        // Its new replica cannot be used; then it can.
        it.replicas.entry(NEW).and_modify(|replica| replica.failed = Some("the disk is broken".into()));
        assert_eq!(ending.due(&state, &it), asked);
        it.replicas.entry(NEW).and_modify(|replica| replica.failed = None);
        assert_eq!(ending.due(&state, &it), asked);
        assert_eq!(ending.due(&state, &it), None);
    }

    #[test]
    fn a_volume_is_copied_as_fast_as_its_move_may() {
        let (state, it) = moved();
        assert_eq!(it.moving.and_then(|moving| bandwidth(&state, moving)), Some(1_000_000));
    }

    #[test]
    fn while_the_old_replica_is_in_the_set_the_end_is_not_asked_for() {
        let (state, mut it) = moved();
        it.set.insert(OLD);
        assert_eq!(Ending::default().due(&state, &it), None);
    }
}
