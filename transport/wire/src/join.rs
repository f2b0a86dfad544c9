//! What a new node asks and what it is told. The request carries the token's secret, so it is sent only after the server
//! has proved that it belongs to the cluster the token names.

use alloc::{string::String, vec::Vec};
use core::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, NodeId};

/// A node that holds a token asks to become part of the cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's secret.
    pub secret: [u8; 32],
    /// The name the node wants; the token was issued for this one.
    pub name: String,
    /// Where the node will listen.
    pub address: SocketAddr,
    /// PKCS #10 in DER: the node's public key and the proof that it holds the private one.
    pub signing_request: Vec<u8>,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the secret: this ends up in logs.
        f.debug_struct("JoinRequest").field("name", &self.name).field("address", &self.address).finish_non_exhaustive()
    }
}

/// The node is admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReply {
    /// Which cluster it is in now.
    pub cluster: ClusterId,
    /// Its identity, minted for it and never used before.
    pub node: NodeId,
    /// Its certificate, X.509 in DER.
    pub certificate: Vec<u8>,
    /// The cluster authority's certificate, X.509 in DER.
    pub ca: Vec<u8>,
    /// The nodes that were there before it.
    pub members: Vec<(NodeId, SocketAddr)>,
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::String, vec};

    use serde::de::DeserializeOwned;

    use super::*;
    use crate::{codec, limits::Limit};

    fn is_written_as<T: Serialize + DeserializeOwned + PartialEq + fmt::Debug>(value: &T, golden: &str) {
        let bytes = codec::encode(value, Limit::Small).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden, "{value:?}");
        assert_eq!(&codec::decode::<T>(&bytes, Limit::Small).unwrap(), value);
    }

    #[test]
    fn a_join_is_what_it_was() {
        let address = "192.0.2.3:7700".parse().unwrap();
        let request = JoinRequest { secret: [5; 32], name: "n2".into(), address, signing_request: vec![0x30, 1] };
        is_written_as(
            &request,
            "050505050505050505050505050505050505050505050505050505050505050502000000000000006e3200000000c0000203141e02000000000000003001",
        );
        let reply = JoinReply {
            cluster: ClusterId([7; 16]),
            node: NodeId(2),
            certificate: vec![0x30, 2],
            ca: vec![0x30, 3],
            members: vec![(NodeId(1), address)],
        };
        is_written_as(
            &reply,
            "07070707070707070707070707070707020000000000000002000000000000003002020000000000000030030100000000000000010000000000000000000000c0000203141e",
        );
    }
}
