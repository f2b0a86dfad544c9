//! Imports and exports: each a task of this daemon's, which goes on whether or not somebody watches, and ends with it.
//!
//! ```text
//!   import: look at the file -> create the volume -> its replicas are made -> hold it -> copy -> compare -> give it up
//!   export: make the file -> hold the volume -> copy -> compare -> give it up
//! ```
//!
//! What was made here and did not come to its end is removed again: the volume of an import, the file of an export.

use std::{
    collections::BTreeMap,
    fs::File,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pollux_api::{
    ApiError, ExportVolume, ImageFormat, ImportVolume, PoolState, TransferKind, TransferView, VolumeHealth,
};
use pollux_image::{ConvertError, Format, Inspected, Progress, Source, SourceError};
use pollux_state::{
    Command, Outcome,
    id::{PoolId, VolumeId},
    limits::{VOLUME_BLOCK_BYTES, VOLUME_BYTES},
    spec::check_name,
    volume::Purpose,
};
use tokio::sync::watch;

use super::{
    super::{
        backend::{Api, propose, refused},
        run::Daemon,
    },
    pool_named, views, volume_named,
};
use crate::{api::Storage as _, vm::wall_ms};

/// Imports and exports of one daemon at a time.
const RUNNING_MAX: usize = 4;
/// Those that are remembered, ended ones included.
const KEPT_MAX: usize = 64;
/// How long replicas may take to be made, in milliseconds.
const MADE_MS_MAX: u64 = 60_000;
/// How much of what is free in the fullest pool an import may take, in percent.
const FREE_PERCENT: u64 = 90;
/// How often progress is told, in milliseconds.
const TELL_MS: u64 = 200;

/// What this daemon imports and exports.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Transfers(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    transfers: BTreeMap<u64, watch::Receiver<TransferView>>,
}

/// What one is told by.
type Teller = watch::Sender<TransferView>;

impl Transfers {
    fn begin(&self, kind: TransferKind, volume: &str, path: &str, total_bytes: u64) -> Result<Teller, ApiError> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = kept.transfers.values().filter(|transfer| !transfer.borrow().ended()).count();
        if running >= RUNNING_MAX {
            let why = format!("{RUNNING_MAX} imports and exports are under way on this node already");
            return Err(ApiError::conflict(why).todo("wait until one of them has ended, or ask another node"));
        }
        kept.last += 1;
        let (teller, told) = watch::channel(TransferView {
            id: kept.last,
            kind,
            volume: volume.to_owned(),
            path: path.to_owned(),
            phase: "preparing".to_owned(),
            read_bytes: 0,
            total_bytes,
            written_bytes: 0,
            started: wall_ms(),
            error: None,
        });
        let id = kept.last;
        kept.transfers.insert(id, told);
        while kept.transfers.len() > KEPT_MAX {
            let old = kept.transfers.iter().find(|(_, transfer)| transfer.borrow().ended()).map(|(id, _)| *id);
            let Some(old) = old else { break };
            kept.transfers.remove(&old);
        }
        Ok(teller)
    }

    pub(super) fn find(&self, id: u64) -> Option<TransferView> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.transfers.get(&id).map(|transfer| transfer.borrow().clone())
    }
}

impl Api {
    pub(super) async fn import(&self, name: &str, request: ImportVolume) -> Result<TransferView, ApiError> {
        check_name("volume", name).map_err(|refusal| refused(&refusal))?;
        let state = self.state().await;
        if state.volumes.values().any(|volume| volume.name == name) {
            return Err(ApiError::conflict(format!("there is a volume {name} already"))
                .todo("an import makes a new volume; choose another name, or delete that one first"));
        }
        let pools = request.pools.iter().map(|place| pool_named(&state, place).map(|pool| pool.id));
        let pools = pools.collect::<Result<Vec<PoolId>, ApiError>>()?;
        let image = self.inspected(&request).await?;
        let size = size(&request, image.size())?;
        let data_max = self.room(&request.pools).await?;

        let total = image.file_bytes();
        let teller = self.0.transfers.begin(TransferKind::Import, name, &request.path, total)?;
        let view = teller.borrow().clone();
        let created = self.propose(Command::CreateVolume { name: name.to_owned(), size, pools }).await;
        let volume = match created {
            Ok((_, Outcome::VolumeCreated(id))) => id,
            Ok((_, outcome)) => return Err(ended(&teller, ApiError::internal(format!("an odd answer: {outcome:?}")))),
            Err(error) => return Err(ended(&teller, error)),
        };
        let daemon = Arc::clone(&self.0);
        self.work(async move {
            let filled = fill(&daemon, volume, &image, data_max, &teller).await;
            if filled.is_err() {
                forget(&daemon, volume).await;
            }
            end(&teller, filled);
        })?;
        Ok(view)
    }

