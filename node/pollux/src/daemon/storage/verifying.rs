//! Comparisons of replicas that somebody asked for: each a task of the daemon that writes to the volume, which goes on whether or
//! not somebody watches, and ends with that daemon. Any node can be asked to begin one and how far it is; it asks that one.
//!
//! ```text
//!   pollux volume verify --> the node that is asked --Verify(id)----------> the node that writes, or the asked one --> Volumes::verify
//!                            GET verifications/NODE/ID --Verification(id)-> what it has told so far
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use pollux_api::{ApiError, ByteRange, VerificationResult, VerificationView, VerifiedReplica};
use pollux_state::{
    ClusterState,
    id::{OpId, ReplicaId, VolumeId},
    volume::Volume,
};
use pollux_volume::{Comparison, Difference};
use tokio::sync::watch;

use super::{
    super::{
        backend::{Api, node_named},
        forward,
        run::Daemon,
    },
    volume_named,
};
use crate::{
    vm::wall_ms,
    volumes::{Unverified, Verified, VerifyStep},
};

/// Comparisons by one daemon at a time.
const RUNNING_MAX: usize = 4;
/// Those that are remembered, ended ones included.
const KEPT_MAX: usize = 64;

/// What this daemon compares because somebody asked for it.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Verifications(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// In the order in which they began.
    order: Vec<OpId>,
    told: BTreeMap<OpId, watch::Receiver<VerificationView>>,
}

impl Verifications {
    fn find(&self, op: OpId) -> Option<VerificationView> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.told.get(&op).map(|told| told.borrow().clone())
    }

    /// One more, unless there are too many.
    fn keep(&self, op: OpId, view: VerificationView) -> Result<watch::Sender<VerificationView>, ApiError> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |told: &watch::Receiver<VerificationView>| told.borrow().ended.is_none();
        if kept.told.values().filter(|told| goes_on(told)).count() >= RUNNING_MAX {
            let why = format!("{} is comparing the replicas of {RUNNING_MAX} volumes already", view.node);
            return Err(ApiError::conflict(why).todo("wait until one of them is done"));
        }
        let (teller, told) = watch::channel(view);
        kept.order.push(op);
        kept.told.insert(op, told);
        while kept.order.len() > KEPT_MAX {
            let old = kept.order.iter().position(|op| kept.told.get(op).is_none_or(|told| !goes_on(told)));
            let Some(old) = old else { break };
            let old = kept.order.remove(old);
            kept.told.remove(&old);
        }
        Ok(teller)
    }
}

impl Api {
    /// Has whoever writes to a volume, or else this node, compare its replicas.
    pub(super) async fn verify(&self, name: &str, repair: bool) -> Result<VerificationView, ApiError> {
        let state = self.state().await;
        let it = volume_named(&state, name)?;
        if let Some(hold) = it.holder.filter(|hold| state.lives(hold.owner) && !hold.purpose.yields()) {
            let node = state.name_of(hold.owner.node).unwrap_or_default();
            let why = format!("volume {name} is in use: {node} is {}", hold.purpose.doing());
            return Err(ApiError::conflict(why).todo("wait until that is over"));
        }
        let writer = state.writer(it).filter(|writer| state.lives(*writer));
        let node = writer.map_or_else(|| self.0.identity.node(), |writer| writer.node);
        forward::verify(&self.0, &state, node, (it.id, repair)).await
    }

    /// How far a comparison is that `node` does.
    pub(super) async fn look_at_verification(&self, node: &str, id: &str) -> Result<VerificationView, ApiError> {
        let state = self.applied();
        let by = node_named(&state, node)?.id;
        let unknown = || {
            ApiError::not_found(format!("the daemon of {node} knows no comparison {id}")).todo(
                "it may have been started again since, which ended what it was doing; ask for the comparison again",
            )
        };
        let op = id.parse::<OpId>().map_err(|_| unknown())?;
        match forward::verification(&self.0, &state, by, op).await {
            Some(Some(view)) => Ok(view),
            Some(None) => Err(unknown()),
            None => Err(ApiError::unavailable(format!("the daemon of {node} does not answer"))
                .todo("`pollux node list` tells whether it is alive")),
        }
    }
}

/// What is known of one of this node's.
pub(in crate::daemon) fn look_here(daemon: &Daemon, op: OpId) -> Option<VerificationView> {
    daemon.verifications.find(op)
}

