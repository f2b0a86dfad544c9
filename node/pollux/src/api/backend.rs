//! What the API asks of the daemon.

use async_trait::async_trait;
use pollux_api::{
    ApiError, ClusterView, CreateVm, EventsView, MigrateVm, NodeView, OperationView, Preflight, PreflightView,
    ReleaseVm, RemoveNode, RemovedView, StartVm, StopVm, TakeBack, TokenRequest, TokenView, VmLog, VmView, WhyView,
    console::Start,
};
use tokio::sync::watch;

use super::{Storage, console::Duplex};

/// The daemon, as the API server sees it. One method per verb, names for arguments. Each returns within
/// [`super::REQUEST_MS_MAX`]: a change returns when it is committed, not when its effect is there. Waiting is the server's
/// business: it calls a read again whenever [`Backend::changes`] moves.
#[async_trait]
pub trait Backend: Storage {
    /// Moves whenever something that a view shows may have changed on this node: the applied state, a VM's runtime, progress.
    /// What changes on other nodes is found by looking again, every [`super::server::REREAD_MS`] milliseconds of a wait.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Makes sure that what reads of nodes, VMs and operations show from here on is not older than this call.
    async fn current(&self) -> Result<(), ApiError>;

    /// How old what this node knows may be, in milliseconds: since it was last in touch with whoever leads. `None`: not since
    /// its daemon was started.
    fn age_ms(&self) -> Option<u64>;

    /// The cluster as a whole. Answers without a quorum too, and then says what is wrong.
    async fn cluster(&self) -> Result<ClusterView, ApiError>;

    /// Events with a number above `after`, or all that are kept. A number that no event has had yet is of another cluster, and
    /// refused as soon as that is certain.
    async fn events(&self, after: Option<u64>) -> Result<EventsView, ApiError>;

    /// A new join token.
    async fn create_token(&self, request: TokenRequest) -> Result<TokenView, ApiError>;

    /// All nodes, by name.
    async fn nodes(&self) -> Result<Vec<NodeView>, ApiError>;

    /// One node.
    async fn node(&self, name: &str) -> Result<NodeView, ApiError>;

    /// All VMs, by name.
    async fn vms(&self) -> Result<Vec<VmView>, ApiError>;

    /// One VM.
    async fn vm(&self, name: &str) -> Result<VmView, ApiError>;

    /// Create a VM, and want it running if the request says so.
    async fn create_vm(&self, request: CreateVm) -> Result<VmView, ApiError>;

    /// Want a VM running.
    async fn start_vm(&self, name: &str, request: StartVm) -> Result<VmView, ApiError>;

    /// Want a VM stopped.
    async fn stop_vm(&self, name: &str, request: StopVm) -> Result<VmView, ApiError>;

    /// Forget a stopped VM. Answers with what it was.
    async fn delete_vm(&self, name: &str) -> Result<VmView, ApiError>;

    /// Begin a live migration.
    async fn migrate_vm(&self, name: &str, request: MigrateVm) -> Result<OperationView, ApiError>;

    /// Whether a VM could be moved, every reason why not, and what it would cost. Changes nothing.
    async fn preflight_vm(&self, name: &str, request: Preflight) -> Result<PreflightView, ApiError>;

    /// Why a VM is where it is, and whether it could be on each node.
    async fn why_vm(&self, name: &str) -> Result<WhyView, ApiError>;

    /// Give a VM back to its source although its target, which won it and fell silent, cannot be asked.
    async fn take_back_vm(&self, name: &str, request: TakeBack) -> Result<VmView, ApiError>;

    /// Release a VM whose owner's host is lost.
    async fn release_vm(&self, name: &str, request: ReleaseVm) -> Result<VmView, ApiError>;

    /// Remove a node for good.
    async fn remove_node(&self, name: &str, request: RemoveNode) -> Result<RemovedView, ApiError>;

    /// What the VM wrote to its serial console, from position `from` on or from the oldest byte kept (the last 64 KiB). A
    /// `from` beyond the end means that the log began anew: all of it.
    async fn vm_log(&self, name: &str, from: u64) -> Result<VmLog, ApiError>;

    /// Attaches to the VM's serial console, which then speaks as [`super::console`] says, for as long as both sides like.
    async fn console(&self, name: &str, start: Start) -> Result<Box<dyn Duplex>, ApiError>;

    /// What this node measures, in the text form of Prometheus.
    async fn metrics(&self) -> Result<String, ApiError>;

    /// All operations remembered, newest first.
    async fn operations(&self) -> Result<Vec<OperationView>, ApiError>;

    /// One operation, by its id or an unambiguous beginning of it.
    async fn operation(&self, id: &str) -> Result<OperationView, ApiError>;

    /// Ask for an operation to end early.
    async fn cancel_operation(&self, id: &str) -> Result<OperationView, ApiError>;
}
