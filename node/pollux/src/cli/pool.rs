//! `pollux pool`: directories and block devices on nodes, in which the replicas of volumes are.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use pollux_api::{AddPool, PoolState, PoolView};

use super::{
    Context,
    exit::{Exit, Failure},
    output::{bytes, show, table},
    suggest,
};

const EXAMPLES: &str = "Examples:
  pollux pool add fast /srv/fast              # on the node that is asked
  pollux pool add n2:fast /srv/fast           # on n2
  pollux pool add n2:fast /dev/disk/by-id/nvme-SAMSUNG_MZ_S4X9      # a device of its own
  pollux volume create data --size 10G --pool n1:fast --pool n2:fast

A pool is a directory of its own, on ext4, XFS or btrfs: mount its file system first, if it has one of its own. The directory is marked
(.pollux-pool), so that an empty mount point is never taken for the pool.

A block device is given an XFS file system, if nothing at all is on it, and is mounted by the node's daemon. Name it so that it has the same
name after the next boot. One that was a pool before is taken as it is.";

/// Verbs about pools.
#[derive(Debug, Subcommand)]
pub(crate) enum Pool {
    /// Make a directory, or a whole block device, a pool of the node that it is on.
    #[command(after_help = EXAMPLES)]
    Add(Add),
    /// All pools: size, free space, what replicas take, and why one cannot be used.
    List,
    /// Forget a pool without replicas. The directory stays; a device is unmounted.
    Remove {
        /// Which, as NODE:POOL.
        #[arg(value_name = "NODE:POOL")]
        place: String,
    },
}

/// How a pool is added.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Its name: 1 to 40 of `a-z 0-9 -`, starting with a letter; after the name of its node, if that is not the one that is asked.
    #[arg(value_name = "[NODE:]NAME")]
    name: String,
    /// The directory or the block device on that node, an absolute path.
    path: PathBuf,
}

pub(crate) async fn run(context: &Context, verb: Pool) -> Result<(), Failure> {
    let client = &context.client;
    match verb {
        Pool::Add(verb) => {
            let request = request(verb)?;
            let added = match client.add_pool(&request).await {
                Ok(pool) => pool,
                Err(error) => {
                    return Err(match &request.node {
                        Some(node) => suggest::for_node(client, node, error).await,
                        None => error.into(),
                    });
                }
            };
            show(context.format, &added, |pool| {
                let free = pool.free_bytes.map(|free| format!(", {} free", bytes(free))).unwrap_or_default();
                format!("{} on {} is pool {}{free}\n", pool.path, pool.node, pool.place)
            })
        }
        Pool::List => context.show_read(&client.pools().await?, |pools| many(pools)),
        Pool::Remove { place } => match client.remove_pool(&place).await {
            Ok(pool) => show(context.format, &pool, |pool| {
                format!("pool {} is removed; {} on {} is there still\n", pool.place, pool.path, pool.node)
            }),
            Err(error) => Err(suggest::for_pool(client, &place, error).await),
        },
    }
}

fn request(verb: Add) -> Result<AddPool, Failure> {
    let (node, name) = match verb.name.split_once(':') {
        Some((node, name)) => (Some(node.to_owned()), name.to_owned()),
        None => (None, verb.name),
    };
    let text = |path: &Path| path.to_str().map(str::to_owned);
    // Where the user is means something on this host only.
    if verb.path.is_relative() && node.is_some() {
        return Err(Failure::usage(format!("{} is no absolute path", verb.path.display()))
            .todo("give the directory as it is called on that node, from / on"));
    }
    let path = std::path::absolute(&verb.path)
        .map_err(|error| Failure::new(Exit::Usage, format!("{} is no path: {error}", verb.path.display())))?;
    let path =
        text(&path).ok_or_else(|| Failure::usage(format!("{} is not UTF-8; choose another path", path.display())))?;
    Ok(AddPool { name, path, node })
}

/// All pools, one a line.
fn many(pools: &[PoolView]) -> String {
    let amount = |count: Option<u64>| count.map_or_else(|| "unknown".to_owned(), bytes);
    table(
        ["POOL", "STATE", "SIZE", "FREE", "USED", "PROMISED", "REPLICAS", "PATH", "WHY"],
        &[2, 3, 4, 5, 6],
        pools.iter().map(|pool| {
            [
                pool.place.clone(),
                state(pool.state).to_owned(),
                amount(pool.size_bytes),
                amount(pool.free_bytes),
                amount(pool.used_bytes),
                bytes(pool.promised_bytes),
                pool.replicas.to_string(),
                pool.path.clone(),
                pool.why.clone().unwrap_or_default(),
            ]
        }),
    )
}

fn state(state: PoolState) -> &'static str {
    match state {
        PoolState::Ready => "ready",
        PoolState::Failed => "failed",
        PoolState::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake::storage::pool;

    #[test]
    fn what_a_node_does_not_tell_is_said_to_be_unknown() {
        let silent = PoolView {
            state: PoolState::Unknown,
            why: Some("n2 does not answer".into()),
            size_bytes: None,
            free_bytes: None,
            used_bytes: None,
            ..pool("n2", "fast")
        };
        let unmounted = PoolView {
            state: PoolState::Failed,
            why: Some("/srv/slow is not marked as pool slow; is its file system mounted?".into()),
            replicas: 0,
            promised_bytes: 0,
            ..silent.clone()
        };
        let unmounted = PoolView { place: "n3:slow".into(), path: "/srv/slow".into(), ..unmounted };
        insta::assert_snapshot!(many(&[pool("n1", "fast"), silent, unmounted]), @r"
        POOL     STATE       SIZE      FREE     USED  PROMISED  REPLICAS  PATH       WHY
        n1:fast  ready    100 GiB  60.0 GiB  2.0 GiB  10.0 GiB         1  /srv/fast  -
        n2:fast  unknown  unknown   unknown  unknown  10.0 GiB         1  /srv/fast  n2 does not answer
        n3:slow  failed   unknown   unknown  unknown       0 B         0  /srv/slow  /srv/slow is not marked as pool slow; is its file system mounted?
        ");
    }

    #[test]
    fn a_directory_elsewhere_is_named_from_the_root() {
        let add = |name: &str, path: &str| request(Add { name: name.into(), path: path.into() });
        let far = add("n2:fast", "/srv/fast").unwrap();
        assert_eq!((far.node.as_deref(), far.name.as_str(), far.path.as_str()), (Some("n2"), "fast", "/srv/fast"));
        assert_eq!(add("fast", "/srv/fast").unwrap().node, None);
        assert!(add("fast", "fast").unwrap().path.ends_with("/fast"), "from where the user is");
        assert_eq!(add("n2:fast", "fast").unwrap_err().exit, Exit::Usage);
    }
}
