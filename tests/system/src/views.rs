//! What the stories look at in the JSON that `pollux -o json` prints.

use serde::Deserialize;

/// `vm show`, `vm list`.
#[derive(Clone, Debug, Deserialize)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// `running` or `stopped`: what the user wants.
    pub desired: String,
    /// `stopped`, `running`, `moving` or `arriving`: who has the right to run it.
    pub phase: String,
    /// The node that has.
    pub node: Option<String>,
    /// Where it is started.
    pub home: String,
    /// The fencing number.
    pub generation: u64,
    /// What the owning node does with it.
    pub runtime: String,
    /// Why it stands still although it may run, if it does.
    pub trouble: Option<String>,
    /// Why what its firmware wrote is not saved, if it is not.
    pub unsaved: Option<String>,
    /// The volume with its firmware's variables.
    pub firmware: Option<String>,
    /// Why it does not run, while stopped.
    pub stop_cause: Option<String>,
    /// Attempts to start it that failed in a row.
    pub failed_starts: u32,
    /// The operation under way.
    pub operation: Option<String>,
}

impl Vm {
    /// The node that has the right to run it.
    ///
    /// # Panics
    /// If none has.
    #[must_use]
    pub fn on(&self) -> &str {
        self.node.as_deref().unwrap_or_else(|| panic!("no node has the right to run {}: {self:?}", self.name))
    }
}

/// `op show`, `op list`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Operation {
    /// Its id.
    pub id: String,
    /// The VM.
    pub vm: String,
    /// The source.
    pub from: String,
    /// The target.
    pub to: String,
    /// `queued`, `moving`, `arriving` or `ended`.
    pub phase: String,
    /// `succeeded`, `failed` or `cancelled`, once it has ended.
    pub result: Option<String>,
    /// Why it failed.
    pub reason: Option<String>,
    /// What it cost.
    pub report: Option<Report>,
    /// How far it is.
    pub progress: Option<Progress>,
}

impl Operation {
    /// It ended in this result.
    #[must_use]
    pub fn is(&self, result: &str) -> bool {
        self.result.as_deref() == Some(result)
    }
}

/// What a move cost.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Report {
    /// Passes over memory.
    pub rounds: u32,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// From pause to continue.
    pub pause_ms: u64,
    /// How much the guest was slowed down.
    pub throttle_percent: u8,
}

/// `vm migrate --dry-run`.
#[derive(Clone, Debug, Deserialize)]
pub struct Preflight {
    /// The nodes that were asked about.
    pub targets: Vec<Target>,
}

/// One of them.
#[derive(Clone, Debug, Deserialize)]
pub struct Target {
    /// Its name.
    pub node: String,
    /// Nothing stands in the way.
    pub fits: bool,
    /// What it would cost.
    pub forecast: Option<Forecast>,
    /// What becomes of its volumes.
    pub disks: Vec<DiskMove>,
}

/// What becomes of a volume when its VM moves.
#[derive(Clone, Debug, Deserialize)]
pub struct DiskMove {
    /// Its name.
    pub volume: String,
    /// Where the replica is that goes.
    pub from: Option<String>,
    /// What is to be copied.
    pub copy_bytes: Option<u64>,
}

/// What a move would cost.
#[derive(Clone, Debug, Deserialize)]
pub struct Forecast {
    /// It comes to an end.
    pub converges: bool,
    /// Passes over memory.
    pub rounds: u32,
    /// The pause.
    pub blackout_ms: u64,
    /// Memory in use.
    pub memory_bytes: u64,
    /// The speed of copying.
    pub copy_bytes_per_s: u64,
}

/// How far a move is.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Progress {
    /// `mirroring`, `comparing`, `preparing`, `copying`, `switching` or `arriving`.
    pub phase: String,
    /// Which pass over memory.
    pub round: u32,
    /// What was sent.
    pub sent_bytes: u64,
}

/// What `vm migrate`, `op watch` and `op cancel` end with.
#[derive(Clone, Debug, Deserialize)]
pub struct Ended {
    /// The operation's id.
    pub operation: String,
    /// How it ended.
    pub result: Option<String>,
    /// Why it failed.
    pub reason: Option<String>,
    /// What it cost.
    pub report: Option<Report>,
}

/// `cluster status`.
#[derive(Clone, Debug, Deserialize)]
pub struct Cluster {
    /// Its identity.
    pub id: String,
    /// Nothing is wrong.
    pub healthy: bool,
    /// The node that leads.
    pub leader: Option<String>,
    /// Changes are possible.
    pub quorum: bool,
    /// Who votes.
    pub voters: Vec<String>,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Something that is wrong.
#[derive(Clone, Debug, Deserialize)]
pub struct Problem {
    /// What.
    pub what: String,
    /// What to do about it.
    pub todo: String,
}

/// `node show`, `node list`.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where its daemon listens.
    pub address: String,
    /// Which life its daemon is in.
    pub incarnation: u64,
    /// `alive`, `suspect`, `down` or `unknown`.
    pub health: String,
}

/// `events`.
#[derive(Clone, Debug, Deserialize)]
pub struct Happened {
    /// Where to go on.
    pub cursor: u64,
    /// How many could not be told.
    pub missed: u64,
    /// What happened.
    pub events: Vec<Event>,
}

/// One of them, and a line of `events --follow`.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// Rises by one with each.
    pub number: u64,
    /// Part of which operation.
    pub operation: Option<String>,
    /// What happened.
    pub text: String,
}

/// `vm why`.
#[derive(Clone, Debug, Deserialize)]
pub struct Why {
    /// What put it there.
    pub because: Option<Event>,
    /// Its last move.
    pub last_move: Option<Operation>,
    /// Every node.
    pub nodes: Vec<Place>,
}

/// A node as a place for a VM.
#[derive(Clone, Debug, Deserialize)]
pub struct Place {
    /// The node.
    pub node: String,
    /// The VM is there.
    pub here: bool,
    /// It could be.
    pub fits: bool,
    /// Why not.
    pub obstacles: Vec<Obstacle>,
}

/// Why a VM cannot be somewhere.
#[derive(Clone, Debug, Deserialize)]
pub struct Obstacle {
    /// What it is about.
    pub about: String,
    /// What stands in the way.
    pub what: String,
}

/// What every failure leaves on standard error.
#[derive(Clone, Debug, Deserialize)]
pub struct Complaint {
    /// What happened.
    pub error: String,
    /// What to do.
    pub todo: String,
    /// The same number the process ended with.
    pub exit_code: i32,
}