    pub(super) async fn export(&self, name: &str, request: ExportVolume) -> Result<TransferView, ApiError> {
        let state = self.state().await;
        let volume = volume_named(&state, name)?;
        let (id, size) = (volume.id, volume.size);
        let path = absolute(&request.path)?.to_owned();
        let teller = self.0.transfers.begin(TransferKind::Export, name, &path, size)?;
        let view = teller.borrow().clone();
        let daemon = Arc::clone(&self.0);
        self.work(async move { end(&teller, write_out(&daemon, id, &path, &teller).await) })?;
        Ok(view)
    }

    fn work(&self, work: impl Future<Output = ()> + Send + 'static) -> Result<(), ApiError> {
        let volumes = self.0.volumes().ok_or_else(|| {
            ApiError::unavailable("the daemon has yet to look after its volumes").todo("ask again in a moment")
        })?;
        volumes.work(work);
        Ok(())
    }

    async fn inspected(&self, request: &ImportVolume) -> Result<Inspected, ApiError> {
        let path = absolute(&request.path)?.to_owned();
        let format = request.format.map(|format| match format {
            ImageFormat::Raw => Format::Raw,
            ImageFormat::Qcow2 => Format::Qcow2,
            ImageFormat::Vmdk => Format::Vmdk,
        });
        let opened = tokio::task::spawn_blocking(move || Source::open(Path::new(&path), format)).await;
        let source = opened.map_err(|error| ApiError::internal(error.to_string()))?;
        let source = source.map_err(|error| not_converted(&error.into()))?;
        Inspected::inspect(&self.0.image_tool, source, request.bytes_max).await.map_err(|error| not_converted(&error))
    }

    /// How many bytes may be written into each of these pools.
    async fn room(&self, places: &[String]) -> Result<u64, ApiError> {
        let pools = self.pools().await?;
        let mut room = u64::MAX;
        for place in places {
            let pool = pools.iter().find(|pool| pool.place == *place);
            let free = pool.filter(|pool| pool.state == PoolState::Ready).and_then(|pool| pool.free_bytes);
            let free = free.ok_or_else(|| {
                let why = pool.and_then(|pool| pool.why.clone()).unwrap_or_else(|| "it is gone".to_owned());
                ApiError::unavailable(format!("pool {place} cannot be used now: {why}")).todo("`pollux pool list`")
            })?;
            room = room.min(free / 100 * FREE_PERCENT);
        }
        Ok(room)
    }
}

/// The size of the volume that an image goes into.
fn size(request: &ImportVolume, image: u64) -> Result<u64, ApiError> {
    if let Some(wished) = request.size_bytes.filter(|wished| *wished < image) {
        return Err(ApiError::invalid(format!(
            "the disk in the image has {image} bytes, more than the {wished} of --size"
        )));
    }
    Ok(request.size_bytes.unwrap_or(image).next_multiple_of(VOLUME_BLOCK_BYTES).max(*VOLUME_BYTES.start()))
}

fn absolute(path: &str) -> Result<&str, ApiError> {
    if path.starts_with('/') && !path.chars().any(char::is_control) {
        return Ok(path);
    }
    Err(ApiError::invalid("the file's path: give an absolute path on the node that is asked"))
}

async fn fill(
    daemon: &Daemon,
    volume: VolumeId,
    image: &Inspected,
    data_max: u64,
    teller: &Teller,
) -> Result<(), ApiError> {
    made(daemon, volume).await?;
    let volumes = daemon.volumes().ok_or_else(|| ApiError::internal("the daemon has no volumes"))?;
    let mut held = volumes.hold(volume, Purpose::Import).await.map_err(ApiError::conflict)?;
    let progress = watch::Sender::new(Progress::default());
    let filling = pollux_image::import(&daemon.image_tool, image, held.disk(), data_max, &progress);
    let filled = told(teller, &progress, filling).await.map_err(|error| not_converted(&error));
    let released = held.release(filled.is_ok()).await.map_err(ApiError::conflict);
    filled.and(released)
}

