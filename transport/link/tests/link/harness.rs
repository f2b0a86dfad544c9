//! Clusters, endpoints and a service whose every method does one thing.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use pollux_link::{
    Authority, Binding, Class, Endpoint, Fault, Identity, JoinReply, JoinRequest, Peer, RecvStream, Role, Roles,
    SendStream, Service, To, Token,
};
use pollux_wire::{
    fault,
    id::{ClusterId, NodeId},
};
use tokio::time::{Instant, sleep};

/// Answers with its body.
pub(crate) const ECHO: u16 = 64;
/// Fails.
pub(crate) const FAIL: u16 = 65;
/// Never answers.
pub(crate) const HANG: u16 = 66;
/// For members only.
pub(crate) const MEMBERS: u16 = 67;
/// Answers with more than it may.
pub(crate) const FLOOD: u16 = 68;
/// A session that sends back what comes.
pub(crate) const MIRROR: u16 = 32;
/// A session for members only.
pub(crate) const MEMBERS_MIRROR: u16 = 33;

pub(crate) const SOON: Duration = Duration::from_secs(5);

/// What the service was asked.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) calls: Mutex<Vec<(Peer, Class, u16)>>,
    pub(crate) joins: AtomicU64,
    pub(crate) evicts: AtomicBool,
    pub(crate) admits_with: OnceLock<(Authority, Token)>,
}

#[async_trait]
impl Service for Recorder {
    fn allowed(&self, method: u16) -> Roles {
        match method {
            ECHO | FAIL | HANG | FLOOD | 1..=31 => Roles::All,
            MEMBERS => Roles::Members,
            _ => Roles::None,
        }
    }

    fn allowed_session(&self, kind: u16) -> Roles {
        match kind {
            MIRROR => Roles::All,
            MEMBERS_MIRROR => Roles::Members,
            _ => Roles::None,
        }
    }

    fn admits(&self, _node: NodeId) -> bool {
        !self.evicts.load(Ordering::SeqCst)
    }

    async fn call(&self, peer: Peer, class: Class, method: u16, body: Bytes) -> Result<Bytes, Fault> {
        self.calls.lock().unwrap().push((peer, class, method));
        match method {
            FAIL => Err(Fault::new(fault::SERVICE_FIRST, "the roof is on fire")),
            HANG => std::future::pending().await,
            FLOOD => Ok(Bytes::from(vec![0; pollux_wire::limits::CONTROL_BYTES_MAX + 1])),
            _ => Ok(body),
        }
    }

    async fn session(&self, _peer: Peer, _kind: u16, header: Bytes, mut send: SendStream, mut recv: RecvStream) {
        if send.send(header).await.is_err() {
            return;
        }
        loop {
            match recv.read_chunk(usize::MAX).await {
                Ok(Some(chunk)) => {
                    if send.send(chunk).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        let _ = send.finish();
        let _ = send.delivered().await;
    }

    async fn join(&self, _from: SocketAddr, request: JoinRequest) -> Result<JoinReply, Fault> {
        let earlier = self.joins.fetch_add(1, Ordering::SeqCst);
        let Some((authority, token)) = self.admits_with.get() else {
            return Err(Fault::new(fault::TOKEN_UNKNOWN, "no such token"));
        };
        if Token::hash(&request.secret) != token.secret_hash() {
            return Err(Fault::new(fault::TOKEN_UNKNOWN, "no such token"));
        }
        if earlier > 0 {
            return Err(Fault::new(fault::TOKEN_USED, "used"));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        if token.expires_unix_s <= now {
            return Err(Fault::new(fault::TOKEN_EXPIRED, "expired"));
        }
        let node = NodeId(9);
        let certificate = authority
            .issue(node, &request.name, Role::Member, &request.signing_request)
            .map_err(|error| Fault::internal(error.to_string()))?;
        let (cluster, ca) = (authority.cluster(), authority.certificate().to_vec());
        Ok(JoinReply { cluster, node, certificate, ca, members: vec![(NodeId(1), request.address)] })
    }
}

pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) service: Arc<Recorder>,
}

impl Node {
    pub(crate) fn to(&self) -> To {
        To { node: self.endpoint.identity().node(), address: self.endpoint.local_address() }
    }
}

pub(crate) fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub(crate) fn authority(number: u8) -> Authority {
    Authority::create(ClusterId([number; 16])).unwrap()
}

pub(crate) fn identity(authority: &Authority, node: u64, role: Role) -> Identity {
    authority.identity(NodeId(node), &format!("n{node}"), role).unwrap()
}

pub(crate) fn start_with(binding: Binding) -> Node {
    // With RUST_LOG set a failing test tells what happened. Later calls in one process find it done.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    let service = Arc::new(Recorder::default());
    let endpoint = Endpoint::bind(binding, service.clone()).unwrap();
    Node { endpoint, service }
}

pub(crate) fn start(authority: &Authority, node: u64, role: Role) -> Node {
    start_with(Binding::new(loopback(), identity(authority, node, role)))
}

/// Two members of one cluster.
pub(crate) fn pair() -> (Node, Node) {
    let authority = authority(1);
    (start(&authority, 1, Role::Member), start(&authority, 2, Role::Member))
}

/// Waits for a condition, not for a time; fails when it does not come true.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let late = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < late, "in vain waited for: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
