//! Images made by `qemu-img` itself, good ones and such as are made to do harm, through the sandbox and into a replica in a pool.
//! Needs qemu-utils; as root the child is somebody else.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use pollux_disk::{EngineKind, Operation, Outcome, Piece, Pool, Replica, perform};
use pollux_image::{
    ConvertError, Format, Identity, Inspected, Progress, Refused, Source, SourceError, Tool, ToolLimits, export, import,
};
use tokio::sync::watch;

const SIZE: u64 = 16 << 20;

struct Bench {
    dir: tempfile::TempDir,
    pool: Pool,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        fs::create_dir(dir.path().join("pool")).unwrap();
        let pool = Pool::open(&dir.path().join("pool")).unwrap();
        Self { dir, pool }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A disk of [`SIZE`] bytes with some data in it, raw.
    fn disk(&self) -> PathBuf {
        let path = self.path("disk.raw");
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
        bytes[1 << 20..3 << 20].fill(0x5a);
        let last = bytes.len() - 512;
        bytes[last..].fill(7);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// What `qemu-img` makes with these words, in this directory.
    fn made(&self, words: &[&str], name: &str) -> PathBuf {
        let made = Command::new("qemu-img").args(words).current_dir(self.dir.path()).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        self.path(name)
    }

    async fn volume(&self, name: &str, size: u64) -> Replica {
        self.pool.create(name, size).unwrap();
        self.pool.open_replica(name, size, EngineKind::default()).await.unwrap()
    }
}

fn tool() -> Tool {
    let root = rustix::process::geteuid().is_root();
    let identity = root.then_some(Identity { uid: 0x7000_0000 + 77, gid: 0x7000_0000 + 77 });
    let limits = ToolLimits { cpu_s: 60, memory_bytes: 2 << 30, time_ms: 60_000 };
    Tool { program: "/usr/bin/qemu-img".into(), identity, limits }
}

async fn taken(path: &Path, format: Option<Format>) -> Result<Inspected, ConvertError> {
    Inspected::inspect(&tool(), Source::open(path, format)?, 1 << 40).await
}

async fn refused(path: &Path, format: Option<Format>) -> Refused {
    match taken(path, format).await {
        Err(ConvertError::Source(SourceError::Refused { refused, .. })) => refused,
        other => panic!("{}: {other:?}", path.display()),
    }
}

async fn content(disk: &mut Replica, offset: u64) -> u8 {
    let Outcome::Read(pieces) = perform(disk, Operation::Read { offset, bytes: 512 }).await.unwrap() else { panic!() };
    match &pieces[0] {
        Piece::Data(data) => data[0],
        Piece::Zeroes(_) => 0,
    }
}

#[tokio::test]
async fn each_format_arrives_as_it_was_and_stays_sparse() {
    let bench = Bench::new();
    let raw = bench.disk();
    let images = [
        (raw.clone(), Format::Raw),
        (bench.made(&["convert", "-O", "qcow2", "disk.raw", "a.qcow2"], "a.qcow2"), Format::Qcow2),
        (bench.made(&["convert", "-c", "-O", "qcow2", "disk.raw", "c.qcow2"], "c.qcow2"), Format::Qcow2),
        (bench.made(&["convert", "-O", "vmdk", "disk.raw", "a.vmdk"], "a.vmdk"), Format::Vmdk),
        (
            bench.made(&["convert", "-O", "vmdk", "-o", "subformat=streamOptimized", "disk.raw", "s.vmdk"], "s.vmdk"),
            Format::Vmdk,
        ),
    ];
    for (at, (path, format)) in images.iter().enumerate() {
        let image = taken(path, None).await.unwrap();
        assert_eq!((image.format(), image.size()), (*format, SIZE), "{}", path.display());
        let mut volume = bench.volume(&format!("v{at}"), SIZE + (4 << 20)).await;
        let progress = watch::Sender::new(Progress::default());

        let report = import(&tool(), &image, &mut volume, SIZE, &progress).await.unwrap();

        assert_eq!(report.size, SIZE);
        assert!((2 << 20..4 << 20).contains(&report.written_bytes), "{report:?} of {}", path.display());
        assert!(progress.borrow().comparing && progress.borrow().read_bytes > 0);
        assert_eq!(content(&mut volume, 2 << 20).await, 0x5a);
        assert_eq!(content(&mut volume, SIZE - 512).await, 7);
        assert_eq!(content(&mut volume, 8 << 20).await, 0);
    }
}

#[tokio::test]
async fn what_an_image_names_is_never_opened() {
    let bench = Bench::new();
    bench.disk();
    let secret = bench.path("secret");
    fs::write(&secret, vec![0x53; 1 << 20]).unwrap();

    let backed = bench.made(&["create", "-f", "qcow2", "-b", "secret", "-F", "raw", "b.qcow2"], "b.qcow2");
    assert_eq!(refused(&backed, None).await, Refused::BackingFile);
    let words = ["create", "-f", "qcow2", "-o", "data_file=secret,data_file_raw=on", "d.qcow2", "1M"];
    assert_eq!(refused(&bench.made(&words, "d.qcow2"), None).await, Refused::OtherFiles);
    let parts = bench.made(&["create", "-f", "vmdk", "-o", "subformat=monolithicFlat", "f.vmdk", "1M"], "f.vmdk");
    assert_eq!(refused(&parts, None).await, Refused::OtherFiles);
    let two = bench.made(&["create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", "t.vmdk", "1M"], "t.vmdk");
    assert_eq!(refused(&two, None).await, Refused::OtherFiles);
    let parent = bench.made(&["create", "-f", "vmdk", "p.vmdk", "1M"], "p.vmdk");
    bench.made(&["create", "-f", "vmdk", "-b", "p.vmdk", "-F", "vmdk", "k.vmdk"], "k.vmdk");
    assert_eq!(refused(&bench.path("k.vmdk"), None).await, Refused::BackingFile);
    assert_eq!(taken(&parent, None).await.unwrap().size(), 1 << 20, "the parent alone is an image");
}

#[tokio::test]
async fn secrets_and_bombs_and_other_things_are_refused_by_name() {
    let bench = Bench::new();
    let words = [
        "create",
        "--object",
        "secret,id=s,data=x",
        "-f",
        "qcow2",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s",
        "e.qcow2",
        "1M",
    ];
    assert_eq!(refused(&bench.made(&words, "e.qcow2"), None).await, Refused::Encrypted);
    let bomb = bench.made(&["create", "-f", "qcow2", "-o", "cluster_size=2M", "huge.qcow2", "100T"], "huge.qcow2");
    assert!(fs::metadata(&bomb).unwrap().len() < 32 << 20, "small outside");
    assert_eq!(refused(&bomb, None).await, Refused::TooLarge { size: 100 << 40, max: 1 << 40 });
    let vhdx = bench.made(&["create", "-f", "vhdx", "x.vhdx", "8M"], "x.vhdx");
    assert!(matches!(refused(&vhdx, None).await, Refused::Another { .. }));
    let raw = bench.disk();
    assert!(matches!(refused(&raw, Some(Format::Qcow2)).await, Refused::Broken { .. }), "it is not what is said");
    fs::write(bench.path("empty"), b"").unwrap();
    assert_eq!(refused(&bench.path("empty"), None).await, Refused::Empty);

    // A qcow2 whose tables are nonsense: the header is fine.
    let broken = bench.made(&["convert", "-O", "qcow2", "disk.raw", "n.qcow2"], "n.qcow2");
    let mut bytes = fs::read(&broken).unwrap();
    bytes[47] |= 1;
    fs::write(&broken, bytes).unwrap();
    let failure = taken(&broken, None).await.unwrap_err();
    assert!(matches!(failure, ConvertError::Tool(_)), "{failure:?}");
}

#[tokio::test]
async fn only_a_regular_file_is_opened_and_no_link_is_followed() {
    let bench = Bench::new();
    bench.disk();
    symlink(bench.path("disk.raw"), bench.path("link")).unwrap();
    fs::create_dir(bench.path("real")).unwrap();
    fs::copy(bench.path("disk.raw"), bench.path("real/disk.raw")).unwrap();
    symlink(bench.path("real"), bench.path("way")).unwrap();
    let pipe = bench.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());

