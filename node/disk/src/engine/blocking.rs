//! A job, done by the thread that calls, as long as it takes.

use std::{fs::File, io::IoSlice};

use rustix::{
    fs::{fallocate, fdatasync},
    io::{Errno, pread, pwritev},
};

use super::{Finished, Job, PUNCH, Work, ZERO};

/// Does it.
pub(crate) fn perform(file: &File, job: Job) -> Finished {
    let Job { id, work } = job;
    match work {
        Work::Read { offset, mut buffer } => {
            Finished { id, result: read(file, offset, &mut buffer), buffer: Some(buffer) }
        }
        Work::Write { offset, data } => Finished { id, result: write(file, offset, &data), buffer: None },
        Work::Punch { offset, bytes } => {
            Finished { id, result: patient(|| fallocate(file, PUNCH, offset, bytes)), buffer: None }
        }
        Work::Zero { offset, bytes } => {
            Finished { id, result: patient(|| fallocate(file, ZERO, offset, bytes)), buffer: None }
        }
        // Not repeated when it was interrupted: a second one may succeed without the first one's errors.
        Work::Sync => Finished { id, result: fdatasync(file), buffer: None },
    }
}

fn read(file: &File, mut offset: u64, mut rest: &mut [u8]) -> Result<(), Errno> {
    while !rest.is_empty() {
        match patient(|| pread(file, &mut *rest, offset))? {
            // The file is shorter than it was: nobody but an intruder did that.
            0 => return Err(Errno::IO),
            read => {
                offset += read as u64;
                rest = &mut rest[read..];
            }
        }
    }
    Ok(())
}

fn write(file: &File, mut offset: u64, mut rest: &[u8]) -> Result<(), Errno> {
    while !rest.is_empty() {
        match patient(|| pwritev(file, &[IoSlice::new(rest)], offset))? {
            0 => return Err(Errno::IO),
            written => {
                offset += written as u64;
                rest = &rest[written..];
            }
        }
    }
    Ok(())
}

fn patient<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
