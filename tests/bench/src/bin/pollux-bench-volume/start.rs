//! How each server is started, and when it counts as ready.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result, ensure};
use pollux_qemu::Qmp;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::{
    case::Case,
    place::{File, Place},
    server::{Kind, Server},
};

/// Where ours listen, on the network between the nodes.
const PORT: u16 = 7700;
/// And where the peer's mirror does.
const NBD_PORT: u16 = 10809;
/// Longest wait for an answer of QEMU's.
const REPLY_MAX: std::time::Duration = std::time::Duration::from_secs(30);
/// Longest time that QEMU's mirror may take until both files are equal.
const EQUAL_MAX: std::time::Duration = std::time::Duration::from_secs(120);
const ASK_AGAIN: std::time::Duration = std::time::Duration::from_millis(20);

/// Starts `server`, ready to be measured.
pub(crate) fn start(place: &Place, server: Server, case: Case, runtime: &Handle) -> Result<()> {
    let Some(first) = server.files(case).first().copied() else { return Ok(()) };
    let answers = || Ok(UnixStream::connect(place.socket()).is_ok());
    match server.kind() {
        Kind::Bare => {
            let engine = if server == Server::PolluxRing {
                "ring"
            } else if server == Server::PolluxThreads {
                "threads"
            } else {
                "best"
            };
            let mut command = own("serve")?;
            command.args(["--engine", engine, "--size", &first.size().to_string()]);
            command.arg("--pool").arg(place.pool(first)).arg("--socket").arg(place.socket());
            place.start(server.name(), true, command, answers)
        }
        Kind::Peer => place.start(server.name(), false, peer(server, place, first), answers),
        Kind::Volume(replicas) => volume(place, server, case, replicas),
        Kind::QemuMirror => qemu_mirror(place, server.files(case), runtime),
        Kind::RawDisk | Kind::RawLink => Ok(()),
    }
}

fn peer(server: Server, place: &Place, file: File) -> Command {
    if server == Server::NbdkitFile {
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--unix"]).arg(place.socket()).arg("file").arg(place.data(file));
        return command;
    }
    let aio = if server == Server::QemuNbd { "threads" } else { "io_uring" };
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "--format=raw", "--cache=writeback", "--aio", aio]);
    command.arg("--socket").arg(place.socket()).arg(place.data(file));
    command
}

fn volume(place: &Place, server: Server, case: Case, replicas: u64) -> Result<()> {
    // Higher than any before it, as the replicas' logs demand.
    static GENERATION: AtomicU64 = AtomicU64::new(0);
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed) + 1;
    let files = server.files(case);
    let mut nodes = Vec::new();
    for (node, file) in (1_u8..).zip(files).skip(1) {
        let (name, at, ready) = (format!("n{node}"), address(node, PORT), place.file("ready"));
        let _ = std::fs::remove_file(&ready);
        let mut argv = vec![std::env::current_exe()?.into_os_string(), "beyond".into(), "--node".into()];
        argv.push(at.to_string().into());
        for (flag, path) in [("--pool", place.pool(*file)), ("--identity", place.identity(node)), ("--ready", ready)] {
            argv.extend([flag.into(), path.into_os_string()]);
        }
        let command = place.node(node)?.command(&argv);
        place.start(&format!("the replica on {name}"), true, command, || Ok(place.file("ready").exists()))?;
        nodes.push(at);
    }
    let mut argv = vec![std::env::current_exe()?.into_os_string(), "volume".into()];
    let words = ["--size".to_owned(), files[0].size().to_string(), "--generation".into(), generation.to_string()];
    argv.extend(words.map(Into::into));
    for (flag, path) in [("--pool", place.pool(files[0])), ("--socket", place.socket())] {
        argv.extend([flag.into(), path.into_os_string()]);
    }
    let answers = || Ok(UnixStream::connect(place.socket()).is_ok());
    if replicas == 1 {
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]);
        return place.start(server.name(), true, command, answers);
    }
    argv.extend(["--identity".into(), place.identity(1).into_os_string()]);
    for at in std::iter::once(address(1, PORT)).chain(nodes) {
        argv.extend(["--node".into(), at.to_string().into()]);
    }
    place.start(server.name(), true, place.node(1)?.command(&argv), answers)
}

/// As QEMU's documentation has it: both files in step before anything is measured, and from then on each write is on both before it is
/// answered.
fn qemu_mirror(place: &Place, files: &[File], runtime: &Handle) -> Result<()> {
    let [here, there] = files else { unreachable!("it has two") };
    let at = address(2, NBD_PORT);
    let (there, ip, port) = (place.data(*there).into_os_string(), at.ip().to_string(), at.port().to_string());
    let mut argv: Vec<std::ffi::OsString> =
        ["qemu-nbd", "--persistent", "--format=raw", "--cache=writeback", "--bind", &ip, "--port", &port]
            .map(Into::into)
            .into();
    argv.push(there);
    let node = place.node(1)?;
    let answers = || Ok(node.within(|| TcpStream::connect(at).is_ok())?);
    place.start("the mirror's qemu-nbd", false, place.node(2)?.command(&argv), answers)?;

    let (control, socket, file) = (place.file("qmp"), place.socket(), place.data(*here));
    let _ = std::fs::remove_file(&control);
    let mut argv = vec!["qemu-storage-daemon".to_owned()];
    for (flag, value) in [
        ("--blockdev", format!("driver=file,node-name=file,filename={}", file.display())),
        ("--blockdev", "driver=raw,node-name=disk,file=file".to_owned()),
        ("--blockdev", format!("driver=nbd,node-name=there,server.type=inet,server.host={ip},server.port={port}")),
        ("--chardev", format!("socket,path={},server=on,wait=off,id=qmp", control.display())),
        ("--monitor", "chardev=qmp".to_owned()),
        ("--nbd-server", format!("addr.type=unix,addr.path={}", socket.display())),
        ("--export", "type=nbd,id=export,node-name=disk,name=,writable=on".to_owned()),
    ] {
        argv.extend([flag.to_owned(), value]);
    }
    let answers = || Ok(UnixStream::connect(&control).is_ok());
    place.start("qemu-storage-daemon", false, node.command(&argv), answers)?;
    let stream = UnixStream::connect(&control).context("its control socket")?;
    runtime
        .block_on(async { tokio::time::timeout(EQUAL_MAX, in_step(stream)).await })
        .with_context(|| format!("QEMU's mirror is not in step after {} s", EQUAL_MAX.as_secs()))?
}

/// Starts the job, and waits until both are equal.
async fn in_step(control: UnixStream) -> Result<()> {
    let tasks = TaskTracker::new();
    let qmp = Qmp::connect(control, &tasks).await?;
    let job = json!({
        "job-id": "mirror", "device": "disk", "target": "there", "sync": "full", "copy-mode": "write-blocking",
    });
    qmp.execute("blockdev-mirror", job, REPLY_MAX).await?;
    loop {
        let jobs = qmp.execute("query-block-jobs", json!({}), REPLY_MAX).await?;
        let job = jobs.get(0).context("the job has ended")?;
        // Older ones do not tell the second.
        let both = job["ready"] == true && job.get("actively-synced").is_none_or(|it| *it == Value::Bool(true));
        if both {
            ensure!(job["io-status"] == "ok", "the job says {job}");
            return Ok(());
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn own(role: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("where is this program?")?);
    command.arg(role);
    Ok(command)
}

/// A node's, on the network between the nodes.
pub(crate) fn address(node: u8, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 0, node)), port)
}
