//! A file as a disk, for the one client that reads or writes it: `qemu-img`, which is never given the file itself.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use pollux_disk::{Completion, Disk, DiskError, Extent, Operation, Outcome, Piece, Tag};
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use tokio::task::JoinSet;

use crate::source::read_at;

/// What NBD counts in; a file whose length is no multiple of it reads as zeros at its end.
const SECTOR: u64 = 512;

/// See the module's text.
pub(crate) struct FileDisk {
    file: Arc<File>,
    size: u64,
    waiting: Vec<(Tag, Operation)>,
    running: JoinSet<Completion>,
}

impl FileDisk {
    /// A file of `bytes` bytes, to be read; or to be written, up to there.
    pub(crate) fn new(file: Arc<File>, bytes: u64) -> Self {
        let size = bytes.next_multiple_of(SECTOR);
        Self { file, size, waiting: Vec::new(), running: JoinSet::new() }
    }
}

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn fast_zeroes(&self) -> bool {
        false
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        self.waiting.push((tag, operation));
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<()> {
        for (tag, operation) in self.waiting.drain(..) {
            let (file, size) = (Arc::clone(&self.file), self.size);
            self.running.spawn_blocking(move || Completion { tag, result: carry_out(&file, size, operation) });
        }
        let before = done.len();
        while let Poll::Ready(Some(ended)) = self.running.poll_join_next(cx) {
            match ended {
                Ok(completion) => done.push(completion),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        if done.len() > before { Poll::Ready(()) } else { Poll::Pending }
    }
}

fn carry_out(file: &File, size: u64, operation: Operation) -> Result<Outcome, DiskError> {
    match operation {
        Operation::Read { offset, bytes } => {
            let mut buffer = vec![0; bytes as usize];
            let failed = failed("reading", offset, u64::from(bytes));
            // Beyond the file's end there are zeros.
            read_at(file, &mut buffer, offset).map_err(failed)?;
            Ok(Outcome::Read(vec![Piece::Data(Bytes::from(buffer))]))
        }
        Operation::Write { offset, data, durable } => {
            let failed = failed("writing", offset, data.len() as u64);
            file.write_all_at(&data, offset).and_then(|()| sync(file, durable)).map_err(failed)?;
            Ok(Outcome::Done)
        }
        // A file that is written here is new: what was not written is a hole.
        Operation::WriteZeroes { fast_only: true, .. } => Err(DiskError::NotFast),
        Operation::WriteZeroes { offset, bytes, durable, .. } | Operation::Trim { offset, bytes, durable } => {
            use rustix::fs::{FallocateFlags, fallocate};
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let punched = fallocate(file, flags, offset, bytes).map_err(io::Error::from);
            punched.and_then(|()| sync(file, durable)).map_err(failed("making a hole of", offset, bytes))?;
            Ok(Outcome::Done)
        }
        Operation::Flush => file.sync_data().map(|()| Outcome::Done).map_err(failed("syncing", 0, size)),
        Operation::BlockStatus { offset, bytes, extents_max } => {
            Ok(Outcome::Extents(extents(file, size, (offset, bytes), extents_max.max(1))))
        }
    }
}

fn sync(file: &File, durable: bool) -> io::Result<()> {
    if durable { file.sync_data() } else { Ok(()) }
}

fn failed(doing: &'static str, offset: u64, bytes: u64) -> impl Fn(io::Error) -> DiskError {
    move |error| match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => DiskError::NoSpace { offset, bytes },
        errno => DiskError::Io { doing, offset, bytes, source: errno.unwrap_or(Errno::IO) },
    }
}

/// What is data and what is a hole, as the file system says; where it does not, all is data.
fn extents(file: &File, size: u64, (offset, bytes): (u64, u64), max: usize) -> Vec<Extent> {
    let end = offset.saturating_add(bytes).min(size);
    let (mut at, mut found) = (offset, Vec::new());
    while at < end && found.len() < max {
        let next = |from: SeekFrom| seek(file, from).map(|to| to.next_multiple_of(SECTOR).clamp(at, end));
        let (data, to) = match next(SeekFrom::Data(at)) {
            Ok(to) if to > at => (false, to),
            Ok(_) => (true, next(SeekFrom::Hole(at)).ok().filter(|to| *to > at).unwrap_or(end)),
            // Nothing but a hole up to its end.
            Err(Errno::NXIO) => (false, end),
            Err(_) => (true, end),
        };
        found.push(Extent { bytes: to - at, data });
        at = to;
    }
    found
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use pollux_disk::perform;

    use super::*;

    #[tokio::test]
    async fn a_file_reads_as_it_is_and_its_holes_are_told() {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all(&[7; 4096]).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(b"end", (1 << 20) - 1).unwrap();
        let bytes = file.metadata().unwrap().len();
        assert_eq!(bytes, (1 << 20) + 2, "no whole number of sectors");
        let mut disk = FileDisk::new(Arc::new(file), bytes);

        assert_eq!(disk.size(), (1 << 20) + 512);
        let read = perform(&mut disk, Operation::Read { offset: 1 << 20, bytes: 512 }).await.unwrap();
        let mut last = vec![0; 512];
        last[..2].copy_from_slice(b"nd");
        assert_eq!(read, Outcome::Read(vec![Piece::Data(last.into())]));
        let told = perform(&mut disk, Operation::BlockStatus { offset: 0, bytes: 1 << 20, extents_max: 2 }).await;
        let Ok(Outcome::Extents(told)) = told else { panic!("{told:?}") };
        assert!(told[0].data && !told[1].data && told[1].bytes >= 512 << 10, "{told:?}");
    }
}
