//! What on this machine belongs to a lab: how it is found without the lab's state, ended, and seen to be gone.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    error::LabError,
    groups, lock,
    name::{LabName, NAMESPACES_DIR},
    network,
    process::{self, Process, proc_file},
};

/// How long processes have to end when asked to, and then when killed.
const TERMINATE_MAX: Duration = Duration::from_secs(10);
const KILL_MAX: Duration = Duration::from_secs(10);

/// Everything of the lab `name` that there still is, a line each; empty after a clean end. While the lab is up this lists
/// what it consists of.
#[must_use]
pub fn leftovers(name: &LabName) -> Vec<String> {
    let mut found = Vec::new();
    for process in processes(name) {
        let command = fs::read(proc_file(process.pid, "cmdline")).unwrap_or_default();
        let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        found.push(format!("process {}: {}", process.pid, words.join(" ").trim_end()));
    }
    found.extend(network::namespaces(name).into_iter().map(|namespace| format!("namespace {namespace}")));
    found.extend(groups::of(name).into_iter().map(|group| format!("control group {}", group.display())));
    let files: [PathBuf; 2] = [name.place(), lock::path(name)];
    // A link that leads nowhere is there too.
    found.extend(
        files.iter().filter(|path| path.symlink_metadata().is_ok()).map(|path| format!("file {}", path.display())),
    );
    found
}

/// The processes of a lab: those with its mark in their environment, and those in one of its namespaces (a QEMU may have
/// been given another environment). Never the caller or what the caller was started by, who may well be in the lab.
pub(crate) fn processes(name: &LabName) -> Vec<Process> {
    let marker = name.marker();
    let spared = process::self_and_ancestors();
    let networks = networks(name);
    let owned = |pid: i32| {
        let marked = fs::read(proc_file(pid, "environ"))
            .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == marker.as_bytes()));
        marked || identity(&proc_file(pid, "ns/net")).is_some_and(|network| networks.contains(&network))
    };
    let found = process::all().into_iter().filter(|pid| !spared.contains(pid) && owned(*pid));
    found.filter_map(Process::of).filter(|process| process.is_alive()).collect()
}

/// Ends them all: asked first, `first` before the others, then killed.
pub(crate) fn end_processes(name: &LabName, first: &[Process]) -> Result<(), LabError> {
    for process in first {
        ask_to_end(*process);
    }
    let deadline = Instant::now() + TERMINATE_MAX;
    for process in first {
        process.wait(deadline);
    }
    for process in processes(name) {
        ask_to_end(process);
    }
    wait_for_none(name, deadline);
    // Again and again: one that was just being started may not have been there to be seen.
    let deadline = Instant::now() + KILL_MAX;
    loop {
        let left = processes(name);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(LabError::Stubborn(left.iter().map(|process| process.pid).collect()));
        }
        for process in &left {
            process.signal(Signal::KILL);
        }
        for process in left {
            process.wait(deadline);
        }
    }
}

/// Ends politely, and wakes whoever was paused to hear it.
fn ask_to_end(process: Process) {
    process.signal(Signal::TERM);
    process.signal(Signal::CONT);
}

fn wait_for_none(name: &LabName, deadline: Instant) {
    const STEP: Duration = Duration::from_millis(20);
    while Instant::now() < deadline && !processes(name).is_empty() {
        thread::sleep(STEP);
    }
}

/// The kernel's names of the lab's network namespaces. Never the caller's own.
fn networks(name: &LabName) -> Vec<(u64, u64)> {
    let own = identity(Path::new("/proc/self/ns/net"));
    let named = network::namespaces(name).into_iter();
    named
        .filter_map(|namespace| identity(&Path::new(NAMESPACES_DIR).join(namespace)))
        .filter(|it| Some(*it) != own)
        .collect()
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
