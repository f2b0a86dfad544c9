//! `pollux-sim`: runs simulations by seed, on the command line.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use clap::{Args, Parser, Subcommand};
use pollux_sim::protocol::{self, Control, Failure, Outcome, Settings};

/// Simulates clusters; one seed decides everything.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    simulation: Option<Simulation>,
    /// Without a simulation named: run all there are with this many seeds each.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
}

#[derive(Subcommand)]
enum Simulation {
    /// The migration protocol: real state machine and VM cores, model guests, links and log.
    Protocol(Seeds),
}

#[derive(Args)]
struct Seeds {
    /// How many seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// This seed alone.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Print everything that happens (with --seed).
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Events with faults, before the cluster must converge.
    #[arg(long, default_value_t = Settings::default().steps)]
    steps: u64,
    /// Put a defect in, to see that it is found.
    #[arg(long)]
    control: Option<Control>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let good = match cli.simulation {
        Some(Simulation::Protocol(seeds)) => simulate_protocol(&seeds),
        None => {
            let Settings { steps, .. } = Settings::default();
            simulate_protocol(&Seeds {
                seeds: cli.seeds,
                from: cli.from,
                seed: None,
                trace: false,
                steps,
                control: None,
            })
        }
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn simulate_protocol(args: &Seeds) -> bool {
    let settings = Settings { steps: args.steps, control: args.control, print: args.trace, ..Settings::default() };
    let (from, seeds) = args.seed.map_or((args.from, args.seeds), |seed| (seed, 1));
    let began = Instant::now();
    let (total, failures) = sweep(from, seeds, &settings);
    let seconds = began.elapsed().as_secs_f64();
    if let Some(failure) = failures.first().filter(|_| !args.trace) {
        eprintln!("{failure}");
    }
    for failure in failures.iter().skip(1) {
        eprintln!("seed {}: {}", failure.seed, failure.what);
    }
    println!("protocol: {seeds} seeds, {} failed, {seconds:.1} s: {total:?}", failures.len());
    failures.is_empty()
}

/// Runs seeds on every processor there is; failures come sorted by seed.
fn sweep(from: u64, seeds: u64, settings: &Settings) -> (Outcome, Vec<Failure>) {
    let next = AtomicU64::new(from);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let (mut total, mut failures) = (Outcome::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds {
                return (total, failures);
            }
            match protocol::run(seed, settings) {
                Ok(outcome) => total.add(&outcome),
                Err(failure) => failures.push(*failure),
            }
        }
    };
    let mut total = Outcome::default();
    let mut failures = Vec::new();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (outcome, mut found) = worker.join().expect("a worker catches what its runs do");
            total.add(&outcome);
            failures.append(&mut found);
        }
    });
    failures.sort_by_key(|failure| failure.seed);
    (total, failures)
}
