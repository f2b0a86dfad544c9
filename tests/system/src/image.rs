//! The test guest's kernel and initial RAM disk, built by the project.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// What the test guest boots from.
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

fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}
