//! A pool: a directory that holds replicas, each a directory of its own.
//!
//! ```text
//!   POOL/web-0/data       the volume's bytes: a sparse file, locked through its directory while it is open
//!   POOL/web-0/...        what else belongs to this copy: an activity log, a bitmap
//!   POOL/web-0/failed     there if this copy is out of use, and why
//!   POOL/.new.web-0/      one that is being made; POOL/.gone.web-0/ one that is being removed
//! ```
//!
//! A replica is there from the rename on that gives it its name, and gone from the rename on that takes it: whatever a crash left
//! before the one or after the other has a name with a dot in front, and goes with the next [`Pool::sweep`] or when the name is used
//! again. Nothing is followed through symbolic links. All of this waits for the storage: not for a runtime's own threads, except
//! where it is `async`.

use std::{io, os::fd::OwnedFd, path::Path, sync::Arc};

use rustix::{
    fs::{
        AtFlags, FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags, fallocate, flock, fstatvfs, fsync,
        ftruncate, mkdirat, open, openat, renameat_with, unlinkat,
    },
    io::Errno,
};

use super::{
    Replica,
    beside::write_new,
    home::{DATA, Home, failure, good_name, good_size},
    refusals::{CreateError, DeleteError, GrowError, OpenError, PoolError},
    scan::scan,
};
use crate::{disk::BLOCK_BYTES, engine::EngineKind};

/// The largest volume, in bytes: what ext4 takes in one file.
pub const VOLUME_BYTES_MAX: u64 = 16 << 40;
/// The longest name of a replica, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 100;
/// How a name begins while the replica is being made.
const NEW: &str = ".new.";
/// And while it is being removed.
const GONE: &str = ".gone.";

/// A pool's directory. Clones share it.
#[derive(Debug, Clone)]
pub struct Pool {
    path: Arc<Path>,
    pub(super) directory: Arc<OwnedFd>,
}

/// What a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the file system.
    pub capacity: u64,
    /// Bytes that can still be written.
    pub free: u64,
}

/// A replica that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// The volume's size, in bytes.
    pub size: u64,
    /// What it takes of the pool, in bytes.
    pub allocated: u64,
    /// Why it is out of use, if it is.
    pub failed: Option<String>,
}

/// A step of making a replica, after which a crash may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Directory,
    File,
    Sized,
    FileSynced,
    Beside,
    DirectorySynced,
    Named,
}

impl Pool {
    /// A pool at `path`, which must be a directory.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub fn open(path: &Path) -> Result<Self, PoolError> {
        let directory = open(path, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| PoolError::NoDirectory { path: path.to_owned(), source })?;
        let pool = Self { path: path.into(), directory: Arc::new(directory) };
        pool.check_holes()?;
        Ok(pool)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size, and what of it is free.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn usage(&self) -> Result<Usage, PoolError> {
        let told = fstatvfs(&*self.directory).map_err(self.failed("asking for the free space"))?;
        Ok(Usage { capacity: told.f_blocks * told.f_frsize, free: told.f_bavail * told.f_frsize })
    }

    /// The replicas that are there, by name.
    ///
    /// # Errors
    /// When the directory cannot be read. What stands in it that is no replica is left out.
    pub fn list(&self) -> Result<Vec<Found>, PoolError> {
        let mut found: Vec<Found> = self.names()?.iter().filter_map(|name| self.look_at(name)).collect();
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Removes what crashes left of replicas that were being made or removed. Returns how many there were. Not while another
    /// is making or removing one here.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn sweep(&self) -> Result<usize, PoolError> {
        let _alone = self.alone().map_err(self.failed("locking"))?;
        let left: Vec<_> =
            self.names()?.into_iter().filter(|name| name.starts_with(NEW) || name.starts_with(GONE)).collect();
        for name in &left {
            remove(&self.directory, name).map_err(self.failed("removing what a crash left"))?;
        }
        fsync(&*self.directory).map_err(self.failed("syncing"))?;
        Ok(left.len())
    }

