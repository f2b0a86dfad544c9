//! What one daemon asks another on behalf of a user: only the owner of a VM knows what its QEMU is doing.

use std::time::Duration;

use bytes::Bytes;
use pollux_api::{Obstacle, Refused};
use pollux_link::{CallError, Class, Fault, To};
use pollux_state::{
    ClusterState,
    id::{NodeId, VmId},
    vm::VmSpec,
};
use pollux_vm::convergence::Sample;
use pollux_wire::{codec, fault, limits::Limit, method::FORWARD};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{run::Daemon, views};
use crate::vm::host::Log;

/// How long another daemon may take to answer, in milliseconds. A user waits for it.
const ANSWER_MS_MAX: u64 = 1_000;

/// How long another daemon may take to find out whether it could run a VM, in milliseconds: it asks QEMU.
const CHECK_MS_MAX: u64 = 5_000;
/// How long the source may take for a sample, in milliseconds: more than all its own limits together.
const SAMPLE_MS_MAX: u64 = 12_000;

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
}

/// What a node does with a VM. The API's own JSON travels inside, so that both change together.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Doing {
    pub(super) runtime: Option<pollux_api::Runtime>,
    pub(super) progress: Option<pollux_api::ProgressView>,
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
    };
    answer.map(Bytes::from)
}

fn doing_here(daemon: &Daemon, vm: VmId) -> Doing {
    let status = daemon.vms().and_then(|vms| vms.status(vm));
    let progress = status.as_ref().and_then(|status| status.progress);
    Doing {
        runtime: Some(views::runtime(status.as_ref())),
        progress: progress.map(|(progress, since)| views::progress_view(&progress, since)),
    }
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

/// The one place that knows whether a question goes over the link or is answered here.
async fn ask(daemon: &Daemon, state: &ClusterState, node: NodeId, question: Question) -> Option<Bytes> {
    let deadline = Duration::from_millis(match question {
        Question::Doing(_) | Question::Log(..) | Question::Refused => ANSWER_MS_MAX,
        Question::CanRun(_) => CHECK_MS_MAX,
        Question::Sample(..) => SAMPLE_MS_MAX,
    });
    let answer = if node == daemon.identity.node() {
        let answered = tokio::time::timeout(deadline, reply(daemon, question)).await;
        answered.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    } else {
        let to = To { node, address: state.nodes.get(&node)?.address };
        let body = codec::encode(&question, Limit::Control).ok()?;
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
        asked.map_err(|error| error.to_string())
    };
    answer.inspect_err(|error| tracing::debug!(%node, %error, "a daemon did not answer")).ok()
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    serde_json::to_vec(value).map_err(|error| error.to_string())
}
