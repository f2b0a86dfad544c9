//! A simulated UDP socket as quinn wants it: readiness by polling, sending that never waits.
//!
//! One per life of a node, shared by the endpoint's tasks and gone with them, which frees its port.

use std::{
    fmt, io,
    io::IoSliceMut,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use pollux_link::simulation::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use turmoil::net::UdpSocket;

type Readable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// A bound socket on turmoil's network.
pub(super) struct Socket {
    inner: Arc<UdpSocket>,
    /// The wait for a datagram that is under way. It holds the socket's reading end until it is over.
    readable: Mutex<Option<Readable>>,
}

impl Socket {
    pub(super) async fn bind(port: u16) -> io::Result<Self> {
        let inner = Arc::new(UdpSocket::bind(("0.0.0.0", port)).await?);
        Ok(Self { inner, readable: Mutex::default() })
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // A host that does not exist (yet) swallows datagrams like a network does.
        drop(self.inner.try_send_to(transmit.contents, transmit.destination));
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(buffer), Some(meta)) = (buffers.first_mut(), meta.first_mut()) else { return Poll::Ready(Ok(0)) };
        let mut readable = self.readable.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if readable.is_none() {
                match self.inner.try_recv_from(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(error)),
                    Ok((len, addr)) => {
                        *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                        return Poll::Ready(Ok(1));
                    }
                }
            }
            let wait = readable.get_or_insert_with(|| {
                let inner = self.inner.clone();
                Box::pin(async move { inner.readable().await })
            });
            match wait.as_mut().poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(result) => {
                    *readable = None;
                    result?;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// turmoil takes every datagram at once.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
