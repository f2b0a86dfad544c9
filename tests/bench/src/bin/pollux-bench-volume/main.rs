//! `pollux-bench-volume`: our NBD server beside QEMU's and nbdkit's, on the same file, in turn.
//!
//! One replica in a pool of its own, filled with data that is no zeros. fio, as an NBD client on a Unix socket, reads and writes it
//! through each server; every figure has a server freshly started and a file that is on the disk and in memory. Servers run as
//! processes of their own; ours is this program, told to `serve`. The benchmark runs on a thread; the first one waits for its end or
//! for a signal, and cleans up in either case.

use std::{
    fs::File,
    io::Write as _,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use pollux_bench::{INTERRUPTED, Row, Spread, unless_interrupted};
use pollux_disk::{
    EngineKind, Pool,
    nbd::{ServeOptions, serve},
};
use serde_json::Value;
use tokio::{net::UnixListener, sync::oneshot};
use tokio_util::sync::CancellationToken;

/// The replica's name in its pool.
const NAME: &str = "bench";
/// Its size: several times what fits a processor's cache, and little beside a machine's memory.
const SIZE_BYTES: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(10);
/// Where in a run of fio counting begins.
const WARM_UP_S: u64 = 1;

/// Measures our NBD server beside others on the same file.
#[derive(Parser)]
#[command(name = "pollux-bench-volume", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Role {
    /// Serves the replica of a pool to one client after the other, for programs that speak NBD.
    Serve(Serve),
}

#[derive(Args)]
struct Serve {
    /// The pool's directory.
    #[arg(long)]
    pool: PathBuf,
    /// The socket to make.
    #[arg(long)]
    socket: PathBuf,
    /// How bytes get into the file.
    #[arg(long, value_enum, default_value_t = Engine::Best)]
    engine: Engine,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Engine {
    Best,
    Ring,
    Threads,
}

#[derive(Args)]
struct Bench {
    /// Runs with each server, per case.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Seconds that each figure is taken over.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Only this case; may be given several times [default: all of them].
    #[arg(long = "case", value_parser = clap::builder::PossibleValuesParser::new(CASES.map(|case| case.name)))]
    cases: Vec<String>,
    /// Only this server; may be given several times [default: pollux, qemu-nbd and nbdkit-file].
    #[arg(long = "server", value_enum)]
    servers: Vec<Server>,
    /// A directory for the file, on the file system to be measured.
    #[arg(long, default_value = "/var/tmp")]
    at: PathBuf,
    /// An array of rows on standard output instead of the table; the verdicts go to standard error.
    #[arg(long)]
    json: bool,
}

/// Who serves the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Server {
    /// Ours, with the engine that a daemon would choose.
    Pollux,
    /// Ours, by io_uring.
    PolluxRing,
    /// Ours, by threads.
    PolluxThreads,
    /// QEMU's, as it comes: page cache, a pool of threads.
    QemuNbd,
    /// QEMU's, by io_uring.
    QemuNbdIoUring,
    /// nbdkit's file plugin: a pool of threads.
    NbdkitFile,
}

impl Server {
    const USUAL: [Self; 3] = [Self::Pollux, Self::QemuNbd, Self::NbdkitFile];

    fn name(self) -> &'static str {
        match self {
            Self::Pollux => "pollux",
            Self::PolluxRing => "pollux-ring",
            Self::PolluxThreads => "pollux-threads",
            Self::QemuNbd => "qemu-nbd",
            Self::QemuNbdIoUring => "qemu-nbd-io-uring",
            Self::NbdkitFile => "nbdkit-file",
        }
    }

    fn is_a_peer(self) -> bool {
        matches!(self, Self::QemuNbd | Self::QemuNbdIoUring | Self::NbdkitFile)
    }

    fn command(self, place: &Place) -> Result<Command> {
        let (pool, socket, file) = (&place.pool, &place.socket, &place.file);
        let mut command;
        match self {
            Self::Pollux | Self::PolluxRing | Self::PolluxThreads => {
                let engine = match self {
                    Self::PolluxRing => "ring",
                    Self::PolluxThreads => "threads",
                    Self::Pollux | Self::QemuNbd | Self::QemuNbdIoUring | Self::NbdkitFile => "best",
                };
                command = Command::new(std::env::current_exe().context("where is this program?")?);
                command.arg("serve").args(["--engine", engine]);
                command.arg("--pool").arg(pool).arg("--socket").arg(socket);
            }
            Self::QemuNbd | Self::QemuNbdIoUring => {
                let aio = if self == Self::QemuNbd { "threads" } else { "io_uring" };
                command = Command::new("qemu-nbd");
                command.args(["--persistent", "--format=raw", "--cache=writeback", "--aio", aio]);
                command.arg("--socket").arg(socket).arg(file);
            }
            Self::NbdkitFile => {
                command = Command::new("nbdkit");
                command.args(["--foreground", "--unix"]).arg(socket).arg("file").arg(file);
            }
        }
        Ok(command)
    }
}

