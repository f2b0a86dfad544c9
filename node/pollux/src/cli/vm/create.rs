//! `pollux vm create`: a VM from flags, from a file, or from a file with flags on top.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::Args;
use pollux_api::{
    CPU_DEFAULT, CreateNic, CreateVm, Firmware, MACHINE_DEFAULT, MEMORY_MIB_DEFAULT, VCPUS_DEFAULT,
    file::{VmFile, memory_mib},
};
use pollux_state::limits::NIC_MTU;
use pollux_wire::id::MacAddr;

use super::{
    super::{
        Context,
        exit::{Exit, Failure},
        output::show,
        suggest,
    },
    spec, view, wait,
};

pub(crate) const EXAMPLES: &str = "Examples:
  pollux vm create web --memory 512M --kernel /boot/vmlinuz --initrd /srv/web.img \\
      --append 'console=ttyS0' --nic br0
  pollux vm create db --volume db-root --volume db-data --nic br0     # boots from db-root
  pollux vm create new --volume new-root --firmware uefi             # by UEFI
  pollux vm create web --file vm.toml --node n2 --wait

A file:
  name = \"web\"
  memory = \"512M\"
  vcpus = 2
  kernel = \"/boot/vmlinuz\"
  initrd = \"web.cpio.gz\"        # beside the file
  append = \"console=ttyS0\"
  volumes = [\"data\"]            # without a kernel it boots from the first
  firmware = \"uefi\"             # then, and not by a BIOS
  [[nic]]
  bridge = \"br0\"                # mac = \"52:54:00:...\" if it must be that one
  mtu = 9000                    # where every node's bridge carries such frames

Kernel and initrd must be at the same path on every node that is to run the VM. UEFI firmware is in Debian's package ovmf; its
variables are on a volume of their own, which stays when the VM is deleted, like its disks.";

/// What the VM is to be. Flags go before the file, the file before the defaults.
#[derive(Debug, Default, Args)]
pub(crate) struct Create {
    /// Its name: 1 to 40 of `a-z 0-9 -`, starting with a letter.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// Read it from a TOML file; see below.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Guest memory, in MiB or with a unit [default: 256M].
    #[arg(long, value_name = "SIZE", value_parser = memory_mib)]
    memory: Option<u64>,
    /// Processors [default: 1].
    #[arg(long, value_name = "COUNT")]
    vcpus: Option<u32>,
    /// Kernel image; without one the VM boots from its first volume, through the firmware.
    #[arg(long, value_name = "PATH", required_unless_present_any = ["file", "volumes"])]
    kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// A volume, as the guest's next disk; may be given several times. Replaces those of the file.
    #[arg(long = "volume", value_name = "NAME")]
    volumes: Vec<String>,
    /// What boots the first volume: bios, or uefi [default: bios].
    #[arg(long, value_enum, value_name = "FIRMWARE")]
    firmware: Option<FirmwareKind>,
    /// The volume that keeps the variables of UEFI firmware; without it one is made beside the first volume, NAME-firmware.
    #[arg(long, value_name = "VOLUME")]
    firmware_vars: Option<String>,
    /// A network card on a bridge; may be given several times. Replaces those of the file.
    #[arg(long = "nic", value_name = "BRIDGE[,mac=ADDRESS][,mtu=BYTES]", value_parser = nic)]
    nics: Vec<CreateNic>,
    /// The MTU of every network card for which `--nic` names none, in bytes; each node's bridges must carry it [default: 1500].
    #[arg(long, value_name = "BYTES", value_parser = mtu)]
    mtu: Option<u32>,
    /// QEMU machine type with its version [default: pc-q35-7.2].
    #[arg(long)]
    machine: Option<String>,
    /// QEMU CPU model [default: qemu64].
    #[arg(long)]
    cpu: Option<String>,
    /// On which node; without it the one that is asked.
    #[arg(long)]
    node: Option<String>,
    /// Leave it stopped when its node's daemon ended while it ran.
    #[arg(long)]
    no_autostart: bool,
    /// Do not start it now.
    #[arg(long)]
    no_start: bool,
    /// Wait until the guest runs.
    #[arg(long, conflicts_with = "no_start")]
    wait: bool,
    /// How long to wait.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// What boots a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FirmwareKind {
    /// QEMU's BIOS.
    Bios,
    /// UEFI.
    Uefi,
}

impl From<FirmwareKind> for Firmware {
    fn from(kind: FirmwareKind) -> Self {
        match kind {
            FirmwareKind::Bios => Self::Bios,
            FirmwareKind::Uefi => Self::Uefi,
        }
    }
}

pub(crate) async fn run(context: &Context, verb: Create) -> Result<(), Failure> {
    let (must_run, timeout) = (verb.wait, verb.timeout);
    let file = verb.file.as_deref().map(spec::load).transpose()?.unwrap_or_default();
    let here = std::env::current_dir()
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot tell the current directory: {error}")))?;
    let request = request(verb, file, &here)?;
    let created = match context.client.create_vm(&request).await {
        Ok(vm) => vm,
        Err(error) => {
            return Err(match &request.node {
                Some(node) => suggest::for_node(&context.client, node, error).await,
                None => error.into(),
            });
        }
    };
    if must_run && request.start {
        let vm = wait::until_running(&context.client, created, timeout).await?;
        return show(context.format, &vm, view::runs);
    }
    show(context.format, &created, |vm| {
        let will = if request.start { "is to run" } else { "is stopped" };
        format!("VM {} is created and {will} on {}\n", vm.name, vm.home)
    })
}

/// Flags before file before defaults. Relative paths in flags start `here`.
fn request(flags: Create, file: VmFile, here: &Path) -> Result<CreateVm, Failure> {
    let path = |flag: Option<PathBuf>, file: Option<String>, what: &str| match flag {
        Some(path) => spec::absolute(&here.join(path), what).map(Some),
        None => Ok(file),
    };
    // A card of the flags is more particular than their MTU, one of the file is not.
    let nics: Vec<_> = if flags.nics.is_empty() {
        file.nic.into_iter().map(|nic| CreateNic { mtu: flags.mtu.or(nic.mtu), ..nic }).collect()
    } else {
        flags.nics.into_iter().map(|nic| CreateNic { mtu: nic.mtu.or(flags.mtu), ..nic }).collect()
    };
    if let (Some(mtu), []) = (flags.mtu, &nics[..]) {
        return Err(Failure::usage(format!("--mtu {mtu} is of no use to a VM without a network card"))
            .todo("add one with --nic BRIDGE"));
    }
    let volumes = if flags.volumes.is_empty() { file.volumes } else { flags.volumes };
    let kernel = path(flags.kernel, file.kernel, "--kernel")?.filter(|kernel| !kernel.is_empty());
    if kernel.is_none() && volumes.is_empty() {
        return Err(Failure::usage("the VM has nothing to boot from: neither a kernel nor a volume")
            .todo("add `kernel = \"...\"` or `volumes = [...]` to the file, or use --kernel or --volume"));
    }
    let firmware = flags.firmware.map(Firmware::from).or(file.firmware).unwrap_or_default();
    let firmware_vars = flags.firmware_vars.or(file.firmware_vars);
    check_firmware(firmware, firmware_vars.as_deref(), kernel.is_some())?;
    Ok(CreateVm {
        name: flags.name.or(file.name).ok_or_else(|| {
            Failure::usage("the file gives the VM no name")
                .todo("add `name = \"...\"` to it, or put the name after `create`")
        })?,
        memory_mib: flags.memory.or(file.memory).unwrap_or(MEMORY_MIB_DEFAULT),
        vcpus: flags.vcpus.or(file.vcpus).unwrap_or(VCPUS_DEFAULT),
        kernel: kernel.unwrap_or_default(),
        initrd: path(flags.initrd, file.initrd, "--initrd")?.unwrap_or_default(),
        append: flags.append.or(file.append).unwrap_or_default(),
        nics,
        volumes,
        firmware,
        firmware_vars,
        machine: flags.machine.or(file.machine).unwrap_or_else(|| MACHINE_DEFAULT.to_owned()),
        cpu: flags.cpu.or(file.cpu).unwrap_or_else(|| CPU_DEFAULT.to_owned()),
        autostart: !flags.no_autostart && file.autostart.unwrap_or(true),
        start: !flags.no_start && file.start.unwrap_or(true),
        node: flags.node.or(file.node),
    })
}

/// UEFI boots from a volume, and nothing else has variables.
fn check_firmware(firmware: Firmware, vars: Option<&str>, kernel: bool) -> Result<(), Failure> {
    match (firmware, vars) {
        (Firmware::Bios, Some(vars)) => Err(Failure::usage(format!(
            "--firmware-vars {vars} is of no use to a VM that boots by a BIOS, or from a kernel: it keeps no variables"
        ))
        .todo("add --firmware uefi, or leave --firmware-vars away")),
        (Firmware::Uefi, _) if kernel => {
            Err(Failure::usage("UEFI boots from a volume, and the VM is given a kernel").todo("leave one of them away"))
        }
        (Firmware::Bios, None) | (Firmware::Uefi, _) => Ok(()),
    }
}

/// `BRIDGE`, and after it perhaps `,mac=ADDRESS` and `,mtu=BYTES`.
fn nic(text: &str) -> Result<CreateNic, String> {
    let mut parts = text.split(',');
    let bridge = parts.next().unwrap_or_default();
    if bridge.is_empty() || bridge.contains('=') {
        return Err("the bridge comes first: BRIDGE or BRIDGE,mac=ADDRESS,mtu=BYTES".to_owned());
    }
    let mut nic = CreateNic { bridge: bridge.to_owned(), mac: None, mtu: None };
    for part in parts {
        match part.split_once('=') {
            Some(("mac", mac)) if nic.mac.is_none() => {
                MacAddr::from_str(mac)
                    .map_err(|_| format!("{mac} is not an Ethernet address such as 52:54:00:12:34:56"))?;
                nic.mac = Some(mac.to_owned());
            }
            Some(("mtu", bytes)) if nic.mtu.is_none() => nic.mtu = Some(mtu(bytes)?),
            Some((word @ ("mac" | "mtu"), _)) => return Err(format!("{word} stands there twice")),
            _ => return Err(format!("{part} is not known; only mac=ADDRESS and mtu=BYTES may follow")),
        }
    }
    Ok(nic)
}

/// Bytes that a card's MTU may be.
fn mtu(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|bytes| NIC_MTU.contains(bytes)).ok_or_else(|| {
        format!("{text} is no MTU of a network card; give {} to {} bytes", NIC_MTU.start(), NIC_MTU.end())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> &'static Path {
        Path::new("/home/me")
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_the_defaults() {
        let file = VmFile {
            name: Some("template".into()),
            memory: Some(1024),
            kernel: Some("/srv/vmlinuz".into()),
            nic: vec![CreateNic { bridge: "br0".into(), mac: None, mtu: Some(1500) }],
            autostart: Some(false),
            ..VmFile::default()
        };
        let flags = Create {
            name: Some("web".into()),
            initrd: Some("web.cpio".into()),
            vcpus: Some(2),
            mtu: Some(9000),
            no_start: true,
            ..Create::default()
        };

        let vm = request(flags, file, here()).unwrap();

        assert_eq!((vm.name.as_str(), vm.vcpus, vm.start), ("web", 2, false), "from the flags");
        assert_eq!((vm.memory_mib, vm.kernel.as_str(), vm.autostart), (1024, "/srv/vmlinuz", false), "from the file");
        assert_eq!((vm.machine.as_str(), vm.cpu.as_str()), (MACHINE_DEFAULT, CPU_DEFAULT), "by default");
        assert_eq!(vm.initrd, "/home/me/web.cpio", "a relative path starts where the user is");
        assert_eq!(
            vm.nics.iter().map(|nic| nic.mtu).collect::<Vec<_>>(),
            [Some(9000)],
            "a flag for a card of the file"
        );
    }

    #[test]
    fn a_vm_without_a_kernel_says_what_is_missing() {
        let flags = Create { name: Some("web".into()), ..Create::default() };
        let failure = request(flags, VmFile::default(), here()).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.todo.contains("kernel ="), "{failure:?}");
    }

    #[test]
    fn a_vm_with_a_volume_needs_no_kernel() {
        let flags = |volumes: &[&str]| Create {
            name: Some("web".into()),
            volumes: volumes.iter().map(|name| (*name).to_owned()).collect(),
            ..Create::default()
        };
        let file = || VmFile { volumes: vec!["old".into()], ..VmFile::default() };
        let vm = request(flags(&["root", "data"]), file(), here()).unwrap();
        assert_eq!(
            (vm.kernel.as_str(), vm.volumes),
            ("", vec!["root".to_owned(), "data".to_owned()]),
            "from the flags"
        );
        assert_eq!(request(flags(&[]), file(), here()).unwrap().volumes, ["old"], "from the file");
    }

    #[test]
    fn uefi_is_asked_for_by_flags_or_by_the_file_and_needs_a_volume() {
        let flags = || Create { name: Some("web".into()), volumes: vec!["root".into()], ..Create::default() };
        let plain = request(flags(), VmFile::default(), here()).unwrap();
        assert_eq!((plain.firmware, plain.firmware_vars), (Firmware::Bios, None));

        let uefi = || Create { firmware: Some(FirmwareKind::Uefi), ..flags() };
        assert_eq!(request(uefi(), VmFile::default(), here()).unwrap().firmware, Firmware::Uefi);
        let file = VmFile { firmware: Some(Firmware::Uefi), firmware_vars: Some("old".into()), ..VmFile::default() };
        let vm = request(flags(), file.clone(), here()).unwrap();
        assert_eq!((vm.firmware, vm.firmware_vars.as_deref()), (Firmware::Uefi, Some("old")), "from the file");
        let bios = Create { firmware: Some(FirmwareKind::Bios), ..flags() };

        let kernel = Create { kernel: Some("/vmlinuz".into()), ..uefi() };
        let vars = Create { firmware_vars: Some("web-firmware".into()), ..flags() };
        for (flags, file, todo) in [
            (kernel, VmFile::default(), "leave one of them away"),
            (vars, VmFile::default(), "add --firmware uefi"),
            (bios, file, "add --firmware uefi"),
        ] {
            let failure = request(flags, file, here()).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.todo.contains(todo), "{failure:?}");
        }
    }

    #[test]
    fn a_network_card_is_a_bridge_and_perhaps_an_address() {
        assert_eq!(nic("br0"), Ok(CreateNic { bridge: "br0".into(), mac: None, mtu: None }));
        assert_eq!(nic("br0,mac=52:54:00:00:00:0a").unwrap().mac.as_deref(), Some("52:54:00:00:00:0a"));
        assert!(nic("br0,mac=52:54").unwrap_err().contains("52:54 is not an Ethernet address"));
        assert!(nic("br0,model=e1000").unwrap_err().contains("model=e1000"));
        assert!(nic("mac=52:54:00:00:00:0a").unwrap_err().contains("bridge comes first"));
        assert!(nic("").is_err());
    }

    #[test]
    fn a_network_card_may_carry_larger_frames() {
        let card = nic("br0,mtu=9000,mac=52:54:00:00:00:0a").unwrap();
        assert_eq!((card.mtu, card.mac.as_deref()), (Some(9000), Some("52:54:00:00:00:0a")));
        for wrong in ["br0,mtu=1279", "br0,mtu=9001", "br0,mtu=", "br0,mtu=9k", "br0,mtu"] {
            assert!(nic(wrong).is_err(), "{wrong} was taken");
        }
        assert!(nic("br0,mtu=1500,mtu=9000").unwrap_err().contains("twice"));

        let flags = |nics| Create {
            name: Some("web".into()),
            kernel: Some("/vmlinuz".into()),
            nics,
            mtu: Some(9000),
            ..Create::default()
        };
        let cards = vec![nic("br0").unwrap(), nic("br1,mtu=1400").unwrap()];
        let vm = request(flags(cards), VmFile::default(), here()).unwrap();
        assert_eq!(vm.nics.iter().map(|nic| nic.mtu).collect::<Vec<_>>(), [Some(9000), Some(1400)]);
        let failure = request(flags(Vec::new()), VmFile::default(), here()).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.todo.contains("--nic"), "{failure:?}");
    }
}
