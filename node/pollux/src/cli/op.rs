//! `pollux op`: operations, which go on whether or not somebody watches.

use clap::Subcommand;
use pollux_api::{OperationKind, OperationResult, OperationView};

use super::{
    Context,
    exit::Failure,
    follow::{conclude, follow, parts, short},
    output::{age, bytes, emit, list, moment, now_ms, show, span, table},
    rate::rate_text,
};

/// Verbs about operations.
#[derive(Debug, Subcommand)]
pub(crate) enum Op {
    /// All operations the cluster remembers, newest first.
    List,
    /// One operation: how far it is, or how it ended and what it cost.
    Show {
        /// Its id or an unambiguous beginning of it.
        id: String,
    },
    /// Follow an operation to its end. Ctrl-C leaves it alone.
    Watch {
        /// Its id or an unambiguous beginning of it.
        id: String,
    },
    /// Ask for an operation to end early, and wait until it has. One that is past the point of no return still succeeds.
    Cancel {
        /// Its id or an unambiguous beginning of it.
        id: String,
        /// Do not wait.
        #[arg(long)]
        detach: bool,
    },
}

pub(crate) async fn run(context: &Context, verb: Op) -> Result<(), Failure> {
    let client = &context.client;
    match verb {
        Op::List => context.show_read(&client.operations().await?, |all| many(all, now_ms())),
        Op::Show { id } => context.show_read(&client.operation(&id).await?, |one| single(one, now_ms())),
        Op::Watch { id } => {
            let end = follow(client, client.operation(&id).await?).await?;
            conclude(context.format, &end)
        }
        Op::Cancel { id, detach: true } => show(context.format, &client.cancel_operation(&id).await?, |one| {
            format!("asked operation {} to end\n", short(&one.id))
        }),
        Op::Cancel { id, detach: false } => {
            let end = follow(client, client.cancel_operation(&id).await?).await?;
            match end.result {
                // What was asked for here is that it ends: cancelled is the success of this verb.
                Some(OperationResult::Cancelled) => show(context.format, &super::follow::summary(&end), |_| {
                    format!("operation {} is cancelled; {} stays on {}\n", short(&end.id), end.vm, end.from)
                }),
                Some(OperationResult::Succeeded) => {
                    if context.format == super::output::Format::Table {
                        emit(&format!("operation {} was past the point of no return\n", short(&end.id)))?;
                    }
                    conclude(context.format, &end)
                }
                Some(OperationResult::Failed) | None => conclude(context.format, &end),
            }
        }
    }
}

fn state(operation: &OperationView) -> String {
    match operation.result {
        Some(OperationResult::Succeeded) => "succeeded".to_owned(),
        Some(OperationResult::Failed) => "failed".to_owned(),
        Some(OperationResult::Cancelled) => "cancelled".to_owned(),
        None if operation.cancel => "being cancelled".to_owned(),
        None => operation.progress.as_ref().map_or_else(|| operation.phase.clone(), |progress| progress.phase.clone()),
    }
}

fn kind(operation: &OperationView) -> &'static str {
    match operation.kind {
        pollux_api::OperationKind::Migrate => "migrate",
        pollux_api::OperationKind::MoveVolume => "move-volume",
    }
}

fn many(operations: &[OperationView], now: u64) -> String {
    table(
        ["ID", "KIND", "WHAT", "FROM", "TO", "STATE", "STARTED", "TOOK", "REASON"],
        &[6, 7],
        operations.iter().map(|operation| {
            [
                short(&operation.id).to_owned(),
                kind(operation).to_owned(),
                operation.vm.clone(),
                operation.from.clone(),
                operation.to.clone(),
                state(operation),
                age(now, operation.started),
                operation.ended.map(|ended| age(ended, operation.started)).unwrap_or_default(),
                operation.reason.clone().unwrap_or_default(),
            ]
        }),
    )
}

fn single(operation: &OperationView, now: u64) -> String {
    let mut rows = vec![
        ("operation", operation.id.clone()),
        ("kind", kind(operation).to_owned()),
        (if operation.kind == OperationKind::Migrate { "vm" } else { "volume" }, operation.vm.clone()),
        ("from", operation.from.clone()),
        ("to", operation.to.clone()),
        ("state", state(operation)),
    ];
    if operation.kind == OperationKind::Migrate {
        rows.extend([
            ("blackout", format!("at most {} ms wished for", operation.blackout_ms_max)),
            (
                "bandwidth",
                operation
                    .bandwidth
                    .map_or_else(|| "what there is".to_owned(), |rate| format!("at most {}", rate_text(rate))),
            ),
            ("throttle", if operation.allow_throttle { "allowed" } else { "not allowed" }.to_owned()),
        ]);
    }
    rows.push(("started", format!("{} ({} ago)", moment(operation.started), age(now, operation.started))));
    if let Some(ended) = operation.ended {
        rows.push(("ended", format!("{}, after {}", moment(ended), age(ended, operation.started))));
    }
    if let Some(reason) = &operation.reason {
        rows.push(("reason", reason.clone()));
    }
    if let Some(progress) = &operation.progress {
        rows.push(("round", progress.round.to_string()));
        rows.push(("sent", format!("{} ({} on the wire)", bytes(progress.sent_bytes), bytes(progress.wire_bytes))));
        rows.push((
            "left",
            format!("{} pages, {} dirtied per second", progress.pages_left, progress.dirty_pages_per_s),
        ));
    }
    if let Some(report) = &operation.report {
        rows.push(("stood still", format!("{} ms: {}", report.pause_ms, parts(&report.parts))));
        rows.push((
            "not heard of",
            report.silence_ms.map_or_else(
                || "the guest has sent nothing since".to_owned(),
                |ms| format!("{ms} ms: from the pause to the guest's first frame from {}", operation.to),
            ),
        ));
        if report.throttle_percent > 0 {
            rows.push(("slowed down", format!("by up to {} %", report.throttle_percent)));
        }
        rows.push(("rounds", report.rounds.to_string()));
        rows.push(("pages", format!("{}, of which {} zero", report.pages, report.zero_pages)));
        rows.push(("on the wire", bytes(report.wire_bytes)));
        rows.push(("took", span(report.total_ms)));
    }
    list(rows)
}
