//! The network in memory, with the faults a real one has.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use pollux_state::id::NodeId;
use tokio::time::{sleep, timeout};

use crate::{
    Consensus,
    message::{CallError, Network},
};

#[derive(Default)]
pub(super) struct Wires(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    plugged: BTreeMap<NodeId, Consensus>,
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Answers to this method get lost, so many times.
    lost_answers: BTreeMap<u16, usize>,
}

impl Wires {
    pub(super) fn port(self: &Arc<Self>, from: NodeId) -> Arc<dyn Network> {
        Arc::new(Port { from, wires: Arc::clone(self) })
    }

    pub(super) fn plug(&self, consensus: Consensus) {
        self.0.lock().unwrap().plugged.insert(consensus.node(), consensus);
    }

    pub(super) fn unplug(&self, node: NodeId) -> Consensus {
        self.0.lock().unwrap().plugged.remove(&node).unwrap()
    }

    pub(super) fn plugged(&self, node: NodeId) -> Option<Consensus> {
        self.0.lock().unwrap().plugged.get(&node).cloned()
    }

    /// Cuts every wire between `node` and all others up to 9.
    pub(super) fn isolate(&self, node: NodeId) {
        let mut inner = self.0.lock().unwrap();
        for other in (1..=9).map(NodeId) {
            inner.cut.insert((node, other));
            inner.cut.insert((other, node));
        }
    }

    /// Cuts one wire, both ways.
    pub(super) fn cut(&self, one: NodeId, other: NodeId) {
        let mut inner = self.0.lock().unwrap();
        inner.cut.insert((one, other));
        inner.cut.insert((other, one));
    }

    pub(super) fn heal(&self) {
        self.0.lock().unwrap().cut.clear();
    }

    pub(super) fn lose_answers(&self, method: u16, times: usize) {
        self.0.lock().unwrap().lost_answers.insert(method, times);
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.0.lock().unwrap().cut.contains(&(from, to))
    }

    fn loses_answer(&self, method: u16) -> bool {
        match self.0.lock().unwrap().lost_answers.get_mut(&method) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            Some(_) | None => false,
        }
    }
}

struct Port {
    from: NodeId,
    wires: Arc<Wires>,
}

#[async_trait]
impl Network for Port {
    async fn call(
        &self,
        node: NodeId,
        address: SocketAddr,
        method: u16,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        assert_eq!(address, super::address(node.0), "{node} is called where it does not listen");
        sleep(Duration::from_millis(1)).await;
        if self.wires.is_cut(self.from, node) {
            sleep(deadline).await;
            return Err(CallError::Unknown("no answer in time".to_owned()));
        }
        let Some(peer) = self.wires.plugged(node) else {
            return Err(CallError::NotSent("nobody listens there".to_owned()));
        };
        if !peer.admits(self.from) {
            return Err(CallError::NotAdmitted(format!("{node} does not know {} any more", self.from)));
        }
        let answer = timeout(deadline, peer.answer(self.from, method, &body)).await;
        if self.wires.loses_answer(method) || self.wires.is_cut(self.from, node) {
            sleep(deadline).await;
            return Err(CallError::Unknown("the answer got lost".to_owned()));
        }
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(refusal)) => Err(CallError::Fault(refusal.to_string())),
            Err(_) => Err(CallError::Unknown("no answer in time".to_owned())),
        }
    }
}
