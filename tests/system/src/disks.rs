//! Pools and volumes in a story, and the guest's work on its disk.

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::{
    World,
    client::Client,
    small_pool::SMALL,
    waiting::{SETTLE, until},
};

/// The pool that each node has in a story with disks.
pub const POOL: &str = "fast";
/// So much of two files is compared at a time, in bytes.
const COMPARED_BYTES: u64 = 1 << 20;

/// `pool add`, `pool list`.
#[derive(Clone, Debug, Deserialize)]
pub struct Pool {
    /// `ready`, `failed` or `unknown`.
    pub state: String,
    /// What its file system has.
    pub size_bytes: Option<u64>,
}

/// `volume show`.
#[derive(Clone, Debug, Deserialize)]
pub struct Volume {
    /// Its number.
    pub id: u64,
    /// `ready`, `degraded`, ...
    pub health: String,
    /// The fencing number.
    pub generation: u64,
    /// Its copies.
    pub replicas: Vec<Replica>,
    /// A replica on its way elsewhere.
    #[serde(rename = "move")]
    pub moving: Option<Moving>,
    /// What its replicas were found to hold last.
    pub compared: Option<Compared>,
}

/// What a comparison has found.
#[derive(Clone, Debug, Deserialize)]
pub struct Compared {
    /// `verify` or `scrub`.
    pub by: String,
    /// All of it was compared.
    pub whole: bool,
    /// What was not.
    pub left_out_bytes: u64,
    /// Who differs.
    pub differs: Vec<Differing>,
}

/// A replica that differs.
#[derive(Clone, Debug, Deserialize)]
pub struct Differing {
    /// Its pool, as `NODE:POOL`.
    pub place: String,
    /// Bytes of the pieces in which it does.
    pub bytes: u64,
    /// Where the first of them begins.
    pub first: u64,
}

/// A replica that takes another's place.
#[derive(Clone, Debug, Deserialize)]
pub struct Moving {
    /// `copying`, `comparing` or `kept`.
    pub phase: String,
}

/// One copy of it.
#[derive(Clone, Debug, Deserialize)]
pub struct Replica {
    /// Its number.
    pub id: u64,
    /// Where: its node, and `NODE:POOL`.
    pub node: String,
    /// The latter.
    pub place: String,
    /// Why it does not count, if it does not.
    pub why: Option<String>,
    /// It is in the in-sync set.
    pub in_sync: bool,
    /// What it lacks, as far as anybody knows.
    pub lacks_bytes: Option<u64>,
}

/// What `volume verify` found.
#[derive(Clone, Debug, Deserialize)]
pub struct Verification {
    /// The node that compared.
    pub node: String,
    /// `equal`, `different` or `incomplete`.
    pub result: String,
    /// Bytes of the volume that were compared.
    pub compared_bytes: u64,
    /// Each replica.
    pub replicas: Vec<Verified>,
}

/// A replica that was compared.
#[derive(Clone, Debug, Deserialize)]
pub struct Verified {
    /// Its pool, as `NODE:POOL`.
    pub place: String,
    /// It was in sync.
    pub compared: bool,
    /// Bytes of the pieces in which it differs.
    pub differs_bytes: u64,
    /// Bytes of those that were repaired.
    pub repaired_bytes: u64,
    /// Where.
    pub places: Vec<Place>,
}

/// A range of bytes.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Place {
    /// The first.
    pub start: u64,
    /// The one behind the last.
    pub end: u64,
}

/// What the guest did to its disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Writes that ended.
    pub writes: u64,
    /// What failed, as the guest sees it.
    pub errors: u64,
    /// The longest that one request took, in milliseconds.
    pub longest_ms: u64,
}

impl Volume {
    /// The nodes of the in-sync set.
    #[must_use]
    pub fn in_sync(&self) -> BTreeSet<&str> {
        self.replicas.iter().filter(|it| it.in_sync).map(|it| it.node.as_str()).collect()
    }
}

impl World {
    /// Where a node's pool is.
    ///
    /// # Panics
    /// If there is no such node.
    #[track_caller]
    #[must_use]
    pub fn pool(&self, node: &str) -> PathBuf {
        self.host(node).dir().expect("a node has a directory").join("pool")
    }

    /// Where a pool is, by `NODE:POOL`.
    ///
    /// # Panics
    /// If there is no such node.
    #[track_caller]
    #[must_use]
    pub fn pool_at(&self, place: &str) -> PathBuf {
        let (node, name) = place.split_once(':').expect("a node and a pool");
        if name == POOL { self.pool(node) } else { self.pool(node).with_file_name(format!("pool-{name}")) }
    }

