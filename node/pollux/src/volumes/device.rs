//! Block devices as pools. Such a device is given a file system of its own, which nobody else fills, mounted where this daemon keeps it:
//!
//! ```text
//!   /dev/disk/by-id/...  --mkfs, once-->  XFS, labelled `pollux`  --mount-->  DIR/pools/NAME
//!                                           its UUID: whose it is
//! ```
//!
//! A device is formatted only if nothing at all is recognised on it. One that was a pool of this node before is mounted as it is; its
//! mark says which. Another host's is never mounted ([`super::origin`]): that one may have it mounted, and two who write to it destroy it.
//! What an earlier life left mounted is used, if it can be written to. It is unmounted when the pool is removed and when the daemon ends.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use rustix::fs::{StatVfsMountFlags, statfs, statvfs};

use super::{
    origin::Origin,
    places::{Place, Places},
};

/// What the file system is called on the device.
const LABEL: &str = "pollux";
/// Its kind. XFS takes what is written into the page cache without a thread that may wait for it, which ext4 does not: a replica on it
/// writes half as much again, in small requests (docs/performance.md).
const KIND: &str = "xfs";
/// How the kernel calls it (`XFS_SUPER_MAGIC`).
const XFS_MAGIC: i64 = 0x5846_5342;
/// On a device with nothing on it so much is zeros, in bytes: whatever is put on one begins there.
const BEGINNING_BYTES: usize = 1 << 20;
/// The beginning of an XFS, in bytes, as far as it is looked at: its magic, its UUID at 32 and its label at 108 (`struct xfs_dsb`).
const SUPERBLOCK_BYTES: usize = 512;
/// Of file systems that lie one over the other where a pool is to be, so many are unmounted.
const LAYERS_MAX: usize = 16;
/// As much of what a tool complains of is told, in bytes.
const COMPLAINT_BYTES_MAX: usize = 300;

