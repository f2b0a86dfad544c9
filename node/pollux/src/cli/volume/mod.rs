//! `pollux volume`: virtual disks that belong to the cluster.

mod following;
mod moving;
mod size;
mod transfer;
mod verify;
mod view;
mod wait;

use std::time::Duration;

use clap::{Args, Subcommand};
use pollux_api::{
    AddReplica, ApiError, AttachVolume, CreateVolume, DeleteVolume, ErrorKind, GrowVolume, VolumeHealth, VolumeView,
};
use pollux_state::limits::REPLICAS_AT_FIRST_MAX;

use super::{
    Context,
    confirm::confirm,
    exit::{Exit, Failure},
    output::{bytes, now_ms, show},
    suggest,
};

const EXAMPLES: &str = "Examples:
  pollux volume create data --size 10G --pool n1:fast --pool n2:fast
  pollux vm create web --volume root --volume data --nic br0

One replica in each pool that is named. Space is taken when it is written, not now: `pollux pool list` shows what is free and what is
promised.";

const GROWN: &str = "A volume grows while no VM runs with it: QEMU does not take a larger disk under a running guest. The guest sees the new size when \
it starts; its file system is for the guest to grow.";

const ATTACHED: &str = "A VM gets and loses volumes while it is stopped. With --boot it becomes the VM's first disk, and a VM without a kernel boots \
from it through the firmware.";

/// Verbs about volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Create a volume with one to three replicas, and wait until they are made.
    #[command(after_help = EXAMPLES)]
    Create(Create),
    /// Make a new volume of an image on the node that is asked: raw, qcow2 or VMDK.
    #[command(after_help = transfer::EXAMPLES)]
    Import(transfer::Import),
    /// Make a raw file, on the node that is asked, of a volume that no VM runs with.
    Export(transfer::Export),
    /// All volumes.
    List,
    /// One volume: who uses it, and how each of its replicas is.
    Show {
        /// Its name.
        name: String,
    },
    /// Let a volume become larger, while no VM runs with it.
    #[command(after_help = GROWN)]
    Grow(Grow),
    /// Forget a volume that no VM has, and all that is in it.
    Delete {
        /// Its name.
        name: String,
        /// Do not ask for the volume's name to be typed.
        #[arg(long)]
        yes: bool,
    },
    /// Give a volume to a stopped VM.
    #[command(after_help = ATTACHED)]
    Attach(Attach),
    /// Take a volume away from its VM, which is stopped.
    Detach {
        /// The volume's name.
        name: String,
    },
    /// Move a replica to another pool, also of another node, while the VM runs.
    #[command(after_help = moving::EXAMPLES)]
    Move(moving::Move),
    /// Compare what the replicas of a volume hold, while its VM runs or not.
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::Verify),
    /// Replicas of a volume: add one, remove one.
    #[command(subcommand, arg_required_else_help = true)]
    Replica(Replica),
}

/// How a volume is created.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name: 1 to 40 of `a-z 0-9 -`, starting with a letter.
    name: String,
    /// How large the guest sees it, such as 512M, 10G or 2T.
    #[arg(long, value_name = "SIZE", value_parser = size::size)]
    size: u64,
    /// A pool that gets a replica; one to three.
    #[arg(long = "pool", value_name = "NODE:POOL", required = true)]
    pools: Vec<String>,
    /// Do not wait until the replicas are made.
    #[arg(long)]
    detach: bool,
    /// How long to wait.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// How a volume grows.
#[derive(Debug, Args)]
pub(crate) struct Grow {
    /// Its name.
    name: String,
    /// How large it is to be, more than now.
    #[arg(long, value_name = "SIZE", value_parser = size::size)]
    size: u64,
}

/// How a volume comes to a VM.
#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// The volume's name.
    name: String,
    /// The VM.
    #[arg(long, value_name = "VM")]
    vm: String,
    /// As its first disk.
    #[arg(long)]
    boot: bool,
}

/// Verbs about replicas.
#[derive(Debug, Subcommand)]
pub(crate) enum Replica {
    /// One more replica of a volume, in another pool. It is filled in the background, and counts once it has everything.
    Add(Place),
    /// Forget a replica, and what is in it. Never the last that has everything.
    Remove(Place),
}

/// A volume and a pool.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The volume's name.
    name: String,
    /// The pool.
    #[arg(value_name = "NODE:POOL")]
    pool: String,
}

