//! What to start, and the command line that says so.
//!
//! Both sides of a move build their command line here from the same definition, so they have the same devices at the
//! same addresses; only descriptor numbers differ, and QEMU does not send those.

use std::{ffi::OsString, os::fd::OwnedFd, os::fd::RawFd, path::PathBuf};

use crate::boot::{Boot, OpenBoot};

/// Network cards per machine.
pub const NICS_MAX: usize = 8;
/// Disks per machine.
pub const DISKS_MAX: usize = 8;

/// PCI slot of the first network card on the root bus; the others follow. Below it are the chipset's own and ours.
const FIRST_NIC_SLOT: usize = 0x8;
/// PCI slot of the first disk. Above the last are the chipset's own again.
const FIRST_DISK_SLOT: usize = FIRST_NIC_SLOT + NICS_MAX;

/// Longest serial number of a disk, in bytes: what virtio-blk has room for.
const SERIAL_MAX: usize = 20;

/// PCI slot of the disk a [`Boot::Sector`] comes from.
const SECTOR_SLOT: usize = 0x7;

/// Guest memory is given in whole MiB.
const MEMORY_UNIT: u64 = 1 << 20;

/// Who executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// QEMU itself, translating.
    Tcg,
    /// The processor, through `/dev/kvm`.
    Kvm,
}

/// What the machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It boots.
    Fresh,
    /// It waits for the device state of another ([`crate::Machine::load_state`]).
    Incoming,
}

/// The unprivileged user QEMU runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
}

/// Must the writes of the new process be trackable?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrackingWish {
    /// Start it only if they are.
    Required,
    /// Start it anyway and say why not; such a VM cannot be moved live.
    Optional,
    /// Do not try.
    Off,
}

/// A network card: its address, and the socket its frames go through (a connected `AF_UNIX` stream; each frame follows
/// its length, 32 bits big-endian).
#[derive(Debug)]
pub struct NicFd {
    /// Address, six hexadecimal bytes with colons.
    pub mac: String,
    /// QEMU's end of the connection.
    pub socket: OwnedFd,
    /// The MTU that the card tells the guest, in bytes; `None`: it tells none, which makes it another device. The same on both
    /// sides of a move.
    pub mtu: Option<u16>,
}

/// A disk: what the guest knows it by, and the socket its requests go through (a connected `AF_UNIX` stream with an NBD server at
/// its other end, which answers before QEMU does: it is asked for the size when QEMU starts). Requests that fail are parked in the
/// device and the guest is paused ([`crate::MachineEvent::DiskFailed`]); `cont` issues them again, also elsewhere (DESIGN, rule 16).
#[derive(Debug)]
pub struct DiskFd {
    /// Its serial number in the guest: 1 to 20 letters, digits and `-`. The same on both sides of a move.
    pub serial: String,
    /// QEMU's end of the connection.
    pub socket: OwnedFd,
}

/// UEFI firmware, in two flash devices.
///
/// QEMU reads the variables when it starts, and again never: what the guest writes to them it keeps in memory, part of the device
/// state, and writes through. It waits for such a write with everything else it does, and can neither park nor tell the guest
/// of one that failed, so the server at the other end has to answer at once, or nearly. After a device state was loaded the whole is
/// written when the machine first runs.
#[derive(Debug)]
pub struct FirmwareFd {
    /// The code; read only.
    pub code: OwnedFd,
    /// QEMU's end of the connection to an NBD server with the variables, and with nothing else.
    pub variables: OwnedFd,
}

/// Everything a QEMU is started with.
#[derive(Debug)]
pub struct Launch {
    /// The VM's name, for messages and the process title.
    pub name: String,
    /// The QEMU to start, an absolute path.
    pub binary: PathBuf,
    /// Who executes the guest's instructions.
    pub accelerator: Accelerator,
    /// A machine type with its version, `pc-q35-7.2`: it must mean the same to every QEMU the VM meets.
    pub machine: String,
    /// A CPU model with its flags, as QEMU spells it.
    pub cpu: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Size of the guest's memory, whole MiB.
    pub memory_bytes: u64,
    /// The guest's memory: a shared memory file of that size, which the QEMU's user may reopen.
    pub memory: OwnedFd,
    /// What it boots. An incoming machine needs the same: its firmware must find it after a reset.
    pub boot: Boot,
    /// Network cards, in order.
    pub nics: Vec<NicFd>,
    /// Disks, in order. [`Boot::Disk`] boots from the first.
    pub disks: Vec<DiskFd>,
    /// What boots them; `None`: QEMU's BIOS.
    pub firmware: Option<FirmwareFd>,
    /// Booting, or waiting for state.
    pub role: Role,
    /// Whom to run as; `None` keeps the daemon's user, for a daemon that is not root. With [`Accelerator::Kvm`] the
    /// process also gets the group that may use `/dev/kvm`, and no other.
    pub identity: Option<Identity>,
    /// The `cgroup.procs` file of the control group to join before anything of QEMU runs.
    pub cgroup: Option<PathBuf>,
    /// Must writes be trackable?
    pub tracking: TrackingWish,
}

