//! Whether this host could run a VM now: asked by whoever is about to send it here. Every reason why not, at once.

use std::{collections::HashMap, path::Path, time::SystemTime};

use pollux_api::Obstacle;
use pollux_net::Carried;
use pollux_qemu::{AskError, Lack, what_is_missing};
use pollux_state::vm::{Nic, VmSpec};
use tokio::sync::Mutex;

use super::qemu::QemuHost;

/// Memory that a VM needs beside its guest's: QEMU's own, and what the daemon keeps for it, in MiB.
const OVERHEAD_MIB: u64 = 128;
/// What obstacles are about that a bridge with a small MTU is.
pub(crate) const MTU: &str = "mtu";
/// What obstacles are about that a missing UEFI firmware is.
pub(crate) const FIRMWARE: &str = "firmware";
/// Answers of QEMU that are remembered.
const ANSWERS_MAX: usize = 64;

impl QemuHost {
    /// Why this host could not run a VM of that description now.
    pub async fn obstacles(&self, spec: &VmSpec) -> Vec<Obstacle> {
        let mut found = Vec::new();
        for file in [&spec.kernel, &spec.initrd].into_iter().filter(|file| !file.is_empty()) {
            if let Err(error) = std::fs::File::open(Path::new(file)) {
                found.push(Obstacle::new("files", format!("{file} cannot be read there: {error}")));
            }
        }
        if let (Some(_), Err(why)) = (spec.firmware(), self.uefi()) {
            found.push(Obstacle::new(FIRMWARE, why));
        }
        found.extend(bridges(spec));
        found.extend(memory(spec));
        match self.of_qemu(spec).await {
            Ok(missing) => found.extend(missing),
            Err(error) => found.push(Obstacle::new("qemu", error.to_string())),
        }
        found
    }

    /// What this QEMU lacks. It is asked once for each build of it and each kind of machine.
    async fn of_qemu(&self, spec: &VmSpec) -> Result<Vec<Obstacle>, AskError> {
        let changed = std::fs::metadata(self.binary()).and_then(|file| file.modified()).ok();
        let key = (changed, spec.machine.clone(), spec.cpu.clone());
        let mut answers = self.answers.lock().await;
        if let Some(known) = answers.get(&key) {
            return Ok(known.clone());
        }
        let missing = what_is_missing(self.binary(), self.accelerator(), &spec.machine, &spec.cpu).await?;
        let missing: Vec<Obstacle> = missing
            .into_iter()
            .map(|lack| match lack {
                Lack::Machine(text) => Obstacle::new("machine", text),
                Lack::Cpu(text) => Obstacle::new("cpu", text),
            })
            .collect();
        if answers.len() >= ANSWERS_MAX {
            answers.clear();
        }
        answers.insert(key, missing.clone());
        Ok(missing)
    }
}

/// What QEMU has answered: by when its file was changed, machine type and CPU model.
pub(super) type Answers = Mutex<HashMap<(Option<SystemTime>, String, String), Vec<Obstacle>>>;

fn bridges(spec: &VmSpec) -> Vec<Obstacle> {
    let known = match pollux_net::bridges() {
        Ok(known) => known,
        Err(error) => return vec![Obstacle::new("network", format!("its bridges cannot be listed: {error}"))],
    };
    let obstacle = |nic: &Nic| {
        if !known.contains(&nic.bridge) {
            return Some(Obstacle::new("network", format!("it has no bridge {}", nic.bridge)));
        }
        match (nic.told_mtu()?, pollux_net::carried(&nic.bridge)) {
            (_, Err(error)) => {
                let text = format!("the ports of its bridge {} cannot be listed: {error}", nic.bridge);
                Some(Obstacle::new("network", text))
            }
            (told, Ok(Some(carried))) if carried.mtu < told => Some(narrow(nic, &carried)),
            (_, Ok(_)) => None,
        }
    };
    spec.nics.iter().filter_map(obstacle).collect()
}

fn narrow(nic: &Nic, carried: &Carried) -> Obstacle {
    let (Nic { bridge, mtu, .. }, Carried { mtu: has, by }) = (nic, carried);
    let place = if by == bridge { String::new() } else { format!(" (its port {by})") };
    Obstacle::new(
        MTU,
        format!("its bridge {bridge}{place} has an MTU of {has} bytes, and a network card of the VM {mtu}"),
    )
}

fn memory(spec: &VmSpec) -> Option<Obstacle> {
    let has = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_mib(&text))?;
    let needs = spec.memory_mib.saturating_add(OVERHEAD_MIB);
    (needs > has).then(|| {
        let text =
            format!("it has {has} MiB of memory to spare, and the VM needs {needs} MiB ({OVERHEAD_MIB} of it QEMU's)");
        Obstacle::new("memory", text)
    })
}

/// `MemAvailable`: what can be had without swapping.
fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_mib() {
        assert_eq!(available_mib("MemTotal: 8000000 kB\nMemAvailable:    2097152 kB\n"), Some(2048));
        assert_eq!(available_mib("MemTotal: 8000000 kB\n"), None);
    }
}
