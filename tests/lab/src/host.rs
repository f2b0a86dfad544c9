//! A place in a lab to run things: a node, or the clients' side of the network.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
};

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::{
    error::LabError,
    groups,
    name::{LabName, MARKER, NAMESPACES_DIR},
    state::Daemon,
    tool,
};

/// The file with words more for a node's daemon, one a line.
const WORDS: &str = "run.words";

/// A node of a lab, or its `lan` for clients.
#[derive(Debug, Clone)]
pub struct Host {
    pub(crate) lab: LabName,
    pub(crate) name: String,
    /// A node's directory; clients have none.
    pub(crate) dir: Option<PathBuf>,
    pub(crate) daemon: Daemon,
}

/// What a command printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostOutput {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Enters the network namespace `$0` and runs the rest of its words there. Entering gives `/sys` anew, without the control groups
/// that were mounted in it: they are kept at `$1` meanwhile. The mounts are in a namespace of their own, and end with it.
const WITH_CONTROL_GROUPS: &str = r#"
keep=$1; shift
mkdir -p "$keep" && mount --rbind /sys/fs/cgroup "$keep"
exec ip netns exec "$0" sh -c 'mount --rbind "$0" /sys/fs/cgroup; exec "$@"' "$keep" "$@"
"#;

impl Host {
    /// Its name: `n1`, or `lan`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    #[must_use]
    pub fn namespace(&self) -> String {
        self.lab.namespace(&self.name)
    }

    /// A node's state directory.
    #[must_use]
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// The socket of a node's daemon.
    #[must_use]
    pub fn socket(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join("api.sock"))
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.as_ref().map(|dir| dir.join("daemon.log")).unwrap_or_default()
    }

    /// Lets the node's daemon run with these words more, from its next start on.
    ///
    /// # Errors
    /// When they cannot be written down.
    pub fn run_with(&self, words: &[&str]) -> Result<(), LabError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let path = dir.join(WORDS);
        fs::write(&path, words.join("\n")).map_err(LabError::io(format!("writing {}", path.display())))
    }

    /// What was said so; nothing, if nothing was.
    pub(crate) fn more_words(&self) -> Vec<String> {
        let written = self.dir.as_ref().and_then(|dir| fs::read_to_string(dir.join(WORDS)).ok());
        written.unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// A command that will run here, with the daemon's socket in its environment and `pollux` in its path. Its standard
    /// streams are the caller's to arrange.
    #[must_use]
    pub fn command(&self, argv: &[impl AsRef<std::ffi::OsStr>]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace()]).args(argv);
        self.dress(&mut command);
        command
    }

    /// A command that will run here and not end with the terminal it was started from. It sees the machine's control groups,
    /// as a daemon on a host of its own would.
    pub(crate) fn detached(&self, argv: &[impl AsRef<std::ffi::OsStr>]) -> Command {
        let mut command = Command::new("setsid");
        command.args(["unshare", "--mount", "sh", "-c", WITH_CONTROL_GROUPS, &self.namespace()]);
        command.arg(self.dir.as_deref().unwrap_or_else(|| Path::new("/run")).join("cgroup")).args(argv);
        self.dress(&mut command);
        command
    }

    fn dress(&self, command: &mut Command) {
        command.env(MARKER, self.lab.as_str()).env("POLLUX_LAB_HOST", &self.name);
        command.env("POLLUX_CGROUP", format!("{}{}", groups::prefix(&self.lab), self.name));
        command.env_remove("POLLUX_DIR").env_remove("POLLUX_SOCKET");
        if let Some(socket) = self.socket() {
            command.env("POLLUX_SOCKET", socket);
        }
        if let Daemon::Pollux(binary) = &self.daemon
            && let Some(place) = binary.parent()
            && let Ok(path) = env::join_paths([place.to_owned()].into_iter().chain(env::split_paths(&inherited_path())))
        {
            command.env("PATH", path);
        }
    }

    /// Runs a command here to its end.
    ///
    /// # Errors
    /// When it cannot be started; how it ends is in the result.
    pub fn exec(&self, argv: &[impl AsRef<std::ffi::OsStr>]) -> Result<HostOutput, LabError> {
        let mut command = self.command(argv);
        let Output { status, stdout, stderr } = command.output().map_err(|error| tool::not_started(&command, error))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(HostOutput { code: status.code(), stdout: text(stdout), stderr: text(stderr) })
    }

    /// Runs `work` on a thread of this process that is in this host's network: sockets it opens are there, and stay there
    /// when they are handed out.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let namespace = self.namespace();
        let failed = || LabError::io(format!("entering the network namespace {namespace}"));
        let file = File::open(Path::new(NAMESPACES_DIR).join(&namespace)).map_err(failed())?;
        let entered = || setns(&file, CloneFlags::CLONE_NEWNET).map_err(|errno| failed()(errno.into()));
        let joined = thread::scope(|scope| scope.spawn(|| entered().map(|()| work())).join());
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn log_tail(&self, lines_max: usize) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        if lines.is_empty() {
            "(nothing)".to_owned()
        } else {
            lines[lines.len().saturating_sub(lines_max)..].join("\n")
        }
    }
}

fn inherited_path() -> std::ffi::OsString {
    env::var_os("PATH").unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into())
}