/// The descriptors a new process inherits, by number.
pub(crate) struct Inherited<'a> {
    pub(crate) memory: RawFd,
    pub(crate) qmp: RawFd,
    pub(crate) serial: RawFd,
    pub(crate) boot: &'a OpenBoot,
}

impl Launch {
    /// Says what is wrong with it, before anything is started.
    pub(crate) fn check(&self) -> Result<(), String> {
        let plain = |what: &str, value: &str, extra: &str| {
            let fine = |c: char| c.is_ascii_alphanumeric() || extra.contains(c);
            if value.is_empty() || !value.chars().all(fine) {
                return Err(format!("{what} `{value}` must consist of letters, digits and `{extra}`"));
            }
            Ok(())
        };
        plain("the machine type", &self.machine, "-._")?;
        plain("the CPU model", &self.cpu, "-._,+=")?;
        if !self.binary.is_absolute() {
            return Err(format!("the QEMU binary `{}` must be an absolute path", self.binary.display()));
        }
        if self.vcpus == 0 {
            return Err("it needs at least one virtual CPU".to_owned());
        }
        if self.memory_bytes == 0 || !self.memory_bytes.is_multiple_of(MEMORY_UNIT) {
            return Err(format!("{} bytes of memory are not whole MiB", self.memory_bytes));
        }
        let file_bytes = rustix::fs::fstat(&self.memory).map(|file| file.st_size);
        if file_bytes != Ok(self.memory_bytes.cast_signed()) {
            return Err(format!("its memory file does not have {} bytes: {file_bytes:?}", self.memory_bytes));
        }
        if self.nics.len() > NICS_MAX {
            return Err(format!("{} network cards are more than {NICS_MAX}", self.nics.len()));
        }
        if let Some(nic) = self.nics.iter().find(|nic| !is_mac(&nic.mac)) {
            return Err(format!("`{}` is no network card address like 52:54:00:12:34:56", nic.mac));
        }
        if self.disks.len() > DISKS_MAX {
            return Err(format!("{} disks are more than {DISKS_MAX}", self.disks.len()));
        }
        for disk in &self.disks {
            plain("the serial number", &disk.serial, "-")?;
            if disk.serial.len() > SERIAL_MAX {
                return Err(format!("the serial number `{}` is longer than {SERIAL_MAX} bytes", disk.serial));
            }
        }
        if self.boot == Boot::Disk && self.disks.is_empty() {
            return Err("it is to boot from its first disk and has none".to_owned());
        }
        Ok(())
    }

