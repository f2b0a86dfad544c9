//! The local API: HTTP/JSON on the daemon's Unix socket, what the CLI speaks and anything else may.
//!
//! Any node answers. The daemon implements [`Backend`], which speaks in [`types`] of the API's own: the cluster's state can
//! change its shape without a user's script noticing.
//!
//! ```text
//!   pollux vm list                                                            the daemon
//!   cli -> client::Client --- HTTP/1.1 over /run/pollux/api.sock --- server::serve -> Backend -> consensus, VM actors
//!      <- VmView | ApiError ---------- JSON, or {kind, message, todo} ----------- Result<_, ApiError>
//! ```
//!
//! Who may use it is decided by the socket's mode and group. Paths carry a version (`/v1/...`); within it fields are only added.
//!
//! | Request | Answer |
//! |---|---|
//! | `GET /v1/cluster` | [`types::ClusterView`] |
//! | `GET /v1/events?after=N` (waits) | [`types::EventsView`] |
//! | `POST /v1/tokens` [`types::TokenRequest`] | [`types::TokenView`] |
//! | `GET /v1/nodes`, `GET /v1/nodes/NAME` | [`types::NodeView`] |
//! | `POST /v1/nodes/NAME/remove` [`types::RemoveNode`] | [`types::RemovedView`] |
//! | `GET /v1/vms`, `GET /v1/vms/NAME` (waits), `DELETE /v1/vms/NAME` | [`types::VmView`] |
//! | `POST /v1/vms` [`types::CreateVm`] | [`types::VmView`] |
//! | `POST /v1/vms/NAME/start` [`types::StartVm`], `.../stop` [`types::StopVm`], `.../takeback` [`types::TakeBack`] | [`types::VmView`] |
//! | `POST /v1/vms/NAME/release` [`types::ReleaseVm`] | [`types::VmView`] |
//! | `POST /v1/vms/NAME/migrate` [`types::MigrateVm`] | [`types::OperationView`] |
//! | `GET /v1/vms/NAME/log?from=N` (waits) | text; the header `pollux-log-next` says where to go on |
//! | `GET /v1/vms/NAME/console?last=N` or `?at=N`, `Upgrade: pollux-console` | 101, then as [`console`] says |
//! | `GET /metrics` | what the node measures, in the text form of Prometheus |
//! | `GET /v1/vms/NAME/why` | [`placement::WhyView`] |
//! | `GET /v1/operations`, `GET /v1/operations/ID` (waits) | [`types::OperationView`] |
//! | `POST /v1/operations/ID/cancel` | [`types::OperationView`] |
//!
//! Reads of nodes, VMs and operations show what is true now, or fail with `unavailable` where no quorum can say so. With
//! `?stale=true` they show what the answering node knew last, and the header `pollux-age-ms` says how old that may be.
//!
//! "Waits": with `?wait_ms=N` and the `ETag` of an earlier answer in `If-None-Match`, the answer comes when it differs from that
//! one, or is `304 Not Modified` after N milliseconds. Level-triggered: whoever polls sees the newest value, and a lost answer
//! costs nothing.

mod backend;
pub mod client;
pub mod console;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod listener;
pub mod placement;
mod routes;
pub mod server;
#[cfg(test)]
mod tests;
pub mod types;

pub use backend::Backend;
pub use error::{ApiError, ErrorKind};

/// Where the daemon's socket is unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/pollux/api.sock";
/// Where a node keeps its identity, log and keys unless told otherwise.
pub const DEFAULT_DIR: &str = "/var/lib/pollux";

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
/// The type of what Prometheus reads.
pub(crate) const METRICS_TYPE: &str = "text/plain; version=0.0.4";

/// On the answer to a read with `?stale=true`: how old what it shows may be, in milliseconds, or [`AGE_UNKNOWN`].
pub const AGE_HEADER: &str = "pollux-age-ms";
/// The answering node has not been in touch with a leader since its daemon was started.
pub const AGE_UNKNOWN: &str = "unknown";

/// Says where in a VM's log the next byte will be.
pub const LOG_NEXT_HEADER: &str = "pollux-log-next";
