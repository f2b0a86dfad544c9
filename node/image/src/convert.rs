//! A volume is filled from an image, or read into one; and what came of it is compared.

use std::{
    fs::File,
    io,
    process::Stdio,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use pollux_disk::{
    Completion, Disk, DiskError, Extent, Operation, Outcome, Piece, Tag,
    nbd::{ServeOptions, serve},
    perform,
};
use serde_json::{Value, json};
use tokio::{net::UnixStream, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    file::FileDisk,
    header::{Format, Refused},
    info,
    source::{Source, SourceError},
    tool::{Ended, Tool, ToolError},
};

/// How much is read at a time when a volume is exported, in bytes.
const CHUNK_BYTES: u32 = 4 << 20;

/// How far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The content is compared; before that it is copied.
    pub comparing: bool,
    /// Bytes read of the source in this phase. A compressed image can be read in less than it has, any in more.
    pub read_bytes: u64,
    /// Bytes written. Zeros and holes are none.
    pub written_bytes: u64,
}

/// What it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Bytes of the disk in the image.
    pub size: u64,
    /// Bytes that were written; the rest are holes.
    pub written_bytes: u64,
}

/// It was not done. What was written stays written.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The file.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The program.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The volume is smaller than what is to be in it.
    #[error("the volume has {volume} bytes, and the image {image}; make it at least that large")]
    TooSmall {
        /// The volume's size.
        volume: u64,
        /// The image's.
        image: u64,
    },
    /// The image holds more data than it may.
    #[error(
        "the image holds more than {max} bytes of data, which is more than is allowed here: it may be made to fill pools"
    )]
    TooMuch {
        /// The limit.
        max: u64,
    },
    /// The content is not the same.
    #[error(
        "what was written is not what was read: do not use it, and look for the cause in the hosts' memory and storage"
    )]
    Differs,
    /// The sockets or the file.
    #[error("{what} failed")]
    Io {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An image that `qemu-img` reads as its header says.
#[derive(Debug, Clone)]
pub struct Inspected(Source);

impl Inspected {
    /// Lets `qemu-img` look at an image, and compares. The disk in it may have up to `size_max` bytes.
    ///
    /// # Errors
    /// When it is not taken, with why.
    pub async fn inspect(tool: &Tool, source: Source, size_max: u64) -> Result<Self, ConvertError> {
        let header = source.header();
        if header.size > size_max {
            return Err(source.refuse(Refused::TooLarge { size: header.size, max: size_max }).into());
        }
        let (ours, theirs) = connection()?;
        let mut disk = FileDisk::new(Arc::clone(&source.file), source.bytes());
        let (stop, options) = (CancellationToken::new(), offered(true));
        let node = node(header.format, 0);
        let look = async {
            let told = tool.look(&["info", "--output=json", &node], theirs).await;
            stop.cancel();
            told
        };
        let (told, _) = tokio::join!(look, serve(ours, &mut disk, &options, &stop));
        info::check(&told?, &header).map_err(|refused| source.refuse(refused))?;
        Ok(Self(source))
    }

    /// The size of the disk in it, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.header().size
    }

    /// What it is.
    #[must_use]
    pub fn format(&self) -> Format {
        self.0.header().format
    }

    /// The length of the file, in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.0.bytes()
    }
}

