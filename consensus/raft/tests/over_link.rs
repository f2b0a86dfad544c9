//! Three consensus layers with real stores, over real QUIC on loopback, in real time.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use pollux_link::{
    Authority, Binding, Class, Endpoint, Fault, Identity, JoinReply, JoinRequest, Peer, RecvStream, Role, Roles,
    SendStream, Service,
};
use pollux_raft::{Config, Consensus, Store};
use pollux_state::{
    Command, Outcome, Proposal,
    id::{ClusterId, Incarnation, NodeId, OpId},
    node::Facts,
};
use pollux_wire::fault;
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(60);

/// What a daemon does with calls of the consensus class.
#[derive(Default)]
struct Calls(OnceLock<Consensus>);

#[async_trait]
impl Service for Calls {
    fn allowed(&self, _method: u16) -> Roles {
        Roles::All
    }

    fn allowed_session(&self, _kind: u16) -> Roles {
        Roles::None
    }

    async fn call(&self, peer: Peer, _class: Class, method: u16, body: Bytes) -> Result<Bytes, Fault> {
        match self.0.get() {
            Some(consensus) => consensus.serve(peer, method, body).await,
            None => Err(Fault::new(fault::CLOSING, "starting")),
        }
    }

    async fn session(&self, _peer: Peer, _kind: u16, _header: Bytes, _send: SendStream, _recv: RecvStream) {}

    async fn join(&self, _from: SocketAddr, _request: JoinRequest) -> Result<JoinReply, Fault> {
        Err(Fault::internal("not here"))
    }
}

