//! This node's pools: directories that were marked as such when they were added, or block devices with such a directory on them
//! ([`super::device`]).
//!
//! The mark tells a pool from the empty directory that is there when its file system is not mounted, and from another node's.
//!
//! A pool is opened by a thread of its own, for as long as that takes: storage that hangs keeps `mount` from ever returning. Nobody waits
//! for it for longer than they want to, and no other pool does.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use pollux_disk::{Pool, PoolError};
use pollux_state::id::{NodeId, PoolId};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use super::{
    device::{DeviceFault, Devices},
    origin::Origin,
    places::Place,
};

/// A pool that could not be opened is not tried again within this, in milliseconds.
const AGAIN_MS: u64 = 2_000;

/// The mark, a file in the pool's directory.
pub(super) const MARK: &str = ".pollux-pool";

/// What the mark says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    cluster: String,
    node: NodeId,
    name: String,
}

/// Why a directory cannot be used as a pool.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolFault {
    /// It is no place for replicas.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// It is a device that cannot be one.
    #[error(transparent)]
    Device(#[from] DeviceFault),
    /// There is no mark.
    #[error("{path} is not marked as pool {name}; is its file system mounted?")]
    Unmarked {
        /// Where.
        path: PathBuf,
        /// Which pool it should be.
        name: String,
    },
    /// There is another's.
    #[error("{path} is pool {found} of {node} in cluster {cluster} already; use an empty directory")]
    Taken {
        /// Where.
        path: PathBuf,
        /// The pool's name there.
        found: String,
        /// Of which node.
        node: NodeId,
        /// Of which cluster.
        cluster: String,
    },
    /// It is where the devices are.
    #[error("{path} is in {base}, where this node mounts the devices of its pools")]
    Within {
        /// Which directory.
        path: PathBuf,
        /// Where those are.
        base: PathBuf,
    },
    /// Nobody knows yet.
    #[error("{path} is still being mounted since {}", moment(.since))]
    Opening {
        /// Where.
        path: PathBuf,
        /// Since when.
        since: SystemTime,
    },
    /// The mark cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn moment(at: &SystemTime) -> impl std::fmt::Display + use<> {
    humantime::format_rfc3339_seconds(*at)
}

impl PoolFault {
    /// It says no more than that the pool is being opened, and has not said so for that long.
    pub(super) fn is_new(&self, within: Duration) -> bool {
        // A clock that was set back says nothing; that it is being opened will be over, or be told later.
        matches!(self, Self::Opening { since, .. } if since.elapsed().is_ok_and(|elapsed| elapsed < within))
    }
}

/// Marks `path`, a directory of `node`, as its pool `name`. Marking it again changes nothing.
pub(crate) fn found(cluster: &str, node: NodeId, name: &str, path: &Path) -> Result<Pool, PoolFault> {
    let pool = Pool::open(path)?;
    let mark = Mark { cluster: cluster.to_owned(), node, name: name.to_owned() };
    match read(path)? {
        Some(found) if found == mark => {}
        Some(found) => return Err(taken(path, found)),
        None => {
            let failed = |source| PoolFault::Io { path: path.join(MARK), source };
            let text = serde_json::to_vec(&mark).map_err(|error| failed(error.into()))?;
            // Whole or not at all, and there when the log says that the pool is.
            let new = path.join(format!("{MARK}.new"));
            let written = fs::write(&new, text)
                .and_then(|()| fs::File::open(&new)?.sync_all())
                .and_then(|()| fs::rename(&new, path.join(MARK)))
                .and_then(|()| fs::File::open(path)?.sync_all());
            written.map_err(failed)?;
        }
    }
    Ok(pool)
}

