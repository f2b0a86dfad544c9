//! Making a cluster of a lab's nodes with Pollux's own commands, as a user would, and running their daemons.

use std::{
    fs::File,
    os::unix::net::UnixStream,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;

use crate::{error::LabError, host::Host, name, process::Process, state::Daemon, tool};

/// How long a daemon has to answer on its socket, and a cluster to see all of its nodes.
const READY_MAX: Duration = Duration::from_secs(30);
const FORMED_MAX: Duration = Duration::from_secs(60);
/// Most nodes of a cluster that vote.
const VOTERS_MAX: usize = 5;
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Lines of a log that an error shows.
const TAIL_LINES: usize = 20;

#[derive(Deserialize)]
struct TokenAnswer {
    token: String,
}

#[derive(Deserialize)]
struct NodeAnswer {
    name: String,
    health: String,
    role: String,
    incarnation: u64,
}

/// Makes a new cluster's first node of `host`.
pub(crate) fn found(host: &Host, number: u8) -> Result<(), LabError> {
    let listen = name::address(number).to_string();
    pollux(host, &["cluster", "init", "--name", &host.name, "--listen", &listen, "--dir", &dir(host)], "").map(drop)
}

/// Makes `host` a node of the cluster that `member` is of.
pub(crate) fn join(host: &Host, number: u8, member: &Host) -> Result<(), LabError> {
    let words = ["cluster", "token", "--node", &host.name, "--ttl", "1h", "-o", "json"];
    let answer = pollux(member, &words, "")?;
    let token: TokenAnswer = understood(&words, &answer)?;
    let listen = name::address(number).to_string();
    // The token by standard input: what is on a command line is everybody's to read.
    pollux(host, &["node", "join", "--token", "-", "--listen", &listen, "--dir", &dir(host)], &token.token).map(drop)
}

/// Starts the daemon of `host`; it may not be ready yet.
pub(crate) fn start(host: &Host) -> Result<Process, LabError> {
    let argv = match &host.daemon {
        Daemon::Pollux(binary) => {
            let binary = binary.to_string_lossy().into_owned();
            let mut argv = vec![binary, "node".to_owned(), "run".to_owned(), "--dir".to_owned(), dir(host)];
            argv.extend(host.more_words());
            argv
        }
        Daemon::Command(argv) => argv.clone(),
    };
    let log = host.log();
    let failed = || LabError::io(format!("opening {}", log.display()));
    let out = File::options().create(true).append(true).open(&log).map_err(failed())?;
    let err = out.try_clone().map_err(failed())?;
    let mut command = host.detached(&argv);
    if let Some(dir) = &host.dir {
        command.current_dir(dir);
    }
    let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
    // `setsid` and `ip netns exec` become what they start, so this is the daemon's process id.
    let child = child.map_err(|error| tool::not_started(&command, error))?;
    let process = i32::try_from(child.id()).ok().and_then(Process::of);
    process.ok_or_else(|| ended(host))
}

/// Waits until the daemon answers on its socket. A command that is not Pollux is ready when it runs.
pub(crate) fn wait_ready(host: &Host, process: Process) -> Result<(), LabError> {
    let Some(socket) = host.socket().filter(|_| matches!(host.daemon, Daemon::Pollux(_))) else { return Ok(()) };
    let since = Instant::now();
    while UnixStream::connect(&socket).is_err() {
        if !process.is_alive() {
            process.reap();
            return Err(ended(host));
        }
        if since.elapsed() > READY_MAX {
            return Err(late(host, READY_MAX, format!("an answer of {}'s daemon on {}", host.name, socket.display())));
        }
        thread::sleep(ASK_AGAIN);
    }
    Ok(())
}

/// Waits until `host` says that all of `names` are alive.
pub(crate) fn wait_alive(host: &Host, names: &[String], within: Duration) -> Result<(), LabError> {
    let alive = |node: &NodeAnswer| node.health == "alive";
    wait_until(host, within, &format!("{} alive", names.join(", ")), |nodes| {
        names.iter().all(|name| nodes.iter().any(|node| node.name == *name && alive(node)))
    })
}

/// Waits until `host` says that so many nodes have formed a cluster: they live, have told what they are, and as many of
/// them vote as may.
pub(crate) fn wait_formed(host: &Host, size: usize) -> Result<(), LabError> {
    let ready = |node: &&NodeAnswer| node.health == "alive" && node.incarnation > 0;
    wait_until(host, FORMED_MAX, &format!("a cluster of {size}"), |nodes| {
        let voters = nodes.iter().filter(|node| node.role == "voter").count();
        nodes.iter().filter(ready).count() == size && voters == voters_of(size)
    })
}

fn wait_until(host: &Host, within: Duration, what: &str, good: impl Fn(&[NodeAnswer]) -> bool) -> Result<(), LabError> {
    let since = Instant::now();
    loop {
        let last = match health(host) {
            Ok(nodes) if good(&nodes) => return Ok(()),
            Ok(nodes) => {
                let tell = |node: &NodeAnswer| format!("{} {} {}", node.name, node.health, node.role);
                let seen: Vec<String> = nodes.iter().map(tell).collect();
                format!("it sees {}", if seen.is_empty() { "none".to_owned() } else { seen.join(", ") })
            }
            Err(error) => error.to_string(),
        };
        if since.elapsed() > within {
            return Err(late(host, within, format!("{what} as {} sees it ({last})", host.name)));
        }
        thread::sleep(ASK_AGAIN);
    }
}

fn health(host: &Host) -> Result<Vec<NodeAnswer>, LabError> {
    let words = ["node", "list", "-o", "json"];
    understood(&words, &pollux(host, &words, "")?)
}

fn pollux(host: &Host, words: &[&str], input: &str) -> Result<String, LabError> {
    let binary = match &host.daemon {
        Daemon::Pollux(binary) => binary.to_string_lossy().into_owned(),
        Daemon::Command(_) => "pollux".to_owned(),
    };
    let argv: Vec<&str> = [binary.as_str()].into_iter().chain(words.iter().copied()).collect();
    tool::run_with_input(&mut host.command(&argv), input)
}

fn understood<'a, T: Deserialize<'a>>(words: &[&str], answer: &'a str) -> Result<T, LabError> {
    serde_json::from_str(answer)
        .map_err(|_| LabError::Answer { command: format!("pollux {}", words.join(" ")), answer: tool::excerpt(answer) })
}

fn dir(host: &Host) -> String {
    host.dir.as_deref().unwrap_or_else(|| "".as_ref()).to_string_lossy().into_owned()
}

fn ended(host: &Host) -> LabError {
    LabError::DaemonEnded { node: host.name.clone(), log: host.log(), tail: host.log_tail(TAIL_LINES) }
}

fn late(host: &Host, waited: Duration, what: String) -> LabError {
    LabError::Deadline { what, waited_s: waited.as_secs(), log: host.log(), tail: host.log_tail(TAIL_LINES) }
}

/// How many nodes of a cluster of this size vote: an odd number.
fn voters_of(size: usize) -> usize {
    let most = size.min(VOTERS_MAX);
    most - (most + 1) % 2
}
