//! What the owner of a replica keeps beside its data, in files of its own choosing: what replicas may differ in, for one.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::OwnedFd,
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, fstat, fsync, openat, renameat, unlinkat},
    io::Errno,
};

use super::home::{DATA, FAILED, Home, good_name};
use crate::engine::DataFile;

/// How a file's name ends while it is being written.
const UNFINISHED: &str = ".unfinished";

/// The directory of an open replica. Whoever holds one keeps others from the replica, as the replica itself does. All of this waits for
/// the storage.
#[derive(Debug, Clone)]
pub struct Beside {
    home: Home,
    file: Arc<DataFile>,
}

impl Beside {
    pub(super) fn new(home: Home, file: Arc<DataFile>) -> Self {
        Self { home, file }
    }

    /// The file `name`, to be read and written, and everything in it; `None`: there is none. One of more than `bytes_max` bytes is
    /// not read.
    ///
    /// # Errors
    /// When it cannot be opened or read, is too long, or is no regular file with this name alone.
    pub fn read(&self, name: &str, bytes_max: u64) -> io::Result<Option<(File, Vec<u8>)>> {
        check(name);
        // Not waiting: what stands there may be a pipe, and is refused below.
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.file.lock, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 {
            return Err(io::Error::other("it is no regular file with one name"));
        }
        if u64::try_from(stat.st_size).is_ok_and(|size| size > bytes_max) {
            return Err(io::Error::other(format!("it has more than {bytes_max} bytes")));
        }
        let (mut file, mut bytes) = (File::from(file), Vec::new());
        file.read_to_end(&mut bytes)?;
        Ok(Some((file, bytes)))
    }

    /// Has `name` be a file with these bytes, instead of the one that is there, if any: all of the one or all of the other is
    /// there after a crash, and the new one when this has returned.
    ///
    /// # Errors
    /// With the kernel's own error the old one is there; with another one, when making the new one last has failed, either.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<File> {
        check(name);
        let unfinished = format!("{name}{UNFINISHED}");
        match unlinkat(&self.file.lock, &unfinished, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let made = write_new(&self.file.lock, &unfinished, bytes)
            .and_then(|file| Ok(renameat(&self.file.lock, &unfinished, &self.file.lock, name).map(|()| file)?));
        match made {
            Ok(file) => {
                // Not as the kernel says it: it is not "there was no room, and nothing has happened".
                fsync(&self.file.lock).map_err(|errno| io::Error::other(io::Error::from(errno)))?;
                Ok(file)
            }
            Err(error) => {
                // It takes room, and the next one removes it if this does not.
                let _ = unlinkat(&self.file.lock, &unfinished, AtFlags::empty());
                Err(error)
            }
        }
    }

    /// Writes down that the replica is out of use, and why: it is not opened again.
    ///
    /// # Errors
    /// When that could not be done.
    pub fn mark_failed(&self, why: &str) -> io::Result<()> {
        Ok(self.home.mark_failed(&self.file, why)?)
    }
}

/// Makes the file `name` with these bytes, on stable storage but for its name.
pub(super) fn write_new(directory: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(bytes)?;
    fsync(&file)?;
    Ok(file)
}

fn check(name: &str) {
    assert!(good_name(name) && name != DATA && name != FAILED, "'{name}' is the replica's own");
}
