//! The daemon and the command line of Pollux.

pub mod api;
pub mod budget;
pub mod cli;
pub mod daemon;
mod metrics;
pub mod vm;
pub mod volumes;
