//! The socket as quinn sees it, with a look at each datagram on its way in: what cannot be QUIC is counted, since quinn
//! drops it without a word.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use crate::counters::Counting;

/// The version number of QUIC itself (RFC 9000, 15).
pub(crate) const QUIC_V1: u32 = 1;

#[derive(Debug)]
pub(crate) struct WatchedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    counting: Arc<Counting>,
}

impl WatchedSocket {
    pub(crate) fn new(inner: Arc<dyn AsyncUdpSocket>, counting: Arc<Counting>) -> Self {
        Self { inner, counting }
    }
}

impl AsyncUdpSocket for WatchedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = ready!(self.inner.poll_recv(context, buffers, meta))?;
        for (buffer, meta) in buffers.iter().zip(meta.iter()).take(received) {
            let bytes = &buffer[..meta.len.min(buffer.len())];
            for datagram in bytes.chunks(meta.stride.max(1)) {
                if !could_be_quic(datagram) {
                    self.counting.garbage.add();
                    tracing::debug!(from = %meta.addr, bytes = datagram.len(), "a datagram that is not QUIC");
                }
            }
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Whether quinn will look any further: the fixed bit is set and, in a long header, the version is the one spoken here or
/// that of a version negotiation.
fn could_be_quic(datagram: &[u8]) -> bool {
    const LONG: u8 = 0x80;
    const FIXED: u8 = 0x40;
    let Some(first) = datagram.first() else { return false };
    if first & LONG == 0 {
        return first & FIXED != 0;
    }
    let Some(version) = datagram.get(1..).and_then(|rest| rest.first_chunk::<4>()) else { return false };
    match u32::from_be_bytes(*version) {
        0 => true,
        QUIC_V1 => first & FIXED != 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_quic_is_told_apart() {
        assert!(could_be_quic(&[0xc0, 0, 0, 0, 1, 8]), "an initial packet");
        assert!(could_be_quic(&[0x80, 0, 0, 0, 0, 8]), "a version negotiation");
        assert!(could_be_quic(&[0x40, 1, 2, 3]), "a packet of an open connection");
        assert!(!could_be_quic(b""), "nothing");
        assert!(!could_be_quic(&[0xc0, 0, 0]), "a cut header");
        assert!(!could_be_quic(&[0xc0, 0, 0, 0, 2, 8]), "another version");
        assert!(!could_be_quic(&[0x80, 0, 0, 0, 1, 8]), "without the fixed bit");
        assert!(!could_be_quic(b"\x16\x03\x01 a TLS record"), "without the fixed bit");
    }
}
