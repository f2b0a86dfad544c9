//! A file that somebody names as an image.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};

use crate::header::{self, Format, HEAD_BYTES, Header, Refused};

/// A file that was opened and looked at.
#[derive(Debug, Clone)]
pub struct Source {
    pub(crate) file: Arc<File>,
    path: PathBuf,
    /// Its length when it was opened, in bytes, and when it was changed last.
    seen: Seen,
    header: Header,
}

type Seen = (u64, i64, i64);

/// A file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be opened.
    #[error("{} cannot be opened", .path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is a symbolic link, or behind one.
    #[error("{} is a symbolic link, or lies behind one: give the path of the file itself", .path.display())]
    Link {
        /// Which.
        path: PathBuf,
    },
    /// It is a device, a pipe, a directory.
    #[error("{} is {kind}, and no regular file", .path.display())]
    Special {
        /// Which.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// It cannot be read.
    #[error("{} cannot be read", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was changed while it was being read.
    #[error("{} was changed while it was read; let nobody write to it, and repeat this", .path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// Its content.
    #[error("{} is not taken: {refused}", .path.display())]
    Refused {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        refused: Refused,
    },
}

impl Source {
    /// Opens a file and reads its header. Without a `format` it is what its first bytes say. Waits for the storage.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn open(path: &Path, format: Option<Format>) -> Result<Self, SourceError> {
        let at = || path.to_owned();
        // Not blocking: a pipe without a writer would hold us for ever.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS);
        let file = File::from(opened.map_err(|errno| match errno {
            Errno::LOOP => SourceError::Link { path: at() },
            errno => SourceError::Open { path: at(), source: errno.into() },
        })?);
        let stat = rustix::fs::fstat(&file).map_err(|errno| SourceError::Read { path: at(), source: errno.into() })?;
        if let Some(kind) = special(FileType::from_raw_mode(stat.st_mode)) {
            return Err(SourceError::Special { path: at(), kind });
        }
        let read = |source| SourceError::Read { path: at(), source };
        let seen = look(&file).map_err(read)?;
        let mut head = vec![0; HEAD_BYTES];
        let bytes = read_at(&file, &mut head, 0).map_err(read)?;
        head.truncate(bytes);
        let refused = |refused| SourceError::Refused { path: at(), refused };
        let format = format.map_or_else(|| header::sniff(&head), Ok).map_err(refused)?;
        let header = header::read(format, &head, seen.0).map_err(refused)?;
        Ok(Self { file: Arc::new(file), path: at(), seen, header })
    }

    /// What it is, as its header says.
    #[must_use]
    pub fn header(&self) -> Header {
        self.header
    }

    /// The file's length, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.seen.0
    }

    /// Nobody has written to it since it was opened, as far as the kernel says.
    pub(crate) fn unchanged(&self) -> Result<(), SourceError> {
        let now = look(&self.file).map_err(|source| SourceError::Read { path: self.path.clone(), source })?;
        if now == self.seen { Ok(()) } else { Err(SourceError::Changed { path: self.path.clone() }) }
    }

    pub(crate) fn refuse(&self, refused: Refused) -> SourceError {
        SourceError::Refused { path: self.path.clone(), refused }
    }
}

fn look(file: &File) -> io::Result<Seen> {
    let meta = file.metadata()?;
    Ok((meta.len(), meta.mtime(), meta.mtime_nsec()))
}

fn special(kind: FileType) -> Option<&'static str> {
    Some(match kind {
        FileType::RegularFile => return None,
        FileType::Directory => "a directory",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Symlink => "a symbolic link",
        FileType::Unknown => "something unknown",
    })
}

/// Reads as much of `buffer` as the file has from `offset` on.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
