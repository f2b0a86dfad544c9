//! A QEMU of a peer's, on a node, driven over QMP.

use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use pollux_lab::Host;
use pollux_qemu::Qmp;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::command::{self, Machine, Role};
use crate::stage::Stage;

/// The card's TAP, on each node.
const TAP: &str = "bench0";
/// Longest wait for an answer, and for the control socket of a QEMU that starts.
const REPLY_MAX: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_millis(5);
/// How much of what QEMU complained of is told, in bytes.
const COMPLAINT_BYTES_MAX: usize = 2000;

/// A QEMU that answers. Dropping it kills it.
pub(crate) struct Qemu {
    child: Child,
    pub(crate) qmp: Qmp,
    complaints: PathBuf,
}

/// Gives a node a TAP on the guests' bridge.
pub(crate) fn plug(host: &Host) -> Result<()> {
    for words in [
        "ip tuntap add bench0 mode tap vnet_hdr",
        "ip link set bench0 addrgenmode none",
        "ip link set bench0 master br0",
        "ip link set bench0 up",
    ] {
        Stage::on(host, &words.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Takes it away.
pub(crate) fn unplug(host: &Host) -> Result<()> {
    Stage::on(host, &["ip", "link", "delete", TAP]).map(drop)
}

impl Qemu {
    /// Starts it, and has it answer; then it is told what `setup` says.
    pub(crate) fn start(
        stage: &Stage,
        runtime: &Handle,
        tasks: &TaskTracker,
        machine: &Machine<'_>,
        setup: Vec<(&'static str, Value)>,
    ) -> Result<Self> {
        let role = machine.role;
        let file = |what: &str| stage.files.join(format!("{}.{what}", role.name()));
        let (socket, console, complaints) = (file("qmp"), file("console"), file("stderr"));
        // Of the one before.
        let _ = fs::remove_file(&socket);
        let argv = command::line(&stage.programs, machine, TAP, &socket, &console);
        let host = if role == Role::Source { &stage.source } else { &stage.target };
        let stderr = File::create(&complaints).with_context(|| format!("cannot write {}", complaints.display()))?;
        let mut command = host.command(&argv);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn()?;
        let connected = connect(&mut child, &socket).and_then(|socket| {
            let ready = async {
                let qmp = Qmp::connect(socket, tasks).await?;
                for (what, arguments) in setup {
                    qmp.execute(what, arguments, REPLY_MAX).await?;
                }
                anyhow::Ok(qmp)
            };
            runtime.block_on(ready)
        });
        match connected {
            Ok(qmp) => Ok(Self { child, qmp, complaints }),
            Err(error) => {
                end(&mut child);
                Err(error.context(format!("the QEMU on {} cannot be driven{}", host.name(), tail(&complaints))))
            }
        }
    }

    pub(crate) async fn execute(&self, command: &'static str, arguments: Value) -> Result<Value> {
        Ok(self.qmp.execute(command, arguments, REPLY_MAX).await?)
    }

    /// Waits until the guest runs here.
    pub(crate) async fn runs(&self) -> Result<()> {
        while self.execute("query-status", json!({})).await?["running"] != true {
            let Some(_) = self.qmp.next_event().await else { bail!("the target's QEMU has ended") };
        }
        Ok(())
    }

    pub(crate) fn complaints(&self) -> String {
        tail(&self.complaints)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Waits for the control socket of a QEMU that starts.
fn connect(child: &mut Child, socket: &Path) -> Result<UnixStream> {
    let since = Instant::now();
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            return Ok(stream);
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended with {status}");
        }
        if since.elapsed() > REPLY_MAX {
            bail!("it does not answer on {}", socket.display());
        }
        thread::sleep(ASK_AGAIN);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// What it complained of, to append to an error.
fn tail(complaints: &Path) -> String {
    let text = fs::read_to_string(complaints).unwrap_or_default();
    match text.trim() {
        "" => String::new(),
        text => format!(": {}", &text[text.floor_char_boundary(text.len().saturating_sub(COMPLAINT_BYTES_MAX))..]),
    }
}
