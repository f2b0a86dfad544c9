//! One process at a time changes a lab.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use crate::{
    error::LabError,
    name::{LABS_DIR, LabName},
};

/// Longest wait for another process. Longer than `up` takes, which holds the lock all the while.
const WAIT_MAX: Duration = Duration::from_secs(120);
const WAIT_STEP: Duration = Duration::from_millis(20);

/// The right to change one lab, until dropped; the kernel takes it back from a process that dies. By name, wherever the
/// lab's directory is: the names of namespaces are the machine's.
pub(crate) struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    pub(crate) fn take(name: &LabName) -> Result<Self, LabError> {
        let path = path(name);
        let failed = || LabError::io(format!("locking {}", path.display()));
        let since = Instant::now();
        loop {
            fs::create_dir_all(LABS_DIR).map_err(LabError::io(format!("making {LABS_DIR}")))?;
            let file = match File::options().create(true).append(true).open(&path) {
                // The last lab of all was just taken down by another process, and the directory with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound && since.elapsed() < WAIT_MAX => continue,
                opened => opened.map_err(failed())?,
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from) {
                // Whoever held it may have removed the file before letting go: then this lock is on nothing.
                Ok(()) if same_file(&file, &path) => return Ok(Self { _file: file, path }),
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if since.elapsed() > WAIT_MAX {
                        return Err(LabError::Locked { name: name.to_string(), waited_s: WAIT_MAX.as_secs() });
                    }
                    thread::sleep(WAIT_STEP);
                }
                Err(error) => return Err(failed()(error)),
            }
        }
    }

    /// Takes the file away too: the lab is no more.
    pub(crate) fn remove(self) {
        // What stays is an empty file that the next lock uses.
        drop(fs::remove_file(&self.path));
        // The last lab takes the directory with it; while there is another, this fails, as it should.
        drop(fs::remove_dir(LABS_DIR));
    }
}

/// Not a lab's name, so never taken for a lab.
pub(crate) fn path(name: &LabName) -> PathBuf {
    Path::new(LABS_DIR).join(format!(".{name}.lock"))
}

fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}
