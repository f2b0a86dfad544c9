//! What one daemon asks another on behalf of a user: only the owner of a VM knows what its QEMU is doing, and only a pool's node what
//! is in it.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use pollux_api::{ApiError, Obstacle, Refused, VerificationView};
use pollux_link::{CallError, Class, Fault, To};
use pollux_state::{
    ClusterState,
    id::{NodeId, OpId, PoolId, VmId, VolumeId},
    vm::VmSpec,
};
use pollux_vm::convergence::Sample;
use pollux_wire::{codec, fault, limits::Limit, method::FORWARD};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    run::Daemon,
    storage::{self, Live},
    views,
};
use crate::{
    vm::host::Log,
    volumes::{Compared, PoolUsage, Volumes},
};

/// How long another daemon may take to answer, in milliseconds. A user waits for it.
const ANSWER_MS_MAX: u64 = 1_000;

/// How long another daemon may take to find out whether it could run a VM, in milliseconds: it asks QEMU.
const CHECK_MS_MAX: u64 = 5_000;
/// How long the source may take for a sample, in milliseconds: more than all its own limits together.
const SAMPLE_MS_MAX: u64 = 12_000;
/// How long a node may take to make a directory or a device a pool, in milliseconds: it looks at it, and the log has to agree.
const ADD_POOL_MS_MAX: u64 = 30_000;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Question {
    /// What are you doing with this VM?
    Doing(VmId),
    /// What did its guest write to its console, from this place on?
    Log(VmId, u64),
    /// What has this daemon refused?
    Refused,
    /// Why could you not run such a VM now?
    CanRun(VmSpec),
    /// What would a move of this VM from you to that node meet?
    Sample(VmId, NodeId),
    /// What do your pools have and hold?
    Pools,
    /// How is this volume, which you use?
    Volume(VolumeId),
    /// Make this directory your pool: the proposal's id, the pool's name, the path.
    AddPool(OpId, String, String),
    /// Compare the replicas of this volume: the comparison's id, and whether what differs is to be repaired.
    Verify(OpId, VolumeId, bool),
    /// How far is that comparison of yours?
    Verification(OpId),
    /// What did you find when you compared volumes?
    Compared,
    /// Which guests of yours stand still although they may run, of which are the firmware's variables not saved, and why?
    Troubles,
}

/// What a node does with a VM. The API's own JSON travels inside, so that both change together.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Doing {
    pub(super) runtime: Option<pollux_api::Runtime>,
    pub(super) progress: Option<pollux_api::ProgressView>,
    /// Why the guest stands still although it may run.
    pub(super) trouble: Option<String>,
    /// Why its firmware's variables are not saved.
    pub(super) unsaved: Option<String>,
}

/// What is wrong with the guests of a node: why, in words, by VM.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Troubles {
    /// They stand still although they may run.
    pub(super) waits: BTreeMap<VmId, String>,
    /// Their firmware's variables are not saved.
    pub(super) unsaved: BTreeMap<VmId, String>,
}

/// Answers another daemon.
pub(super) async fn answer(daemon: &Daemon, body: &[u8]) -> Result<Bytes, Fault> {
    let question: Question = codec::decode(body, Limit::Control)
        .map_err(|error| Fault { code: fault::MALFORMED, text: error.to_string() })?;
    reply(daemon, question).await.map_err(|text| Fault { code: fault::INTERNAL, text })
}

