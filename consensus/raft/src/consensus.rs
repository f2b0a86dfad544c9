//! The handle to a running consensus layer, its start and its end.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use openraft::storage::RaftLogStorage as _;
use openraft::{
    SnapshotPolicy,
    error::{InitializeError, RaftError},
    metrics::RaftServerMetrics,
};
use pollux_state::{
    Applied, Command, Proposal, Rules,
    id::{Incarnation, NodeId},
};
use pollux_wire::limits;
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    counts::{Counting, Counts},
    elections,
    knowledge::{self, Word},
    leader, liveness,
    liveness::Ear,
    members,
    message::Network,
    peers::Peers,
    propose::{InFlight, ProposeError},
    runtime::with_seed,
    store::{
        self, Opened,
        disk::{Store, StoreError, StoreId},
        log::LogStore,
        machine::View,
        writer::Writer,
    },
    timing::{PURGE_BATCH, Retention, SNAPSHOT_PIECE_TIMEOUT, Timing},
    types::{Member, Raft, Vote},
};

/// How a node takes part.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which node this is. The same for ever with the same store.
    pub node: NodeId,
    /// Where it keeps what it must not forget.
    pub store: Store,
    /// How fast leaders are missed and replaced.
    pub timing: Timing,
    /// When the log is cut.
    pub retention: Retention,
    /// Which protections apply; anything but the default only in negative controls.
    pub rules: Rules,
    /// Fixes the node's randomness, for simulations.
    pub seed: Option<u64>,
}

impl Config {
    /// The usual configuration.
    #[must_use]
    pub fn new(node: NodeId, store: Store) -> Self {
        Self {
            node,
            store,
            timing: Timing::default(),
            retention: Retention::default(),
            rules: Rules::default(),
            seed: None,
        }
    }
}

/// The consensus layer did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The times do not fit together.
    #[error(
        "the consensus timing is not usable: {0}; the heartbeat must be shorter than the shortest election timeout, that shorter than the longest"
    )]
    Timing(String),
    /// The store could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the store holds could not be loaded.
    #[error("the log could not be loaded: {0}")]
    Load(String),
}

/// The cluster was not founded.
#[derive(Debug, thiserror::Error)]
pub enum FoundError {
    /// The proposal is not a [`Command::Found`].
    #[error("a cluster is founded by a `Found`, not by another proposal")]
    NotFound,
    /// The consensus layer has stopped.
    #[error("the consensus layer has stopped: {0}")]
    Stopped(String),
    /// The first entries did not get into the log.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// A running consensus layer. Cheap to clone; runs until [`shutdown`](Self::shutdown).
#[derive(Clone)]
pub struct Consensus(Arc<Inner>);

struct Inner {
    node: NodeId,
    store: StoreId,
    timing: Timing,
    raft: Raft,
    log: LogStore,
    peers: Peers,
    view: watch::Receiver<View>,
    in_flight: Arc<InFlight>,
    /// Held while a node is being removed: what that costs is judged one by one.
    removing: Arc<tokio::sync::Mutex<()>>,
    /// Where an earlier life of this node led, and how far its log went: what it had committed is not known for certain.
    led: Option<(Vote, u64)>,
    incarnation: watch::Sender<Option<Incarnation>>,
    leader: watch::Sender<Option<NodeId>>,
    words: watch::Sender<Word>,
    counting: Mutex<Counting>,
    /// When it was last in touch with whoever leads.
    touch: Mutex<Option<Instant>>,
    ear: Ear,
    writer: Writer,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The vote by which this node leads, if an earlier life of it did, and the last entry of its log.
async fn led_before(log: &mut LogStore, node: NodeId) -> Result<Option<(Vote, u64)>, crate::types::StorageError> {
    let vote = log.read_vote().await?.filter(|vote| vote.is_committed() && vote.leader_id.node_id == node.0);
    let last = log.get_log_state().await?.last_log_id;
    Ok(vote.zip(last.map(|last| last.index)))
}

impl Consensus {
    pub(crate) async fn start_on(config: Config, network: Arc<dyn Network>) -> Result<Self, StartError> {
        let raft_config = Arc::new(openraft_config(&config)?);
        let in_flight = Arc::new(InFlight::default());
        let Opened { log, machine, writer, view, id, .. } =
            store::open(&config.store, config.rules.clone(), Arc::clone(&in_flight))?;
        let led = match led_before(&mut log.clone(), config.node).await {
            Ok(led) => led,
            Err(error) => {
                let _ = writer.close().await;
                return Err(StartError::Load(error.to_string()));
            }
        };
        let peers = Peers::new(network, view.clone(), config.timing.heartbeat);
        let starting = Raft::new(config.node.0, raft_config, peers.clone(), log.clone(), machine);
        let raft = match with_seed(config.seed, starting).await {
            Ok(raft) => raft,
            Err(fatal) => {
                // The file is wanted by whoever tries next.
                let _ = writer.close().await;
                return Err(StartError::Load(fatal.to_string()));
            }
        };
        let consensus = Self(Arc::new(Inner {
            node: config.node,
            store: id,
            timing: config.timing,
            raft,
            log,
            peers,
            view,
            in_flight,
            removing: Arc::default(),
            led,
            incarnation: watch::Sender::new(None),
            leader: watch::Sender::new(None),
            words: watch::Sender::default(),
            counting: Mutex::default(),
            touch: Mutex::default(),
            ear: Ear::new(),
            writer,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }));
        consensus.start_tasks();
        Ok(consensus)
    }

