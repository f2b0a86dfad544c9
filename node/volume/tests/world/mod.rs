//! What the tests share: pools in temporary directories, two nodes of a cluster, and asks that are waited for.
#![allow(missing_docs, dead_code)]

use std::{
    future::poll_fn,
    net::{Ipv4Addr, SocketAddr},
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use pollux_disk::{EngineKind, Piece, Pool};
use pollux_link::{
    Authority, Binding, Class, Endpoint, Fault, JoinReply, JoinRequest, Peer, RecvStream, Role, Roles, SendStream,
    Service, To,
};
use pollux_mirror::{Change, Failure, Part, Tag};
use pollux_volume::{Ask, Broken, Claim, Done, Door, Keepers, Place, SessionEnd, Side, serve};
use pollux_wire::{
    fault,
    id::{ClusterId, Generation, Incarnation, NodeId, Owner, ReplicaId, VolumeId},
    method::REPLICA,
};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SIZE: u64 = 64 * MIB;
pub(crate) const HERE: ReplicaId = ReplicaId(7);
/// Longer than anything here takes, so that a test that hangs ends and says where.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn owner(node: u64) -> Owner {
    Owner { node: NodeId(node), incarnation: Incarnation(node * 100) }
}

/// A new session's claim.
pub(crate) fn claim(node: u64, generation: u64) -> Claim {
    Claim::new(VolumeId(3), HERE, Generation(generation), owner(node), SIZE)
}

/// A pool with one replica, in a directory that goes with it.
pub(crate) struct Ground {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) place: Place,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pool = Pool::open(directory.path()).unwrap();
        let place = Place { pool, name: "v".to_owned(), engine: EngineKind::Best };
        place.make(SIZE).unwrap();
        Self { directory, place }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.directory.path().join("v/log")
    }
}

pub(crate) fn write(data: &[u8], durable: bool) -> (Part, Vec<Piece>) {
    let part = Part::Change { change: Change::Write, durable };
    (part, vec![Piece::Data(Bytes::copy_from_slice(data))])
}

/// Asks for one thing of a side that has nothing else under way, and waits for its end.
pub(crate) async fn ask(
    side: &mut impl Side,
    (part, data): (Part, Vec<Piece>),
    range: Range<u64>,
) -> Result<Vec<Piece>, Failure> {
    const TAG: Tag = Tag(1 << 40);
    side.submit(Ask { tag: TAG, part, range, data });
    let mut done = ends(side, 1).await.unwrap();
    let Done { tag, outcome } = done.pop().unwrap();
    assert!(tag == TAG && done.is_empty(), "something else was under way");
    outcome
}

/// Waits for so many ends.
pub(crate) async fn ends(side: &mut impl Side, count: usize) -> Result<Vec<Done>, Broken> {
    let mut done = Vec::new();
    let waiting = poll_fn(|cx| {
        while done.len() < count {
            match side.poll(cx, &mut done) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    });
    tokio::time::timeout(PATIENCE, waiting).await.expect("the test hangs")?;
    Ok(done)
}

/// Waits for the session's end.
pub(crate) async fn broken(side: &mut impl Side) -> String {
    let mut done = Vec::new();
    let waiting = poll_fn(|cx| {
        loop {
            match side.poll(cx, &mut done) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(broken)) => return Poll::Ready(broken.why),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    tokio::time::timeout(PATIENCE, waiting).await.expect("the test hangs")
}

pub(crate) async fn read(side: &mut impl Side, range: Range<u64>) -> Vec<u8> {
    flat(ask(side, (Part::Read, Vec::new()), range).await.unwrap())
}

pub(crate) fn flat(pieces: Vec<Piece>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(&data),
            Piece::Zeroes(count) => bytes.resize(bytes.len() + count as usize, 0),
        }
    }
    bytes
}

/// So many bytes, none of them zero.
pub(crate) fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from((at + usize::from(seed)) % 251).unwrap() + 1).collect()
}

/// Waits for a condition, not for a time; fails when it does not come true.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let late = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < late, "in vain waited for: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A node that has a replica, and what it thinks of who wants it.
pub(crate) struct Host {
    pub(crate) endpoint: Endpoint,
    pub(crate) keepers: Keepers,
    pub(crate) service: Arc<Serves>,
    pub(crate) ground: Ground,
}

pub(crate) struct Serves {
    keepers: Keepers,
    door: OpenDoor,
    pub(crate) ends: Mutex<Vec<SessionEnd>>,
}

struct OpenDoor(Place, Mutex<Option<String>>);

#[async_trait]
impl Door for OpenDoor {
    async fn admit(&self, from: NodeId, claim: &Claim) -> Result<Place, String> {
        assert_eq!(claim.owner.node, from);
        self.1.lock().unwrap().clone().map_or_else(|| Ok(self.0.clone()), Err)
    }
}

impl Serves {
    /// From here on nobody is let in, for this reason.
    pub(crate) fn shut(&self, why: &str) {
        *self.door.1.lock().unwrap() = Some(why.to_owned());
    }
}

#[async_trait]
impl Service for Serves {
    fn allowed(&self, _: u16) -> Roles {
        Roles::None
    }

    fn allowed_session(&self, kind: u16) -> Roles {
        if kind == REPLICA { Roles::Members } else { Roles::None }
    }

    async fn call(&self, _: Peer, _: Class, _: u16, _: Bytes) -> Result<Bytes, Fault> {
        Err(Fault::new(fault::METHOD, "there are no calls"))
    }

    async fn session(&self, peer: Peer, _: u16, header: Bytes, send: SendStream, recv: RecvStream) {
        let end = serve(&self.keepers, &self.door, &peer, &header, send, recv).await;
        self.ends.lock().unwrap().push(end);
    }

    async fn join(&self, _: SocketAddr, _: JoinRequest) -> Result<JoinReply, Fault> {
        Err(Fault::new(fault::TOKEN_UNKNOWN, "nobody joins"))
    }
}

fn start(authority: &Authority, node: u64) -> Host {
    let (keepers, ground) = (Keepers::new("a boot".to_owned()), Ground::new());
    let door = OpenDoor(ground.place.clone(), Mutex::new(None));
    let service = Arc::new(Serves { keepers: keepers.clone(), door, ends: Mutex::new(Vec::new()) });
    let identity = authority.identity(NodeId(node), &format!("n{node}"), Role::Member).unwrap();
    let binding = Binding::new((Ipv4Addr::LOCALHOST, 0).into(), identity);
    let endpoint = Endpoint::bind(binding, service.clone()).unwrap();
    Host { endpoint, keepers, service, ground }
}

/// Nodes 1 and 2 of a cluster.
pub(crate) fn pair() -> (Host, Host) {
    let authority = Authority::create(ClusterId([1; 16])).unwrap();
    (start(&authority, 1), start(&authority, 2))
}

impl Host {
    pub(crate) fn to(&self) -> To {
        To { node: self.endpoint.identity().node(), address: self.endpoint.local_address() }
    }

    pub(crate) fn last_end(&self) -> Option<String> {
        self.service.ends.lock().unwrap().last().map(|end| end.to_string())
    }
}
