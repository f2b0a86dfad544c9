//! QEMU's own migration, set up as its documentation has it: two QEMUs, one on each node, driven over QMP.

use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
    path::PathBuf,
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

use super::{
    BUDGET_MS, Mover, certificates,
    command::{self, Role},
};
use crate::{case::Case, stage::Stage};

/// The card's TAP, on each node.
const TAP: &str = "bench0";
/// Where the target listens, on the network between the nodes.
const PORT: u16 = 4444;
/// Connections that carry pages with multifd: one for each processor, within these.
const CHANNELS: std::ops::RangeInclusive<usize> = 2..=8;
/// Bytes per second: as fast as it goes.
const BANDWIDTH_MAX: i64 = i64::MAX;
/// Longest wait for an answer, and for the control socket of a QEMU that starts.
const REPLY_MAX: Duration = Duration::from_secs(30);
/// Longest time a move may take.
const MOVE_MAX: Duration = Duration::from_secs(180);
const ASK_AGAIN: Duration = Duration::from_millis(5);
/// How much of what QEMU complained of is told, in bytes.
const COMPLAINT_BYTES_MAX: usize = 2000;

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

/// A QEMU that answers. Dropping it kills it.
struct Qemu {
    child: Child,
    qmp: Qmp,
    complaints: PathBuf,
}

impl<'a> Pair<'a> {
    pub(super) fn start(stage: &'a Stage, runtime: &'a Handle, case: Case, way: Way) -> Result<Self> {
        if way == Way::MultifdTls && !credentials(stage).exists() {
            certificates::write(&credentials(stage)).context("cannot make certificates for QEMU")?;
        }
        for host in [&stage.source, &stage.target] {
            for words in [
                "ip tuntap add bench0 mode tap vnet_hdr",
                "ip link set bench0 addrgenmode none",
                "ip link set bench0 master br0",
                "ip link set bench0 up",
            ] {
                Stage::on(host, &words.split(' ').collect::<Vec<_>>())?;
            }
        }
        let tasks = TaskTracker::new();
        let source = Qemu::start(stage, runtime, &tasks, case, way, Role::Source)?;
        Ok(Self { stage, runtime, case, way, tasks, source, target: None })
    }
}

impl Mover for Pair<'_> {
    fn migrate(&mut self) -> Result<f64> {
        let target = Qemu::start(self.stage, self.runtime, &self.tasks, self.case, self.way, Role::Target)?;
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
        for host in [&stage.source, &stage.target] {
            Stage::on(host, &["ip", "link", "delete", TAP])?;
        }
        Ok(())
    }
}

impl Qemu {
    /// Starts it, and has it answer and know how to migrate.
    fn start(stage: &Stage, runtime: &Handle, tasks: &TaskTracker, case: Case, way: Way, role: Role) -> Result<Self> {
        let file = |what: &str| stage.files.join(format!("{}.{what}", role.name()));
        let (socket, console, complaints) = (file("qmp"), file("console"), file("stderr"));
        // Of the one before.
        let _ = fs::remove_file(&socket);
        let keys = (way == Way::MultifdTls).then(|| credentials(stage));
        let argv = command::line(&stage.programs, case, role, TAP, &socket, &console, keys.as_deref());
        let host = if role == Role::Source { &stage.source } else { &stage.target };
        let stderr = File::create(&complaints).with_context(|| format!("cannot write {}", complaints.display()))?;
        let mut command = host.command(&argv);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn()?;
        let connected = connect(&mut child, &socket).and_then(|socket| {
            let ready = async {
                let qmp = Qmp::connect(socket, tasks).await?;
                for (what, arguments) in setup(way, role) {
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

    async fn execute(&self, command: &'static str, arguments: Value) -> Result<Value> {
        Ok(self.qmp.execute(command, arguments, REPLY_MAX).await?)
    }

    /// Waits until the guest runs here.
    async fn runs(&self) -> Result<()> {
        while self.execute("query-status", json!({})).await?["running"] != true {
            let Some(_) = self.qmp.next_event().await else { bail!("the target's QEMU has ended") };
        }
        Ok(())
    }

    fn complaints(&self) -> String {
        tail(&self.complaints)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        end(&mut self.child);
    }
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

/// The address of a node on the network between the nodes.
fn node_address(host: &Host) -> Result<String> {
    let told = Stage::on(host, &["ip", "-brief", "-4", "address", "show", "cluster0"])?;
    let address = told.split_whitespace().nth(2).and_then(|network| network.split('/').next());
    Ok(address.with_context(|| format!("{} has no address: {told:?}", host.name()))?.to_owned())
}

/// Waits for the control socket of a QEMU that starts.
fn connect(child: &mut Child, socket: &PathBuf) -> Result<UnixStream> {
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
fn tail(complaints: &PathBuf) -> String {
    let text = fs::read_to_string(complaints).unwrap_or_default();
    match text.trim() {
        "" => String::new(),
        text => format!(": {}", &text[text.floor_char_boundary(text.len().saturating_sub(COMPLAINT_BYTES_MAX))..]),
    }
}
