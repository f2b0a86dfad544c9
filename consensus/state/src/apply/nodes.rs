//! Founding the cluster, letting nodes in, and the lives of their daemons.

use alloc::{
    format,
    string::{String, ToString},
};
use core::net::SocketAddr;

use super::{About, Step};
use crate::{
    UnixMs,
    command::{Outcome, Refusal, TokenRefusal},
    id::{ClusterId, Incarnation, NodeId},
    limits::{BRIDGE_MAX, BRIDGES_MAX, EXTRA_FACTS_MAX, FACT_MAX, NAME_MAX, NODES_MAX, TOKENS_MAX},
    node::{Facts, JoinToken, Node},
    spec::{check_address, check_name},
    text::clip,
};

impl Step<'_> {
    pub(super) fn found(
        &mut self,
        cluster: ClusterId,
        name: &str,
        address: SocketAddr,
        key: [u8; 32],
    ) -> Result<Outcome, Refusal> {
        check_name("name", name)?;
        check_address(address)?;
        self.state.cluster = Some(cluster);
        let id = self.admit_node(name, address, key, true);
        self.event(About { node: Some(id), ..About::default() }, format!("the cluster was founded on {name}"));
        Ok(Outcome::Joined(id))
    }

    pub(super) fn add_token(
        &mut self,
        secret_hash: [u8; 32],
        node_name: &str,
        expires: UnixMs,
    ) -> Result<Outcome, Refusal> {
        check_name("node name", node_name)?;
        self.name_free(node_name)?;
        let now = self.proposal.at;
        if expires <= now {
            return Err(Refusal::invalid("ttl", "the token would have expired already; give it some time"));
        }
        if self.state.tokens.contains_key(&secret_hash) {
            return Err(Refusal::Token(TokenRefusal::InUse));
        }
        if self.state.tokens.values().filter(|token| token.expires > now).count() >= TOKENS_MAX {
            return Err(Refusal::full("join tokens", TOKENS_MAX));
        }
        self.state.tokens.retain(|_, token| token.expires > now);
        let token = JoinToken { node_name: node_name.to_string(), expires, used: None };
        self.state.tokens.insert(secret_hash, token);
        self.event(About::default(), format!("{node_name} was given a token to join with"));
        Ok(Outcome::Done)
    }

    pub(super) fn join(
        &mut self,
        secret_hash: &[u8; 32],
        name: &str,
        address: SocketAddr,
        key: [u8; 32],
    ) -> Result<Outcome, Refusal> {
        let Some(token) = self.state.tokens.get(secret_hash) else {
            return Err(Refusal::Token(TokenRefusal::Unknown));
        };
        if token.node_name != name {
            let (made_for, asked) = (token.node_name.clone(), shown(name));
            return Err(Refusal::Token(TokenRefusal::OtherName { made_for, asked }));
        }
        match token.used {
            // Its first answer may have been lost; it is the same node that asks, so it may have it again at any time.
            Some((user, node)) if user == key && !self.state.is_removed(node) => return Ok(Outcome::Joined(node)),
            Some((user, node)) if user == key => return Err(Refusal::Removed(self.node_name(node))),
            Some((_, node)) => {
                return Err(Refusal::Token(TokenRefusal::Used { by: self.node_name(node) }));
            }
            None => {}
        }
        if token.expires <= self.proposal.at {
            return Err(Refusal::Token(TokenRefusal::Expired));
        }
        self.name_free(name)?;
        check_address(address)?;
        // One that has never been started may be a join whose answer was lost: it keeps nobody else away.
        let started = |node: &&Node| node.address == address && node.incarnation != Incarnation::default();
        if let Some(other) = self.state.nodes.values().find(started) {
            let why = format!("{address} is where {} listens; give this node another", other.name);
            return Err(Refusal::invalid("address", why));
        }
        if let Some(other) = self.state.nodes.values().find(|node| node.key == key) {
            let why = format!("{} has the same; a new node makes a new key", other.name);
            return Err(Refusal::invalid("key", why));
        }
        if let Some(removed) = self.state.removed.values().find(|removed| removed.key == key) {
            return Err(Refusal::Removed(removed.name.clone()));
        }
        if self.state.nodes.len() >= NODES_MAX {
            return Err(Refusal::full("nodes", NODES_MAX));
        }
        let id = self.admit_node(name, address, key, false);
        if let Some(token) = self.state.tokens.get_mut(secret_hash) {
            token.used = Some((key, id));
        }
        self.event(About { node: Some(id), ..About::default() }, format!("{name} joined at {address}"));
        Ok(Outcome::Joined(id))
    }

    /// A daemon began a new life. Changes no VM: what the earlier life was running is for the new one to claim, release,
    /// give back or abort, since only it knows when the earlier one's processes are gone.
    ///
    /// The address may be another node's: two hosts that swapped theirs must both be able to say so, and who is who is
    /// decided by certificates.
    pub(super) fn start_incarnation(
        &mut self,
        after: Incarnation,
        address: SocketAddr,
        facts: &Facts,
    ) -> Result<Outcome, Refusal> {
        check_address(address)?;
        let id = self.proposal.by;
        let Some(node) = self.state.nodes.get_mut(&id) else {
            return Err(Refusal::NoSuchNode(id.to_string()));
        };
        if node.incarnation != after {
            return Err(Refusal::AnotherLife { node: node.name.clone(), after, current: node.incarnation });
        }
        let first = node.incarnation == Incarnation::default();
        let moved = node.address != address;
        node.incarnation = node.incarnation.next();
        node.address = address;
        node.authority = facts.authority().unwrap_or(node.authority);
        node.facts = bounded(facts);
        let incarnation = node.incarnation;
        let again = if first { "" } else { " again" };
        let place = if moved { format!(" at {address}") } else { String::new() };
        let text = format!("the daemon of {} started{again}{place}", node.name);
        self.event(About { node: Some(id), ..About::default() }, text);
        Ok(Outcome::Incarnation(incarnation))
    }

    fn name_free(&self, name: &str) -> Result<(), Refusal> {
        if self.state.nodes.values().any(|node| node.name == name) {
            return Err(Refusal::NameTaken(name.to_string()));
        }
        Ok(())
    }

    fn admit_node(&mut self, name: &str, address: SocketAddr, key: [u8; 32], authority: bool) -> NodeId {
        let id = self.state.last_node.next();
        let node = Node {
            id,
            name: name.to_string(),
            address,
            key,
            incarnation: Incarnation::default(),
            facts: Facts::default(),
            joined: self.proposal.at,
            authority,
        };
        self.state.last_node = id;
        self.state.nodes.insert(id, node);
        id
    }
}

/// Facts are for showing and comparing. Those that are too long are cut (or left out: half a bridge's name names another), not
/// refused: an odd host must not keep its daemon from starting.
fn bounded(facts: &Facts) -> Facts {
    let fact = |text: &String| clip(text, FACT_MAX);
    Facts {
        version: fact(&facts.version),
        kernel: fact(&facts.kernel),
        qemu: fact(&facts.qemu),
        accelerator: fact(&facts.accelerator),
        memory_mib: facts.memory_mib,
        processors: facts.processors,
        bridges: facts.bridges.iter().filter(|name| name.len() <= BRIDGE_MAX).take(BRIDGES_MAX).cloned().collect(),
        tracking_refused: fact(&facts.tracking_refused),
        extra: facts.extra.iter().take(EXTRA_FACTS_MAX).map(|(name, value)| (fact(name), fact(value))).collect(),
    }
}

fn shown(name: &str) -> String {
    format!("{:?}", clip(name, NAME_MAX))
}