/// What fio does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    name: &'static str,
    pattern: &'static str,
    block: &'static str,
    depth: &'static str,
    reads: bool,
    /// What counts: operations, else bytes.
    small: bool,
}

const CASES: [Case; 6] = [
    Case::small("rand-read-4k-qd16", "randread", "16", true),
    Case::small("rand-write-4k-qd16", "randwrite", "16", false),
    Case::small("rand-read-4k-qd1", "randread", "1", true),
    Case::small("rand-write-4k-qd1", "randwrite", "1", false),
    Case::large("seq-read-1m", "read", true),
    Case::large("seq-write-1m", "write", false),
];

impl Case {
    const fn small(name: &'static str, pattern: &'static str, depth: &'static str, reads: bool) -> Self {
        Self { name, pattern, block: "4k", depth, reads, small: true }
    }

    const fn large(name: &'static str, pattern: &'static str, reads: bool) -> Self {
        Self { name, pattern, block: "1M", depth: "4", reads, small: false }
    }
}

/// A figure of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Metric {
    Iops,
    MbPerS,
    /// Of the time from asking to answer, in microseconds.
    P99,
}

impl Metric {
    fn of(case: Case) -> [Self; 2] {
        [if case.small { Self::Iops } else { Self::MbPerS }, Self::P99]
    }

    fn name(self) -> &'static str {
        match self {
            Self::Iops => "iops",
            Self::MbPerS => "mb_s",
            Self::P99 => "p99_us",
        }
    }
}

/// What fio saw.
#[derive(Debug, Clone, Copy)]
struct Seen {
    iops: f64,
    mb_per_s: f64,
    p99_us: f64,
}

impl Seen {
    fn figure(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Iops => self.iops,
            Metric::MbPerS => self.mb_per_s,
            Metric::P99 => self.p99_us,
        }
    }
}

