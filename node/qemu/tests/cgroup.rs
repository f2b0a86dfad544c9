//! Control groups of VMs. Needs root and a cgroup2 hierarchy.
#![allow(missing_docs)]

mod guest;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use guest::{Disguise, World, exists, memory};
use pollux_qemu::{Group, Groups, Identity, Launch, Machine, Role};

/// A place of the test's own, gone at its end.
struct Place {
    groups: Groups,
    name: String,
}

impl Place {
    fn new(test: &str) -> Self {
        let name = format!("pollux-test-{test}-{}", std::process::id());
        Self { groups: Groups::open(&name).expect("these tests need root and cgroup2"), name }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Opening ends whatever is left.
        if let Ok(groups) = Groups::open(&self.name) {
            groups.close();
        }
    }
}

/// A process in the group that has left its parent, as a daemon of old does it: nobody's death ends it.
fn runaway(group: &Group) -> i32 {
    let script = format!("(echo 0 > {} && exec setsid sleep 1000 > /dev/null 2>&1) & echo $!", group.procs().display());
    let command = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().unwrap();
    let process = String::from_utf8(command.stdout).unwrap().trim().parse().unwrap();
    while !in_group(group, process) {
        assert!(exists(process), "the runaway ended");
        std::thread::yield_now();
    }
    process
}

fn in_group(group: &Group, process: i32) -> bool {
    fs::read_to_string(group.procs()).unwrap().lines().any(|line| line == process.to_string())
}

#[test]
fn a_new_machine_finds_nothing_of_the_one_before_it() {
    let place = Place::new("again");
    let group = place.groups.make("vm-1", 1, 1 << 20).unwrap();
    let process = runaway(&group);

    let again = place.groups.make("vm-1", 1, 1 << 20).unwrap();

    assert_eq!(fs::read_to_string(again.procs()).unwrap(), "");
    assert!(!runs(process));
    again.end().unwrap();
    again.end().expect("ending twice is nothing");
    assert!(!again.procs().exists());
}

/// A daemon that was killed while it slowed a guest down leaves groups of single threads.
#[test]
fn a_group_with_parts_ends_and_begins_anew_all_the_same() {
    let place = Place::new("parts");
    let group = place.groups.make("vm-1", 1, 1 << 20).unwrap();
    let part = || group.procs().with_file_name("pollux-vcpu-0");
    fs::create_dir(part()).unwrap();

    let again = place.groups.make("vm-1", 1, 1 << 20).unwrap();
    assert!(!part().exists());
    fs::create_dir(part()).unwrap();

    again.end().unwrap();
    assert!(!again.procs().exists());
}

#[test]
fn a_new_daemon_finds_nothing_of_the_one_before_it() {
    let place = Place::new("life");
    let group = place.groups.make("vm-1", 1, 1 << 20).unwrap();
    let process = runaway(&group);

    let next = Groups::open(&place.name).unwrap();

    assert!(!runs(process));
    assert!(!group.procs().exists());
    next.close();
}

/// Negative control: without the group nothing ends a process that left its parent.
#[test]
fn a_runaway_outlives_its_parent() {
    let place = Place::new("control");
    let group = place.groups.make("vm-1", 1, 1 << 20).unwrap();
    let process = runaway(&group);

    assert!(runs(process), "the control itself is broken");

    group.end().unwrap();
    assert!(!runs(process));
}

#[tokio::test]
async fn a_machine_runs_in_its_group_as_its_own_user_and_can_still_be_tracked() {
    let place = Place::new("machine");
    let (world, memory) = (World::new(), memory());
    let group = place.groups.make("vm-7", 1, memory.bytes()).unwrap();
    let own = Identity { uid: 1_879_048_199, gid: 1_879_048_199 };
    let launch = world.launch("grouped", &memory, Disguise::Kernel, Role::Fresh);
    let launch = Launch { identity: Some(own), cgroup: Some(group.procs()), ..launch };

    let mut machine = Machine::start(&world.spawner, launch).await.unwrap();

    let process = machine.child().pid();
    assert!(in_group(&group, process));
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), vec![own.uid.to_string(); 4]);
    assert_eq!(field("Gid:"), vec![own.gid.to_string(); 4]);
    assert!(field("Groups:").is_empty(), "no supplementary groups");
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    for (limit, most) in [("Max core file size", "0"), ("Max open files", "1024"), ("Max processes", "129")] {
        let line = limits.lines().find_map(|line| line.strip_prefix(limit)).unwrap();
        assert_eq!(line.split_whitespace().next(), Some(most), "{limit}");
    }
    machine.take_tracking().expect("its writes can be tracked all the same");

    group.end().unwrap();
    machine.child().exited().await;
    assert!(!exists(process));
}

fn runs(process: i32) -> bool {
    // Killed, but nobody's child to wait for yet, is as good as gone.
    let status = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status"));
    status.is_ok_and(|status| !status.contains("State:\tZ"))
}
