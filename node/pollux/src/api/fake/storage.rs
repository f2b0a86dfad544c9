//! Pools and volumes of the fake: in maps, made at once unless a test says that they are slow.

use async_trait::async_trait;
use pollux_api::{
    AddPool, AddReplica, ApiError, AttachVolume, CreateVolume, DeleteVolume, ExportVolume, GrowVolume, ImportVolume,
    MoveVolume, OperationKind, OperationView, PoolState, PoolView, ReplicaState, ReplicaView, TransferKind,
    TransferView, VerificationView, VerifiedReplica, VerifyVolume, VolumeHealth, VolumeView,
};

use super::{Fake, Held};
use crate::api::Storage;

impl Fake {
    fn on_volume(&self, name: &str, change: impl FnOnce(&mut VolumeView)) -> Result<VolumeView, ApiError> {
        let mut found = Err(no_volume(name));
        self.change(|held| {
            if let Some(volume) = held.volumes.get_mut(name) {
                change(volume);
                found = Ok(volume.clone());
            }
        });
        found
    }
}

fn no_volume(name: &str) -> ApiError {
    ApiError::not_found(format!("there is no volume called {name}"))
}

fn no_pool(place: &str) -> ApiError {
    ApiError::not_found(format!("there is no pool called {place}"))
}

/// A pool that can be used.
pub(crate) fn pool(node: &str, name: &str) -> PoolView {
    PoolView {
        place: format!("{node}:{name}"),
        node: node.into(),
        name: name.into(),
        path: format!("/srv/{name}"),
        state: PoolState::Ready,
        why: None,
        size_bytes: Some(100 << 30),
        free_bytes: Some(60 << 30),
        used_bytes: Some(2 << 30),
        promised_bytes: 10 << 30,
        replicas: 1,
        since: 0,
    }
}

/// A replica that was made and is in sync.
pub(crate) fn replica(id: u64, place: &str) -> ReplicaView {
    ReplicaView {
        id,
        place: place.into(),
        node: place.split(':').next().unwrap_or_default().into(),
        state: ReplicaState::Insync,
        in_sync: true,
        authority: id == 1,
        lacks_bytes: None,
        why: None,
    }
}

/// A volume that is well, in these pools.
pub(crate) fn volume(name: &str, pools: &[&str]) -> VolumeView {
    VolumeView {
        id: 1,
        name: name.into(),
        size_bytes: 10 << 30,
        health: VolumeHealth::Ready,
        incomplete: false,
        vm: None,
        firmware: false,
        writer: None,
        generation: 0,
        version: 1,
        replicas: pools.iter().zip(1..).map(|(place, id)| replica(id, place)).collect(),
        moving: None,
        open_requests: None,
        trouble: None,
        compared: None,
        created: 0,
    }
}

fn transfer(kind: TransferKind, volume: &str, path: &str) -> TransferView {
    TransferView {
        id: 1,
        kind,
        volume: volume.into(),
        path: path.into(),
        phase: "copying".into(),
        read_bytes: 0,
        total_bytes: 1 << 30,
        written_bytes: 0,
        started: 0,
        error: None,
    }
}

/// A comparison of these replicas that has just begun.
pub(crate) fn verification(volume: &VolumeView, repair: bool) -> VerificationView {
    let replica = |it: &ReplicaView| VerifiedReplica {
        id: it.id,
        place: it.place.clone(),
        authority: it.authority,
        compared: it.in_sync,
        differs_bytes: 0,
        repaired_bytes: 0,
        places: Vec::new(),
    };
    VerificationView {
        id: super::OPERATION.into(),
        node: "n1".into(),
        volume: volume.name.clone(),
        repair,
        phase: "comparing".into(),
        compared_bytes: 0,
        total_bytes: volume.size_bytes,
        left_out_bytes: 0,
        replicas: volume.replicas.iter().map(replica).collect(),
        result: None,
        started: 0,
        ended: None,
        error: None,
    }
}

fn taken(held: &Held, place: &str) -> bool {
    held.volumes.values().any(|volume| volume.replicas.iter().any(|replica| replica.place == place))
}

#[async_trait]
impl Storage for Fake {
    async fn pools(&self) -> Result<Vec<PoolView>, ApiError> {
        Ok(self.held().pools.values().cloned().collect())
    }

    async fn add_pool(&self, request: AddPool) -> Result<PoolView, ApiError> {
        self.may_change().await?;
        let node = request.node.unwrap_or_else(|| "n1".into());
        let added = PoolView { path: request.path, ..pool(&node, &request.name) };
        self.change(|held| _ = held.pools.insert(added.place.clone(), added.clone()));
        Ok(added)
    }

    async fn remove_pool(&self, place: &str) -> Result<PoolView, ApiError> {
        self.may_change().await?;
        let mut gone = Err(no_pool(place));
        self.change(|held| {
            gone = if taken(held, place) {
                Err(ApiError::conflict(format!("pool {place} cannot be removed: it holds replicas")))
            } else {
                held.pools.remove(place).ok_or_else(|| no_pool(place))
            };
        });
        gone
    }

    async fn volumes(&self) -> Result<Vec<VolumeView>, ApiError> {
        Ok(self.held().volumes.values().cloned().collect())
    }

