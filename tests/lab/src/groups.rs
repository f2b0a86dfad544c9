//! The control groups that the daemons of a lab make for their VMs. A daemon that was killed leaves them empty.

use std::{fs, path::PathBuf};

use crate::name::LabName;

/// How the groups of a lab's daemons begin; the node's name follows.
pub(crate) fn prefix(lab: &LabName) -> String {
    format!("plx-{lab}-")
}

/// Those there are.
pub(crate) fn of(lab: &LabName) -> Vec<PathBuf> {
    let prefix = prefix(lab);
    let entries = pollux_qemu::cgroup::mount().and_then(|mount| fs::read_dir(mount).ok());
    let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    paths.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))).collect()
}

/// Removes them, once no process of the lab is left.
pub(crate) fn remove(lab: &LabName) {
    for group in of(lab) {
        for vm in fs::read_dir(&group).into_iter().flatten().flatten() {
            // What is no group, or not empty, stays; and then the group is told of as left behind.
            let _ = fs::remove_dir(vm.path());
        }
        let _ = fs::remove_dir(group);
    }
}
