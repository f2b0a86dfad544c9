//! Pollux, asked as a user would ask it.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{BUDGET_MS, CPU, MACHINE, Mover, VCPUS};
use crate::{
    case::Case,
    stage::{MAC, Stage},
};

/// The VM's name.
const NAME: &str = "bench";

/// A VM of the lab's cluster.
#[derive(Debug)]
pub(super) struct Vm<'a> {
    stage: &'a Stage,
}

/// What `vm migrate -o json` ends in.
#[derive(Debug, Deserialize)]
struct Ended {
    result: Option<String>,
    report: Option<Report>,
}

#[derive(Debug, Deserialize)]
struct Report {
    pause_ms: u32,
}

impl<'a> Vm<'a> {
    pub(super) fn create(stage: &'a Stage, case: Case) -> Result<Self> {
        let vm = Self { stage };
        let (kernel, initrd) = (stage.programs.kernel.to_string_lossy(), stage.programs.initrd.to_string_lossy());
        let (memory, nic) = (case.memory_mib().to_string(), format!("br0,mac={MAC}"));
        let node = stage.source.name();
        let mut words = vec!["vm", "create", NAME, "--node", node, "--memory", &memory, "--nic", &nic];
        words.extend(["--kernel", &kernel, "--initrd", &initrd, "--append"]);
        let append = Stage::append();
        words.extend([&*append, "--machine", MACHINE, "--cpu", CPU, "--vcpus", VCPUS]);
        stage.pollux(&words)?;
        Ok(vm)
    }
}

impl Mover for Vm<'_> {
    fn migrate(&mut self) -> Result<f64> {
        let budget = format!("{BUDGET_MS}ms");
        let to = self.stage.target.name();
        let answer = self.stage.pollux(&["vm", "migrate", NAME, "--to", to, "--max-blackout", &budget])?;
        let ended: Ended = serde_json::from_str(&answer).with_context(|| format!("pollux answered {answer:?}"))?;
        ensure!(ended.result.as_deref() == Some("succeeded"), "the move ended as {answer}");
        let report = ended.report.with_context(|| format!("a move that succeeded told no costs: {answer}"))?;
        Ok(f64::from(report.pause_ms))
    }

    fn end(self: Box<Self>) -> Result<()> {
        self.stage.pollux(&["vm", "stop", NAME, "--force"])?;
        self.stage.pollux(&["vm", "delete", NAME]).map(drop)
    }
}
