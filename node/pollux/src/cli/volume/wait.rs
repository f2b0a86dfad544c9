//! Waiting until a volume's replicas are made, and saying how far that is.

use std::{collections::BTreeSet, time::Duration};

use pollux_api::{ReplicaState, VolumeView};
use tokio::time::Instant;

use super::super::{
    exit::{Exit, Failure},
    looking::{Patience, Unseen, news, unless_interrupted, until},
    output::{note, span_of},
};
use crate::api::client::Client;

/// Wait until no replica is being made any more. One that cannot be made is a failure; the others stay.
pub(super) async fn until_made(client: &Client, first: VolumeView, limit: Duration) -> Result<VolumeView, Failure> {
    let (name, mut seen, mut told) = (first.name.clone(), None, BTreeSet::new());
    let look = async |wait| {
        let tagged = client.volume_after(&name, seen.as_ref(), wait).await;
        tagged.map(|tagged| news(&mut seen, tagged))
    };
    let judge = |now: &VolumeView| {
        tell(now, &mut told);
        failed(now).map(Err).or_else(|| making(now).is_empty().then(|| Ok(now.clone())))
    };
    let looking = async {
        match until(first, Patience::Until(Instant::now() + limit), look, judge).await {
            Ok(end) => end,
            Err(Unseen::Late(last)) => {
                let waits = making(&last).join(", ");
                let why = format!("volume {name} is created, but after {} not yet made in {waits}", span_of(limit));
                let todo = format!(
                    "see whether those nodes are alive with `pollux node list`; `pollux volume show {name}` tells how far it is"
                );
                Err(Failure::new(Exit::TimedOut, why).todo(todo))
            }
            Err(Unseen::Lost(_, error)) => Err(error.into()),
        }
    };
    let interrupted = || {
        Failure::new(Exit::Interrupted, format!("no longer waiting for volume {name}, which is created"))
            .todo(format!("`pollux volume show {name}` tells how far it is"))
    };
    unless_interrupted(looking, interrupted).await
}

/// Where replicas are still being made.
fn making(volume: &VolumeView) -> Vec<String> {
    let making = volume.replicas.iter().filter(|replica| replica.state == ReplicaState::Making);
    making.map(|replica| replica.place.clone()).collect()
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
