//! One simulated node: what survives its crashes ([`Place`]), and one life of its daemon ([`live`]).
//!
//! The order of a start is the daemon's own: link, consensus, this life committed after a linearizable read, another such
//! read, then the VMs.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pollux::vm::{Clock, Marks, Minter, Shared, Vms};
use pollux_link::{Binding, Endpoint, Identity, simulation};
use pollux_raft::{Config, Consensus, FoundError, MemoryDisk, ProposeError, Retention, Store};
use pollux_state::{
    Applied, Command, Outcome, Proposal, Refusal,
    id::{Incarnation, NodeId, Owner},
    node::Facts,
};
use pollux_vm::Limits;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::task::TaskTracker;

use super::{machine::Machines, recorder::Recorder, service::Reception, socket::Socket};
use crate::Rng;

/// Where every node listens, on its own address.
pub(super) const PORT: u16 = 7_700;
/// One attempt to propose or to read.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Pause between attempts.
const AGAIN: Duration = Duration::from_millis(200);
/// Users' proposals that may wait for a node.
const ASKS_MAX: usize = 64;
/// How long the cores wait for each other: shorter than on real hosts, so that more happens in a run. Milliseconds.
const LIMITS: Limits =
    Limits { connect_ms: 5_000, sure_ms: 2_500, decide_ms: 2_000, restart_ms: 200, restart_ms_max: 2_000 };

/// What came of a user's proposal.
pub(super) type Answer = (Proposal, Result<Applied, ProposeError>);

/// What outlives a node's daemon: its identity, its disk, its marks, and the way in for the simulation.
pub(super) struct Place {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) address: SocketAddr,
    pub(super) identity: Identity,
    disk: Mutex<Arc<MemoryDisk>>,
    pub(super) recorder: Arc<Recorder>,
    /// The cluster's first entry, on the node that founds it.
    pub(super) founding: Option<Proposal>,
    pub(super) retention: Retention,
    pub(super) marks: PathBuf,
    pub(super) seed: u64,
    /// How often the daemon was started.
    lives: AtomicU64,
    /// How often the host was.
    pub(super) boots: AtomicU64,
    daemon: Mutex<Option<Daemon>>,
    answers: Mutex<Vec<Answer>>,
}

/// A running daemon, as the simulation sees it.
#[derive(Clone)]
pub(super) struct Daemon {
    pub(super) consensus: Consensus,
    /// Where users ask.
    desk: mpsc::Sender<Proposal>,
    /// Its committed life, and its VMs, once it has them.
    pub(super) life: Option<Owner>,
    pub(super) vms: Option<Vms>,
}

/// What a place is made from.
pub(super) struct Ground {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) address: SocketAddr,
    pub(super) identity: Identity,
    pub(super) recorder: Arc<Recorder>,
    pub(super) founding: Option<Proposal>,
    pub(super) retention: Retention,
    pub(super) marks: PathBuf,
    pub(super) seed: u64,
}

impl Place {
    pub(super) fn new(ground: Ground) -> Self {
        let Ground { id, name, address, identity, recorder, founding, retention, marks, seed } = ground;
        Self {
            id,
            name,
            address,
            identity,
            disk: Mutex::default(),
            recorder,
            founding,
            retention,
            marks,
            seed,
            lives: AtomicU64::new(0),
            boots: AtomicU64::new(1),
            daemon: Mutex::default(),
            answers: Mutex::default(),
        }
    }

    pub(super) fn disk(&self) -> Arc<MemoryDisk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts an empty disk in.
    pub(super) fn new_disk(&self) {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }

    pub(super) fn daemon(&self) -> Option<Daemon> {
        self.slot().clone()
    }

    /// Lets go of the daemon, as a crash must: only its own tasks may hold it then, and they end.
    pub(super) fn forget(&self) {
        *self.slot() = None;
    }

    /// Hands a user's proposal to the daemon; `false`: there is none, or it is busy.
    pub(super) fn ask(&self, proposal: Proposal) -> bool {
        self.slot().as_ref().is_some_and(|daemon| daemon.desk.try_send(proposal).is_ok())
    }

    /// What came of proposals since the last look.
    pub(super) fn answers(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn answer(&self, answer: Answer) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
    }

