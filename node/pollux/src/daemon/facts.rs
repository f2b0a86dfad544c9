//! What this host can do, found once when the daemon starts.

use pollux_state::node::{Facts, Tsc};

use crate::vm::qemu::QemuHost;

/// Looks at the host. What cannot be found out is left empty, and said in the log.
pub(super) async fn gather(host: &QemuHost, authority: bool) -> Facts {
    let version = match pollux_qemu::qemu_version(host.binary()).await {
        // Whole: a build that a distribution did not name is known by its number only.
        Ok(version) => version.to_string(),
        Err(error) => {
            tracing::warn!(%error, "this node cannot run VMs");
            String::new()
        }
    };
    let bridges = pollux_net::bridges().unwrap_or_else(|error| {
        tracing::warn!(%error, "the bridges of this host cannot be listed");
        Vec::new()
    });
    let mut facts = Facts {
        version: env!("CARGO_PKG_VERSION").into(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        qemu: version,
        accelerator: if pollux_qemu::kvm_usable() { "kvm".into() } else { "tcg".into() },
        memory_mib: memory_mib(),
        processors: std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
        bridges,
        tracking_refused: tracking_refused(host).await,
        ..Facts::default()
    };
    if let Err(error) = pollux_net::Fence::preflight().await {
        tracing::warn!(%error, "VMs with network cards cannot run here");
        facts = facts.with_lack("fence", &format!("VMs with network cards cannot run here: {error}"));
    }
    for (what, why) in host.lacks() {
        tracing::warn!(what, "{why}");
        facts = facts.with_lack(what, &why);
    }
    let mut facts = facts.with_authority(authority);
    match host.uefi() {
        Ok(build) => facts = facts.with_uefi(build),
        Err(why) => tracing::info!(why, "VMs cannot boot by UEFI here"),
    }
    match pollux_qemu::tsc().filter(|_| pollux_qemu::kvm_usable()) {
        Some((khz, scales)) => facts.with_tsc(Tsc { khz, scales }),
        None => facts,
    }
}

/// Why guests' writes cannot be tracked here: the kernel cannot do it, or does not let this daemon. Empty: they can.
async fn tracking_refused(host: &QemuHost) -> String {
    if let Err(refused) = pollux_memory::preflight() {
        return refused.to_string();
    }
    host.try_tracking().await.err().map(|refused| refused.0).unwrap_or_default()
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