    /// Makes the replica `name` of a volume of `size` bytes, all of it a hole. It is there, and stays there, when this returns.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create(&self, name: &str, size: u64) -> Result<(), CreateError> {
        self.create_with(name, size, &[])
    }

    /// The same, with these files beside its data, each by its name and with its content: they are there whenever the replica is.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create_with(&self, name: &str, size: u64, beside: &[(&str, &[u8])]) -> Result<(), CreateError> {
        self.create_by_steps(name, size, beside, |_| {})
    }

    pub(crate) fn create_by_steps(
        &self,
        name: &str,
        size: u64,
        beside: &[(&str, &[u8])],
        mut passed: impl FnMut(Step),
    ) -> Result<(), CreateError> {
        if !good_name(name) {
            return Err(CreateError::BadName { name: name.to_owned() });
        }
        if !good_size(size) {
            return Err(CreateError::BadSize { size });
        }
        let failed = |what: &'static str| {
            move |errno| match errno {
                Errno::NOSPC | Errno::DQUOT | Errno::FBIG => {
                    CreateError::NoSpace { pool: self.path.to_path_buf(), name: name.to_owned(), size }
                }
                Errno::EXIST => CreateError::Exists { pool: self.path.to_path_buf(), name: name.to_owned() },
                source => CreateError::Kernel { pool: self.path.to_path_buf(), name: name.to_owned(), what, source },
            }
        };
        let _alone = self.alone().map_err(failed("locking the pool"))?;
        let new = format!("{NEW}{name}");
        remove(&self.directory, &new).map_err(failed("removing what a crash left"))?;
        mkdirat(&*self.directory, &new, Mode::RWXU).map_err(failed("making the directory"))?;
        passed(Step::Directory);
        let made = self.fill_new(&new, size, beside, &mut passed).and_then(|()| {
            renameat_with(&*self.directory, &new, &*self.directory, name, RenameFlags::NOREPLACE)
                .map_err(|errno| ("giving it its name", errno))
        });
        if let Err((what, errno)) = made {
            // What is left of it has no name that counts; the next one removes it if this does not.
            let _ = remove(&self.directory, &new);
            return Err(failed(what)(errno));
        }
        passed(Step::Named);
        fsync(&*self.directory).map_err(failed("syncing the pool"))
    }

    fn fill_new(
        &self,
        new: &str,
        size: u64,
        beside: &[(&str, &[u8])],
        passed: &mut impl FnMut(Step),
    ) -> Result<(), (&'static str, Errno)> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory =
            openat(&*self.directory, new, flags, Mode::empty()).map_err(|errno| ("opening the directory", errno))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let data =
            openat(&directory, DATA, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| ("making the file", errno))?;
        passed(Step::File);
        ftruncate(&data, size).map_err(|errno| ("sizing the file", errno))?;
        passed(Step::Sized);
        fsync(&data).map_err(|errno| ("syncing the file", errno))?;
        passed(Step::FileSynced);
        for (name, bytes) in beside {
            let errno = |error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
            write_new(&directory, name, bytes).map_err(|error| ("writing what belongs to it", errno(error)))?;
        }
        passed(Step::Beside);
        fsync(&directory).map_err(|errno| ("syncing the directory", errno))?;
        passed(Step::DirectorySynced);
        Ok(())
    }

    /// Opens the replica `name` of a volume of `size` bytes, and nobody else can until it is dropped. Looks for its holes first,
    /// which takes as long as its file has extents. Inside a tokio runtime.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open_replica(&self, name: &str, size: u64, kind: EngineKind) -> Result<Replica, OpenError> {
        let home = Home { pool: self.clone(), name: name.into() };
        let opening = home.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let (file, found) = opening.open_file()?;
            if found != size {
                let (pool, name) = opening.names();
                return Err(OpenError::WrongSize { pool, name, size, found });
            }
            let map = scan(&file.data, size).map_err(opening.kernel("looking for its holes"))?;
            Ok((file, map))
        });
        let (file, map) = opened.await.map_err(|error| home.kernel("opening")(io::Error::other(error)))??;
        Replica::start(home.clone(), file, size, map, kind).map_err(home.kernel("starting its engine"))
    }

    /// Makes the replica `name`, which nobody has open, `size` bytes long; what is added is a hole. One that is so long already
    /// is left as it is.
    ///
    /// # Errors
    /// See [`GrowError`].
    pub fn grow(&self, name: &str, size: u64) -> Result<(), GrowError> {
        let home = Home { pool: self.clone(), name: name.into() };
        let (file, from) = home.open_file()?;
        if size < from || !good_size(size) {
            return Err(GrowError::BadSize { name: name.to_owned(), from, to: size });
        }
        ftruncate(&file.data, size).map_err(|errno| match errno {
            Errno::FBIG | Errno::NOSPC | Errno::DQUOT => GrowError::NoSpace { name: name.to_owned(), to: size },
            errno => home.kernel("growing")(errno.into()).into(),
        })?;
        fsync(&file.data).map_err(|errno| home.kernel("syncing")(errno.into()).into())
    }

    /// Removes the replica `name`, which nobody has open; one that is out of use too. It is gone, and stays gone, when this
    /// returns.
    ///
    /// # Errors
    /// See [`DeleteError`].
    pub fn delete(&self, name: &str) -> Result<(), DeleteError> {
        let home = Home { pool: self.clone(), name: name.into() };
        let _lock = home.lock()?;
        let failed = |errno: Errno| DeleteError::Kernel { name: name.to_owned(), source: errno.into() };
        let _alone = self.alone().map_err(failed)?;
        let gone = format!("{GONE}{name}");
        remove(&self.directory, &gone).map_err(failed)?;
        renameat_with(&*self.directory, name, &*self.directory, &gone, RenameFlags::NOREPLACE).map_err(failed)?;
        fsync(&*self.directory).map_err(failed)?;
        remove(&self.directory, &gone).map_err(failed)
    }

    /// Nobody else makes or removes replicas here until this is dropped.
    fn alone(&self) -> Result<OwnedFd, Errno> {
        // A description of its own: locks are held by descriptions, and all clones share the other.
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = openat(&*self.directory, ".", flags, Mode::empty())?;
        flock(&lock, FlockOperation::LockExclusive)?;
        Ok(lock)
    }

    fn names(&self) -> Result<Vec<String>, PoolError> {
        let entries = rustix::fs::Dir::read_from(&*self.directory).map_err(self.failed("reading the directory"))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(self.failed("reading the directory"))?;
            // Ours are all ASCII; "." and ".." are neither good nor ours.
            if let Ok(name) = entry.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn look_at(&self, name: &str) -> Option<Found> {
        let home = Home { pool: self.clone(), name: name.into() };
        let directory = home.directory().ok()?;
        let (_, stat) = home.data(&directory).ok()?;
        Some(Found {
            name: name.to_owned(),
            size: u64::try_from(stat.st_size).ok()?,
            // In units of 512 bytes, on every file system.
            allocated: u64::try_from(stat.st_blocks).ok()? * 512,
            failed: failure(&directory),
        })
    }

    /// Punches one into a file without a name.
    fn check_holes(&self) -> Result<(), PoolError> {
        let probe = openat(&*self.directory, ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR);
        let probe = match probe {
            Ok(probe) => probe,
            // A full one is a pool all the same; which cannot have held holes otherwise.
            Err(Errno::NOSPC | Errno::DQUOT) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => return Err(PoolError::NoHoles { path: self.path.to_path_buf() }),
            Err(errno) => return Err(self.failed("making a file")(errno)),
        };
        let punched = ftruncate(&probe, u64::from(BLOCK_BYTES)).and_then(|()| {
            fallocate(&probe, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, u64::from(BLOCK_BYTES))
        });
        match punched {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(PoolError::NoHoles { path: self.path.to_path_buf() }),
            other => other.map_err(self.failed("making a hole")),
        }
    }

    fn failed(&self, what: &'static str) -> impl Fn(Errno) -> PoolError + use<'_> {
        move |source| PoolError::Kernel { path: self.path.to_path_buf(), what, source }
    }
}

/// Removes the replica's directory `name`, with the files in it, if it is there.
fn remove(pool: &OwnedFd, name: &str) -> Result<(), Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match openat(pool, name, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            unlinkat(&directory, entry.file_name(), AtFlags::empty())?;
        }
    }
    unlinkat(pool, name, AtFlags::REMOVEDIR)
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
