//! QEMU's own migration, set up as its documentation has it: two QEMUs, one on each node, driven over QMP.

use std::{path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::{
    BUDGET_MS, Mover, certificates,
    command::{Machine, Role},
    qemu::{Qemu, plug, unplug},
};
use crate::{
    case::Case,
    stage::{Stage, node_address},
};

/// Where the target listens, on the network between the nodes.
const PORT: u16 = 4444;
/// Connections that carry pages with multifd: one for each processor, within these.
const CHANNELS: std::ops::RangeInclusive<usize> = 2..=8;
/// Bytes per second: as fast as it goes.
const BANDWIDTH_MAX: i64 = i64::MAX;
/// Longest time a move may take.
const MOVE_MAX: Duration = Duration::from_secs(180);

/// How the peers' memory travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// One plain TCP connection, QEMU's default.
    Tcp,
    /// Several connections, encrypted. Pages are not compressed, which is QEMU's default too.
    MultifdTls,
}

/// A guest in one QEMU, and the other QEMU once it moves.
pub(super) struct Pair<'a> {
    stage: &'a Stage,
    runtime: &'a Handle,
    case: Case,
    way: Way,
    tasks: TaskTracker,
    source: Qemu,
    target: Option<Qemu>,
}

impl<'a> Pair<'a> {
    pub(super) fn start(stage: &'a Stage, runtime: &'a Handle, case: Case, way: Way) -> Result<Self> {
        if way == Way::MultifdTls && !credentials(stage).exists() {
            certificates::write(&credentials(stage)).context("cannot make certificates for QEMU")?;
        }
        plug(&stage.source)?;
        plug(&stage.target)?;
        let tasks = TaskTracker::new();
        let source = begin(stage, runtime, &tasks, case, way, Role::Source)?;
        Ok(Self { stage, runtime, case, way, tasks, source, target: None })
    }
}

impl Mover for Pair<'_> {
    fn migrate(&mut self) -> Result<f64> {
        let target = begin(self.stage, self.runtime, &self.tasks, self.case, self.way, Role::Target)?;
        let target = self.target.insert(target);
        let address = format!("tcp:{}:{PORT}", node_address(&self.stage.target)?);
        let moved = async {
            target.execute("migrate-incoming", json!({ "uri": address })).await?;
            self.source.execute("migrate", json!({ "uri": address })).await?;
            self.source.qmp.migration_ended().await.map_err(|status| anyhow::anyhow!("it ended as `{status}`"))?;
            target.runs().await?;
            self.source.execute("query-migrate", json!({})).await
        };
        let moved = self.runtime.block_on(async { tokio::time::timeout(MOVE_MAX, moved).await });
        let told = match moved {
            Ok(Ok(told)) => told,
            Ok(Err(error)) => {
                let complaints = format!("{}{}", self.source.complaints(), target.complaints());
                return Err(error.context(format!("QEMU did not move the guest{complaints}")));
            }
            Err(_) => bail!("QEMU did not move the guest within {} s: it does not converge", MOVE_MAX.as_secs()),
        };
        told["downtime"].as_f64().with_context(|| format!("QEMU tells no downtime: {told}"))
    }

    fn end(self: Box<Self>) -> Result<()> {
        let Self { stage, source, target, .. } = *self;
        drop((source, target));
        unplug(&stage.source)?;
        unplug(&stage.target)
    }
}

/// Starts one, and has it know how to migrate.
fn begin(stage: &Stage, runtime: &Handle, tasks: &TaskTracker, case: Case, way: Way, role: Role) -> Result<Qemu> {
    let keys = (way == Way::MultifdTls).then(|| credentials(stage));
    let machine = Machine { memory_mib: case.memory_mib(), role, credentials: keys.as_deref(), disk: None };
    Qemu::start(stage, runtime, tasks, &machine, setup(way, role))
}

/// What is set on each side before a migration.
fn setup(way: Way, role: Role) -> Vec<(&'static str, Value)> {
    let on = |capability: &str| json!({ "capability": capability, "state": true });
    let mut capabilities = vec![on("events")];
    let mut parameters = json!({ "max-bandwidth": BANDWIDTH_MAX, "downtime-limit": BUDGET_MS });
    if way == Way::MultifdTls {
        capabilities.push(on("multifd"));
        parameters["multifd-channels"] = channels().into();
        parameters["tls-creds"] = "tls".into();
        if role == Role::Source {
            parameters["tls-hostname"] = certificates::HOSTNAME.into();
        }
    }
    vec![("migrate-set-capabilities", json!({ "capabilities": capabilities })), ("migrate-set-parameters", parameters)]
}

fn channels() -> usize {
    thread::available_parallelism().map_or(*CHANNELS.start(), usize::from).clamp(*CHANNELS.start(), *CHANNELS.end())
}

fn credentials(stage: &Stage) -> PathBuf {
    stage.files.join("tls")
}
