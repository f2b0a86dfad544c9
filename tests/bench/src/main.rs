//! `pollux-bench`: Pollux beside what people use today, measured in turn on the same machine in the same run.
//!
//! What is compared are ratios within one run. Times alone say more about the machine than about any of the programs.
//!
//! The benchmark itself runs on one thread; this one waits for its end or for a signal, and takes down what there is in
//! either case. A process of its own does so should this one be killed ([`stage::Sweeper`]).

mod case;
mod figures;
mod migrate;
mod mover;
mod outside;
mod report;
mod stage;
mod storage;
mod wire;

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use pollux_bench::{INTERRUPTED, Row, unless_interrupted};
use tokio::{
    runtime::{Handle, Runtime},
    sync::oneshot,
};

use case::Case;
use mover::System;
use stage::{Ground, GroundHandle, Programs};

/// Measures Pollux beside its peers. Needs root: everything happens in network namespaces of its own.
#[derive(Parser)]
#[command(name = "pollux-bench", version)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Moves the same guest with Pollux, with QEMU's own pre-copy over TCP, and with QEMU's multifd over TLS, in turn.
    Migrate(Migrate),
    /// Moves the disk of a guest that writes to it with Pollux, and with QEMU's own mirror job, in turn.
    StorageMove(StorageMove),
}

/// What every one of them has to know.
#[derive(Args)]
struct Common {
    /// An array of rows on standard output instead of the table; the verdicts go to standard error.
    #[arg(long)]
    json: bool,
    /// The directory of the test guest: vmlinuz and initrd.img.
    #[arg(long, env = "GUEST", default_value = "deploy/guest/out")]
    guest: PathBuf,
    /// The program to measure [default: beside this one].
    #[arg(long, env = "POLLUX")]
    pollux: Option<PathBuf>,
    /// The client outside [default: beside this one].
    #[arg(long, env = "PROBE")]
    probe: Option<PathBuf>,
    /// The QEMU that all of them run.
    #[arg(long, env = "POLLUX_QEMU", default_value = "/usr/bin/qemu-system-x86_64")]
    qemu: PathBuf,
}

#[derive(Args)]
struct StorageMove {
    #[command(flatten)]
    wish: storage::Wish,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Migrate {
    /// Moves with each, per case.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Only this case; may be given several times [default: all of them].
    #[arg(long = "case", value_enum)]
    cases: Vec<Case>,
    /// Only this system, to profile it; may be given several times. Without Pollux and a peer there is nothing to compare.
    #[arg(long = "system", value_enum)]
    systems: Vec<System>,
    #[command(flatten)]
    common: Common,
}

/// What a benchmark comes to.
struct Told {
    rows: Vec<Row>,
    table: String,
    verdicts: Vec<String>,
}

fn main() -> ExitCode {
    match run(Cli::parse().bench) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pollux-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(bench: Bench) -> Result<ExitCode> {
    match bench {
        Bench::Migrate(Migrate { runs, cases, systems, common }) => {
            let cases = if cases.is_empty() { Case::ALL.to_vec() } else { cases };
            let systems = if systems.is_empty() { System::ALL.to_vec() } else { systems };
            on_ground(common, move |ground, handle| {
                let comparisons = migrate::run(ground, handle, &cases, &systems, runs)?;
                let (rows, table) = (report::rows(&comparisons), report::table(&comparisons));
                Ok(Told { rows, table, verdicts: report::verdicts(&comparisons) })
            })
        }
        Bench::StorageMove(StorageMove { wish, common }) => on_ground(common, move |ground, handle| {
            let comparisons = storage::run(ground, handle, &wish)?;
            let (rows, table) = (storage::rows(&comparisons), storage::table(&comparisons));
            Ok(Told { rows, table, verdicts: storage::verdicts(&comparisons) })
        }),
    }
}

/// Measures on a thread, cleans up, and tells.
fn on_ground(
    common: Common,
    measure: impl FnOnce(&GroundHandle, &Handle) -> Result<Told> + Send + 'static,
) -> Result<ExitCode> {
    let Common { json, guest, pollux, probe, qemu } = common;
    let programs = Programs::find(pollux, probe, qemu, &guest)?;
    let runtime = Runtime::new().context("cannot start the runtime")?;
    let ground = Ground::claim(programs)?;
    let (ended, end) = oneshot::channel();
    let worker = {
        let (ground, handle) = (ground.handle(), runtime.handle().clone());
        std::thread::spawn(move || {
            // A receiver that is gone has been interrupted, and takes everything down.
            let _ = ended.send(measure(&ground, &handle));
        })
    };
    let outcome = runtime.block_on(unless_interrupted(end));
    let Some(outcome) = outcome else {
        eprintln!("bench: interrupted; cleaning up");
        ground.clear()?;
        // The benchmark's thread still waits for things that are gone.
        std::process::exit(INTERRUPTED.into());
    };
    // A panic was told on standard error by the thread itself.
    let panicked = worker.join().is_err();
    let cleared = ground.clear();
    let outcome = outcome.ok().filter(|_| !panicked).context("the benchmark ended by a defect of its own")?;
    let Told { rows, table, verdicts } = outcome?;
    cleared?;

    if json {
        emit(&serde_json::to_string(&rows)?)?;
        verdicts.iter().for_each(|verdict| eprintln!("{verdict}"));
    } else {
        emit(&table)?;
        emit("")?;
        verdicts.iter().try_for_each(|verdict| emit(verdict))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn emit(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}
