//! What the things of a lab are called and addressed. Pure, but for [`names`].

use std::{
    fmt, fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::error::LabError;

/// As many nodes as a lab has at most. Enough for every quorum worth trying; the addresses would allow 253.
pub const NODES_MAX: u8 = 9;
/// The port a node's daemon listens on, on the cluster network.
pub const CLUSTER_PORT: u16 = 7700;
/// The address of the namespace for clients, on the network of the guests.
pub const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 254);
/// The namespace for clients.
pub(crate) const CLIENTS: &str = "lan";
/// The namespace that holds the two switches.
pub(crate) const SWITCH: &str = "sw";
/// Where labs are found by name: their directory, or a link to it.
pub(crate) const LABS_DIR: &str = "/run/pollux-lab";
/// Where `ip netns` keeps the names of namespaces.
pub(crate) const NAMESPACES_DIR: &str = "/run/netns";
/// The variable every process of a lab has in its environment, with the lab's name for its value.
pub(crate) const MARKER: &str = "POLLUX_LAB";
const NAME_BYTES_MAX: usize = 12;

/// A lab's name. Without a dash, so that no lab's namespaces can be taken for another's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl LabName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn namespace(&self, host: &str) -> String {
        format!("{}{host}", self.namespace_prefix())
    }

    pub(crate) fn namespace_prefix(&self) -> String {
        format!("plx-{self}-")
    }

    /// Where this lab is found: its directory, or a link to the one it was given.
    pub(crate) fn place(&self) -> PathBuf {
        Path::new(LABS_DIR).join(&self.0)
    }

    /// What its processes have in their environment.
    pub(crate) fn marker(&self) -> String {
        format!("{MARKER}={self}")
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LabName {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for LabName {
    type Error = LabError;

    fn try_from(text: String) -> Result<Self, LabError> {
        let bytes = text.as_bytes();
        let valid = bytes.first().is_some_and(u8::is_ascii_lowercase)
            && bytes.len() <= NAME_BYTES_MAX
            && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if valid { Ok(Self(text)) } else { Err(LabError::BadName(text)) }
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

/// The name of node `number`, from 1.
pub(crate) fn node(number: u8) -> String {
    format!("n{number}")
}

/// Where node `number` listens.
pub(crate) fn address(number: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, number), CLUSTER_PORT)
}

/// The names of the labs there are, sorted: those that have a directory, and those of which only namespaces are left.
#[must_use]
pub fn names() -> Vec<LabName> {
    let entries = |dir: &str| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let left = entries(NAMESPACES_DIR);
    let left = left.iter().filter_map(|name| Some(name.strip_prefix("plx-")?.split_once('-')?.0.to_owned()));
    let mut names: Vec<LabName> =
        entries(LABS_DIR).into_iter().chain(left).filter_map(|name| LabName::try_from(name).ok()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_labs_name_leaves_no_doubt_whose_a_namespace_is() {
        assert!("demo2".parse::<LabName>().is_ok());
        for bad in ["", "a-n1", "Demo", "2a", "a/b", "..", "thirteenbytes"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad:?} was taken");
        }
    }
}
