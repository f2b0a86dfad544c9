//! Pools, on the node that they are on: only it can look at a directory, and say to the log that it has.

use std::{fmt::Write as _, path::Path, time::Duration};

use pollux_api::ApiError;
use pollux_disk::PoolError;
use pollux_state::{
    ClusterState, Command, Outcome,
    id::{NodeId, OpId, PoolId},
    limits::POOL_PATH_MAX,
    spec::check_name,
};

use tokio::sync::oneshot;

use super::super::{
    backend::{propose, refused},
    run::Daemon,
};
use crate::volumes::{DeviceFault, PoolFault, PoolUsage};

/// How long a directory may take to be looked at and marked, or a device to be formatted, in milliseconds.
const LOOK_MS_MAX: u64 = 20_000;
/// How long the log may take to be read beforehand, in milliseconds.
const READ_MS_MAX: u64 = 2_000;

/// What this node's pools have and hold.
pub(in crate::daemon) async fn usage_here(daemon: &Daemon) -> Vec<PoolUsage> {
    match daemon.volumes() {
        Some(volumes) => volumes.usage().await,
        None => Vec::new(),
    }
}

/// A directory of this node becomes its pool `name`. Asked again under the same `op` it answers the same. Returns the pool, and
/// the place in the log from which on it is known.
pub(in crate::daemon) async fn add_here(
    daemon: &Daemon,
    op: OpId,
    (name, path): (String, String),
) -> Result<(PoolId, u64), ApiError> {
    let volumes = daemon.volumes().cloned().ok_or_else(|| {
        ApiError::unavailable("that node's daemon has yet to look after its pools").todo("ask again in a moment")
    })?;
    if let Err(error) = daemon.consensus.linearizable(Duration::from_millis(READ_MS_MAX)).await {
        tracing::debug!(%error, "a pool is judged by the state that this node has");
    }
    let state = daemon.consensus.watch().borrow().state.clone();
    // Before the directory is touched: a mark that the log then refuses would be in the way of the next attempt.
    check(&state, daemon.identity.node(), (&name, &path))?;
    let (tell, told) = oneshot::channel();
    let (claims, of, at) = (volumes.clone(), name.clone(), path.clone());
    tokio::task::spawn_blocking(move || {
        if let Err(Ok(())) = tell.send(claims.claim(&of, Path::new(&at))) {
            // It hung, and nobody waits for it any more.
            claims.unclaim(&of);
        }
    });
    let marked = tokio::time::timeout(Duration::from_millis(LOOK_MS_MAX), told).await;
    let marked = marked.map_err(|_| {
        let why = format!("{path} has not answered for {} s: does its storage hang?", LOOK_MS_MAX / 1000);
        ApiError::unavailable(why).todo("look at that host's disks and its kernel's log; nothing was added")
    })?;
    let marked = marked.map_err(|error| ApiError::internal(error.to_string()))?;
    marked.map_err(|fault| unusable(&fault))?;
    match propose(daemon, op, Command::AddPool { name: name.clone(), path }).await {
        Ok((Outcome::PoolAdded(pool), index)) => Ok((pool, index)),
        other => {
            // If it is one after all, it is mounted again when the log says so.
            tokio::task::spawn_blocking(move || volumes.unclaim(&name));
            match other {
                Ok((outcome, _)) => Err(ApiError::internal(format!("an odd answer to a new pool: {outcome:?}"))),
                Err(error) => Err(error),
            }
        }
    }
}

/// What the log would refuse.
fn check(state: &ClusterState, me: NodeId, (name, path): (&str, &str)) -> Result<(), ApiError> {
    check_name("pool", name).map_err(|refusal| refused(&refusal))?;
    if !path.starts_with('/') || path.len() > POOL_PATH_MAX || path.chars().any(char::is_control) {
        return Err(ApiError::invalid(format!(
            "the pool's path: give an absolute path of at most {POOL_PATH_MAX} bytes"
        )));
    }
    let mut here = state.pools.values().filter(|pool| pool.node == me);
    let Some(same) = here.find(|pool| pool.name == name || pool.path == path) else { return Ok(()) };
    let place = state.place_of(same.id);
    let why = if same.name == name {
        format!("there is a pool {place} already, in {}", same.path)
    } else {
        format!("{path} is pool {place} already")
    };
    Err(ApiError::conflict(why).todo("`pollux pool list` shows those there are"))
}

fn unusable(fault: &PoolFault) -> ApiError {
    let mut message = fault.to_string();
    let mut cause = std::error::Error::source(fault);
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(message, ": {error}");
        cause = error.source();
    }
    match fault {
        PoolFault::Pool(PoolError::NoDirectory { .. }) => ApiError::invalid(message)
            .todo("make the directory on that node, mount its file system first if it has one of its own"),
        PoolFault::Within { .. } => {
            ApiError::invalid(message).todo("use a directory elsewhere, or name the device itself")
        }
        PoolFault::Pool(PoolError::NoHoles { .. }) => ApiError::conflict(message),
        PoolFault::Taken { .. } | PoolFault::Unmarked { .. } | PoolFault::Device(DeviceFault::Empty { .. }) => {
            ApiError::conflict(message)
        }
        PoolFault::Device(DeviceFault::Occupied { device, .. }) => {
            let device = device.display();
            ApiError::conflict(message).todo(format!(
                "if nothing on it is needed any more, make it empty on that node: `wipefs --all {device}`, then `dd if=/dev/zero \
                 of={device} bs=1M count=1`"
            ))
        }
        PoolFault::Device(DeviceFault::Tool { .. } | DeviceFault::Kernel { .. }) => ApiError::conflict(message)
            .todo("look at that node's kernel log; `mkfs.xfs` and `blkid` come with xfsprogs and util-linux"),
        PoolFault::Opening { .. } => {
            ApiError::unavailable(message).todo("look at that host's disks and its kernel's log")
        }
        PoolFault::Pool(PoolError::Kernel { .. }) | PoolFault::Io { .. } => ApiError::internal(message),
    }
}
