//! The command line of a peer's QEMU.
//!
//! The machine is the one that Pollux builds (`node/qemu/src/launch.rs`), flag for flag, down to the sandbox and the shared
//! memory file. Only what connects it to the world differs: control and console are sockets and files with a path, and the
//! network card is on a TAP of QEMU's own, as people have it.

use std::path::Path;

use super::{CPU, MACHINE, VCPUS};
use crate::stage::{MAC, Programs, Stage};

/// What the machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Source,
    Target,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

/// A machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine<'a> {
    pub(crate) memory_mib: u32,
    pub(crate) role: Role,
    /// With these it can encrypt a migration, under the name `tls`.
    pub(crate) credentials: Option<&'a Path>,
    /// A raw file that is its disk, by the name [`DISK`].
    pub(crate) disk: Option<&'a Path>,
}

/// The disk's name, for QMP.
pub(crate) const DISK: &str = "disk0";

/// The program and its arguments.
pub(super) fn line(programs: &Programs, machine: &Machine<'_>, tap: &str, qmp: &Path, console: &Path) -> Vec<String> {
    let Machine { memory_mib, role, credentials, disk } = *machine;
    let mut line = vec![programs.qemu.to_string_lossy().into_owned()];
    let mut with = |flag: &str, value: String| line.extend([flag.to_owned(), value]);
    with("-name", "guest=bench".into());
    with("-display", "none".into());
    with("-nic", "none".into());
    with("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into());
    with("-machine", format!("{MACHINE},memory-backend=ram,suppress-vmdesc=on"));
    with("-accel", "tcg".into());
    with("-cpu", CPU.into());
    with("-smp", VCPUS.into());
    with("-m", format!("{memory_mib}M"));
    with("-object", format!("memory-backend-memfd,id=ram,share=on,size={memory_mib}M"));
    with("-global", "ICH9-LPC.disable_s3=1".into());
    with("-global", "ICH9-LPC.disable_s4=1".into());
    with("-rtc", "base=utc".into());
    with("-device", "pvpanic".into());
    with("-action", "panic=pause".into());
    with("-chardev", format!("socket,id=qmp,path={},server=on,wait=off", qmp.display()));
    with("-mon", "chardev=qmp,mode=control".into());
    with("-chardev", format!("file,id=console,path={}", console.display()));
    with("-serial", "chardev:console".into());
    with("-netdev", format!("tap,id=net0,ifname={tap},script=no,downscript=no,vhost=off"));
    with("-device", format!("virtio-net-pci,id=nic0,netdev=net0,mac={MAC},addr=0x8,romfile="));
    if let Some(disk) = disk {
        let file = disk.display();
        with("-blockdev", format!("driver=file,node-name=file0,filename={file},discard=unmap"));
        with("-blockdev", format!("driver=raw,node-name={DISK},file=file0,discard=unmap"));
        with("-device", format!("virtio-blk-pci,id=vd0,drive={DISK},addr=0x10,werror=stop,rerror=stop"));
    }
    with("-kernel", programs.kernel.to_string_lossy().into_owned());
    with("-initrd", programs.initrd.to_string_lossy().into_owned());
    with("-append", Stage::append());
    if let Some(credentials) = credentials {
        let endpoint = if role == Role::Source { "client" } else { "server" };
        let dir = credentials.display();
        with("-object", format!("tls-creds-x509,id=tls,dir={dir},endpoint={endpoint},verify-peer=on"));
    }
    if role == Role::Target {
        with("-incoming", "defer".into());
    }
    line.extend(["-nodefaults", "-no-user-config", "-no-shutdown"].map(str::to_owned));
    line
}
