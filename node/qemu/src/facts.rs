//! What this node's QEMU and processor can do, for the preflight.

use std::{fmt, io, path::Path, path::PathBuf, process::Stdio, time::Duration};

/// How long QEMU may take to say its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// A QEMU could not be asked for its version.
#[derive(Debug, thiserror::Error)]
pub enum FactError {
    /// It could not be run.
    #[error("cannot run `{}`; is QEMU installed?", binary.display())]
    Run {
        /// The program.
        binary: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It did not answer.
    #[error("`{}` did not say its version within {VERSION_DEADLINE:?}", binary.display())]
    Silent {
        /// The program.
        binary: PathBuf,
    },
    /// It said something else.
    #[error("`{}` is no QEMU: it calls itself `{said}`", binary.display())]
    NotQemu {
        /// The program.
        binary: PathBuf,
        /// Its first line.
        said: String,
    },
}

/// The version of a QEMU. The order is that of releases; `build` distinguishes builds of the same release.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    /// 10 in 10.0.2.
    pub major: u32,
    /// 0 in 10.0.2.
    pub minor: u32,
    /// 2 in 10.0.2.
    pub micro: u32,
    /// What the distribution adds, may be empty.
    pub build: String,
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, micro, build } = self;
        write!(f, "{major}.{minor}.{micro}")?;
        if build.is_empty() { Ok(()) } else { write!(f, " ({build})") }
    }
}

impl QemuVersion {
    /// From the first line of `--version`.
    fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("QEMU emulator version ")?;
        let (number, build) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut numbers = number.splitn(3, '.').map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self {
            major: next()?,
            minor: next()?,
            micro: next()?,
            build: build.trim().trim_start_matches('(').trim_end_matches(')').to_owned(),
        })
    }
}

/// Asks a QEMU for its version.
///
/// # Errors
/// When it cannot be run, says nothing or is no QEMU.
pub async fn qemu_version(binary: &Path) -> Result<QemuVersion, FactError> {
    let run = |source| FactError::Run { binary: binary.to_owned(), source };
    let mut command = tokio::process::Command::new(binary);
    command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_DEADLINE, command.output())
        .await
        .map_err(|_| FactError::Silent { binary: binary.to_owned() })?
        .map_err(run)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    QemuVersion::parse(line).ok_or_else(|| FactError::NotQemu { binary: binary.to_owned(), said: line.to_owned() })
}

/// Does KVM work here? Only when `/dev/kvm` opens *and* the processor shows virtualisation: some hosts offer the device
/// without the means.
#[must_use]
pub fn kvm_usable() -> bool {
    let opens = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    opens && std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpuinfo| virtualises(&cpuinfo))
}

/// How the processors count time for guests of KVM: kHz, and whether they can be made to count otherwise. `None`: KVM does not
/// say.
#[must_use]
pub fn tsc() -> Option<(u32, bool)> {
    let kvm = kvm_ioctls::Kvm::new().ok()?;
    let scales = kvm.check_extension(kvm_ioctls::Cap::TscControl);
    // The frequency is told of a processor, so one is made and dropped again.
    let khz = kvm.create_vm().ok()?.create_vcpu(0).ok()?.get_tsc_khz().ok()?;
    Some((khz, scales))
}

fn virtualises(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        let debian = QemuVersion::parse("QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u14)").unwrap();
        let plain = QemuVersion::parse("QEMU emulator version 10.0.2").unwrap();
        assert_eq!((debian.major, debian.minor, debian.micro), (7, 2, 17));
        assert_eq!(debian.build, "Debian 1:7.2+dfsg-7+deb12u14");
        assert!(debian < plain && plain.build.is_empty());
        for other in ["", "QEMU emulator version", "QEMU emulator version x.y.z", "bash 5"] {
            assert_eq!(QemuVersion::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_processor_virtualises_by_its_own_flag_only() {
        assert!(virtualises("processor: 0\nflags\t\t: fpu svm lm\n"));
        assert!(virtualises("flags : vmx\n"));
        assert!(!virtualises("flags : fpu vmx_extra\nbugs : svm\n"));
    }

    #[tokio::test]
    async fn what_is_no_qemu_is_named() {
        assert!(matches!(qemu_version(Path::new("/nonexistent/qemu")).await, Err(FactError::Run { .. })));
        assert!(matches!(qemu_version(Path::new("/bin/cat")).await, Err(FactError::NotQemu { .. })));
    }
}