/// What this node answers, whoever asks.
async fn reply(daemon: &Daemon, question: Question) -> Result<Bytes, String> {
    let answer = match question {
        Question::Doing(vm) => json(&doing_here(daemon, vm)),
        Question::Log(vm, from) => {
            let Log { start, bytes } = daemon.vms().and_then(|vms| vms.log(vm)).unwrap_or_default().since(from);
            codec::encode(&(start, bytes), Limit::Control).map_err(|error| error.to_string())
        }
        Question::Refused => {
            let refused: Refused =
                daemon.endpoint.counters().refusals().map(|(what, times)| (what.to_owned(), times)).collect();
            json(&refused)
        }
        Question::CanRun(spec) => json(&daemon.host.obstacles(&spec).await),
        Question::Sample(vm, to) => json(&sample_here(daemon, vm, to).await),
        Question::Pools => json(&storage::usage_here(daemon).await),
        Question::Volume(volume) => json(&storage::live_here(daemon, volume)),
        Question::AddPool(op, name, path) => json(&storage::add_pool_here(daemon, op, (name, path)).await),
        Question::Verify(op, volume, repair) => json(&storage::verify_here(daemon, op, (volume, repair))),
        Question::Verification(op) => json(&storage::verification_here(daemon, op)),
        Question::Compared => json(&daemon.volumes().map(Volumes::compared).unwrap_or_default()),
        Question::Troubles => json(&troubles_here(daemon)),
    };
    answer.map(Bytes::from)
}

fn doing_here(daemon: &Daemon, vm: VmId) -> Doing {
    let status = daemon.vms().and_then(|vms| vms.status(vm));
    let progress = status.as_ref().and_then(|status| status.progress);
    let trouble = trouble_here(daemon, vm);
    Doing {
        runtime: Some(views::runtime(status.as_ref(), trouble.is_some())),
        progress: progress.map(|(progress, since)| views::progress_view(&progress, since)),
        trouble,
        unsaved: unsaved_here(daemon, vm),
    }
}

fn troubles_here(daemon: &Daemon) -> Troubles {
    let state = daemon.consensus.watch().borrow().state.clone();
    let each = |why: fn(&Daemon, VmId) -> Option<String>| -> BTreeMap<VmId, String> {
        state.vms.keys().filter_map(|vm| Some((*vm, why(daemon, *vm)?))).collect()
    };
    Troubles { waits: each(trouble_here), unsaved: each(unsaved_here) }
}

/// Why what the firmware of a guest of this node wrote is not saved, if it is not.
fn unsaved_here(daemon: &Daemon, vm: VmId) -> Option<String> {
    let (volume, why) = daemon.vms()?.unsaved(vm)?;
    Some(format!("{}: {why}", volume_name(daemon, volume)))
}

fn volume_name(daemon: &Daemon, id: VolumeId) -> String {
    let state = daemon.consensus.watch().borrow().state.clone();
    state.volumes.get(&id).map_or_else(|| id.to_string(), |it| format!("volume {}", it.name))
}

/// Why a guest of this node stands still although it may run, if it does.
pub(super) fn trouble_here(daemon: &Daemon, vm: VmId) -> Option<String> {
    let troubles = daemon.vms()?.troubles(vm).into_iter();
    let troubles = troubles.map(|(volume, why)| format!("{}: {why}", volume_name(daemon, volume)));
    troubles.reduce(|all, one| format!("{all}; {one}"))
}

/// What a move of a VM of this node to another would meet.
async fn sample_here(daemon: &Daemon, vm: VmId, to: NodeId) -> Result<Sample, String> {
    let vms = daemon.vms().ok_or("the daemon is starting")?;
    let address = daemon.consensus.watch().borrow().state.nodes.get(&to).map(|node| node.address);
    let address = address.ok_or_else(|| format!("{to} is not in the cluster"))?;
    vms.sample(vm, &To { node: to, address }).await
}

/// Asks `node`, which may be this one; `None` when it does not answer in time.
pub(super) async fn doing(daemon: &Daemon, state: &ClusterState, node: NodeId, vm: VmId) -> Option<Doing> {
    serde_json::from_slice(&ask(daemon, state, node, Question::Doing(vm)).await?).ok()
}

/// Asks `node` what is wrong with its guests.
pub(super) async fn troubles(daemon: &Daemon, state: &ClusterState, node: NodeId) -> Troubles {
    let told = ask(daemon, state, node, Question::Troubles).await;
    told.and_then(|told| serde_json::from_slice(&told).ok()).unwrap_or_default()
}

