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
mod wire;

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use pollux_bench::{INTERRUPTED, unless_interrupted};
use tokio::{runtime::Runtime, sync::oneshot};

use case::Case;
use mover::System;
use stage::{Ground, Programs};

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

fn main() -> ExitCode {
    let Bench::Migrate(options) = Cli::parse().bench;
    match run(options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pollux-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Migrate) -> Result<ExitCode> {
    let programs = Programs::find(options.pollux, options.probe, options.qemu, &options.guest)?;
    let runtime = Runtime::new().context("cannot start the runtime")?;
    let ground = Ground::claim(programs)?;
    let cases = if options.cases.is_empty() { Case::ALL.to_vec() } else { options.cases };
    let systems = if options.systems.is_empty() { System::ALL.to_vec() } else { options.systems };

    let (ended, end) = oneshot::channel();
    let worker = {
        let (ground, handle) = (ground.handle(), runtime.handle().clone());
        std::thread::spawn(move || {
            // A receiver that is gone has been interrupted, and takes everything down.
            let _ = ended.send(migrate::run(&ground, &handle, &cases, &systems, options.runs));
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
    let comparisons = outcome?;
    cleared?;

    let verdicts = report::verdicts(&comparisons);
    if options.json {
        emit(&serde_json::to_string(&report::rows(&comparisons))?)?;
        verdicts.iter().for_each(|verdict| eprintln!("{verdict}"));
    } else {
        emit(&report::table(&comparisons))?;
        emit("")?;
        verdicts.iter().try_for_each(|verdict| emit(verdict))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn emit(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}
