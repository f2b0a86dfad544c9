//! What this node does about volumes: it keeps the replicas in its pools, lets whoever has the right have them, and brings volumes
//! into use for the VMs that run here.
//!
//! [`Volumes`] is started by the daemon once its incarnation is committed and a linearizable read has shown the state to be
//! current. From then on it is level-triggered like everything else: what the applied state says of this node's pools is made true
//! ([`tend`]). Sessions of other nodes are let in by what the state says of the right to write ([`door`]); ways out are opened for
//! volumes in use ([`ways`]). It ends with the daemon, after the VMs.
//!
//! ```text
//!   applied log --> tend ----> POOL/volume-N-replica-M      made, removed, grown
//!   other nodes --> door ----> Keepers --.
//!   VMs here -----> open ----> Volume --> ways --> Keepers here, Remote elsewhere
//! ```

mod claim;
mod device;
mod door;
#[cfg(test)]
pub(crate) mod fixture;
mod hold;
mod origin;
mod places;
mod pools;
mod scrub;
mod steward;
mod tend;
mod turns;
mod usage;
mod verify;
mod ways;

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use pollux_link::{Endpoint, Peer, RecvStream, SendStream};
use pollux_mirror::Limits;
use pollux_raft::{Consensus, View as Applied};
use pollux_state::{
    ClusterState,
    id::{Generation, Owner, ReplicaId, VmId, VolumeId},
};
use pollux_volume::{Handover, Keepers, Plan, Set, StartError, Volume, VolumeHandle, VolumeStatus};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{pools::Pools, scrub::Scrubs, turns::Turns, ways::WaysOf};
use crate::{
    budget::Budget,
    vm::{
        Minter,
        host::{Disks, GuestError},
    },
};

pub(crate) use device::DeviceFault;
pub(crate) use pools::PoolFault;
pub(crate) use scrub::Compared;
#[cfg(test)]
pub(crate) use scrub::Differing;
pub use scrub::ScrubSettings;
pub use usage::{PoolUsage, Space};
pub(crate) use verify::{Unverified, Verified, VerifyStep};

/// A replica that is behind another one for so long leaves the in-sync set, in milliseconds: so long the guest's writes may stand
/// still when a host dies. Shorter than disks take to sync on a bad day, which costs no more than copying what was missed.
const LAG_MS: u64 = 2_000;

/// How long this node may take to apply an entry of which somebody knows, in milliseconds.
const CATCH_UP_MS_MAX: u64 = 2_000;
/// How long pools may take to be closed, in milliseconds.
const CLOSE_MS_MAX: u64 = 5_000;

/// See the module's text. A handle: all clones are one.
#[derive(Clone)]
pub struct Volumes(Arc<Inner>);

struct Inner {
    me: Owner,
    cluster: String,
    consensus: Consensus,
    endpoint: Endpoint,
    keepers: Keepers,
    pools: Arc<Pools>,
    minter: Minter,
    /// Those in use here.
    in_use: Mutex<HashMap<VolumeId, VolumeHandle>>,
    /// Those that are held here because something is to be copied.
    cared: Mutex<BTreeSet<VolumeId>>,
    bulk: Arc<Budget>,
    /// Who compares their replicas.
    turns: Turns,
    /// What came of it, and the slow comparison in the background.
    scrubs: Scrubs,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

/// What [`Volumes`] needs of its daemon.
pub struct Needs {
    /// This life of this node's daemon.
    pub me: Owner,
    /// The cluster's identity, by which pools are known.
    pub cluster: String,
    /// The log.
    pub consensus: Consensus,
    /// The way to other nodes.
    pub endpoint: Endpoint,
    /// The boot of this host.
    pub boot: String,
    /// Where block devices are mounted that are pools.
    pub mounts: PathBuf,
    /// How much of the links copying may take, with all other bulk work.
    pub bulk: Arc<Budget>,
    /// How volumes are scrubbed.
    pub scrub: ScrubSettings,
}

/// How a replica is called in its pool.
fn name_of(volume: VolumeId, replica: ReplicaId) -> String {
    format!("{volume}-{replica}")
}

/// Which replica is called so.
fn named(name: &str) -> Option<ReplicaId> {
    let (_, number) = name.strip_prefix("volume-")?.split_once("-replica-")?;
    let replica = ReplicaId(number.parse().ok()?);
    // Only as this writes it.
    name.ends_with(&format!("-{replica}")).then_some(replica)
}

impl Volumes {
    /// Starts tending this node's pools. The state that this node has applied must be current.
    #[must_use]
    pub fn start(needs: Needs) -> Self {
        let Needs { me, cluster, consensus, endpoint, boot, mounts, bulk, scrub } = needs;
        let inner = Inner {
            me,
            pools: Arc::new(Pools::new(cluster.clone(), me.node, mounts)),
            cluster,
            consensus,
            endpoint,
            keepers: Keepers::new(boot),
            minter: Minter::random(),
            in_use: Mutex::default(),
            cared: Mutex::default(),
            bulk,
            turns: Turns::default(),
            scrubs: Scrubs::new(scrub),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
        };
        let volumes = Self(Arc::new(inner));
        volumes.spawn(volumes.clone().tend());
        volumes.spawn(volumes.clone().care());
        volumes
    }

