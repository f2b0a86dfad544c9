//! `pollux lab`: several nodes on this one machine, to try things and to break them. A thin face on the package `pollux-lab`.
//!
//! Blocking, as nothing else happens in the meantime; `lab exec` becomes the command that it was given.

use std::{ffi::OsString, os::unix::process::CommandExt, path::PathBuf};

use clap::{Args, Subcommand};
use pollux_lab::{Cable, Daemon, DaemonState, Lab as Made, LabConfig, LabError, LabName, LabStatus, NODES_MAX, names};

use super::{
    exit::{Exit, Failure},
    output::{Format, list, show, table},
};

pub(crate) const STORY: &str = "\
A cluster of three on this machine, as root; the host's own network is not touched:
  pollux lab up --nodes 3
  pollux lab exec n1 -- pollux cluster status
  pollux lab exec n1 -- pollux vm create web --kernel ... --initrd ... --append ... --nic br0
  pollux lab exec n1 -- pollux vm migrate web --to n2
  pollux lab exec lan -- ping -c 3 10.78.0.10          # `lan`: where clients are
Break it:
  pollux lab cut n1          # off the cluster's network; or n1:n2, or 'n1>n2' one way only
  pollux lab heal            # all cables, or the one named
  pollux lab kill n2         # its daemon, without warning; its VMs end with it
  pollux lab stop n2         # its daemon, in good order
  pollux lab start n2
  pollux lab down";

/// Verbs about labs.
#[derive(Debug, Subcommand)]
pub(crate) enum Lab {
    /// Make a lab: nodes n1, n2, ... that form a cluster, and `lan` for clients.
    Up(Up),
    /// Run a command on a node or on `lan`, and end as it ends. `pollux` there speaks to that node's daemon.
    #[command(after_help = "Example:\n  pollux lab exec n1 -- pollux vm list")]
    Exec(Exec),
    /// Cut cables of the cluster's network. The guests' network stays whole.
    Cut(CutCable),
    /// Mend what was cut.
    Heal(HealCable),
    /// Kill a node's daemon without warning.
    Kill(OneNode),
    /// Tell a node's daemon to end, as a shutdown of its host does, and wait for that.
    Stop(OneNode),
    /// Halt a node's daemon in its tracks.
    Pause(Pause),
    /// Let a paused daemon go on.
    Resume(OneNode),
    /// Start a node's daemon again.
    Start(OneNode),
    /// What there is of a lab.
    Status(Named),
    /// End a lab and everything of it. Also cleans up after one that was only half made.
    Down(Named),
}

/// Which lab.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// The lab's name: a letter, then up to 11 letters or digits.
    #[arg(long, default_value = "lab")]
    name: LabName,
}

/// What a lab is to be.
#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    lab: Named,
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES_MAX)))]
    nodes: u8,
    /// Where it keeps its files [default: /run/pollux-lab/NAME].
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// What to run where.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    lab: Named,
    /// A node, or `lan`.
    host: String,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Which cable to cut.
#[derive(Debug, Args)]
pub(crate) struct CutCable {
    #[command(flatten)]
    lab: Named,
    /// `n1` (all of its cables), `n1:n2` (both ways) or `n1>n2` (one way).
    cable: Cable,
}

/// Which cable to mend.
#[derive(Debug, Args)]
pub(crate) struct HealCable {
    #[command(flatten)]
    lab: Named,
    /// As for `cut`; without it all.
    cable: Option<Cable>,
}

/// Which node.
#[derive(Debug, Args)]
pub(crate) struct OneNode {
    #[command(flatten)]
    lab: Named,
    /// The node's name.
    node: String,
}

/// Which node, and how much of it.
#[derive(Debug, Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    node: OneNode,
    /// Its VMs too, as when the whole host stops.
    #[arg(long)]
    with_vms: bool,
}

pub(crate) fn run(format: Format, verb: Lab) -> Result<(), Failure> {
    match verb {
        Lab::Up(verb) => up(format, verb),
        Lab::Exec(verb) => exec(&verb),
        Lab::Cut(verb) => told(format, &Made::open(&verb.lab.name)?.cut(verb.cable)?),
        Lab::Heal(verb) => told(format, &Made::open(&verb.lab.name)?.heal(verb.cable)?),
        Lab::Kill(verb) => on_node(format, &verb, |lab, node| lab.kill(node)),
        Lab::Stop(verb) => on_node(format, &verb, |lab, node| lab.stop(node)),
        Lab::Pause(verb) => on_node(format, &verb.node, |lab, node| lab.pause(node, verb.with_vms)),
        Lab::Resume(verb) => on_node(format, &verb, |lab, node| lab.resume(node)),
        Lab::Start(verb) => on_node(format, &verb, |lab, node| lab.start(node)),
        Lab::Status(verb) => told(format, &Made::open(&verb.name)?.status()?),
        Lab::Down(verb) => down(format, &verb.name),
    }
}