/// Why a block device cannot be a pool.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceFault {
    /// Something is on it.
    #[error("{device} holds {what} already, and is left alone")]
    Occupied {
        /// Which device.
        device: PathBuf,
        /// What was recognised there.
        what: String,
    },
    /// Nothing is on it, where a pool was.
    #[error("{device} holds no pool's file system; is it the right device?")]
    Empty {
        /// Which device.
        device: PathBuf,
    },
    /// A program that is needed did not do its work.
    #[error("`{program}` failed on {device}: {why}")]
    Tool {
        /// Which.
        program: &'static str,
        /// On which device.
        device: PathBuf,
        /// What it said, or why it could not be started.
        why: String,
    },
    /// The kernel refused.
    #[error("{what} {path}")]
    Kernel {
        /// What was to be done.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Mounted devices of this node, by the name of the pool.
#[derive(Debug)]
pub(super) struct Devices {
    base: PathBuf,
    origin: Origin,
    /// Names under which one is being added. The cluster may not know of them yet.
    added: Mutex<BTreeSet<String>>,
    places: Places,
    /// How often [`Self::retain`] was asked.
    retained: AtomicU64,
}

impl Devices {
    /// They are `origin`'s, and mounted in directories of `base`.
    pub(super) fn new(base: PathBuf, origin: Origin) -> Self {
        Self { base, origin, added: Mutex::default(), places: Places::default(), retained: AtomicU64::new(0) }
    }

    /// Where all are mounted.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// Where a device of that name is mounted.
    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// Nobody else mounts or unmounts a pool of this name, for as long as what this returns is there. That may have to be waited for, for
    /// as long as storage hangs.
    pub(super) fn enter(&self, name: &str) -> Place<'_> {
        self.places.enter(name)
    }

    /// The same without waiting; otherwise since when somebody does.
    pub(super) fn try_enter(&self, name: &str) -> Result<Place<'_>, SystemTime> {
        self.places.try_enter(name)
    }

    /// Where the pool's directory is: `path` itself, or where that device is mounted, from here on. Of this node it is then; which of its
    /// pools, the mark tells. Whoever asks is in the [`Place`] of that name.
    pub(super) fn directory(&self, place: &Place<'_>, path: &Path) -> Result<PathBuf, DeviceFault> {
        let Some(device) = number(path) else { return Ok(path.to_owned()) };
        let at = self.at(place.name());
        if is_mounted(device, &at) {
            return Ok(at);
        }
        // Another device that had the name before, or one that can only be read: of a mount that hung, and was seen to its end by the
        // kernel when its daemon was gone.
        self.leave(place);
        // A link may lead elsewhere by the time that it is mounted.
        let path = &fs::canonicalize(path).map_err(failed("finding the device of", path))?;
        match pool_on(path)? {
            Some(uuid) => self.must_be_ours(path, &uuid)?,
            None => match recognised(path)? {
                Some(found) => return Err(occupied(path, found.to_string())),
                None => return Err(DeviceFault::Empty { device: path.clone() }),
            },
        }
        fs::create_dir_all(&at).map_err(failed("making the directory", &at))?;
        let flags = MsFlags::MS_NOATIME | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID;
        mount(Some(path), &at, Some(KIND), flags, None::<&str>)
            .map_err(|error| failed("mounting the device", path)(error.into()))?;
        Ok(at)
    }

    /// Another's file system is not touched.
    fn must_be_ours(&self, device: &Path, uuid: &str) -> Result<(), DeviceFault> {
        if self.origin.made(uuid) {
            return Ok(());
        }
        Err(occupied(device, format!("a pool of another node, or of another cluster ({uuid}),")))
    }

    /// What is mounted for that pool, if anything, is not it, or not any more. What is still open there is so until it is closed.
    pub(super) fn leave(&self, place: &Place<'_>) {
        let at = self.at(place.name());
        for _ in 0..LAYERS_MAX {
            // What somebody else mounted there is not a pool's, nor where a link leads.
            if !statfs(&at).is_ok_and(|seen| seen.f_type == XFS_MAGIC) {
                break;
            }
            match umount2(&at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // Another one may lie below.
                Ok(()) => {}
                // Nothing is mounted there.
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(error) => {
                    tracing::warn!(path = %at.display(), %error, "a pool's device cannot be unmounted");
                    break;
                }
            }
        }
        if let Err(error) = fs::remove_dir(&at) {
            tracing::debug!(path = %at.display(), %error, "a pool's mount point stays");
        }
    }

    /// A pool of this name is being added: whatever [`Self::retain`] is told, it stays mounted.
    pub(super) fn is_added(&self, name: &str) {
        self.added().insert(name.to_owned());
    }

    /// It was, or will not be.
    pub(super) fn was_added(&self, name: &str) {
        self.added().remove(name);
    }

    /// None is any more: the daemon ends.
    pub(super) fn none_is_added(&self) {
        self.added().clear();
    }

    fn added(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.added.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a file system on a device on which nothing is. A directory, and a device with such a file system, are left as they are.
    pub(super) fn prepare(&self, place: &Place<'_>, path: &Path) -> Result<(), DeviceFault> {
        let Some(device) = number(path) else { return Ok(()) };
        if is_mounted(device, &self.at(place.name())) {
            return Ok(());
        }
        // A link may lead elsewhere by the time that the tools look.
        let path = &fs::canonicalize(path).map_err(failed("finding the device of", path))?;
        let beginning = beginning(path)?;
        if let Some(uuid) = pool_on(path)? {
            return self.must_be_ours(path, &uuid);
        }
        match recognised(path)? {
            Some(found) => Err(occupied(path, found.to_string())),
            None if beginning.iter().any(|byte| *byte != 0) => {
                Err(occupied(path, "data of a kind that nothing here recognises".into()))
            }
            None => {
                // Nothing is discarded: that takes long, and whoever wiped the device had a reason to.
                let mut format = Command::new("mkfs.xfs");
                let uuid = format!("uuid={}", self.origin.uuid(rand::random()));
                format.args(["-q", "-K", "-L", LABEL, "-m", &uuid]).arg(path);
                let made = run("mkfs.xfs", path, &mut format)?;
                if made.status.success() { Ok(()) } else { Err(complaint("mkfs.xfs", path, &made)) }
            }
        }
    }

    /// Unmounts what no pool of these names is on. What is still open there is so until it is closed. Where somebody mounts something at
    /// this moment is left to whoever that is.
    pub(super) fn retain(&self, known: impl Fn(&str) -> bool) {
        let mut asked = self.retained.fetch_add(1, Ordering::SeqCst) + 1;
        loop {
            self.unmount_unknown(&known);
            // Who asked meanwhile may have met this one there, and know more.
            match self.retained.load(Ordering::SeqCst) {
                now if now == asked => return,
                now => asked = now,
            }
        }
    }

    fn unmount_unknown(&self, known: &impl Fn(&str) -> bool) {
        // Without any there is no directory.
        let Ok(entries) = fs::read_dir(&self.base) else { return };
        for name in entries.flatten().map(|entry| entry.file_name()) {
            let name = name.to_string_lossy();
            let Ok(place) = self.try_enter(&name) else { continue };
            // Not before: it may have become known, and been mounted, meanwhile.
            if !known(&name) && !self.added().contains(&*name) {
                self.leave(&place);
            }
        }
    }
}

