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