    let open = |path: &Path| Source::open(path, None).map(|source| source.header());
    assert!(matches!(open(&bench.path("link")), Err(SourceError::Link { .. })));
    assert!(matches!(open(&bench.path("way/disk.raw")), Err(SourceError::Link { .. })), "a link on the way there");
    assert!(matches!(open(&pipe), Err(SourceError::Special { kind: "a pipe", .. })));
    assert!(matches!(open(Path::new("/dev/zero")), Err(SourceError::Special { .. })));
    assert!(matches!(open(bench.dir.path()), Err(SourceError::Special { kind: "a directory", .. })));
    assert!(matches!(open(&bench.path("none")), Err(SourceError::Open { .. })));
    assert_eq!(open(&bench.path("real/disk.raw")).unwrap().size, SIZE);
}

#[tokio::test]
async fn an_image_that_holds_more_than_it_may_fills_no_pool() {
    let bench = Bench::new();
    let image = taken(&bench.disk(), None).await.unwrap();
    let mut volume = bench.volume("v", SIZE).await;
    let progress = watch::Sender::new(Progress::default());
    let failure = import(&tool(), &image, &mut volume, 1 << 20, &progress).await.unwrap_err();
    assert!(matches!(failure, ConvertError::TooMuch { max } if max == 1 << 20), "{failure:?}");
    assert!(progress.borrow().written_bytes <= 1 << 20, "{:?}", progress.borrow());

    let mut small = bench.volume("small", 1 << 20).await;
    let failure = import(&tool(), &image, &mut small, SIZE, &progress).await.unwrap_err();
    assert!(matches!(failure, ConvertError::TooSmall { .. }), "{failure:?}");
}

