//! What the test guests boot from, built by the project.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// What the small guest boots from.
#[derive(Clone, Debug)]
pub struct Image {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
}

impl Image {
    /// The image as it is to be now: built if it is missing or older than what it is made from, otherwise left alone.
    ///
    /// # Panics
    /// If it cannot be built.
    #[must_use]
    pub fn ready() -> Self {
        let guest = repository().join("deploy/guest");
        let built = Command::new(guest.join("build")).status();
        assert!(built.as_ref().is_ok_and(std::process::ExitStatus::success), "deploy/guest/build failed: {built:?}");
        Self { kernel: guest.join("out/vmlinuz"), initrd: guest.join("out/initrd.img") }
    }
}

/// Puts a raw disk there that the Debian guest boots from by itself, with these words on its kernel's command line. Takes minutes
/// where it was never built before, and seconds afterwards.
///
/// # Panics
/// If it cannot be built, or not be put there.
pub fn debian_disk(at: &Path, words: &str) {
    let made = Command::new(repository().join("deploy/guest-debian")).arg(at).args(["--append", words]).status();
    assert!(made.as_ref().is_ok_and(std::process::ExitStatus::success), "deploy/guest-debian failed: {made:?}");
}

/// Puts a raw disk there that the small guest boots from by UEFI, with these words on its kernel's command line.
///
/// # Panics
/// If it cannot be put there.
pub fn uefi_disk(at: &Path, words: &str) {
    let made = Command::new(repository().join("deploy/guest/esp")).arg(at).args(["--append", words]).status();
    assert!(made.as_ref().is_ok_and(std::process::ExitStatus::success), "deploy/guest/esp failed: {made:?}");
}

fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}