/// What a device begins with. One that cannot be read, or that somebody uses, is not one on which nothing is.
fn beginning(device: &Path) -> Result<Vec<u8>, DeviceFault> {
    let flags = nix::fcntl::OFlag::O_EXCL.bits();
    let file = fs::File::options().read(true).custom_flags(flags).open(device);
    let file = file.map_err(failed("opening the device for nobody else", device))?;
    let mut bytes = vec![0; BEGINNING_BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(failed("reading the device", device))?;
    Ok(bytes)
}

/// Whether that device is mounted there, to be written to: of a file system on a device, the files are on that device.
fn is_mounted(device: u64, at: &Path) -> bool {
    let writable = |at| statvfs(at).is_ok_and(|seen| !seen.f_flag.contains(StatVfsMountFlags::RDONLY));
    fs::metadata(at).is_ok_and(|seen| seen.dev() == device) && writable(at)
}

/// The device's number, if `path` is one.
fn number(path: &Path) -> Option<u64> {
    let seen = fs::metadata(path).ok()?;
    seen.file_type().is_block_device().then(|| seen.rdev())
}

/// What is on a device.
#[derive(Debug)]
struct Found {
    kind: String,
    /// Empty: it has none.
    label: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.label.is_empty() { f.write_str(&self.kind) } else { write!(f, "{} ({})", self.kind, self.label) }
    }
}

/// The UUID of a pool's file system, if one begins there. Asked of the superblock itself: `blkid` looks at places that are replicas' data
/// here, and a guest may have written there what looks like something else.
fn pool_on(device: &Path) -> Result<Option<String>, DeviceFault> {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    let read = fs::File::open(device).and_then(|file| file.read_exact_at(&mut bytes, 0));
    read.map_err(failed("reading the device", device))?;
    let label = bytes[108..120].split(|byte| *byte == 0).next();
    if !bytes.starts_with(b"XFSB") || label != Some(LABEL.as_bytes()) {
        return Ok(None);
    }
    let hex = |range: std::ops::Range<usize>| bytes[range].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok(Some([32..36, 36..38, 38..40, 40..42, 42..48].map(hex).join("-")))
}

