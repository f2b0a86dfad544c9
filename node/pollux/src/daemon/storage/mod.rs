//! What the API's verbs about pools and volumes do.
//!
//! What was decided is in the applied state. What only one node knows is asked of that node when somebody wants to see it: a
//! pool's free space of the pool's node ([`pools`]), how replicas are of the node that uses the volume ([`live`]).

mod along;
mod comparisons;
pub(super) mod firmware;
mod live;
mod measure;
mod pools;
mod problems;
mod transfers;
mod verifying;
mod views;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use pollux_api::{
    AddPool, AddReplica, ApiError, AttachVolume, CreateVolume, DeleteVolume, ExportVolume, GrowVolume, ImportVolume,
    MoveVolume, OperationView, PoolView, ProgressView, TransferView, VerificationView, VerifyVolume, VolumeView,
};
use pollux_state::{
    ClusterState, Command,
    id::{Generation, NodeId, OpId, PoolId, ReplicaId},
    volume::{Pool, Stage, Volume},
};

use super::{
    backend::{Api, down_in, no_such, node_named, vm_named},
    forward,
};
use crate::api::{Backend as _, Storage};

pub(super) use along::{Plan, Wish, plan};
pub(super) use comparisons::problems_of as differences_of;
pub(super) use live::{Live, here as live_here};
pub(super) use measure::look as measure;
pub(super) use pools::{add_here as add_pool_here, usage_here};
pub(super) use problems::{of as problems_of, of_volume as problem_of};
pub(super) use transfers::Transfers;
pub(super) use verifying::{Verifications, begin_here as verify_here, look_here as verification_here};

/// The nodes that the leader counts as down; none when it cannot be asked.
pub(super) type Down = BTreeSet<NodeId>;

#[async_trait]
impl Storage for Api {
    async fn pools(&self) -> Result<Vec<PoolView>, ApiError> {
        let state = self.applied();
        let nodes: BTreeSet<NodeId> = state.pools.values().map(|pool| pool.node).collect();
        let ask = nodes.iter().map(|node| forward::pools(&self.0, &state, *node));
        let told: BTreeMap<NodeId, _> = nodes.iter().copied().zip(futures::future::join_all(ask).await).collect();
        let told = |pool: &Pool| told.get(&pool.node).and_then(Option::as_ref);
        let mut views: Vec<PoolView> =
            state.pools.values().map(|pool| views::pool(&state, pool, told(pool).map(Vec::as_slice))).collect();
        views.sort_by(|a, b| a.place.cmp(&b.place));
        Ok(views)
    }

    async fn add_pool(&self, request: AddPool) -> Result<PoolView, ApiError> {
        let state = self.state().await;
        let node = match &request.node {
            Some(name) => node_named(&state, name)?.id,
            None => self.0.identity.node(),
        };
        let (id, index) = forward::add_pool(&self.0, &state, node, (request.name, request.path)).await?;
        self.caught_up(index).await;
        self.pool_view(id).await.ok_or_else(|| {
            ApiError::unknown(format!("{id} was added, but this node has not heard of it yet"))
                .todo("`pollux pool list` shows it in a moment")
        })
    }

    async fn remove_pool(&self, place: &str) -> Result<PoolView, ApiError> {
        let pool = pool_named(&*self.state().await, place)?.id;
        let view = self.pool_view(pool).await;
        self.propose(Command::RemovePool { pool }).await?;
        view.ok_or_else(|| ApiError::not_found(format!("there is no pool called {place} any more")))
    }

    async fn volumes(&self) -> Result<Vec<VolumeView>, ApiError> {
        let (state, down) = (self.applied(), self.down().await);
        let views = state.volumes.values().map(|volume| self.volume_view(&state, volume, &down));
        let mut views: Vec<VolumeView> = futures::future::join_all(views).await;
        views.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(views)
    }

    async fn volume(&self, name: &str) -> Result<VolumeView, ApiError> {
        let (state, down) = (self.applied(), self.down().await);
        let volume = volume_named(&state, name)?;
        let mut view = self.volume_view(&state, volume, &down).await;
        let compared = self.comparisons(&state, &down).await;
        view.compared = compared.get(&volume.id).map(|compared| comparisons::view(&state, volume, compared));
        Ok(view)
    }