    /// The arguments after the program's name.
    pub(crate) fn arguments(&self, inherited: &Inherited<'_>) -> Vec<OsString> {
        let Inherited { memory, qmp, serial, boot } = inherited;
        let mut line = Line::default();
        line.flag("-nodefaults").flag("-no-user-config").flag("-no-shutdown").flag("-S");
        line.with("-name", format!("guest={}", self.name.replace(',', ",,")));
        line.with("-display", "none").with("-nic", "none");
        line.with("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        // The description of the device state is for people who debug it, and a good part of its size.
        let flash = if self.firmware.is_some() { ",pflash0=uefi-code,pflash1=uefi-variables" } else { "" };
        line.with("-machine", format!("{},memory-backend=ram,suppress-vmdesc=on{flash}", self.machine));
        line.with("-accel", if self.accelerator == Accelerator::Kvm { "kvm" } else { "tcg" });
        line.with("-cpu", &self.cpu).with("-smp", self.vcpus.to_string());
        line.with("-m", format!("{}M", self.memory_bytes / MEMORY_UNIT));
        let size = self.memory_bytes;
        line.with(
            "-object",
            format!("memory-backend-file,id=ram,share=on,size={size},mem-path=/proc/self/fd/{memory}"),
        );
        // A guest that sleeps to disk or memory would leave the states a move knows about.
        if self.machine.contains("q35") {
            line.with("-global", "ICH9-LPC.disable_s3=1").with("-global", "ICH9-LPC.disable_s4=1");
        }
        line.with("-rtc", "base=utc");
        line.with("-device", "pvpanic").with("-action", "panic=pause");
        line.with("-chardev", format!("socket,id=qmp,fd={qmp}")).with("-mon", "chardev=qmp,mode=control");
        line.with("-chardev", format!("socket,id=console,fd={serial}")).with("-serial", "chardev:console");
        for (at, nic) in self.nics.iter().enumerate() {
            use std::os::fd::AsRawFd;
            let (socket, slot) = (nic.socket.as_raw_fd(), FIRST_NIC_SLOT + at);
            line.with("-netdev", format!("stream,id=net{at},server=off,addr.type=fd,addr.str={socket}"));
            let mtu = nic.mtu.map(|mtu| format!(",host_mtu={mtu}")).unwrap_or_default();
            line.with(
                "-device",
                format!("virtio-net-pci,id=nic{at},netdev=net{at},mac={},addr={slot:#x},romfile={mtu}", nic.mac),
            );
        }
        for (at, disk) in self.disks.iter().enumerate() {
            use std::os::fd::AsRawFd;
            let (socket, slot) = (disk.socket.as_raw_fd(), FIRST_DISK_SLOT + at);
            line.with(
                "-blockdev",
                format!("driver=nbd,node-name=disk{at},server.type=fd,server.str={socket},discard=unmap"),
            );
            let boots = if at == 0 && matches!(boot, OpenBoot::Disk) { ",bootindex=0" } else { "" };
            line.with(
                "-device",
                format!(
                    "virtio-blk-pci,id=vd{at},drive=disk{at},addr={slot:#x},serial={},werror=stop,rerror=stop{boots}",
                    disk.serial
                ),
            );
        }
        if let Some(FirmwareFd { code, variables }) = &self.firmware {
            use std::os::fd::AsRawFd;
            let (code, variables) = (code.as_raw_fd(), variables.as_raw_fd());
            let code =
                format!("driver=file,node-name=uefi-code,read-only=on,locking=off,filename=/proc/self/fd/{code}");
            line.with("-blockdev", code);
            line.with(
                "-blockdev",
                format!("driver=nbd,node-name=uefi-variables,server.type=fd,server.str={variables}"),
            );
        }
        match boot {
            OpenBoot::Disk => {}
            OpenBoot::Kernel { kernel, initrd, append } => {
                line.with("-kernel", kernel.path());
                if let Some(initrd) = initrd {
                    line.with("-initrd", initrd.path());
                }
                line.with("-append", append);
            }
            OpenBoot::Sector(sector) => {
                let file = sector.path();
                line.with("-drive", format!("if=none,id=sector,format=raw,readonly=on,file={file},file.locking=off"));
                line.with("-device", format!("virtio-blk-pci,drive=sector,addr={SECTOR_SLOT:#x},bootindex=0"));
            }
        }
        if self.role == Role::Incoming {
            line.with("-incoming", "defer");
        }
        line.0
    }
}

/// A command line being written.
#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn with(&mut self, flag: &str, value: impl AsRef<str>) -> &mut Self {
        self.0.push(flag.into());
        self.0.push(value.as_ref().into());
        self
    }
}

