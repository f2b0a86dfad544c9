//! The endpoint: one UDP socket, its connections and its tasks. Every task, quinn's own included, belongs to one tracker, so
//! that closing waits for all of them.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use pollux_wire::{VERSION, id::NodeId, limits};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use rustix::net::sockopt;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    congestion::Closing,
    counters::{Counters, Counting},
    dial::{self, PathStats},
    error::BindError,
    identity::Identity,
    serve,
    service::{Class, Service},
    simulation,
    socket::WatchedSocket,
    tls::Tls,
    transport,
};

/// Closing waits this long for peers to hear of it and for tasks to end.
const CLOSE_MAX: Duration = Duration::from_secs(3);
/// What the kernel may hold for the socket in each direction. Bytes. The usual 208 KiB overflow in the time a busy host
/// needs to get round to reading.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// How much an endpoint takes on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Peers with a connection, or an attempt at one, from this node.
    pub peers: usize,
    /// Connections from peers.
    pub connections: usize,
    /// Connections from peers that are not yet set up.
    pub handshakes: usize,
    /// Joins at the same time.
    pub joins: usize,
    /// Calls at the same time on one connection.
    pub calls_per_connection: usize,
    /// Sessions at the same time on one connection.
    pub sessions_per_connection: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            peers: 256,
            connections: 512,
            handshakes: 64,
            joins: 8,
            calls_per_connection: limits::CALLS_PER_CONNECTION_MAX,
            sessions_per_connection: limits::SESSIONS_PER_CONNECTION_MAX,
        }
    }
}

/// What an endpoint is made from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Binding {
    /// Where to listen; port 0 takes any.
    pub address: SocketAddr,
    /// Who this node is.
    pub identity: Identity,
    /// How much it takes on.
    pub limits: Limits,
    /// A simulated network instead of the kernel's.
    pub socket: Option<simulation::Socket>,
    /// The protocol version to speak: [`VERSION`]. Others only to try out what a peer of another version is told.
    pub version: u8,
}

impl Binding {
    /// A binding with the ordinary limits, on the kernel's network.
    #[must_use]
    pub fn new(address: SocketAddr, identity: Identity) -> Self {
        Self { address, identity, limits: Limits::default(), socket: None, version: VERSION }
    }
}

/// A bound endpoint. Clones are the same endpoint; when the last one is dropped it closes without waiting.
#[derive(Clone)]
pub struct Endpoint {
    handle: Arc<Handle>,
}

/// Closes the endpoint with the last clone. The endpoint's own tasks hold [`Shared`], not this.
struct Handle {
    shared: Arc<Shared>,
}

/// What the endpoint's tasks work with.
pub(crate) struct Shared {
    pub(crate) identity: Identity,
    pub(crate) limits: Limits,
    pub(crate) version: u8,
    pub(crate) tls: Tls,
    pub(crate) counting: Arc<Counting>,
    pub(crate) service: Arc<dyn Service>,
    pub(crate) peers: Mutex<HashMap<(NodeId, Class), dial::State>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) closing: Closing,
    local: SocketAddr,
    quinn: Mutex<Option<quinn::Endpoint>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = self.shared();
        f.debug_struct("Endpoint").field("node", &shared.identity.node()).field("local", &shared.local).finish()
    }
}

impl Endpoint {
    /// Binds the socket and starts to serve. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// When the address cannot be bound or the identity cannot be used.
    pub fn bind(binding: Binding, service: Arc<dyn Service>) -> Result<Self, BindError> {
        let Binding { address, identity, limits, socket, version } = binding;
        let at = |source| BindError::Socket { address, source };
        let counting = Arc::new(Counting::default());
        let tls = Tls::new(&identity, counting.clone())?;
        let tasks = TaskTracker::new();
        let closing = Closing::default();
        let runtime: Arc<dyn Runtime> = Arc::new(TrackedRuntime { tasks: tasks.clone() });
        let seed = socket.as_ref().map(|socket| socket.seed);
        let socket = match socket {
            Some(simulated) => simulated.socket,
            None => open_socket(address).and_then(|socket| runtime.wrap_udp_socket(socket)).map_err(at)?,
        };
        let local = socket.local_addr().map_err(at)?;
        let quinn = quinn::Endpoint::new_with_abstract_socket(
            transport::endpoint(&identity, counting.clone(), seed),
            Some(transport::server(&tls, closing.clone())?),
            Arc::new(WatchedSocket::new(socket, counting.clone())),
            runtime,
        )
        .map_err(at)?;
        let shared = Arc::new(Shared {
            identity,
            limits,
            version,
            tls,
            counting,
            service,
            peers: Mutex::default(),
            tasks,
            stop: CancellationToken::new(),
            closing,
            local,
            quinn: Mutex::new(Some(quinn.clone())),
        });
        shared.tasks.spawn(serve::accept(shared.clone(), quinn));
        Ok(Self { handle: Arc::new(Handle { shared }) })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.shared().local
    }

    /// Who this node is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.shared().identity
    }

    /// What it has seen since it was bound.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared().counting.read()
    }

    /// How the connection to a peer is doing. `None` while there is none that this node opened.
    #[must_use]
    pub fn path(&self, node: NodeId, class: Class) -> Option<PathStats> {
        dial::path(self.shared(), node, class)
    }

    /// Closes what this node opened to a peer that has left the cluster, and frees its place. A later call opens anew.
    pub fn forget(&self, node: NodeId) {
        dial::forget(self.shared(), node);
    }

    /// Closes all connections, drops what is being served and waits, for at most three seconds, until peers know of it and
    /// every task has ended. The address is free afterwards. Closing twice is allowed.
    pub async fn close(&self) {
        let shared = self.shared();
        let quinn = shared.shut();
        shared.tasks.close();
        let ended = async {
            if let Some(quinn) = quinn {
                quinn.wait_idle().await;
            }
            shared.tasks.wait().await;
        };
        if tokio::time::timeout(CLOSE_MAX, ended).await.is_err() {
            tracing::warn!(local = %shared.local, tasks = shared.tasks.len(), "closed with tasks still running");
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.shut();
        self.shared.tasks.close();
    }
}

impl Shared {
    /// `None` once closed.
    pub(crate) fn quinn(&self) -> Option<quinn::Endpoint> {
        self.quinn.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn shut(&self) -> Option<quinn::Endpoint> {
        self.stop.cancel();
        self.closing.begin();
        let quinn = self.quinn.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(quinn) = &quinn {
            quinn.close(0_u32.into(), b"closing");
        }
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        quinn
    }
}

fn open_socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    // The forced variants pass the system's ceiling and need privileges; without them the ceiling holds, which is slower
    // and still correct.
    let receive = sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES));
    let send = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    if let Err(error) = receive.and(send) {
        tracing::debug!(%error, "the socket keeps the system's buffer sizes");
    }
    Ok(socket)
}

/// Tokio, with every task that quinn starts under the endpoint's tracker.
#[derive(Debug)]
pub(crate) struct TrackedRuntime {
    pub(crate) tasks: TaskTracker,
}

impl Runtime for TrackedRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.tasks.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}
