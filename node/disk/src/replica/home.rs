//! Where one replica lives in its pool: finding it, looking whether it is one, locking it.

use std::{fmt, fs::File, io, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use rustix::{
    fs::{FileType, FlockOperation, Mode, OFlags, Stat, fdatasync, flock, fstat, fsync, openat},
    io::Errno,
};

use super::{
    pool::{NAME_BYTES_MAX, Pool, VOLUME_BYTES_MAX},
    refusals::OpenError,
};
use crate::{disk::BLOCK_BYTES, engine::DataFile};

/// Its bytes.
pub(super) const DATA: &str = "data";
/// Says why it is out of use.
pub(super) const FAILED: &str = "failed";
/// What that says, at most, in bytes.
const REASON_BYTES_MAX: usize = 4096;

/// Where a replica is.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    pub(super) pool: Pool,
    pub(super) name: Arc<str>,
}

impl Home {
    /// As errors name it.
    pub(super) fn names(&self) -> (PathBuf, String) {
        (self.pool.path().to_path_buf(), self.name.to_string())
    }

    pub(super) fn kernel(&self, what: &'static str) -> impl Fn(io::Error) -> OpenError + use<'_> {
        move |source| {
            let (pool, name) = self.names();
            OpenError::Kernel { pool, name, what, source }
        }
    }

    fn none(&self, what: &'static str) -> OpenError {
        let (pool, name) = self.names();
        OpenError::NotAReplica { pool, name, what }
    }

    /// Its directory.
    pub(super) fn directory(&self) -> Result<OwnedFd, OpenError> {
        let (pool, name) = self.names();
        if !good_name(&self.name) {
            return Err(OpenError::NotThere { pool, name });
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&*self.pool.directory, &*self.name, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => OpenError::NotThere { pool, name },
            Errno::NOTDIR | Errno::LOOP => self.none("it is not a directory"),
            errno => self.kernel("opening its directory")(errno.into()),
        })
    }

    /// Its file, and what the file system says of that.
    pub(super) fn data(&self, directory: &OwnedFd) -> Result<(OwnedFd, Stat), OpenError> {
        // Not waiting: what stands there may be a pipe, and is refused below.
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let data = openat(directory, DATA, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => self.none("it has no data"),
            Errno::LOOP => self.none("its data is a symbolic link"),
            Errno::ISDIR | Errno::NXIO => self.none("its data is not a regular file"),
            errno => self.kernel("opening its data")(errno.into()),
        })?;
        let stat = fstat(&data).map_err(|errno| self.kernel("looking at its data")(errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.none("its data is not a regular file"));
        }
        if stat.st_nlink != 1 {
            return Err(self.none("its data has another name elsewhere"));
        }
        Ok((data, stat))
    }

    /// Its directory, locked.
    pub(super) fn lock(&self) -> Result<OwnedFd, OpenError> {
        let directory = self.directory()?;
        flock(&directory, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            Errno::WOULDBLOCK => {
                let (pool, name) = self.names();
                OpenError::Busy { pool, name }
            }
            errno => self.kernel("locking it")(errno.into()),
        })?;
        Ok(directory)
    }

    /// Its data and how long that is; locked.
    pub(super) fn open_file(&self) -> Result<(DataFile, u64), OpenError> {
        let lock = self.lock()?;
        if let Some(reason) = failure(&lock) {
            let (pool, name) = self.names();
            return Err(OpenError::Failed { pool, name, reason });
        }
        let (data, stat) = self.data(&lock)?;
        let size = u64::try_from(stat.st_size).map_err(|_| self.none("its data has no size"))?;
        if !good_size(size) {
            return Err(self.none("its data has a size that no volume has"));
        }
        Ok((DataFile { data: File::from(data), lock }, size))
    }

    /// Writes down that the replica is out of use.
    pub(crate) fn mark_failed(&self, file: &DataFile, why: &str) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mark = openat(&file.lock, FAILED, flags, Mode::RUSR | Mode::WUSR)?;
        // The file alone says it; what it says may be lost.
        let _ = rustix::io::write(&mark, why.as_bytes());
        let _ = fdatasync(&mark);
        fsync(&file.lock)
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool.path().display(), self.name)
    }
}

/// Why a replica is out of use, if it is.
pub(super) fn failure(directory: &OwnedFd) -> Option<String> {
    let mark = match openat(directory, FAILED, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(mark) => mark,
        Err(Errno::NOENT) => return None,
        Err(errno) => return Some(format!("its mark cannot be read: {errno}")),
    };
    let mut reason = vec![0; REASON_BYTES_MAX];
    let read = rustix::io::read(&mark, &mut reason[..]).unwrap_or(0);
    Some(String::from_utf8_lossy(&reason[..read]).into_owned())
}

/// Whether a replica can be called so.
pub(super) fn good_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good) && !name.starts_with('.')
}

/// Whether a volume can have so many bytes.
pub(super) fn good_size(size: u64) -> bool {
    (1..=VOLUME_BYTES_MAX).contains(&size) && size.is_multiple_of(u64::from(BLOCK_BYTES))
}
