//! QEMU's own: a guest with a raw file, mirrored to a `qemu-nbd` on the target, and then switched over to it.

use std::{
    fs::File,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::Guest;
use crate::{
    mover::{
        command::{DISK, Machine, Role},
        qemu::{Qemu, plug, unplug},
    },
    stage::{Stage, node_address},
};

/// Where the target listens, on the network between the nodes.
const PORT: u16 = 10809;
const MEMORY_MIB: u32 = 256;
/// Longest wait for `qemu-nbd`.
const START_MAX: Duration = Duration::from_secs(20);
/// Longest time a move may take.
const MOVE_MAX: Duration = Duration::from_secs(900);
const ASK_AGAIN: Duration = Duration::from_millis(5);
const JOB: &str = "move";

pub(super) struct Vm<'a> {
    stage: &'a Stage,
    runtime: &'a Handle,
    qemu: Qemu,
    copy_mode: &'static str,
    target: Target,
    files: [PathBuf; 2],
}

/// The `qemu-nbd` on the target. Dropping it kills it.
struct Target(Child);

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl<'a> Vm<'a> {
    pub(super) fn start(stage: &'a Stage, runtime: &'a Handle, image: &Path, copy_mode: &'static str) -> Result<Self> {
        let files = ["here", "there"].map(|name| stage.files.join(name));
        // A copy with the same holes.
        let copied = Command::new("cp").args(["--sparse=always", "--"]).args([image, &files[0]]).status()?;
        ensure!(copied.success(), "cannot copy the image");
        let there = File::create(&files[1])?;
        there.set_len(image.metadata()?.len())?;
        File::open(&files[0])?.sync_all()?;
        let target = serve(stage, &files[1])?;
        plug(&stage.source)?;
        let machine = Machine { memory_mib: MEMORY_MIB, role: Role::Source, credentials: None, disk: Some(&files[0]) };
        let qemu = Qemu::start(stage, runtime, &TaskTracker::new(), &machine, Vec::new())?;
        Ok(Self { stage, runtime, qemu, copy_mode, target, files })
    }

    async fn mirrored(&self) -> Result<Duration> {
        let begun = Instant::now();
        let host = node_address(&self.stage.target)?;
        // The file there is new: what is not written reads as zeros already.
        let there = json!({
            "driver": "nbd", "node-name": "there", "discard": "unmap", "detect-zeroes": "unmap",
            "server": { "type": "inet", "host": host, "port": PORT.to_string() },
        });
        self.qemu.execute("blockdev-add", there).await?;
        let job = json!({
            "job-id": JOB, "device": DISK, "target": "there", "sync": "full", "copy-mode": self.copy_mode,
            "target-is-zero": true,
        });
        if let Err(error) = self.qemu.execute("blockdev-mirror", job.clone()).await {
            // Older ones do not know the last word.
            let mut job = job;
            job.as_object_mut().and_then(|job| job.remove("target-is-zero"));
            ensure!(error.to_string().contains("target-is-zero"), error);
            self.qemu.execute("blockdev-mirror", job).await?;
        }
        self.until("ready", |job| job["ready"] == true).await?;
        let equal = begun.elapsed();
        self.qemu.execute("job-complete", json!({ "id": JOB })).await?;
        while self.job().await?.is_some() {
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Ok(equal)
    }

    async fn job(&self) -> Result<Option<Value>> {
        Ok(self.qemu.execute("query-block-jobs", json!({})).await?.get(0).cloned())
    }

    async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
        loop {
            let job = self.job().await?.with_context(|| format!("QEMU's job ended before it was {what}"))?;
            ensure!(job["io-status"] == "ok", "QEMU's job says {job}");
            if holds(&job) {
                return Ok(());
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}

impl Guest for Vm<'_> {
    fn move_disk(&mut self) -> Result<Duration> {
        let moved = self.runtime.block_on(async { tokio::time::timeout(MOVE_MAX, self.mirrored()).await });
        let Ok(moved) = moved else { bail!("QEMU did not move the disk within {} s", MOVE_MAX.as_secs()) };
        let equal = moved.map_err(|error| error.context(format!("QEMU did not move it{}", self.qemu.complaints())))?;
        // The guest's disk is there now, and nowhere else.
        let disks = self.runtime.block_on(self.qemu.execute("query-block", json!({})))?;
        let node = &disks[0]["inserted"]["node-name"];
        ensure!(node == "there", "the guest's disk is still {node}");
        Ok(equal)
    }

    fn end(self: Box<Self>) -> Result<()> {
        let Self { stage, qemu, target, files, .. } = *self;
        drop(qemu);
        drop(target);
        unplug(&stage.source)?;
        files.iter().try_for_each(|file| Ok(std::fs::remove_file(file)?))
    }
}

fn serve(stage: &Stage, file: &Path) -> Result<Target> {
    let (host, port) = (node_address(&stage.target)?, PORT.to_string());
    let path = file.to_string_lossy();
    let mut argv = vec!["qemu-nbd", "--persistent", "--format=raw", "--cache=writeback", "--discard=unmap"];
    argv.extend(["--shared=4", "--bind", &host, "--port", &port, &path]);
    let mut command = stage.target.command(&argv);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut target = Target(child.context("qemu-nbd does not start; run deploy/packages")?);
    let deadline = Instant::now() + START_MAX;
    while stage.source.within(|| TcpStream::connect((&*host, PORT)).is_err())? {
        if let Some(status) = target.0.try_wait()? {
            bail!("qemu-nbd ended: {status}");
        }
        ensure!(Instant::now() < deadline, "qemu-nbd does not listen");
        thread::sleep(ASK_AGAIN);
    }
    Ok(target)
}
