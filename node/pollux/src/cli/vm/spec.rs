//! The TOML file a VM can be created from.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};

use crate::api::types::CreateNic;

use super::super::exit::Failure;

/// Largest file read, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What a file may say. All of it may be left out or given by flags instead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmFile {
    pub(crate) name: Option<String>,
    /// MiB, or text with a unit.
    #[serde(default, deserialize_with = "memory")]
    pub(crate) memory: Option<u64>,
    pub(crate) vcpus: Option<u32>,
    pub(crate) kernel: Option<String>,
    pub(crate) initrd: Option<String>,
    pub(crate) append: Option<String>,
    #[serde(default)]
    pub(crate) nic: Vec<CreateNic>,
    pub(crate) machine: Option<String>,
    pub(crate) cpu: Option<String>,
    pub(crate) autostart: Option<bool>,
    pub(crate) start: Option<bool>,
    pub(crate) node: Option<String>,
}

impl VmFile {
    /// Read a file. Relative paths in it start beside it.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        let cannot = |error: &dyn fmt::Display| Failure::usage(format!("cannot read {}: {error}", path.display()));
        let size = std::fs::metadata(path).map_err(|error| cannot(&error))?.len();
        if size > FILE_BYTES_MAX {
            return Err(cannot(&format_args!("{size} bytes are more than a VM needs ({FILE_BYTES_MAX})")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| cannot(&error))?;
        let beside = std::path::absolute(path).map_err(|error| cannot(&error))?;
        Self::parse(&text, path, beside.parent().unwrap_or(Path::new("/")))
    }

    fn parse(text: &str, path: &Path, beside: &Path) -> Result<Self, Failure> {
        let mut file: Self = toml::from_str(text).map_err(|error| {
            Failure::usage(format!("{} does not describe a VM: {}", path.display(), error.to_string().trim_end()))
                .todo("`pollux vm create --help` shows an example")
        })?;
        for (what, value) in [("kernel", &mut file.kernel), ("initrd", &mut file.initrd)] {
            if let Some(relative) = value.as_mut().filter(|value| !value.is_empty()) {
                *relative = absolute(&beside.join(&*relative), what)?;
            }
        }
        Ok(file)
    }
}

/// A path without `.` and, as far as text can tell, as it is written: links are the nodes' business, each has its own.
pub(crate) fn absolute(path: &Path, what: &str) -> Result<String, Failure> {
    let path: PathBuf = std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("{what}: {} is no path: {error}", path.display())))?;
    path.into_os_string()
        .into_string()
        .map_err(|path| Failure::usage(format!("{what}: {} is not UTF-8; choose another path", path.display())))
}

/// An amount of memory in MiB: `512`, `512M`, `512MiB`, `2G`, `2GiB`.
pub(crate) fn memory_mib(text: &str) -> Result<u64, String> {
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

    fn parse(text: &str) -> Result<VmFile, Failure> {
        VmFile::parse(text, Path::new("vm.toml"), Path::new("/srv/vms"))
    }

    #[test]
    fn a_file_says_what_a_vm_is() {
        let file = parse(
            r#"
            name = "web"
            memory = "2G"
            vcpus = 2
            kernel = "/boot/vmlinuz"
            initrd = "web.cpio.gz"
            append = "console=ttyS0"
            autostart = false
            [[nic]]
            bridge = "br0"
            [[nic]]
            bridge = "br1"
            mac = "52:54:00:00:00:01"
            "#,
        )
        .unwrap();
        assert_eq!((file.memory, file.vcpus, file.autostart, file.start), (Some(2048), Some(2), Some(false), None));
        assert_eq!(file.kernel.as_deref(), Some("/boot/vmlinuz"));
        assert_eq!(file.initrd.as_deref(), Some("/srv/vms/web.cpio.gz"), "a relative path starts beside the file");
        assert_eq!(file.nic.len(), 2);
    }

    #[test]
    fn a_mistake_is_shown_where_it_is() {
        let failure = parse("name = \"web\"\nmemmory = 512\n").unwrap_err();
        insta::assert_snapshot!(failure.message, @r"
        vm.toml does not describe a VM: TOML parse error at line 2, column 1
          |
        2 | memmory = 512
          | ^^^^^^^
        unknown field `memmory`, expected one of `name`, `memory`, `vcpus`, `kernel`, `initrd`, `append`, `nic`, `machine`, `cpu`, `autostart`, `start`, `node`
        ");

        let failure = parse("memory = \"lots\"").unwrap_err();
        insta::assert_snapshot!(failure.message, @r#"
        vm.toml does not describe a VM: TOML parse error at line 1, column 10
          |
        1 | memory = "lots"
          |          ^^^^^^
        lots is not an amount of memory; write it as 512M or 2G
        "#);

        let failure = parse("name = web").unwrap_err();
        assert!(failure.message.contains("line 1"), "{failure}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let failure = VmFile::load(Path::new("/nonexistent/vm.toml")).unwrap_err();
        assert!(failure.message.contains("/nonexistent/vm.toml"), "{failure}");
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
