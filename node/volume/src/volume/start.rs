//! How a volume comes into use: what has to be known of its replicas first.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt as _},
};
use pollux_mirror::{Event, Grains, Limits, Marks, Mirror, Report, Unfit, reunite, take_over};
use pollux_wire::id::{Generation, ReplicaId};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::WatchStream;

use super::{
    IDLE_TICK_MS, TICK_MS, Volume,
    copies::Copying,
    handle::{Handover, VolumeHandle, VolumeStatus, WISHES_MAX},
    peers::Peers,
};
use crate::side::Side;

/// A replica of the set that does not answer is waited for so long once another has answered: it would leave the set by being left
/// out.
const OTHERS: Duration = Duration::from_secs(2);
/// And so long if none has.
const ANY: Duration = Duration::from_secs(10);

/// The set, as the log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Rises with each entry about it.
    pub version: u64,
    /// Who is in it.
    pub members: BTreeSet<ReplicaId>,
    /// All replicas of the volume that are made.
    pub replicas: BTreeSet<ReplicaId>,
    /// Those of them that are to go, once the set can do without.
    pub going: BTreeSet<ReplicaId>,
}

/// A change of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetChange {
    /// Out.
    Leave {
        /// Who.
        replica: ReplicaId,
        /// The version that this compares.
        version: u64,
        /// Why, for people.
        why: String,
    },
    /// In.
    Join {
        /// Who.
        replica: ReplicaId,
        /// The version that this compares.
        version: u64,
    },
}

/// A replica that was reached, in a session under the generation of whoever asked.
pub struct Reached {
    /// The session.
    pub side: Box<dyn Side>,
    /// What the log beside it says.
    pub report: Marks,
    /// The boot of its host.
    pub boot: String,
}

/// What a volume needs of the node it is used on: ways to replicas, under one generation, and to the log.
pub trait Ways: Send + Sync + 'static {
    /// Opens a session with a replica; the error says why not, for people. Ends within a time of its own.
    fn open(&self, replica: ReplicaId) -> BoxFuture<'static, Result<Reached, String>>;

    /// Proposes a change of the set until the log has answered. What came of it is seen in the set.
    fn change(&self, change: SetChange) -> BoxFuture<'static, ()>;

    /// Waits until some of so many bytes may be copied to replicas elsewhere, and says how many.
    fn may_send(&self, bytes: u64) -> BoxFuture<'static, u64>;
}

/// A volume that is to be used.
pub struct Plan {
    /// Its name, for logs.
    pub name: String,
    /// Its size, in bytes.
    pub size: u64,
    /// By which right it is used.
    pub generation: Generation,
    /// The guest lives, and this is what who had its volume before says; `None`: it is being started.
    pub handover: Option<Handover>,
    /// The one whose content counts, if it can be reached.
    pub authority: ReplicaId,
    /// Whom to read from, the nearest first.
    pub prefer: Vec<ReplicaId>,
    /// What the mirror may take.
    pub limits: Limits,
}

/// Why a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nobody has what the guest wrote.
    #[error("no replica of volume {volume} that has everything can be reached: {}", listed(.why))]
    NoReplica {
        /// Which.
        volume: String,
        /// Of each that has: why.
        why: Vec<(ReplicaId, String)>,
    },
    /// The guest lives, and what it had not flushed is gone, or may be.
    #[error("volume {volume}: {source}")]
    Unfit {
        /// Which.
        volume: String,
        /// What of it.
        source: Unfit,
    },
}

fn listed(why: &[(ReplicaId, String)]) -> String {
    let one = |(replica, why): &(ReplicaId, String)| format!("{replica}: {why}");
    why.iter().map(one).collect::<Vec<_>>().join("; ")
}

