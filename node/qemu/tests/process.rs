//! The life of a QEMU process: how it starts, as whom, and that nothing survives its owner.

mod guest;

use std::{fs, io::Read, process::Stdio, time::Duration};

use guest::{Disguise, NOBODY, PATIENCE, World, exists, memory, until};
use pollux_qemu::{
    ExitStatus, Launch, Machine, MachineEvent, Role, SpawnError, Spawner, StartError, Status, TrackingWish,
};

#[tokio::test]
async fn a_machine_starts_paused_as_nobody_and_leaves_nothing() {
    let (world, memory) = (World::new(), memory());
    let machine = world.start("polite, isn't it", &memory, Disguise::Sector, Role::Fresh).await;
    let pid = machine.child().pid();

    assert_eq!(machine.status().await.unwrap(), Status::Paused("prelaunch".to_owned()));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field =
        |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().split_ascii_whitespace().nth(1);
    assert_eq!(field("TracerPid:"), Some("0"), "nobody traces it any more");
    assert_eq!(field("NoNewPrivs:"), Some("1"));
    assert_eq!(field("Seccomp:"), Some("2"), "the sandbox is on");
    if rustix::process::geteuid().is_root() {
        assert_eq!(field("Uid:").unwrap(), NOBODY.uid.to_string());
        assert_eq!(field("Groups:"), None, "no supplementary groups");
    }

    machine.kill();
    assert_eq!(machine.next_event().await, MachineEvent::Exited(machine.child().exited().await));
    assert_eq!(machine.child().exit().unwrap().status, ExitStatus::Signal(9));
    assert!(!exists(pid), "it is reaped");
    assert!(machine.cont().await.is_err());
}

#[tokio::test]
async fn quit_ends_it_and_says_so() {
    let (world, memory) = (World::new(), memory());
    let machine = world.start("quits", &memory, Disguise::Kernel, Role::Fresh).await;
    machine.cont().await.unwrap();
    assert_eq!(machine.status().await.unwrap(), Status::Running);
    machine.quit().await.unwrap();

    let mut events = Vec::new();
    let exit = loop {
        let event = machine.next_event().await;
        if let MachineEvent::Exited(exit) = event {
            break exit;
        }
        events.push(event);
    };
    assert_eq!(exit.status, ExitStatus::Code(0));
    assert!(events.contains(&MachineEvent::Resumed), "{events:?}");
    assert!(
        events.contains(&MachineEvent::GuestShutdown { guest: false, reason: "host-qmp-quit".to_owned() }),
        "{events:?}"
    );
    assert_eq!(machine.next_event().await, MachineEvent::Exited(exit), "the end is told to whoever asks again");
}

