//! What the instruments have in common, and the conversation in which the binary runs one.

use std::io::{BufRead, Write};

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// The name of the report about everything, from start to finish.
pub const TOTAL: &str = "total";

/// Something that measures while it exists, window after window.
pub trait Instrument {
    /// What is told about a window.
    type Report: Serialize;

    /// Ends the window under way, names it and tells about it.
    fn mark(&self, name: &str) -> Self::Report;

    /// Stops measuring and tells about the whole time. The report's name is [`TOTAL`].
    fn finish(self) -> Self::Report;
}

/// Runs an instrument by the lines of `input`: `mark NAME` ends a window, the end of input ends everything. Every report is
/// one line of JSON on `output`.
pub fn converse<I: Instrument>(instrument: I, input: impl BufRead, mut output: impl Write) -> Result<()> {
    for line in input.lines() {
        let line = line.context("cannot read standard input")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["mark", name] => print(&mut output, &instrument.mark(name))?,
            [] => {}
            _ => bail!("standard input says {line:?}; it may say `mark NAME`, and ends to end the measurement"),
        }
    }
    print(&mut output, &instrument.finish())
}

fn print(output: &mut impl Write, report: &impl Serialize) -> Result<()> {
    writeln!(output, "{}", serde_json::to_string(report)?).context("cannot write the report to standard output")?;
    output.flush().context("cannot write the report to standard output")
}
