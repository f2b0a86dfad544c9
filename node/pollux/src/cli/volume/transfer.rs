//! `pollux volume import` and `export`, followed to their end.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use pollux_api::{
    ApiError, ExportVolume, IMPORT_BYTES_MAX_DEFAULT, ImageFormat, ImportVolume, TransferKind, TransferView,
};

use super::{
    super::{
        Context,
        exit::{Exit, Failure},
        looking::unless_interrupted,
        output::{bytes, show},
        suggest,
    },
    following::{Work, until_over},
    size,
};
use crate::api::client::{Client, Tagged};

pub(super) const EXAMPLES: &str = "Examples:
  pollux volume import root --from debian.qcow2 --pool n1:fast --pool n2:fast
  pollux vm create web --volume root --nic br0

The file is on the node that is asked. It is looked at before anything is made: backing files, parts in other files, encryption, symbolic
links and disks larger than --max-size are refused. qemu-img converts it as a user that owns nothing, without a network, and never sees
the file itself; what it wrote is compared with what it read before the volume can be used.";

/// How a volume is made of a file.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The volume's name, a new one.
    name: String,
    /// The image: a regular file on the node that is asked.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// What the image is; without it, what its first bytes say.
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    format: Option<ImageFormat>,
    /// A pool that gets a replica; one to three.
    #[arg(long = "pool", value_name = "NODE:POOL", required = true)]
    pools: Vec<String>,
    /// How large the volume is to be, if it is to be larger than the disk in the image.
    #[arg(long, value_name = "SIZE", value_parser = size::size)]
    size: Option<u64>,
    /// The largest disk in an image that is taken [default: 1T].
    #[arg(long, value_name = "SIZE", value_parser = size::size)]
    max_size: Option<u64>,
    /// Do not wait until it is done.
    #[arg(long)]
    detach: bool,
}

/// How a file is made of a volume.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The volume's name. Its VM, if it has one, must be stopped.
    name: String,
    /// The file to be, raw and sparse, on the node that is asked. Nothing may be there.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Do not wait until it is done.
    #[arg(long)]
    detach: bool,
}

fn format(text: &str) -> Result<ImageFormat, String> {
    match text {
        "raw" => Ok(ImageFormat::Raw),
        "qcow2" => Ok(ImageFormat::Qcow2),
        "vmdk" => Ok(ImageFormat::Vmdk),
        _ => Err(format!("{text} is no format that is taken; give raw, qcow2 or vmdk")),
    }
}

pub(super) async fn import(context: &Context, verb: Import) -> Result<(), Failure> {
    let client = &context.client;
    let request = ImportVolume {
        path: absolute(&verb.from)?,
        format: verb.format,
        pools: verb.pools,
        size_bytes: verb.size,
        bytes_max: verb.max_size.unwrap_or(IMPORT_BYTES_MAX_DEFAULT),
    };
    let begun = match client.import_volume(&verb.name, &request).await {
        Ok(transfer) => transfer,
        Err(error) => return Err(suggest::for_pools(client, &request.pools, error).await),
    };
    finish(context, begun, verb.detach).await
}

pub(super) async fn export(context: &Context, verb: Export) -> Result<(), Failure> {
    let client = &context.client;
    let request = ExportVolume { path: absolute(&verb.to)? };
    let begun = match client.export_volume(&verb.name, &request).await {
        Ok(transfer) => transfer,
        Err(error) => return Err(suggest::for_volume(client, &verb.name, error).await),
    };
    finish(context, begun, verb.detach).await
}

fn absolute(path: &Path) -> Result<String, Failure> {
    let absolute =
        std::path::absolute(path).map_err(|error| Failure::usage(format!("{} is no path: {error}", path.display())))?;
    let text = absolute.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::usage(format!("{} is not UTF-8; choose another path", absolute.display())))
}

async fn finish(context: &Context, begun: TransferView, detach: bool) -> Result<(), Failure> {
    let end = if detach { begun } else { follow(&context.client, begun).await? };
    if let Some(error) = end.error.clone() {
        let what = match end.kind {
            TransferKind::Import => format!("volume {} was not imported, and is not there", end.volume),
            TransferKind::Export => format!("volume {} was not exported, and there is no {}", end.volume, end.path),
        };
        return Err(Failure::new(Exit::Failed, format!("{what}: {}", error.message)).todo(error.todo));
    }
    show(context.format, &end, told)
}

fn told(end: &TransferView) -> String {
    match (end.kind, end.ended()) {
        (TransferKind::Import, true) => format!(
            "volume {} holds what is in {}, compared; {} of data, the rest is holes\n",
            end.volume,
            end.path,
            bytes(end.written_bytes)
        ),
        (TransferKind::Export, true) => format!(
            "{} holds what is in volume {}, compared; {} of data, the rest is holes\n",
            end.path,
            end.volume,
            bytes(end.written_bytes)
        ),
        (_, false) => format!("it goes on; `pollux volume show {}` tells who works on it\n", end.volume),
    }
}

/// Follows one to its end. Ctrl-C leaves it alone.
async fn follow(client: &Client, first: TransferView) -> Result<TransferView, Failure> {
    let volume = first.volume.clone();
    let interrupted = || {
        Failure::new(Exit::Interrupted, format!("detached; the work on volume {volume} goes on"))
            .todo(format!("`pollux volume show {volume}` tells whether somebody works on it"))
    };
    unless_interrupted(until_over(client, first), interrupted).await
}

impl Work for TransferView {
    fn is_over(&self) -> bool {
        self.ended()
    }

    fn phase(&self) -> &str {
        &self.phase
    }

    fn done(&self) -> (u64, u64) {
        (self.read_bytes, self.total_bytes.max(self.read_bytes))
    }

    fn line(&self) -> String {
        let (from, to) = match self.kind {
            TransferKind::Import => (&self.path, &self.volume),
            TransferKind::Export => (&self.volume, &self.path),
        };
        let done = match self.read_bytes {
            0 => String::new(),
            read => format!("  {} of about {} read", bytes(read), bytes(self.total_bytes)),
        };
        format!("{from} -> {to}: {}{done}", self.phase)
    }

    async fn look(
        &self,
        client: &Client,
        seen: Option<&Tagged<Self>>,
        wait: Duration,
    ) -> Result<Tagged<Self>, ApiError> {
        client.transfer_after(self.id, seen, wait).await
    }

    /// A daemon that was started again knows nothing of it, and has ended it.
    fn lost(&self, error: &ApiError) -> Failure {
        let why = format!("lost sight of the work on volume {}: {error}", self.volume);
        let todo = format!("if the daemon was started again, it ended that: see `pollux volume show {}`", self.volume);
        Failure::new(Exit::Unknown, why).todo(todo)
    }
}
