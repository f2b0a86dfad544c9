//! Why a VM is where it is, and where else it could be.

use serde::{Deserialize, Serialize};

use crate::{EventView, Obstacle, OperationView, Problem, VmView};

/// Events about a VM that are told beside the one that put it where it is.
pub const LATELY_MAX: usize = 5;

/// Why a VM is where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WhyView {
    /// The VM as it is.
    pub vm: VmView,
    /// What put it where it is, or stopped it; `null` when the cluster does not remember it any more.
    pub because: Option<EventView>,
    /// The last move of it that ended, however it did.
    pub last_move: Option<OperationView>,
    /// Why no move of it can begin now, to whichever node; `null` when one can, or when it does not run.
    pub held: Option<String>,
    /// Every node, by name.
    pub nodes: Vec<PlaceView>,
    /// What is wrong with its volumes.
    #[serde(default)]
    pub troubles: Vec<Problem>,
    /// What happened to it last, oldest first.
    pub lately: Vec<EventView>,
}

/// Whether a VM could be on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceView {
    /// The node.
    pub node: String,
    /// It has the right to run there.
    pub here: bool,
    /// It is started there.
    pub home: bool,
    /// Nothing about this node stands in the way.
    pub fits: bool,
    /// What does.
    pub obstacles: Vec<Obstacle>,
}
