//! A VM as a TOML file describes it.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};

use crate::{CreateNic, Firmware};

/// Largest file read, in bytes.
pub const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What a file may say. All of it may be left out, and said where the VM is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmFile {
    /// The VM's name.
    pub name: Option<String>,
    /// Guest memory: MiB, or text with a unit.
    #[serde(default, deserialize_with = "memory")]
    pub memory: Option<u64>,
    /// Processors.
    pub vcpus: Option<u32>,
    /// Kernel image: a path, as it stands there.
    pub kernel: Option<String>,
    /// Initial RAM disk: a path, as it stands there; empty: none.
    pub initrd: Option<String>,
    /// Kernel command line.
    pub append: Option<String>,
    /// Network cards.
    #[serde(default)]
    pub nic: Vec<CreateNic>,
    /// Volumes, by name; without a kernel the firmware boots from the first.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// What boots the first volume: `bios` or `uefi`.
    pub firmware: Option<Firmware>,
    /// The volume that keeps the variables of UEFI firmware.
    #[serde(rename = "firmware-vars")]
    pub firmware_vars: Option<String>,
    /// QEMU machine type with its version.
    pub machine: Option<String>,
    /// QEMU CPU model.
    pub cpu: Option<String>,
    /// Start it again by itself when its node's daemon ended.
    pub autostart: Option<bool>,
    /// Start it now.
    pub start: Option<bool>,
    /// Where.
    pub node: Option<String>,
}

/// Text that does not describe a VM: where, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadFile(String);

impl VmFile {
    /// Out of a file's text.
    ///
    /// # Errors
    /// When it does not describe a VM.
    pub fn parse(text: &str) -> Result<Self, BadFile> {
        toml::from_str(text).map_err(|error| BadFile(error.to_string().trim_end().to_owned()))
    }
}

/// An amount of memory in MiB: `512`, `512M`, `512MiB`, `2G`, `2GiB`.
///
/// # Errors
/// When it is none, in words.
pub fn memory_mib(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim() {
        "" | "M" | "MiB" => 1,
        "G" | "GiB" => 1024,
        "T" | "TiB" => 1024 * 1024,
        _ => return Err(format!("{text} is not an amount of memory; write it as 512M or 2G")),
    };
    let number: u64 =
        number.parse().map_err(|_| format!("{text} is not an amount of memory; write it as 512M or 2G"))?;
    number.checked_mul(scale).ok_or_else(|| format!("{text} is more memory than there is"))
}

fn memory<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u64>, D::Error> {
    struct Memory;

    impl Visitor<'_> for Memory {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an amount of memory such as 512 (MiB) or \"2G\"")
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<u64, E> {
            u64::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<u64, E> {
            Ok(value)
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<u64, E> {
            memory_mib(value).map_err(E::custom)
        }
    }

    input.deserialize_any(Memory).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_a_vm_is() {
        let file = VmFile::parse(
            r#"
            name = "web"
            memory = "2G"
            vcpus = 2
            kernel = "/boot/vmlinuz"
            initrd = "web.cpio.gz"
            append = "console=ttyS0"
            autostart = false
            volumes = ["root", "data"]
            [[nic]]
            bridge = "br0"
            [[nic]]
            bridge = "br1"
            mac = "52:54:00:00:00:01"
            mtu = 9000
            "#,
        )
        .unwrap();
        assert_eq!((file.memory, file.vcpus, file.autostart, file.start), (Some(2048), Some(2), Some(false), None));
        assert_eq!(file.kernel.as_deref(), Some("/boot/vmlinuz"));
        assert_eq!(file.initrd.as_deref(), Some("web.cpio.gz"), "a path stays as it is written");
        assert_eq!(file.volumes, ["root", "data"]);
        assert_eq!(file.nic.iter().map(|nic| nic.mtu).collect::<Vec<_>>(), [None, Some(9000)]);
    }

    #[test]
    fn memory_takes_mib_or_a_unit() {
        let amounts = ["512", "512M", "512 MiB", "2G", "1TiB"].map(memory_mib);
        assert_eq!(amounts, [Ok(512), Ok(512), Ok(512), Ok(2048), Ok(1 << 20)]);
        for wrong in ["", "M", "-1", "1.5G", "2GB", "99999999999999999999", "18446744073709551615T"] {
            assert!(memory_mib(wrong).is_err(), "{wrong}");
        }
    }
}
