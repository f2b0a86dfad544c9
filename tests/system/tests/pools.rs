//! A block device as a pool: formatted once, mounted by each daemon that has it, and left alone when something is on it.

use std::{fs, path::PathBuf, process::Command};

use pollux_system_tests::{
    World,
    cli::exit,
    disks::{Pool, Volume},
    waiting::{SETTLE, until},
};

/// A loop device over a file, for as long as this is there.
struct Loop(String);

impl Loop {
    fn over(file: &PathBuf) -> Self {
        fs::File::create(file).and_then(|file| file.set_len(320 << 20)).expect("a file can be made");
        let told = Command::new("losetup").args(["--find", "--show"]).arg(file).output().expect("losetup is there");
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        Self(String::from_utf8_lossy(&told.stdout).trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// Whether the daemon of n1 sees the device mounted. What it mounts is seen by no other process: a lab's hosts have namespaces.
fn is_mounted(world: &World, device: &str) -> bool {
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", world.daemon("n1")));
    mounts.expect("the kernel tells what is mounted").lines().any(|line| line.split(' ').next() == Some(device))
}

#[test]
fn a_block_device_is_a_pool_across_the_deaths_of_its_daemon() {
    let world = World::start(1);
    let state = world.host("n1").dir().expect("a node has a directory").to_owned();
    let (device, other) = (Loop::over(&state.join("disk.img")), Loop::over(&state.join("photos.img")));
    let made = Command::new("mkfs.ext4").args(["-q", "-L", "photos", &other.0]).status();
    assert!(made.expect("mkfs is there").success());
    let refused = world.pollux("n1", &["pool", "add", "fast", &other.0]);
    refused.refused(exit::CONFLICT, &[&other.0, "holds ext4 (photos)"]);

    let pool: Pool = world.pollux("n1", &["pool", "add", "fast", &device.0]).json();
    assert!(pool.state == "ready" && pool.size_bytes.is_some_and(|bytes| bytes > 64 << 20), "{pool:?}");
    let _: Volume = world.pollux("n1", &["volume", "create", "data", "--size", "16M", "--pool", "n1:fast"]).json();
    let ready = || {
        until("the volume to be ready", SETTLE, || {
            let seen: Volume = world.pollux("n1", &["volume", "show", "data"]).try_json()?;
            if seen.health == "ready" { Ok(seen) } else { Err(format!("{seen:?}")) }
        })
    };
    let volume = ready();
    let data = state.join(format!("pools/fast/volume-{}-replica-{}/data", volume.id, volume.replicas[0].id));
    let seen = || PathBuf::from(format!("/proc/{}/root{}", world.daemon("n1"), data.display()));
    assert_eq!(fs::metadata(seen()).expect("the replica is on the device").len(), 16 << 20);
    assert!(is_mounted(&world, &device.0) && !data.exists());

    for end in [World::kill as fn(&World, &str), World::stop] {
        end(&world, "n1");
        world.start_again("n1");
        ready();
        until("the replica to be there again", SETTLE, || if seen().exists() { Ok(()) } else { Err("no".into()) });
    }

    let _: Volume = world.pollux("n1", &["volume", "delete", "data", "--yes"]).json();
    until("the replica to be gone", SETTLE, || if seen().exists() { Err("it is there".into()) } else { Ok(()) });
    let _: Pool = world.pollux("n1", &["pool", "remove", "n1:fast"]).json();
    until("the device to be unmounted", SETTLE, || {
        if is_mounted(&world, &device.0) { Err("it is mounted".into()) } else { Ok(()) }
    });
}

#[test]
fn a_pool_that_was_away_when_its_daemon_started_is_used_once_it_is_back() {
    let world = World::start(1);
    world.have_pools();
    world.make_volume("data", "16M", &["n1"]);
    let health = |wanted: &str| {
        until(&format!("the volume to be {wanted}"), SETTLE, || {
            let seen: Volume = world.pollux("n1", &["volume", "show", "data"]).try_json()?;
            if seen.health == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    };
    health("ready");
    world.stop("n1");
    let pool = world.pool("n1");
    let away = pool.with_extension("away");
    fs::rename(&pool, &away).expect("it can be moved");
    fs::create_dir(&pool).expect("as where nothing is mounted");
    world.start_again("n1");
    health("failed");
    fs::remove_dir(&pool).expect("it is empty");
    fs::rename(&away, &pool).expect("it can be moved back");
    health("ready");
}
