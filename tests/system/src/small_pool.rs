//! A pool with little room, which a story can take and give back.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
};

use crate::{
    World,
    waiting::{SETTLE, until},
};

/// A pool that can be filled: a file system of its own in a file, mounted where only the node's daemon sees it, for as long as that lives.
#[derive(Debug)]
pub struct SmallPool {
    image: PathBuf,
    /// Its directory as seen from here.
    directory: PathBuf,
}

/// Its name.
pub const SMALL: &str = "small";

impl World {
    /// Where a node's small pool is, as seen from here.
    pub(crate) fn small_pool_seen(&self, node: &str) -> PathBuf {
        let at = self.host(node).dir().expect("a node has a directory").join(SMALL);
        let daemon = self.daemon(node);
        Path::new(&format!("/proc/{daemon}/root")).join(at.strip_prefix("/").expect("a whole path"))
    }

    /// Gives a node a pool of so many bytes.
    ///
    /// # Panics
    /// If it cannot be made.
    #[track_caller]
    #[must_use]
    pub fn small_pool(&self, node: &str, bytes: u64) -> SmallPool {
        let dir = self.host(node).dir().expect("a node has a directory").to_owned();
        let (image, at) = (dir.join("small.img"), dir.join(SMALL));
        fs::create_dir(&at).expect("a directory can be made");
        fs::File::create(&image).and_then(|file| file.set_len(bytes)).expect("a file can be made");
        carried_out("mkfs.ext4", &["-q", "-F", "-m", "0", &image.to_string_lossy()]);
        let daemon = self.daemon(node);
        let (namespace, from, to) =
            (format!("--mount=/proc/{daemon}/ns/mnt"), image.to_string_lossy(), at.to_string_lossy());
        // The loop device goes with the mount, and that with the namespace.
        carried_out("nsenter", &[&namespace, "mount", "-o", "loop", &from, &to]);
        let _: serde_json::Value = self.pollux(node, &["pool", "add", SMALL, &to]).json();
        SmallPool { image, directory: self.small_pool_seen(node) }
    }
}

impl SmallPool {
    /// Where it is, as seen from here.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Takes all the room there is.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn fill(&self) {
        let ballast = fs::File::create(self.ballast()).expect("a file can be made");
        let (mut bytes, mut piece) = (0, 64 << 20);
        while piece >= 4096 {
            match fallocate(&ballast, FallocateFlags::empty(), bytes, piece) {
                Ok(()) => bytes += piece,
                Err(Errno::ENOSPC) => piece /= 2,
                Err(error) => panic!("{} cannot be filled: {error}", self.directory.display()),
            }
        }
        assert!(bytes > 0, "{} was full already", self.directory.display());
    }

    /// Gives it back.
    ///
    /// # Panics
    /// If it was not taken.
    #[track_caller]
    pub fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("it was filled");
    }

    fn ballast(&self) -> PathBuf {
        self.directory.join("ballast")
    }

    /// Nothing of it is left: for the end of a story, when the lab is down.
    ///
    /// # Panics
    /// If its loop device is.
    #[track_caller]
    pub fn is_gone(&self) {
        let image = self.image.to_string_lossy();
        until("the loop device to be gone", SETTLE, || {
            let devices = fs::read_dir("/sys/block").map_err(|error| error.to_string())?.flatten();
            let files = devices.filter_map(|it| fs::read_to_string(it.path().join("loop/backing_file")).ok());
            files.filter(|file| file.contains(&*image)).map(Err).next().unwrap_or(Ok(()))
        });
    }
}

#[track_caller]
fn carried_out(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}