fn is_mac(text: &str) -> bool {
    let bytes: Vec<&str> = text.split(':').collect();
    bytes.len() == 6 && bytes.iter().all(|byte| byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn launch(role: Role) -> Launch {
        let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, 64 << 20).unwrap();
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        Launch {
            name: "a,b".to_owned(),
            binary: "/usr/bin/qemu".into(),
            accelerator: Accelerator::Tcg,
            machine: "pc-q35-7.2".to_owned(),
            cpu: "qemu64,+ssse3".to_owned(),
            vcpus: 2,
            memory_bytes: 64 << 20,
            memory,
            boot: Boot::Kernel { kernel: "/dev/null".into(), initrd: None, append: "a b,c".to_owned() },
            nics: vec![NicFd { mac: "52:54:00:00:00:01".to_owned(), socket: null(), mtu: None }],
            disks: vec![DiskFd { serial: "volume-7".to_owned(), socket: null() }],
            firmware: None,
            role,
            identity: None,
            cgroup: None,
            tracking: TrackingWish::Off,
        }
    }

    /// The line with descriptor numbers left out: all that decides what the guest sees.
    fn line(launch: &Launch) -> Vec<String> {
        let file = tempfile::tempfile().unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let boot = Boot::Kernel { kernel: path.into(), initrd: None, append: "a b,c".to_owned() };
        let boot = OpenBoot::open(&boot, None).unwrap();
        let arguments = launch.arguments(&Inherited { memory: 901, qmp: 902, serial: 903, boot: &boot });
        let own = |number: RawFd| (format!("/proc/self/fd/{number}"), "/proc/self/fd/N");
        let arguments = arguments.into_iter().map(|argument| argument.into_string().unwrap());
        let own: Vec<_> = boot.descriptors().into_iter().map(own).collect();
        arguments
            .map(|text| own.iter().find(|(path, _)| *path == text).map_or(text, |(_, blurred)| (*blurred).to_owned()))
            .collect()
    }

    #[test]
    fn both_sides_of_a_move_get_the_same_machine() {
        let (source, mut target) = (line(&launch(Role::Fresh)), line(&launch(Role::Incoming)));
        assert_eq!(target.split_off(target.len() - 2), ["-incoming", "defer"]);
        let socketless = |arguments: Vec<String>| {
            let own = |argument: &String| argument.starts_with("stream,") || argument.starts_with("driver=nbd,");
            arguments.into_iter().filter(|argument| !own(argument)).collect::<Vec<_>>()
        };
        assert_eq!(socketless(source), socketless(target));
    }

    #[test]
    fn what_protects_the_host_is_on_every_line() {
        let line = line(&launch(Role::Fresh)).join(" ");
        for part in [
            "-nodefaults",
            "-no-user-config",
            "-no-shutdown -S",
            "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "guest=a,,b",
            "share=on,size=67108864,mem-path=/proc/self/fd/901",
            "-chardev socket,id=qmp,fd=902",
            "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:00:00:01,addr=0x8,romfile=",
            "-append a b,c",
            "virtio-blk-pci,id=vd0,drive=disk0,addr=0x10,serial=volume-7,werror=stop,rerror=stop",
        ] {
            assert!(line.contains(part), "`{part}` is missing in `{line}`");
        }
    }

    #[test]
    fn a_machine_has_flash_where_it_boots_by_uefi() {
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        let mut launch = launch(Role::Fresh);
        let plain = line(&launch).join(" ");
        assert!(!plain.contains("pflash"), "{plain}");
        launch.firmware = Some(FirmwareFd { code: null(), variables: null() });
        let uefi = line(&launch).join(" ");
        for part in [
            ",pflash0=uefi-code,pflash1=uefi-variables -accel",
            "driver=file,node-name=uefi-code,read-only=on,locking=off,filename=/proc/self/fd/",
            "driver=nbd,node-name=uefi-variables,server.type=fd,server.str=",
            "virtio-blk-pci,id=vd0,drive=disk0,addr=0x10",
        ] {
            assert!(uefi.contains(part), "`{part}` is missing in `{uefi}`");
        }
    }

    #[test]
    fn a_card_tells_an_mtu_only_where_it_is_to() {
        let device = |mtu| {
            let mut launch = launch(Role::Fresh);
            launch.nics[0].mtu = mtu;
            line(&launch).into_iter().find(|argument| argument.starts_with("virtio-net-pci")).unwrap()
        };
        assert!(device(None).ends_with(",romfile="), "the device that every VM has had");
        assert!(device(Some(9000)).ends_with(",romfile=,host_mtu=9000"));
    }

    #[test]
    fn a_contradictory_launch_is_refused() {
        assert_eq!(launch(Role::Fresh).check(), Ok(()));
        for mac in ["", "52:54:00:00:00", "52:54:00:00:00:0g", "52:54:00:00:00:01,x=y", "5254:00:00:00:01:1"] {
            let mut launch = launch(Role::Fresh);
            launch.nics[0].mac = mac.to_owned();
            assert!(launch.check().is_err(), "{mac}");
        }
        for serial in ["", "a b", "a,readonly=on", "012345678901234567890"] {
            let mut launch = launch(Role::Fresh);
            launch.disks[0].serial = serial.to_owned();
            assert!(launch.check().is_err(), "{serial}");
        }
        assert!(
            Launch { boot: Boot::Disk, disks: Vec::new(), ..launch(Role::Fresh) }.check().is_err(),
            "boots nothing"
        );
        assert!(Launch { memory_bytes: 32 << 20, ..launch(Role::Fresh) }.check().is_err(), "not the file's size");
    }
}