/// Where everything is.
struct Place {
    directory: Mutex<Option<tempfile::TempDir>>,
    server: Mutex<Option<Child>>,
    pool: PathBuf,
    socket: PathBuf,
    file: PathBuf,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(Role::Serve(options)) = cli.role {
        return serve_pool(options).map(|()| ExitCode::SUCCESS);
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    eprintln!("bench: making a file of {} MiB in {}", SIZE_BYTES >> 20, cli.bench.at.display());
    let place = Arc::new(Place::make(&cli.bench.at)?);
    let (ended, end) = oneshot::channel();
    let worker = {
        let (place, options) = (Arc::clone(&place), cli.bench);
        // A receiver that is gone has been interrupted, and takes everything down.
        thread::spawn(move || drop(ended.send(place.fill().and_then(|()| run(&place, &options)))))
    };
    let outcome = runtime.block_on(unless_interrupted(end));
    place.clear();
    let Some(outcome) = outcome else {
        eprintln!("bench: interrupted; cleaned up");
        // The benchmark's thread still waits for things that are gone.
        std::process::exit(INTERRUPTED.into());
    };
    // A panic was told on standard error by the thread itself.
    drop(worker.join());
    outcome.context("the benchmark ended by a defect of its own")?.map(|()| ExitCode::SUCCESS)
}

/// Ours: as a daemon would, on its runtime.
fn serve_pool(options: Serve) -> Result<()> {
    let kind = match options.engine {
        Engine::Best => EngineKind::Best,
        Engine::Ring => EngineKind::Ring,
        Engine::Threads => EngineKind::Threads,
    };
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let pool = Pool::open(&options.pool)?;
    let tasks = tokio_util::task::TaskTracker::new();
    let serving = async move {
        let listener = UnixListener::bind(&options.socket).context("cannot make the socket")?;
        let (words, never) = (ServeOptions { name: String::new(), read_only: false }, CancellationToken::new());
        loop {
            let (stream, _) = listener.accept().await.context("cannot accept")?;
            let mut replica = pool.open_replica(NAME, SIZE_BYTES, kind).await?;
            let end = serve(stream, &mut replica, &words, &never).await;
            eprintln!("pollux-bench-volume: {end}");
        }
    };
    runtime.block_on(tasks.spawn_on(serving, runtime.handle())).context("the server panicked")?
}

fn run(place: &Place, options: &Bench) -> Result<()> {
    let servers = if options.servers.is_empty() { Server::USUAL.to_vec() } else { options.servers.clone() };
    let wanted = |case: &&Case| options.cases.is_empty() || options.cases.iter().any(|name| name == case.name);
    let cases: Vec<Case> = CASES.iter().filter(wanted).copied().collect();
    let mut seen = Vec::new();
    for run in 1..=options.runs {
        for case in &cases {
            for server in &servers {
                let one = measure(place, *server, *case, options.seconds)
                    .with_context(|| format!("{} with {} failed", case.name, server.name()))?;
                eprintln!(
                    "bench: {run}/{} {:19} {:17} {:9.0} iops {:8.1} MB/s  p99 {:8.1} us",
                    options.runs,
                    case.name,
                    server.name(),
                    one.iops,
                    one.mb_per_s,
                    one.p99_us
                );
                seen.push((*server, *case, one));
            }
        }
    }
    let rows = rows(&seen, &cases, &servers);
    let verdicts = verdicts(&rows);
    let mut out = std::io::stdout();
    if options.json {
        writeln!(out, "{}", serde_json::to_string(&rows)?)?;
        verdicts.iter().for_each(|verdict| eprintln!("{verdict}"));
        return Ok(());
    }
    writeln!(out, "{:19} {:8} {:>10} {:>10} {:>6}  PEER'S NAME", "CASE", "METRIC", "POLLUX", "PEER", "RATIO")?;
    for row in &rows {
        let Row { case, metric, pollux, peer, peer_name, ratio } = row;
        writeln!(out, "{case:19} {metric:8} {pollux:>10.1} {peer:>10.1} {ratio:>6.2}  {peer_name}")?;
    }
    writeln!(out)?;
    verdicts.iter().try_for_each(|verdict| Ok(writeln!(out, "{verdict}")?))
}

impl Place {
    /// A pool with an empty replica.
    fn make(at: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("pollux-bench-")
            .tempdir_in(at)
            .with_context(|| format!("cannot make a directory in {}", at.display()))?;
        let pool = directory.path().join("pool");
        std::fs::create_dir(&pool)?;
        Pool::open(&pool)?.create(NAME, SIZE_BYTES)?;
        let (socket, file) = (directory.path().join("socket"), pool.join(NAME).join("data"));
        Ok(Self { directory: Mutex::new(Some(directory)), server: Mutex::default(), pool, socket, file })
    }

    /// Fills the replica.
    fn fill(&self) -> Result<()> {
        let mut data = File::options().write(true).open(&self.file)?;
        let (mut number, mut chunk) = (0x9e37_79b9_7f4a_7c15_u64, vec![0; 1 << 20]);
        for _ in 0..SIZE_BYTES >> 20 {
            for word in chunk.chunks_exact_mut(8) {
                // Xorshift: never zero.
                number ^= number << 13;
                number ^= number >> 7;
                number ^= number << 17;
                word.copy_from_slice(&number.to_le_bytes());
            }
            data.write_all(&chunk)?;
        }
        Ok(data.sync_all()?)
    }

    /// Ends the server, if there is one.
    fn end_server(&self) {
        if let Some(mut server) = self.server.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = std::fs::remove_file(&self.socket);
    }