/// `cli`, write "S5, now" to the chipset's power register, `hlt` for ever.
const POWER_OFF: [u8; 11] = [0xfa, 0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd];
/// `cli`, "reset" to the keyboard controller, `hlt` for ever.
const RESET: [u8; 8] = [0xfa, 0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// A guest that switches itself off is no machine that died: its process stays until somebody decides.
#[tokio::test]
async fn a_guest_that_switches_itself_off_is_told_and_kept() {
    let (world, memory) = (World::new(), memory());
    let boot = guest::sector(&world.path("off"), &POWER_OFF);
    let launch = Launch { boot, ..world.launch("tired", &memory, Disguise::Sector, Role::Fresh) };
    let machine = Machine::start(&world.spawner, launch).await.unwrap();
    machine.cont().await.unwrap();
    let off = MachineEvent::GuestShutdown { guest: true, reason: "guest-shutdown".to_owned() };
    tokio::time::timeout(PATIENCE, async { while machine.next_event().await != off {} }).await.unwrap();
    tokio::time::timeout(PATIENCE, async { while machine.next_event().await != MachineEvent::Stopped {} })
        .await
        .unwrap();
    assert_eq!(machine.status().await.unwrap(), Status::Paused("shutdown".to_owned()));
    assert_eq!(machine.child().exit(), None);
}

#[tokio::test]
async fn a_guest_that_starts_over_is_told_and_the_power_button_is_accepted() {
    let (world, memory) = (World::new(), memory());
    let boot = guest::sector(&world.path("reset"), &RESET);
    let launch = Launch { boot, ..world.launch("restless", &memory, Disguise::Sector, Role::Fresh) };
    let machine = Machine::start(&world.spawner, launch).await.unwrap();
    machine.cont().await.unwrap();
    let reset = MachineEvent::Reset { guest: true };
    tokio::time::timeout(PATIENCE, async { while machine.next_event().await != reset {} }).await.unwrap();
    machine.powerdown().await.unwrap();
}

#[tokio::test]
async fn a_dropped_machine_and_a_shut_down_spawner_leave_no_process() {
    let (world, memory) = (World::new(), memory());
    let dropped = world.start("dropped", &memory, Disguise::Sector, Role::Fresh).await;
    let pid = dropped.child().pid();
    drop(dropped);
    until("the dropped machine's process to go", || !exists(pid)).await;

    let kept = world.start("kept", &memory, Disguise::Sector, Role::Fresh).await;
    tokio::time::timeout(PATIENCE, world.spawner.shutdown())
        .await
        .expect("shutdown waits for what it killed, not longer");
    assert!(!exists(kept.child().pid()));
    assert_eq!(kept.child().exit().unwrap().status, ExitStatus::Signal(9));
    let late = world.spawner.spawn(world.launch("late", &memory, Disguise::Sector, Role::Fresh)).await;
    assert!(matches!(late, Err(SpawnError::Ended { .. })));
}

/// Not a test of its own: the process that [`a_killed_daemon_takes_its_qemu_along`] starts and kills.
#[tokio::test]
#[ignore = "started by another test"]
async fn a_daemon_that_waits_to_be_killed() {
    let (world, memory) = (World::new(), memory());
    let machine = world.start("orphan to be", &memory, Disguise::Sector, Role::Fresh).await;
    machine.cont().await.unwrap();
    fs::write(std::env::var("POLLUX_TEST_PID_FILE").unwrap(), format!("{}\n", machine.child().pid())).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_daemon_takes_its_qemu_along() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let mut daemon = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_daemon_that_waits_to_be_killed", "--ignored"])
        .env("POLLUX_TEST_PID_FILE", &file)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let read = || fs::read_to_string(&file).unwrap_or_default();
    until("the daemon to start its QEMU", || read().ends_with('\n')).await;
    let qemu: i32 = read().trim().parse().unwrap();
    let name = fs::read_to_string(format!("/proc/{qemu}/comm")).unwrap();
    assert!(name.starts_with("qemu"), "{name}");

    daemon.kill().await.unwrap();

    // Nobody's child any more, it is reaped by whoever inherits orphans here; a zombie is dead enough.
    let gone = || fs::read_to_string(format!("/proc/{qemu}/stat")).map_or(true, |stat| stat.contains(") Z "));
    tokio::time::timeout(Duration::from_secs(5), until("QEMU to follow its daemon", gone)).await.unwrap();
}

#[tokio::test]
async fn what_cannot_start_says_why_and_leaves_nothing() {
    let (world, memory) = (World::new(), memory());
    let launch = || world.launch("refused", &memory, Disguise::Sector, Role::Fresh);
    let spawn = |launch: Launch| world.spawner.spawn(launch);

    let missing = spawn(Launch { binary: "/nonexistent/qemu".into(), ..launch() }).await;
    assert!(matches!(missing, Err(SpawnError::Exec { .. })), "{missing:?}");
    let boot = pollux_qemu::Boot::Sector(world.path("nothing"));
    assert!(matches!(spawn(Launch { boot, ..launch() }).await, Err(SpawnError::BootFile { .. })));
    for odd in [
        Launch { machine: "q35,accel=kvm".to_owned(), ..launch() },
        Launch { cpu: "max id=x".to_owned(), ..launch() },
        Launch { vcpus: 0, ..launch() },
        Launch { memory_bytes: 4096, ..launch() },
        Launch { binary: "qemu".into(), ..launch() },
    ] {
        assert!(matches!(spawn(odd).await, Err(SpawnError::BadLaunch { .. })));
    }
    // A control group whose file takes no process number.
    let cgroup = Some(world.path("no such group"));
    assert!(matches!(spawn(Launch { cgroup, ..launch() }).await, Err(SpawnError::Step { .. })));
    let joined = spawn(Launch { cgroup: Some("/dev/full".into()), ..launch() }).await;
    assert!(
        matches!(&joined, Err(SpawnError::Step { step: "join the VM's control group", .. })),
        "a step that fails in the new process is named: {joined:?}"
    );

    let unknown = Machine::start(&world.spawner, Launch { machine: "pc-q35-0.1".to_owned(), ..launch() }).await;
    match unknown {
        Err(StartError::Exited { exit, .. }) => {
            assert_eq!(exit.status, ExitStatus::Code(1));
            assert!(exit.stderr_tail.contains("machine"), "QEMU's own words: {exit}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(children(), Vec::<i32>::new(), "no process is left");
}

/// A program that is no QEMU: it starts, and exits without a word on its control socket.
#[tokio::test]
async fn a_program_that_is_no_qemu_is_found_out() {
    let (world, memory) = (World::new(), memory());
    let launch = world.launch("true", &memory, Disguise::Sector, Role::Fresh);
    let started = Machine::start(&world.spawner, Launch { binary: "/bin/true".into(), ..launch }).await;
    assert!(matches!(started, Err(StartError::Exited { .. })), "{started:?}");
}

#[tokio::test]
async fn tracking_is_there_when_asked_for_and_only_once() {
    let (world, memory) = (World::new(), memory());
    for (wish, expected) in [(TrackingWish::Required, true), (TrackingWish::Optional, true), (TrackingWish::Off, false)]
    {
        let launch = world.launch("tracked", &memory, Disguise::Sector, Role::Fresh);
        let mut machine = Machine::start(&world.spawner, Launch { tracking: wish, ..launch }).await.unwrap();
        assert_eq!(machine.take_tracking().is_ok(), expected, "{wish:?}");
        assert!(machine.take_tracking().is_err());
    }
}

/// A kernel that only root may read, as some distributions install it, below a directory nobody may enter.
#[tokio::test]
async fn a_file_that_nobody_may_read_boots_all_the_same() {
    use std::os::unix::fs::PermissionsExt;
    let (world, memory) = (World::new(), memory());
    let launch = world.launch("secret", &memory, Disguise::Kernel, Role::Fresh);
    for name in ["kernel", "initrd"] {
        fs::set_permissions(world.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let machine = Machine::start(&world.spawner, launch).await.unwrap();
    machine.cont().await.unwrap();
    guest::counts_on(&machine, 3).await;
}

#[tokio::test]
async fn the_version_is_known() {
    let version = pollux_qemu::qemu_version(&guest::qemu()).await.unwrap();
    assert!(version.major >= 7, "{version}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_start_at_once_and_a_caller_that_leaves_costs_nothing() {
    const MACHINES: usize = 6;
    let world = World::new();
    let memories: Vec<_> = (0..MACHINES).map(|_| memory()).collect();
    for memory in &memories {
        // Leaves before the answer.
        let launch = world.launch("left alone", memory, Disguise::Sector, Role::Fresh);
        let _ = tokio::time::timeout(Duration::ZERO, world.spawner.spawn(launch)).await;
    }
    let mut machines = Vec::new();
    for memory in &memories {
        machines.push(world.start("one of many", memory, Disguise::Sector, Role::Fresh).await);
    }
    let mut mine: Vec<i32> = machines.iter().map(|machine| machine.child().pid()).collect();
    mine.sort_unstable();
    assert_eq!(children(), mine, "the abandoned ones are gone");
}

/// The children of this process, dead or alive; each test is a process of its own.
fn children() -> Vec<i32> {
    let mut children = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let mut list = String::new();
        fs::File::open(task.unwrap().path().join("children")).unwrap().read_to_string(&mut list).unwrap();
        children.extend(list.split_ascii_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
    }
    children.sort_unstable();
    children
}

/// The spawner is shared between threads.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Spawner>();
    shared::<Machine>();
};
