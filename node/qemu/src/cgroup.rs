//! A control group for each VM's QEMU: everything of a VM dies with one write, whatever it forked and whoever adopted that.
//!
//! ```text
//!   CGROUP2 MOUNT / NODE / vm-12 / cgroup.procs     joined by the new process before anything of QEMU runs
//! ```
//! [`Groups`] is a daemon's, [`Group`] a machine's. Making a group kills what an earlier life left in it and waits until it is
//! empty (DESIGN, rule 18); ending one does the same and removes it. The name of the node's own group is the caller's; two daemons
//! on one host must not share it, for each kills what it finds there.
//!
//! Limits need the controllers `memory` and `pids` in this hierarchy. A host that has them in another one (the hybrid layout) gets
//! groups without limits, and says so.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags},
    time::Timespec,
};

/// The controllers that limits need.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];
/// How long killed processes may take to be gone.
const EMPTY_MAX: Duration = Duration::from_secs(10);
/// Beyond its vCPUs QEMU has a few threads, and up to 64 that wait for files.
pub(crate) const THREADS_BEYOND_VCPUS: u32 = 128;
/// What QEMU needs beyond the guest's memory, in bytes: its own, and under TCG up to 1 GiB of translated code.
const MEMORY_BEYOND_GUEST: u64 = 1536 << 20;

/// No group, and nothing runs in it.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The kernel's tree of control groups is not there.
    #[error("no cgroup2 hierarchy is mounted on this host; `mount -t cgroup2 none /sys/fs/cgroup`")]
    NotMounted,
    /// The kernel is older than 5.14, or this is no control group.
    #[error("the kernel cannot kill the control group {} as a whole (Linux 5.14 or newer can)", path.display())]
    NoKill {
        /// The group.
        path: PathBuf,
    },
    /// Something in it does not die.
    #[error("processes in the control group {} were killed and are not gone: {processes}", path.display())]
    Stubborn {
        /// The group.
        path: PathBuf,
        /// Their numbers.
        processes: String,
    },
    /// Something else.
    #[error("cannot {what} the control group {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The group.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// The groups of one daemon's VMs.
#[derive(Debug, Clone)]
pub struct Groups {
    node: PathBuf,
    unlimited: Option<String>,
}

/// The group of one machine. It stays until [ended](Group::end): a new one takes care of what is in it.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
}

/// Where this host's cgroup2 hierarchy is mounted.
#[must_use]
pub fn mount() -> Option<PathBuf> {
    find_mount(&fs::read_to_string("/proc/self/mountinfo").ok()?, |kind, _| kind == "cgroup2")
}

/// Where, by `/proc/self/mountinfo`, the first file system is mounted whose type and options are `wanted`.
pub(crate) fn find_mount(mountinfo: &str, wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        // ID PARENT DEVICE ROOT MOUNTPOINT OPTIONS [MORE...] - TYPE SOURCE OPTIONS
        let (place, kind) = line.split_once(" - ")?;
        let path = place.split(' ').nth(4)?;
        let mut kind = kind.split(' ');
        let (kind, options) = (kind.next()?, kind.nth(1).unwrap_or_default());
        wanted(kind, options).then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

impl Groups {
    /// Makes the group of the daemon called `node`, and ends whatever VMs of an earlier life left in theirs.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn open(node: &str) -> Result<Self, GroupError> {
        Self::open_in(&mount().ok_or(GroupError::NotMounted)?, node)
    }

    fn open_in(mount: &Path, node: &str) -> Result<Self, GroupError> {
        let path = mount.join(node);
        make(&path)?;
        if !path.join("cgroup.kill").exists() {
            return Err(GroupError::NoKill { path });
        }
        let groups = Self { unlimited: enable(mount, &path).err(), node: path };
        for group in children(&groups.node) {
            // A process that the kernel cannot end keeps its VM from being started ([`Groups::make`]), and no other.
            if let Err(error) = group.end() {
                tracing::error!(%error, "something of an earlier life of this daemon does not end");
            }
        }
        Ok(groups)
    }

    /// Why VMs here have no limits of their own, if so.
    #[must_use]
    pub fn unlimited(&self) -> Option<&str> {
        self.unlimited.as_deref()
    }

    /// An empty group for the VM called `vm`, with limits for one of that size. Waits.
    ///
    /// # Errors
    /// What an earlier machine left there does not end, or the kernel refuses.
    pub fn make(&self, vm: &str, vcpus: u32, memory_bytes: u64) -> Result<Group, GroupError> {
        let group = Group { path: self.node.join(vm) };
        make(&group.path)?;
        group.empty()?;
        group.remove_parts();
        if self.unlimited.is_none() {
            group.write("memory.max", memory_bytes.saturating_add(MEMORY_BEYOND_GUEST))?;
            group.write("pids.max", u64::from(vcpus.saturating_add(THREADS_BEYOND_VCPUS)))?;
        }
        Ok(group)
    }

    /// Removes the daemon's own group, when it ends with no VM left.
    pub fn close(&self) {
        // One that is not empty stays, for the next life to look into.
        let _ = fs::remove_dir(&self.node);
    }
}

