//! Ours, as a daemon has them, in processes of their own: the server on a bare replica; a volume with one replica here and the others on
//! other nodes; and what such a node does for it. They end in order when they are told to, and then say whether all was as it must be:
//! every replica in the set, nothing copied, no change of the set wished for.

use std::{
    collections::BTreeSet,
    fs,
    future::poll_fn,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::future::BoxFuture;
use pollux_disk::{
    Disk, EngineKind, Pool,
    nbd::{ServeOptions, serve},
};
use pollux_link::{
    Binding, Class, Endpoint, Fault, Identity, JoinReply, JoinRequest, Peer, RecvStream, Roles, SendStream, Service, To,
};
use pollux_mirror::Limits;
use pollux_volume::{
    Claim, Door, Drive, Keepers, Opened, Place, Plan, Reached, Remote, Set, SetChange, Side, Volume, VolumeHandle,
    Ways, boot_id,
};
use pollux_wire::{
    fault,
    id::{Generation, Incarnation, NodeId, Owner, ReplicaId, VolumeId},
    method::REPLICA,
};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::place::NAME;

/// How long a volume may take to put everything on stable storage.
const FINISH_MAX: Duration = Duration::from_secs(15);
const VOLUME: VolumeId = VolumeId(1);
/// Where the guest would be.
const HERE: NodeId = NodeId(1);
const ME: Owner = Owner { node: HERE, incarnation: Incarnation(1) };

#[derive(Args)]
pub(crate) struct Bare {
    /// The pool's directory.
    #[arg(long)]
    pool: PathBuf,
    /// The socket to make.
    #[arg(long)]
    socket: PathBuf,
    /// The replica's size, in bytes.
    #[arg(long)]
    size: u64,
    /// How bytes get into the file.
    #[arg(long, value_enum, default_value_t = Engine::Best)]
    engine: Engine,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Engine {
    Best,
    Ring,
    Threads,
}

#[derive(Args)]
pub(crate) struct Mirrored {
    /// The pool's directory, of the replica here.
    #[arg(long)]
    pool: PathBuf,
    /// The socket to make.
    #[arg(long)]
    socket: PathBuf,
    /// The volume's size, in bytes.
    #[arg(long)]
    size: u64,
    /// By which right; higher than any before.
    #[arg(long)]
    generation: u64,
    /// The directory of this node's certificate, if there are others.
    #[arg(long)]
    identity: Option<PathBuf>,
    /// Where this node listens, and then the others, from node 2 on.
    #[arg(long = "node")]
    nodes: Vec<SocketAddr>,
}

#[derive(Args)]
pub(crate) struct Beyond {
    /// The pool's directory.
    #[arg(long)]
    pool: PathBuf,
    /// The directory of this node's certificate.
    #[arg(long)]
    identity: PathBuf,
    /// Where to listen.
    #[arg(long)]
    node: SocketAddr,
    /// Made when it can be reached.
    #[arg(long)]
    ready: PathBuf,
}

/// Serves a bare replica to one client after the other.
pub(crate) async fn bare(options: Bare) -> Result<()> {
    let kind = match options.engine {
        Engine::Best => EngineKind::Best,
        Engine::Ring => EngineKind::Ring,
        Engine::Threads => EngineKind::Threads,
    };
    let mut replica = Pool::open(&options.pool)?.open_replica(NAME, options.size, kind).await?;
    serve_clients(&mut replica, &options.socket).await
}

/// Serves a volume to one client after the other.
pub(crate) async fn mirrored(options: Mirrored) -> Result<()> {
    let keepers = Keepers::new(boot_id()?);
    let endpoint = match (&options.identity, options.nodes.first()) {
        (Some(identity), Some(address)) => {
            Some(Endpoint::bind(Binding::new(*address, Identity::load(identity)?), Arc::new(Nothing))?)
        }
        (None, _) | (_, None) => None,
    };
    let replicas: BTreeSet<ReplicaId> = (1..=options.nodes.len().max(1) as u64).map(ReplicaId).collect();
    let (size, generation) = (options.size, Generation(options.generation));
    let ways = Arc::new(Lanes {
        keepers: keepers.clone(),
        endpoint: endpoint.clone(),
        here: place(&options.pool)?,
        nodes: options.nodes,
        size,
        generation,
        unrest: AtomicBool::new(false),
    });
    let going = BTreeSet::new();
    let set = watch::Sender::new(Set { version: 1, members: replicas.clone(), replicas: replicas.clone(), going });
    let (authority, prefer) = (ReplicaId(1), vec![ReplicaId(1)]);
    let limits = Limits::default();
    let plan = Plan { name: NAME.into(), size, generation, handover: None, authority, prefer, limits };
    let (volume, handle) = Volume::start(plan, ways.clone(), set.subscribe()).await?;
    sound(&handle, replicas.len())?;

    let (mut drive, put) = Drive::empty(size);
    let (mut putting, mut nothing) = (pin!(put.put(volume)), Vec::new());
    let there = poll_fn(|cx| {
        let _ = drive.poll(cx, &mut nothing);
        putting.as_mut().poll(cx)
    });
    ensure!(there.await, "the drive is gone");
    serve_clients(&mut drive, &options.socket).await?;

    ensure!(drive.finish(FINISH_MAX).await, "not everything is on stable storage");
    sound(&handle, replicas.len())?;
    ensure!(!ways.unrest.load(Ordering::Acquire), "a change of the in-sync set was wished for");
    drop(drive);
    keepers.close().await;
    if let Some(endpoint) = endpoint {
        endpoint.close().await;
    }
    Ok(())
}

/// Has a replica for a volume of another node.
pub(crate) async fn beyond(options: Beyond) -> Result<()> {
    let keepers = Keepers::new(boot_id()?);
    let service = Arc::new(Serves { keepers: keepers.clone(), door: OpenDoor(place(&options.pool)?) });
    let endpoint = Endpoint::bind(Binding::new(options.node, Identity::load(&options.identity)?), service)?;
    let mut told = signal(SignalKind::terminate())?;
    fs::write(&options.ready, "")?;
    told.recv().await;
    endpoint.close().await;
    keepers.close().await;
    Ok(())
}

fn place(pool: &Path) -> Result<Place> {
    Ok(Place { pool: Pool::open(pool)?, name: NAME.to_owned(), engine: EngineKind::default() })
}

/// Until it is told to end.
async fn serve_clients(disk: &mut impl Disk, socket: &Path) -> Result<()> {
    let listener = UnixListener::bind(socket).context("cannot make the socket")?;
    let mut told = signal(SignalKind::terminate())?;
    let (words, stop) = (ServeOptions { name: String::new(), read_only: false }, CancellationToken::new());
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted.context("cannot accept")?,
            _ = told.recv() => return Ok(()),
        };
        let mut serving = pin!(serve(stream, disk, &words, &stop));
        let end = tokio::select! {
            end = &mut serving => end,
            _ = told.recv() => {
                stop.cancel();
                serving.await;
                return Ok(());
            }
        };
        eprintln!("pollux-bench-volume: {end}");
    }
}