/// Begins one here. Asked a second time it answers with the same.
pub(in crate::daemon) fn begin_here(
    daemon: &Daemon,
    op: OpId,
    (id, repair): (VolumeId, bool),
) -> Result<VerificationView, ApiError> {
    if let Some(begun) = daemon.verifications.find(op) {
        return Ok(begun);
    }
    let volumes = daemon.volumes().ok_or_else(|| {
        ApiError::unavailable("the daemon has yet to look after its volumes").todo("ask again in a moment")
    })?;
    volumes.may_verify(id).map_err(|why| refused(&why))?;
    let state = daemon.consensus.watch().borrow().state.clone();
    let it = state.volumes.get(&id).ok_or_else(|| refused(&Unverified::Gone(id)))?;
    let teller = daemon.verifications.keep(op, begun(&state, it, (op, daemon.identity.name(), repair)))?;
    let view = teller.borrow().clone();
    let work = volumes.clone();
    volumes.work(async move {
        let verified = work.verify(id, repair, |step, now| teller.send_modify(|view| tell(view, step, now))).await;
        teller.send_modify(|view| {
            match verified {
                Ok(verified) => conclude(view, &verified),
                Err(why) => view.error = Some(refused(&why)),
            }
            "ended".clone_into(&mut view.phase);
            view.ended = Some(wall_ms());
        });
        let view = teller.borrow();
        let (volume, result, error) = (&view.volume, view.result, view.error.as_ref().map(|error| &error.message));
        let differs: Vec<&str> = view.replicas.iter().filter(|it| it.differs_bytes > 0).map(|it| &*it.place).collect();
        tracing::info!(volume, ?result, ?differs, left_out = view.left_out_bytes, error, "replicas were compared");
    });
    Ok(view)
}

fn begun(state: &ClusterState, it: &Volume, (op, node, repair): (OpId, &str, bool)) -> VerificationView {
    let replica = |id: &ReplicaId| VerifiedReplica {
        id: id.0,
        place: state.place_of_replica(it, *id),
        authority: it.authority == *id,
        compared: it.set.contains(id),
        differs_bytes: 0,
        repaired_bytes: 0,
        places: Vec::new(),
    };
    VerificationView {
        id: op.to_string(),
        node: node.to_owned(),
        volume: it.name.clone(),
        repair,
        phase: "preparing".to_owned(),
        compared_bytes: 0,
        total_bytes: it.size,
        left_out_bytes: 0,
        replicas: it.replicas.keys().map(replica).collect(),
        result: None,
        started: wall_ms(),
        ended: None,
        error: None,
    }
}

/// How far it is.
fn tell(view: &mut VerificationView, step: VerifyStep, now: &Comparison) {
    match step {
        VerifyStep::Comparing => "comparing",
        VerifyStep::ComparingAgain => "comparing-again",
    }
    .clone_into(&mut view.phase);
    view.compared_bytes = now.reached;
    view.left_out_bytes = now.left_out_bytes();
    // What is found while it is compared again is told at the end.
    if step == VerifyStep::Comparing {
        for replica in &mut view.replicas {
            let found = now.differs.get(&ReplicaId(replica.id));
            (replica.differs_bytes, replica.places) = found.map(written).unwrap_or_default();
        }
    }
}

fn written(difference: &Difference) -> (u64, Vec<ByteRange>) {
    let places = difference.places.iter().map(|range| ByteRange { start: range.start, end: range.end });
    (difference.bytes, places.collect())
}

/// What came of it.
fn conclude(view: &mut VerificationView, verified: &Verified) {
    let Verified { authority, compared, found, again } = verified;
    let last = again.as_ref().unwrap_or(found);
    let compared: BTreeSet<u64> = compared.iter().map(|id| id.0).collect();
    for replica in &mut view.replicas {
        let id = ReplicaId(replica.id);
        replica.authority = id == *authority;
        replica.compared = compared.contains(&replica.id);
        let (first, still) = (found.differs.get(&id), last.differs.get(&id));
        let (first_bytes, first_places) = first.map(written).unwrap_or_default();
        let (still_bytes, still_places) = still.map(written).unwrap_or_default();
        replica.differs_bytes = still_bytes;
        replica.repaired_bytes = if again.is_some() { first_bytes.saturating_sub(still_bytes) } else { 0 };
        replica.places = if still_places.is_empty() { first_places } else { still_places };
    }
    view.compared_bytes = last.reached.min(view.total_bytes);
    view.left_out_bytes = last.left_out_bytes();
    view.result = Some(if !last.differs.is_empty() {
        VerificationResult::Different
    } else if view.left_out_bytes > 0 {
        VerificationResult::Incomplete
    } else {
        VerificationResult::Equal
    });
}

