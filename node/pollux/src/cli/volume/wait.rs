//! Waiting until a volume's replicas are made, and saying how far that is.

use std::{collections::BTreeSet, time::Duration};

use pollux_api::{ErrorKind, ReplicaState, VolumeView};
use tokio::time::{self, Instant};

use super::super::{
    exit::{Exit, Failure},
    output::{note, span},
};
use crate::api::client::{Client, Tagged};

/// One wait for news, in milliseconds.
const WAIT_MS: u64 = 10_000;
/// Between two questions that nobody could answer, in milliseconds.
const RETRY_MS: u64 = 500;

/// Wait until no replica is being made any more. One that cannot be made is a failure; the others stay.
pub(super) async fn until_made(client: &Client, first: VolumeView, limit: Duration) -> Result<VolumeView, Failure> {
    let name = first.name.clone();
    let end = Instant::now() + limit;
    let looking = async {
        let mut now = first;
        let mut seen: Option<Tagged<VolumeView>> = None;
        let mut told: BTreeSet<u64> = BTreeSet::new();
        loop {
            tell(&now, &mut told);
            if let Some(failed) = failed(&now) {
                return Err(failed);
            }
            let making = now.replicas.iter().filter(|replica| replica.state == ReplicaState::Making);
            let waits: Vec<String> = making.map(|replica| replica.place.clone()).collect();
            if waits.is_empty() {
                return Ok(now);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let why = format!(
                    "volume {name} is created, but after {} not yet made in {}",
                    written(limit),
                    waits.join(", ")
                );
                let todo = format!(
                    "see whether those nodes are alive with `pollux node list`; `pollux volume show {name}` tells how far it is"
                );
                return Err(Failure::new(Exit::TimedOut, why).todo(todo));
            }
            match client.volume_after(&name, seen.as_ref(), left.min(Duration::from_millis(WAIT_MS))).await {
                Ok(tagged) => {
                    now = tagged.view.clone();
                    seen = Some(tagged);
                }
                // What was asked for was accepted; that nobody can say how far it is for a moment changes nothing about it.
                Err(error) if error.kind == ErrorKind::Unavailable => {
                    time::sleep(left.min(Duration::from_millis(RETRY_MS))).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    tokio::select! {
        end = looking => end,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Interrupted, format!("no longer waiting for volume {name}, which is created"))
            .todo(format!("`pollux volume show {name}` tells how far it is"))),
    }
}

/// One line for each replica that was made since.
fn tell(volume: &VolumeView, told: &mut BTreeSet<u64>) {
    let made = |replica: &&pollux_api::ReplicaView| {
        !matches!(replica.state, ReplicaState::Making | ReplicaState::Failed) && told.insert(replica.id)
    };
    let new: Vec<&str> = volume.replicas.iter().filter(made).map(|replica| replica.place.as_str()).collect();
    for place in new {
        note(&format!("{}: made in {place}", volume.name));
    }
}

fn failed(volume: &VolumeView) -> Option<Failure> {
    let failed = volume.replicas.iter().find(|replica| replica.state == ReplicaState::Failed)?;
    let (name, place) = (&volume.name, &failed.place);
    let why = failed.why.as_deref().unwrap_or("no reason was given");
    let todo = format!(
        "mend that and it is made by itself; or do without: `pollux volume replica remove {name} {place}`, or `pollux volume \
         delete {name}`"
    );
    Some(Failure::new(Exit::Failed, format!("volume {name} cannot be made in {place}: {why}")).todo(todo))
}

fn written(limit: Duration) -> String {
    span(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
}
