//! The file `log` beside a replica's data. Everything here waits for the storage: not for a runtime's own threads.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use pollux_disk::Beside;
use pollux_mirror::Marks;
use pollux_wire::id::Generation;
use rustix::io::Errno;

use super::{
    frames::{self, Damage, FILE_BYTES_MAX, Replayed},
    ledger::{Job, JobEnd},
};

/// Its name.
pub(crate) const NAME: &str = "log";

/// An open log. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct LogFile {
    beside: Beside,
    file: Arc<File>,
}

/// Why a log cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("it has no log")]
    NotThere,
    #[error(transparent)]
    Damaged(#[from] Damage),
    #[error("reading its log failed")]
    Io(#[from] io::Error),
}

/// What a job came to.
#[derive(Debug)]
pub(crate) struct Worked {
    pub(crate) end: JobEnd,
    /// What the kernel said, if it did not go well.
    pub(crate) error: Option<io::Error>,
    /// Where the log is from here on.
    pub(crate) file: LogFile,
}

/// The log of a replica that has never held anything.
pub(crate) fn of_a_new_replica() -> Vec<u8> {
    frames::begin(Generation(0), &Marks::default()).expect("no marks are few").bytes
}

impl LogFile {
    /// Reads the log, and has nothing but zeros follow its end.
    pub(crate) fn open(beside: Beside) -> Result<(Self, Replayed, usize), LogError> {
        let Some((file, bytes)) = beside.read(NAME, FILE_BYTES_MAX)? else { return Err(LogError::NotThere) };
        let replayed = frames::replay(&bytes)?;
        if replayed.torn {
            let zeros = vec![0; bytes.len() - replayed.end];
            file.write_all_at(&zeros, replayed.end as u64)?;
            file.sync_data()?;
        }
        Ok((Self { beside, file: Arc::new(file) }, replayed, bytes.len()))
    }

    /// Does a job.
    pub(crate) fn work(mut self, job: &Job) -> Worked {
        let worked = match job {
            Job::Append { at, bytes, sync } => self.append(*at as u64, bytes, *sync),
            Job::Begin { bytes } => {
                self.beside.replace(NAME, bytes).map(|file| self.file = Arc::new(file)).map_err(no_room_is_harmless)
            }
        };
        match worked {
            Ok(()) => Worked { end: JobEnd::Done, error: None, file: self },
            Err((end, error)) => Worked { end, error: Some(error), file: self },
        }
    }

    fn append(&self, at: u64, bytes: &[u8], sync: bool) -> Result<(), (JobEnd, io::Error)> {
        self.file.write_all_at(bytes, at).map_err(no_room_is_harmless)?;
        // What a sync that fails has kept nobody knows, and it would not say so twice.
        if sync { self.file.sync_data().map_err(|error| (JobEnd::Failed, error)) } else { Ok(()) }
    }

    /// One that is written to another file.
    #[cfg(test)]
    pub(crate) fn diverted(&self, file: File) -> Self {
        Self { beside: self.beside.clone(), file: Arc::new(file) }
    }

    /// Writes down that the replica is out of use.
    pub(crate) fn mark_failed(&self, why: &str) -> io::Result<()> {
        self.beside.mark_failed(why)
    }
}

fn no_room_is_harmless(error: io::Error) -> (JobEnd, io::Error) {
    match Errno::from_io_error(&error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => (JobEnd::Full, error),
        _ => (JobEnd::Failed, error),
    }
}