    /// Nothing is left of it.
    fn clear(&self) {
        self.end_server();
        drop(self.directory.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// What the run before has written is on the disk, and everything is in memory.
    fn settle(&self) -> Result<()> {
        let mut file = File::open(&self.file)?;
        file.sync_all()?;
        std::io::copy(&mut file, &mut std::io::sink())?;
        Ok(())
    }
}

/// A server under way. Ended when it is dropped.
struct Running<'a>(&'a Place);

impl<'a> Running<'a> {
    fn start(server: Server, place: &'a Place) -> Result<Self> {
        let mut command = server.command(place)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("{} does not start; run deploy/packages", server.name()))?;
        *place.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        let running = Self(place);
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(&place.socket).is_err() {
            if let Some(child) = &mut *place.server.lock().unwrap_or_else(PoisonError::into_inner)
                && let Some(status) = child.try_wait()?
            {
                bail!("the server ended: {status}");
            }
            ensure!(Instant::now() < deadline, "the server made no socket");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(running)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.end_server();
    }
}

fn measure(place: &Place, server: Server, case: Case, seconds: u64) -> Result<Seen> {
    place.settle()?;
    let _running = Running::start(server, place)?;
    let output = Command::new("fio")
        .args(["--name=bench", "--ioengine=nbd", "--time_based", "--output-format=json", "--norandommap"])
        .arg(format!("--uri=nbd+unix:///?socket={}", place.socket.display()))
        .arg(format!("--size={SIZE_BYTES}"))
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--ramp_time={WARM_UP_S}"))
        .arg(format!("--rw={}", case.pattern))
        .arg(format!("--bs={}", case.block))
        .arg(format!("--iodepth={}", case.depth))
        .output()
        .context("fio does not start; run deploy/packages")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "fio failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    // It may say something before its report.
    let report: Value = serde_json::from_str(text.find('{').map_or("", |at| &text[at..])).context("fio's report")?;
    let job = &report["jobs"][0];
    ensure!(job["error"] == 0, "fio met an error: {}", job["error"]);
    let side = &job[if case.reads { "read" } else { "write" }];
    let figure = |value: &Value, what: &str| value.as_f64().with_context(|| format!("fio reported no {what}"));
    Ok(Seen {
        iops: figure(&side["iops"], "iops")?,
        mb_per_s: figure(&side["bw_bytes"], "bandwidth")? / 1e6,
        p99_us: figure(&side["clat_ns"]["percentile"]["99.000000"], "99th percentile")? / 1e3,
    })
}

/// Each of ours beside each peer: medians.
fn rows(seen: &[(Server, Case, Seen)], cases: &[Case], servers: &[Server]) -> Vec<Row> {
    let median = |server: Server, case: Case, metric: Metric| {
        let of = seen.iter().filter(|it| it.0 == server && it.1 == case);
        Spread::of(of.map(|it| it.2.figure(metric))).map(|spread| spread.median)
    };
    let ours = Some(Server::Pollux).filter(|it| servers.contains(it));
    let ours = ours.or_else(|| servers.iter().find(|server| !server.is_a_peer()).copied());
    let peers: Vec<Server> = servers.iter().filter(|server| Some(**server) != ours).copied().collect();
    let mut rows = Vec::new();
    for case in cases {
        for metric in Metric::of(*case) {
            for peer in &peers {
                let both = ours.and_then(|ours| median(ours, *case, metric)).zip(median(*peer, *case, metric));
                let row = |(pollux, other)| Row::of(case.name, metric.name(), pollux, other, peer.name());
                rows.extend(both.map(row));
            }
        }
    }
    rows
}

/// A line for each target: at least as much as `qemu-nbd`.
fn verdicts(rows: &[Row]) -> Vec<String> {
    let counts = |row: &&Row| row.peer_name == Server::QemuNbd.name() && row.metric != Metric::P99.name();
    let judge = |row: &Row| {
        let Row { case, metric, pollux, peer, peer_name, ratio } = row;
        let met = if *ratio >= 1.0 { "met   " } else { "MISSED" };
        format!(
            "{met}  {case:18} {metric} {pollux:.0}, {ratio:.2} x the {peer:.0} of {peer_name}; at least 1.0 is aimed at"
        )
    };
    rows.iter().filter(counts).map(judge).collect()
}