    async fn create_volume(&self, request: CreateVolume) -> Result<VolumeView, ApiError> {
        let state = self.state().await;
        let pools = request.pools.iter().map(|place| pool_named(&state, place).map(|pool| pool.id));
        let pools = pools.collect::<Result<Vec<PoolId>, ApiError>>()?;
        let (name, size) = (request.name.clone(), request.size_bytes);
        self.propose(Command::CreateVolume { name, size, pools }).await?;
        self.volume(&request.name).await
    }

    async fn grow_volume(&self, name: &str, request: GrowVolume) -> Result<VolumeView, ApiError> {
        let volume = volume_named(&*self.state().await, name)?.id;
        self.propose(Command::GrowVolume { volume, size: request.size_bytes }).await?;
        self.volume(name).await
    }

    async fn delete_volume(&self, name: &str, request: DeleteVolume) -> Result<VolumeView, ApiError> {
        let (state, down) = (self.state().await, self.down().await);
        let volume = volume_named(&state, name)?;
        let view = self.volume_view(&state, volume, &down).await;
        let expect = Generation(request.generation);
        self.propose(Command::DeleteVolume { volume: volume.id, expect }).await?;
        Ok(view)
    }

    async fn attach_volume(&self, name: &str, request: AttachVolume) -> Result<VolumeView, ApiError> {
        let state = self.state().await;
        let (volume, vm) = (volume_named(&state, name)?, vm_named(&state, &request.vm)?);
        let (volume, expect) = (volume.id, volume.generation);
        self.propose(Command::AttachVolume { vm: vm.id, volume, expect, boot: request.boot }).await?;
        self.volume(name).await
    }

    async fn detach_volume(&self, name: &str) -> Result<VolumeView, ApiError> {
        let state = self.state().await;
        let volume = volume_named(&state, name)?;
        let vm = volume.user.ok_or_else(|| {
            ApiError::conflict(format!("volume {name} belongs to no VM: there is nothing to take it away from"))
        })?;
        let (volume, expect) = (volume.id, volume.generation);
        self.propose(Command::DetachVolume { vm, volume, expect }).await?;
        self.volume(name).await
    }

    async fn move_volume(&self, name: &str, request: MoveVolume) -> Result<OperationView, ApiError> {
        let state = self.state().await;
        let (it, to) = (volume_named(&state, name)?, pool_named(&state, &request.to)?);
        let from = match &request.from {
            Some(place) => replica_in(&state, it, place)?,
            None => {
                let mut all = it.replicas.keys();
                let first = *all.next().ok_or_else(|| ApiError::internal(format!("volume {name} has no replica")))?;
                if all.next().is_some() {
                    let places: Vec<String> =
                        it.replicas.keys().map(|replica| state.place_of_replica(it, *replica)).collect();
                    let why = format!("volume {name} has replicas in {}", places.join(" and "));
                    return Err(ApiError::invalid(why).todo("say which is to go: --from NODE:POOL"));
                }
                first
            }
        };
        let (volume, version) = (it.id, it.version);
        let (keep_ms, bandwidth) = (request.keep_ms, request.bandwidth);
        let command = Command::BeginVolumeMove { volume, from, pool: to.id, keep_ms, version, bandwidth };
        let (id, _) = self.propose(command).await?;
        self.operation(&id.to_string()).await
    }

    async fn add_replica(&self, name: &str, request: AddReplica) -> Result<VolumeView, ApiError> {
        let state = self.state().await;
        let (volume, pool) = (volume_named(&state, name)?, pool_named(&state, &request.pool)?);
        let (id, version) = (volume.id, volume.version);
        self.propose(Command::AddReplica { volume: id, pool: pool.id, version }).await?;
        self.volume(name).await
    }

    async fn remove_replica(&self, name: &str, place: &str) -> Result<VolumeView, ApiError> {
        let state = self.state().await;
        let volume = volume_named(&state, name)?;
        let replica = replica_in(&state, volume, place)?;
        let (volume, version) = (volume.id, volume.version);
        self.propose(Command::RemoveReplica { volume, replica, version }).await?;
        self.volume(name).await
    }

    async fn import_volume(&self, name: &str, request: ImportVolume) -> Result<TransferView, ApiError> {
        self.import(name, request).await
    }

    async fn export_volume(&self, name: &str, request: ExportVolume) -> Result<TransferView, ApiError> {
        self.export(name, request).await
    }