/// Fills `volume`, all of which must be holes, with what is in an image, and compares the two. At most `data_max` bytes are written.
///
/// # Errors
/// See [`ConvertError`].
pub async fn import<D: Disk + ?Sized>(
    tool: &Tool,
    image: &Inspected,
    volume: &mut D,
    data_max: u64,
    progress: &watch::Sender<Progress>,
) -> Result<Report, ConvertError> {
    let (size, has) = (image.size(), volume.size());
    if has < size {
        return Err(ConvertError::TooSmall { volume: has, image: size });
    }
    let mut written = Metered::new(volume, progress, Some(data_max));
    let words = ["convert", "-n", "--target-is-zero", "-O", "raw"];
    let converted = both(tool, &words, image, (&mut written, false), progress).await?;
    if written.exceeded {
        return Err(ConvertError::TooMuch { max: data_max });
    }
    converted.well()?;
    let written_bytes = progress.borrow().written_bytes;
    perform(volume, Operation::Flush).await?;
    image.0.unchanged()?;

    progress.send_modify(|now| (now.comparing, now.read_bytes) = (true, 0));
    let mut compared = Metered::new(volume, progress, None);
    let ended = both(tool, &["compare", "-q"], image, (&mut compared, true), progress).await?;
    match ended.status.code() {
        Some(0) => {}
        Some(1) => return Err(ConvertError::Differs),
        _ => return Err(ended.failed().into()),
    }
    image.0.unchanged()?;
    Ok(Report { size, written_bytes })
}

/// Has `qemu-img` work from an image to a volume.
async fn both<D: Disk + ?Sized>(
    tool: &Tool,
    words: &[&str],
    image: &Inspected,
    (volume, read_only): (&mut D, bool),
    progress: &watch::Sender<Progress>,
) -> Result<Ended, ConvertError> {
    let (from, from_theirs) = connection()?;
    let (to, to_theirs) = connection()?;
    let mut file = FileDisk::new(Arc::clone(&image.0.file), image.file_bytes());
    let mut source = Metered::new(&mut file, progress, None);
    source.counts_reads = true;
    let (stop, source_options, options) = (CancellationToken::new(), offered(true), offered(read_only));
    let nodes = [node(image.format(), 0), node(Format::Raw, 1)];
    let words: Vec<&str> = words.iter().copied().chain(nodes.iter().map(String::as_str)).collect();
    let work = async {
        let ended = tool.work(&words, (from_theirs, to_theirs)).await;
        stop.cancel();
        ended
    };
    let serving_source = serve(from, &mut source, &source_options, &stop);
    let (ended, _, _) = tokio::join!(work, serving_source, serve(to, volume, &options, &stop));
    Ok(ended?)
}

/// Reads `volume` into a new, empty file, holes staying holes, puts that on stable storage and compares the two.
///
/// # Errors
/// See [`ConvertError`].
pub async fn export<D: Disk + ?Sized>(
    volume: &mut D,
    file: Arc<File>,
    progress: &watch::Sender<Progress>,
) -> Result<Report, ConvertError> {
    let size = volume.size();
    let failed = |what: &'static str| move |source| ConvertError::Io { what, source };
    file.set_len(size).map_err(failed("sizing the file"))?;
    let mut target = FileDisk::new(file, size);
    let mut at = 0;
    while at < size {
        let (bytes, pieces) = step(volume, at).await?;
        for (offset, data) in pieces {
            progress.send_modify(|now| now.written_bytes += data.len() as u64);
            perform(&mut target, Operation::Write { offset, data, durable: false }).await?;
        }
        progress.send_modify(|now| now.read_bytes += bytes);
        at += bytes;
    }
    perform(&mut target, Operation::Flush).await?;
    let written_bytes = progress.borrow().written_bytes;

    progress.send_modify(|now| (now.comparing, now.read_bytes) = (true, 0));
    let mut at = 0;
    while at < size {
        let (bytes, pieces) = step(volume, at).await?;
        for (offset, data) in pieces {
            let length = u32::try_from(data.len()).unwrap_or(CHUNK_BYTES);
            match perform(&mut target, Operation::Read { offset, bytes: length }).await? {
                Outcome::Read(pieces) if pieces == [Piece::Data(data)] => {}
                Outcome::Read(_) | Outcome::Done | Outcome::Extents(_) => return Err(ConvertError::Differs),
            }
        }
        progress.send_modify(|now| now.read_bytes += bytes);
        at += bytes;
    }
    Ok(Report { size, written_bytes })
}

