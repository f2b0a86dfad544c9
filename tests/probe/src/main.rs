//! `pollux-probe`: the instruments of the library on the command line, and a few small commands for scripts.

use std::{
    io::{self, Read},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use pollux_probe::{
    blackout::Blackout,
    guest::Guest,
    instrument::converse,
    ledger::{Ledger, LedgerOptions},
    owners::{Sampler, Watched},
    summary::{self, MigrateSummary},
};

/// Watches the Pollux test guest from outside, as a client would.
///
/// blackout, ledger and owners measure until standard input ends. A line `mark NAME` on it ends a window: its report is
/// printed as one line of JSON, under that name. The last line is the report named "total". The exit code is 0 whatever was
/// measured; judging is the caller's.
#[derive(Parser)]
#[command(name = "pollux-probe", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends numbered datagrams and tells the longest gap between answers.
    Blackout {
        /// The guest's UDP address, e.g. 10.78.0.10:7001.
        #[arg(long)]
        udp: SocketAddr,
        /// Time between two datagrams, in microseconds.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..))]
        interval_us: u64,
    },
    /// Keeps TCP connections busy and holds the guest to everything it acknowledged.
    Ledger {
        /// The guest's TCP address, e.g. 10.78.0.10:7000.
        #[arg(long)]
        tcp: SocketAddr,
        /// Connections at the same time.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
        connections: u8,
        /// Requests a second on each connection.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rate: u32,
        /// Longest wait for an answer before the connection counts as lost, in seconds.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
        patience_s: u64,
    },
    /// Reads the TAP counters of all nodes and tells how many of them emitted at the same time.
    Owners {
        /// A node and its network namespace, e.g. n1=/run/netns/plx-demo-n1; once for every node.
        #[arg(long = "node", required = true, value_parser = watched)]
        nodes: Vec<Watched>,
        /// How the names of the TAPs begin.
        #[arg(long, default_value = "px")]
        tap_prefix: String,
        /// Time between two samples, in microseconds.
        #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(200..))]
        interval_us: u64,
    },
    /// Waits until the guest answers, and prints its boot id.
    Wait {
        /// The guest's TCP address.
        #[arg(long)]
        tcp: SocketAddr,
        /// How long to wait, in seconds.
        #[arg(long, default_value_t = 60)]
        timeout_s: u64,
    },
    /// Sends the guest one request and prints its answer; fails if that is an error.
    Say {
        /// The guest's TCP address.
        #[arg(long)]
        tcp: SocketAddr,
        /// How long to wait for the answer, in seconds.
        #[arg(long, default_value_t = 60)]
        timeout_s: u64,
        /// The request, e.g. DIRTY 64 20.
        #[arg(required = true)]
        words: Vec<String>,
    },
    /// Has a shell in the guest carry a command out, as root; prints what it wrote, and ends with its exit code.
    Run {
        /// The guest's TCP address.
        #[arg(long)]
        tcp: SocketAddr,
        /// How long to wait for the command's end, in seconds.
        #[arg(long, default_value_t = 600)]
        timeout_s: u64,
        /// The command, e.g. uname -a; its words are put together with blanks between them.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Prints one value of the JSON object on standard input, e.g. report.rounds.
    Field {
        /// The keys on the way to the value, with points between them.
        path: String,
    },
    /// Prints the JSON line in which a chapter of the demo ends.
    Summarize {
        /// The chapter.
        #[arg(value_parser = ["migrate"])]
        chapter: String,
        /// What `blackout` printed.
        #[arg(long)]
        blackout: PathBuf,
        /// What `ledger` printed.
        #[arg(long)]
        ledger: PathBuf,
        /// What `owners` printed.
        #[arg(long)]
        owners: PathBuf,
        /// How the names of the windows that are moves begin.
        #[arg(long, default_value = "move-")]
        prefix: String,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pollux-probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let done = match command {
        Command::Run { tcp, timeout_s, words } => {
            return carry_out(tcp, Duration::from_secs(timeout_s), &words.join(" "));
        }
        Command::Blackout { udp, interval_us } => {
            let blackout = Blackout::start(udp, Duration::from_micros(interval_us));
            talk(blackout.with_context(|| format!("cannot send datagrams to {udp}"))?)
        }
        Command::Ledger { tcp, connections, rate, patience_s } => talk(Ledger::start(LedgerOptions {
            target: tcp,
            connections: connections.into(),
            requests_per_second: rate,
            patience: Duration::from_secs(patience_s),
        })),
        Command::Owners { nodes, tap_prefix, interval_us } => {
            talk(Sampler::start(&nodes, &tap_prefix, Duration::from_micros(interval_us))?)
        }
        Command::Wait { tcp, timeout_s } => {
            let hello = Guest::wait(tcp, Duration::from_secs(timeout_s));
            let hello = hello.with_context(|| format!("no guest answered at {tcp} within {timeout_s} s"))?;
            println!("{}", hello.boot);
            Ok(())
        }
        Command::Say { tcp, timeout_s, words } => say(tcp, Duration::from_secs(timeout_s), &words.join(" ")),
        Command::Field { path } => field(&path),
        Command::Summarize { chapter: _, blackout, ledger, owners, prefix } => {
            let (blackout, ledger) = (summary::read(&blackout)?, summary::read(&ledger)?);
            let summary = MigrateSummary::of(&blackout, &ledger, &summary::read(&owners)?, &prefix)?;
            println!("{}", serde_json::to_string(&summary)?);
            Ok(())
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn talk(instrument: impl pollux_probe::instrument::Instrument) -> Result<()> {
    converse(instrument, io::stdin().lock(), io::stdout().lock())
}

fn watched(text: &str) -> Result<Watched, String> {
    let (node, netns) = text.split_once('=').ok_or("say NODE=PATH, e.g. n1=/run/netns/plx-demo-n1")?;
    Ok(Watched { node: node.to_owned(), netns: netns.into() })
}

fn say(tcp: SocketAddr, timeout: Duration, request: &str) -> Result<()> {
    let answer = Guest::connect(tcp, timeout).and_then(|mut guest| guest.ask(request));
    let answer = answer.with_context(|| format!("the guest at {tcp} did not answer {request}"))?;
    if let Some(reason) = answer.strip_prefix("ERR ") {
        bail!("the guest at {tcp} refused {request}: {reason}");
    }
    println!("{answer}");
    Ok(())
}

fn carry_out(tcp: SocketAddr, timeout: Duration, command: &str) -> Result<ExitCode> {
    let ran = Guest::connect(tcp, timeout).and_then(|mut guest| guest.run(command));
    let ran = ran.with_context(|| format!("it is not known what became of {command} in the guest at {tcp}"))?;
    print!("{}", ran.output);
    Ok(ran.code.try_into().map_or(ExitCode::FAILURE, |code: u8| code.into()))
}

fn field(path: &str) -> Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
    let object: serde_json::Value = serde_json::from_str(&text).context("standard input is no JSON")?;
    let pointer = format!("/{}", path.replace('.', "/"));
    let value = object.pointer(&pointer).with_context(|| format!("there is no {path} in {}", text.trim()))?;
    // Text without its quotes; everything else as JSON writes it.
    println!("{}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    Ok(())
}
