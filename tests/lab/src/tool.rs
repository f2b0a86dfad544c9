//! Running the programs a lab is made with.

use std::{
    ffi::OsStr,
    io::{self, Write as _},
    process::{Command, Output, Stdio},
};

use crate::error::LabError;

/// What is kept of a complaint or an answer, in bytes.
const TEXT_BYTES_MAX: usize = 2000;

/// Runs `ip` with these words.
pub(crate) fn ip(words: &[&str]) -> Result<String, LabError> {
    run(Command::new("ip").args(words))
}

/// Has `nft` carry out `script` in `namespace`: all of it or nothing.
pub(crate) fn nft(namespace: &str, script: &str) -> Result<(), LabError> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "nft", "-f", "-"]);
    run_with_input(&mut command, script).map(drop)
}

/// Runs a command to its end; its standard output if it succeeded.
pub(crate) fn run(command: &mut Command) -> Result<String, LabError> {
    run_with_input(command, "")
}

/// Runs a command to its end with `input` on its standard input; its standard output if it succeeded.
pub(crate) fn run_with_input(command: &mut Command, input: &str) -> Result<String, LabError> {
    let typed = typed(command);
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| not_started(command, error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read all of it says itself what it did not like.
        drop(stdin.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output().map_err(LabError::io(format!("waiting for `{typed}`")))?;
    succeeded(typed, output)
}

pub(crate) fn succeeded(command: String, output: Output) -> Result<String, LabError> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = excerpt(&String::from_utf8_lossy(&output.stderr));
    Err(LabError::Command { command, status: output.status.to_string(), stderr })
}

pub(crate) fn not_started(command: &Command, error: io::Error) -> LabError {
    let program = command.get_program().to_string_lossy().into_owned();
    if error.kind() != io::ErrorKind::NotFound {
        return LabError::Io { what: format!("starting `{program}`"), source: error };
    }
    let package = match program.as_str() {
        "ip" => "iproute2",
        "nft" => "nftables",
        "setsid" => "util-linux",
        _ => "that has it",
    };
    LabError::Missing { program, package }
}

/// A command as it would be typed.
pub(crate) fn typed(command: &Command) -> String {
    let words: Vec<_> =
        [command.get_program()].into_iter().chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// The beginning of a text.
pub(crate) fn excerpt(text: &str) -> String {
    let text = text.trim();
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}
