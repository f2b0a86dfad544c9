//! A move that is followed while it goes on, by what `pollux vm migrate` prints, so that a fault can be put at a chosen moment.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStderr, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::cli::{Answer, code_of};

/// Lines that may wait to be read; the program waits then.
const LINES_MAX: usize = 1024;

/// The steps of a move, in order.
pub const PHASES: [&str; 4] = ["preparing", "copying", "switching", "arriving"];

/// A `pollux vm migrate` that runs. Dropping it ends the program, not the move.
#[derive(Debug)]
pub struct Following {
    asked: String,
    child: Child,
    lines: Receiver<String>,
    reader: Option<JoinHandle<String>>,
    said: Vec<String>,
}

impl Following {
    pub(crate) fn start(asked: String, mut command: Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("`{asked}` cannot be started: {error}"));
        let stderr = child.stderr.take().expect("standard error is a pipe");
        let mut stdout = child.stdout.take().expect("standard output is a pipe");
        let (told, lines) = sync_channel(LINES_MAX);
        let reader = thread::spawn(move || {
            tell_lines(stderr, |line| told.send(line).is_ok());
            let mut out = String::new();
            // A program that ended has said all; what cannot be read is missed by whoever wants it.
            let _ = stdout.read_to_string(&mut out);
            out
        });
        Self { asked, child, lines, reader: Some(reader), said: Vec::new() }
    }

    /// Waits until the move has entered this phase or a later one. `false`: the program ended before it said so, because
    /// the phase was too short to be told or the move ended otherwise.
    ///
    /// # Panics
    /// If neither comes about within `limit`.
    #[track_caller]
    pub fn reaches(&mut self, phase: &str, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let wanted = PHASES.iter().position(|known| *known == phase).expect("a phase there is");
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let reached = phase_of(&line).is_some_and(|reached| reached >= wanted);
                    self.said.push(line);
                    if reached {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("`{}` is not {phase} after {} s: {:?}", self.asked, limit.as_secs(), self.said);
                }
            }
        }
    }

    /// Waits until the program ends.
    ///
    /// # Panics
    /// If it does not within `limit`.
    #[track_caller]
    pub fn ends(mut self, limit: Duration) -> Answer {
        let end = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("`{}` has not ended after {} s: {:?}", self.asked, limit.as_secs(), self.said);
                }
            }
        }
        let out = self.reader.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        let status = self.child.wait().expect("a child can be waited for");
        Answer { asked: self.asked.clone(), code: code_of(status), out, err: self.said.join("\n") }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tell_lines(stderr: ChildStderr, mut tell: impl FnMut(String) -> bool) {
    for line in BufReader::new(stderr).lines() {
        if !line.is_ok_and(&mut tell) {
            return;
        }
    }
}

/// The phase that a line such as `web n1 -> n2: copying  round 1  1.0 MiB sent` tells of.
fn phase_of(line: &str) -> Option<usize> {
    let told = line.split_once(": ")?.1.split_whitespace().next()?;
    PHASES.iter().position(|phase| *phase == told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_its_phase() {
        assert_eq!(phase_of("web n1 -> n2: preparing"), Some(0));
        assert_eq!(phase_of("web n1 -> n2: copying  round 1  1.0 MiB sent"), Some(1));
        assert_eq!(phase_of("web n1 -> n2: arriving  round 9"), Some(3));
        assert_eq!(phase_of(r#"{"error":"moving web from n1 to n2 failed: copying"}"#), None);
        assert_eq!(phase_of(""), None);
    }
}
