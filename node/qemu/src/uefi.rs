//! UEFI firmware: the code that a host has, and what its variables begin as.
//!
//! Read once, when the daemon starts, into a sealed memory file that every QEMU inherits: what nodes are told of it stays true when a
//! package is upgraded under a running daemon. Its variables are not here, but on a volume of each VM ([`crate::FirmwareFd`]).

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;
use bytes::Bytes;
use rustix::fs::{MemfdFlags, SealFlags};

/// The code, and the variables of a machine that is new, as Debian's package `ovmf` calls them: 4 MiB in all, without secure boot, which
/// would need a machine with system management mode.
const CODE: &str = "OVMF_CODE_4M.fd";
const VARIABLES: &str = "OVMF_VARS_4M.fd";

/// A firmware larger than this is a mistake, and more than QEMU maps. 8 MiB.
const FIRMWARE_BYTES_MAX: u64 = 8 << 20;
/// What flash is made of and mapped in, in bytes.
const FLASH_BLOCK_BYTES: usize = 4096;
/// Bytes of a digest that are told: enough to tell builds apart.
const TOLD_BYTES: usize = 8;

/// Where the four bytes are by which a volume of a firmware's (its variables among them) is known, and which.
const MAGIC_AT: usize = 40;
const MAGIC: &[u8] = b"_FVH";

/// A firmware that guests can boot by.
#[derive(Debug)]
pub struct Uefi {
    code: OwnedFd,
    variables: Bytes,
    build: String,
}

/// There is no firmware to be had.
#[derive(Debug, thiserror::Error)]
pub enum UefiError {
    /// A file of it cannot be read.
    #[error("`{}` cannot be read ({source}), which the package ovmf has", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file of it is something else.
    #[error("`{}` is no UEFI firmware: {why}", path.display())]
    Odd {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Uefi {
    /// Reads the firmware in a directory.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn read(directory: &Path) -> Result<Self, UefiError> {
        let (code, variables) = (directory.join(CODE), directory.join(VARIABLES));
        let (code_bytes, variables_bytes) = (whole(&code)?, whole(&variables)?);
        if !are_variables(&variables_bytes) {
            return Err(UefiError::Odd { path: variables, why: "it holds no variables" });
        }
        let mut both = digest::Context::new(&digest::SHA256);
        both.update(&code_bytes);
        both.update(&variables_bytes);
        let mut build = String::new();
        for byte in both.finish().as_ref().iter().take(TOLD_BYTES) {
            // Writing to a string does not fail.
            let _ = write!(build, "{byte:02x}");
        }
        let code = sealed(&code_bytes).map_err(|source| UefiError::Read { path: code, source })?;
        Ok(Self { code, variables: variables_bytes.into(), build })
    }

    /// By which two hosts know whether they have the same: part of a digest of code and variables.
    #[must_use]
    pub fn build(&self) -> &str {
        &self.build
    }

    /// The variables of a machine that is new; those of every machine are as long.
    #[must_use]
    pub fn variables(&self) -> Bytes {
        self.variables.clone()
    }

    /// The code, for a machine.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn code(&self) -> io::Result<OwnedFd> {
        self.code.try_clone()
    }
}

/// Whether these bytes begin as variables of a firmware do.
#[must_use]
pub fn are_variables(bytes: &[u8]) -> bool {
    bytes.get(MAGIC_AT..).is_some_and(|rest| rest.starts_with(MAGIC))
}

fn whole(path: &Path) -> Result<Vec<u8>, UefiError> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(FIRMWARE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| UefiError::Read { path: path.to_owned(), source })?;
    let odd = |why| Err(UefiError::Odd { path: path.to_owned(), why });
    match bytes.len() {
        0 => odd("it is empty"),
        length if length as u64 > FIRMWARE_BYTES_MAX => odd("it is larger than 8 MiB"),
        length if !length.is_multiple_of(FLASH_BLOCK_BYTES) => odd("its size is no multiple of 4 KiB"),
        _ => Ok(bytes),
    }
}

/// A memory file with these bytes, which nobody can change.
fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let copy = rustix::fs::memfd_create("pollux-uefi", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut copy = File::from(copy);
    copy.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Variables of so many bytes.
    fn variables(bytes: usize) -> Vec<u8> {
        let mut variables = vec![0xff; bytes];
        variables[MAGIC_AT..MAGIC_AT + MAGIC.len()].copy_from_slice(MAGIC);
        variables
    }

    fn host(code: &[u8], variables: &[u8]) -> (tempfile::TempDir, Result<Uefi, UefiError>) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(CODE), code).unwrap();
        std::fs::write(directory.path().join(VARIABLES), variables).unwrap();
        let read = Uefi::read(directory.path());
        (directory, read)
    }

    #[test]
    fn two_hosts_know_whether_they_have_the_same() {
        let build = |code: u8| host(&[code; 8192], &variables(4096)).1.unwrap().build().to_owned();
        assert_eq!(build(1), build(1));
        assert_ne!(build(1), build(2));
        let (_, other) = host(&[1; 8192], &variables(8192));
        assert_ne!(build(1), other.unwrap().build(), "other variables at first");
    }

    #[test]
    fn what_was_read_stays_when_the_files_change() {
        let (directory, uefi) = host(&[1; 8192], &variables(4096));
        let uefi = uefi.unwrap();
        std::fs::write(directory.path().join(CODE), [2; 8192]).unwrap();
        let mut code = Vec::new();
        let mut file = File::from(uefi.code().unwrap());
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut code).unwrap();
        assert_eq!(code, [1; 8192]);
        assert!(File::from(uefi.code().unwrap()).write_all(&[3]).is_err(), "nobody can change it");
        assert_eq!(uefi.variables().len(), 4096);
    }

    #[test]
    fn what_is_no_firmware_is_named() {
        let nowhere = Uefi::read(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(nowhere.contains("/nonexistent/OVMF_CODE_4M.fd") && nowhere.contains("package ovmf"), "{nowhere}");
        for (code, variables, words) in [
            (&[][..], &variables(4096)[..], "OVMF_CODE_4M.fd` is no UEFI firmware: it is empty"),
            (&[1; 100], &variables(4096), "no multiple of 4 KiB"),
            (&[1; 9 << 20], &variables(4096), "larger than 8 MiB"),
            (&[1; 4096], &[0xff; 4096], "OVMF_VARS_4M.fd` is no UEFI firmware: it holds no variables"),
        ] {
            let why = host(code, variables).1.unwrap_err().to_string();
            assert!(why.contains(words), "{why}");
        }
    }
}
