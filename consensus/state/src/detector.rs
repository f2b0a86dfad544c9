//! Which nodes the leader hears.
//!
//! Owned by the leader's consensus layer, from its election until it is leader no more; every node sends it heartbeats, and
//! anybody may ask what it makes of them. A verdict is a *suspicion*, for people and for choosing whom to ask first: who may
//! act is decided by the log alone. Pure: times are milliseconds of the leader's own monotonic clock, passed in.

use alloc::{collections::BTreeMap, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::id::{Incarnation, NodeId};

/// A node that was silent this long, in milliseconds, is suspect: four heartbeats of 250 ms are missing, which neither a
/// lost packet nor a busy moment explains.
pub const SUSPECT_AFTER_MS: u64 = 1_000;
/// A node that was silent this long, in milliseconds, counts as down: three times as long, well beyond an election.
pub const DOWN_AFTER_MS: u64 = 3_000;

/// What the leader thinks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Heard lately.
    Alive,
    /// Silent for [`SUSPECT_AFTER_MS`].
    Suspect,
    /// Silent for [`DOWN_AFTER_MS`].
    Down,
}

/// How a node is, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHealth {
    /// Which node.
    pub node: NodeId,
    /// What the leader thinks of it.
    pub verdict: Verdict,
    /// Milliseconds since its last heartbeat, or since this leader's election if it has not heard it yet.
    pub silent_ms: u64,
    /// The daemon's life that sent the last heartbeat; `None`: this leader has heard none.
    pub incarnation: Option<Incarnation>,
}

/// The leader's failure detector.
#[derive(Debug, Clone)]
pub struct Detector {
    now_ms: u64,
    nodes: BTreeMap<NodeId, Heard>,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    at_ms: u64,
    incarnation: Option<Incarnation>,
}

impl Detector {
    /// For a leader elected now. It has heard nobody yet, and counts everybody's silence from here: what nodes said to the
    /// leader before it tells nothing about what they would have said to this one.
    #[must_use]
    pub fn new(now_ms: u64, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let mut detector = Self { now_ms, nodes: BTreeMap::new() };
        detector.set_nodes(nodes, now_ms);
        detector
    }

    /// These are the members now: silence of new ones counts from here, the others are kept or forgotten.
    pub fn set_nodes(&mut self, nodes: impl IntoIterator<Item = NodeId>, now_ms: u64) {
        let at_ms = self.advance(now_ms);
        let known = core::mem::take(&mut self.nodes);
        for node in nodes {
            let heard = known.get(&node).copied().unwrap_or(Heard { at_ms, incarnation: None });
            self.nodes.insert(node, heard);
        }
    }

    /// A heartbeat came in. One of a node that is no member, or that an earlier life of its daemon sent before it ended,
    /// says nothing.
    pub fn heard(&mut self, node: NodeId, incarnation: Incarnation, now_ms: u64) {
        let at_ms = self.advance(now_ms);
        if let Some(heard) = self.nodes.get_mut(&node)
            && heard.incarnation.is_none_or(|latest| incarnation >= latest)
        {
            *heard = Heard { at_ms, incarnation: Some(incarnation) };
        }
    }

    /// What the leader thinks of each member now, by id.
    #[must_use]
    pub fn health(&self, now_ms: u64) -> Vec<NodeHealth> {
        let now_ms = now_ms.max(self.now_ms);
        let judge = |(node, heard): (&NodeId, &Heard)| {
            let silent_ms = now_ms.saturating_sub(heard.at_ms);
            NodeHealth { node: *node, verdict: verdict(silent_ms), silent_ms, incarnation: heard.incarnation }
        };
        self.nodes.iter().map(judge).collect()
    }

    /// A clock that goes back is taken to stand still: silence never grows from it, nor does it end.
    fn advance(&mut self, now_ms: u64) -> u64 {
        self.now_ms = self.now_ms.max(now_ms);
        self.now_ms
    }
}

fn verdict(silent_ms: u64) -> Verdict {
    if silent_ms >= DOWN_AFTER_MS {
        Verdict::Down
    } else if silent_ms >= SUSPECT_AFTER_MS {
        Verdict::Suspect
    } else {
        Verdict::Alive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N1: NodeId = NodeId(1);
    const N2: NodeId = NodeId(2);
    const LIFE: Incarnation = Incarnation(3);

    fn of(detector: &Detector, node: NodeId, now_ms: u64) -> NodeHealth {
        detector.health(now_ms).into_iter().find(|health| health.node == node).expect("a member")
    }

    #[test]
    fn silence_is_first_suspect_and_then_down_and_ends_with_a_heartbeat() {
        let mut detector = Detector::new(0, [N1, N2]);
        detector.heard(N1, LIFE, 500);
        assert_eq!(of(&detector, N1, 500 + SUSPECT_AFTER_MS - 1).verdict, Verdict::Alive);
        assert_eq!(of(&detector, N1, 500 + SUSPECT_AFTER_MS).verdict, Verdict::Suspect);
        assert_eq!(of(&detector, N1, 500 + DOWN_AFTER_MS - 1).verdict, Verdict::Suspect);
        let down = of(&detector, N1, 500 + DOWN_AFTER_MS);
        let expected =
            NodeHealth { node: N1, verdict: Verdict::Down, silent_ms: DOWN_AFTER_MS, incarnation: Some(LIFE) };
        assert_eq!(down, expected);

        detector.heard(N1, LIFE, 9_000);
        assert_eq!(of(&detector, N1, 9_100).verdict, Verdict::Alive);
    }

    #[test]
    fn a_new_leader_counts_from_its_election_however_late_that_is() {
        let detector = Detector::new(1_000_000, [N1]);
        assert_eq!(of(&detector, N1, 1_000_000).verdict, Verdict::Alive);
        let silent = of(&detector, N1, 1_000_000 + DOWN_AFTER_MS);
        assert_eq!((silent.verdict, silent.incarnation), (Verdict::Down, None));
    }

    #[test]
    fn a_late_heartbeat_of_an_earlier_life_does_not_count() {
        let mut detector = Detector::new(0, [N1]);
        detector.heard(N1, LIFE, 100);
        detector.heard(N1, Incarnation(2), 2_000);
        assert_eq!(of(&detector, N1, 2_000).silent_ms, 1_900);
    }

    #[test]
    fn a_node_that_joins_counts_from_its_joining_and_one_that_left_is_forgotten() {
        let mut detector = Detector::new(0, [N1]);
        detector.heard(N1, LIFE, 50);
        detector.set_nodes([N1, N2], 5_000);
        assert_eq!(of(&detector, N1, 5_000).silent_ms, 4_950);
        assert_eq!(of(&detector, N2, 5_000).silent_ms, 0);

        detector.set_nodes([N2], 6_000);
        detector.heard(N1, LIFE, 6_000);
        assert_eq!(detector.health(6_000).len(), 1);
    }

    #[test]
    fn a_clock_that_goes_back_neither_panics_nor_kills() {
        let mut detector = Detector::new(10_000, [N1]);
        detector.heard(N1, LIFE, 20_000);
        detector.heard(N1, LIFE, 3);
        assert_eq!(of(&detector, N1, 0).silent_ms, 0);
        assert_eq!(of(&detector, N1, 20_500).silent_ms, 500);
        assert_eq!(of(&detector, N1, u64::MAX).verdict, Verdict::Down);
    }
}
