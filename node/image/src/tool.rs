//! `qemu-img`, where it can do no harm.
//!
//! A chain of programs that every Debian has, each of which becomes the next one, so that it is one process from first to last:
//!
//! ```text
//!   prlimit   processor time, memory, no files written, no core
//!   unshare   no network, no shared memory of others
//!   setpriv   a user that owns nothing, no groups, no capabilities, no new privileges
//!   qemu-img  reads descriptor 0 and writes descriptor 1, both NBD connections
//! ```
//!
//! A daemon that is not root cannot give up what it does not have: then the limits hold, and the user stays.
//!
//! It is killed when it takes too long, or when whoever asked is gone.

use std::{
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
};

/// Most that is kept of what it says, in bytes; the rest is read and dropped.
const WORDS_MAX: usize = 4 * 1024;
/// Most that a description of an image may have, in bytes.
const DESCRIPTION_MAX: usize = 256 * 1024;
/// Descriptors that it may have open.
const DESCRIPTORS: u32 = 64;

/// Whom it runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The user's number.
    pub uid: u32,
    /// The group's.
    pub gid: u32,
}

/// What it may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToolLimits {
    /// Processor time, in seconds.
    pub cpu_s: u64,
    /// Address space, in bytes.
    pub memory_bytes: u64,
    /// Time by the clock, in milliseconds.
    pub time_ms: u64,
}

impl Default for ToolLimits {
    /// For a disk of some terabytes.
    fn default() -> Self {
        Self { cpu_s: 6 * 3600, memory_bytes: 2 << 30, time_ms: 24 * 3_600_000 }
    }
}

impl ToolLimits {
    /// For a look at an image's headers.
    const LOOK: Self = Self { cpu_s: 8, memory_bytes: 2 << 30, time_ms: 8_000 };
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Tool {
    /// Where it is.
    pub program: PathBuf,
    /// Whom it runs as; `None`: as we do, and with our network.
    pub identity: Option<Identity>,
    /// What it may use when it converts.
    pub limits: ToolLimits,
}

/// It did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not there.
    #[error("{} cannot be started; install qemu-utils and util-linux on this node", .program.display())]
    Start {
        /// What.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It took too long.
    #[error("qemu-img has not ended after {seconds} s, and was killed")]
    TooLong {
        /// How long it had.
        seconds: u64,
    },
    /// It said no.
    #[error("qemu-img failed ({status}): {words}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        words: String,
    },
    /// It described the image at more length than anybody needs.
    #[error("qemu-img describes the image in more than {DESCRIPTION_MAX} bytes")]
    Verbose,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) output: Vec<u8>,
    words: String,
}

impl Ended {
    /// Only if it ended well.
    pub(crate) fn well(self) -> Result<Vec<u8>, ToolError> {
        if self.status.success() { Ok(self.output) } else { Err(self.failed()) }
    }

    pub(crate) fn failed(self) -> ToolError {
        ToolError::Failed { status: self.status, words: self.words }
    }
}

impl Tool {
    /// Looks: what it prints is the answer.
    pub(crate) async fn look(&self, words: &[&str], input: Stdio) -> Result<Vec<u8>, ToolError> {
        self.run(ToolLimits::LOOK, words, (input, Stdio::piped())).await?.well()
    }

    /// Works on two connections.
    pub(crate) async fn work(&self, words: &[&str], connections: (Stdio, Stdio)) -> Result<Ended, ToolError> {
        self.run(self.limits, words, connections).await
    }

    async fn run(
        &self,
        limits: ToolLimits,
        words: &[&str],
        (input, output): (Stdio, Stdio),
    ) -> Result<Ended, ToolError> {
        let mut command = self.command(limits);
        command.args(words).stdin(input).stdout(output).stderr(Stdio::piped());
        // Nothing of ours: no path, no language, no library to load first.
        command.env_clear().env("LC_ALL", "C").current_dir("/").process_group(0).kill_on_drop(true);
        let started = command.spawn();
        // It holds our ends of the connections for as long as it lives.
        drop(command);
        let mut child = started.map_err(|source| ToolError::Start { program: self.program.clone(), source })?;
        let (output, words) = (child.stdout.take(), child.stderr.take());
        let all = async {
            let (status, output, words) =
                tokio::join!(child.wait(), taken(output, DESCRIPTION_MAX + 1), taken(words, WORDS_MAX));
            (status, output, words)
        };
        let ended = tokio::time::timeout(Duration::from_millis(limits.time_ms), all).await;
        let Ok((status, output, words)) = ended else {
            // Dropped, and so killed.
            return Err(ToolError::TooLong { seconds: limits.time_ms / 1000 });
        };
        let status = status.map_err(|source| ToolError::Start { program: self.program.clone(), source })?;
        if output.len() > DESCRIPTION_MAX {
            return Err(ToolError::Verbose);
        }
        Ok(Ended { status, output, words: plain(&words) })
    }

    fn command(&self, limits: ToolLimits) -> Command {
        let mut command = Command::new("/usr/bin/prlimit");
        command.arg(format!("--cpu={}", limits.cpu_s)).arg(format!("--as={}", limits.memory_bytes));
        command.args(["--fsize=0", "--core=0"]).arg(format!("--nofile={DESCRIPTORS}")).arg("--");
        if let Some(Identity { uid, gid }) = self.identity {
            command.args(["/usr/bin/unshare", "--net", "--ipc", "--", "/usr/bin/setpriv"]);
            command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}"));
            command.args(["--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"]);
        }
        command.arg(&self.program);
        command
    }
}

/// The first `max` bytes of what it says. All of it is read, or it would wait for us for ever.
async fn taken(stream: Option<impl AsyncRead + Unpin>, max: usize) -> Vec<u8> {
    let Some(mut stream) = stream else { return Vec::new() };
    let (mut kept, mut buffer) = (Vec::new(), vec![0; 16 * 1024]);
    while let Ok(bytes @ 1..) = stream.read(&mut buffer).await {
        let room = max.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..bytes.min(room)]);
    }
    kept
}

/// On one line, without what a terminal would obey: an image's words are among it.
fn plain(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text: String = lines.join("; ").chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.is_empty() { "it did not say why".to_owned() } else { text }
}