/// What is on a disk from `at` on: how many bytes were looked at, and what of them is data, each piece with its place.
async fn step<D: Disk + ?Sized>(disk: &mut D, at: u64) -> Result<(u64, Vec<(u64, Bytes)>), ConvertError> {
    let left = disk.size() - at;
    let status = Operation::BlockStatus { offset: at, bytes: left, extents_max: 1 };
    let Outcome::Extents(extents) = perform(disk, status).await? else {
        unreachable!("what is and what is not data was asked for");
    };
    let extent = extents.first().copied().unwrap_or(Extent { bytes: left, data: true });
    if !extent.data {
        return Ok((extent.bytes.min(left), Vec::new()));
    }
    let bytes = extent.bytes.min(left).min(u64::from(CHUNK_BYTES));
    let read = Operation::Read { offset: at, bytes: u32::try_from(bytes).unwrap_or(CHUNK_BYTES) };
    let Outcome::Read(pieces) = perform(disk, read).await? else { unreachable!("it was read") };
    let (mut offset, mut found) = (at, Vec::new());
    for piece in pieces {
        let length = u64::from(piece.bytes());
        if let Piece::Data(data) = piece {
            found.push((offset, data));
        }
        offset += length;
    }
    Ok((bytes, found))
}

/// A connection: our end, and that which becomes one of the child's descriptors.
fn connection() -> Result<(UnixStream, Stdio), ConvertError> {
    let failed = |source| ConvertError::Io { what: "making a pair of sockets", source };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let theirs = theirs.into_std().map_err(failed)?;
    theirs.set_nonblocking(false).map_err(failed)?;
    Ok((ours, Stdio::from(std::os::fd::OwnedFd::from(theirs))))
}

fn offered(read_only: bool) -> ServeOptions {
    ServeOptions { name: String::new(), read_only }
}

/// How `qemu-img` is told of an image behind the connection that is its `descriptor`: by the format that we found, never by a
/// guess of its own, and without whatever else the image names.
fn node(format: Format, descriptor: u32) -> String {
    let connection = json!({
        "driver": "nbd", "server": { "type": "fd", "str": descriptor.to_string() },
    });
    let mut node = json!({ "driver": format.word(), "file": connection });
    if format != Format::Raw {
        node["backing"] = Value::Null;
    }
    format!("json:{node}")
}

/// A disk whose traffic is counted, and whose writes end at a limit.
struct Metered<'a, D: ?Sized> {
    disk: &'a mut D,
    progress: &'a watch::Sender<Progress>,
    counts_reads: bool,
    left: Option<u64>,
    refused: Vec<Completion>,
    exceeded: bool,
}

impl<'a, D: Disk + ?Sized> Metered<'a, D> {
    fn new(disk: &'a mut D, progress: &'a watch::Sender<Progress>, left: Option<u64>) -> Self {
        Self { disk, progress, counts_reads: false, left, refused: Vec::new(), exceeded: false }
    }
}

impl<D: Disk + ?Sized> Disk for Metered<'_, D> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn fast_zeroes(&self) -> bool {
        self.disk.fast_zeroes()
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        match &operation {
            Operation::Read { bytes, .. } if self.counts_reads => {
                self.progress.send_modify(|now| now.read_bytes += u64::from(*bytes));
            }
            Operation::Write { offset, data, .. } => {
                let (offset, bytes) = (*offset, data.len() as u64);
                if let Some(left) = &mut self.left {
                    let Some(after) = left.checked_sub(bytes) else {
                        self.exceeded = true;
                        self.refused.push(Completion { tag, result: Err(DiskError::NoSpace { offset, bytes }) });
                        return;
                    };
                    *left = after;
                }
                self.progress.send_modify(|now| now.written_bytes += bytes);
            }
            Operation::Read { .. }
            | Operation::WriteZeroes { .. }
            | Operation::Trim { .. }
            | Operation::Flush
            | Operation::BlockStatus { .. } => {}
        }
        self.disk.submit(tag, operation);
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<()> {
        if self.refused.is_empty() {
            return self.disk.poll(cx, done);
        }
        done.append(&mut self.refused);
        // What else has ended comes with it; that nothing has is no reason to wait.
        let _ = self.disk.poll(cx, done);
        Poll::Ready(())
    }
}
