//! What this host can do, found once when the daemon starts.

use std::path::Path;

use pollux_state::node::Facts;

/// Looks at the host. What cannot be found out is left empty, and said in the log.
pub(super) async fn gather(qemu: &Path) -> Facts {
    let version = match pollux_qemu::qemu_version(qemu).await {
        Ok(version) => version.build,
        Err(error) => {
            tracing::warn!(%error, "this node cannot run VMs");
            String::new()
        }
    };
    let bridges = pollux_net::bridges().unwrap_or_else(|error| {
        tracing::warn!(%error, "the bridges of this host cannot be listed");
        Vec::new()
    });
    Facts {
        version: env!("CARGO_PKG_VERSION").into(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        qemu: version,
        accelerator: if pollux_qemu::kvm_usable() { "kvm".into() } else { "tcg".into() },
        memory_mib: memory_mib(),
        processors: std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
        bridges,
        tracking_refused: pollux_memory::preflight().err().map(|error| error.to_string()).unwrap_or_default(),
        ..Facts::default()
    }
}

fn memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    u64::from(info.mem_unit).saturating_mul(info.totalram) >> 20
}

/// Which boot of this host this is: a number the kernel draws each time. Empty when it cannot be read, which equals no
/// other boot's (see [`crate::vm::Marks`]).
pub(super) fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
