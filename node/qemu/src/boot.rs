//! What a machine boots, opened by the daemon and handed over as descriptors.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use crate::Identity;

/// A kernel or initial file system larger than this is a mistake. 1 GiB.
const BOOT_FILE_BYTES_MAX: u64 = 1 << 30;

/// What a machine boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// A Linux kernel.
    Kernel {
        /// Its file.
        kernel: PathBuf,
        /// Its initial file system.
        initrd: Option<PathBuf>,
        /// Its command line.
        append: String,
    },
    /// The first of its disks, through the machine's firmware.
    Disk,
    /// A disk image whose first sector is the whole guest; read only, for tests.
    Sector(PathBuf),
}

/// The same with its files open.
pub(crate) enum OpenBoot {
    Kernel { kernel: BootFile, initrd: Option<BootFile>, append: String },
    Disk,
    Sector(BootFile),
}

/// A file that QEMU reopens through the descriptor it inherits, so that it needs no access to the directories above.
pub(crate) struct BootFile(OwnedFd);

impl BootFile {
    /// Opens the file; when QEMU's user may not read it, a copy in memory takes its place.
    fn open(path: &Path, reader: Option<Identity>) -> io::Result<Self> {
        // Opening a FIFO would wait for its writer, and with it every other launch; a regular file does not care.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let mut file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let facts = file.metadata()?;
        if !facts.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if facts.len() > BOOT_FILE_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("larger than {BOOT_FILE_BYTES_MAX} bytes"),
            ));
        }
        let readable = reader.is_none_or(|user| {
            let bit = match user {
                Identity { uid, .. } if uid == facts.uid() => 0o400,
                Identity { gid, .. } if gid == facts.gid() => 0o040,
                Identity { .. } => 0o004,
            };
            facts.mode() & bit != 0
        });
        if readable {
            return Ok(Self(file.into()));
        }
        let copy = rustix::fs::memfd_create("pollux-boot", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut copy = File::from(copy);
        io::copy(&mut file, &mut copy)?;
        rustix::fs::fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self(copy.into()))
    }

    /// Its path in the process that inherits it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

impl OpenBoot {
    /// Opens what `boot` names; the error carries the path.
    pub(crate) fn open(boot: &Boot, reader: Option<Identity>) -> Result<Self, (PathBuf, io::Error)> {
        let open = |path: &Path| BootFile::open(path, reader).map_err(|error| (path.to_owned(), error));
        Ok(match boot {
            Boot::Kernel { kernel, initrd, append } => {
                let initrd = initrd.as_deref().map(open).transpose()?;
                Self::Kernel { kernel: open(kernel)?, initrd, append: append.clone() }
            }
            Boot::Disk => Self::Disk,
            Boot::Sector(sector) => Self::Sector(open(sector)?),
        })
    }

    /// The descriptors to inherit.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        match self {
            Self::Kernel { kernel, initrd, .. } => {
                [Some(kernel), initrd.as_ref()].into_iter().flatten().map(|file| file.0.as_raw_fd()).collect()
            }
            Self::Disk => Vec::new(),
            Self::Sector(sector) => vec![sector.0.as_raw_fd()],
        }
    }
}
