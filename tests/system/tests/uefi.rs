//! A guest that boots from a volume by UEFI, and what its firmware keeps: variables on a volume of their own, which move with the VM,
//! outlive its host, and never hold the guest up.

use std::{net::Ipv4Addr, time::Duration};

use pollux_system_tests::{
    World,
    cli::exit,
    client::Client,
    image,
    views::Vm,
    waiting::{SETTLE, until},
};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 10);
/// Where the guest's kernel shows the firmware's variables.
const VARIABLES: &str = "/sys/firmware/efi/efivars";
/// Whose they are that these stories set.
const OWNER: &str = "9d2f3f6e-6b1a-4c57-9c2c-3b6d3a0f7c11";
/// Longest wait for a command in the guest.
const COMMAND: Duration = Duration::from_secs(30);

/// Three nodes, and a volume `root` on the first two from which the guest boots by UEFI.
fn world_with_root() -> World {
    let world = World::start(3);
    world.have_pools();
    let disk = world.host("n1").dir().expect("a node has a directory").join("uefi.img");
    image::uefi_disk(&disk, &format!("console=ttyS0 quiet pollux.ip={ADDRESS}/24 pollux.hostname=web"));
    world.import("root", &disk, &["n1", "n2"]);
    world
}

/// The replica of `volume` on `node` has the variable of this name.
fn has(world: &World, node: &str, volume: &str, name: &str) {
    let file = world.replica_file("n1", volume, node);
    // As firmware writes names: two bytes for each letter.
    let name: Vec<u8> = name.bytes().flat_map(|letter| [letter, 0]).collect();
    until("a variable to be on a volume", SETTLE, || {
        let bytes = std::fs::read(&file).map_err(|error| error.to_string())?;
        let there = bytes.windows(name.len()).any(|window| window == name);
        if there { Ok(()) } else { Err(format!("{} has it not", file.display())) }
    });
}

/// The guest sets a variable that its firmware is to keep.
fn sets(guest: &Client, name: &str, value: &str) {
    // Four bytes of attributes: kept, and seen by firmware and kernel alike. They and the value have to be one write.
    let file = format!("{VARIABLES}/{name}-{OWNER}");
    let set = format!(
        "busybox printf '\\007\\000\\000\\000{value}' > /tmp-v && busybox dd if=/tmp-v of={file} bs=4096 2> /dev/null"
    );
    let ran = guest.run(&set, COMMAND);
    assert_eq!(ran.code, 0, "{name} was not set: {}", ran.output);
}

/// The variable as the guest reads it from its firmware; `None`: there is none.
fn reads(guest: &Client, name: &str) -> Option<String> {
    let ran = guest.run(&format!("busybox tail -c +5 {VARIABLES}/{name}-{OWNER}"), COMMAND);
    (ran.code == 0).then(|| ran.output.trim_end().to_owned())
}

/// Where the volume's replicas are that are in sync.
fn stays_on(world: &World, via: &str, volume: &str) -> Vec<String> {
    let seen = world.volume(via, volume);
    seen.in_sync().into_iter().map(str::to_owned).collect()
}

fn vm_with(world: &World, via: &str, words: &[&str]) -> Client {
    let create = ["vm", "create", "web", "--node", via, "--memory", "256M", "--nic", "br0", "--volume", "root"];
    let _: Vm = world.pollux(via, &[&create[..], words].concat()).json();
    Client::at(world, ADDRESS)
}

fn is_off(world: &World, via: &str) {
    let _: Vm = world.pollux(via, &["vm", "stop", "web", "--force"]).json();
    until("the VM to be stopped", SETTLE, || {
        let vm: Vm = world.pollux(via, &["vm", "show", "web"]).try_json()?;
        if vm.phase == "stopped" { Ok(()) } else { Err(format!("{vm:?}")) }
    });
}

#[test]
fn long_a_guest_that_boots_by_uefi_keeps_its_firmwares_variables() {
    let world = world_with_root();

    // It boots, and its firmware has a volume beside its disk.
    let guest = vm_with(&world, "n1", &["--firmware", "uefi"]);
    let boot = guest.boot();
    assert_eq!(world.vm("n3", "web").firmware.as_deref(), Some("web-firmware"));
    assert_eq!(stays_on(&world, "n3", "web-firmware"), ["n1", "n2"]);
    assert_eq!(reads(&guest, "First"), None);
    sets(&guest, "First", "one");
    assert_eq!(reads(&guest, "First").as_deref(), Some("one"));

    // It moves with what its firmware holds, and goes on there.
    world.moves("n3", "n2");
    assert_eq!((guest.boot(), reads(&guest, "First")), (boot.clone(), Some("one".to_owned())));
    sets(&guest, "Second", "two");
    has(&world, "n1", "web-firmware", "Second");

    // Its host dies, and it is started on the other: from the volume, for its memory is gone.
    world.kill("n2");
    until("its host to be given up", SETTLE, || {
        let released = world.pollux("n1", &["vm", "release", "web", "--operator", "carol", "--yes"]);
        if released.code == exit::OK { Ok(()) } else { Err(released.err) }
    });
    let _: Vm = world.pollux("n1", &["vm", "start", "web", "--node", "n1"]).json();
    assert_ne!(guest.boot(), boot, "it is started anew");
    let found = (reads(&guest, "First"), reads(&guest, "Second"));
    assert_eq!(found, (Some("one".to_owned()), Some("two".to_owned())));
    world.start_again("n2");
    world.in_sync("n1", "web-firmware", &["n1", "n2"]);
}

