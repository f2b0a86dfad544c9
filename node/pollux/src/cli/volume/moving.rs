//! `pollux volume move`: one replica takes another's place, and how far that is.

use std::time::Duration;

use clap::Args;
use pollux_api::{ApiError, CopyView, ErrorKind, MoveVolume, OperationResult, OperationView, VolumeView};

use super::super::{
    Context,
    exit::{Exit, Failure},
    follow::short,
    looking::{Patience, unless_interrupted, until},
    output::{bytes, note, show, span},
    rate::rate,
    suggest,
};
use crate::api::client::Client;

pub(super) const EXAMPLES: &str = "Examples:
  pollux volume move data --to n3:fast                          a volume with one replica
  pollux volume move data --from n1:fast --to n1:slow           from pool to pool
  pollux volume move data --from n1:fast --to n3:fast --keep 10m
  pollux volume move data --to n3:fast --bandwidth 1Gbit

The VM runs on: everything is copied beside its own requests, what it writes meanwhile goes to both, and the replicas are compared before
the old one goes. With --keep the old one is kept equal for that long, and `pollux op cancel` undoes the move.";

/// Between two looks, in milliseconds.
const LOOK_MS: u64 = 250;

/// How a replica moves.
#[derive(Debug, Args)]
pub(crate) struct Move {
    /// The volume's name.
    name: String,
    /// The pool it goes to.
    #[arg(long, value_name = "NODE:POOL")]
    to: String,
    /// The pool of the replica that goes; needed when there are several.
    #[arg(long, value_name = "NODE:POOL")]
    from: Option<String>,
    /// How long the old replica is kept, so that the move can be undone.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    keep: Duration,
    /// Most that the copying, and the comparing after it, may take, such as `100MB` or `1Gbit` per second; the VM's own writes do not wait.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    bandwidth: Option<u64>,
    /// Do not follow the move.
    #[arg(long)]
    detach: bool,
}

pub(super) async fn run(context: &Context, verb: Move) -> Result<(), Failure> {
    let client = &context.client;
    let keep_ms = u64::try_from(verb.keep.as_millis()).unwrap_or(u64::MAX);
    let request = MoveVolume { to: verb.to, from: verb.from, keep_ms, bandwidth: verb.bandwidth };
    let begun = match client.move_volume(&verb.name, &request).await {
        Ok(operation) => operation,
        Err(error) if error.kind == ErrorKind::NotFound && client.volume(&verb.name).await.is_ok() => {
            return Err(suggest::for_pools(client, &[request.to], error).await);
        }
        Err(error) => return Err(suggest::for_volume(client, &verb.name, error).await),
    };
    let end = if verb.detach {
        begun
    } else {
        let interrupted = || {
            let why = format!("no longer following the move of volume {}, which goes on", verb.name);
            Failure::new(Exit::Interrupted, why).todo(format!("`pollux volume show {}` tells how far it is", verb.name))
        };
        unless_interrupted(follow(client, &verb.name, begun), interrupted).await?
    };
    if let Some(result) = end.result.filter(|result| *result != OperationResult::Succeeded) {
        let cancelled = result == OperationResult::Cancelled;
        let (how, exit) = if cancelled { ("was cancelled", Exit::Cancelled) } else { ("failed", Exit::Failed) };
        let why = end.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        return Err(Failure::new(exit, format!("moving volume {} {how}{why}", verb.name))
            .todo("its replicas are where they were"));
    }
    show(context.format, &end, |end| {
        let (from, to) = (&end.from, &end.to);
        match end.ended {
            Some(at) => format!(
                "volume {} is in {to} and not in {from} any more, after {}{}\n",
                end.vm,
                span(at.saturating_sub(end.started)),
                cost(end)
            ),
            None if keep_ms > 0 => format!(
                "volume {} is in {to}, compared; {from} is kept equal for {}, and `pollux op cancel {}` undoes the move until then\n",
                end.vm,
                span(keep_ms),
                short(&end.id)
            ),
            None => format!("volume {} moves from {from} to {to}: `pollux op show {}`\n", end.vm, short(&end.id)),
        }
    })
}

fn cost(end: &OperationView) -> String {
    let told = |it: &CopyView| {
        let (copied, copying, comparing) = (bytes(it.copied_bytes), span(it.copy_ms), span(it.compare_ms));
        format!(": {copied} copied in {copying}, compared in {comparing}")
    };
    end.copy.as_ref().map(told).unwrap_or_default()
}

/// Until it has ended, or nothing is left to do but to keep the old replica.
async fn follow(client: &Client, name: &str, begun: OperationView) -> Result<OperationView, Failure> {
    let (id, mut told) = (begun.id.clone(), String::new());
    let mut first = true;
    let look = async |_: Duration| {
        // What lacks of the new replica changes all the time, and the operation does not say how much that is.
        if !std::mem::take(&mut first) {
            tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
        }
        let operation = client.operation(&id).await?;
        let volume = if operation.ended.is_some() { None } else { client.volume(name).await.ok() };
        Ok::<_, ApiError>((operation, volume))
    };
    let judge = |(operation, volume): &(OperationView, Option<VolumeView>)| {
        if operation.ended.is_some() {
            return Some(operation.clone());
        }
        let volume = volume.as_ref()?;
        let line = progress(volume, operation);
        if line != told {
            note(&line);
            told = line;
        }
        let kept = volume.moving.as_ref().is_some_and(|moving| moving.phase == "kept");
        (kept && begun_keeps(volume)).then(|| operation.clone())
    };
    until((begun, None), Patience::Unlimited, look, judge).await.map_err(|unseen| {
        let ((last, _), why) = unseen.lost();
        // Whatever the error says of itself: the move was accepted.
        let what = format!("lost sight of the move of volume {}, which goes on: {why}", last.vm);
        Failure::new(Exit::TimedOut, what).todo(format!("`pollux op watch {}` looks again", short(&last.id)))
    })
}

/// The old replica is still in the set: it is being kept, and not on its way out.
fn begun_keeps(volume: &VolumeView) -> bool {
    let Some(moving) = &volume.moving else { return false };
    moving.keep_ms > 0 && volume.replicas.iter().any(|replica| replica.place == moving.from && replica.in_sync)
}

fn progress(volume: &VolumeView, operation: &OperationView) -> String {
    let (from, to) = (&operation.from, &operation.to);
    let phase = volume.moving.as_ref().map_or("ending", |moving| moving.phase.as_str());
    let new = volume.replicas.iter().find(|replica| replica.place == *to);
    let left = new.and_then(|replica| replica.lacks_bytes).filter(|left| phase == "copying" && *left > 0);
    let left = left.map(|left| format!(", {} left", bytes(left))).unwrap_or_default();
    format!("{} {from} -> {to}: {phase}{left}", volume.name)
}
