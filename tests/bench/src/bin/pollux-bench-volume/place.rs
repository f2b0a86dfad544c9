//! Where everything is: the files, the lab, and the servers under way. Nothing of it stays.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pollux_disk::{EngineKind, Pool};
use pollux_lab::{Daemon, Host, Lab, LabConfig, LabName};
use pollux_link::{Authority, Role};
use pollux_volume::Place as ReplicaPlace;
use pollux_wire::id::{ClusterId, NodeId};

use crate::{case::Case, server::Server};

/// The name of each replica in its pool.
pub(crate) const NAME: &str = "bench";
/// The size of each: several times what fits a processor's cache, and little beside a machine's memory.
pub(crate) const SIZE_BYTES: u64 = 1 << 30;
/// And of the wide one: four times what the activity log keeps hot.
pub(crate) const WIDE_BYTES: u64 = 4 << 30;
/// Nodes of the lab: where the guest would be, and two others.
pub(crate) const NODES: u8 = 3;
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(10);
const PIECE_BYTES: usize = 1 << 20;
/// Sweeps when its standard input ends, which is when nobody holds the other end any more.
const SWEEP: &str = r#"cat > /dev/null; "$0" sweep --lab "$1"; rm -rf "$2""#;

/// A replica in a pool of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum File {
    Alone,
    PairHere,
    PairThere,
    ThreeHere,
    ThreeThere,
    ThreeBeyond,
    Wide,
}

impl File {
    fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::PairHere => "pair-here",
            Self::PairThere => "pair-there",
            Self::ThreeHere => "three-here",
            Self::ThreeThere => "three-there",
            Self::ThreeBeyond => "three-beyond",
            Self::Wide => "wide",
        }
    }

    pub(crate) fn size(self) -> u64 {
        if self == Self::Wide { WIDE_BYTES } else { SIZE_BYTES }
    }
}

/// See the module's text.
pub(crate) struct Place {
    directory: Mutex<Option<tempfile::TempDir>>,
    path: PathBuf,
    lab: LabName,
    /// There while there may be a lab.
    sweeper: Mutex<Option<Child>>,
    servers: Mutex<Vec<Served>>,
}

/// A process that serves.
struct Served {
    child: Child,
    what: String,
    /// It ends in order when it is told to, and says by its exit code whether all was as it must be.
    ours: bool,
}

impl Place {
    /// A directory, and nothing in it.
    pub(crate) fn make(at: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("pollux-bench-")
            .tempdir_in(at)
            .with_context(|| format!("cannot make a directory in {}", at.display()))?;
        let lab = format!("bv{}", std::process::id()).parse()?;
        let path = directory.path().to_owned();
        let (directory, sweeper, servers) = (Mutex::new(Some(directory)), Mutex::default(), Mutex::default());
        Ok(Self { directory, path, lab, sweeper, servers })
    }

    pub(crate) fn pool(&self, file: File) -> PathBuf {
        self.path.join(file.name())
    }