#[tokio::test]
async fn a_tool_that_does_not_end_is_killed() {
    let bench = Bench::new();
    let image = taken(&bench.disk(), None).await.unwrap();
    let mut volume = bench.volume("v", SIZE).await;
    let limits = ToolLimits { time_ms: 300, ..tool().limits };
    let script = bench.path("sleeper");
    fs::write(&script, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let sleeper = Tool { program: script, identity: None, limits };
    let progress = watch::Sender::new(Progress::default());
    let failure = import(&sleeper, &image, &mut volume, SIZE, &progress).await.unwrap_err();
    assert!(failure.to_string().contains("was killed"), "{failure}");
}

#[tokio::test]
async fn what_the_child_may_do_is_next_to_nothing() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let bench = Bench::new();
    let image = taken(&bench.disk(), None).await.unwrap();
    let mut volume = bench.volume("v", SIZE).await;
    let script = bench.path("curious");
    let told = "#!/bin/sh\nexec 1>&2\nid -u; grep -c : /proc/net/dev; grep CapBnd /proc/self/status; ulimit -f\n\
                cat /etc/shadow; echo x > /tmp/pollux-image-was-here; exit 9\n";
    fs::write(&script, told).unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // The user that it is has to find it.
    fs::set_permissions(bench.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let curious = Tool { program: script, ..tool() };
    let progress = watch::Sender::new(Progress::default());
    let failure = import(&curious, &image, &mut volume, SIZE, &progress).await.unwrap_err().to_string();
    let wanted = ["1879048269; 1; CapBnd:?0000000000000000; 0;", "/etc/shadow: Permission denied"];
    assert!(wanted.iter().all(|wanted| failure.contains(wanted)), "{failure}");
    let wrote = fs::read("/tmp/pollux-image-was-here").unwrap_or_default();
    let _ = fs::remove_file("/tmp/pollux-image-was-here");
    assert!(wrote.is_empty(), "it wrote to a file");
}

#[tokio::test]
async fn a_volume_is_exported_with_its_holes() {
    let bench = Bench::new();
    let image = taken(&bench.disk(), None).await.unwrap();
    let mut volume = bench.volume("v", SIZE).await;
    import(&tool(), &image, &mut volume, SIZE, &watch::Sender::new(Progress::default())).await.unwrap();

    let out = Arc::new(File::options().read(true).write(true).create_new(true).open(bench.path("out.raw")).unwrap());
    let report = export(&mut volume, out, &watch::Sender::new(Progress::default())).await.unwrap();

    assert!(report.written_bytes < 4 << 20, "{report:?}");
    assert!(fs::read(bench.path("out.raw")).unwrap() == fs::read(bench.path("disk.raw")).unwrap());
}
