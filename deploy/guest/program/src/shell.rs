//! Commands that somebody outside has this machine carry out, each by a shell of its own.

use std::{
    io::{self, Read},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

/// What is told of a command's output at most: its end, for that is where the reason stands.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Read at once.
const PIECE_BYTES: usize = 8 << 10;
/// What shells answer for a command that a signal ended, with the signal's number added.
const ENDED_BY_SIGNAL: i32 = 128;

/// Carries a command out and waits for its end: the exit code, and what it wrote, errors included, in one line.
///
/// A command that leaves something running in the background with the same output is waited for until that has ended, too.
pub(crate) fn run(command: &str) -> Result<String, String> {
    let (status, output) = carry_out(command).map_err(|error| format!("the command was not carried out: {error}"))?;
    Ok(format!("EXIT {} {}", code(status), escape(&String::from_utf8_lossy(&output))))
}

fn carry_out(command: &str) -> io::Result<(ExitStatus, Vec<u8>)> {
    let (mut reader, writer) = io::pipe()?;
    let mut shell = shell();
    shell.arg("-c").arg(command).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = shell.spawn()?;
    // It holds the writing ends; the output would never end.
    drop(shell);
    let output = end_of(&mut reader);
    // Whatever came of reading: nobody else waits for the child.
    let status = child.wait()?;
    Ok((status, output?))
}

/// The shell there is: a distribution's, or the one in busybox where that is all.
fn shell() -> Command {
    if Path::new("/bin/sh").exists() {
        return Command::new("/bin/sh");
    }
    let mut busybox = Command::new("/bin/busybox");
    busybox.arg("sh");
    busybox
}

/// Reads to the end and keeps what came last.
fn end_of(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let (mut kept, mut piece) = (Vec::new(), vec![0; PIECE_BYTES]);
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok(kept),
            Ok(count) => {
                kept.extend_from_slice(&piece[..count]);
                kept.drain(..kept.len().saturating_sub(OUTPUT_BYTES_MAX));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| ENDED_BY_SIGNAL + status.signal().unwrap_or(0))
}

/// One line out of many: line ends, carriage returns and backslashes are written as in C.
fn escape(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\\' => line.push_str("\\\\"),
            other => line.push(other),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_answered_by_its_exit_code_and_its_output() {
        assert_eq!(run("printf '%s\n' one 'a\\b'; exit 3").unwrap(), "EXIT 3 one\\na\\\\b\\n");
        assert_eq!(run("echo wrong >&2").unwrap(), "EXIT 0 wrong\\n");
        assert_eq!(run("true").unwrap(), "EXIT 0 ");
        assert_eq!(run("kill -9 $$").unwrap(), "EXIT 137 ");
        assert_eq!(run("cat").unwrap(), "EXIT 0 ", "there is nothing to read");
    }

    #[test]
    fn of_much_output_the_end_is_told() {
        let answer = run("yes beginning | head -n 20000; echo end").unwrap();
        assert!(answer.ends_with("beginning\\nend\\n"));
        let lines = answer.matches("\\n").count();
        assert!((6000..7000).contains(&lines), "{lines} lines are not about {OUTPUT_BYTES_MAX} bytes");
    }

    #[test]
    fn many_lines_become_one_that_tells_them_apart() {
        assert_eq!(escape("a\\n\r\nü\tb"), "a\\\\n\\r\\nü\tb");
    }
}
