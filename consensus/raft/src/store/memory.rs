//! A disk in memory that forgets like a real one.
//!
//! Simulations run the same database code over it: what was written and not yet synced is lost when the power goes, or
//! survives in part, page by page, as on a real disk. A disk outlives the node that uses it; each opening of it is a new
//! [`Attachment`], and older ones find that their disk is gone.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redb::StorageBackend;

/// What survives or is lost as one piece when the power goes, in bytes.
const PAGE: usize = 4096;

/// The disk. Share it in an `Arc` between the lives of one simulated node.
#[derive(Default)]
pub struct MemoryDisk {
    inner: Mutex<Platter>,
}

#[derive(Default)]
struct Platter {
    /// What a read sees.
    content: Vec<u8>,
    /// What pages written since the last sync held before; `None`: the page did not exist.
    before: BTreeMap<usize, Vec<u8>>,
    /// The length at the last sync.
    synced_length: usize,
    /// Which attachment may use it.
    attachment: u64,
}

impl MemoryDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The power goes: whoever uses the disk loses it, and what was not synced is lost.
    pub fn power_loss(&self) {
        self.power_loss_keeping(|_| false);
    }

    /// As [`power_loss`](Self::power_loss), but pages for which `survives` says so were written before it happened, as a
    /// real disk may have done in any order. The number is the page's, in units of 4 KiB.
    pub fn power_loss_keeping(&self, mut survives: impl FnMut(usize) -> bool) {
        let mut platter = self.lock();
        platter.attachment += 1;
        let before = std::mem::take(&mut platter.before);
        let kept_growth = platter.content.len() > platter.synced_length && survives(platter.content.len() / PAGE);
        if !kept_growth {
            let length = platter.synced_length;
            platter.content.resize(length, 0);
        }
        for (page, old) in before {
            let start = page * PAGE;
            if survives(page) || start >= platter.content.len() {
                continue;
            }
            let end = (start + PAGE).min(platter.content.len());
            let kept = old.len().min(end - start);
            platter.content[start..start + kept].copy_from_slice(&old[..kept]);
            platter.content[start + kept..end].fill(0);
        }
        platter.synced_length = platter.content.len();
    }

    /// A new way in; older ones find the disk gone.
    pub(crate) fn attach(self: &Arc<Self>) -> Attachment {
        let mut platter = self.lock();
        platter.attachment += 1;
        Attachment { disk: Arc::clone(self), number: platter.attachment }
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let platter = self.lock();
        f.debug_struct("MemoryDisk")
            .field("length", &platter.content.len())
            .field("unsynced_pages", &platter.before.len())
            .finish()
    }
}

/// One opening of a [`MemoryDisk`], as redb sees it.
#[derive(Debug)]
pub(crate) struct Attachment {
    disk: Arc<MemoryDisk>,
    number: u64,
}

impl Attachment {
    fn platter(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.disk.lock();
        if platter.attachment == self.number { Ok(platter) } else { Err(io::Error::other("the power was cut")) }
    }
}

fn range(offset: u64, length: usize, limit: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).map_err(io::Error::other)?;
    match start.checked_add(length) {
        Some(end) if end <= limit => Ok(start..end),
        Some(_) | None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "beyond the end of the disk")),
    }
}

impl Platter {
    /// Remembers what the pages of `range` hold now, unless an older content of them is remembered already.
    fn remember(&mut self, range: &std::ops::Range<usize>) {
        if range.is_empty() {
            return;
        }
        for page in range.start / PAGE..=(range.end - 1) / PAGE {
            let Self { content, before, .. } = self;
            before.entry(page).or_insert_with(|| {
                let start = (page * PAGE).min(content.len());
                let end = (start + PAGE).min(content.len());
                content[start..end].to_vec()
            });
        }
    }
}

impl StorageBackend for Attachment {
    fn len(&self) -> io::Result<u64> {
        u64::try_from(self.platter()?.content.len()).map_err(io::Error::other)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter()?;
        let range = range(offset, out.len(), platter.content.len())?;
        out.copy_from_slice(&platter.content[range]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.platter()?;
        let length = usize::try_from(len).map_err(io::Error::other)?;
        if length < platter.content.len() {
            let lost = length..platter.content.len();
            platter.remember(&lost);
        }
        platter.content.resize(length, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.platter()?;
        platter.before.clear();
        platter.synced_length = platter.content.len();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.platter()?;
        let range = range(offset, data.len(), platter.content.len())?;
        platter.remember(&range);
        platter.content[range].copy_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(attachment: &Attachment, offset: u64, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        attachment.read(offset, &mut out).unwrap();
        out
    }

    #[test]
    fn what_was_synced_survives_and_what_was_not_is_lost() {
        let disk = Arc::new(MemoryDisk::new());
        let first = disk.attach();
        first.set_len(8192).unwrap();
        first.write(0, b"safe").unwrap();
        first.sync_data().unwrap();
        first.write(0, b"lost").unwrap();
        first.write(5000, b"also").unwrap();
        first.set_len(20_000).unwrap();

        disk.power_loss();

        let second = disk.attach();
        assert_eq!(second.len().unwrap(), 8192);
        assert_eq!(read(&second, 0, 4), b"safe");
        assert_eq!(read(&second, 5000, 4), [0; 4]);
    }

    #[test]
    fn pages_may_survive_one_by_one() {
        let disk = Arc::new(MemoryDisk::new());
        let first = disk.attach();
        first.set_len(8192).unwrap();
        first.sync_data().unwrap();
        first.write(0, b"one").unwrap();
        first.write(4096, b"two").unwrap();

        disk.power_loss_keeping(|page| page == 1);

        let second = disk.attach();
        assert_eq!(read(&second, 0, 3), [0; 3]);
        assert_eq!(read(&second, 4096, 3), b"two");
    }

    #[test]
    fn a_node_that_lost_its_power_cannot_write_any_more() {
        let disk = Arc::new(MemoryDisk::new());
        let first = disk.attach();
        first.set_len(4096).unwrap();

        disk.power_loss();

        assert!(first.write(0, b"late").is_err());
        assert!(first.sync_data().is_err());
    }
}