/// Every replica is in the set, is reached, and had nothing copied to it.
fn sound(handle: &VolumeHandle, count: usize) -> Result<()> {
    let status = handle.status().borrow().clone();
    ensure!(status.replicas.len() == count, "there are {} replicas of {count}", status.replicas.len());
    for replica in &status.replicas {
        let well = replica.sound && replica.reached && replica.lacks == 0 && replica.copied == 0;
        ensure!(well, "a replica is not in order: {replica:?}");
    }
    Ok(())
}

/// The ways of a volume that is measured: as a daemon's, without a log behind them, as nothing of the set may change.
struct Lanes {
    keepers: Keepers,
    endpoint: Option<Endpoint>,
    here: Place,
    nodes: Vec<SocketAddr>,
    size: u64,
    generation: Generation,
    unrest: AtomicBool,
}

impl Ways for Lanes {
    fn open(&self, replica: ReplicaId) -> BoxFuture<'static, Result<Reached, String>> {
        let claim = Claim::new(VOLUME, replica, self.generation, ME, self.size);
        if replica == ReplicaId(1) {
            let (keepers, here) = (self.keepers.clone(), self.here.clone());
            return Box::pin(async move {
                keepers.open(&claim, &here).await.map(reached).map_err(|refusal| refusal.to_string())
            });
        }
        let address = usize::try_from(replica.0 - 1).ok().and_then(|at| self.nodes.get(at)).copied();
        let endpoint = self.endpoint.clone();
        Box::pin(async move {
            let (endpoint, address) = endpoint.zip(address).ok_or_else(|| format!("{replica} is nowhere"))?;
            let to = To { node: NodeId(replica.0), address };
            Remote::open(&endpoint, &to, &claim).await.map(reached).map_err(|error| error.to_string())
        })
    }

    fn change(&self, change: SetChange) -> BoxFuture<'static, ()> {
        self.unrest.store(true, Ordering::Release);
        eprintln!("pollux-bench-volume: {change:?}");
        // There is no log that could decide; the run is void.
        Box::pin(std::future::pending())
    }

    fn may_send(&self, bytes: u64) -> BoxFuture<'static, u64> {
        Box::pin(std::future::ready(bytes))
    }
}