/// Binds the address a node had before: the last task of its earlier life may hold it for a moment longer.
async fn bind(address: SocketAddr, identity: Identity, calls: &Arc<Calls>) -> Endpoint {
    let until = tokio::time::Instant::now() + LONG;
    loop {
        match Endpoint::bind(Binding::new(address, identity.clone()), calls.clone()) {
            Ok(endpoint) => return endpoint,
            Err(error) => assert!(tokio::time::Instant::now() < until, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

struct Node {
    consensus: Consensus,
    endpoint: Endpoint,
}

impl Node {
    async fn start(identity: Identity, address: SocketAddr, directory: PathBuf) -> Self {
        let calls = Arc::new(Calls::default());
        let node = identity.node();
        let endpoint = bind(address, identity, &calls).await;
        let config = Config::new(node, Store::Dir { path: directory, known: None });
        let consensus = Consensus::start(config, endpoint.clone()).await.unwrap();
        consensus.announce_incarnation(Incarnation(1));
        assert!(calls.0.set(consensus.clone()).is_ok());
        Self { consensus, endpoint }
    }

    async fn stop(self) {
        self.consensus.shutdown().await;
        self.endpoint.close().await;
    }
}

struct Cluster {
    directory: TempDir,
    identities: Vec<Identity>,
    addresses: Vec<SocketAddr>,
    nodes: Vec<Option<Node>>,
    proposals: u128,
}

impl Cluster {
    async fn founded() -> Self {
        let authority = Authority::create(ClusterId([7; 16])).unwrap();
        let identity = |id| authority.identity(NodeId(id), &format!("n{id}"), Role::Member).unwrap();
        let identities = (1..=3).map(identity).collect();
        let mut cluster = Self {
            directory: TempDir::new().unwrap(),
            identities,
            addresses: Vec::new(),
            nodes: Vec::new(),
            proposals: 0,
        };
        for id in 1..=3 {
            // Where the endpoint listened first is where its node says it listens, as with a configured port.
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let node = Node::start(cluster.identities[id - 1].clone(), any, cluster.place(id)).await;
            cluster.addresses.push(node.endpoint.local_address());
            cluster.nodes.push(Some(node));
        }
        let found = Command::Found {
            cluster: ClusterId([7; 16]),
            name: "n1".to_owned(),
            address: cluster.addresses[0],
            key: [1; 32],
        };
        let found = cluster.proposal(1, found);
        let founded = cluster.node(1).found(found, LONG).await.unwrap();
        assert_eq!(founded.outcome, Outcome::Joined(NodeId(1)));
        for id in 2..=3_u8 {
            let (secret_hash, name, address) = ([id; 32], format!("n{id}"), cluster.addresses[usize::from(id) - 1]);
            let add = Command::AddToken { secret_hash, node_name: name.clone(), expires: 1 << 40 };
            cluster.propose(1, add).await;
            let join = Command::Join { secret_hash, name, address, key: [id; 32] };
            assert_eq!(cluster.propose(1, join).await, Outcome::Joined(NodeId(u64::from(id))));
            let life = Command::StartIncarnation { after: Incarnation(0), address, facts: Facts::default() };
            assert_eq!(cluster.propose(usize::from(id), life).await, Outcome::Incarnation(Incarnation(1)));
        }
        cluster.until_all_vote().await;
        cluster
    }

    fn place(&self, id: usize) -> PathBuf {
        self.directory.path().join(format!("n{id}"))
    }

    fn node(&self, id: usize) -> &Consensus {
        &self.nodes[id - 1].as_ref().unwrap().consensus
    }

    async fn start(&mut self, id: usize) {
        let identity = self.identities[id - 1].clone();
        self.nodes[id - 1] = Some(Node::start(identity, self.addresses[id - 1], self.place(id)).await);
    }

    async fn stop(&mut self, id: usize) {
        self.nodes[id - 1].take().unwrap().stop().await;
    }

    fn proposal(&mut self, by: u64, command: Command) -> Proposal {
        self.proposals += 1;
        Proposal { id: OpId(self.proposals.to_be_bytes()), by: NodeId(by), at: 1, command }
    }

    async fn propose(&mut self, by: usize, command: Command) -> Outcome {
        let proposal = self.proposal(by as u64, command);
        self.node(by).propose(proposal, LONG).await.unwrap().outcome
    }

    async fn add_token(&mut self, by: usize, number: u8) {
        let add = Command::AddToken { secret_hash: [number; 32], node_name: format!("x{number}"), expires: 1 << 40 };
        assert_eq!(self.propose(by, add).await, Outcome::Done);
    }

    /// Membership is not in the state, so this watches what each node says of it.
    async fn until_all_vote(&self) {
        let all_vote = async {
            for id in 1..=3 {
                while self.node(id).status().voters.len() < 3 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        tokio::time::timeout(LONG, all_vote).await.expect("the joined nodes never voted");
    }

    async fn knows(&self, id: usize, numbers: impl IntoIterator<Item = u8>) -> bool {
        self.node(id).linearizable(LONG).await.unwrap();
        let state = self.node(id).watch().borrow().state.clone();
        numbers.into_iter().all(|number| state.tokens.contains_key(&[number; 32]))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_forms_loses_its_leader_and_is_switched_off_and_on() {
    let mut cluster = Cluster::founded().await;

    // Any node proposes, any node reads what was written before.
    for number in 100..110 {
        cluster.add_token(usize::from(number % 3) + 1, number).await;
        assert!(cluster.knows(usize::from((number + 1) % 3) + 1, [number]).await);
    }

    // The leader ends; the other two go on.
    let leader = usize::try_from(cluster.node(2).status().leader.unwrap().0).unwrap();
    cluster.stop(leader).await;
    let (one, other) = if leader == 1 { (2, 3) } else { (1, 5 - leader) };
    cluster.add_token(one, 110).await;
    assert!(cluster.knows(other, 100..=110).await);

    // It comes back and catches up.
    cluster.start(leader).await;
    assert!(cluster.knows(leader, 100..=110).await);

    // All are switched off and on; nothing is lost.
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    for id in 1..=3 {
        cluster.start(id).await;
    }
    for id in 1..=3 {
        assert!(cluster.knows(id, 100..=110).await, "node {id} lost something");
    }
    for id in 1..=3 {
        cluster.stop(id).await;
    }
}
