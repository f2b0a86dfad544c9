//! Starting the daemon, and ending it.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusHandle;
use pollux_image::{Tool, ToolLimits};
use pollux_link::{Authority, AuthorityError, BindError, Binding, Endpoint, Identity, IdentityError};
use pollux_raft::{Config, Consensus, FoundError, StartError, Store};
use pollux_state::{
    Command, Outcome, Proposal, Refusal,
    id::{Incarnation, Owner},
};
use pollux_vm::Limits;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    backend::Api,
    dir::{self, Dir, DirError, NodeFile},
    facts, measure, removal,
    service::Reception,
    storage::{Transfers, Verifications},
};
use crate::{
    api,
    budget::Budget,
    metrics::{self, MetricsError},
    vm::{
        Clock, Marks, Minter, Shared, Vms,
        qemu::{QemuHost, Users},
        wall_ms,
    },
    volumes::{self, ScrubSettings, Volumes},
};

/// One attempt to have the incarnation committed, or to read the log, in milliseconds; the next follows.
const ATTEMPT_MS: u64 = 3_000;
/// Pause between attempts, in milliseconds.
const AGAIN_MS: u64 = 200;
/// What converts images of disks.
const QEMU_IMG: &str = "/usr/bin/qemu-img";
/// Ending may take this long, in milliseconds; then the process ends anyway, and its machines with it.
const END_MS_MAX: u64 = 20_000;

/// How to run a daemon.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// The node's state directory.
    pub dir: PathBuf,
    /// Where the API listens.
    pub socket: PathBuf,
    /// The QEMU to run guests with.
    pub qemu: PathBuf,
    /// Where the UEFI firmware is that guests can boot by.
    pub firmware: PathBuf,
    /// Most bytes per second that all bulk work of this node together may send; `None`: what its links have.
    pub bulk_bandwidth: Option<u64>,
    /// Where metrics are served to whoever asks, besides the API's socket; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// The users that VMs run as.
    pub users: Users,
    /// The control group in which VMs get theirs; its own one for every daemon. `None`: one named after the node.
    pub cgroup: Option<String>,
    /// How fast and how often volumes in use are compared in the background.
    pub scrub: ScrubSettings,
}