/// Asks `node` what a guest wrote to its console from place `from` on.
pub(super) async fn log(daemon: &Daemon, state: &ClusterState, node: NodeId, (vm, from): (VmId, u64)) -> Option<Log> {
    let body = ask(daemon, state, node, Question::Log(vm, from)).await?;
    let (start, bytes): (u64, Vec<u8>) = codec::decode(&body, Limit::Control).ok()?;
    // A log that ends nowhere is no answer.
    start.checked_add(bytes.len() as u64)?;
    Some(Log { start, bytes })
}

/// Asks `node` what it has refused.
pub(super) async fn refused(daemon: &Daemon, state: &ClusterState, node: NodeId) -> Option<Refused> {
    serde_json::from_slice(&ask(daemon, state, node, Question::Refused).await?).ok()
}

/// Asks `node` why it could not run such a VM.
pub(super) async fn can_run(
    daemon: &Daemon,
    state: &ClusterState,
    node: NodeId,
    spec: &VmSpec,
) -> Option<Vec<Obstacle>> {
    serde_json::from_slice(&ask(daemon, state, node, Question::CanRun(spec.clone())).await?).ok()
}

/// Asks `node` what a move would meet.
pub(super) async fn sample(
    daemon: &Daemon,
    state: &ClusterState,
    node: NodeId,
    (vm, to): (VmId, NodeId),
) -> Result<Sample, String> {
    let body = ask(daemon, state, node, Question::Sample(vm, to)).await;
    let body = body.ok_or("the node that runs it does not answer")?;
    serde_json::from_slice(&body).map_err(|error| error.to_string())?
}

/// Asks `node` what its pools have and hold.
pub(super) async fn pools(daemon: &Daemon, state: &ClusterState, node: NodeId) -> Option<Vec<PoolUsage>> {
    serde_json::from_slice(&ask(daemon, state, node, Question::Pools).await?).ok()
}

/// Asks `node` how a volume is that it uses.
pub(super) async fn live(daemon: &Daemon, state: &ClusterState, node: NodeId, volume: VolumeId) -> Option<Live> {
    serde_json::from_slice::<Option<Live>>(&ask(daemon, state, node, Question::Volume(volume)).await?).ok()?
}

/// Has `node` make a directory of its own a pool. Returns the pool, and the place in the log from which on it is known.
pub(super) async fn add_pool(
    daemon: &Daemon,
    state: &ClusterState,
    node: NodeId,
    (name, path): (String, String),
) -> Result<(PoolId, u64), ApiError> {
    let of = state.name_of(node).map_or_else(|| node.to_string(), str::to_owned);
    let place = format!("{of}:{name}");
    let question = Question::AddPool(daemon.minter().mint(), name, path);
    let answer = put(daemon, state, node, question).await;
    let answer = answer.map_err(|silence| match silence {
        Silence::NotAsked(why) => ApiError::unavailable(format!("the daemon of {of} cannot be asked: {why}"))
            .todo("only a pool's own node can add it; `pollux node list` tells which nodes are alive"),
        Silence::Unknown(why) => {
            ApiError::unknown(format!("{of} was asked to add pool {place}, and did not answer: {why}"))
                .todo("`pollux pool list` shows whether it has; to ask again does no harm")
        }
    })?;
    serde_json::from_slice(&answer).map_err(|error| ApiError::internal(format!("{of} answers oddly: {error}")))?
}

/// Has `node` compare the replicas of a volume.
pub(super) async fn verify(
    daemon: &Daemon,
    state: &ClusterState,
    node: NodeId,
    (volume, repair): (VolumeId, bool),
) -> Result<VerificationView, ApiError> {
    let of = state.name_of(node).map_or_else(|| node.to_string(), str::to_owned);
    let question = Question::Verify(daemon.minter().mint(), volume, repair);
    let answer = put(daemon, state, node, question).await;
    let answer = answer.map_err(|silence| match silence {
        Silence::NotAsked(why) => ApiError::unavailable(format!("the daemon of {of} cannot be asked: {why}")).todo(
            "only the node that writes to a volume can compare its replicas; `pollux node list` tells which are alive",
        ),
        Silence::Unknown(why) => {
            ApiError::unknown(format!("{of} was asked to compare the replicas, and did not answer: {why}"))
                .todo("ask again: if it does so already, it says so")
        }
    })?;
    serde_json::from_slice(&answer).map_err(|error| ApiError::internal(format!("{of} answers oddly: {error}")))?
}

