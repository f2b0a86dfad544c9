//! What can go wrong with a lab, in words for the person at the terminal.

use std::{io, path::PathBuf};

use crate::name::NODES_MAX;

/// A verb failed. What it had begun is either undone or found by `down`.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Not a name for a lab.
    #[error("'{0}' cannot name a lab: a letter, then up to 11 letters or digits, all lower case")]
    BadName(String),
    /// Not a size for a lab.
    #[error("a lab has 1 to {max} nodes, not {0}", max = NODES_MAX)]
    BadSize(u8),
    /// Not a directory for a lab.
    #[error("the lab's directory {dir} {why}")]
    BadDir {
        /// Which.
        dir: PathBuf,
        /// What is wrong with it, and what to do.
        why: &'static str,
    },
    /// Not a cable.
    #[error("'{0}' is no cable of this lab; write n1 (all of its cables), n1:n2 (both ways) or 'n1>n2' (one way)")]
    BadCable(String),
    /// There is one already.
    #[error("the lab '{0}' is up already, or something of it is left; end it first: `pollux lab down --name {0}`")]
    Exists(String),
    /// There is none.
    #[error("there is no lab '{name}'{}; make one: `pollux lab up --name {name}`", known(.labs))]
    NotUp {
        /// The name asked for.
        name: String,
        /// The labs there are.
        labs: Vec<String>,
    },
    /// No such node or namespace in it.
    #[error("the lab '{lab}' has no '{host}'; it has {}", .hosts.join(", "))]
    NoHost {
        /// Which lab.
        lab: String,
        /// The name asked for.
        host: String,
        /// What it has.
        hosts: Vec<String>,
    },
    /// Another process works on it.
    #[error("the lab '{name}' is being changed by another process for {waited_s} s; wait for it, or end it")]
    Locked {
        /// Which lab.
        name: String,
        /// How long we waited, in seconds.
        waited_s: u64,
    },
    /// The daemon runs already.
    #[error("the daemon of {node} runs already, as process {pid}")]
    Running {
        /// Whose.
        node: String,
        /// Which process.
        pid: i32,
    },
    /// The daemon does not run.
    #[error("the daemon of {node} does not run; start it: `pollux lab start {node}`")]
    NotRunning {
        /// Whose.
        node: String,
    },
    /// The daemon ended by itself.
    #[error("the daemon of {node} ended by itself; {log} ends with:\n{tail}")]
    DaemonEnded {
        /// Whose.
        node: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// Something did not come about in time.
    #[error("{what} did not happen within {waited_s} s; {log} ends with:\n{tail}")]
    Deadline {
        /// What was waited for, and how far it got.
        what: String,
        /// How long, in seconds.
        waited_s: u64,
        /// The log of the node it was waited for on.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// Processes that do not end.
    #[error("processes {0:?} of the lab do not end, not even when killed; they may hang in the kernel")]
    Stubborn(Vec<i32>),
    /// A program is missing.
    #[error("`{program}` is needed and not installed; install the package {package}")]
    Missing {
        /// The program.
        program: String,
        /// Where Debian has it.
        package: &'static str,
    },
    /// A program failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// As it would be typed.
        command: String,
        /// How it ended.
        status: String,
        /// What it complained of.
        stderr: String,
    },
    /// A program answered something else than agreed.
    #[error("`{command}` answered something unexpected: {answer}")]
    Answer {
        /// As it would be typed.
        command: String,
        /// The beginning of the answer.
        answer: String,
    },
    /// The lab's state file is from another version or broken.
    #[error("{path} is not the state of a lab this version knows; `pollux lab down` cleans up without it")]
    BadState {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A file, a namespace or a process could not be had.
    #[error("{what} failed")]
    Io {
        /// What was being done, to what.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn known(labs: &[String]) -> String {
    if labs.is_empty() { String::new() } else { format!(" (there are: {})", labs.join(", ")) }
}

impl LabError {
    /// For `map_err`: what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
