//! The command line: `pollux NOUN VERB`.
//!
//! One file per noun. A verb asks the local daemon through [`crate::api::client`], prints the answer as a table or as JSON, and
//! ends with an exit code that tells the kind of failure ([`exit`]). Three verbs work without a daemon because they are before
//! it or are it: `cluster init`, `node join` and `node run`; `lab` makes its own.

mod cluster;
mod completions;
mod confirm;
mod events;
mod exit;
mod follow;
mod lab;
mod log;
mod looking;
mod man;
mod metrics;
mod node;
mod op;
mod output;
mod pool;
mod rate;
mod remove;
mod stale;
mod suggest;
mod terminal;
#[cfg(test)]
mod tests;
mod vm;
mod volume;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::api::{DEFAULT_SOCKET, client::Client};

use exit::{Exit, Failure};
use output::Format;

const STORY: &str = "\
A first cluster:
  n1# pollux cluster init --name n1 --listen 192.0.2.11:7700
  n1# pollux node run                       # in the foreground; or: systemctl start pollux
  n1# pollux cluster token --node n2        # prints a token, good once and for an hour
  n2# pollux node join --token pollux1... --listen 192.0.2.12:7700
  n2# pollux node run
  n1# pollux cluster status

A first VM, and its first move:
  n1# pollux vm create web --kernel /boot/vmlinuz --initrd /srv/web.img --append console=ttyS0 --nic br0
  n1# pollux vm migrate web --to n2

A disk that outlives a host:
  n1# pollux pool add n1:fast /srv/fast && pollux pool add n2:fast /srv/fast
  n1# pollux volume create data --size 10G --pool n1:fast --pool n2:fast
  n1# pollux volume attach data --vm web    # while web is stopped

Only one machine? `pollux lab --help`

Files and environment:
  POLLUX_SOCKET, --socket   the daemon's socket (root and group `pollux` may use it)
  POLLUX_DIR, --dir         a node's identity, log and keys
  POLLUX_QEMU, --qemu       the QEMU that runs its guests
  POLLUX_LOG                what the daemon logs, such as `info` or `info,pollux=debug`
Exit codes: `pollux help exit-codes`";

/// What every verb takes, apart from its own.
const GLOBAL: &str = "Global options";

/// Threads that wait for something else are waited for by the process's end for so long, in milliseconds.
const THREADS_MS_MAX: u64 = 2_000;

/// Virtual machines that move between hosts without stopping.
#[derive(Debug, Parser)]
#[command(name = "pollux", version, after_help = STORY, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    /// The daemon's socket.
    #[arg(long, global = true, env = "POLLUX_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH", help_heading = GLOBAL)]
    socket: PathBuf,
    /// How results are printed.
    #[arg(long, short, global = true, value_enum, default_value_t, value_name = "FORMAT", help_heading = GLOBAL)]
    output: Format,
    /// Read what the node knew last, also without a quorum; the output says how old that may be.
    #[arg(long, global = true, help_heading = GLOBAL)]
    stale: bool,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// The cluster as a whole: found it, let nodes join, see whether it is well.
    #[command(subcommand, arg_required_else_help = true)]
    Cluster(cluster::Cluster),
    /// Nodes: join, run the daemon, list.
    #[command(subcommand, arg_required_else_help = true)]
    Node(node::Node),
    /// Virtual machines: create, start, stop, move.
    #[command(subcommand, arg_required_else_help = true)]
    Vm(vm::Vm),
    /// Pools: directories on nodes, in which volumes are.
    #[command(subcommand, arg_required_else_help = true)]
    Pool(pool::Pool),
    /// Volumes: virtual disks with up to three replicas.
    #[command(subcommand, arg_required_else_help = true)]
    Volume(volume::Volume),
    /// Operations: long-running changes such as moves.
    #[command(subcommand, arg_required_else_help = true)]
    Op(op::Op),
    /// What happened, and what happens from now on.
    #[command(after_help = events::EXAMPLES)]
    Events(events::Events),
    /// Several nodes on this one machine, to try things and to break them.
    #[command(subcommand, arg_required_else_help = true, after_help = lab::STORY)]
    Lab(lab::Lab),
    /// What this node measures, as Prometheus reads it.
    #[command(after_help = metrics::EXAMPLES)]
    Metrics,
    /// What the exit codes mean.
    #[command(name = "exit-codes", long_about = Exit::table())]
    ExitCodes,
    /// What a shell needs to complete `pollux` at the Tab key.
    #[command(after_help = completions::INSTALL)]
    Completions(completions::Completions),
    /// Write the manual pages, one for each verb.
    #[command(after_help = man::INSTALL)]
    Man(man::Man),
}

/// What every verb that asks the daemon needs.
struct Context {
    client: Client,
    format: Format,
}

impl Context {
    /// Print what was read: for scripts with a field `age_ms`, for people under a line that says the same, if it may be old.
    fn show_read<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let Some(age) = self.client.age() else { return output::show(self.format, value, text) };
        let aged = stale::with_age(value, age)?;
        output::show(self.format, &aged, |_| format!("{}\n{}", stale::headline(age), text(value)))
    }
}

/// The program: parse, do, say what went wrong, end with the code for it.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = cli.output;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(format, &failure);
            ExitCode::from(failure.exit.code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    if let Noun::Node(node::Node::Run(run)) = &cli.noun {
        log::start(run.log_format)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot start threads: {error}")))?;
    let done = runtime.block_on(dispatch(cli));
    // A thread that hangs in storage, say in `blkid`, keeps nothing from ending.
    runtime.shutdown_timeout(Duration::from_millis(THREADS_MS_MAX));
    done
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let format = cli.output;
    if cli.stale {
        stale::check(&cli.noun)?;
    }
    let client = Client::new(&cli.socket);
    let context = Context { client: if cli.stale { client.stale() } else { client }, format };
    match cli.noun {
        Noun::Cluster(cluster::Cluster::Init(verb)) => cluster::init(format, &verb),
        Noun::Cluster(cluster::Cluster::Token(verb)) => cluster::token(&context, verb).await,
        Noun::Cluster(cluster::Cluster::Status) => cluster::status(&context).await,
        Noun::Node(node::Node::Join(verb)) => node::join(format, verb).await,
        Noun::Node(node::Node::Run(verb)) => node::run(cli.socket, verb).await,
        Noun::Node(node::Node::List) => node::all(&context).await,
        Noun::Node(node::Node::Show { name }) => node::one(&context, &name).await,
        Noun::Node(node::Node::Remove(verb)) => remove::run(&context, verb).await,
        Noun::Vm(verb) => vm::run(&context, verb).await,
        Noun::Pool(verb) => pool::run(&context, verb).await,
        Noun::Volume(verb) => volume::run(&context, verb).await,
        Noun::Op(verb) => op::run(&context, verb).await,
        Noun::Events(verb) => events::run(&context, &verb).await,
        Noun::Lab(verb) => lab::run(format, verb),
        Noun::Metrics => metrics::run(&context).await,
        Noun::ExitCodes => output::emit(&Exit::table()),
        Noun::Completions(verb) => completions::run(&verb),
        Noun::Man(verb) => man::run(format, &verb),
    }
}