fn up(format: Format, verb: Up) -> Result<(), Failure> {
    let binary = std::env::current_exe()
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot tell where this program is: {error}")))?;
    let config = LabConfig { name: verb.lab.name, nodes: verb.nodes, daemon: Daemon::Pollux(binary), dir: verb.dir };
    told(format, &Made::up(&config)?.status()?)
}

/// Becomes the command: its signals, its terminal and its exit code are this process's.
fn exec(verb: &Exec) -> Result<(), Failure> {
    let mut command = Made::open(&verb.lab.name)?.host(&verb.host)?.command(&verb.command);
    let error = command.exec();
    Err(Failure::new(Exit::Internal, format!("cannot run `ip netns exec`: {error}"))
        .todo("install the package iproute2"))
}

fn on_node(
    format: Format,
    verb: &OneNode,
    act: impl FnOnce(&Made, &str) -> Result<(), LabError>,
) -> Result<(), Failure> {
    let lab = Made::open(&verb.lab.name)?;
    act(&lab, &verb.node)?;
    told(format, &lab.status()?)
}

fn down(format: Format, name: &LabName) -> Result<(), Failure> {
    // Taking down what is not there succeeds, so that cleaning up twice is no failure; a typo should not pass for that.
    let known = names().contains(name);
    Made::down(name)?;
    show(format, &serde_json::json!({ "name": name, "was_up": known }), |_| match known {
        true => format!("lab {name} is down\n"),
        false => format!("there was no lab {name}\n"),
    })
}

fn told(format: Format, status: &LabStatus) -> Result<(), Failure> {
    show(format, status, status_text)
}

fn status_text(status: &LabStatus) -> String {
    let mut text = list([
        ("lab", status.name.to_string()),
        ("files", status.dir.display().to_string()),
        ("cut", if status.cuts.is_empty() { "nothing".to_owned() } else { status.cuts.join(", ") }),
    ]);
    text.push('\n');
    text.push_str(&table(
        ["NODE", "DAEMON", "PROCESS", "ADDRESS", "NAMESPACE"],
        &[2],
        status.nodes.iter().map(|node| {
            let (daemon, process) = match node.daemon {
                DaemonState::Running { pid } => ("running", pid.to_string()),
                DaemonState::Paused { pid } => ("paused", pid.to_string()),
                DaemonState::Stopped => ("stopped", String::new()),
            };
            [node.name.clone(), daemon.to_owned(), process, node.address.to_string(), node.namespace.clone()]
        }),
    ));
    text
}

impl From<LabError> for Failure {
    fn from(error: LabError) -> Self {
        let exit = match &error {
            LabError::BadName(_) | LabError::BadSize(_) | LabError::BadDir { .. } | LabError::BadCable(_) => {
                Exit::Usage
            }
            LabError::NotUp { .. } | LabError::NoHost { .. } => Exit::NotFound,
            LabError::Exists(_) | LabError::Locked { .. } | LabError::Running { .. } | LabError::NotRunning { .. } => {
                Exit::Conflict
            }
            LabError::DaemonEnded { .. } => Exit::Failed,
            LabError::Deadline { .. } => Exit::TimedOut,
            LabError::Stubborn(_)
            | LabError::Missing { .. }
            | LabError::Command { .. }
            | LabError::Answer { .. }
            | LabError::BadState { .. }
            | LabError::Io { .. } => Exit::Internal,
        };
        Self::from_error(exit, &error)
    }
}

#[cfg(test)]
mod tests {
    use pollux_lab::NodeStatus;

    use super::*;

    #[test]
    fn the_status_of_a_lab_tells_what_was_done_to_it() {
        let node = |number: u8, daemon| NodeStatus {
            name: format!("n{number}"),
            address: format!("10.77.0.{number}:7700").parse().unwrap(),
            namespace: format!("plx-lab-n{number}"),
            dir: format!("/run/pollux-lab/lab/n{number}").into(),
            daemon,
        };
        let status = LabStatus {
            name: "lab".parse().unwrap(),
            dir: "/run/pollux-lab/lab".into(),
            nodes: vec![node(1, DaemonState::Running { pid: 4711 }), node(2, DaemonState::Stopped)],
            cuts: vec!["n1>n2".into()],
        };
        insta::assert_snapshot!(status_text(&status), @r"
        lab    lab
        files  /run/pollux-lab/lab
        cut    n1>n2

        NODE  DAEMON   PROCESS  ADDRESS         NAMESPACE
        n1    running     4711  10.77.0.1:7700  plx-lab-n1
        n2    stopped        -  10.77.0.2:7700  plx-lab-n2
        ");
    }
}
