//! What one daemon asks another on behalf of a user: only the owner of a VM knows what its QEMU is doing.

use std::time::Duration;

use bytes::Bytes;
use pollux_link::{Class, Endpoint, Fault, To};
use pollux_state::{
    ClusterState,
    id::{NodeId, VmId},
    vm::VmSpec,
};
use pollux_vm::convergence::Sample;
use pollux_wire::{codec, fault, limits::Limit, method::FORWARD};
use serde::{Deserialize, Serialize};

use super::{run::Daemon, views};
use crate::{
    api::types::{self, Obstacle, Refused},
    vm::{Vms, host::Log},
};

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
    pub(super) runtime: Option<types::Runtime>,
    pub(super) progress: Option<types::ProgressView>,
}

/// Answers another daemon.
pub(super) async fn answer(daemon: &Daemon, body: &[u8]) -> Result<Bytes, Fault> {
    let question: Question = codec::decode(body, Limit::Control)
        .map_err(|error| Fault { code: fault::MALFORMED, text: error.to_string() })?;
    let answer = match question {
        Question::Doing(vm) => json(&doing(daemon.vms(), vm)),
        Question::Log(vm, from) => {
            let Log { start, bytes } = log(daemon.vms(), vm, from);
            codec::encode(&(start, bytes), Limit::Control).map_err(|error| error.to_string())
        }
        Question::Refused => json(&refused(daemon)),
        Question::CanRun(spec) => json(&daemon.host.obstacles(&spec).await),
        Question::Sample(vm, to) => json(&sample(daemon, vm, to).await),
    };
    answer.map(Bytes::from).map_err(|text| Fault { code: fault::INTERNAL, text })
}

pub(super) fn doing(vms: Option<&Vms>, vm: VmId) -> Doing {
    let status = vms.and_then(|vms| vms.status(vm));
    let progress = status.as_ref().and_then(|status| status.progress);
    Doing {
        runtime: Some(views::runtime(status.as_ref())),
        progress: progress.map(|(progress, since)| views::progress_view(&progress, since)),
    }
}

pub(super) fn log(vms: Option<&Vms>, vm: VmId, from: u64) -> Log {
    vms.and_then(|vms| vms.log(vm)).unwrap_or_default().since(from)
}

/// What a move of a VM of this node to another would meet.
pub(super) async fn sample(daemon: &Daemon, vm: VmId, to: NodeId) -> Result<Sample, String> {
    let vms = daemon.vms().ok_or("the daemon is starting")?;
    let address = daemon.consensus.watch().borrow().state.nodes.get(&to).map(|node| node.address);
    let address = address.ok_or_else(|| format!("{to} is not in the cluster"))?;
    vms.sample(vm, &To { node: to, address }).await
}

/// Asks `node` why it could not run such a VM; `None` when it does not answer in time.
pub(super) async fn ask_can_run(
    endpoint: &Endpoint,
    state: &ClusterState,
    node: NodeId,
    spec: &VmSpec,
) -> Option<Vec<Obstacle>> {
    let body = ask_patiently(endpoint, state, node, &Question::CanRun(spec.clone()), CHECK_MS_MAX).await?;
    serde_json::from_slice(&body).ok()
}

/// Asks `node` what a move would meet.
pub(super) async fn ask_sample(
    endpoint: &Endpoint,
    state: &ClusterState,
    node: NodeId,
    (vm, to): (VmId, NodeId),
) -> Result<Sample, String> {
    let body = ask_patiently(endpoint, state, node, &Question::Sample(vm, to), SAMPLE_MS_MAX).await;
    let body = body.ok_or("the node that runs it does not answer")?;
    serde_json::from_slice(&body).map_err(|error| error.to_string())?
}

pub(super) fn refused(daemon: &Daemon) -> Refused {
    daemon.endpoint.counters().refusals().map(|(what, times)| (what.to_owned(), times)).collect()
}

/// Asks `node`; `None` when it does not answer in time.
pub(super) async fn ask_doing(endpoint: &Endpoint, state: &ClusterState, node: NodeId, vm: VmId) -> Option<Doing> {
    let body = ask(endpoint, state, node, &Question::Doing(vm)).await?;
    serde_json::from_slice(&body).ok()
}

pub(super) async fn ask_log(
    endpoint: &Endpoint,
    state: &ClusterState,
    node: NodeId,
    (vm, from): (VmId, u64),
) -> Option<Log> {
    let body = ask(endpoint, state, node, &Question::Log(vm, from)).await?;
    let (start, bytes) = codec::decode(&body, Limit::Control).ok()?;
    Some(Log { start, bytes })
}

pub(super) async fn ask_refused(endpoint: &Endpoint, state: &ClusterState, node: NodeId) -> Option<Refused> {
    let body = ask(endpoint, state, node, &Question::Refused).await?;
    serde_json::from_slice(&body).ok()
}

async fn ask(endpoint: &Endpoint, state: &ClusterState, node: NodeId, question: &Question) -> Option<Bytes> {
    ask_patiently(endpoint, state, node, question, ANSWER_MS_MAX).await
}

async fn ask_patiently(
    endpoint: &Endpoint,
    state: &ClusterState,
    node: NodeId,
    question: &Question,
    ms_max: u64,
) -> Option<Bytes> {
    let to = To { node, address: state.nodes.get(&node)?.address };
    let body = codec::encode(question, Limit::Control).ok()?;
    let deadline = Duration::from_millis(ms_max);
    match endpoint.call(&to, Class::Bulk, FORWARD, Bytes::from(body), deadline).await {
        Ok(answer) => Some(answer),
        Err(error) => {
            tracing::debug!(%node, %error, "another daemon did not answer");
            None
        }
    }
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    serde_json::to_vec(value).map_err(|error| error.to_string())
}
