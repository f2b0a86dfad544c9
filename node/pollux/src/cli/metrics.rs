//! `pollux metrics`: what this node measures, as Prometheus reads it.

use super::{
    Context,
    exit::Failure,
    output::{Format, emit},
};

pub(crate) const EXAMPLES: &str = "\
Examples:
  pollux metrics
  pollux metrics | grep pollux_moves

Prometheus reads the same at http://ADDRESS/metrics when the daemon is run with --metrics ADDRESS:PORT, or from the daemon's socket
at /metrics. docs/metrics.md says what each figure means.";

pub(crate) async fn run(context: &Context) -> Result<(), Failure> {
    if context.format != Format::Table {
        return Err(Failure::usage("metrics have one form, the text that Prometheus reads; leave -o out"));
    }
    emit(&context.client.metrics().await?)
}
