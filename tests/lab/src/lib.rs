//! A lab: several Pollux nodes on one machine, each in a network namespace of its own, on a network whose cables can be cut.
//!
//! ```text
//!        plx-NAME-n1             plx-NAME-n2        ...      plx-NAME-lan
//!   cluster0 10.77.0.1      cluster0 10.77.0.2              lan0 10.78.0.254   <- clients
//!   br0 <- guests' TAPs     br0 <- guests' TAPs                   |
//!     |        |               |        |                         |
//!   lan0    cluster0         lan0    cluster0                     |
//!     '--------|---------------'--------|--------- lan -----------'
//!              '------------------------'--------- cluster            (two bridges in plx-NAME-sw)
//! ```
//!
//! Everything is made inside those namespaces, so the host's own addresses, routes and firewall are never touched. A lab
//! lives on when the process that made it ends: its state is `lab.json` in its directory, and every verb reads it anew, under
//! a lock. What belongs to a lab is recognised by its names, its namespaces and the variable `POLLUX_LAB` in the environment
//! of its processes, so [`Lab::down`] cleans up after a half-made or forgotten one as well, and touches nothing else.
//!
//! The demo, the system tests and the `pollux lab` verbs stand on this. It calls `ip` and `nft`, and needs root.

mod cluster;
mod error;
mod fault;
mod groups;
mod host;
mod lab;
mod lock;
mod name;
mod network;
mod ownership;
mod process;
mod state;
mod tool;

pub use error::LabError;
pub use fault::Cable;
pub use host::{Host, HostOutput};
pub use lab::{Lab, LabGuard, LabStatus, NodeStatus};
pub use name::{CLIENT_ADDRESS, CLUSTER_PORT, LabName, NODES_MAX, names};
pub use ownership::leftovers;
pub use process::{DaemonState, Process};
pub use state::{Daemon, LabConfig};