/// What is on a device. Whatever has a signature that anybody knows counts, partition tables too.
fn recognised(device: &Path) -> Result<Option<Found>, DeviceFault> {
    let probe = |tag: &str| {
        let mut probe = Command::new("blkid");
        probe.args(["-p", "-o", "value", "-s", tag]).arg(device);
        run("blkid", device, &mut probe)
    };
    let found = |output: &Output| String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let only = |kind: String| Ok(Some(Found { kind, label: String::new() }));
    for tag in ["TYPE", "PTTYPE"] {
        let told = probe(tag)?;
        match told.status.code() {
            Some(0) if found(&told).is_empty() => {}
            Some(0) if tag == "TYPE" => {
                return Ok(Some(Found { kind: found(&told), label: found(&probe("LABEL")?) }));
            }
            Some(0) => return only(format!("a partition table ({})", found(&told))),
            // Nothing was recognised.
            Some(2) => {}
            // 8: what is there could be one thing or another.
            Some(8) => return only("the traces of several file systems".into()),
            Some(_) | None => return Err(complaint("blkid", device, &told)),
        }
    }
    Ok(None)
}

fn run(program: &'static str, device: &Path, command: &mut Command) -> Result<Output, DeviceFault> {
    // A fixed language: what it says is shown as it is.
    let ran = command.env("LC_ALL", "C").stdin(Stdio::null()).output();
    ran.map_err(|error| DeviceFault::Tool { program, device: device.to_owned(), why: error.to_string() })
}

fn complaint(program: &'static str, device: &Path, output: &Output) -> DeviceFault {
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim().get(..COMPLAINT_BYTES_MAX.min(text.trim().len())).unwrap_or("it said nothing readable");
    let why = if text.is_empty() { output.status.to_string() } else { text.replace('\n', "; ") };
    DeviceFault::Tool { program, device: device.to_owned(), why }
}