/// The daemon could not start, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The directory belongs to no node.
    #[error("{0} belongs to no node; `pollux cluster init` or `pollux node join` first")]
    NoNode(PathBuf),
    /// A file in it.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// Its identity.
    #[error("the node's identity cannot be read: {0}")]
    Identity(#[from] IdentityError),
    /// The CA's key.
    #[error("the cluster's CA key cannot be read: {0}")]
    Authority(#[from] AuthorityError),
    /// The link.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The consensus layer.
    #[error(transparent)]
    Consensus(#[from] StartError),
    /// What names the log in the node's own file.
    #[error("{0} names its log in no way this version knows; it was changed by hand, or by a newer version")]
    LogName(PathBuf),
    /// The first entry.
    #[error("the cluster could not be founded: {0}")]
    Found(#[from] FoundError),
    /// The spawner of QEMUs.
    #[error("guests cannot be started here: {0}")]
    Host(String),
    /// The API's socket.
    #[error("the API cannot be served: {0}")]
    Api(String),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The cluster refuses this node.
    #[error("the cluster refuses this node: {0}")]
    Refused(String),
    /// It is no part of the cluster any more.
    #[error(
        "node {name} was removed from the cluster: {how}. Its identity never comes back: to use this host again, remove its \
         state directory and let it join as a new node, with a new token"
    )]
    Removed {
        /// What it was called.
        name: String,
        /// How it learned of it.
        how: String,
    },
    /// A signal handler, or something else of the operating system.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// A running daemon, as its parts see it.
pub(super) struct Daemon {
    pub(super) identity: Identity,
    pub(super) authority: Option<Authority>,
    pub(super) consensus: Consensus,
    pub(super) endpoint: Endpoint,
    pub(super) host: Arc<QemuHost>,
    pub(super) changes: watch::Sender<u64>,
    pub(super) metrics: PrometheusHandle,
    pub(super) image_tool: Tool,
    pub(super) transfers: Transfers,
    pub(super) verifications: Verifications,
    minter: Minter,
    vms: OnceLock<Vms>,
    volumes: OnceLock<Volumes>,
}

impl Daemon {
    pub(super) fn minter(&self) -> &Minter {
        &self.minter
    }

    /// The volumes of this node, once it may look after them.
    pub(super) fn volumes(&self) -> Option<&Volumes> {
        self.volumes.get()
    }

    /// The VMs of this node, once it may look after them.
    pub(super) fn vms(&self) -> Option<&Vms> {
        self.vms.get()
    }
}

/// Runs the daemon until it is told to end (SIGTERM, SIGINT).
///
/// # Errors
/// [`RunError`]: it could not start, or what it stands on failed.
pub async fn run(config: RunConfig) -> Result<(), RunError> {
    die_whole();
    let stop = stop_signal()?;
    let dir = Dir::open(&config.dir);
    if !dir.is_used() {
        return Err(RunError::NoNode(config.dir));
    }
    let _lock = dir.lock()?;
    crate::vm::hold::look_in(&config.dir);
    let mut node: NodeFile = dir::read_json(&dir.node_file())?;
    let identity = Identity::load(&dir.identity())?;
    let authority = dir.authority().exists().then(|| Authority::load(&dir.authority())).transpose()?;
    let group = config.cgroup.clone().unwrap_or_else(|| {
        let cluster = identity.cluster().to_string();
        format!("pollux-{}-{}", cluster.get(..8).unwrap_or(&cluster), identity.node())
    });
    let host = QemuHost::start(config.qemu.clone(), &config.firmware, config.users, &group)
        .map_err(|error| RunError::Host(error.to_string()))?;
    let metrics = metrics::install().map_err(MetricsError::from)?;
    let exposed = match config.metrics {
        Some(address) => {
            let bound = TcpListener::bind(address).await;
            Some(bound.map_err(|source| MetricsError::Listen { address, source })?)
        }
        None => None,
    };

    let reception = Arc::new(Reception::default());
    let endpoint = Endpoint::bind(Binding::new(node.listen, identity.clone()), reception.clone())?;
    let known = node.log.as_deref().map(str::parse).transpose().map_err(|_| RunError::LogName(dir.node_file()))?;
    let store = Store::Dir { path: dir.log(), known };
    let consensus = Consensus::start(Config::new(identity.node(), store), endpoint.clone()).await?;
    if known.is_none() {
        // From now on this node is the one that has this log.
        node.log = Some(consensus.store().to_string());
        dir::write_json(&dir.node_file(), &node)?;
    }
    let daemon = Arc::new(Daemon {
        identity,
        authority,
        consensus,
        endpoint,
        host: Arc::new(host),
        changes: watch::Sender::new(0),
        metrics,
        image_tool: Tool {
            program: QEMU_IMG.into(),
            identity: config.users.of_image_tool(),
            limits: ToolLimits::default(),
        },
        transfers: Transfers::default(),
        verifications: Verifications::default(),
        minter: Minter::random(),
        vms: OnceLock::new(),
        volumes: OnceLock::new(),
    });
    reception.open(daemon.clone());
    tracing::info!(node = daemon.identity.name(), listen = %node.listen, "the daemon listens");

    let api_stop = CancellationToken::new();
    let api: Arc<dyn api::Backend> = Arc::new(Api(daemon.clone()));
    let serving = api::server::serve(api.clone(), &config.socket, api_stop.clone());
    let looking_after = async {
        let bulk = Arc::new(Budget::new(config.bulk_bandwidth));
        look_after(&daemon, &dir, &node, (bulk, config.scrub)).await?;
        stop.cancelled().await;
        Ok(())
    };
    let living = async {
        let lived = tokio::select! {
            () = stop.cancelled() => Ok(()),
            lived = looking_after => lived,
            removed = removal::removal(&daemon) => Err(removed),
        };
        // The VMs first: as long as they end, the API can still say so.
        if let Some(vms) = daemon.vms()
            && tokio::time::timeout(Duration::from_millis(END_MS_MAX), vms.shutdown()).await.is_err()
        {
            tracing::error!("the VMs could not be ended in good order in time; they end with this process");
        }
        daemon.host.close();
        // Behind the VMs, which use them.
        if let Some(volumes) = daemon.volumes()
            && tokio::time::timeout(Duration::from_millis(END_MS_MAX), volumes.shutdown()).await.is_err()
        {
            tracing::error!("the replicas of this node could not be closed in good order in time");
        }
        if matches!(lived, Err(RunError::Removed { .. })) {
            removal::leave(&daemon).await;
        }
        api_stop.cancel();
        lived
    };
    let measuring = async {
        let shown = async {
            match exposed {
                Some(listener) => api::server::serve_metrics(api.clone(), listener, api_stop.clone()).await,
                None => api_stop.cancelled().await,
            }
        };
        tokio::join!(api_stop.run_until_cancelled(measure::count(daemon.clone())), shown);
    };
    let (served, lived, ()) = tokio::join!(
        async {
            let served = serving.await.map_err(|error| RunError::Api(error.to_string()));
            // Without its API a daemon cannot be told anything: it ends.
            stop.cancel();
            served
        },
        living,
        measuring
    );
    let ending = async {
        daemon.consensus.shutdown().await;
        daemon.endpoint.close().await;
    };
    if tokio::time::timeout(Duration::from_millis(END_MS_MAX), ending).await.is_err() {
        tracing::error!("the daemon could not end in good order in time");
    }
    tracing::info!("the daemon has ended");
    lived.and(served)
}

/// Has this life of the daemon committed, then looks after the node's VMs.
async fn look_after(
    daemon: &Arc<Daemon>,
    dir: &Dir,
    node: &NodeFile,
    (bulk, scrub): (Arc<Budget>, ScrubSettings),
) -> Result<(), RunError> {
    pollux_qemu::sweep_throttles();
    if dir.founding().exists() {
        found(daemon, dir).await?;
    }
    let facts = facts::gather(&daemon.host, daemon.authority.is_some()).await;
    let incarnation = begin_life(daemon, node, facts).await?;
    dir.forget_founding()?;
    daemon.consensus.announce_incarnation(incarnation);
    // Nothing is begun on a state that may be old (DESIGN, rule 3).
    confirm(daemon).await;
    let boot = facts::boot_id().map_err(|source| RunError::Io { what: "the host's boot id", source })?;
    let needs = volumes::Needs {
        me: Owner { node: daemon.identity.node(), incarnation },
        cluster: daemon.identity.cluster().to_string(),
        consensus: daemon.consensus.clone(),
        endpoint: daemon.endpoint.clone(),
        boot: boot.clone(),
        mounts: dir.pools(),
        bulk: bulk.clone(),
        scrub,
    };
    let volumes = Volumes::start(needs);
    daemon.host.use_disks(Arc::new(volumes.clone()));
    // Set once, here.
    let _ = daemon.volumes.set(volumes);
    let marks =
        Marks::open(dir.standby(), boot).map_err(|source| RunError::Io { what: "the standby marks", source })?;
    let me = Owner { node: daemon.identity.node(), incarnation };
    tracing::info!(%me, "looking after VMs");
    let vms = Vms::start(Shared {
        me,
        host: daemon.host.clone(),
        consensus: daemon.consensus.clone(),
        endpoint: daemon.endpoint.clone(),
        bulk,
        marks,
        limits: Limits::default(),
        tasks: TaskTracker::new(),
        clock: Clock::start(),
        changes: daemon.changes.clone(),
        minter: Minter::random(),
    });
    // Set once, here.
    let _ = daemon.vms.set(vms);
    Ok(())
}

/// Puts the first entry into the log. Repeated by every start of the founder, which changes nothing: the proposal is the same.
async fn found(daemon: &Daemon, dir: &Dir) -> Result<(), RunError> {
    let founding: Proposal = dir::read_json(&dir.founding())?;
    loop {
        if daemon.consensus.watch().borrow().state.cluster.is_some() {
            return Ok(());
        }
        match daemon.consensus.found(founding.clone(), Duration::from_millis(ATTEMPT_MS)).await {
            Ok(_) => return Ok(()),
            // After a restart of everything the log is there before its leader is.
            Err(FoundError::Propose(error)) => tracing::warn!(%error, "the cluster is not there yet"),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(AGAIN_MS)).await;
    }
}

/// Has this life committed, as the one after the life that a linearizable read shows.
async fn begin_life(
    daemon: &Daemon,
    node: &NodeFile,
    facts: pollux_state::node::Facts,
) -> Result<Incarnation, RunError> {
    let by = daemon.identity.node();
    loop {
        confirm(daemon).await;
        let known = daemon.consensus.watch().borrow().state.nodes.get(&by).map(|node| node.incarnation);
        let after = known.ok_or_else(|| RunError::Refused(format!("{by} is not in the cluster any more")))?;
        let command = Command::StartIncarnation { after, address: node.listen, facts: facts.clone() };
        let proposal = Proposal { id: daemon.minter.mint(), by, at: wall_ms(), command };
        let applied = again("this life of the daemon cannot be committed yet", || {
            daemon.consensus.propose(proposal.clone(), Duration::from_millis(ATTEMPT_MS))
        })
        .await;
        let refusal = match applied.outcome.done() {
            Ok(Outcome::Incarnation(incarnation)) => return Ok(incarnation),
            Ok(outcome) => return Err(RunError::Refused(format!("an odd answer: {outcome:?}"))),
            Err(refusal) => refusal,
        };
        // A late word of an earlier process of this node may have come between the read and this one.
        if !matches!(refusal, Refusal::AnotherLife { .. }) {
            return Err(RunError::Refused(refusal.to_string()));
        }
    }
}

/// Waits until the state that this node has applied is shown to be current.
async fn confirm(daemon: &Daemon) {
    again("the log cannot be read yet", || daemon.consensus.linearizable(Duration::from_millis(ATTEMPT_MS))).await;
}

/// Tries until it works. The caller is dropped when the daemon is to end.
async fn again<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(trouble: &str, attempt: impl Fn() -> F) -> T {
    let mut tries = 0u64;
    loop {
        match attempt().await {
            Ok(done) => return done,
            // Once at first, then every now and then: a cluster without quorum can last for hours.
            Err(error) if tries.is_multiple_of(20) => tracing::warn!(%error, tries, "{trouble}"),
            Err(error) => tracing::debug!(%error, tries, "{trouble}"),
        }
        tries += 1;
        tokio::time::sleep(Duration::from_millis(AGAIN_MS)).await;
    }
}

/// A broken assertion ends the process, not one task: "stopping is safe" holds only for a whole daemon, whose machines the
/// kernel ends with it.
fn die_whole() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// Cancelled by SIGTERM or SIGINT.
fn stop_signal() -> Result<CancellationToken, RunError> {
    let handler = |kind| signal(kind).map_err(|source| RunError::Io { what: "a signal handler", source });
    let (mut terminate, mut interrupt) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let heard = stop.clone();
    #[expect(clippy::disallowed_methods, reason = "lives as long as the process: it is what ends everything else")]
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("told to end (SIGTERM)"),
            _ = interrupt.recv() => tracing::info!("told to end (SIGINT)"),
        }
        heard.cancel();
    });
    Ok(stop)
}