    /// Gives a node one pool more.
    ///
    /// # Panics
    /// If that is refused.
    #[track_caller]
    pub fn have_pool(&self, node: &str, name: &str) {
        let path = self.pool_at(&format!("{node}:{name}"));
        fs::create_dir(&path).expect("a directory can be made");
        let _: serde_json::Value = self.pollux(node, &["pool", "add", name, &path.to_string_lossy()]).json();
    }

    /// Gives every node a pool.
    ///
    /// # Panics
    /// If that is refused.
    #[track_caller]
    pub fn have_pools(&self) {
        for node in self.nodes() {
            self.have_pool(node, POOL);
        }
    }

    /// Makes a volume with a replica on each of these nodes.
    ///
    /// # Panics
    /// If that is refused.
    #[track_caller]
    pub fn make_volume(&self, name: &str, size: &str, nodes: &[&str]) {
        self.make_volume_in(POOL, name, size, nodes);
    }

    /// The same, in the nodes' pools of this name.
    ///
    /// # Panics
    /// If that is refused.
    #[track_caller]
    pub fn make_volume_in(&self, pool: &str, name: &str, size: &str, nodes: &[&str]) {
        let places: Vec<String> = nodes.iter().map(|node| format!("{node}:{pool}")).collect();
        let mut words = vec!["volume", "create", name, "--size", size];
        words.extend(places.iter().flat_map(|place| ["--pool", place]));
        let _: Volume = self.pollux(nodes[0], &words).json();
    }

    /// A volume, as a node sees it.
    ///
    /// # Panics
    /// If it does not answer.
    #[track_caller]
    #[must_use]
    pub fn volume(&self, via: &str, name: &str) -> Volume {
        self.pollux(via, &["volume", "show", name]).json()
    }

    /// Waits until the replicas on exactly these nodes are the in-sync set and lack nothing.
    ///
    /// # Panics
    /// If that takes too long.
    #[track_caller]
    pub fn in_sync(&self, via: &str, name: &str, nodes: &[&str]) {
        let wanted: BTreeSet<&str> = nodes.iter().copied().collect();
        until(&format!("{name} in sync on {wanted:?}"), SETTLE, || {
            let seen: Volume = self.pollux(via, &["volume", "show", name]).try_json()?;
            let lacks = |it: &Replica| it.in_sync && it.lacks_bytes.is_some_and(|bytes| bytes > 0);
            if seen.in_sync() == wanted && !seen.replicas.iter().any(lacks) { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    }

    /// Waits until a node's pool holds no replica.
    ///
    /// # Panics
    /// If that takes too long.
    #[track_caller]
    pub fn pool_is_empty(&self, node: &str) {
        until(&format!("the pool of {node} to be empty"), SETTLE, || {
            let entries = fs::read_dir(self.pool(node)).map_err(|error| error.to_string())?;
            let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
            let found: Vec<String> = names.filter(|name| name.starts_with("volume-")).collect();
            if found.is_empty() { Ok(()) } else { Err(format!("{found:?}")) }
        });
    }

    /// The file with what is in a replica.
    #[must_use]
    pub fn data_of(&self, volume: &Volume, replica: &Replica) -> PathBuf {
        let pool = if replica.place.ends_with(&format!(":{SMALL}")) {
            self.small_pool_seen(&replica.node)
        } else {
            self.pool_at(&replica.place)
        };
        pool.join(format!("volume-{}-replica-{}", volume.id, replica.id)).join("data")
    }

    /// The disk under a node's replica of a volume makes something else of the eight bytes at `offset`, behind everybody's back.
    ///
    /// # Panics
    /// If there is no such replica.
    #[track_caller]
    pub fn rots(&self, via: &str, name: &str, (node, offset): (&str, u64)) {
        let volume = self.volume(via, name);
        let replica = volume.replicas.iter().find(|it| it.node == node).expect("a replica there");
        let path = self.data_of(&volume, replica);
        let file = fs::File::options().read(true).write(true).open(&path).expect("its file can be opened");
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset).expect("its file can be read");
        file.write_all_at(&bytes.map(|byte| !byte), offset).expect("its file can be written");
    }

    /// Compares the replicas of a volume that nobody uses, byte for byte.
    ///
    /// # Panics
    /// If they differ.
    #[track_caller]
    pub fn replicas_are_equal(&self, via: &str, name: &str) {
        if let Err(differs) = self.compare_replicas(via, name) {
            panic!("{differs}");
        }
    }

    /// The same.
    ///
    /// # Errors
    /// Which two differ, and where.
    ///
    /// # Panics
    /// If one cannot be read.
    #[track_caller]
    pub fn compare_replicas(&self, via: &str, name: &str) -> Result<(), String> {
        let volume = self.volume(via, name);
        let (first, others) = volume.replicas.split_first().expect("a volume has replicas");
        let wanted = self.data_of(&volume, first);
        for other in others {
            if let Some(at) = differ(&wanted, &self.data_of(&volume, other)) {
                return Err(format!("{name} differs between {} and {} at byte {at}", first.place, other.place));
            }
        }
        Ok(())
    }
}

/// Where two files differ first, also by one being longer.
///
/// # Panics
/// If one cannot be read.
#[track_caller]
#[must_use]
pub fn differ(one: &Path, other: &Path) -> Option<u64> {
    let open = |path: &Path| fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut files, mut at) = ([open(one), open(other)], 0_u64);
    let mut buffers = [Vec::new(), Vec::new()];
    loop {
        for (file, buffer) in files.iter_mut().zip(&mut buffers) {
            buffer.clear();
            let read = file.take(COMPARED_BYTES).read_to_end(buffer);
            read.unwrap_or_else(|error| panic!("{} or {}: {error}", one.display(), other.display()));
        }
        let [one, other] = &buffers;
        if one != other {
            let same = one.iter().zip(other).take_while(|(one, other)| one == other).count();
            return Some(at + same as u64);
        }
        if one.is_empty() {
            return None;
        }
        at += one.len() as u64;
    }
}

impl Client {
    /// Has the guest write, flush and read back the first `blocks` blocks of its first disk, so often a second.
    ///
    /// # Panics
    /// If it cannot.
    #[track_caller]
    pub fn works_on_disk(&self, blocks: u32, rate: u32) {
        self.ask(&format!("DISK /dev/vda {blocks} {rate}"));
    }

