//! The replicas in this node's pools, made to be what the log says.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use pollux_disk::{CreateError, EngineKind};
use pollux_state::{
    ClusterState, Command, Outcome,
    id::{PoolId, ReplicaId, VolumeId},
};
use pollux_volume::Place;

use super::{Volumes, name_of, named, news};

/// What could not be done is tried again after this, in milliseconds.
const AGAIN_MS: u64 = 10_000;
/// A pool that is being opened for longer than this, in milliseconds, counts as one that cannot be used.
const OPENING_MS_MAX: u64 = 10_000;

/// A replica of this node, as the log has it.
#[derive(Debug, Clone)]
struct Wanted {
    volume: VolumeId,
    replica: ReplicaId,
    size: u64,
    made: bool,
    /// It could not be used when its node looked last.
    failed: bool,
    /// Or why there is none. `None`: nobody can say that yet.
    place: Option<Result<Place, String>>,
}

impl Volumes {
    /// Looks at every decision, and makes the pools follow.
    pub(super) async fn tend(self) {
        let (mut applied, mut opened) = (self.0.consensus.watch(), self.0.pools.watch());
        // Of what was told, so that the log is not told again.
        let mut told: BTreeSet<(ReplicaId, String)> = BTreeSet::new();
        let mut seen = None;
        loop {
            opened.mark_unchanged();
            let state = applied.borrow_and_update().state.clone();
            let wanted = self.wanted(&state);
            let ours = state.pools.values().filter(|pool| pool.node == self.0.me.node);
            let replicas = wanted.iter().map(|it| (it.replica, it.size, it.made, it.failed));
            let now = (ours.map(|pool| pool.id).collect::<Vec<PoolId>>(), replicas.collect::<Vec<_>>());
            // Most decisions are about something else.
            let mut whole = true;
            if seen.as_ref() != Some(&now) {
                for it in &wanted {
                    whole &= self.tend_one(it, &mut told).await;
                }
                whole &= self.remove_unwanted(&state).await;
                self.0.pools.retain(|pool| state.pools.contains_key(&pool));
                seen = whole.then_some(now);
            }
            tokio::select! {
                goes_on = news(&mut applied, (!whole).then_some(Duration::from_millis(AGAIN_MS))) => if !goes_on { return },
                // Whoever tells is there as long as this is.
                _ = opened.changed(), if !whole => {}
            }
        }
    }

    fn wanted(&self, state: &ClusterState) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for volume in state.volumes.values() {
            for (id, replica) in &volume.replicas {
                let pool = state.pools.get(&replica.pool).filter(|pool| pool.node == self.0.me.node);
                let Some(pool) = pool else { continue };
                let name = name_of(volume.id, *id);
                let place = match self.0.pools.try_get(pool) {
                    Ok(pool) => Some(Ok(Place { pool, name, engine: EngineKind::default() })),
                    Err(fault) if fault.is_new(Duration::from_millis(OPENING_MS_MAX)) => None,
                    Err(fault) => Some(Err(fault.to_string())),
                };
                let (size, made, failed) = (volume.size, replica.made, replica.failed.is_some());
                wanted.push(Wanted { volume: volume.id, replica: *id, size, made, failed, place });
            }
        }
        wanted
    }

    /// Makes one what it should be. `false`: it could not be done, and may be later.
    async fn tend_one(&self, wanted: &Wanted, told: &mut BTreeSet<(ReplicaId, String)>) -> bool {
        let Wanted { volume, replica, size, made, failed, place } = wanted.clone();
        let Some(place) = place else { return false };
        let done = match place {
            Ok(place) => blocking(move || if made { grow(&place, size) } else { make(&place, size) }).await,
            Err(why) => Err(why),
        };
        match done {
            Ok(()) if made && !failed => true,
            Ok(()) => {
                let what = if made { "a replica can be used again" } else { "a replica was made" };
                tracing::info!(%volume, %replica, size, "{what}");
                told.retain(|(of, _)| *of != replica);
                matches!(self.propose(Command::ReplicaMade { volume, replica }).await, Outcome::Done)
            }
            Err(reason) => {
                tracing::error!(%volume, %replica, reason, "a replica of this node cannot be used");
                if told.insert((replica, reason.clone())) {
                    self.propose(Command::ReplicaFailed { volume, replica, reason }).await;
                }
                false
            }
        }
    }

    /// Removes replicas that the log knew and knows no more. One that it has never heard of is left alone: an old state may
    /// stop things, and this node's is current, but a person's file may be called like anything.
    async fn remove_unwanted(&self, state: &Arc<ClusterState>) -> bool {
        let mut whole = true;
        let ours = state.pools.values().filter(|pool| pool.node == self.0.me.node);
        for pool in ours {
            // It is being opened, perhaps; or what is wrong with it was told for its replicas. What should not be there is looked for later.
            let Ok(pool) = self.0.pools.try_get(pool) else {
                whole = false;
                continue;
            };
            let listed = {
                let pool = pool.clone();
                blocking(move || {
                    pool.sweep().map_err(|error| error.to_string())?;
                    pool.list().map_err(|error| error.to_string())
                })
                .await
            };
            let found = match listed {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(pool = %pool.path().display(), error, "a pool cannot be read");
                    whole = false;
                    continue;
                }
            };
            for name in found.into_iter().map(|found| found.name) {
                let Some(replica) = named(&name) else { continue };
                let known = state.volumes.values().any(|volume| volume.replicas.contains_key(&replica));
                if known || replica > state.last_replica {
                    continue;
                }
                self.0.keepers.end(replica, "the replica was removed").await;
                let (pool, of) = (pool.clone(), name.clone());
                match blocking(move || pool.delete(&of).map_err(|error| error.to_string())).await {
                    Ok(()) => tracing::info!(name, "a replica was removed"),
                    Err(error) => {
                        tracing::error!(name, error, "a replica that is not wanted any more is still there");
                        whole = false;
                    }
                }
            }
        }
        whole
    }
}

/// One that is there already was made by an earlier life, which could not say so any more.
fn make(place: &Place, size: u64) -> Result<(), String> {
    match place.make(size) {
        Ok(()) => Ok(()),
        Err(CreateError::Exists { .. }) => grow(place, size),
        Err(error) => Err(error.to_string()),
    }
}

/// Lets a replica follow its volume. It is never made here: an empty one would pass for one that has everything.
fn grow(place: &Place, size: u64) -> Result<(), String> {
    let found = place.pool.list().map_err(|error| error.to_string())?;
    let found = found.into_iter().find(|found| found.name == place.name);
    let found = found.ok_or_else(|| format!("{} is not in {}", place.name, place.pool.path().display()))?;
    if let Some(why) = &found.failed {
        return Err(format!("it is out of use: {why}"));
    }
    // Nobody writes to a volume that has grown until its replicas have.
    if found.size < size {
        place.pool.grow(&place.name, size).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Away from the threads that everything else runs on.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}