    async fn volume(&self, name: &str) -> Result<VolumeView, ApiError> {
        self.held().volumes.get(name).cloned().ok_or_else(|| no_volume(name))
    }

    async fn create_volume(&self, request: CreateVolume) -> Result<VolumeView, ApiError> {
        self.may_change().await?;
        let pools: Vec<&str> = request.pools.iter().map(String::as_str).collect();
        if let Some(place) = pools.iter().find(|place| !self.held().pools.contains_key(**place)) {
            return Err(no_pool(place));
        }
        let mut made = VolumeView { size_bytes: request.size_bytes, ..volume(&request.name, &pools) };
        if self.held().deaf {
            made.health = VolumeHealth::Making;
            made.replicas.iter_mut().for_each(|replica| replica.state = ReplicaState::Making);
        }
        self.change(|held| _ = held.volumes.insert(made.name.clone(), made.clone()));
        Ok(made)
    }

    async fn grow_volume(&self, name: &str, request: GrowVolume) -> Result<VolumeView, ApiError> {
        self.may_change().await?;
        self.on_volume(name, |volume| volume.size_bytes = request.size_bytes)
    }

    async fn delete_volume(&self, name: &str, request: DeleteVolume) -> Result<VolumeView, ApiError> {
        self.may_change().await?;
        let now = self.volume(name).await?;
        if now.generation != request.generation {
            return Err(ApiError::conflict(format!("volume {name} is at {}", now.generation)));
        }
        self.change(|held| _ = held.volumes.remove(name));
        Ok(now)
    }

    async fn attach_volume(&self, name: &str, request: AttachVolume) -> Result<VolumeView, ApiError> {
        self.may_change().await?;
        self.on_volume(name, |volume| {
            volume.vm = Some(request.vm);
            volume.generation += 1;
        })
    }

    async fn detach_volume(&self, name: &str) -> Result<VolumeView, ApiError> {
        self.may_change().await?;
        self.on_volume(name, |volume| {
            volume.vm = None;
            volume.generation += 1;
        })
    }

    async fn move_volume(&self, name: &str, request: MoveVolume) -> Result<OperationView, ApiError> {
        self.may_change().await?;
        let volume = self.volume(name).await?;
        let operation = OperationView {
            id: super::OPERATION.into(),
            kind: OperationKind::MoveVolume,
            vm: volume.name,
            from: request.from.or_else(|| Some(volume.replicas.first()?.place.clone())).unwrap_or_default(),
            to: request.to,
            blackout_ms_max: 0,
            bandwidth: request.bandwidth,
            allow_throttle: false,
            phase: "copying".into(),
            cancel: false,
            started: 0,
            ended: None,
            result: None,
            reason: None,
            report: None,
            progress: None,
            copy: None,
        };
        self.change(|held| held.operation = Some(operation.clone()));
        Ok(operation)
    }

    async fn add_replica(&self, name: &str, request: AddReplica) -> Result<VolumeView, ApiError> {
        self.may_change().await?;
        self.on_volume(name, |volume| {
            let id = volume.replicas.len() as u64 + 1;
            let added = ReplicaView { state: ReplicaState::Behind, in_sync: false, ..replica(id, &request.pool) };
            volume.replicas.push(added);
            volume.health = VolumeHealth::Degraded;
        })
    }

    async fn import_volume(&self, name: &str, request: ImportVolume) -> Result<TransferView, ApiError> {
        self.may_change().await?;
        let pools: Vec<&str> = request.pools.iter().map(String::as_str).collect();
        let made = volume(name, &pools);
        let begun = transfer(TransferKind::Import, name, &request.path);
        self.change(|held| {
            held.volumes.insert(made.name.clone(), made);
            held.transfer = Some(begun.clone());
        });
        Ok(begun)
    }

    async fn export_volume(&self, name: &str, request: ExportVolume) -> Result<TransferView, ApiError> {
        self.may_change().await?;
        self.volume(name).await?;
        let begun = transfer(TransferKind::Export, name, &request.path);
        self.change(|held| held.transfer = Some(begun.clone()));
        Ok(begun)
    }

    async fn transfer(&self, id: u64) -> Result<TransferView, ApiError> {
        let found = self.held().transfer.clone().filter(|transfer| transfer.id == id);
        found.ok_or_else(|| ApiError::not_found("this daemon knows no such transfer"))
    }

    async fn verify_volume(&self, name: &str, request: VerifyVolume) -> Result<VerificationView, ApiError> {
        self.may_change().await?;
        let begun = verification(&self.volume(name).await?, request.repair);
        self.change(|held| held.verification = Some(begun.clone()));
        Ok(begun)
    }

    async fn verification(&self, node: &str, id: &str) -> Result<VerificationView, ApiError> {
        let found = self.held().verification.clone().filter(|it| it.node == node && it.id == id);
        found.ok_or_else(|| ApiError::not_found("that daemon knows no such comparison"))
    }

    async fn remove_replica(&self, name: &str, place: &str) -> Result<VolumeView, ApiError> {
        self.may_change().await?;
        self.on_volume(name, |volume| volume.replicas.retain(|replica| replica.place != place))
    }
}