impl Volume {
    /// Opens sessions with the replicas that can be reached, learns what each lacks, and begins.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        plan: Plan,
        ways: Arc<dyn Ways>,
        mut set: watch::Receiver<Set>,
    ) -> Result<(Self, VolumeHandle), StartError> {
        let Set { version, members, replicas, going } = set.borrow_and_update().clone();
        let (mut reached, failed) = reach(&replicas, &*ways, &members).await;
        let with_everything: BTreeSet<ReplicaId> =
            members.iter().copied().filter(|member| reached.contains_key(member)).collect();
        // Any of the set holds every acknowledged write; the one the log names is taken so that two starts take the same.
        let authority = if with_everything.contains(&plan.authority) {
            plan.authority
        } else {
            let missing = |member: &ReplicaId| {
                (*member, failed.get(member).cloned().unwrap_or_else(|| "no answer in time".to_owned()))
            };
            *with_everything.first().ok_or_else(|| StartError::NoReplica {
                volume: plan.name.clone(),
                why: members.iter().map(missing).collect(),
            })?
        };
        let reports: BTreeMap<ReplicaId, Report> =
            reached.iter().map(|(id, reached)| (*id, reached.report.clone())).collect();
        let lacks = lacks_at_first(&plan, &replicas, (version, &members), authority, &reached, &reports)
            .map_err(|source| StartError::Unfit { volume: plan.name.clone(), source })?;
        let mirror = Mirror::new(
            plan.size,
            plan.limits,
            (version, members.clone()),
            lacks.lacks.clone(),
            &lacks.active,
            plan.prefer.clone(),
        );
        let (send, wishes) = mpsc::channel(WISHES_MAX);
        let (status, seen) = watch::channel(VolumeStatus::default());
        let mut volume = Self {
            name: plan.name,
            size: plan.size,
            generation: plan.generation,
            mirror,
            peers: Peers::new(ways, &replicas),
            set: WatchStream::from_changes(set),
            wishes,
            status,
            copying: Copying::new(),
            comparing: None,
            digest: None,
            open: BTreeMap::new(),
            flushes: BTreeMap::new(),
            last_request: 0,
            reads: BTreeMap::new(),
            read: BTreeMap::new(),
            heard: Vec::new(),
            todo: VecDeque::new(),
            done: Vec::new(),
            began: Instant::now(),
            tick: Box::pin(sleep_until(Instant::now() + Duration::from_millis(TICK_MS.min(IDLE_TICK_MS)))),
            ticked: 0,
            latest: None,
            released: BTreeSet::new(),
            handing_over: None,
            taking_back: None,
            settled: None,
            finishing: None,
            over: None,
            trouble: None,
        };
        for (id, boot) in plan.handover.into_iter().flat_map(|handover| handover.boots) {
            if !reached.contains_key(&id) && replicas.contains(&id) {
                volume.peers.booted(id, boot);
            }
        }
        for (id, why) in &failed {
            volume.peers.note(*id, why);
        }
        for id in &replicas {
            let whole = lacks.lacks.get(id).is_some_and(Grains::is_empty);
            match reached.remove(id) {
                Some(Reached { side, boot, .. }) if members.contains(id) && whole => {
                    volume.peers.attach(*id, side, boot);
                }
                // It leaves the set, or is outside: it gets a session when it catches up.
                Some(_) => {}
                None if members.contains(id) => {
                    let why = failed.get(id).cloned().unwrap_or_else(|| "it cannot be reached".to_owned());
                    volume.todo.push_back(Event::Lost { replica: *id, why });
                }
                None => {}
            }
        }
        volume.todo.extend(lacks.gone.iter().map(|gone| Event::Removed { replica: *gone }));
        volume.todo.extend(going.into_iter().map(|replica| Event::Release { replica }));
        volume.publish();
        Ok((volume, VolumeHandle { wishes: send, status: seen }))
    }
}

/// What each replica lacks, as far as is known. Of one outside of the set that cannot be asked this leaves out what only its own log
/// says; it is asked before anything is copied there.
fn lacks_at_first(
    plan: &Plan,
    replicas: &BTreeSet<ReplicaId>,
    (version, members): (u64, &BTreeSet<ReplicaId>),
    authority: ReplicaId,
    reached: &BTreeMap<ReplicaId, Reached>,
    reports: &BTreeMap<ReplicaId, Report>,
) -> Result<pollux_mirror::Plan, Unfit> {
    let mut all = reports.clone();
    for outside in replicas.difference(members) {
        all.entry(*outside).or_default();
    }
    let Some(handover) = &plan.handover else {
        return Ok(reunite(plan.size, replicas, members, authority, &all));
    };
    let forgot = |(id, reached): (&ReplicaId, &Reached)| handover.boots.get(id) != Some(&reached.boot);
    let forgot = reached.iter().filter(|it| forgot(*it)).map(|(id, _)| *id);
    take_over(
        (plan.size, plan.generation),
        replicas,
        (version, members),
        authority,
        handover.seal.as_ref(),
        &forgot.collect(),
        &all,
    )
}

/// Sessions with all that answer in time, and why the others do not.
async fn reach(
    replicas: &BTreeSet<ReplicaId>,
    ways: &dyn Ways,
    members: &BTreeSet<ReplicaId>,
) -> (BTreeMap<ReplicaId, Reached>, BTreeMap<ReplicaId, String>) {
    let open = |id: &ReplicaId| {
        let (id, opening) = (*id, ways.open(*id));
        async move { (id, opening.await) }
    };
    let mut opening: FuturesUnordered<_> = replicas.iter().map(open).collect();
    let (mut reached, mut failed) = (BTreeMap::new(), BTreeMap::new());
    let mut until = Instant::now() + ANY;
    loop {
        let next = tokio::time::timeout_at(until, opening.next()).await;
        let Ok(Some((id, opened))) = next else { return (reached, failed) };
        match opened {
            Ok(it) => {
                if members.contains(&id) {
                    until = until.min(Instant::now() + OTHERS);
                }
                reached.insert(id, it);
            }
            Err(why) => drop(failed.insert(id, why)),
        }
        // Of those outside of the set nobody has to wait.
        if members.iter().all(|member| reached.contains_key(member) || failed.contains_key(member)) {
            return (reached, failed);
        }
    }
}