fn occupied(device: &Path, what: String) -> DeviceFault {
    DeviceFault::Occupied { device: device.to_owned(), what }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DeviceFault + use<> {
    let path = path.to_owned();
    move |source| DeviceFault::Kernel { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use pollux_state::id::NodeId;

    use super::*;

    /// The tools of XFS refuse less than 300 MiB.
    const LOOP_BYTES: u64 = 320 << 20;

    /// A loop device over a file, for as long as this is there.
    struct Loop {
        device: PathBuf,
        _dir: tempfile::TempDir,
    }

    impl Loop {
        fn new() -> Self {
            let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
            let file = dir.path().join("disk");
            fs::File::create(&file).and_then(|file| file.set_len(LOOP_BYTES)).expect("a file");
            let told = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().expect("losetup");
            assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
            Self { device: String::from_utf8_lossy(&told.stdout).trim().into(), _dir: dir }
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
        }
    }

    fn devices(dir: &tempfile::TempDir) -> Devices {
        Devices::new(dir.path().join("pools"), Origin::new("c1", NodeId(1)))
    }

    #[test]
    fn a_device_is_formatted_once_and_only_when_nothing_is_on_it() {
        let (device, dir) = (Loop::new(), tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory"));
        let devices = devices(&dir);
        devices.prepare(&devices.enter("fast"), &device.device).expect("it is empty");
        let at = devices.directory(&devices.enter("fast"), &device.device).expect("it is mounted");
        assert_eq!(at, dir.path().join("pools/fast"));
        fs::write(at.join("kept"), "word").expect("it can be written to");

        // Again, mounted or not: nothing is lost.
        assert_eq!(devices.directory(&devices.enter("fast"), &device.device).expect("it is mounted"), at);
        devices.retain(|_| false);
        assert!(!at.exists(), "nothing is left of the mount");
        devices.prepare(&devices.enter("fast"), &device.device).expect("it is one of ours");
        let again = devices.directory(&devices.enter("other"), &device.device).expect("it is mounted");
        assert_eq!(fs::read_to_string(again.join("kept")).expect("it is there"), "word");
        devices.retain(|name| name == "other");
        assert!(again.join("kept").exists(), "what is known stays");
        devices.retain(|_| false);
    }

    #[test]
    fn a_device_with_anything_on_it_is_left_alone() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let devices = devices(&dir);
        let device = Loop::new();
        let made = Command::new("mkfs.ext4").args(["-q", "-L", "photos"]).arg(&device.device).status();
        assert!(made.expect("mkfs").success());
        let refused = devices.prepare(&devices.enter("fast"), &device.device).expect_err("somebody's photos");
        assert!(refused.to_string().contains("holds ext4 (photos) already"), "{refused}");

        let device = Loop::new();
        fs::write(&device.device, [7; 4096]).expect("it can be written to");
        let refused = devices.prepare(&devices.enter("fast"), &device.device).expect_err("something");
        assert!(refused.to_string().contains("that nothing here recognises"), "{refused}");

        let device = Loop::new();
        let mut table = [0_u8; 512];
        // A partition of Linux's kind from sector 1 on: what an old table looks like at least.
        table[446 + 4] = 0x83;
        table[446 + 8..446 + 16].copy_from_slice(&[1, 0, 0, 0, 100, 0, 0, 0]);
        table[510..].copy_from_slice(&[0x55, 0xaa]);
        fs::write(&device.device, table).expect("it can be written to");
        let refused = devices.prepare(&devices.enter("fast"), &device.device).expect_err("a partition table");
        assert!(refused.to_string().contains("a partition table (dos)"), "{refused}");
    }

    #[test]
    fn another_nodes_device_is_never_mounted_and_nothing_on_it_changes() {
        let (device, dir) = (Loop::new(), tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory"));
        let refused =
            devices(&dir).directory(&devices(&dir).enter("fast"), &device.device).expect_err("nothing is on it");
        assert!(refused.to_string().contains("holds no pool's file system"), "{refused}");
        for (cluster, node) in [("c1", 2), ("c2", 1)] {
            let others = Devices::new(dir.path().join("others"), Origin::new(cluster, NodeId(node)));
            others.prepare(&others.enter("fast"), &device.device).expect("it is empty, or that node's");
            let before = fs::read(&device.device).expect("it can be read");
            let refused = devices(&dir).prepare(&devices(&dir).enter("fast"), &device.device).expect_err("another's");
            assert!(refused.to_string().contains("holds a pool of another node, or of another cluster ("), "{refused}");
            devices(&dir).directory(&devices(&dir).enter("fast"), &device.device).expect_err("another's");
            assert!(!dir.path().join("pools/fast").exists(), "it was mounted");
            assert!(fs::read(&device.device).expect("it can be read") == before, "it was written to");
            fs::write(&device.device, vec![0; BEGINNING_BYTES]).expect("it can be written to");
        }
    }

    #[test]
    fn what_a_guest_wrote_does_not_make_a_pool_something_else() {
        let (device, dir) = (Loop::new(), tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory"));
        let devices = devices(&dir);
        devices.prepare(&devices.enter("fast"), &device.device).expect("it is empty");
        let at = devices.directory(&devices.enter("fast"), &device.device).expect("it is mounted");
        // The second header of LUKS2, in each place where one is looked for.
        let mut block = [0; 4096];
        block[..8].copy_from_slice(b"SKUL\xba\xbe\0\x02");
        let replica = fs::File::create(at.join("replica")).expect("it can be written to");
        for offset in [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000_u64] {
            block[256..264].copy_from_slice(&offset.to_be_bytes());
            for at in 0..2048 {
                if at * 4096 % offset == 0 || offset == 0x20_0000 {
                    replica.write_all_at(&block, at * 4096).expect("it can be written to");
                }
            }
        }
        replica.sync_all().expect("it can be synced");
        drop(replica);
        devices.retain(|_| false);
        assert!(!at.exists(), "nothing is mounted");
        devices.prepare(&devices.enter("fast"), &device.device).expect("it is one of ours");
        let again = devices.directory(&devices.enter("fast"), &device.device).expect("it is mounted");
        assert!(again.join("replica").exists());
        devices.retain(|_| false);
    }

    #[test]
    fn what_somebody_else_mounted_beside_the_pools_stays() {
        let (device, dir) = (Loop::new(), tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory"));
        let devices = devices(&dir);
        devices.prepare(&devices.enter("fast"), &device.device).expect("it is empty");
        devices.directory(&devices.enter("fast"), &device.device).expect("it is mounted");
        let theirs = dir.path().join("pools/theirs");
        fs::create_dir(&theirs).expect("it can be made");
        mount(Some("none"), &theirs, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("it can be mounted");
        fs::write(theirs.join("kept"), "word").expect("it can be written to");
        devices.retain(|_| false);
        let kept = theirs.join("kept").exists();
        umount2(&theirs, MntFlags::MNT_DETACH).expect("it is mounted");
        assert!(kept && !dir.path().join("pools/fast").exists());
    }

    #[test]
    fn one_that_is_being_added_stays_mounted_whatever_pools_are_known() {
        let (device, dir) = (Loop::new(), tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory"));
        let devices = devices(&dir);
        devices.prepare(&devices.enter("fast"), &device.device).expect("it is empty");
        devices.is_added("fast");
        let at = devices.directory(&devices.enter("fast"), &device.device).expect("it is mounted");
        devices.retain(|_| false);
        fs::write(at.join("kept"), "word").expect("it is there");
        assert!(number(&device.device).is_some_and(|number| fs::metadata(&at).is_ok_and(|seen| seen.dev() == number)));
        devices.was_added("fast");
        devices.retain(|_| false);
        assert!(!at.exists());
    }

    #[test]
    fn what_can_only_be_read_or_is_another_device_is_not_taken_for_the_pool() {
        let (first, second) = (Loop::new(), Loop::new());
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let devices = devices(&dir);
        let place = devices.enter("fast");
        for device in [&first, &second] {
            devices.prepare(&place, &device.device).expect("it is empty");
        }
        // An earlier life's, which has ended meanwhile.
        let at = dir.path().join("pools/fast");
        fs::create_dir_all(&at).expect("it can be made");
        mount(Some(&first.device), &at, Some(KIND), MsFlags::MS_RDONLY, None::<&str>).expect("it can be mounted");
        for (device, word) in [(&first, "first"), (&second, "second")] {
            assert_eq!(devices.directory(&place, &device.device).expect("it is mounted"), at);
            assert_eq!(fs::metadata(&at).expect("it is there").dev(), number(&device.device).expect("a device"));
            fs::write(at.join(word), word).expect("it can be written to");
        }
        assert!(!at.join("first").exists());
        drop(place);
        devices.retain(|_| false);
        assert!(!at.exists(), "nothing else was mounted there");
    }

    #[test]
    fn nobody_unmounts_where_somebody_mounts() {
        let (device, dir) = (Loop::new(), tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory"));
        let devices = devices(&dir);
        let place = devices.enter("fast");
        devices.prepare(&place, &device.device).expect("it is empty");
        let at = devices.directory(&place, &device.device).expect("it is mounted");
        devices.retain(|_| false);
        fs::write(at.join("kept"), "word").expect("it is mounted");
        drop(place);
        devices.retain(|_| false);
        assert!(!at.exists());
    }

    #[test]
    fn who_knows_more_meanwhile_is_not_overheard() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let (devices, at) = (devices(&dir), dir.path().join("pools/fast"));
        fs::create_dir_all(&at).expect("it can be made");
        let removed = Cell::new(false);
        devices.retain(|_| {
            // While this one decides it is removed; whoever says so meets this one there.
            let known = !removed.replace(true);
            if known {
                devices.retain(|_| false);
                assert!(at.exists());
            }
            known
        });
        assert!(!at.exists(), "it stays for good");
    }

    #[test]
    fn a_directory_is_what_it_was() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let devices = devices(&dir);
        devices.prepare(&devices.enter("fast"), dir.path()).expect("nothing to do");
        assert_eq!(devices.directory(&devices.enter("fast"), dir.path()).expect("itself"), dir.path());
        assert!(!dir.path().join("pools").exists(), "nothing was made");
    }
}
