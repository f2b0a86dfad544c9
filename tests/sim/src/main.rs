//! `pollux-sim`: runs simulations by seed, on the command line.

use std::{
    fmt::Debug,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::{Args, Parser, Subcommand};
use pollux_sim::{
    cluster,
    protocol::{self, Control, Settings},
    volume,
};
use tracing_subscriber::EnvFilter;

/// A run of whole nodes costs about as much as this many of the protocol alone.
const NODES_COST: u64 = 100;

/// Simulates clusters; one seed decides everything.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    simulation: Option<Simulation>,
    /// Without a simulation named: run all there are with this many seeds each (of whole nodes, a hundredth).
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
}

#[derive(Subcommand)]
enum Simulation {
    /// The migration protocol: real state machine and VM cores, model guests, links and log.
    Protocol(Protocol),
    /// A mirrored volume: the real mirror and marks, model disks, links, log and guest.
    Volume(Volume),
    /// Whole nodes: real consensus, link and VM actors, on a simulated network with simulated disks and machines.
    Cluster(Cluster),
}

#[derive(Args, Clone, Copy)]
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
}

#[derive(Args)]
struct Protocol {
    #[command(flatten)]
    seeds: Seeds,
    /// Events with faults, before the cluster must converge.
    #[arg(long, default_value_t = Settings::default().steps)]
    steps: u64,
    /// Put a defect in, to see that it is found.
    #[arg(long)]
    control: Option<Control>,
}

#[derive(Args)]
struct Volume {
    #[command(flatten)]
    seeds: Seeds,
    /// Events with faults, before the replicas must come together.
    #[arg(long, default_value_t = volume::Settings::default().steps)]
    steps: u64,
    /// Put a defect in, to see that it is found.
    #[arg(long)]
    control: Option<volume::Control>,
}

#[derive(Args)]
struct Cluster {
    #[command(flatten)]
    seeds: Seeds,
    /// Simulated seconds with faults, before the cluster must converge.
    #[arg(long, default_value_t = cluster::Settings::default().faults.as_secs())]
    seconds: u64,
    /// Put a defect in, to see that it is found.
    #[arg(long)]
    control: Option<cluster::Control>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let good = match cli.simulation {
        Some(Simulation::Protocol(args)) => simulate_protocol(&args),
        Some(Simulation::Volume(args)) => simulate_volume(&args),
        Some(Simulation::Cluster(args)) => simulate_cluster(&args),
        None => {
            let seeds = Seeds { seeds: cli.seeds, from: cli.from, seed: None, trace: false };
            let protocol = Protocol { seeds, steps: Settings::default().steps, control: None };
            let volume = Volume { seeds, steps: volume::Settings::default().steps, control: None };
            let seeds = Seeds { seeds: cli.seeds.div_ceil(NODES_COST), ..seeds };
            let cluster = Cluster { seeds, seconds: cluster::Settings::default().faults.as_secs(), control: None };
            // All, whatever comes of the first.
            simulate_protocol(&protocol) & simulate_volume(&volume) & simulate_cluster(&cluster)
        }
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn simulate_protocol(args: &Protocol) -> bool {
    let Protocol { seeds, steps, control } = *args;
    let settings = Settings { steps, control, print: seeds.trace, ..Settings::default() };
    simulate(
        "protocol",
        seeds,
        |seed| protocol::run(seed, &settings).map_err(|failure| (failure.what.clone(), failure.to_string())),
        protocol::Outcome::add,
    )
}

fn simulate_volume(args: &Volume) -> bool {
    let Volume { seeds, steps, control } = *args;
    let settings = volume::Settings { steps, control, print: seeds.trace };
    simulate(
        "volume",
        seeds,
        |seed| volume::run(seed, &settings).map_err(|failure| (failure.what.clone(), failure.to_string())),
        volume::Outcome::add,
    )
}

fn simulate_cluster(args: &Cluster) -> bool {
    let Cluster { seeds, seconds, control } = *args;
    if seeds.trace {
        // What the nodes themselves say, if RUST_LOG asks for it.
        let said = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
        tracing_subscriber::fmt().with_env_filter(said).without_time().init();
    }
    let settings = cluster::Settings { faults: Duration::from_secs(seconds), control, print: seeds.trace };
    simulate(
        "cluster",
        seeds,
        |seed| cluster::run(seed, &settings).map_err(|failure| (failure.what.clone(), failure.to_string())),
        cluster::Outcome::add,
    )
}

/// Runs seeds, tells of the first failure in full and of the others in a line; whether there was none. A failure is what
/// broke, and all there is to say.
fn simulate<T: Default + Debug + Send>(
    name: &str,
    seeds: Seeds,
    run: impl Fn(u64) -> Result<T, (String, String)> + Sync,
    add: impl Fn(&mut T, &T) + Sync,
) -> bool {
    let (from, count) = seeds.seed.map_or((seeds.from, seeds.seeds), |seed| (seed, 1));
    let began = Instant::now();
    let (total, failures) = sweep(from, count, &run, &add);
    let seconds = began.elapsed().as_secs_f64();
    for (number, (seed, (what, story))) in failures.iter().enumerate() {
        if number == 0 && !seeds.trace {
            eprintln!("{story}");
        } else {
            eprintln!("seed {seed}: {what}");
        }
    }
    println!("{name}: {count} seeds, {} failed, {seconds:.1} s: {total:?}", failures.len());
    failures.is_empty()
}

/// Runs seeds on every processor there is; failures come sorted by seed.
fn sweep<T: Default + Send, E: Send>(
    from: u64,
    seeds: u64,
    run: &(impl Fn(u64) -> Result<T, E> + Sync),
    add: &(impl Fn(&mut T, &T) + Sync),
) -> (T, Vec<(u64, E)>) {
    let next = AtomicU64::new(from);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let (mut total, mut failures) = (T::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds {
                return (total, failures);
            }
            match run(seed) {
                Ok(outcome) => add(&mut total, &outcome),
                Err(failure) => failures.push((seed, failure)),
            }
        }
    };
    let (mut total, mut failures) = (T::default(), Vec::new());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (outcome, mut found) = worker.join().expect("a worker catches what its runs do");
            add(&mut total, &outcome);
            failures.append(&mut found);
        }
    });
    failures.sort_by_key(|(seed, _)| *seed);
    (total, failures)
}