    fn start_tasks(&self) {
        let tasks = &self.0.tasks;
        tasks.spawn(knowledge::run(self.clone()));
        tasks.spawn(elections::run(self.clone()));
        tasks.spawn(members::run(self.clone()));
        tasks.spawn(liveness::run(self.clone()));
        tasks.spawn(leader::run(self.clone()));
        tasks.close();
    }

    /// Founds the cluster: this node alone, with `proposal` as its first. May be repeated with the same proposal.
    ///
    /// # Errors
    /// [`FoundError`]. A cluster that was founded otherwise answers with the state's refusal instead.
    pub async fn found(&self, proposal: Proposal, deadline: Duration) -> Result<Applied, FoundError> {
        let Command::Found { name, address, .. } = &proposal.command else { return Err(FoundError::NotFound) };
        let first = Member { name: name.clone(), address: *address };
        match self.raft().initialize(BTreeMap::from([(self.node().0, first)])).await {
            // Not allowed: there is a log already, so this was done before.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(FoundError::Stopped(error.to_string())),
        }
        Ok(self.propose(proposal, deadline).await?)
    }

    /// The state as this node has applied it. It may be old: see [`linearizable`](Self::linearizable).
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<View> {
        self.0.view.clone()
    }

    /// Who leads, as far as this node knows; `None`: nobody it hears. Whoever acts on what it once read has to read again
    /// after a `None` (DESIGN, rule 3).
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<Option<NodeId>> {
        self.0.leader.subscribe()
    }

    pub(crate) fn leads(&self, leader: Option<NodeId>) {
        self.0.leader.send_if_modified(|known| std::mem::replace(known, leader) != leader);
    }

    /// What the core last said it knows.
    pub(crate) fn words(&self) -> watch::Receiver<Word> {
        self.0.words.subscribe()
    }

    pub(crate) fn knows(&self, word: Word) {
        let vote = self.leadership().borrow().vote;
        self.0.counting.lock().unwrap_or_else(PoisonError::into_inner).see(self.0.node.0, &vote);
        self.0.words.send_replace(word);
    }

    pub(crate) fn in_touch(&self, at: Instant) {
        let mut touch = self.0.touch.lock().unwrap_or_else(PoisonError::into_inner);
        *touch = (*touch).max(Some(at));
    }

    pub(crate) fn counts(&self) -> Counts {
        self.0.counting.lock().unwrap_or_else(PoisonError::into_inner).counts()
    }

