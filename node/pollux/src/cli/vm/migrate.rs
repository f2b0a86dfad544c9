//! `pollux vm migrate`: begin a live migration and follow it.

use std::time::Duration;

use clap::Args;

use crate::api::types::MigrateVm;

use super::super::{
    Context,
    exit::Failure,
    follow::{conclude, follow, short, summary},
    output::{Format, emit, emit_json},
};

pub(crate) const EXAMPLES: &str = "Examples:
  pollux vm migrate web --to n2
  pollux vm migrate web --to n2 --max-blackout 100ms
  pollux vm migrate web --to n2 --detach && pollux op list

A guest that writes memory faster than the network carries it is not forced: the move fails, says by how much, and the VM runs
on where it was.";

/// How a VM is moved.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Its name.
    name: String,
    /// To which node.
    #[arg(long, value_name = "NODE")]
    to: String,
    /// Longest time the guest may stand still.
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = blackout)]
    max_blackout: u32,
    /// Do not follow the move.
    #[arg(long)]
    detach: bool,
}

pub(crate) async fn run(context: &Context, verb: Migrate) -> Result<(), Failure> {
    let request = MigrateVm { to: verb.to.clone(), blackout_ms_max: verb.max_blackout };
    let begun = match context.client.migrate_vm(&verb.name, &request).await {
        Ok(operation) => operation,
        Err(error) => return Err(super::wrong_name(context, &verb.name, Some(&verb.to), error).await),
    };
    if verb.detach {
        return match context.format {
            Format::Json => emit_json(&summary(&begun)),
            Format::Table => emit(&format!(
                "moving {} from {} to {}: `pollux op watch {}` follows it\n",
                begun.vm,
                begun.from,
                begun.to,
                short(&begun.id)
            )),
        };
    }
    let end = follow(&context.client, begun).await?;
    conclude(context.format, &end)
}

/// A time in whole milliseconds, at least one.
fn blackout(text: &str) -> Result<u32, String> {
    let time: Duration =
        humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 300ms or 1s"))?;
    match u32::try_from(time.as_millis()) {
        Ok(0) => Err("a move needs at least 1ms".to_owned()),
        Ok(ms) => Ok(ms),
        Err(_) => Err("more than 49 days".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blackout_is_a_time_of_at_least_a_millisecond() {
        assert_eq!(blackout("300ms"), Ok(300));
        assert_eq!(blackout("1s 500ms"), Ok(1500));
        assert!(blackout("0s").is_err());
        assert!(blackout("100us").is_err());
        assert!(blackout("300").unwrap_err().contains("300ms"), "a number without a unit says how to write it");
        assert!(blackout("50days").is_err());
    }
}
