//! One binary: the daemon on every host and the command line of the cluster.

use std::process::ExitCode;

fn main() -> ExitCode {
    pollux::cli::main()
}
