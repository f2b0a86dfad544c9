//! What the API asks of the daemon about pools and volumes.

use async_trait::async_trait;
use pollux_api::{
    AddPool, AddReplica, ApiError, AttachVolume, CreateVolume, DeleteVolume, ExportVolume, GrowVolume, ImportVolume,
    MoveVolume, OperationView, PoolView, TransferView, VerificationView, VerifyVolume, VolumeView,
};

/// The part of the daemon that knows of pools and volumes, as the API server sees it. The rules are [`super::Backend`]'s.
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// All pools, by place. What only their nodes know is asked of them.
    async fn pools(&self) -> Result<Vec<PoolView>, ApiError>;

    /// A directory becomes a pool. Its node looks at it, marks it and says so to the log.
    async fn add_pool(&self, request: AddPool) -> Result<PoolView, ApiError>;

    /// Forget a pool without replicas. Answers with what it was.
    async fn remove_pool(&self, place: &str) -> Result<PoolView, ApiError>;

    /// All volumes, by name.
    async fn volumes(&self) -> Result<Vec<VolumeView>, ApiError>;

    /// One volume. What only its user's node knows is asked of it.
    async fn volume(&self, name: &str) -> Result<VolumeView, ApiError>;

    /// Create a volume. Its nodes make the replicas when they see it.
    async fn create_volume(&self, request: CreateVolume) -> Result<VolumeView, ApiError>;

    /// Let a volume that nobody writes to become larger.
    async fn grow_volume(&self, name: &str, request: GrowVolume) -> Result<VolumeView, ApiError>;

    /// Forget a volume that nobody uses. Answers with what it was.
    async fn delete_volume(&self, name: &str, request: DeleteVolume) -> Result<VolumeView, ApiError>;

    /// Give a volume to a stopped VM.
    async fn attach_volume(&self, name: &str, request: AttachVolume) -> Result<VolumeView, ApiError>;

    /// Take a volume away from its VM, which is stopped.
    async fn detach_volume(&self, name: &str) -> Result<VolumeView, ApiError>;

    /// A replica takes another's place, while the volume is in use or not.
    async fn move_volume(&self, name: &str, request: MoveVolume) -> Result<OperationView, ApiError>;

    /// One more replica.
    async fn add_replica(&self, name: &str, request: AddReplica) -> Result<VolumeView, ApiError>;

    /// Forget the replica in a pool.
    async fn remove_replica(&self, name: &str, place: &str) -> Result<VolumeView, ApiError>;

    /// Begin to make a volume of a file of this node.
    async fn import_volume(&self, name: &str, request: ImportVolume) -> Result<TransferView, ApiError>;

    /// Begin to make a file on this node of a volume.
    async fn export_volume(&self, name: &str, request: ExportVolume) -> Result<TransferView, ApiError>;

    /// How far an import or an export of this node is.
    async fn transfer(&self, id: u64) -> Result<TransferView, ApiError>;

    /// Begin to compare the replicas of a volume, on the node that writes to it.
    async fn verify_volume(&self, name: &str, request: VerifyVolume) -> Result<VerificationView, ApiError>;

    /// How far a comparison is that a node does.
    async fn verification(&self, node: &str, id: &str) -> Result<VerificationView, ApiError>;
}
