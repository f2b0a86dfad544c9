//! Taking a lab down although its test was killed: nothing of the test's own runs then, so another process waits for its end.

use std::{
    io,
    path::Path,
    process::{Child, Command, Stdio},
};

use pollux_lab::LabName;

/// Sweeps when its standard input ends, which is when nobody holds the other end any more.
const SWEEP: &str = r#"cat > /dev/null; exec "$0" lab down --name "$1""#;

/// A process that takes the lab down once this one is gone without having [dismissed](Self::dismiss) it.
#[derive(Debug)]
pub(crate) struct Sweeper(Child);

impl Sweeper {
    /// In a session of its own, so that what ends the test's process group does not end it.
    pub(crate) fn wait_for(pollux: &Path, lab: &LabName) -> io::Result<Self> {
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", SWEEP]).arg(pollux).arg(lab.as_str());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(Self)
    }

    /// There is nothing left to sweep.
    pub(crate) fn dismiss(&mut self) {
        // It cannot have ended: its input is open.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