pub(crate) async fn run(context: &Context, verb: Volume) -> Result<(), Failure> {
    let client = &context.client;
    match verb {
        Volume::Create(verb) => create(context, verb).await,
        Volume::Import(verb) => transfer::import(context, verb).await,
        Volume::Export(verb) => transfer::export(context, verb).await,
        Volume::List => context.show_read(&client.volumes().await?, |volumes| view::many(volumes)),
        Volume::Show { name } => match client.volume(&name).await {
            Ok(volume) => context.show_read(&volume, |volume| view::single(volume, now_ms())),
            Err(error) => Err(suggest::for_volume(client, &name, error).await),
        },
        Volume::Grow(Grow { name, size }) => {
            let grown = client.grow_volume(&name, &GrowVolume { size_bytes: size }).await;
            told(context, &name, grown, |volume| {
                let next = volume.vm.as_ref().map(|vm| format!("; VM {vm} sees it when it starts")).unwrap_or_default();
                format!("volume {} has {} now{next}\n", volume.name, bytes(volume.size_bytes))
            })
            .await
        }
        Volume::Delete { name, yes } => delete(context, &name, yes).await,
        Volume::Attach(Attach { name, vm, boot }) => {
            let request = AttachVolume { vm, boot };
            match client.attach_volume(&name, &request).await {
                // Either name may be the one that does not exist.
                Err(error) if error.kind == ErrorKind::NotFound && client.volume(&name).await.is_ok() => {
                    Err(suggest::for_vm(client, &request.vm, error).await)
                }
                attached => {
                    told(context, &name, attached, |volume| {
                        format!("VM {} has volume {} now\n", request.vm, volume.name)
                    })
                    .await
                }
            }
        }
        Volume::Detach { name } => {
            let detached = client.detach_volume(&name).await;
            told(context, &name, detached, |volume| format!("volume {} belongs to no VM now\n", volume.name)).await
        }
        Volume::Move(verb) => moving::run(context, verb).await,
        Volume::Verify(verb) => verify::run(context, verb).await,
        Volume::Replica(Replica::Add(Place { name, pool })) => {
            let added = client.add_replica(&name, &AddReplica { pool: pool.clone() }).await;
            told_of_place(context, (&name, &pool), added, |volume| {
                format!(
                    "volume {0} gets a replica in {pool}, which counts once it has everything; `pollux volume show {0}` tells \
                     how far it is\n",
                    volume.name
                )
            })
            .await
        }
        Volume::Replica(Replica::Remove(Place { name, pool })) => {
            let removed = client.remove_replica(&name, &pool).await;
            told_of_place(context, (&name, &pool), removed, |volume| {
                format!(
                    "volume {} has no replica in {pool} any more, and {} left\n",
                    volume.name,
                    volume.replicas.len()
                )
            })
            .await
        }
    }
}

async fn create(context: &Context, verb: Create) -> Result<(), Failure> {
    let client = &context.client;
    if verb.pools.len() > REPLICAS_AT_FIRST_MAX {
        let why =
            format!("{} pools are named, and a volume has at most {REPLICAS_AT_FIRST_MAX} replicas", verb.pools.len());
        return Err(Failure::usage(why));
    }
    let request = CreateVolume { name: verb.name, size_bytes: verb.size, pools: verb.pools };
    let mut volume = match client.create_volume(&request).await {
        Ok(volume) => volume,
        Err(error) => return Err(suggest::for_pools(client, &request.pools, error).await),
    };
    if !verb.detach {
        volume = wait::until_made(client, volume, verb.timeout).await?;
    }
    show(context.format, &volume, |volume| {
        let places: Vec<&str> = volume.replicas.iter().map(|replica| replica.place.as_str()).collect();
        let how = if volume.health == VolumeHealth::Making { "is being made" } else { "is there" };
        format!("volume {} of {} {how}, in {}\n", volume.name, bytes(volume.size_bytes), places.join(" and "))
    })
}

async fn delete(context: &Context, name: &str, yes: bool) -> Result<(), Failure> {
    let client = &context.client;
    let volume = match client.volume(name).await {
        Ok(volume) => volume,
        Err(error) => return Err(suggest::for_volume(client, name, error).await),
    };
    if let Some(vm) = &volume.vm {
        // What can only be refused is refused before anybody is asked to type a name.
        let why = format!("volume {name} belongs to VM {vm}");
        let todo = format!("take it away from it first: `pollux volume detach {name}`");
        return Err(Failure::new(Exit::Conflict, why).todo(todo));
    }
    if !yes {
        let what = format!(
            "Volume {name} ({}) is deleted with all that is in it, on {} replica{}. Nothing brings it back.",
            bytes(volume.size_bytes),
            volume.replicas.len(),
            if volume.replicas.len() == 1 { "" } else { "s" }
        );
        confirm(&what, "volume", name, "when you are sure")?;
    }
    let request = DeleteVolume { generation: volume.generation };
    let deleted = client.delete_volume(name, &request).await;
    told(context, name, deleted, |volume| format!("volume {} is deleted\n", volume.name)).await
}

/// What came of a request about volume `name`.
async fn told(
    context: &Context,
    name: &str,
    answer: Result<VolumeView, ApiError>,
    text: impl FnOnce(&VolumeView) -> String,
) -> Result<(), Failure> {
    match answer {
        Ok(volume) => show(context.format, &volume, text),
        Err(error) => Err(suggest::for_volume(&context.client, name, error).await),
    }
}

/// The same, if a pool was named, too. Which name does not exist, the names there are say more surely than the error's words.
async fn told_of_place(
    context: &Context,
    (name, pool): (&str, &str),
    answer: Result<VolumeView, ApiError>,
    text: impl FnOnce(&VolumeView) -> String,
) -> Result<(), Failure> {
    let client = &context.client;
    match answer {
        Err(error) if error.kind == ErrorKind::NotFound && client.volume(name).await.is_ok() => {
            Err(suggest::for_pool(client, pool, error).await)
        }
        answer => told(context, name, answer, text).await,
    }
}
