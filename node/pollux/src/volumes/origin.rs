//! Whose pool the file system on a block device is, told by the UUID in its superblock: without mounting it, and so without playing its
//! log, which only the host may do that filled it.
//!
//! ```text
//!   xxxxxxxx-xxxx-8xxx-  of SHA-256 over cluster and node        yxxx-xxxxxxxxxxxx  anything: XFS mounts no two of one UUID
//!                 ^ version 8: made up by whoever uses it        ^ the variant of RFC 9562
//! ```
//!
//! Which pool of that node it is, the mark in it tells: the name may change, when one is removed and added anew.

use aws_lc_rs::digest::{Context, SHA256};
use pollux_state::id::NodeId;

/// Nothing else that is digested begins so.
const DOMAIN: &[u8] = b"pollux pool on a device\0";

/// A node of a cluster, as the superblocks of its devices name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin(String);

impl Origin {
    pub(super) fn new(cluster: &str, node: NodeId) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(DOMAIN);
        context.update(&node.0.to_be_bytes());
        context.update(cluster.as_bytes());
        let digest = context.finish();
        let first = digest.as_ref().iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let first = first & !0xf000 | 0x8000;
        Self(format!("{:08x}-{:04x}-{:04x}-", first >> 32, first >> 16 & 0xffff, first & 0xffff))
    }

    /// For a file system of this node. `random`: so that no two have the same.
    pub(super) fn uuid(&self, random: u64) -> String {
        let second = random >> 2 | 1 << 63;
        format!("{}{:04x}-{:012x}", self.0, second >> 48, second & 0xffff_ffff_ffff)
    }

    /// One of this node has it.
    pub(super) fn made(&self, uuid: &str) -> bool {
        uuid.to_ascii_lowercase().starts_with(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_tells_its_cluster_and_its_node() {
        let ours = Origin::new("c1", NodeId(1));
        let uuid = ours.uuid(u64::MAX);
        // As it is on disks.
        assert_eq!(uuid, "17309149-fa62-819e-bfff-ffffffffffff");
        assert!(ours.made(&uuid) && ours.made(&uuid.to_uppercase()) && ours.made(&ours.uuid(0)));
        assert_ne!(uuid, ours.uuid(0));
        assert_eq!(&ours.uuid(0)[19..], "8000-000000000000");
        for other in [Origin::new("c1", NodeId(2)), Origin::new("c2", NodeId(1))] {
            assert!(!other.made(&uuid) && !ours.made(&other.uuid(0)));
        }
        assert!(!ours.made("") && !ours.made("2f0c8a7e-1b7b-4c59-9d8e-1b2f3c4d5e6f"));
    }
}
