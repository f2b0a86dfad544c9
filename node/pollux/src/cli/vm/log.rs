//! `pollux vm log`: the guest's console, byte for byte.

use std::time::Duration;

use pollux_api::ErrorKind;

use super::super::{
    Context,
    exit::Failure,
    output::{Format, note, show, until_interrupted, write},
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
    if context.format != Format::Table {
        if follow {
            return Err(Failure::usage("--follow has no end, and JSON and YAML need one; use -o table"));
        }
        let text = String::from_utf8_lossy(&first.bytes);
        let value = serde_json::json!({ "name": name, "next": first.next, "text": text });
        return show(context.format, &value, |_| String::new());
    }
    if !write(&first.bytes)? || !follow {
        return Ok(());
    }
    until_interrupted(go_on(context, name, first.next)).await
}

/// Prints what is written from position `next` on, until nobody reads it any more.
async fn go_on(context: &Context, name: &str, mut next: u64) -> Result<(), Failure> {
    let mut unseen = false;
    loop {
        match context.client.vm_log(name, next, Duration::from_millis(WAIT_MS)).await {
            Ok(log) => {
                unseen = false;
                next = log.next;
                if !write(&log.bytes)? {
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
