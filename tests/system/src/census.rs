//! What is on a node, counted from outside: the daemon may be dead, and it is the daemon that is tested.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use pollux_lab::Host;

/// How the names of the VMs' network interfaces begin.
pub const TAP_PREFIX: &str = "px";

/// The network namespace of a node, as a path.
#[must_use]
pub fn netns(host: &Host) -> PathBuf {
    Path::new("/run/netns").join(host.namespace())
}

/// The QEMU processes on a node.
///
/// # Errors
/// The namespace or `/proc` cannot be read.
pub fn qemus(host: &Host) -> io::Result<Vec<i32>> {
    let wanted = fs::metadata(netns(host))?;
    let numbers = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // One that ends while it is looked at is gone.
    let there = |process: &i32| {
        let same = fs::metadata(format!("/proc/{process}/ns/net"))
            .is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()));
        let program = fs::read_link(format!("/proc/{process}/exe")).unwrap_or_default();
        same && program.to_string_lossy().contains("qemu-system")
    };
    Ok(numbers.filter(there).collect())
}

/// The VMs' network interfaces on a node.
///
/// # Errors
/// The namespace cannot be entered or read.
pub fn taps(host: &Host) -> io::Result<Vec<String>> {
    let table = host.within(|| fs::read_to_string("/proc/thread-self/net/dev")).map_err(io::Error::other)??;
    let names = table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim()));
    Ok(names.filter(|name| name.starts_with(TAP_PREFIX)).map(str::to_owned).collect())
}

/// How many threads a process has; one that has ended and was not waited for yet has one.
#[must_use]
pub fn threads(process: i32) -> usize {
    fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count)
}

/// The control groups in which vCPUs are slowed down, on this machine.
#[must_use]
pub fn throttled() -> Vec<String> {
    let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified"];
    let entries = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("pollux-vcpu-")).collect()
}

/// Memory that a process and what it starts may use together. Dropped, they may use what there is.
#[derive(Debug)]
pub struct MemoryLimit {
    group: PathBuf,
    home: PathBuf,
}

impl MemoryLimit {
    /// Limits `process` to what it uses now and `bytes` more.
    ///
    /// # Errors
    /// There is no `memory` controller of control groups, or it refuses.
    pub fn of(process: &i32, bytes: u64) -> io::Result<Self> {
        let own = Path::new("/sys/fs/cgroup/memory");
        let (home, limit, members) = if own.is_dir() {
            (own, "memory.limit_in_bytes", "cgroup.procs")
        } else {
            (Path::new("/sys/fs/cgroup"), "memory.max", "cgroup.procs")
        };
        let group = home.join(format!("pollux-test-{}", std::process::id()));
        fs::create_dir(&group)?;
        let limited = Self { group: group.clone(), home: home.join(members) };
        fs::write(group.join(limit), bytes.to_string())?;
        fs::write(group.join(members), process.to_string())?;
        Ok(limited)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let members = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        for member in members.lines() {
            // One that has ended meanwhile is in no group.
            let _ = fs::write(&self.home, member);
        }
        if let Err(error) = fs::remove_dir(&self.group) {
            eprintln!("the control group {} stays: {error}", self.group.display());
        }
    }
}
