//! `pollux node`: hosts.

use std::{
    io::{self, Read},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Subcommand};
use pollux_api::{Health, NodeRole, NodeView, Refused};
use pollux_link::JoinError;

use crate::{
    api::DEFAULT_DIR,
    daemon::{self, JoinRefused, JoinReport, RunConfig, RunError},
    vm::qemu::Users,
    volumes::ScrubSettings,
};

use super::{
    Context,
    exit::{Exit, Failure},
    log::LogFormat,
    output::{Format, list, mib, show, span, table},
    rate::rate,
    remove, suggest,
};

/// The QEMU that Debian installs.
const DEFAULT_QEMU: &str = "/usr/bin/qemu-system-x86_64";
const DEFAULT_FIRMWARE: &str = "/usr/share/OVMF";
/// Longest token read from standard input, in bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Verbs about nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Make this host a node of a cluster, with a token made there. Then `pollux node run`.
    #[command(after_help = "Example:\n  pollux node join --token pollux1.eyJ... --listen 192.0.2.12:7700")]
    Join(Join),
    /// Run the daemon: in the foreground, until SIGTERM or Ctrl-C. Its VMs end with it.
    Run(Run),
    /// All nodes.
    List,
    /// One node.
    Show {
        /// Its name.
        name: String,
    },
    /// Remove a node for good: its identity never comes back. With --lost, release the VMs of a dead host.
    #[command(long_about = remove::STORY)]
    Remove(remove::Remove),
}

/// How a host joins.
#[derive(Debug, Args)]
pub(crate) struct Join {
    /// What `pollux cluster token --node NAME` printed. `-` reads it from standard input, out of sight of `ps`.
    #[arg(long)]
    pub(crate) token: String,
    /// Where this node's daemon will listen (UDP): an address the other nodes reach.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    /// Where the node keeps its identity, log and keys.
    #[arg(long, env = "POLLUX_DIR", default_value = DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
}

/// How the daemon runs.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Where the node keeps its identity, log and keys.
    #[arg(long, env = "POLLUX_DIR", default_value = DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
    /// The QEMU that runs the guests: an absolute path.
    #[arg(long, env = "POLLUX_QEMU", default_value = DEFAULT_QEMU, value_name = "PATH")]
    pub(crate) qemu: PathBuf,
    /// The directory with the UEFI firmware that guests can boot by, as Debian's package ovmf has it.
    #[arg(long, env = "POLLUX_FIRMWARE", default_value = DEFAULT_FIRMWARE, value_name = "DIRECTORY")]
    pub(crate) firmware: PathBuf,
    /// Most that copying may send from this node, per second, the memory of VMs and what replicas elsewhere lack together: such as
    /// `500MB` or `4Gbit`. Without it, what the network gives; consensus and what guests write go first in any case.
    #[arg(long, env = "POLLUX_BULK_BANDWIDTH", value_name = "RATE", value_parser = rate)]
    pub(crate) bulk_bandwidth: Option<u64>,
    /// Serve metrics to Prometheus on this TCP address, read-only and to everybody who reaches it; without it only the daemon's socket
    /// has them.
    #[arg(long, value_name = "ADDRESS:PORT", env = "POLLUX_METRICS")]
    pub(crate) metrics: Option<SocketAddr>,
    /// How fast each volume in use here is compared in the background, per second.
    #[arg(long, env = "POLLUX_SCRUB_RATE", value_name = "RATE", default_value = "8MB", value_parser = rate)]
    pub(crate) scrub_rate: u64,
    /// How long after one such comparison of a volume the next begins; `0s`: there is none.
    #[arg(long, env = "POLLUX_SCRUB_EVERY", value_name = "TIME", default_value = "7d", value_parser = humantime::parse_duration)]
    pub(crate) scrub_every: Duration,
    /// User numbers that VMs run as, one each; nobody else may use them.
    #[arg(long, env = "POLLUX_GUEST_USERS", value_name = "FIRST-LAST", default_value = "1879048192-1880096767")]
    pub(crate) guest_users: Users,
    /// The control group for VMs; no other daemon may use it [default: one named after cluster and node].
    #[arg(long, env = "POLLUX_CGROUP", value_name = "NAME", value_parser = group_name)]
    pub(crate) cgroup: Option<String>,
    /// How the log on standard error is written. What it holds is chosen by POLLUX_LOG (such as `info` or `pollux=debug`).
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
}

