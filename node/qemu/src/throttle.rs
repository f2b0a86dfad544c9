//! Slowing a guest down: its vCPU threads get a share of each tenth of a second, and stand still for the rest.
//!
//! The kernel does it, by a CPU quota on a control group per vCPU thread, made under the group that QEMU is in: `cpu.max` of
//! a threaded group where the `cpu` controller is on the unified hierarchy, `cpu.cfs_quota_us` where it is on one of its own.
//! QEMU's other threads keep their speed. A [`Throttle`] belongs to its machine; dropped, it gives the speed back and removes
//! its groups. What a killed daemon left is removed by [`sweep`].

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::cgroup::find_mount;

/// The length of a period. At the strongest throttle a vCPU runs for a millisecond of it, the least the kernel takes.
const PERIOD_US: u64 = 100_000;
const QUOTA_US_MIN: u64 = 1_000;
/// Names of our groups begin so.
const PREFIX: &str = "pollux-vcpu-";

/// The guest keeps its speed.
#[derive(Debug, thiserror::Error)]
pub enum ThrottleError {
    /// The kernel has no `cpu` controller for us.
    #[error(
        "the guest cannot be slowed down: no cpu controller of control groups is to be had here; mount one, or delegate it to \
         the daemon (systemd: Delegate=cpu)"
    )]
    NoController,
    /// A group could not be made or set.
    #[error("the guest cannot be slowed down: {path}: {source}")]
    Group {
        /// Which file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Where the `cpu` controller is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hierarchy {
    Unified(PathBuf),
    Own(PathBuf),
}

/// A guest that is slowed down, or was.
#[derive(Debug)]
pub(crate) struct Throttle {
    base: Hierarchy,
    groups: Vec<PathBuf>,
    threads: Vec<i32>,
}

impl Throttle {
    /// Makes a group for each of `threads` of the process `pid`, without a limit yet.
    ///
    /// # Errors
    /// [`ThrottleError`]; then no group is left.
    pub(crate) fn new(pid: i32, threads: &[i32]) -> Result<Self, ThrottleError> {
        let base = hierarchy(pid)?;
        if let Hierarchy::Unified(parent) = &base {
            write(&parent.join("cgroup.subtree_control"), "+cpu")?;
        }
        let mut throttle = Self { base, groups: Vec::new(), threads: threads.to_vec() };
        for thread in threads {
            let group = throttle.parent().join(format!("{PREFIX}{pid}-{thread}"));
            fs::create_dir(&group).map_err(|source| ThrottleError::Group { path: group.clone(), source })?;
            throttle.groups.push(group.clone());
            match &throttle.base {
                Hierarchy::Unified(_) => {
                    write(&group.join("cgroup.type"), "threaded")?;
                    write(&group.join("cgroup.threads"), &thread.to_string())?;
                }
                Hierarchy::Own(_) => write(&group.join("tasks"), &thread.to_string())?,
            }
        }
        Ok(throttle)
    }

    /// Takes `percent` of its speed from every vCPU; 0 gives all of it back. At most 99.
    ///
    /// # Errors
    /// [`ThrottleError::Group`].
    pub(crate) fn set(&self, percent: u8) -> Result<(), ThrottleError> {
        let left = u64::from(100 - percent.min(99));
        let quota = (PERIOD_US * left / 100).max(QUOTA_US_MIN);
        for group in &self.groups {
            match &self.base {
                Hierarchy::Unified(_) if percent == 0 => write(&group.join("cpu.max"), "max")?,
                Hierarchy::Unified(_) => write(&group.join("cpu.max"), &format!("{quota} {PERIOD_US}"))?,
                Hierarchy::Own(_) if percent == 0 => write(&group.join("cpu.cfs_quota_us"), "-1")?,
                Hierarchy::Own(_) => {
                    write(&group.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
                    write(&group.join("cpu.cfs_quota_us"), &quota.to_string())?;
                }
            }
        }
        Ok(())
    }

    fn parent(&self) -> &Path {
        let (Hierarchy::Unified(parent) | Hierarchy::Own(parent)) = &self.base;
        parent
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // Threads that have ended are in no group any more; the others go back to where they were.
        let home = self.parent().join(match self.base {
            Hierarchy::Unified(_) => "cgroup.threads",
            Hierarchy::Own(_) => "tasks",
        });
        for thread in &self.threads {
            let _ = fs::write(&home, thread.to_string());
        }
        for group in &self.groups {
            if let Err(error) = fs::remove_dir(group) {
                tracing::warn!(group = %group.display(), %error, "a control group stays until the next start");
            }
        }
    }
}

/// Removes the groups that an earlier life of this daemon left. Those of processes that still run stay.
pub fn sweep() {
    let Ok(pid) = i32::try_from(std::process::id()) else { return };
    let Ok(Hierarchy::Unified(parent) | Hierarchy::Own(parent)) = hierarchy(pid) else { return };
    let Ok(entries) = fs::read_dir(&parent) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        // One that still has threads is not removed by the kernel.
        if fs::remove_dir(entry.path()).is_ok() {
            tracing::info!(group = %entry.path().display(), "removed a control group of an earlier life");
        }
    }
}

/// Where groups for the threads of `pid` are made.
fn hierarchy(pid: i32) -> Result<Hierarchy, ThrottleError> {
    let read = |path: String| {
        fs::read_to_string(&path).map_err(|source| ThrottleError::Group { path: PathBuf::from(path), source })
    };
    let mounts = read("/proc/self/mountinfo".into())?;
    let groups = read(format!("/proc/{pid}/cgroup"))?;
    let found = find(&mounts, &groups).ok_or(ThrottleError::NoController)?;
    if let Hierarchy::Unified(parent) = &found {
        let controllers = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
        if !controllers.split_whitespace().any(|name| name == "cpu") {
            return Err(ThrottleError::NoController);
        }
    }
    Ok(found)
}

/// From `/proc/self/mountinfo` and `/proc/PID/cgroup`: the hierarchy with the `cpu` controller, or else the unified one.
fn find(mounts: &str, groups: &str) -> Option<Hierarchy> {
    let path = |wanted: &dyn Fn(&str) -> bool| {
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            wanted(controllers).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let has_cpu = |list: &str| list.split(',').any(|name| name == "cpu");
    let own = find_mount(mounts, |kind, options| kind == "cgroup" && has_cpu(options)).zip(path(&has_cpu));
    if let Some((mount, path)) = own {
        return Some(Hierarchy::Own(mount.join(path)));
    }
    let unified = find_mount(mounts, |kind, _| kind == "cgroup2").zip(path(&str::is_empty));
    unified.map(|(mount, path)| Hierarchy::Unified(mount.join(path)))
}

fn write(path: &Path, what: &str) -> Result<(), ThrottleError> {
    fs::write(path, what).map_err(|source| ThrottleError::Group { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const OWN: &str = "31 20 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                       32 20 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_controller_is_found_on_the_unified_hierarchy() {
        let found = find(UNIFIED, "0::/system.slice/pollux.service\n");
        assert_eq!(found, Some(Hierarchy::Unified("/sys/fs/cgroup/system.slice/pollux.service".into())));
    }

    #[test]
    fn a_hierarchy_of_its_own_goes_before_a_unified_one_without_it() {
        let found = find(OWN, "4:cpuset:/\n3:cpu,cpuacct:/pollux\n0::/elsewhere\n");
        assert_eq!(found, Some(Hierarchy::Own("/sys/fs/cgroup/cpu,cpuacct/pollux".into())));
    }

    #[test]
    fn without_control_groups_there_is_none() {
        assert_eq!(find("25 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "0::/\n"), None);
    }
}
