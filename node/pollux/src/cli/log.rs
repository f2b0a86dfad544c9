//! The daemon's log on standard error.

use std::io;

use tracing_subscriber::EnvFilter;

use super::exit::Failure;

/// What is logged when POLLUX_LOG does not say. openraft tells every heartbeat at `info`, and
/// every unanswered one to a node that is down as an error; which nodes are down is in `pollux cluster status`.
const DEFAULT_FILTER: &str = "info,openraft=error,openraft::replication=off";
/// Chooses what is logged.
const FILTER_VARIABLE: &str = "POLLUX_LOG";

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Start logging. Once per process.
pub(crate) fn start(format: LogFormat) -> Result<(), Failure> {
    let wanted = std::env::var(FILTER_VARIABLE).ok().filter(|text| !text.is_empty());
    let filter = EnvFilter::try_new(wanted.as_deref().unwrap_or(DEFAULT_FILTER)).map_err(|error| {
        Failure::usage(format!("{FILTER_VARIABLE} is not a log filter: {error}"))
            .todo("try `info`, or `info,pollux=debug`")
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let begun = match format {
        LogFormat::Text => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    begun.map_err(|error| Failure::new(super::exit::Exit::Internal, format!("cannot start logging: {error}")))
}