/// Asks `node` how far a comparison of its own is: `None`, it does not answer; `Some(None)`, it knows of none.
pub(super) async fn verification(
    daemon: &Daemon,
    state: &ClusterState,
    node: NodeId,
    op: OpId,
) -> Option<Option<VerificationView>> {
    serde_json::from_slice(&ask(daemon, state, node, Question::Verification(op)).await?).ok()
}

/// Asks `node` what it found when it compared volumes.
pub(super) async fn compared(daemon: &Daemon, state: &ClusterState, node: NodeId) -> Option<Vec<(VolumeId, Compared)>> {
    serde_json::from_slice(&ask(daemon, state, node, Question::Compared).await?).ok()
}

/// There is no answer.
enum Silence {
    /// It surely was not asked.
    NotAsked(String),
    /// It may have been.
    Unknown(String),
}

/// The same for those who only look.
async fn ask(daemon: &Daemon, state: &ClusterState, node: NodeId, question: Question) -> Option<Bytes> {
    let silent = |silence| {
        let (Silence::NotAsked(error) | Silence::Unknown(error)) = silence;
        tracing::debug!(%node, %error, "a daemon did not answer");
    };
    put(daemon, state, node, question).await.map_err(silent).ok()
}

/// The one place that knows whether a question goes over the link or is answered here.
async fn put(daemon: &Daemon, state: &ClusterState, node: NodeId, question: Question) -> Result<Bytes, Silence> {
    let deadline = Duration::from_millis(match question {
        Question::Doing(_)
        | Question::Log(..)
        | Question::Refused
        | Question::Pools
        | Question::Volume(_)
        | Question::Verify(..)
        | Question::Verification(_)
        | Question::Compared
        | Question::Troubles => ANSWER_MS_MAX,
        Question::CanRun(_) => CHECK_MS_MAX,
        Question::Sample(..) => SAMPLE_MS_MAX,
        Question::AddPool(..) => ADD_POOL_MS_MAX,
    });
    if node == daemon.identity.node() {
        let answered = tokio::time::timeout(deadline, reply(daemon, question)).await;
        answered.unwrap_or_else(|_| Err("no answer in time".to_owned())).map_err(Silence::Unknown)
    } else {
        let address = state.nodes.get(&node).map(|node| node.address);
        let address = address.ok_or_else(|| Silence::NotAsked(format!("{node} is not in the cluster")))?;
        let to = To { node, address };
        let body = codec::encode(&question, Limit::Control).map_err(|error| Silence::NotAsked(error.to_string()))?;
        let (body, until) = (Bytes::from(body), Instant::now() + deadline);
        let call = || {
            let left = until.saturating_duration_since(Instant::now());
            daemon.endpoint.call(&to, Class::Bulk, FORWARD, body.clone(), left)
        };
        // The first may meet the connection of a daemon that has been started again since. To ask twice changes nothing.
        let asked = match call().await {
            Err(CallError::Unknown { .. } | CallError::NotSent { .. }) if Instant::now() < until => call().await,
            asked => asked,
        };
        asked.map_err(|error| match error {
            CallError::NotSent { .. } | CallError::TooLarge { .. } | CallError::Refused { .. } => {
                Silence::NotAsked(error.to_string())
            }
            CallError::Unknown { .. } | CallError::Fault { .. } => Silence::Unknown(error.to_string()),
        })
    }
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    serde_json::to_vec(value).map_err(|error| error.to_string())
}
