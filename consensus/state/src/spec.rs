//! What a node's name, an address and a VM's specification must look like. Checked here, where every node comes to the same
//! answer, and of use to whoever wants to say "no" before asking.

use alloc::{format, string::String};
use core::net::SocketAddr;

use crate::{
    limits::{
        APPEND_MAX, BRIDGE_MAX, CPU_MAX, DISKS_MAX, MACHINE_MAX, MEMORY_MIB, NAME_MAX, NIC_MTU, NICS_MAX, PATH_MAX,
        VCPUS, VOLUME_BLOCK_BYTES, VOLUME_BYTES,
    },
    refusal::Refusal,
    text::clip,
    vm::{DiskRole, Nic, VmSpec},
};

impl VmSpec {
    /// Whether it describes a VM that could exist.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] with the first field that is wrong, and what would be right.
    pub fn validate(&self) -> Result<(), Refusal> {
        check_name("name", &self.name)?;
        if !MEMORY_MIB.contains(&self.memory_mib) {
            let (least, most) = (MEMORY_MIB.start(), MEMORY_MIB.end());
            return Err(invalid("memory", format!("{} MiB; give {least} to {most} MiB", self.memory_mib)));
        }
        if !VCPUS.contains(&self.vcpus) {
            return Err(invalid("vcpus", format!("{}; give {} to {}", self.vcpus, VCPUS.start(), VCPUS.end())));
        }
        self.check_boot()?;
        if self.append.len() > APPEND_MAX || self.append.chars().any(char::is_control) {
            return Err(invalid("append", format!("give one line of at most {APPEND_MAX} bytes")));
        }
        check_qemu_word("machine", &self.machine, MACHINE_MAX, "-._")?;
        check_qemu_word("cpu", &self.cpu, CPU_MAX, "-._+,=")?;
        if self.nics.len() > NICS_MAX {
            return Err(invalid("nics", format!("{} of them; a VM has at most {NICS_MAX}", self.nics.len())));
        }
        for (place, nic) in self.nics.iter().enumerate() {
            nic.validate()?;
            if self.nics.iter().take(place).any(|other| other.mac == nic.mac) {
                return Err(invalid("nics", format!("{} stands there twice; give each card its own", nic.mac)));
            }
        }
        if self.disks.len() > DISKS_MAX {
            return Err(invalid(
                "disks",
                format!(
                    "{} of them; a VM has at most {DISKS_MAX}, its firmware's variables among them",
                    self.disks.len()
                ),
            ));
        }
        for (place, disk) in self.disks.iter().enumerate() {
            if self.disks.iter().take(place).any(|other| other.volume == disk.volume) {
                return Err(invalid("disks", format!("{} stands there twice; give it once", disk.volume)));
            }
        }
        if self.disks.iter().filter(|disk| disk.role == DiskRole::Firmware).count() > 1 {
            return Err(invalid("firmware", "its variables are in one volume; give one".into()));
        }
        Ok(())
    }

    /// From a kernel that its nodes have, or by the firmware from its first volume.
    fn check_boot(&self) -> Result<(), Refusal> {
        if !self.kernel.is_empty() {
            if self.firmware().is_some() {
                let why = "UEFI boots from a volume, and a kernel is given; leave one of them away";
                return Err(invalid("firmware", why.into()));
            }
            check_path("kernel", &self.kernel, PATH_MAX)?;
            return if self.initrd.is_empty() { Ok(()) } else { check_path("initrd", &self.initrd, PATH_MAX) };
        }
        if self.data_disks().next().is_none() {
            let why = format!("give an absolute path of at most {PATH_MAX} bytes, or a volume to boot from");
            return Err(invalid("kernel", why));
        }
        if !self.initrd.is_empty() || !self.append.is_empty() {
            let what = if self.initrd.is_empty() { "append" } else { "initrd" };
            return Err(invalid(
                what,
                "it is for a kernel, and none is given; a VM that boots from a volume has its own".into(),
            ));
        }
        Ok(())
    }
}

impl Nic {
    fn validate(&self) -> Result<(), Refusal> {
        let [first, ..] = self.mac.0;
        if first & 1 == 1 || self.mac.0 == [0; 6] {
            let why = format!("{} is no card's own address; give one whose first byte is even", self.mac);
            return Err(invalid("nics", why));
        }
        let fits = !self.bridge.is_empty() && self.bridge.len() <= BRIDGE_MAX;
        if !fits || !self.bridge.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':') {
            let why = format!("{:?} is no bridge; give the name of an interface", clip(&self.bridge, NAME_MAX));
            return Err(invalid("nics", why));
        }
        if !NIC_MTU.contains(&self.mtu) {
            let (least, most) = (NIC_MTU.start(), NIC_MTU.end());
            return Err(invalid("mtu", format!("{} bytes; give {least} to {most}", self.mtu)));
        }
        Ok(())
    }
}

/// Whether a node, a VM, a pool or a volume may be called so: 1 to [`NAME_MAX`] of `a-z 0-9 -`, starting with a letter.
///
/// # Errors
/// [`Refusal::Invalid`] for the field `what`.
pub fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    let starts = name.starts_with(|letter: char| letter.is_ascii_lowercase());
    let letters = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if starts && letters && name.len() <= NAME_MAX {
        return Ok(());
    }
    let name = clip(name, NAME_MAX);
    Err(invalid(what, format!("{name:?}; give 1 to {NAME_MAX} of a-z 0-9 -, starting with a letter")))
}

/// Whether others can reach a node there.
///
/// # Errors
/// [`Refusal::Invalid`] when it is a wildcard.
pub fn check_address(address: SocketAddr) -> Result<(), Refusal> {
    if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
        return Err(invalid("address", format!("{address}; give the address and port at which other nodes reach it")));
    }
    Ok(())
}

/// Whether a path of at most `max` bytes is one that means the same to everybody.
pub(crate) fn check_path(what: &str, path: &str, max: usize) -> Result<(), Refusal> {
    if !path.starts_with('/') || path.len() > max || path.chars().any(char::is_control) {
        return Err(invalid(what, format!("give an absolute path of at most {max} bytes")));
    }
    Ok(())
}

/// Whether a volume may have so many bytes.
///
/// # Errors
/// [`Refusal::Invalid`] with what would be right.
pub fn check_size(size: u64) -> Result<(), Refusal> {
    if VOLUME_BYTES.contains(&size) && size.is_multiple_of(VOLUME_BLOCK_BYTES) {
        return Ok(());
    }
    let (least, most) = (VOLUME_BYTES.start() >> 20, VOLUME_BYTES.end() >> 40);
    let why = format!("{size} bytes; give a multiple of {VOLUME_BLOCK_BYTES}, {least} MiB to {most} TiB");
    Err(invalid("size", why))
}

/// A word that becomes part of QEMU's command line: no more than the letters such words are made of, so that it cannot
/// bring another option with it.
fn check_qemu_word(what: &str, word: &str, max: usize, punctuation: &str) -> Result<(), Refusal> {
    let letters = word.chars().all(|letter| letter.is_ascii_alphanumeric() || punctuation.contains(letter));
    let starts = word.starts_with(|letter: char| letter.is_ascii_alphanumeric());
    if !starts || !letters || word.len() > max {
        return Err(invalid(what, format!("give 1 to {max} of letters, digits and {punctuation}")));
    }
    Ok(())
}

fn invalid(what: &str, why: String) -> Refusal {
    Refusal::invalid(what, why)
}
