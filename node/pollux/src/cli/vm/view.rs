//! VMs as tables.

use pollux_api::{Desired, NicView, Phase, Runtime, VmView};
use pollux_state::limits::NIC_MTU_DEFAULT;

use super::super::output::{age, bytes, list, mib, moment, table};

/// What a VM is doing, in as few words as tell it.
pub(crate) fn state(vm: &VmView) -> String {
    let peer = vm.peer.as_deref().unwrap_or("another node");
    match (vm.phase, vm.runtime) {
        (Phase::Stopped, _) if vm.desired == Desired::Running && vm.failed_starts > 0 => {
            format!("fails to start ({}x)", vm.failed_starts)
        }
        (Phase::Stopped, _) if vm.desired == Desired::Running => "to be started".to_owned(),
        (Phase::Stopped, _) => "stopped".to_owned(),
        (Phase::Moving, Runtime::Saving) => format!("switching to {peer}"),
        (Phase::Moving, _) => format!("moving to {peer}"),
        (Phase::Arriving, _) => format!("arriving from {peer}"),
        (Phase::Running, _) if vm.desired == Desired::Stopped => "stopping".to_owned(),
        (Phase::Running, _) => runtime(vm.runtime).to_owned(),
    }
}

fn runtime(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::None => "no QEMU yet",
        Runtime::Starting => "starting",
        Runtime::Running => "running",
        Runtime::Paused => "paused",
        Runtime::Sending => "sending",
        Runtime::Saving => "saving",
        Runtime::Receiving => "receiving",
        Runtime::Stopping => "stopping",
        Runtime::Fenced => "fenced",
        Runtime::Unknown => "unknown",
    }
}

/// Where it runs, or where it would.
pub(crate) fn place(vm: &VmView) -> String {
    vm.node.clone().unwrap_or_else(|| format!("({})", vm.home))
}

/// All VMs, one a line.
pub(crate) fn many(vms: &[VmView], now: u64) -> String {
    table(
        ["NAME", "STATE", "NODE", "CPUS", "MEMORY", "DISKS", "GENERATION", "SINCE", "WHY"],
        &[3, 4, 5, 6, 7],
        vms.iter().map(|vm| {
            [
                vm.name.clone(),
                state(vm),
                place(vm),
                vm.vcpus.to_string(),
                mib(vm.memory_mib),
                vm.disks.len().to_string(),
                vm.generation.to_string(),
                age(now, vm.since),
                why(vm),
            ]
        }),
    )
}

/// Why it does not run, or not as it should.
fn why(vm: &VmView) -> String {
    let unsaved = || vm.unsaved.as_ref().map(|why| format!("firmware's variables in memory only: {why}"));
    vm.stop_cause.clone().or_else(|| vm.trouble.clone()).or_else(unsaved).unwrap_or_default()
}

/// All about one.
pub(crate) fn single(vm: &VmView, now: u64) -> String {
    let desired = match vm.desired {
        Desired::Running => "running",
        Desired::Stopped => "stopped",
    };
    let mut rows = vec![
        ("name", vm.name.clone()),
        ("id", vm.id.to_string()),
        ("state", format!("{}, for {}", state(vm), age(now, vm.since))),
        ("wanted", desired.to_owned()),
        ("node", vm.node.clone().unwrap_or_default()),
        ("runtime", runtime(vm.runtime).to_owned()),
        ("home", vm.home.clone()),
        ("generation", vm.generation.to_string()),
    ];
    if let Some(cause) = &vm.stop_cause {
        rows.push(("why", cause.clone()));
    }
    if let Some(trouble) = &vm.trouble {
        rows.push(("waits", format!("{trouble}; nothing is lost, and it goes on by itself once that is mended")));
    }
    if let Some(unsaved) = &vm.unsaved {
        rows.push((
            "unsaved",
            format!("what its firmware wrote: {unsaved}; it moves along, and is saved by itself once that is mended"),
        ));
    }
    if let Some(operation) = &vm.operation {
        rows.push(("operation", operation.clone()));
    }
    rows.extend([
        ("memory", mib(vm.memory_mib)),
        ("processors", format!("{} ({})", vm.vcpus, vm.cpu)),
        ("machine", vm.machine.clone()),
    ]);
    match vm.disks.first().filter(|disk| disk.boot) {
        Some(disk) => {
            let by = if vm.firmware.is_some() { "UEFI" } else { "the BIOS" };
            rows.push(("boots from", format!("volume {}, through {by}", disk.volume)));
        }
        None => {
            rows.extend([("kernel", vm.kernel.clone()), ("initrd", vm.initrd.clone()), ("append", vm.append.clone())])
        }
    }
    rows.extend(vm.disks.iter().map(|disk| ("disk", format!("volume {}, {}", disk.volume, bytes(disk.size_bytes)))));
    rows.extend(vm.firmware.iter().map(|volume| ("firmware", format!("UEFI, its variables in volume {volume}"))));
    rows.extend(vm.nics.iter().map(|nic| ("network card", card(nic))));
    rows.push(("autostart", if vm.autostart { "yes" } else { "no" }.to_owned()));
    rows.push(("created", format!("{} ({} ago)", moment(vm.created), age(now, vm.created))));
    list(rows)
}

fn card(NicView { mac, bridge, mtu }: &NicView) -> String {
    let wide = if *mtu == NIC_MTU_DEFAULT { String::new() } else { format!(", MTU {mtu}") };
    format!("{mac} on {bridge}{wide}")
}

