//! The TOML file a VM can be created from, where it lies.

use std::{
    fmt,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use pollux_api::file::{FILE_BYTES_MAX, VmFile};

use super::super::exit::Failure;

/// Read a file. Relative paths in it start beside it.
pub(crate) fn load(path: &Path) -> Result<VmFile, Failure> {
    let cannot = |error: &dyn fmt::Display| Failure::usage(format!("cannot read {}: {error}", path.display()));
    let file = File::open(path).map_err(|error| cannot(&error))?;
    // What says nothing of its size, such as a pipe or a device, is not read further either.
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| cannot(&error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(cannot(&format_args!("it has more bytes than a VM needs ({FILE_BYTES_MAX})")));
    }
    let text = String::from_utf8(bytes).map_err(|error| cannot(&error))?;
    let beside = std::path::absolute(path).map_err(|error| cannot(&error))?;
    parse(&text, path, beside.parent().unwrap_or(Path::new("/")))
}

fn parse(text: &str, path: &Path, beside: &Path) -> Result<VmFile, Failure> {
    let mut file = VmFile::parse(text).map_err(|error| {
        Failure::usage(format!("{} does not describe a VM: {error}", path.display()))
            .todo("`pollux vm create --help` shows an example")
    })?;
    for (what, value) in [("kernel", &mut file.kernel), ("initrd", &mut file.initrd)] {
        if let Some(relative) = value.as_mut().filter(|value| !value.is_empty()) {
            *relative = absolute(&beside.join(&*relative), what)?;
        }
    }
    Ok(file)
}

/// A path without `.` and, as far as text can tell, as it is written: links are the nodes' business, each has its own.
pub(crate) fn absolute(path: &Path, what: &str) -> Result<String, Failure> {
    let path: PathBuf = std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("{what}: {} is no path: {error}", path.display())))?;
    path.into_os_string()
        .into_string()
        .map_err(|path| Failure::usage(format!("{what}: {} is not UTF-8; choose another path", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<VmFile, Failure> {
        super::parse(text, Path::new("vm.toml"), Path::new("/srv/vms"))
    }

    #[test]
    fn a_relative_path_starts_beside_the_file() {
        let file = parse("kernel = \"/boot/vmlinuz\"\ninitrd = \"web.cpio.gz\"").unwrap();
        assert_eq!(file.kernel.as_deref(), Some("/boot/vmlinuz"));
        assert_eq!(file.initrd.as_deref(), Some("/srv/vms/web.cpio.gz"));
        assert_eq!(parse("initrd = \"\"").unwrap().initrd.as_deref(), Some(""), "none is none");
    }

    #[test]
    fn a_mistake_is_shown_where_it_is() {
        let failure = parse("name = \"web\"\nmemmory = 512\n").unwrap_err();
        insta::assert_snapshot!(failure.message, @r"
        vm.toml does not describe a VM: TOML parse error at line 2, column 1
          |
        2 | memmory = 512
          | ^^^^^^^
        unknown field `memmory`, expected one of `name`, `memory`, `vcpus`, `kernel`, `initrd`, `append`, `nic`, `volumes`, `firmware`, `firmware-vars`, `machine`, `cpu`, `autostart`, `start`, `node`
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
    fn a_file_without_end_is_not_read_to_it() {
        let failure = load(Path::new("/dev/zero")).unwrap_err();
        assert!(failure.message.contains("more bytes than a VM needs"), "{failure}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let failure = load(Path::new("/nonexistent/vm.toml")).unwrap_err();
        assert!(failure.message.contains("/nonexistent/vm.toml"), "{failure}");
    }
}
