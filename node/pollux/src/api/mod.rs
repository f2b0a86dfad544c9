//! The local API: HTTP/JSON on the daemon's Unix socket, what the CLI speaks and anything else may.
//!
//! Any node answers. The daemon implements [`Backend`], which speaks in types of the API's own: the cluster's state can
//! change its shape without a user's script noticing. They, and the table of what can be asked, are in [`pollux_api`].
//!
//! ```text
//!   pollux vm list                                                            the daemon
//!   cli -> client::Client --- HTTP/1.1 over /run/pollux/api.sock --- server::serve -> Backend -> consensus, VM actors
//!      <- VmView | ApiError ---------- JSON, or {kind, message, todo} ----------- Result<_, ApiError>
//! ```
//!
//! Who may use it is decided by the socket's mode and group.

mod backend;
pub mod client;
pub mod console;
#[cfg(test)]
pub(crate) mod fake;
mod listener;
mod routes;
pub mod server;
mod storage;
#[cfg(test)]
mod tests;

pub use backend::Backend;
pub use storage::Storage;

/// Where the daemon's socket is unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/pollux/api.sock";
/// Where a node keeps its identity, log and keys unless told otherwise.
pub const DEFAULT_DIR: &str = "/var/lib/pollux";

/// The type of what Prometheus reads.
pub(crate) const METRICS_TYPE: &str = "text/plain; version=0.0.4";