fn reached<S: Side + 'static>(opened: Opened<S>) -> Reached {
    Reached { side: Box::new(opened.side), report: opened.report, boot: opened.boot }
}

/// What a node does for others that has nothing for them.
struct Nothing;

/// What a node does that has a replica.
struct Serves {
    keepers: Keepers,
    door: OpenDoor,
}

/// Everybody of the cluster may have the replica; its log still fences.
struct OpenDoor(Place);

#[async_trait]
impl Door for OpenDoor {
    async fn admit(&self, _: NodeId, _: &Claim) -> Result<Place, String> {
        Ok(self.0.clone())
    }
}

#[async_trait]
impl Service for Nothing {
    fn allowed(&self, _: u16) -> Roles {
        Roles::None
    }

    fn allowed_session(&self, _: u16) -> Roles {
        Roles::None
    }

    async fn call(&self, _: Peer, _: Class, _: u16, _: Bytes) -> Result<Bytes, Fault> {
        Err(Fault::new(fault::METHOD, "there are no calls"))
    }

    async fn session(&self, _: Peer, _: u16, _: Bytes, _: SendStream, _: RecvStream) {}

    async fn join(&self, _: SocketAddr, _: JoinRequest) -> Result<JoinReply, Fault> {
        Err(Fault::new(fault::TOKEN_UNKNOWN, "nobody joins"))
    }
}

#[async_trait]
impl Service for Serves {
    fn allowed(&self, _: u16) -> Roles {
        Roles::None
    }

    fn allowed_session(&self, kind: u16) -> Roles {
        if kind == REPLICA { Roles::Members } else { Roles::None }
    }

    async fn call(&self, _: Peer, _: Class, _: u16, _: Bytes) -> Result<Bytes, Fault> {
        Err(Fault::new(fault::METHOD, "there are no calls"))
    }

    async fn session(&self, peer: Peer, _: u16, header: Bytes, send: SendStream, recv: RecvStream) {
        let end = pollux_volume::serve(&self.keepers, &self.door, &peer, &header, send, recv).await;
        eprintln!("pollux-bench-volume: {end}");
    }

    async fn join(&self, _: SocketAddr, _: JoinRequest) -> Result<JoinReply, Fault> {
        Err(Fault::new(fault::TOKEN_UNKNOWN, "nobody joins"))
    }
}