    async fn transfer(&self, id: u64) -> Result<TransferView, ApiError> {
        self.0.transfers.find(id).ok_or_else(|| {
            ApiError::not_found(format!("this daemon knows no transfer {id}"))
                .todo("it may have been started again since; what it was doing then was ended")
        })
    }

    async fn verify_volume(&self, name: &str, request: VerifyVolume) -> Result<VerificationView, ApiError> {
        self.verify(name, request.repair).await
    }

    async fn verification(&self, node: &str, id: &str) -> Result<VerificationView, ApiError> {
        self.look_at_verification(node, id).await
    }
}

impl Api {
    /// Which nodes cannot be expected to answer.
    pub(super) async fn down(&self) -> Down {
        down_in(self.health().await.as_ref())
    }

    async fn pool_view(&self, id: PoolId) -> Option<PoolView> {
        let state = self.applied();
        let pool = state.pools.get(&id)?;
        let told = forward::pools(&self.0, &state, pool.node).await;
        Some(views::pool(&state, pool, told.as_deref()))
    }

    async fn volume_view(&self, state: &Arc<ClusterState>, volume: &Volume, down: &Down) -> VolumeView {
        let user = state.writer(volume).filter(|writer| state.lives(*writer) && !down.contains(&writer.node));
        let live = match user {
            Some(writer) => forward::live(&self.0, state, writer.node, volume.id).await,
            None => None,
        };
        views::volume(state, volume, down, live.as_ref())
    }
}

impl Api {
    /// How far the volumes are that go along with a VM by `op`; `None`: none is on its way.
    pub(super) async fn mirroring(&self, state: &Arc<ClusterState>, op: OpId) -> Option<ProgressView> {
        let along = || state.moved_by(op);
        let stages: Vec<Stage> = along().filter_map(Volume::stage).collect();
        let phase = if stages.contains(&Stage::Copying) {
            "mirroring"
        } else if stages.contains(&Stage::Comparing) {
            "comparing"
        } else {
            return None;
        };
        let writers = along().filter_map(|it| Some((it, state.writer(it)?)));
        let ask = writers.map(|(it, writer)| forward::live(&self.0, state, writer.node, it.id));
        let told = futures::future::join_all(ask).await;
        let coming: BTreeSet<u64> = along().filter_map(|it| Some(it.moving?.to.0)).collect();
        let (sent_bytes, left) = live::copied(told.iter().flatten(), &coming);
        let pages_left = left.div_ceil(pollux_vm::pages::PAGE_BYTES as u64);
        Some(ProgressView { phase: phase.to_owned(), sent_bytes, pages_left, ..ProgressView::default() })
    }
}

/// The replica of a volume in a pool.
fn replica_in(state: &ClusterState, volume: &Volume, place: &str) -> Result<ReplicaId, ApiError> {
    let pool = pool_named(state, place)?;
    let within = volume.replicas.iter().find(|(_, replica)| replica.pool == pool.id);
    within.map(|(id, _)| *id).ok_or_else(|| {
        ApiError::not_found(format!("volume {} has no replica in {place}", volume.name))
            .todo(format!("`pollux volume show {}` shows where it has some", volume.name))
    })
}

/// A pool, as people write it.
pub(super) fn pool_named<'a>(state: &'a ClusterState, place: &str) -> Result<&'a Pool, ApiError> {
    let Some((node, name)) = place.split_once(':') else {
        let todo = "write it as NODE:POOL; `pollux pool list` shows those there are";
        return Err(ApiError::invalid(format!("{place} names no pool")).todo(todo));
    };
    let node = node_named(state, node)?.id;
    let found = state.pools.values().find(|pool| pool.node == node && pool.name == name);
    let places: Vec<String> = state.pools.keys().map(|pool| state.place_of(*pool)).collect();
    found.ok_or_else(|| no_such("pool", place, places.iter().map(String::as_str), "pollux pool list"))
}

/// A volume by its name.
pub(super) fn volume_named<'a>(state: &'a ClusterState, name: &str) -> Result<&'a Volume, ApiError> {
    let names = || state.volumes.values().map(|volume| volume.name.as_str());
    let found = state.volumes.values().find(|volume| volume.name == name);
    found.ok_or_else(|| no_such("volume", name, names(), "pollux volume list"))
}