    pub(crate) fn data(&self, file: File) -> PathBuf {
        self.pool(file).join(NAME).join("data")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("socket")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where the certificate of a node is.
    pub(crate) fn identity(&self, node: u8) -> PathBuf {
        self.path.join(format!("node{node}"))
    }

    /// Replicas, full of data that is no zeros, all the same.
    pub(crate) fn fill(&self, files: &[File]) -> Result<()> {
        let mut outs = Vec::new();
        for file in files {
            fs::create_dir(self.pool(*file))?;
            let pool = Pool::open(&self.pool(*file))?;
            ReplicaPlace { pool, name: NAME.to_owned(), engine: EngineKind::Best }.make(file.size())?;
            outs.push((fs::File::options().write(true).open(self.data(*file))?, file.size()));
        }
        let (mut number, mut piece) = (0x9e37_79b9_7f4a_7c15_u64, vec![0; PIECE_BYTES]);
        let most = files.iter().map(|file| file.size()).max().unwrap_or(0);
        for at in (0..most).step_by(PIECE_BYTES) {
            for word in piece.chunks_exact_mut(8) {
                // Xorshift: never zero.
                number ^= number << 13;
                number ^= number >> 7;
                number ^= number << 17;
                word.copy_from_slice(&number.to_le_bytes());
            }
            for (out, size) in &mut outs {
                if at < *size {
                    out.write_all(&piece)?;
                }
            }
        }
        outs.iter().try_for_each(|(out, _)| Ok(out.sync_all()?))
    }

    /// Nodes, each in a network namespace of its own, with cables that carry `link_mbit` (10^6 bits per second) at most, and
    /// certificates for them.
    pub(crate) fn set_up_nodes(&self, link_mbit: Option<u32>) -> Result<()> {
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", SWEEP]).arg(std::env::current_exe()?).arg(self.lab.as_str()).arg(&self.path);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let sweeper = command.spawn().context("cannot start `setsid`; install util-linux")?;
        *locked(&self.sweeper) = Some(sweeper);
        let daemon = Daemon::Command(vec!["sleep".into(), "infinity".into()]);
        let lab = Lab::up(&LabConfig { name: self.lab.clone(), nodes: NODES, daemon, dir: None })?;
        let authority = Authority::create(ClusterId([7; 16]))?;
        for node in 1..=NODES {
            let name = format!("n{node}");
            fs::create_dir(self.identity(node))?;
            authority.identity(NodeId(node.into()), &name, Role::Member)?.save(&self.identity(node))?;
            if let Some(mbit) = link_mbit {
                pollux_bench::slow_down(&lab.host(&name)?, mbit)?;
            }
        }
        Ok(())
    }

    pub(crate) fn node(&self, node: u8) -> Result<Host> {
        Ok(Lab::open(&self.lab)?.host(&format!("n{node}"))?)
    }

    /// Starts a server, and waits until `ready` says that it is, or it ends.
    pub(crate) fn start(
        &self,
        what: &str,
        ours: bool,
        mut command: Command,
        ready: impl Fn() -> Result<bool>,
    ) -> Result<()> {
        let complaints = self.file("complaints");
        let stderr = fs::File::create(&complaints)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn();
        let child = child.with_context(|| format!("{what} does not start; run deploy/packages"))?;
        locked(&self.servers).push(Served { child, what: what.to_owned(), ours });
        let deadline = Instant::now() + PATIENCE;
        while !ready()? {
            if let Some(Served { child, .. }) = locked(&self.servers).last_mut()
                && let Some(status) = child.try_wait()?
            {
                bail!("{what} ended: {status}: {}", fs::read_to_string(&complaints).unwrap_or_default().trim());
            }
            ensure!(Instant::now() < deadline, "{what} is not ready after {} s", PATIENCE.as_secs());
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Ends all servers, the last first. Ours say whether all was as it must be.
    pub(crate) fn end_servers(&self) -> Result<()> {
        let mut wrong = Ok(());
        loop {
            let Some(mut server) = locked(&self.servers).pop() else { break };
            let ended = server.end();
            if wrong.is_ok() {
                wrong = ended;
            }
        }
        let _ = fs::remove_file(self.socket());
        wrong
    }

    /// Nothing is left of it.
    pub(crate) fn clear(&self) -> Result<()> {
        for mut server in locked(&self.servers).drain(..) {
            let _ = server.child.kill();
            let _ = server.child.wait();
        }
        let mut sweeper = locked(&self.sweeper).take();
        if sweeper.is_some() {
            Lab::down(&self.lab)?;
        }
        drop(locked(&self.directory).take());
        if let Some(sweeper) = &mut sweeper {
            let _ = sweeper.kill();
            let _ = sweeper.wait();
        }
        Ok(())
    }

    /// What the run before has written is on the disk, and everything that the case reads or writes over is in memory.
    pub(crate) fn settle(&self, server: Server, case: Case) -> Result<()> {
        for file in server.files(case) {
            let mut data = fs::File::open(self.data(*file))?;
            data.sync_all()?;
            std::io::copy(&mut data, &mut std::io::sink())?;
        }
        Ok(())
    }

    /// Whoever writes to several replicas has written the same to all.
    pub(crate) fn compare(&self, server: Server, case: Case) -> Result<()> {
        let [first, others @ ..] = server.files(case) else { return Ok(()) };
        for other in others {
            let (mut one, mut two) = (fs::File::open(self.data(*first))?, fs::File::open(self.data(*other))?);
            let (mut here, mut there) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
            for at in (0..first.size()).step_by(PIECE_BYTES) {
                one.read_exact(&mut here)?;
                two.read_exact(&mut there)?;
                ensure!(here == there, "replicas {} and {} differ from {at} on", first.name(), other.name());
            }
        }
        Ok(())
    }
}

impl Served {
    fn end(&mut self) -> Result<()> {
        if !self.ours {
            let _ = self.child.kill();
            let _ = self.child.wait();
            return Ok(());
        }
        let deadline = Instant::now() + PATIENCE;
        let pid = i32::try_from(self.child.id()).context("a process has a number")?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "{} was not well: {status}", self.what);
                return Ok(());
            }
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                bail!("{} does not end", self.what);
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
