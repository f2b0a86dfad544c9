//! A VM's QEMU has a user and a control group of its own, and nothing of it outlives the next start.

use std::{fs, path::PathBuf, process::Command, process::Stdio};

use pollux_system_tests::{
    World, census,
    waiting::{SETTLE, until},
};

/// The first of the users that VMs run as.
const FIRST_USER: u64 = 1_879_048_192;

fn qemu(world: &World) -> i32 {
    let qemus = census::qemus(&world.host("n1")).expect("the node's processes can be seen");
    assert_eq!(qemus.len(), 1, "{qemus:?}");
    qemus[0]
}

/// Its group in the cgroup2 hierarchy.
fn group(process: i32) -> PathBuf {
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).expect("it runs");
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).expect("the host has cgroup2");
    pollux_qemu::cgroup::mount().expect("the host has cgroup2").join(own)
}

fn runs(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status"));
    status.is_ok_and(|status| !status.contains("State:\tZ"))
}

#[test]
fn what_a_killed_daemons_qemu_left_behind_ends_before_the_vm_starts_again() {
    let world = World::start(1);
    let (guest, boot) = world.boot("n1");
    let process = qemu(&world);
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let group = group(process);
    let name = group.file_name().expect("a group has a name").to_string_lossy().into_owned();
    let vm: u64 = name.strip_prefix("vm-").and_then(|number| number.parse().ok()).expect("it is the VM's");
    let user = (FIRST_USER + vm).to_string();
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("it has one");
    assert!(users.split_whitespace().all(|number| number == user), "{users}, not {user}");

    // Something that QEMU might have forked: of another parent, so that the death of nobody ends it.
    let join = format!("echo 0 > {}/cgroup.procs && exec sleep 1000", group.display());
    let mut runaway = Command::new("sh").args(["-c", &join]).stdout(Stdio::null()).spawn().expect("sh");
    until("it to be in the group", SETTLE, || {
        let members = fs::read_to_string(group.join("cgroup.procs")).map_err(|error| error.to_string())?;
        if members.lines().any(|line| line == runaway.id().to_string()) { Ok(()) } else { Err(members) }
    });
    world.kill("n1");
    assert!(runs(runaway.id()), "the control: the daemon's death alone does not end it");
    world.start_again("n1");

    assert_ne!(guest.boot(), boot, "a fresh boot");
    assert!(!runs(runaway.id()), "something of the earlier life runs beside the VM");
    let _ = runaway.wait();
    assert_ne!(qemu(&world), process);
    world.settled("n1");
}