#[test]
#[ignore = "boots five times; deploy/test --all plays it"]
fn long_variables_are_in_their_volume_alone_and_hold_no_guest_up() {
    let world = world_with_root();
    let guest = vm_with(&world, "n1", &["--firmware", "uefi"]);
    guest.boot();
    sets(&guest, "First", "one");
    has(&world, "n2", "web-firmware", "First");

    // They are nowhere else: with another volume there are none, and the old one still has them.
    is_off(&world, "n1");
    let _: Vm = world.pollux("n1", &["vm", "delete", "web"]).json();
    let again = ["vm", "create", "web", "--volume", "root", "--firmware", "uefi"];
    world.pollux("n1", &again).refused(exit::CONFLICT, &["volume web-firmware already"]);
    world.replicas_are_equal("n1", "web-firmware");
    world.make_volume("other", "1M", &["n2"]);
    let guest = vm_with(&world, "n1", &["--firmware", "uefi", "--firmware-vars", "other"]);
    guest.boot();
    assert_eq!(reads(&guest, "First"), None);

    // The only host that has them stops in its tracks: the guest goes on all the same, people are told that it is not saved,
    // and it is once that host is back.
    world.healthy();
    world.pause("n2");
    sets(&guest, "Third", "three");
    sets(&guest, "Fourth", "four");
    let unsaved =
        until("somebody to be told", SETTLE, || world.vm("n1", "web").unsaved.ok_or_else(|| "not yet".to_owned()));
    assert!(unsaved.contains("volume other: not saved for"), "{unsaved}");
    assert_eq!(world.vm("n1", "web").runtime, "running");
    world.resume("n2");
    until("that to be over", SETTLE, || world.vm("n1", "web").unsaved.map_or(Ok(()), Err));
    has(&world, "n2", "other", "Third");
    has(&world, "n2", "other", "Fourth");
    is_off(&world, "n1");
    let _: Vm = world.pollux("n1", &["vm", "start", "web"]).json();
    guest.boot();
    let found = (reads(&guest, "Third"), reads(&guest, "Fourth"));
    assert_eq!(found, (Some("three".to_owned()), Some("four".to_owned())));
}

#[test]
fn what_uefi_needs_is_said() {
    let world = World::start(1);
    world.have_pools();
    world.make_volume("root", "8M", &["n1"]);
    world.make_volume("vars", "1M", &["n1"]);
    let create = |words: &[&str]| world.pollux("n1", &[&["vm", "create", "web"], words].concat());
    create(&["--volume", "root", "--firmware-vars", "vars"]).refused(exit::USAGE, &["of no use"]);
    create(&["--kernel", "/vmlinuz", "--firmware", "uefi"]).refused(exit::USAGE, &["UEFI boots from a volume"]);
    create(&["--volume", "root", "--firmware", "uefi", "--firmware-vars", "none"]).refused(exit::NOT_FOUND, &["none"]);
    let _ = create(&["--volume", "root", "--firmware", "efi"]).code(exit::USAGE);

    // A volume with something else is not written to, and the VM does not start.
    let spoilt = world.replica_file("n1", "vars", "n1");
    std::fs::write(&spoilt, vec![7; 1 << 20]).expect("its file can be written");
    let _: Vm = create(&["--volume", "root", "--firmware", "uefi", "--firmware-vars", "vars"]).json();
    until("the VM not to start", SETTLE, || {
        let vm = world.vm("n1", "web");
        let why = vm.stop_cause.clone().unwrap_or_default();
        let said = why.contains("volume vars: it holds something else than a firmware's variables");
        if vm.failed_starts > 0 && said { Ok(()) } else { Err(format!("{vm:?}")) }
    });
    assert_eq!(std::fs::read(&spoilt).expect("its file can be read"), vec![7; 1 << 20]);
    let _: Vm = world.pollux("n1", &["vm", "stop", "web", "--force"]).json();
    world.pollux("n1", &["volume", "detach", "vars"]).refused(exit::CONFLICT, &["keeps its variables in it"]);

    // Of a VM that is refused no volume stays.
    world
        .pollux("n1", &["vm", "create", "db", "--volume", "root", "--firmware", "uefi"])
        .refused(exit::CONFLICT, &["VM web has it"]);
    let count = || world.pollux("n1", &["volume", "list"]).json::<Vec<serde_json::Value>>().len();
    assert_eq!(count(), 2);

    // Where the firmware is not, that is said before anything is made.
    let _: Vm = world.pollux("n1", &["vm", "delete", "web"]).json();
    world.run_with("n1", &["--firmware", "/nowhere"]);
    create(&["--volume", "root", "--firmware", "uefi"]).refused(exit::CONFLICT, &["there is no UEFI firmware"]);
    assert_eq!(count(), 2);
}