    fn slot(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One life of the daemon. Ends with the host's runtime, or with an error, which fails the run.
pub(super) async fn live(place: Arc<Place>) -> turmoil::Result {
    let life = place.lives.fetch_add(1, Ordering::Relaxed);
    // Of every life its own numbers, all from the node's seed.
    let mut dice = Rng::new(place.seed ^ (life << 32));
    let tasks = TaskTracker::new();

    let socket = Arc::new(Socket::bind(PORT).await?);
    let mut binding = Binding::new(place.address, place.identity.clone());
    binding.socket = Some(simulation::Socket::new(socket, dice.bits()));
    let endpoint = Endpoint::bind(binding, Arc::new(Reception(place.clone())))?;
    let mut config = Config::new(place.id, Store::Memory(place.disk()));
    config.seed = Some(dice.bits());
    config.retention = place.retention;
    let consensus = Consensus::start(config, endpoint.clone()).await?;

    let (desk, mut asked) = mpsc::channel::<Proposal>(ASKS_MAX);
    *place.slot() = Some(Daemon { consensus: consensus.clone(), desk, life: None, vms: None });
    let (recorder, mut views) = (place.recorder.clone(), consensus.watch());
    let id = place.id;
    recorder.begin_life(id);
    tasks.spawn(async move {
        loop {
            let view = views.borrow_and_update().clone();
            recorder.applied(id, &view);
            if views.changed().await.is_err() {
                return;
            }
        }
    });

    let minter = Minter::seeded(dice.bits());
    if let Some(founding) = &place.founding {
        found(&consensus, founding).await?;
    }
    let incarnation = begin_life(&place, &consensus, &minter).await?;
    consensus.announce_incarnation(incarnation);
    again(|| consensus.linearizable(ATTEMPT)).await;
    let me = Owner { node: id, incarnation };
    let boot = format!("boot-{}", place.boots.load(Ordering::Relaxed));
    let vms = Vms::start(Shared {
        me,
        host: Arc::new(Machines::new(me, place.recorder.clone(), tasks.clone(), dice.bits())),
        consensus: consensus.clone(),
        endpoint,
        bulk: Arc::default(),
        marks: Marks::open(place.marks.clone(), boot)?,
        limits: LIMITS,
        tasks: tasks.clone(),
        clock: Clock::start(),
        changes: watch::Sender::new(0),
        minter,
    });
    if let Some(daemon) = &mut *place.slot() {
        daemon.life = Some(me);
        daemon.vms = Some(vms);
    }
    place.recorder.note(format!("{} lives as {me}", place.name));

    while let Some(proposal) = asked.recv().await {
        let (place, consensus) = (place.clone(), consensus.clone());
        tasks.spawn(async move {
            let result = consensus.propose(proposal.clone(), ATTEMPT).await;
            place.answer((proposal, result));
        });
    }
    Ok(())
}

async fn found(consensus: &Consensus, founding: &Proposal) -> turmoil::Result {
    while consensus.watch().borrow().state.cluster.is_none() {
        match consensus.found(founding.clone(), ATTEMPT).await {
            Ok(Applied { outcome: Outcome::Refused(why), .. }) => return Err(why.to_string().into()),
            Ok(_) => {}
            Err(FoundError::Propose(_)) => sleep(AGAIN).await,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Has this life committed, as the one after the life that a linearizable read shows.
async fn begin_life(place: &Place, consensus: &Consensus, minter: &Minter) -> turmoil::Result<Incarnation> {
    loop {
        again(|| consensus.linearizable(ATTEMPT)).await;
        let known = consensus.watch().borrow().state.nodes.get(&place.id).map(|node| node.incarnation);
        let after = known.ok_or_else(|| format!("{} is not in the cluster", place.id))?;
        let command = Command::StartIncarnation { after, address: place.address, facts: facts() };
        let proposal = Proposal { id: minter.mint(), by: place.id, at: 0, command };
        let outcome = again(|| consensus.propose(proposal.clone(), ATTEMPT)).await.outcome;
        if let Outcome::Incarnation(incarnation) = outcome {
            return Ok(incarnation);
        }
        // A late word of an earlier life came between the read and this one: again. Anything else ends the run.
        if !matches!(outcome, Outcome::Refused(Refusal::AnotherLife { .. })) {
            return Err(format!("{} may not live: {outcome:?}", place.id).into());
        }
    }
}

async fn again<T, E, F: Future<Output = Result<T, E>>>(attempt: impl Fn() -> F) -> T {
    loop {
        if let Ok(done) = attempt().await {
            return done;
        }
        sleep(AGAIN).await;
    }
}

fn facts() -> Facts {
    Facts {
        version: "simulated".into(),
        kernel: "simulated".into(),
        qemu: "simulated".into(),
        accelerator: "tcg".into(),
        memory_mib: 4_096,
        processors: 2,
        ..Facts::default()
    }
}
