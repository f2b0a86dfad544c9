//! The figures of pools and of volumes in use. Which there are changes: they are written out as they are found, for the recorder
//! would go on showing what is not there any more.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    ALL, POOL_FREE, POOL_READY, POOL_SIZE, POOL_USED, VOLUME_COMPARED, VOLUME_DIFFERS, VOLUME_IN_SYNC, VOLUME_LACKS,
    VOLUME_OPEN, VOLUME_REPLICAS, VOLUME_SIZE, VOLUME_TROUBLED, VOLUMES,
};

/// What a volume's health can be, in the API's words.
pub(crate) const HEALTHS: [&str; 4] = ["making", "ready", "degraded", "failed"];

/// A volume that this node uses.
#[derive(Debug, Clone, Default)]
pub(crate) struct VolumeSample {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) replicas: u64,
    pub(crate) in_sync: u64,
    pub(crate) lacks: u64,
    pub(crate) open: u64,
    pub(crate) troubled: bool,
    /// Bytes, and when in milliseconds.
    pub(crate) compared: (u64, u64),
}

/// A pool of this node: size, free, used; `None`: it cannot be used.
#[derive(Debug, Clone, Default)]
pub(crate) struct PoolSample {
    pub(crate) name: String,
    pub(crate) space: Option<(u64, u64, u64)>,
}

/// What one figure is of something; `None`: it is not known.
type Figure<T> = (&'static str, fn(&T) -> Option<u64>);

/// Volumes of the cluster, by health.
pub(super) fn set_healths(found: &BTreeMap<&'static str, u64>) {
    for health in HEALTHS {
        let count = found.get(health).copied().unwrap_or_default();
        ::metrics::gauge!(VOLUMES, "health" => health).set(super::sample::float(count));
    }
}

/// In the text form of Prometheus. Names of volumes and pools have no letter that would have to be escaped.
pub(super) fn text(volumes: &[VolumeSample], pools: &[PoolSample]) -> String {
    let mut text = String::new();
    let of_volume: [Figure<VolumeSample>; 8] = [
        (VOLUME_SIZE, |volume| Some(volume.size)),
        (VOLUME_IN_SYNC, |volume| Some(volume.in_sync)),
        (VOLUME_REPLICAS, |volume| Some(volume.replicas)),
        (VOLUME_LACKS, |volume| Some(volume.lacks)),
        (VOLUME_OPEN, |volume| Some(volume.open)),
        (VOLUME_TROUBLED, |volume| Some(u64::from(volume.troubled))),
        (VOLUME_DIFFERS, |volume| Some(volume.compared.0)),
        (VOLUME_COMPARED, |volume| Some(volume.compared.1 / 1_000)),
    ];
    for (name, value) in of_volume {
        family(&mut text, name, "volume", volumes.iter().filter_map(|volume| Some((&volume.name, value(volume)?))));
    }
    let of_pool: [Figure<PoolSample>; 4] = [
        (POOL_SIZE, |pool| Some(pool.space?.0)),
        (POOL_FREE, |pool| Some(pool.space?.1)),
        (POOL_USED, |pool| Some(pool.space?.2)),
        (POOL_READY, |pool| Some(u64::from(pool.space.is_some()))),
    ];
    for (name, value) in of_pool {
        family(&mut text, name, "pool", pools.iter().filter_map(|pool| Some((&pool.name, value(pool)?))));
    }
    text
}

fn family<'a>(text: &mut String, name: &str, label: &str, values: impl Iterator<Item = (&'a String, u64)>) {
    let help = ALL.iter().find(|metric| metric.name == name).map(|metric| metric.help).unwrap_or_default();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (of, value) in values {
        let _ = writeln!(text, "{name}{{{label}=\"{of}\"}} {value}");
    }
    text.push('\n');
}