/// Waits until all replicas of a new volume are there.
async fn made(daemon: &Daemon, volume: VolumeId) -> Result<(), ApiError> {
    let mut applied = daemon.consensus.watch();
    let settled = applied.wait_for(|view| {
        let health =
            view.state.volumes.get(&volume).map(|it| views::volume(&view.state, it, &super::Down::new(), None).health);
        let failed =
            view.state.volumes.get(&volume).is_none_or(|it| it.replicas.values().any(|it| it.failed.is_some()));
        failed || health.is_none_or(|health| health != VolumeHealth::Making)
    });
    let settled = tokio::time::timeout(Duration::from_millis(MADE_MS_MAX), settled).await;
    let state = match settled {
        Ok(Ok(view)) => view.state.clone(),
        Ok(Err(_)) => return Err(ApiError::unavailable("the daemon ends")),
        Err(_) => {
            let why = format!("its replicas have not been made for {} s", MADE_MS_MAX / 1000);
            return Err(ApiError::unavailable(why).todo("`pollux node list` tells which nodes are alive"));
        }
    };
    let Some(it) = state.volumes.get(&volume) else {
        return Err(ApiError::conflict("somebody deleted the volume meanwhile"));
    };
    let failed = it.replicas.values().find_map(|replica| Some((replica.pool, replica.failed.as_ref()?)));
    failed.map_or(Ok(()), |(pool, why)| {
        Err(ApiError::conflict(format!("its replica in {} cannot be made: {why}", state.place_of(pool))))
    })
}

async fn write_out(daemon: &Daemon, volume: VolumeId, path: &str, teller: &Teller) -> Result<(), ApiError> {
    let at = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::OpenOptionsExt as _;
        // Nothing that is there already is written to, nor whatever a link points at.
        File::options().read(true).write(true).create_new(true).mode(0o600).open(at)
    });
    let opened = opened.await.map_err(|error| ApiError::internal(error.to_string()))?;
    let file = opened.map_err(|error| ApiError::invalid(format!("{path} cannot be made: {error}")))?;
    let copied = copy_out(daemon, volume, Arc::new(file), teller).await;
    if copied.is_err() {
        let at = path.to_owned();
        // Ours, and good for nothing.
        let _ = tokio::task::spawn_blocking(move || std::fs::remove_file(at)).await;
    }
    copied
}

async fn copy_out(daemon: &Daemon, volume: VolumeId, file: Arc<File>, teller: &Teller) -> Result<(), ApiError> {
    let volumes = daemon.volumes().ok_or_else(|| ApiError::internal("the daemon has no volumes"))?;
    let mut held = volumes.hold(volume, Purpose::Export).await.map_err(ApiError::conflict)?;
    let progress = watch::Sender::new(Progress::default());
    let copying = pollux_image::export(held.disk(), file, &progress);
    let copied = told(teller, &progress, copying).await.map_err(|error| not_converted(&error));
    let released = held.release(copied.is_ok()).await.map_err(ApiError::conflict);
    copied.and(released)
}

/// Does it, and tells how far it is.
async fn told<T>(
    teller: &Teller,
    progress: &watch::Sender<Progress>,
    work: impl Future<Output = Result<T, ConvertError>>,
) -> Result<(), ConvertError> {
    let tell = || {
        let now = *progress.borrow();
        teller.send_modify(|view| {
            if now.comparing { "comparing" } else { "copying" }.clone_into(&mut view.phase);
            (view.read_bytes, view.written_bytes) = (now.read_bytes, now.written_bytes);
        });
    };
    let mut tick = tokio::time::interval(Duration::from_millis(TELL_MS));
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            ended = &mut work => {
                tell();
                return ended.map(drop);
            }
            _ = tick.tick() => tell(),
        }
    }
}

/// The volume that an import made and did not fill.
async fn forget(daemon: &Daemon, volume: VolumeId) {
    let state = daemon.consensus.watch().borrow().state.clone();
    let Some(expect) = state.volumes.get(&volume).map(|it| it.generation) else { return };
    if let Err(error) = propose(daemon, daemon.minter().mint(), Command::DeleteVolume { volume, expect }).await {
        tracing::warn!(%volume, %error, "the volume of an import that failed is still there");
    }
}

fn ended(teller: &Teller, error: ApiError) -> ApiError {
    end(teller, Err(error.clone()));
    error
}

fn end(teller: &Teller, how: Result<(), ApiError>) {
    teller.send_modify(|view| {
        "ended".clone_into(&mut view.phase);
        view.error = how.err();
    });
    let view = teller.borrow();
    match &view.error {
        None => {
            tracing::info!(volume = view.volume, path = view.path, written = view.written_bytes, "a transfer is done")
        }
        Some(error) => tracing::warn!(volume = view.volume, path = view.path, %error, "a transfer has failed"),
    }
}

fn not_converted(error: &ConvertError) -> ApiError {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        let text = source.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = source.source();
    }
    match error {
        ConvertError::Source(SourceError::Changed { .. }) | ConvertError::TooMuch { .. } => ApiError::conflict(message),
        ConvertError::Source(_) | ConvertError::TooSmall { .. } => ApiError::invalid(message),
        ConvertError::Tool(_) | ConvertError::Disk(_) | ConvertError::Differs | ConvertError::Io { .. } => {
            ApiError::internal(message)
        }
    }
}
