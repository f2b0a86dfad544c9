//! Nodes and the tokens with which they join.

use alloc::{collections::BTreeMap, string::String, vec::Vec};
use core::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{
    UnixMs,
    id::{Incarnation, NodeId},
};

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Minted when it joined, never reused.
    pub id: NodeId,
    /// Unique; chosen by whoever made the token.
    pub name: String,
    /// Where its daemon listens (QUIC over UDP).
    pub address: SocketAddr,
    /// SHA-256 of the public key (SPKI) in its certificate.
    pub key: [u8; 32],
    /// The life its daemon is in; 0 until it first started.
    pub incarnation: Incarnation,
    /// What its daemon found about the host when it started.
    pub facts: Facts,
    /// When it joined.
    pub joined: UnixMs,
    /// Holds the cluster's CA key, so it can admit others.
    pub authority: bool,
}

/// A node that was removed. Its number, its certificate and its key stay its own: nobody gets them again, it least of all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// What it was called. A new node may be called so.
    pub name: String,
    /// SHA-256 of its public key, with which nobody joins again.
    pub key: [u8; 32],
    /// When it was removed.
    pub at: UnixMs,
    /// The place in the log at which it was.
    pub index: u64,
}

/// What a host can do, as its daemon found it at its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// `pollux` version.
    pub version: String,
    /// `uname -r`.
    pub kernel: String,
    /// QEMU's full version line, which two nodes compare for equality of builds; empty: no QEMU here.
    pub qemu: String,
    /// `tcg` or `kvm`.
    pub accelerator: String,
    /// Memory of the host in MiB.
    pub memory_mib: u64,
    /// Logical processors.
    pub processors: u32,
    /// Names of the bridges VMs can be attached to.
    pub bridges: Vec<String>,
    /// Why guests cannot be tracked, and so not moved, from here; empty: they can.
    pub tracking_refused: String,
    /// Anything newer versions add.
    pub extra: BTreeMap<String, String>,
}

/// The fact whether a node holds the CA's key.
const AUTHORITY: &str = "authority";
/// Facts about what a host lacks begin so.
const LACKS: &str = "lacks ";

/// The fact which UEFI firmware guests can boot by.
const UEFI: &str = "uefi";

/// Facts about the processors' time stamp counter.
const TSC_KHZ: &str = "tsc-khz";
const TSC_SCALES: &str = "tsc-scales";

/// How a host's processors count time (the time stamp counter), where a guest sees them do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tsc {
    /// Its frequency.
    pub khz: u32,
    /// It can be made to count at another frequency for a guest.
    pub scales: bool,
}

impl Tsc {
    /// A guest whose clock counts at `khz` keeps time here. KVM itself takes 250 parts in a million for the same frequency
    /// (`tsc_tolerance_ppm`).
    #[must_use]
    pub fn takes(self, khz: u32) -> bool {
        self.scales || u64::from(self.khz.abs_diff(khz)) * 1_000_000 <= u64::from(khz) * 250
    }
}

impl Facts {
    /// The same of a host that holds the cluster's CA key, or does not.
    #[must_use]
    pub fn with_authority(mut self, held: bool) -> Self {
        self.extra.insert(AUTHORITY.into(), if held { "yes" } else { "no" }.into());
        self
    }

    /// The same of a host whose processors count time like this.
    #[must_use]
    pub fn with_tsc(mut self, tsc: Tsc) -> Self {
        self.extra.insert(TSC_KHZ.into(), alloc::format!("{}", tsc.khz));
        self.extra.insert(TSC_SCALES.into(), if tsc.scales { "yes" } else { "no" }.into());
        self
    }

    /// How its processors count time for guests; `None`: QEMU counts for them, or it is not known.
    #[must_use]
    pub fn tsc(&self) -> Option<Tsc> {
        let khz = self.extra.get(TSC_KHZ)?.parse().ok()?;
        Some(Tsc { khz, scales: self.extra.get(TSC_SCALES).is_some_and(|scales| scales == "yes") })
    }

    /// The same of a host on which guests can boot by this build of UEFI firmware.
    #[must_use]
    pub fn with_uefi(mut self, build: &str) -> Self {
        self.extra.insert(UEFI.into(), build.into());
        self
    }

    /// The build of UEFI firmware that guests can boot by; `None`: there is none.
    #[must_use]
    pub fn uefi(&self) -> Option<&str> {
        self.extra.get(UEFI).map(String::as_str)
    }

    /// The same of a host that lacks something: `what` in a word, and why in words for people.
    #[must_use]
    pub fn with_lack(mut self, what: &str, why: &str) -> Self {
        self.extra.insert([LACKS, what].concat(), why.into());
        self
    }

    /// Why it lacks `what`, if it does.
    #[must_use]
    pub fn lack(&self, what: &str) -> Option<&str> {
        self.extra.get(&[LACKS, what].concat()).map(String::as_str)
    }

    /// What it lacks that guests should have.
    pub fn lacks(&self) -> impl Iterator<Item = &str> {
        self.extra.iter().filter(|(name, _)| name.starts_with(LACKS)).map(|(_, why)| why.as_str())
    }

    /// Does it hold the cluster's CA key? `None`: its daemon is of a version that does not say.
    #[must_use]
    pub fn authority(&self) -> Option<bool> {
        self.extra.get(AUTHORITY).map(|held| held == "yes")
    }
}

/// A single-use, name-bound permission to join. The secret itself is never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The name its bearer will have.
    pub node_name: String,
    /// Refused from this moment on.
    pub expires: UnixMs,
    /// Who used it: the SHA-256 of the joiner's public key, and the id it got. The same key may ask again (its first
    /// answer may have been lost); any other is refused.
    pub used: Option<([u8; 32], NodeId)>,
}