/// Join a cluster, without a daemon.
pub(crate) async fn join(format: Format, verb: Join) -> Result<(), Failure> {
    let token = if verb.token == "-" { token_from_stdin()? } else { verb.token };
    let report = daemon::join(&verb.dir, &token, verb.listen).await.map_err(|error| {
        let exit = match error {
            JoinRefused::Used(_) => Exit::Conflict,
            JoinRefused::Listen(_) | JoinRefused::Token(_) => Exit::Usage,
            JoinRefused::Join(ref refused) => of_refused_join(refused),
            JoinRefused::Dir(_) | JoinRefused::Identity(_) => Exit::Internal,
        };
        Failure::from_error(exit, &error)
    })?;
    show(format, &report, |report: &JoinReport| {
        let kept = list([
            ("cluster", report.cluster.clone()),
            ("node", format!("{} (number {})", report.node, report.id)),
            ("listens on", report.listen.to_string()),
            ("kept in", report.dir.display().to_string()),
        ]);
        format!("{kept}\nnext: `pollux node run` starts it\n")
    })
}

fn of_refused_join(error: &JoinError) -> Exit {
    match error {
        JoinError::Unreachable { .. } => Exit::Unavailable,
        JoinError::Unknown => Exit::Unknown,
        JoinError::WrongName { .. } => Exit::Usage,
        JoinError::WrongAuthority { .. }
        | JoinError::Version { .. }
        | JoinError::TokenUnknown
        | JoinError::TokenExpired
        | JoinError::TokenUsed
        | JoinError::Refused(_) => Exit::Conflict,
        JoinError::BadReply(_) | JoinError::Identity(_) | JoinError::Key(_) => Exit::Internal,
    }
}

fn token_from_stdin() -> Result<String, Failure> {
    let mut token = String::new();
    io::stdin()
        .lock()
        .take(TOKEN_BYTES_MAX)
        .read_to_string(&mut token)
        .map_err(|error| Failure::usage(format!("cannot read the token from standard input: {error}")))?;
    Ok(token.trim().to_owned())
}

/// One directory of the hierarchy, which exists for this alone.
fn group_name(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.is_empty() || text.len() > 64 || !text.chars().all(fine) {
        return Err("up to 64 letters, digits, '-' and '_'".to_owned());
    }
    Ok(text.to_owned())
}

/// Be the daemon, until a signal ends it.
pub(crate) async fn run(socket: PathBuf, verb: Run) -> Result<(), Failure> {
    let Run {
        dir,
        qemu,
        firmware,
        bulk_bandwidth,
        metrics,
        scrub_rate,
        scrub_every,
        guest_users,
        cgroup,
        log_format: _,
    } = verb;
    let scrub = ScrubSettings { bytes_per_s: scrub_rate, every: scrub_every };
    let config = RunConfig { dir, socket, qemu, firmware, bulk_bandwidth, metrics, users: guest_users, cgroup, scrub };
    daemon::run(config).await.map_err(|error| {
        let exit = match error {
            RunError::NoNode(_) => Exit::NotFound,
            RunError::Refused(_) | RunError::Removed { .. } => Exit::Conflict,
            RunError::Dir(_)
            | RunError::Identity(_)
            | RunError::Authority(_)
            | RunError::Bind(_)
            | RunError::Consensus(_)
            | RunError::Found(_)
            | RunError::LogName(_)
            | RunError::Host(_)
            | RunError::Api(_)
            | RunError::Metrics(_)
            | RunError::Io { .. } => Exit::Internal,
        };
        Failure::from_error(exit, &error)
    })
}

