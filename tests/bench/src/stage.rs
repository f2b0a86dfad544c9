//! Where everything happens: one lab for all, a directory for files, and the certainty that neither stays.
//!
//! All systems use the same three namespaces, bridges and cables, one after the other: guests on `br0` of n1 and n2, the
//! client in `lan`, the moves' traffic on the `cluster0` cables. Pollux's daemons run all the time, idle while a peer is
//! measured; a third one, n3, makes the quorum.

use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use pollux_lab::{Daemon, Host, Lab, LabConfig, LabName, leftovers};
use pollux_probe::guest::{Guest, Hello};
use tempfile::TempDir;

/// Nodes of the lab: source, target, and one more for the quorum.
const NODES: u8 = 3;
/// The guest's address on the clients' network.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 10);
/// The guest's card, the same whoever moves it.
pub(crate) const MAC: &str = "52:54:00:be:7c:10";
const TCP_PORT: u16 = 7000;
const UDP_PORT: u16 = 7001;
/// Longest wait for the guest to boot.
const BOOT_MAX: Duration = Duration::from_secs(180);
/// Sweeps when its standard input ends, which is when nobody holds the other end any more.
const SWEEP: &str = r#"cat > /dev/null; "$0" lab down --name "$1"; rm -rf "$2""#;

/// The programs and files that are used.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) pollux: PathBuf,
    pub(crate) probe: PathBuf,
    pub(crate) qemu: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

impl Programs {
    /// Makes sure of them all, before anything is made.
    pub(crate) fn find(pollux: Option<PathBuf>, probe: Option<PathBuf>, qemu: PathBuf, guest: &Path) -> Result<Self> {
        let beside = |name: &str| -> Result<PathBuf> {
            let own = env::current_exe().context("cannot tell where this program is")?;
            Ok(own.parent().unwrap_or(Path::new("/")).join(name))
        };
        let there = |path: PathBuf, todo: &str| -> Result<PathBuf> {
            path.canonicalize().with_context(|| format!("there is no {}; {todo}", path.display()))
        };
        let build = "build it: cargo build --release -p pollux -p pollux-probe";
        Ok(Self {
            pollux: there(pollux.map_or_else(|| beside("pollux"), Ok)?, build)?,
            probe: there(probe.map_or_else(|| beside("pollux-probe"), Ok)?, build)?,
            qemu: there(qemu, "install it: deploy/packages")?,
            kernel: there(guest.join("vmlinuz"), "build the guest: deploy/guest/build")?,
            initrd: there(guest.join("initrd.img"), "build the guest: deploy/guest/build")?,
        })
    }
}

/// What this run may use and has to leave as it was: a lab's name and a directory. Owned by the main thread.
#[derive(Debug)]
pub(crate) struct Ground {
    lab: LabName,
    files: TempDir,
    programs: Programs,
    sweeper: Sweeper,
}

/// The same for the thread that measures.
#[derive(Debug, Clone)]
pub(crate) struct GroundHandle {
    pub(crate) lab: LabName,
    pub(crate) files: PathBuf,
    pub(crate) programs: Programs,
}

impl Ground {
    pub(crate) fn claim(programs: Programs) -> Result<Self> {
        let lab: LabName = format!("bench{}", std::process::id()).parse()?;
        let files = tempfile::Builder::new().prefix("pollux-bench.").tempdir();
        let files = files.context("cannot make a directory for files")?;
        let sweeper = Sweeper::wait_for(&programs.pollux, &lab, files.path())?;
        Ok(Self { lab, files, programs, sweeper })
    }

    pub(crate) fn handle(&self) -> GroundHandle {
        GroundHandle { lab: self.lab.clone(), files: self.files.path().to_owned(), programs: self.programs.clone() }
    }

    /// Ends everything, whatever there is of it.
    pub(crate) fn clear(mut self) -> Result<()> {
        Lab::down(&self.lab)?;
        self.files.close().context("cannot remove the directory for files")?;
        self.sweeper.dismiss();
        let left = leftovers(&self.lab);
        ensure!(left.is_empty(), "this was left behind: {}", left.join(", "));
        Ok(())
    }
}

/// A process that takes everything down once this one is gone without having [dismissed](Self::dismiss) it: killed, nothing of
/// this one's own runs any more.
#[derive(Debug)]
pub(crate) struct Sweeper(Child);

impl Sweeper {
    /// In a session of its own, so that what ends this process group does not end it.
    fn wait_for(pollux: &Path, lab: &LabName, files: &Path) -> Result<Self> {
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", SWEEP]).arg(pollux).arg(lab.as_str()).arg(files);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().context("cannot start `setsid`; install util-linux")?))
    }

    fn dismiss(&mut self) {
        // It cannot have ended: its input is open.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The stage, set up.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) source: Host,
    pub(crate) target: Host,
    pub(crate) client: Host,
    pub(crate) files: PathBuf,
    pub(crate) programs: Programs,
}

impl Stage {
    pub(crate) fn set_up(ground: &GroundHandle) -> Result<Self> {
        let GroundHandle { lab, files, programs } = ground.clone();
        let daemon = Daemon::Pollux(programs.pollux.clone());
        let lab = Lab::up(&LabConfig { name: lab, nodes: NODES, daemon, dir: None })?;
        let host = |name| lab.host(name);
        Ok(Self { source: host("n1")?, target: host("n2")?, client: host("lan")?, files, programs })
    }

    /// What the guest's kernel is told. Without a check of its timer, which fails where a busy host lets it wait.
    pub(crate) fn append() -> String {
        format!("console=ttyS0 quiet no_timer_check pollux.ip={GUEST}/24 pollux.hostname=bench")
    }

    pub(crate) fn udp() -> SocketAddr {
        SocketAddr::from((GUEST, UDP_PORT))
    }

    /// A conversation of the client with the guest.
    pub(crate) fn talk(&self, patience: Duration) -> Result<Guest> {
        let address = SocketAddr::from((GUEST, TCP_PORT));
        let guest = self.client.within(|| Guest::connect(address, patience))?;
        guest.with_context(|| format!("the guest does not answer at {address}"))
    }

    /// Waits until the guest has booted.
    pub(crate) fn booted(&self) -> Result<Hello> {
        let address = SocketAddr::from((GUEST, TCP_PORT));
        let hello = self.client.within(|| Guest::wait(address, BOOT_MAX))?;
        hello.with_context(|| format!("no guest answered at {address} within {} s", BOOT_MAX.as_secs()))
    }

    /// Asks the daemon of the source; its answer in JSON.
    pub(crate) fn pollux(&self, words: &[&str]) -> Result<String> {
        let program = self.programs.pollux.to_string_lossy();
        let argv: Vec<&str> = [&*program].into_iter().chain(words.iter().copied()).chain(["-o", "json"]).collect();
        Self::on(&self.source, &argv)
    }

    /// Runs a command on a host to its end; what it printed, if it succeeded.
    pub(crate) fn on(host: &Host, argv: &[&str]) -> Result<String> {
        let output = host.exec(argv)?;
        if output.code != Some(0) {
            bail!("`{}` on {} failed: {}", argv.join(" "), host.name(), output.stderr.trim());
        }
        Ok(output.stdout)
    }
}

/// The address of a node on the network between the nodes.
pub(crate) fn node_address(host: &Host) -> Result<String> {
    let told = Stage::on(host, &["ip", "-brief", "-4", "address", "show", "cluster0"])?;
    let address = told.split_whitespace().nth(2).and_then(|network| network.split('/').next());
    Ok(address.with_context(|| format!("{} has no address: {told:?}", host.name()))?.to_owned())
}