/// One sentence on a VM that runs.
pub(crate) fn runs(vm: &VmView) -> String {
    format!("VM {} runs on {}\n", vm.name, place(vm))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A VM that runs on n1 for 90 s.
    pub(crate) fn web() -> VmView {
        VmView {
            id: 1,
            name: "web".into(),
            desired: Desired::Running,
            phase: Phase::Running,
            node: Some("n1".into()),
            peer: None,
            home: "n1".into(),
            generation: 3,
            runtime: Runtime::Running,
            trouble: None,
            unsaved: None,
            memory_mib: 256,
            vcpus: 1,
            nics: vec![NicView { mac: "52:54:00:00:00:01".into(), bridge: "br0".into(), mtu: 1500 }],
            disks: Vec::new(),
            firmware: None,
            kernel: "/boot/vmlinuz".into(),
            initrd: String::new(),
            append: "console=ttyS0".into(),
            machine: "pc-q35-7.2".into(),
            cpu: "qemu64".into(),
            autostart: true,
            since: 1_700_000_000_000,
            created: 1_700_000_000_000,
            stop_cause: None,
            failed_starts: 0,
            operation: None,
        }
    }

    const NOW: u64 = 1_700_000_090_000;

    #[test]
    fn a_list_of_vms_tells_what_each_is_doing() {
        let moving = VmView {
            name: "mail".into(),
            phase: Phase::Moving,
            peer: Some("n2".into()),
            runtime: Runtime::Sending,
            memory_mib: 2048,
            ..web()
        };
        let off = VmView {
            name: "database".into(),
            desired: Desired::Stopped,
            phase: Phase::Stopped,
            node: None,
            runtime: Runtime::None,
            generation: 12,
            stop_cause: Some("the guest switched itself off".into()),
            ..web()
        };
        let broken = VmView {
            name: "old".into(),
            phase: Phase::Stopped,
            node: None,
            failed_starts: 3,
            stop_cause: Some("no kernel at /boot/none".into()),
            ..web()
        };
        insta::assert_snapshot!(many(&[web(), moving, off, broken], NOW), @r"
        NAME      STATE                NODE  CPUS   MEMORY  DISKS  GENERATION  SINCE  WHY
        web       running              n1       1  256 MiB      0           3  1m30s  -
        mail      moving to n2         n1       1  2.0 GiB      0           3  1m30s  -
        database  stopped              (n1)     1  256 MiB      0          12  1m30s  the guest switched itself off
        old       fails to start (3x)  (n1)     1  256 MiB      0           3  1m30s  no kernel at /boot/none
        ");
    }

    #[test]
    fn one_vm_is_told_in_full() {
        insta::assert_snapshot!(single(&web(), NOW), @r"
        name          web
        id            1
        state         running, for 1m30s
        wanted        running
        node          n1
        runtime       running
        home          n1
        generation    3
        memory        256 MiB
        processors    1 (qemu64)
        machine       pc-q35-7.2
        kernel        /boot/vmlinuz
        initrd        -
        append        console=ttyS0
        network card  52:54:00:00:00:01 on br0
        autostart     yes
        created       2023-11-14T22:13:20Z (1m30s ago)
        ");
        let mut wide = web();
        wide.nics[0].mtu = 9000;
        assert!(single(&wide, NOW).contains("52:54:00:00:00:01 on br0, MTU 9000\n"));
    }

    #[test]
    fn a_guest_that_waits_for_its_disk_says_so_and_why() {
        let vm = VmView { runtime: Runtime::Paused, trouble: Some("volume data: the pool is full".into()), ..web() };
        let text = single(&vm, NOW);
        assert!(
            text.contains("state         paused, for") && text.contains("waits         volume data: the pool is full;"),
            "{text}"
        );
        let row = many(&[vm], NOW);
        assert!(row.contains(" paused ") && row.contains("volume data: the pool is full"), "{row}");
        assert!(!single(&web(), NOW).contains("waits"), "one that runs waits for nothing");
    }

    #[test]
    fn a_vm_with_volumes_tells_from_which_it_boots() {
        let disk = |volume: &str, boot| pollux_api::DiskView { volume: volume.into(), size_bytes: 10 << 30, boot };
        let vm = VmView { kernel: String::new(), disks: vec![disk("root", true), disk("data", false)], ..web() };
        let text = single(&vm, NOW);
        assert!(text.contains("boots from    volume root, through the BIOS\n"), "{text}");
        assert!(text.contains("disk          volume data, 10.0 GiB\n") && !text.contains("kernel"), "{text}");

        let by_uefi = VmView { firmware: Some("web-firmware".into()), ..vm };
        let text = single(&by_uefi, NOW);
        assert!(text.contains("boots from    volume root, through UEFI\n"), "{text}");
        assert!(text.contains("firmware      UEFI, its variables in volume web-firmware\n"), "{text}");
        assert!(!text.contains("unsaved"), "{text}");
        let why = "volume web-firmware: not saved for 12 s: the pool is full";
        let unsaved = VmView { unsaved: Some(why.into()), ..by_uefi };
        let text = single(&unsaved, NOW);
        assert!(text.contains(&format!("unsaved       what its firmware wrote: {why};")), "{text}");
        let row = many(&[unsaved], NOW);
        assert!(row.contains(" running ") && row.contains(why), "it runs: {row}");
    }
}
