//! The local API's JSON, and what else travels there: what may be asked of a daemon, what it answers, and how either is read.
//!
//! Only the types and their reading: no sockets, no HTTP, nothing of a daemon, so that anything may link it. The daemon serves
//! them, its client speaks them; `pollux::api` says how.
//!
//! Times are milliseconds since 1970 by the clock of whoever wrote them; objects are named, not numbered. Paths carry a version
//! (`/v1/...`). Fields are only ever added within a version of the API, and readers ignore those they do not know. Requests are
//! strict: a field that the daemon does not know is an error rather than silently without effect.
//!
//! | Request | Answer |
//! |---|---|
//! | `GET /v1/cluster` | [`ClusterView`] |
//! | `GET /v1/events?after=N` (waits) | [`EventsView`] |
//! | `POST /v1/tokens` [`TokenRequest`] | [`TokenView`] |
//! | `GET /v1/nodes`, `GET /v1/nodes/NAME` | [`NodeView`] |
//! | `POST /v1/nodes/NAME/remove` [`RemoveNode`] | [`RemovedView`] |
//! | `GET /v1/vms`, `GET /v1/vms/NAME` (waits), `DELETE /v1/vms/NAME` | [`VmView`] |
//! | `POST /v1/vms` [`CreateVm`] | [`VmView`] |
//! | `POST /v1/vms/NAME/start` [`StartVm`], `.../stop` [`StopVm`], `.../takeback` [`TakeBack`] | [`VmView`] |
//! | `POST /v1/vms/NAME/release` [`ReleaseVm`] | [`VmView`] |
//! | `POST /v1/vms/NAME/migrate` [`MigrateVm`] | [`OperationView`] |
//! | `POST /v1/vms/NAME/preflight` [`Preflight`] | [`PreflightView`] |
//! | `GET /v1/vms/NAME/log?from=N` (waits) | text; the header `pollux-log-next` says where to go on |
//! | `GET /v1/vms/NAME/console?last=N` or `?at=N`, `Upgrade: pollux-console` | 101, then as [`console`] says |
//! | `GET /metrics` | what the node measures, in the text form of Prometheus |
//! | `GET /v1/vms/NAME/why` | [`WhyView`] |
//! | `GET /v1/pools`, `DELETE /v1/pools/NODE:POOL` | [`PoolView`] |
//! | `POST /v1/pools` [`AddPool`] | [`PoolView`] |
//! | `GET /v1/volumes`, `GET /v1/volumes/NAME` (waits) | [`VolumeView`] |
//! | `POST /v1/volumes` [`CreateVolume`], `DELETE /v1/volumes/NAME` [`DeleteVolume`] | [`VolumeView`] |
//! | `POST /v1/volumes/NAME/grow` [`GrowVolume`], `.../attach` [`AttachVolume`], `.../detach` | [`VolumeView`] |
//! | `POST /v1/volumes/NAME/import` [`ImportVolume`], `.../export` [`ExportVolume`] | [`TransferView`] |
//! | `GET /v1/transfers/ID` (waits) | [`TransferView`] |
//! | `POST /v1/volumes/NAME/verify` [`VerifyVolume`], `GET /v1/verifications/NODE/ID` (waits) | [`VerificationView`] |
//! | `POST /v1/volumes/NAME/move` [`MoveVolume`] | [`OperationView`] |
//! | `POST /v1/volumes/NAME/replicas` [`AddReplica`], `DELETE /v1/volumes/NAME/replicas/NODE:POOL` | [`VolumeView`] |
//! | `GET /v1/operations`, `GET /v1/operations/ID` (waits) | [`OperationView`] |
//! | `POST /v1/operations/ID/cancel` | [`OperationView`] |
//!
//! Whatever is no success is answered with an [`ApiError`].
//!
//! Reads of nodes, VMs, pools, volumes and operations show what is true now, or fail with `unavailable` where no quorum can say so. With
//! `?stale=true` they show what the answering node knew last, and the header `pollux-age-ms` says how old that may be.
//!
//! "Waits": with `?wait_ms=N` and the `ETag` of an earlier answer in `If-None-Match`, the answer comes when it differs from that
//! one, or is `304 Not Modified` after N milliseconds. Level-triggered: whoever polls sees the newest value, and a lost answer
//! costs nothing.

mod cluster;
pub mod console;
mod create;
mod error;
mod event;
pub mod file;
mod migration;
mod node;
mod operation;
mod placement;
mod pool;
pub mod request;
mod transfer;
mod verification;
mod vm;
mod volume;

pub use cluster::{ClusterView, Problem, TokenRequest, TokenView};
pub use create::{CPU_DEFAULT, CreateNic, CreateVm, Firmware, MACHINE_DEFAULT, MEMORY_MIB_DEFAULT, VCPUS_DEFAULT};
pub use error::{ApiError, ErrorKind};
pub use event::{EventView, EventsView};
pub use migration::{
    BLACKOUT_MS_DEFAULT, DiskMoveView, ForecastView, MigrateVm, Obstacle, Preflight, PreflightView, Storage, TargetView,
};
pub use node::{Health, Lost, NodeRole, NodeView, Refused, RemoveNode, RemovedView};
pub use operation::{CopyView, OperationKind, OperationResult, OperationView, PauseView, ProgressView, ReportView};
pub use placement::{LATELY_MAX, PlaceView, WhyView};
pub use pool::{AddPool, PoolState, PoolView};
pub use transfer::{ExportVolume, IMPORT_BYTES_MAX_DEFAULT, ImageFormat, ImportVolume, TransferKind, TransferView};
pub use verification::{ByteRange, VerificationResult, VerificationView, VerifiedReplica, VerifyVolume};
pub use vm::{Desired, NicView, Phase, ReleaseVm, Runtime, StartVm, StopVm, TakeBack, VmLog, VmView};
pub use volume::{
    AddReplica, AttachVolume, ComparedView, CreateVolume, DeleteVolume, DifferingReplica, DiskView, GrowVolume,
    MoveVolume, ReplicaState, ReplicaView, VolumeHealth, VolumeMoveView, VolumeView, WriterView,
};

/// Largest request body in bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Largest answer a client takes, in bytes.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A request that has no answer after this many milliseconds gets one that says so.
pub const REQUEST_MS_MAX: u64 = 15_000;
/// Longest wait of a long poll in milliseconds; longer ones are shortened to it.
pub const WAIT_MS_MAX: u64 = 30_000;
/// Consoles that may be attached through one daemon at the same time.
pub const CONSOLES_MAX: usize = 64;

/// On the answer to a read with `?stale=true`: how old what it shows may be, in milliseconds, or [`AGE_UNKNOWN`].
pub const AGE_HEADER: &str = "pollux-age-ms";
/// The answering node has not been in touch with a leader since its daemon was started.
pub const AGE_UNKNOWN: &str = "unknown";
/// Says where in a VM's log the next byte will be.
pub const LOG_NEXT_HEADER: &str = "pollux-log-next";
