//! Cables between the nodes that carry no more than real ones.

use anyhow::{Context, Result, ensure};
use pollux_lab::Host;

/// From here on the node's end of its cable to the other nodes sends `mbit` times 10^6 bits per second at most.
///
/// # Errors
/// When the kernel refuses, or there is no `tc`.
pub fn slow_down(node: &Host, mbit: u32) -> Result<()> {
    let rate = format!("{mbit}mbit");
    let mut words = vec!["tc", "qdisc", "add", "dev", "cluster0", "root", "tbf"];
    // As much at once as leaves a card in a millisecond or so; what waits longer is dropped, as by a switch.
    words.extend(["rate", &rate, "burst", "256k", "latency", "20ms"]);
    let done = node.exec(&words).context("there is no `tc`; install iproute2")?;
    ensure!(done.code == Some(0), "the cable of {} cannot be slowed down: {}", node.name(), done.stderr.trim());
    Ok(())
}