fn read(path: &Path) -> Result<Option<Mark>, PoolFault> {
    let failed = |source| PoolFault::Io { path: path.join(MARK), source };
    match fs::read(path.join(MARK)) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| failed(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn taken(path: &Path, Mark { cluster, node, name }: Mark) -> PoolFault {
    PoolFault::Taken { path: path.to_owned(), found: name, node, cluster }
}

/// How a pool is opened.
type Open = Box<dyn Fn(&Devices, &Place<'_>, &Mark, &Path) -> Result<Pool, PoolFault> + Send + Sync>;

/// The pools of this node that are open, or are being opened.
pub(super) struct Pools {
    cluster: String,
    node: NodeId,
    devices: Devices,
    open: Open,
    all: Mutex<HashMap<PoolId, Known>>,
    /// Rises whenever one was opened, or could not be.
    opened: watch::Sender<u64>,
}

struct Known {
    name: String,
    state: State,
}

enum State {
    Open(Pool),
    Opening { since: SystemTime },
    Failed { fault: Arc<PoolFault>, at: Instant },
}

impl Pools {
    /// Block devices are mounted in directories of `mounts`.
    pub(super) fn new(cluster: String, node: NodeId, mounts: PathBuf) -> Self {
        Self::opened_by(cluster, node, mounts, Box::new(open))
    }

    fn opened_by(cluster: String, node: NodeId, mounts: PathBuf, open: Open) -> Self {
        let (devices, opened) = (Devices::new(mounts, Origin::new(&cluster, node)), watch::Sender::new(0));
        Self { cluster, node, devices, open, all: Mutex::default(), opened }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<PoolId, Known>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whenever one was opened, or could not be.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.opened.subscribe()
    }

    /// Makes `path` ready to become the pool `name`, and has its directory marked by `mark`: a directory is ready, a device may have to be
    /// formatted. Another node's pool is not touched.
    pub(super) fn prepare(
        &self,
        name: &str,
        path: &Path,
        mark: impl FnOnce(&Path) -> Result<(), PoolFault>,
    ) -> Result<(), PoolFault> {
        if path.starts_with(self.devices.base()) {
            return Err(PoolFault::Within { path: path.to_owned(), base: self.devices.base().to_owned() });
        }
        // Nobody waits here for what was called so before and hangs.
        let place = self.devices.try_enter(name);
        let place = place.map_err(|since| PoolFault::Opening { path: self.devices.at(name), since })?;
        self.devices.prepare(&place, path)?;
        self.devices.is_added(name);
        let marked =
            self.devices.directory(&place, path).map_err(PoolFault::from).and_then(|directory| mark(&directory));
        drop(place);
        if marked.is_err() {
            self.give_up(name);
        }
        marked
    }

    /// It could not become one after all, or will not be. Waits for the storage.
    pub(super) fn give_up(&self, name: &str) {
        self.devices.was_added(name);
        self.unmount_unknown();
    }

    /// Whatever is mounted and of no pool that is open, or being opened.
    fn unmount_unknown(&self) {
        // What hangs there does not hang those who look for another pool.
        self.devices.retain(|name| self.all().values().any(|known| known.name == name));
    }

    /// A pool of this node, opened if it is not, which is waited for as long as there is `patience`.
    pub(super) async fn get(
        self: &Arc<Self>,
        pool: &pollux_state::volume::Pool,
        patience: Duration,
    ) -> Result<Pool, Arc<PoolFault>> {
        let (mut opened, until) = (self.watch(), Instant::now() + patience);
        loop {
            match self.try_get(pool) {
                Err(fault) if matches!(*fault, PoolFault::Opening { .. }) => {
                    // The sender is this one's own.
                    if tokio::time::timeout_at(until, opened.changed()).await.is_err() {
                        return Err(fault);
                    }
                }
                got => return got,
            }
        }
    }

    /// The same without waiting.
    pub(super) fn try_get(self: &Arc<Self>, pool: &pollux_state::volume::Pool) -> Result<Pool, Arc<PoolFault>> {
        let path = PathBuf::from(&pool.path);
        let mut all = self.all();
        match all.get(&pool.id).map(|known| &known.state) {
            Some(State::Open(opened)) => return Ok(opened.clone()),
            Some(State::Opening { since }) => return Err(Arc::new(PoolFault::Opening { path, since: *since })),
            Some(State::Failed { fault, at }) if at.elapsed() < Duration::from_millis(AGAIN_MS) => {
                return Err(Arc::clone(fault));
            }
            Some(State::Failed { .. }) | None => {}
        }
        let since = SystemTime::now();
        let (this, id, at) = (Arc::clone(self), pool.id, path.clone());
        let wanted = Mark { cluster: self.cluster.clone(), node: self.node, name: pool.name.clone() };
        // Not one of the runtime's: those are waited for when the daemon ends.
        let begun = std::thread::Builder::new().name("pool".into()).spawn(move || {
            let opened = {
                let place = this.devices.enter(&wanted.name);
                (this.open)(&this.devices, &place, &wanted, &at)
            };
            this.has_opened(id, since, opened);
        });
        let (state, fault) = match begun {
            Ok(_) => (State::Opening { since }, Arc::new(PoolFault::Opening { path, since })),
            Err(source) => {
                let fault = Arc::new(PoolFault::Io { path, source });
                (State::Failed { fault: Arc::clone(&fault), at: Instant::now() }, fault)
            }
        };
        all.insert(pool.id, Known { name: pool.name.clone(), state });
        Err(fault)
    }

    /// What came of opening a pool since then.
    fn has_opened(&self, id: PoolId, began: SystemTime, opened: Result<Pool, PoolFault>) {
        let awaited = {
            let mut all = self.all();
            let known = all.get_mut(&id);
            let known = known.filter(|known| matches!(known.state, State::Opening { since } if since == began));
            let awaited = known.is_some();
            if let Some(known) = known {
                known.state = match opened {
                    Ok(pool) => State::Open(pool),
                    Err(fault) => State::Failed { fault: Arc::new(fault), at: Instant::now() },
                };
            }
            awaited
        };
        if !awaited {
            // It was removed meanwhile.
            self.unmount_unknown();
        }
        self.opened.send_modify(|times| *times += 1);
    }

    /// Forgets those that are gone, and has their devices unmounted.
    pub(super) fn retain(self: &Arc<Self>, known: impl Fn(PoolId) -> bool) {
        let fewer = {
            let mut all = self.all();
            let before = all.len();
            all.retain(|id, _| known(*id));
            all.len() < before
        };
        if fewer {
            // The last that is closed of one that hangs may hang whoever unmounts it.
            let this = Arc::clone(self);
            let begun = std::thread::Builder::new().name("pool".into()).spawn(move || this.unmount_unknown());
            if let Err(error) = begun {
                tracing::error!(%error, "the device of a pool that is gone stays mounted");
            }
        }
    }

    /// Forgets all, and unmounts their devices. One that is still being mounted is left to the kernel.
    pub(super) fn close(&self) {
        self.all().retain(|_, known| matches!(known.state, State::Opening { .. }));
        self.devices.none_is_added();
        self.unmount_unknown();
    }
}

/// Opens a directory, or what is on a device, as the pool that `wanted` says.
fn open(devices: &Devices, place: &Place<'_>, wanted: &Mark, path: &Path) -> Result<Pool, PoolFault> {
    let at = devices.directory(place, path)?;
    let is_it = match read(&at) {
        Ok(Some(mark)) if mark == *wanted => Ok(()),
        Ok(Some(mark)) => Err(taken(path, mark)),
        Ok(None) => Err(PoolFault::Unmarked { path: path.to_owned(), name: wanted.name.clone() }),
        Err(fault) => Err(fault),
    };
    if at != path && is_it.is_err() {
        // Another device than it was.
        devices.leave(place);
    }
    is_it?;
    devices.was_added(&wanted.name);
    Ok(Pool::open(&at)?)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Longer than any storage takes that does not hang.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn pool(id: u64, name: &str, path: &Path) -> pollux_state::volume::Pool {
        let path = path.to_string_lossy().into_owned();
        pollux_state::volume::Pool { id: PoolId(id), node: NodeId(1), name: name.into(), path, since: 0 }
    }

    #[tokio::test]
    async fn a_pool_whose_storage_hangs_is_in_nobodys_way() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let (fast, slow) = (dir.path().join("fast"), dir.path().join("slow"));
        for (name, path) in [("fast", &fast), ("slow", &slow)] {
            fs::create_dir(path)
                .and_then(|()| found("c1", NodeId(1), name, path).map(drop).map_err(io::Error::other))
                .expect(name);
        }
        let (answers, hangs) = mpsc::sync_channel::<()>(1);
        let hangs = Mutex::new(hangs);
        let opens = move |devices: &Devices, place: &Place<'_>, wanted: &Mark, path: &Path| {
            if wanted.name == "slow" {
                // Until the other end says something, or is gone.
                let _ = hangs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            }
            open(devices, place, wanted, path)
        };
        let pools = Pools::opened_by("c1".into(), NodeId(1), dir.path().join("none"), Box::new(opens));
        let pools = Arc::new(pools);
        let is_told = |told: Result<Pool, Arc<PoolFault>>| told.err().map(|fault| fault.to_string());
        let hanging = is_told(pools.get(&pool(2, "slow", &slow), Duration::from_millis(10)).await);
        assert!(hanging.as_ref().is_some_and(|why| why.contains("still being mounted since 2")), "{hanging:?}");
        pools.get(&pool(1, "fast", &fast), PATIENCE).await.expect("another one is opened meanwhile");
        assert_eq!(is_told(pools.try_get(&pool(2, "slow", &slow))), hanging, "it is not begun a second time");

        answers.send(()).expect("it hangs");
        pools.get(&pool(2, "slow", &slow), PATIENCE).await.expect("it is there in the end");

        // One that hangs does not keep the daemon from ending, nor does what comes of it in the end do any harm.
        pools.retain(|_| false);
        assert!(pools.try_get(&pool(3, "slow", &slow)).is_err());
        pools.close();
        pools.retain(|_| false);
        let mut over = pools.watch();
        drop(answers);
        over.changed().await.expect("the thread ends");
        assert!(pools.all().is_empty());
    }

    #[tokio::test]
    async fn two_of_one_name_are_opened_one_after_the_other() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        for path in [&first, &second] {
            fs::create_dir(path)
                .and_then(|()| found("c1", NodeId(1), "fast", path).map(drop).map_err(io::Error::other))
                .expect("it can be made");
        }
        let (answers, hangs) = mpsc::sync_channel::<()>(1);
        let hangs = Mutex::new(hangs);
        let hanging = first.clone();
        let opens = move |devices: &Devices, place: &Place<'_>, wanted: &Mark, path: &Path| {
            if *path == hanging {
                let _ = hangs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            }
            open(devices, place, wanted, path)
        };
        let pools = Arc::new(Pools::opened_by("c1".into(), NodeId(1), dir.path().join("none"), Box::new(opens)));
        let is_opening = |told: Result<Pool, Arc<PoolFault>>| {
            matches!(told.as_ref().map_err(|it| &**it), Err(PoolFault::Opening { .. }))
        };
        assert!(is_opening(pools.try_get(&pool(1, "fast", &first))));
        while pools.devices.try_enter("fast").is_ok() {
            tokio::task::yield_now().await;
        }
        // It hangs, and is removed; another one is given its name.
        pools.retain(|_| false);
        let refused = pools.prepare("fast", &second, |_| Ok(())).expect_err("the first is still there");
        assert!(matches!(refused, PoolFault::Opening { .. }), "{refused}");
        assert!(is_opening(pools.get(&pool(2, "fast", &second), Duration::from_millis(50)).await));
        answers.send(()).expect("it hangs");
        pools.get(&pool(2, "fast", &second), PATIENCE).await.expect("it has its turn");
        assert!(pools.devices.try_enter("fast").is_ok());
    }

    #[tokio::test]
    async fn an_unmounted_pool_and_another_ones_are_told_apart_from_this_one() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let pools = |node| Arc::new(Pools::new("c1".into(), node, dir.path().join("none")));
        let pool = |name: &str| pool(1, name, dir.path());
        let refused = pools(NodeId(1)).get(&pool("fast"), PATIENCE).await.expect_err("nobody marked it");
        assert!(matches!(*refused, PoolFault::Unmarked { .. }), "{refused}");
        found("c1", NodeId(1), "fast", dir.path()).expect("it can be marked");
        found("c1", NodeId(1), "fast", dir.path()).expect("and again");
        pools(NodeId(1)).get(&pool("fast"), PATIENCE).await.expect("it is the pool");
        for (cluster, node, name) in [("c2", NodeId(1), "fast"), ("c1", NodeId(2), "fast"), ("c1", NodeId(1), "slow")] {
            let refused = found(cluster, node, name, dir.path());
            assert!(matches!(refused, Err(PoolFault::Taken { .. })), "{cluster} {node} {name}");
        }
        let refused = pools(NodeId(2)).get(&pool("fast"), PATIENCE).await.expect_err("it is another node's");
        assert!(matches!(*refused, PoolFault::Taken { .. }), "{refused}");
    }
}
