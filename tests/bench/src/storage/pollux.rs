//! Pollux: a volume that is made of the image in a pool of the source, moved into one of the target.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Guest;
use crate::{
    mover::{CPU, MACHINE, VCPUS},
    stage::{MAC, Stage},
};

const NAME: &str = "bench";
const DISK: &str = "data";
const POOL: &str = "bench";
/// The guest's memory: it does nothing but write.
const MEMORY: &str = "256";

/// One on each node that takes part.
pub(super) fn make_pools(stage: &Stage) -> Result<()> {
    for node in [&stage.source, &stage.target] {
        let directory = stage.files.join(format!("pool-{}", node.name()));
        fs::create_dir(&directory)?;
        let program = stage.programs.pollux.to_string_lossy();
        Stage::on(node, &[&*program, "pool", "add", POOL, &directory.to_string_lossy()])?;
    }
    Ok(())
}

pub(super) struct Vm<'a> {
    stage: &'a Stage,
}

/// What `volume move -o json` ends in, as far as it is of interest.
#[derive(Debug, Deserialize)]
struct Ended {
    result: Option<String>,
    copy: Option<Copied>,
}

#[derive(Debug, Deserialize)]
struct Copied {
    copy_ms: u64,
}

impl<'a> Vm<'a> {
    pub(super) fn start(stage: &'a Stage, image: &Path) -> Result<Self> {
        let vm = Self { stage };
        let from = place(stage.source.name());
        let words = ["volume", "import", DISK, "--format", "raw", "--pool", &from, "--from", &image.to_string_lossy()];
        stage.pollux(&words)?;
        let (kernel, initrd) = (stage.programs.kernel.to_string_lossy(), stage.programs.initrd.to_string_lossy());
        let (append, nic) = (Stage::append(), format!("br0,mac={MAC}"));
        let mut words = vec!["vm", "create", NAME, "--node", stage.source.name(), "--memory", MEMORY, "--nic", &nic];
        words.extend(["--kernel", &kernel, "--initrd", &initrd, "--append", &append, "--volume", DISK]);
        words.extend(["--machine", MACHINE, "--cpu", CPU, "--vcpus", VCPUS]);
        stage.pollux(&words)?;
        Ok(vm)
    }
}

fn place(node: &str) -> String {
    format!("{node}:{POOL}")
}

impl Guest for Vm<'_> {
    fn move_disk(&mut self) -> Result<Duration> {
        let (from, to) = (place(self.stage.source.name()), place(self.stage.target.name()));
        let answer = self.stage.pollux(&["volume", "move", DISK, "--from", &from, "--to", &to])?;
        let ended: Ended = serde_json::from_str(&answer).with_context(|| format!("pollux answered {answer:?}"))?;
        ensure!(ended.result.as_deref() == Some("succeeded"), "the move ended as {answer}");
        let copied = ended.copy.with_context(|| format!("a move that succeeded told no costs: {answer}"))?;
        Ok(Duration::from_millis(copied.copy_ms))
    }

    fn end(self: Box<Self>) -> Result<()> {
        self.stage.pollux(&["vm", "stop", NAME, "--force"])?;
        self.stage.pollux(&["vm", "delete", NAME])?;
        self.stage.pollux(&["volume", "delete", DISK, "--yes"]).map(drop)
    }
}