fn refused(why: &Unverified) -> ApiError {
    let (error, todo) = match why {
        Unverified::Gone(_) => return ApiError::not_found(why.to_string()).todo("`pollux volume list` shows all"),
        Unverified::Alone { volume, .. } => (
            why,
            format!(
                "`pollux volume show {volume}` tells why there is one; `pollux volume replica add {volume} NODE:POOL`"
            ),
        ),
        Unverified::Elsewhere { .. } | Unverified::Interrupted { .. } => (why, "ask again".to_owned()),
        Unverified::Moving { volume } => {
            (why, format!("wait until it is over: `pollux volume show {volume}`, then ask again"))
        }
        Unverified::Already { volume } => {
            (why, format!("wait until that is over; `pollux volume show {volume}` tells what came of it"))
        }
        Unverified::NotHeld(_) => (why, String::new()),
    };
    ApiError::conflict(error.to_string()).todo(todo)
}

#[cfg(test)]
mod tests {
    use super::*;

    const R1: ReplicaId = ReplicaId(1);
    const R2: ReplicaId = ReplicaId(2);

    fn view(repair: bool) -> VerificationView {
        let replica = |id| VerifiedReplica {
            id,
            place: format!("n{id}:fast"),
            authority: id == 1,
            compared: true,
            differs_bytes: 0,
            repaired_bytes: 0,
            places: Vec::new(),
        };
        VerificationView {
            id: OpId([7; 16]).to_string(),
            node: "n1".into(),
            volume: "data".into(),
            repair,
            phase: "preparing".into(),
            compared_bytes: 0,
            total_bytes: 1 << 20,
            left_out_bytes: 0,
            replicas: vec![replica(1), replica(2), replica(3)],
            result: None,
            started: 0,
            ended: None,
            error: None,
        }
    }

    fn differs() -> Comparison {
        let place = 65_536..131_072;
        let difference = Difference { bytes: 65_536, places: vec![place] };
        Comparison {
            reached: 1 << 20,
            over: true,
            differs: BTreeMap::from([(R2, difference)]),
            ..Comparison::default()
        }
    }

    fn equal() -> Comparison {
        Comparison { reached: 1 << 20, over: true, ..Comparison::default() }
    }

    fn concluded(found: Comparison, again: Option<Comparison>) -> VerificationView {
        let mut view = view(again.is_some());
        tell(&mut view, VerifyStep::Comparing, &found);
        let verified = Verified { authority: R1, compared: [R1, R2].into(), found, again };
        conclude(&mut view, &verified);
        view
    }

    #[test]
    fn what_differs_is_told_with_where_and_what_was_repaired_is_told_as_that() {
        let view = concluded(equal(), None);
        assert_eq!(view.result, Some(VerificationResult::Equal));
        assert_eq!(view.replicas.iter().map(|it| it.compared).collect::<Vec<_>>(), [true, true, false]);

        let view = concluded(differs(), None);
        let place = ByteRange { start: 65_536, end: 131_072 };
        assert_eq!(view.result, Some(VerificationResult::Different));
        assert_eq!((view.replicas[1].differs_bytes, view.replicas[1].repaired_bytes), (65_536, 0));
        assert_eq!(view.replicas[1].places, [place]);

        let view = concluded(differs(), Some(equal()));
        assert_eq!(view.result, Some(VerificationResult::Equal));
        assert_eq!((view.replicas[1].differs_bytes, view.replicas[1].repaired_bytes), (0, 65_536));
        assert_eq!(view.replicas[1].places, [place], "where it was");

        let view = concluded(differs(), Some(differs()));
        assert_eq!(view.result, Some(VerificationResult::Different), "it was not repaired, or differs again");
        assert_eq!((view.replicas[1].differs_bytes, view.replicas[1].repaired_bytes), (65_536, 0));
    }

    #[test]
    fn what_was_left_out_is_no_equality() {
        let left_out = |found: Comparison| Comparison { left_out: vec![0..4_096, 8_192..12_288], ..found };
        let view = concluded(left_out(equal()), None);
        assert_eq!((view.result, view.left_out_bytes), (Some(VerificationResult::Incomplete), 8_192));
        assert_eq!(concluded(left_out(differs()), None).result, Some(VerificationResult::Different));
    }

    #[test]
    fn only_so_many_are_done_at_a_time_and_remembered() {
        let kept = Verifications::default();
        let op = |number: u8| OpId([number; 16]);
        let running: Vec<_> = (0..4).map(|number| kept.keep(op(number), view(false)).unwrap()).collect();
        assert!(kept.keep(op(9), view(false)).is_err());
        running[0].send_modify(|view| view.ended = Some(1));
        for number in 10..90 {
            let teller = kept.keep(op(number), view(false)).unwrap();
            teller.send_modify(|view| view.ended = Some(1));
        }
        assert!(kept.find(op(1)).is_some(), "it goes on");
        assert!(kept.find(op(0)).is_none() && kept.find(op(89)).is_some());
    }
}
