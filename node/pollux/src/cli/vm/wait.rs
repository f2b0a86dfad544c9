//! Waiting until a VM is what it is wanted to be. Level-triggered: each look is at what is, and a lost one costs nothing.

use std::time::Duration;

use pollux_api::{Desired, Phase, Runtime, VmView};
use tokio::time::Instant;

use crate::api::client::Client;

use super::super::{
    exit::{Exit, Failure},
    looking::{self, Patience, Unseen, news, unless_interrupted},
    output::{note, span_of},
};

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
    let mut told = None;
    let judge = |vm: &VmView| match (vm.phase, vm.desired) {
        (Phase::Stopped, Desired::Stopped) => Look::Done,
        (_, Desired::Running) => Look::Never(Failure::new(
            Exit::Conflict,
            format!("VM {} is wanted running again: somebody started it", vm.name),
        )),
        (Phase::Running | Phase::Moving | Phase::Arriving, Desired::Stopped) => {
            // Whoever presses the button need not wait to be told that nobody feels it.
            if !force && vm.trouble.is_some() && vm.trouble != told {
                note(&stands_still(vm));
                told.clone_from(&vm.trouble);
            }
            Look::Wait
        }
    };
    until(client, vm, limit, judge).await?.map_err(|vm| {
        let on = vm.node.as_deref().unwrap_or("no node");
        let failure = Failure::new(Exit::TimedOut, format!("VM {name} still runs on {on} after {}", span_of(limit)));
        if vm.phase != Phase::Running {
            failure.todo("it is being moved: see `pollux op list`; it stops once that has ended")
        } else if vm.trouble.is_some() && !force {
            Failure::new(Exit::TimedOut, format!("{}, after {}", stands_still(&vm), span_of(limit))).todo(format!(
                "make room, or mend what it names: then it stops by itself; or `pollux vm stop {name} --force` pulls the plug, \
                 and what it has not written to its disk is lost"
            ))
        } else if force {
            failure.todo(format!("it is still wanted stopped; see whether {on} is alive with `pollux node list`"))
        } else {
            failure.todo(format!(
                "the guest does not react to its power button; `pollux vm stop {name} --force` pulls the plug"
            ))
        }
    })
}

/// Why a guest does not feel its power button.
fn stands_still(vm: &VmView) -> String {
    let on = vm.node.as_deref().unwrap_or("no node");
    let why = vm.trouble.as_deref().unwrap_or("it waits for its disk");
    format!("VM {} stands still on {on} ({why}) and cannot stop before it has written what it has to", vm.name)
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
        Failure::new(Exit::TimedOut, format!("VM {name} does not run on {} after {}", vm.home, span_of(limit))).todo(
            format!("it is still wanted running; `pollux vm show {name}` and `pollux node list` say what it waits for"),
        )
    })
}

/// Look until `judge` is satisfied (`Ok`) or `limit` is over (`Err` with the last that was seen).
async fn until(
    client: &Client,
    first: VmView,
    limit: Duration,
    mut judge: impl FnMut(&VmView) -> Look,
) -> Result<Result<VmView, VmView>, Failure> {
    let (name, mut seen) = (first.name.clone(), None);
    let look = async |wait| {
        let tagged = client.vm_after(&name, seen.as_ref(), wait).await;
        tagged.map(|tagged| news(&mut seen, tagged))
    };
    let judge = |now: &VmView| match judge(now) {
        Look::Done => Some(Ok(now.clone())),
        Look::Never(failure) => Some(Err(failure)),
        Look::Wait => None,
    };
    let looking = async {
        match looking::until(first, Patience::Until(Instant::now() + limit), look, judge).await {
            Ok(end) => end.map(Ok),
            Err(Unseen::Late(last)) => Ok(Err(last)),
            Err(Unseen::Lost(_, error)) => Err(error.into()),
        }
    };
    let interrupted = || {
        Failure::new(Exit::Interrupted, format!("no longer waiting for VM {name}; what was asked for stands"))
            .todo(format!("`pollux vm show {name}` says what it does"))
    };
    unless_interrupted(looking, interrupted).await
}
