//! What the tests share: pools in temporary directories, small file systems of their own, and a client that speaks NBD byte by byte.
#![allow(missing_docs, dead_code)]

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use pollux_disk::{
    Disk, EngineKind, Pool, Replica,
    nbd::{End, ServeOptions, serve},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes, so that a test that hangs ends and says where.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const ENGINES: [EngineKind; 3] = [EngineKind::Ring, EngineKind::Threads, EngineKind::Best];

/// Runs `story` on a runtime of its own, once with each engine that is there.
pub(crate) fn with_each_engine<S, F>(story: S)
where
    S: Fn(EngineKind) -> F,
    F: Future<Output = ()>,
{
    for kind in ENGINES {
        run(story(kind));
    }
}

pub(crate) fn run<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, story).await.expect("the test hangs") })
}

/// So many bytes, none of them zero, that are alike again only after `period`.
pub(crate) fn pattern(bytes: u64, period: u8) -> Vec<u8> {
    (1..=period).cycle().take(usize::try_from(bytes).unwrap()).collect()
}

/// A pool in a directory that goes with it.
pub(crate) struct Place {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) pool: Pool,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pool = Pool::open(directory.path()).unwrap();
        Self { directory, pool }
    }

    pub(crate) fn path(&self, rest: &str) -> PathBuf {
        self.directory.path().join(rest)
    }

    /// A new replica called `v`, open.
    pub(crate) async fn replica(&self, size: u64, kind: EngineKind) -> Replica {
        self.pool.create("v", size).unwrap();
        self.pool.open_replica("v", size, kind).await.unwrap()
    }
}

/// Runs `story` in a mount namespace of its own where `path` is a file system of `bytes` bytes, in memory.
pub(crate) fn on_a_small_file_system(bytes: u64, story: impl FnOnce(&Path) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("these tests need root: they mount a file system");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={bytes}");
        mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        story(directory.path());
        nix::mount::umount2(directory.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Serves `disk` to one client of `listener` after the other, until it is told to stop. Gives the disk back.
pub(crate) async fn serve_each<D: Disk + Send>(listener: UnixListener, mut disk: D, stop: CancellationToken) -> D {
    let options = ServeOptions { name: "web-0".to_owned(), read_only: false };
    loop {
        tokio::select! {
            () = stop.cancelled() => return disk,
            accepted = listener.accept() => {
                let end = serve(accepted.unwrap().0, &mut disk, &options, &stop).await;
                assert!(matches!(end, End::Left | End::Closed | End::Stopped), "{end}");
            }
        }
    }
}

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISCONNECT: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const ZEROES: u16 = 6;
pub(crate) const STATUS: u16 = 7;
pub(crate) const FUA: u16 = 1;

/// A client that does what the test says and nothing else.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    /// Bytes that the reads under way get.
    reads: HashMap<u64, u32>,
}

/// An answer: of which request, its error, what was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) cookie: u64,
    pub(crate) error: u32,
    pub(crate) data: Vec<u8>,
}

impl Client {
    /// Greets, and asks for the export without structured replies.
    pub(crate) async fn greet(mut stream: UnixStream) -> Self {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
        let go = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &7u32.to_be_bytes(), &6u32.to_be_bytes(), &[0; 6]].concat();
        stream.write_all(&go).await.unwrap();
        loop {
            let mut header = [0; 20];
            stream.read_exact(&mut header).await.unwrap();
            let kind = u32::from_be_bytes(header[12..16].try_into().unwrap());
            let mut data = vec![0; u32::from_be_bytes(header[16..].try_into().unwrap()) as usize];
            stream.read_exact(&mut data).await.unwrap();
            if kind == 1 {
                return Self { stream, reads: HashMap::new() };
            }
            assert_eq!(kind, 3, "the export was refused");
        }
    }

    pub(crate) fn request(command: u16, flags: u16, cookie: u64, offset: u64, bytes: u32) -> Vec<u8> {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend(flags.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(bytes.to_be_bytes());
        request
    }

    pub(crate) async fn asks(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, bytes: u32) {
        if command == READ {
            self.reads.insert(cookie, bytes);
        }
        self.stream.write_all(&Self::request(command, flags, cookie, offset, bytes)).await.unwrap();
    }

    pub(crate) async fn writes(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        let bytes = u32::try_from(data.len()).unwrap();
        let message = [&Self::request(WRITE, flags, cookie, offset, bytes)[..], data].concat();
        self.stream.write_all(&message).await.unwrap();
    }

    pub(crate) async fn hears(&mut self) -> Answer {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header).await.unwrap();
        assert_eq!(header[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
        let cookie = u64::from_be_bytes(header[8..].try_into().unwrap());
        let bytes = self.reads.remove(&cookie).unwrap_or(0);
        let mut data = vec![0; if error == 0 { bytes as usize } else { 0 }];
        self.stream.read_exact(&mut data).await.unwrap();
        Answer { cookie, error, data }
    }

    /// The end of a request without data.
    pub(crate) async fn hears_of(&mut self, cookie: u64) -> u32 {
        let answer = self.hears().await;
        assert_eq!(answer.cookie, cookie);
        answer.error
    }
}
