//! `pollux vm log`: the guest's console, byte for byte.

use std::{
    io::{self, Write},
    time::Duration,
};

use crate::api::ErrorKind;

use super::super::{
    Context,
    exit::{Exit, Failure},
    output::{Format, emit_json, note},
    suggest,
};

/// One wait for news, in milliseconds.
const WAIT_MS: u64 = 10_000;
/// Between two questions that nobody could answer, in milliseconds.
const RETRY_MS: u64 = 500;

pub(crate) async fn run(context: &Context, name: &str, follow: bool) -> Result<(), Failure> {
    let client = &context.client;
    let first = match client.vm_log(name, 0, Duration::ZERO).await {
        Ok(log) => log,
        Err(error) => return Err(suggest::for_vm(client, name, error).await),
    };
    if context.format == Format::Json {
        if follow {
            return Err(Failure::usage("--follow has no end, and JSON needs one; use -o table"));
        }
        let text = String::from_utf8_lossy(&first.bytes);
        return emit_json(&serde_json::json!({ "name": name, "next": first.next, "text": text }));
    }
    let mut next = first.next;
    if !print(&first.bytes)? || !follow {
        return Ok(());
    }
    let mut unseen = false;
    loop {
        let log = tokio::select! {
            log = client.vm_log(name, next, Duration::from_millis(WAIT_MS)) => log,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        match log {
            Ok(log) => {
                unseen = false;
                next = log.next;
                if !print(&log.bytes)? {
                    return Ok(());
                }
            }
            Err(error) if error.kind == ErrorKind::Unavailable => {
                if !std::mem::replace(&mut unseen, true) {
                    note(&format!("pollux: {error}; trying again until Ctrl-C"));
                }
                tokio::time::sleep(Duration::from_millis(RETRY_MS)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Print what the guest wrote. False: nobody reads any more.
fn print(bytes: &[u8]) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(Exit::Internal, format!("cannot write to standard output: {error}"))),
    }
}