    /// Another node opened a session with a replica of this one.
    pub async fn session(&self, peer: Peer, header: &bytes::Bytes, send: SendStream, recv: RecvStream) {
        let serving = pollux_volume::serve(&self.0.keepers, self, &peer, header, send, recv);
        if let Some(end) = self.0.cancel.run_until_cancelled(serving).await {
            tracing::info!(peer = %peer.node, %end, "a session with a replica of this node has ended");
        }
    }

    /// How a volume is that is in use here.
    #[must_use]
    pub fn status(&self, volume: VolumeId) -> Option<VolumeStatus> {
        self.handle(volume).map(|handle| handle.status().borrow().clone())
    }

    /// A volume that is in use here.
    fn handle(&self, volume: VolumeId) -> Option<VolumeHandle> {
        let in_use = self.0.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        in_use.get(&volume).filter(|handle| handle.is_in_use()).cloned()
    }

    /// Closes every replica, and waits for it. After the VMs have ended.
    pub async fn shutdown(&self) {
        self.0.cancel.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.keepers.close().await;
        let (pools, (closed, over)) = (Arc::clone(&self.0.pools), tokio::sync::oneshot::channel());
        // What hangs there does not keep the daemon; nor would the runtime wait for such a thread.
        let closing = std::thread::Builder::new().name("pools".into()).spawn(move || {
            pools.close();
            // Nobody waits any more where that took too long.
            let _ = closed.send(());
        });
        let within = Duration::from_millis(CLOSE_MS_MAX);
        if closing.is_err() || tokio::time::timeout(within, over).await.is_err() {
            tracing::warn!("pools were not closed within {CLOSE_MS_MAX} ms: does their storage hang?");
        }
    }

    fn state(&self) -> Arc<ClusterState> {
        self.0.consensus.watch().borrow().state.clone()
    }

    /// The state once it shows what somebody knows who may have been told before this node: then, or after a while.
    async fn caught_up(&self, known: impl Fn(&ClusterState) -> bool) -> Arc<ClusterState> {
        let mut applied = self.0.consensus.watch();
        let seen = applied.wait_for(|view| known(&view.state));
        // What it does not show by then is not so.
        let _ = tokio::time::timeout(Duration::from_millis(CATCH_UP_MS_MAX), seen).await;
        self.state()
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.spawn(self.0.cancel.clone().run_until_cancelled_owned(work));
    }

    /// Brings a volume into use by the right that `state` gives this node.
    async fn begin(
        &self,
        state: &ClusterState,
        it: &pollux_state::volume::Volume,
        handover: Option<Handover>,
        limits: Limits,
    ) -> Result<(Volume, VolumeHandle), StartError> {
        let (id, generation, size) = (it.id, it.generation, it.size);
        let here = |replica: &ReplicaId| state.node_of_replica(it, *replica) == Some(self.0.me.node);
        let prefer = it.replicas.keys().copied().filter(here).collect();
        let (name, authority) = (it.name.clone(), it.authority);
        let plan = Plan { name, size, generation, handover, authority, prefer, limits };
        let set = self.follow(id, generation, set_of(it));
        let ways = WaysOf { volumes: self.clone(), volume: id, generation, size };
        let (started, handle) = Volume::start(plan, Arc::new(ways), set).await?;
        let mut in_use = self.0.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        in_use.retain(|_, handle| handle.is_in_use());
        in_use.insert(id, handle.clone());
        drop(in_use);
        self.spawn(self.clone().steward(id, generation, handle.clone()));
        self.spawn(self.clone().scrub(id, generation, handle.clone()));
        Ok((started, handle))
    }

