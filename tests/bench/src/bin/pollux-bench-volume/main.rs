//! `pollux-bench-volume`: our block path beside QEMU's and nbdkit's, in turn: one bare replica, and volumes with one to three.
//!
//! Replicas lie in pools of their own, full of data that is no zeros. fio, as an NBD client on a Unix socket, reads and writes through
//! each server; every figure has servers freshly started and files that are on the disk and in memory. Servers run as processes of their
//! own; ours are this program, told to `serve` a bare replica, a `volume`, or a replica `beyond`, on another node. Nodes are
//! network namespaces of a lab, joined by cables. The benchmark runs on a thread; the first one waits for its end or for a signal, and
//! cleans up in either case; a process of its own does so should this one be killed.

mod case;
mod measure;
mod place;
mod serve;
mod server;
mod start;
mod verdict;

use std::{io::Write as _, path::PathBuf, process::ExitCode, sync::Arc, thread};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use pollux_bench::{INTERRUPTED, Row, unless_interrupted};
use pollux_lab::{Lab, LabName};
use tokio::{
    runtime::{Handle, Runtime},
    sync::oneshot,
};

use crate::{
    case::{CASES, Case},
    place::{File, Place},
    server::Server,
};

/// Measures our block path beside others.
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
    Serve(serve::Bare),
    /// Serves a volume with a replica here, and perhaps others on other nodes, to one client after the other.
    Volume(serve::Mirrored),
    /// Has a replica for a volume of another node.
    Beyond(serve::Beyond),
    /// Takes a lab down that was left behind.
    Sweep {
        /// Its name.
        #[arg(long)]
        lab: LabName,
    },
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
    /// Only this server; may be given several times [default: all but pollux-ring, pollux-threads and qemu-nbd-io-uring].
    #[arg(long = "server", value_enum)]
    servers: Vec<Server>,
    /// The cables between the nodes carry so many 10^6 bits per second at most, in each direction [default: as many as they can].
    #[arg(long, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    link_mbit: Option<u32>,
    /// A directory for the files, on the file system to be measured; up to 10 GiB.
    #[arg(long, default_value = "/var/tmp")]
    at: PathBuf,
    /// An array of rows on standard output instead of the table; the verdicts go to standard error.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match play_or_bench(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pollux-bench-volume: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play_or_bench(cli: Cli) -> Result<ExitCode> {
    if let Some(role) = cli.role {
        return play(role).map(|()| ExitCode::SUCCESS);
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let place = Arc::new(Place::make(&cli.bench.at)?);
    let (ended, end) = oneshot::channel();
    let worker = {
        let (place, options, handle) = (Arc::clone(&place), cli.bench, runtime.handle().clone());
        // A receiver that is gone has been interrupted, and takes everything down.
        thread::spawn(move || drop(ended.send(run(&place, &options, &handle))))
    };
    let outcome = runtime.block_on(unless_interrupted(end));
    let Some(outcome) = outcome else {
        place.clear()?;
        eprintln!("bench: interrupted; cleaned up");
        // The benchmark's thread still waits for things that are gone.
        std::process::exit(INTERRUPTED.into());
    };
    // A panic was told on standard error by the thread itself.
    drop(worker.join());
    let cleared = place.clear();
    outcome.context("the benchmark ended by a defect of its own")??;
    cleared?;
    Ok(ExitCode::SUCCESS)
}

/// Ours: as a daemon would, on its runtime.
fn play(role: Role) -> Result<()> {
    let runtime = Runtime::new().context("cannot start the runtime")?;
    let tasks = tokio_util::task::TaskTracker::new();
    let handle = runtime.handle();
    let playing = match role {
        Role::Serve(options) => tasks.spawn_on(serve::bare(options), handle),
        Role::Volume(options) => tasks.spawn_on(serve::mirrored(options), handle),
        Role::Beyond(options) => tasks.spawn_on(serve::beyond(options), handle),
        Role::Sweep { lab } => return Ok(Lab::down(&lab)?),
    };
    runtime.block_on(playing).context("the server panicked")?
}

fn run(place: &Place, options: &Bench, runtime: &Handle) -> Result<()> {
    let servers = if options.servers.is_empty() { Server::USUAL.to_vec() } else { options.servers.clone() };
    let wanted = |case: &&Case| options.cases.is_empty() || options.cases.iter().any(|name| name == case.name);
    let cases: Vec<Case> = CASES.iter().filter(wanted).copied().collect();
    let pairs = || cases.iter().flat_map(|case| servers.iter().map(move |server| (*server, *case)));
    let measured = || pairs().filter(|(server, case)| server.is_about(*case));
    let mut files: Vec<File> = measured().flat_map(|(server, case)| server.files(case)).copied().collect();
    files.sort_unstable();
    files.dedup();
    let bytes: u64 = files.iter().map(|file| file.size()).sum();
    eprintln!("bench: making {} replicas, {} MiB in all, in {}", files.len(), bytes >> 20, options.at.display());
    place.fill(&files)?;
    if measured().any(|(server, _)| server.travels()) {
        eprintln!("bench: bringing up {} nodes", place::NODES);
        place.set_up_nodes(options.link_mbit)?;
    }
    let mut taken = Vec::new();
    for run in 1..=options.runs {
        for (server, case) in measured() {
            let one = measure::measure(place, server, case, options.seconds, runtime)
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
            taken.push((server, case, one));
        }
    }
    let rows = verdict::rows(&taken, &cases, &servers);
    let verdicts = verdict::verdicts(&taken, &cases);
    let mut out = std::io::stdout();
    if options.json {
        writeln!(out, "{}", serde_json::to_string(&rows)?)?;
        verdicts.iter().for_each(|verdict| eprintln!("{verdict}"));
        return Ok(());
    }
    writeln!(out, "{:29} {:8} {:>10} {:>10} {:>6}  PEER'S NAME", "CASE", "METRIC", "POLLUX", "PEER", "RATIO")?;
    for row in &rows {
        let Row { case, metric, pollux, peer, peer_name, ratio } = row;
        writeln!(out, "{case:29} {metric:8} {pollux:>10.1} {peer:>10.1} {ratio:>6.2}  {peer_name}")?;
    }
    writeln!(out)?;
    verdicts.iter().try_for_each(|verdict| Ok(writeln!(out, "{verdict}")?))
}
