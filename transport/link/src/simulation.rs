//! The way in for a simulated network. An adapter implements [`AsyncUdpSocket`] over whatever carries its datagrams and
//! passes it to [`crate::Binding::socket`]; everything else is as on a real network. All waiting goes through tokio's
//! clock, so that a paused or simulated clock drives the endpoint too.

use std::sync::Arc;

pub use quinn::{AsyncUdpSocket, UdpPoller, udp};

/// A socket that an adapter provides.
#[derive(Debug, Clone)]
pub struct Socket {
    pub(crate) socket: Arc<dyn AsyncUdpSocket>,
    pub(crate) seed: u64,
}

impl Socket {
    /// A socket, and the seed of what the transport would otherwise draw at random (packet numbers skipped, paddings,
    /// connection ids). Each life of a node needs a seed of its own: connection ids that repeat would lead packets of the
    /// earlier life into the later one's connections, where they only disappear.
    #[must_use]
    pub fn new(socket: Arc<dyn AsyncUdpSocket>, seed: u64) -> Self {
        Self { socket, seed }
    }
}
