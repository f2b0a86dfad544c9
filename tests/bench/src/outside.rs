//! The client outside: `pollux-probe blackout` in the clients' namespace, the same for every system.
//!
//! A program of its own, so that it can be run before everything else where that is allowed: what is measured is the guest,
//! and not how long the measuring process waited for a processor.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use anyhow::{Context, Result, ensure};
use pollux_lab::Host;
use pollux_probe::blackout::BlackoutReport;

use crate::stage::Stage;

/// Between two datagrams, in microseconds.
const INTERVAL_US: &str = "1000";

/// Probes under way. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Outside {
    child: Child,
    input: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Outside {
    pub(crate) fn start(stage: &Stage) -> Result<Self> {
        let (probe, target) = (stage.programs.probe.to_string_lossy().into_owned(), Stage::udp().to_string());
        let mut argv = if first_in_line(&stage.client) { vec!["chrt", "--fifo", "1"] } else { Vec::new() };
        argv.extend([&*probe, "blackout", "--udp", &target, "--interval-us", INTERVAL_US]);
        let mut command = stage.client.command(&argv);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the probe")?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { unreachable!("both were asked for") };
        Ok(Self { child, input, reports: BufReader::new(output) })
    }

    /// Ends a window and tells about it.
    pub(crate) fn mark(&mut self, window: &str) -> Result<BlackoutReport> {
        writeln!(self.input, "mark {window}").context("the probe has ended")?;
        let mut line = String::new();
        self.reports.read_line(&mut line).context("the probe cannot be read")?;
        let report: BlackoutReport =
            serde_json::from_str(&line).with_context(|| format!("the probe reported {line:?}"))?;
        ensure!(report.window == window, "the probe told about {} and not about {window}", report.window);
        Ok(report)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// May programs run here before all others?
fn first_in_line(host: &Host) -> bool {
    host.exec(&["chrt", "--fifo", "1", "true"]).is_ok_and(|output| output.code == Some(0))
}
