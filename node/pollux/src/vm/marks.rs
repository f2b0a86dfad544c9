//! Marks of standbys that have certainly not acted: how a later life of the daemon knows whether a move that an earlier
//! life had won can be given back.
//!
//! A mark is a file named after the VM, holding the operation and the host's boot id. It is made when the daemon admits a
//! move as its target, and removed *before* the guest may emit anything. Found after a daemon's death it proves that the
//! standby never ran; a missing mark, another boot of the host, or anything unreadable proves nothing, and then the copy
//! counts as one that has acted. It needs no flush to disk: a process that dies leaves the page cache behind, and after the
//! death of a host the boot id differs.

use std::{fs, io, path::PathBuf};

use pollux_state::id::{OpId, VmId};

/// The marks of one node.
#[derive(Debug, Clone)]
pub struct Marks {
    dir: PathBuf,
    boot: String,
}

impl Marks {
    /// Marks kept in `dir` (made if missing), on a host whose current boot is `boot`.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(dir: PathBuf, boot: String) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self { dir, boot })
    }

    /// A standby for `op` exists and has not acted.
    ///
    /// # Errors
    /// The mark cannot be written; a later life will then take the standby for one that has acted, which is safe.
    pub fn make(&self, vm: VmId, op: OpId) -> io::Result<()> {
        fs::write(self.path(vm), format!("{op} {}\n", self.boot))
    }

    /// It may act from now on.
    ///
    /// # Errors
    /// The mark cannot be removed: then it must *not* act.
    pub fn clear(&self, vm: VmId) -> io::Result<()> {
        match fs::remove_file(self.path(vm)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The move whose standby an earlier life certainly never let act.
    #[must_use]
    pub fn untouched(&self, vm: VmId) -> Option<OpId> {
        let text = fs::read_to_string(self.path(vm)).ok()?;
        let (op, boot) = text.trim_end().split_once(' ')?;
        if boot == self.boot { op.parse().ok() } else { None }
    }

    fn path(&self, vm: VmId) -> PathBuf {
        self.dir.join(vm.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mark_of_this_boot_that_was_not_cleared_proves_anything() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let marks = Marks::open(dir.path().join("marks"), "boot-1".into()).expect("marks");
        let (vm, op) = (VmId(7), OpId([3; 16]));

        assert_eq!(marks.untouched(vm), None);
        marks.make(vm, op).expect("made");
        assert_eq!(marks.untouched(vm), Some(op));

        let after_reboot = Marks::open(dir.path().join("marks"), "boot-2".into()).expect("marks");
        assert_eq!(after_reboot.untouched(vm), None);

        marks.clear(vm).expect("cleared");
        marks.clear(vm).expect("clearing twice is nothing");
        assert_eq!(marks.untouched(vm), None);
    }
}