    /// What came of it.
    ///
    /// # Panics
    /// If something was not as it must be.
    #[track_caller]
    #[must_use]
    pub fn disk_work(&self) -> Work {
        let told = self.ask("DISK");
        let words: Vec<&str> = told.split_whitespace().collect();
        let number = |name: &str| {
            let at = words.iter().position(|word| *word == name).unwrap_or_else(|| panic!("no {name} in {told}"));
            words[at + 1].parse().unwrap_or_else(|_| panic!("{name} is no number in {told}"))
        };
        Work { writes: number("writes"), errors: number("errors"), longest_ms: number("longest_ms") }
    }

    /// The guest reads back what it wrote to its first disk, and never saw an error.
    ///
    /// # Panics
    /// If something is not as it must be.
    #[track_caller]
    pub fn checks_disk(&self) {
        self.ask("DISKCHECK");
        assert_eq!(self.disk_work().errors, 0);
    }

    /// A guest that was started anew takes what is in these blocks for its own; the highest number that it has found.
    ///
    /// # Panics
    /// If it cannot.
    #[track_caller]
    #[must_use]
    pub fn adopts_disk(&self, blocks: u32) -> u64 {
        self.number(&format!("DISKADOPT /dev/vda {blocks}"))
    }

    /// The guest flushes what it wrote to its first disk; the highest number that is on stable storage by that.
    ///
    /// # Panics
    /// If it cannot.
    #[track_caller]
    #[must_use]
    pub fn flushes_disk(&self) -> u64 {
        self.number("DISKFLUSH")
    }

    #[track_caller]
    fn number(&self, request: &str) -> u64 {
        let told = self.ask(request);
        told.split_whitespace()
            .nth(1)
            .and_then(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("no number in {told}"))
    }

    /// Waits until the guest's work on its disk has gone on.
    ///
    /// # Panics
    /// If it has not for long.
    #[track_caller]
    pub fn disk_goes_on(&self, limit: Duration) {
        let before = self.disk_work().writes;
        until("the guest's writes to go on", limit, || {
            let now = self.disk_work().writes;
            if now > before + 5 { Ok(()) } else { Err(format!("{before}, then {now}")) }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_differ_where_a_byte_does_and_where_one_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).expect("it can be written");
            path
        };
        let whole = vec![7; 3 << 20];
        let mut other = whole.clone();
        other[(2 << 20) + 5] = 8;
        let (one, same) = (file("one", &whole), file("same", &whole));
        assert_eq!(differ(&one, &same), None);
        assert_eq!(differ(&one, &file("other", &other)), Some((2 << 20) + 5));
        assert_eq!(differ(&one, &file("short", &whole[1..])), Some((3 << 20) - 1));
    }
}