impl Group {
    /// The file that the new process writes itself into.
    #[must_use]
    pub fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Kills everything in it, waits until nothing is left, and removes it. Can be called twice.
    ///
    /// # Errors
    /// Something does not end.
    pub fn end(&self) -> Result<(), GroupError> {
        if !self.path.exists() {
            return Ok(());
        }
        self.empty()?;
        self.remove_parts();
        match fs::remove_dir(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", source)),
            _ => Ok(()),
        }
    }

    /// Removes the groups below it, of single threads: what a killed daemon left of a throttle. They are empty.
    fn remove_parts(&self) {
        for part in children(&self.path) {
            if let Err(error) = fs::remove_dir(&part.path) {
                tracing::warn!(path = %part.path.display(), %error, "a part of a VM's group stays");
            }
        }
    }

    /// Kills everything in it and waits until nothing is left.
    fn empty(&self) -> Result<(), GroupError> {
        let events = rustix::fs::open(self.path.join("cgroup.events"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| self.failed("watch", errno.into()))?;
        let deadline = Instant::now() + EMPTY_MAX;
        // A process that is not in the tree yet joins it by a write; so it is killed again until none is there.
        while self.is_populated()? {
            self.write("cgroup.kill", 1)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let processes = fs::read_to_string(self.procs()).unwrap_or_default();
                return Err(GroupError::Stubborn {
                    path: self.path.clone(),
                    processes: processes.split_whitespace().collect::<Vec<_>>().join(", "),
                });
            }
            // The kernel says so when `populated` changes.
            let wait = Timespec { tv_sec: 1, tv_nsec: 0 };
            let mut change = [PollFd::new(&events, PollFlags::PRI)];
            match poll(&mut change, Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(self.failed("watch", errno.into())),
            }
        }
        Ok(())
    }

    fn is_populated(&self) -> Result<bool, GroupError> {
        let events = fs::read_to_string(self.path.join("cgroup.events"));
        Ok(!events.map_err(|source| self.failed("look into", source))?.lines().any(|line| line == "populated 0"))
    }

    fn write(&self, file: &'static str, value: u64) -> Result<(), GroupError> {
        fs::write(self.path.join(file), value.to_string()).map_err(|source| self.failed(file, source))
    }

    fn failed(&self, what: &'static str, source: io::Error) -> GroupError {
        GroupError::Io { what, path: self.path.clone(), source }
    }
}

fn make(path: &Path) -> Result<(), GroupError> {
    match fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(GroupError::Io { what: "make", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn children(path: &Path) -> Vec<Group> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| Group { path: entry.path() }).collect()
}

/// Has the controllers reach the groups below `node`; why not, in words.
fn enable(mount: &Path, node: &Path) -> Result<(), String> {
    for parent in [mount, node] {
        // To slow a guest down on request; where there is none here, that is done by the older hierarchy, or refused by name.
        if let Err(error) = fs::write(parent.join("cgroup.subtree_control"), "+cpu") {
            tracing::debug!(parent = %parent.display(), %error, "the cpu controller is not passed on");
        }
        let there = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
        let missing: Vec<&str> =
            CONTROLLERS.into_iter().filter(|wanted| !there.split_whitespace().any(|name| name == *wanted)).collect();
        if !missing.is_empty() {
            return Err(format!(
                "VMs have no limits of their own: the controllers {} are not in the cgroup2 hierarchy at {}; boot with \
                 systemd.unified_cgroup_hierarchy=1",
                missing.join(" and "),
                mount.display()
            ));
        }
        let wish = CONTROLLERS.map(|name| format!("+{name}")).join(" ");
        fs::write(parent.join("cgroup.subtree_control"), wish).map_err(|error| {
            format!("VMs have no limits of their own: {} does not pass its controllers on: {error}", parent.display())
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_wherever_it_is_mounted() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw shared:7 - cgroup2 cgroup2 rw\n";
        let find_mount = |mountinfo| super::find_mount(mountinfo, |kind, _| kind == "cgroup2");
        assert_eq!(find_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let odd = "41 31 0:38 / /mnt/c\\040g rw - cgroup2 none rw\n";
        assert_eq!(find_mount(odd), Some("/mnt/c g".into()));
        assert_eq!(find_mount("36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"), None);
    }

    #[test]
    fn a_hierarchy_without_the_controllers_is_said_by_name() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("cgroup.controllers"), "cpu pids").unwrap();

        let why = enable(place.path(), place.path()).unwrap_err();

        assert!(why.contains("memory") && !why.contains("pids"), "{why}");
    }
}
