//! Whole consensus layers over a network in memory, on tokio's own clock: hours pass in milliseconds, and a test that
//! waits for what never comes ends at its deadline.

mod basics;
mod faults;
mod members;
mod snapshots;
mod wires;

use std::{sync::Arc, time::Duration};

use pollux_state::{
    Applied, Command, Outcome, Proposal,
    id::{ClusterId, Incarnation, NodeId, OpId},
    node::Facts,
};
use tokio::time::timeout;

use self::wires::Wires;
use crate::{Config, Consensus, MemoryDisk, Retention, Role, Store, View};

/// Longer than anything here takes, in the tests' own time.
const LONG: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(10);

fn id(number: u64) -> OpId {
    OpId(u128::from(number).to_be_bytes())
}

fn proposal(number: u64, by: NodeId, command: Command) -> Proposal {
    Proposal { id: id(number), by, at: 1_000, command }
}

fn address(node: u64) -> std::net::SocketAddr {
    std::net::SocketAddr::from(([127, 0, 0, 1], u16::try_from(7000 + node).unwrap()))
}

fn hash(number: u64) -> [u8; 32] {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&number.to_be_bytes());
    hash
}

fn found(number: u64) -> Proposal {
    let command =
        Command::Found { cluster: ClusterId([7; 16]), name: "n1".to_owned(), address: address(1), key: hash(1) };
    proposal(number, NodeId(1), command)
}

/// A change that shows in the state and never fails: a token for a node that will not come.
fn token(number: u64, by: NodeId) -> Proposal {
    let command = Command::AddToken { secret_hash: hash(number), node_name: format!("x{number}"), expires: 1 << 40 };
    proposal(number, by, command)
}

/// A cluster of consensus layers; node ids begin with 1.
struct Cluster {
    wires: Arc<Wires>,
    disks: Vec<Arc<MemoryDisk>>,
    retention: Retention,
    proposals: u64,
}

impl Cluster {
    /// One node, founded.
    async fn found(retention: Retention) -> Self {
        let mut cluster = Self { wires: Arc::default(), disks: Vec::new(), retention, proposals: 1_000_000 };
        cluster.add_disk();
        let first = cluster.start(1).await;
        let founded = first.found(found(1), SOON).await.unwrap();
        assert_eq!(founded.outcome, Outcome::Joined(NodeId(1)));
        cluster
    }

    /// So many nodes, all joined, as many of them voters as there should be.
    async fn of(size: u64) -> Self {
        let mut cluster = Self::found(Retention::default()).await;
        for _ in 1..size {
            cluster.join().await;
        }
        cluster.until_voters(u64::try_from(crate::voters_of(usize::try_from(size).unwrap())).unwrap()).await;
        cluster
    }

    fn add_disk(&mut self) {
        self.disks.push(Arc::default());
    }

    fn config(&self, node: u64) -> Config {
        let disk = &self.disks[usize::try_from(node).unwrap() - 1];
        let store = Store::Memory(Arc::clone(disk));
        Config { retention: self.retention, seed: Some(node), ..Config::new(NodeId(node), store) }
    }

    async fn start(&self, node: u64) -> Consensus {
        let port = self.wires.port(NodeId(node));
        let consensus = Consensus::start_on(self.config(node), port).await.unwrap();
        self.wires.plug(consensus.clone());
        consensus.announce_incarnation(Incarnation(1));
        consensus
    }

    /// Admits the next node, as a daemon would, and starts it.
    async fn join(&mut self) -> Consensus {
        self.add_disk();
        let node = u64::try_from(self.disks.len()).unwrap();
        let name = format!("n{node}");
        let secret_hash = hash(500 + node);
        let add = Command::AddToken { secret_hash, node_name: name.clone(), expires: 1 << 40 };
        self.propose(1, add).await;
        let join = Command::Join { secret_hash, name, address: address(node), key: hash(node) };
        assert_eq!(self.propose(1, join).await.outcome, Outcome::Joined(NodeId(node)));
        let consensus = self.start(node).await;
        let after = Incarnation(0);
        let life = Command::StartIncarnation { after, address: address(node), facts: Facts::default() };
        assert_eq!(self.propose(node, life).await.outcome, Outcome::Incarnation(Incarnation(1)));
        consensus
    }

    async fn propose(&mut self, by: u64, command: Command) -> Applied {
        self.proposals += 1;
        let consensus = self.node(by);
        consensus.propose(proposal(self.proposals, NodeId(by), command), SOON).await.unwrap()
    }

    fn node(&self, node: u64) -> Consensus {
        self.wires.plugged(NodeId(node)).unwrap()
    }

    /// As if its process was killed: what it had not synced is lost.
    async fn kill(&self, node: u64) {
        let consensus = self.wires.unplug(NodeId(node));
        self.disks[usize::try_from(node).unwrap() - 1].power_loss();
        consensus.shutdown().await;
    }

    /// Waits until every node knows that so many vote. A change that only some know of still needs the old majority.
    async fn until_voters(&self, voters: u64) {
        let enough = |now: &openraft::metrics::RaftServerMetrics<u64, crate::types::Member>| {
            let membership = now.membership_config.membership();
            membership.get_joint_config().len() == 1 && membership.voter_ids().count() as u64 == voters
        };
        for node in 1..=self.disks.len() as u64 {
            let mut waiting = self.node(node).leadership();
            timeout(LONG, waiting.wait_for(enough)).await.expect("the membership never got there").unwrap();
        }
    }

    /// Waits until one of `nodes` leads, and all of them know.
    async fn until_led_by_one_of(&self, nodes: &[u64]) -> NodeId {
        let mut leader = None;
        for node in nodes {
            let mut waiting = self.node(*node).leadership();
            let known = waiting.wait_for(|now| now.current_leader.is_some_and(|leader| nodes.contains(&leader)));
            leader = timeout(LONG, known).await.expect("nobody leads").unwrap().current_leader;
        }
        NodeId(leader.unwrap())
    }
}

async fn until(consensus: &Consensus, wanted: impl FnMut(&View) -> bool) {
    let mut view = consensus.watch();
    timeout(LONG, view.wait_for(wanted)).await.expect("the state never got there").unwrap();
}

fn leads(consensus: &Consensus) -> bool {
    consensus.status().role == Role::Leader
}