    /// How long ago this node was last in touch with whoever leads: what it shows is at most so old. `None`: not since it
    /// was started, and then nothing can be said about that.
    #[must_use]
    pub fn touched(&self) -> Option<Duration> {
        let touch = *self.0.touch.lock().unwrap_or_else(PoisonError::into_inner);
        touch.map(|at| at.elapsed())
    }

    /// From now on this node's heartbeats carry this incarnation. Before the first call there are none.
    pub fn announce_incarnation(&self, incarnation: Incarnation) {
        self.0.incarnation.send_replace(Some(incarnation));
    }

    /// Stops taking part, writes what is to be written, lets go of the store.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        self.0.tasks.wait().await;
        if let Err(error) = self.raft().shutdown().await {
            tracing::warn!(%error, "the consensus core ended badly");
        }
        if let Err(error) = self.0.writer.close().await {
            tracing::debug!(%error, "the log was closed already");
        }
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// The store it keeps its log in. To be remembered outside of it, and named at every later start.
    #[must_use]
    pub fn store(&self) -> StoreId {
        self.0.store
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.0.raft
    }

    pub(crate) fn log(&self) -> &LogStore {
        &self.0.log
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.0.peers
    }

    pub(crate) fn timing(&self) -> &Timing {
        &self.0.timing
    }

    pub(crate) fn ear(&self) -> &Ear {
        &self.0.ear
    }

    /// No read that begins now may be answered with less than this: openraft leads on in the term of an earlier life, and counts
    /// as committed what was written down as such, which the last of it never is.
    pub(crate) fn least_index(&self) -> u64 {
        let vote = self.raft().metrics().borrow().vote;
        self.0.led.filter(|(led, _)| *led == vote).map_or(0, |(_, last)| last)
    }

    /// Does work beside, until this node stops taking part: `None`.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<Option<T>> {
        self.0.tasks.spawn(self.0.stop.clone().run_until_cancelled_owned(work))
    }

    pub(crate) fn removing(&self) -> &Arc<tokio::sync::Mutex<()>> {
        &self.0.removing
    }

    pub(crate) fn in_flight(&self) -> &Arc<InFlight> {
        &self.0.in_flight
    }

    pub(crate) fn incarnation(&self) -> Option<Incarnation> {
        *self.0.incarnation.borrow()
    }

    /// Who leads and who votes, as far as this node knows. Changes seldom.
    pub(crate) fn leadership(&self) -> watch::Receiver<RaftServerMetrics<u64, Member>> {
        self.raft().server_metrics()
    }

    /// The address the log's membership gives a node; for before the applied state knows a better one.
    pub(crate) fn known_address(&self, node: NodeId) -> Option<SocketAddr> {
        self.leadership().borrow().membership_config.membership().get_node(&node.0).map(|member| member.address)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.0.stop.is_cancelled()
    }

    pub(crate) async fn stopping(&self) {
        self.0.stop.cancelled().await;
    }
}

fn openraft_config(config: &Config) -> Result<openraft::Config, StartError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let Config { timing, retention, .. } = config;
    let raft = openraft::Config {
        cluster_name: "pollux".to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_min),
        election_timeout_max: millis(timing.election_max),
        install_snapshot_timeout: millis(SNAPSHOT_PIECE_TIMEOUT),
        max_payload_entries: limits::ENTRIES_PER_APPEND_MAX as u64,
        replication_lag_threshold: retention.snapshot_after,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(retention.snapshot_after),
        snapshot_max_chunk_size: limits::SNAPSHOT_CHUNK_BYTES as u64,
        max_in_snapshot_log_to_keep: retention.entries_kept,
        purge_batch_size: PURGE_BATCH,
        // Opened by `elections` when a majority agrees.
        enable_elect: false,
        ..openraft::Config::default()
    };
    raft.validate().map_err(|error| StartError::Timing(error.to_string()))
}
