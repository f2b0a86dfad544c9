//! Waiting until a VM is what it is wanted to be. Level-triggered: each look is at what is, and a lost one costs nothing.

use std::time::Duration;

use pollux_api::{Desired, ErrorKind, Phase, Runtime, VmView};
use tokio::time::{self, Instant};

use crate::api::client::{Client, Tagged};

use super::super::{
    exit::{Exit, Failure},
    output::span,
};

/// One wait for news, in milliseconds.
const WAIT_MS: u64 = 10_000;
/// Between two questions that nobody could answer, in milliseconds.
const RETRY_MS: u64 = 500;

/// What one look at the VM says.
enum Look {
    Done,
    Wait,
    Never(Failure),
}

/// Wait until nobody has the right to run the VM.
pub(crate) async fn until_stopped(
    client: &Client,
    vm: VmView,
    force: bool,
    limit: Duration,
) -> Result<VmView, Failure> {
    let name = vm.name.clone();
    let judge = |vm: &VmView| match (vm.phase, vm.desired) {
        (Phase::Stopped, Desired::Stopped) => Look::Done,
        (_, Desired::Running) => Look::Never(Failure::new(
            Exit::Conflict,
            format!("VM {} is wanted running again: somebody started it", vm.name),
        )),
        (Phase::Running | Phase::Moving | Phase::Arriving, Desired::Stopped) => Look::Wait,
    };
    until(client, vm, limit, judge).await?.map_err(|vm| {
        let on = vm.node.as_deref().unwrap_or("no node");
        let failure = Failure::new(Exit::TimedOut, format!("VM {name} still runs on {on} after {}", written(limit)));
        if vm.phase != Phase::Running {
            failure.todo("it is being moved: see `pollux op list`; it stops once that has ended")
        } else if force {
            failure.todo(format!("it is still wanted stopped; see whether {on} is alive with `pollux node list`"))
        } else {
            failure.todo(format!(
                "the guest does not react to its power button; `pollux vm stop {name} --force` pulls the plug"
            ))
        }
    })
}

/// Wait until the guest runs.
pub(crate) async fn until_running(client: &Client, vm: VmView, limit: Duration) -> Result<VmView, Failure> {
    let name = vm.name.clone();
    let failed_before = vm.failed_starts;
    let judge = |vm: &VmView| match (vm.phase, vm.runtime) {
        (Phase::Running | Phase::Moving, Runtime::Running | Runtime::Sending) => Look::Done,
        (Phase::Stopped, _) if vm.desired == Desired::Stopped || vm.failed_starts > failed_before => {
            let why = vm.stop_cause.as_deref().unwrap_or("it was stopped again");
            Look::Never(
                Failure::new(Exit::Failed, format!("VM {} does not run: {why}", vm.name))
                    .todo(format!("`pollux vm log {}` shows what it wrote", vm.name)),
            )
        }
        _ => Look::Wait,
    };
    until(client, vm, limit, judge).await?.map_err(|vm| {
        Failure::new(Exit::TimedOut, format!("VM {name} does not run on {} after {}", vm.home, written(limit))).todo(
            format!("it is still wanted running; `pollux vm show {name}` and `pollux node list` say what it waits for"),
        )
    })
}

/// Look until `judge` is satisfied (`Ok`) or `limit` is over (`Err` with the last that was seen).
async fn until(
    client: &Client,
    first: VmView,
    limit: Duration,
    judge: impl Fn(&VmView) -> Look,
) -> Result<Result<VmView, VmView>, Failure> {
    let name = first.name.clone();
    let end = Instant::now() + limit;
    let looking = async {
        let mut now = first;
        let mut seen: Option<Tagged<VmView>> = None;
        loop {
            match judge(&now) {
                Look::Done => return Ok(Ok(now)),
                Look::Never(failure) => return Err(failure),
                Look::Wait => {}
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Err(now));
            }
            match client.vm_after(&name, seen.as_ref(), left.min(Duration::from_millis(WAIT_MS))).await {
                Ok(tagged) => {
                    now = tagged.view.clone();
                    seen = Some(tagged);
                }
                // An election or a daemon that starts again is no reason to give up before the time is over. Nor does it mean
                // that nothing was changed: what was asked for was accepted.
                Err(error) if error.kind == ErrorKind::Unavailable => {
                    time::sleep(left.min(Duration::from_millis(RETRY_MS))).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    tokio::select! {
        end = looking => end,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Interrupted, format!("no longer waiting for VM {name}; what was asked for stands"))
            .todo(format!("`pollux vm show {name}` says what it does"))),
    }
}

fn written(limit: Duration) -> String {
    span(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
}