    /// The volume's set as the log has it, for as long as the right to write under `generation` lasts and somebody looks.
    fn follow(&self, volume: VolumeId, generation: Generation, now: Set) -> watch::Receiver<Set> {
        let (send, set) = watch::channel(now);
        let mut applied = self.0.consensus.watch();
        self.spawn(async move {
            loop {
                let state = applied.borrow_and_update().state.clone();
                // Whoever has the right now will refuse what comes of the old one.
                let Some(it) = state.volumes.get(&volume).filter(|it| it.generation == generation) else { return };
                let (going, left) = steward::going(&state, it);
                let seen = Set { going, ..set_of(it) };
                send.send_if_modified(|set| {
                    let newer = seen != *set;
                    if newer {
                        *set = seen;
                    }
                    newer
                });
                let over = async {
                    match left {
                        Some(left) => tokio::time::sleep(left).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = applied.changed() => if changed.is_err() { return },
                    () = over => {}
                    () = send.closed() => return,
                }
            }
        });
        set
    }
}

/// Waits for the next decision, or as long as there is time for it. `false`: there will be none any more.
async fn news(applied: &mut watch::Receiver<Applied>, within: Option<Duration>) -> bool {
    match within {
        Some(within) => tokio::time::timeout(within, applied.changed()).await.unwrap_or(Ok(())).is_ok(),
        None => applied.changed().await.is_ok(),
    }
}

fn set_of(volume: &pollux_state::volume::Volume) -> Set {
    let made = volume.replicas.iter().filter(|(_, replica)| replica.made);
    Set {
        version: volume.version,
        members: volume.set.clone(),
        replicas: made.map(|(id, _)| *id).collect(),
        going: BTreeSet::new(),
    }
}

#[async_trait]
impl Disks for Volumes {
    fn name(&self, volume: VolumeId) -> Option<String> {
        self.state().volumes.get(&volume).map(|volume| volume.name.clone())
    }

    fn size(&self, volume: VolumeId) -> Result<u64, GuestError> {
        let state = self.state();
        state.volumes.get(&volume).map(|volume| volume.size).ok_or_else(|| unknown(volume))
    }

    async fn open(
        &self,
        vm: VmId,
        generation: Generation,
        volume: VolumeId,
        handover: Option<Handover>,
    ) -> Result<(Volume, VolumeHandle), GuestError> {
        let state = self.caught_up(|state| state.vms.get(&vm).is_none_or(|vm| vm.generation >= generation)).await;
        let it = state.volumes.get(&volume).ok_or_else(|| unknown(volume))?;
        let has_right = state.vms.get(&vm).is_some_and(|vm| vm.generation == generation);
        if !has_right || it.user != Some(vm) || state.writer(it) != Some(self.0.me) {
            return Err(GuestError(format!("volume {} is not this VM's to write here any more", it.name)));
        }
        let limits = Limits { lag_ms: LAG_MS, ..Limits::default() };
        self.begin(&state, it, handover, limits).await.map_err(|error| GuestError(error.to_string()))
    }
}

fn unknown(volume: VolumeId) -> GuestError {
    GuestError(format!("{volume} is not in the cluster any more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_found_by_its_name_and_nothing_else_is() {
        let name = name_of(VolumeId(7), ReplicaId(12));
        assert_eq!(named(&name), Some(ReplicaId(12)));
        for other in ["lost+found", "volume-7", "volume-7-replica-", "volume-7-replica-012", "volume-7-replica-12.old"]
        {
            assert_eq!(named(other), None, "{other}");
        }
    }
}