pub(crate) async fn all(context: &Context) -> Result<(), Failure> {
    context.show_read(&context.client.nodes().await?, |nodes| many(nodes))
}

pub(crate) async fn one(context: &Context, name: &str) -> Result<(), Failure> {
    match context.client.node(name).await {
        Ok(node) => context.show_read(&node, single),
        Err(error) => Err(suggest::for_node(&context.client, name, error).await),
    }
}

pub(crate) fn health(health: Health) -> &'static str {
    match health {
        Health::Alive => "alive",
        Health::Suspect => "suspect",
        Health::Down => "down",
        Health::Unknown => "unknown",
    }
}

fn role(node: &NodeView) -> &'static str {
    match node.role {
        _ if node.leader => "leader",
        NodeRole::Voter => "voter",
        NodeRole::Learner => "learner",
    }
}

fn heard(node: &NodeView) -> String {
    node.silent_ms.map(|ms| format!("{} ago", span(ms))).unwrap_or_default()
}

/// QEMU's version out of its version line, which distributions write in their own ways: the first thing like `10.0.2`.
fn qemu(node: &NodeView) -> &str {
    let numbers = node.qemu.split(|c: char| !c.is_ascii_digit() && c != '.');
    let version = numbers.map(|text| text.trim_matches('.')).find(|text| text.contains('.'));
    version.unwrap_or(if node.qemu.is_empty() { "none" } else { &node.qemu })
}

/// All nodes, one a line.
pub(crate) fn many(nodes: &[NodeView]) -> String {
    table(
        ["NAME", "HEALTH", "ROLE", "HEARD", "ADDRESS", "QEMU", "ACCEL", "CPUS", "MEMORY", "MOVES"],
        &[7, 8],
        nodes.iter().map(|node| {
            let moves = if node.tracking == "ok" { "yes" } else { "no" };
            // A daemon that never started has not said yet what its host is like.
            let said = |text: String| if node.incarnation == 0 { String::new() } else { text };
            [
                node.name.clone(),
                health(node.health).to_owned(),
                role(node).to_owned(),
                heard(node),
                node.address.clone(),
                said(qemu(node).to_owned()),
                said(node.accelerator.clone()),
                said(node.processors.to_string()),
                said(mib(node.memory_mib)),
                said(moves.to_owned()),
            ]
        }),
    )
}

/// What a daemon refused: `wrong cluster 2, garbage 7`.
fn refused(refused: &Refused) -> String {
    let each = refused.iter().map(|(why, times)| format!("{} {times}", why.replace('_', " ")));
    let all = each.collect::<Vec<_>>().join(", ");
    if all.is_empty() { "nothing".to_owned() } else { all }
}

fn single(node: &NodeView) -> String {
    list([
        ("name", node.name.clone()),
        ("id", node.id.to_string()),
        ("health", health(node.health).to_owned()),
        ("heard", heard(node)),
        ("role", role(node).to_owned()),
        ("address", node.address.clone()),
        ("incarnation", node.incarnation.to_string()),
        ("version", node.version.clone()),
        ("kernel", node.kernel.clone()),
        ("qemu", node.qemu.clone()),
        ("accelerator", node.accelerator.clone()),
        ("processors", node.processors.to_string()),
        ("memory", mib(node.memory_mib)),
        ("bridges", node.bridges.join(", ")),
        ("uefi firmware", if node.uefi.is_empty() { "none".to_owned() } else { format!("build {}", node.uefi) }),
        ("moves", if node.tracking == "ok" { "possible".to_owned() } else { format!("impossible: {}", node.tracking) }),
        ("lacks", if node.lacks.is_empty() { "nothing".to_owned() } else { node.lacks.join("; ") }),
        ("refused", node.refused.as_ref().map_or_else(|| "not known: it does not answer".to_owned(), refused)),
    ])
}
