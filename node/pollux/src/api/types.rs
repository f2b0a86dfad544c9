//! The API's JSON. Times are milliseconds since 1970 by the clock of whoever wrote them; objects are named, not numbered.
//!
//! Fields are only ever added within a version of the API, and readers ignore those they do not know. Requests are strict: a
//! field that the daemon does not know is an error rather than silently without effect.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest blackout wished for unless the user says otherwise, in milliseconds.
pub const BLACKOUT_MS_DEFAULT: u32 = 300;
/// Guest memory unless the user says otherwise, in MiB.
pub const MEMORY_MIB_DEFAULT: u64 = 256;
/// Processors unless the user says otherwise.
pub const VCPUS_DEFAULT: u32 = 1;
/// The machine type unless the user says otherwise: the oldest that every supported QEMU has.
pub const MACHINE_DEFAULT: &str = "pc-q35-7.2";
/// The CPU model unless the user says otherwise: the most every supported host and TCG offer.
pub const CPU_DEFAULT: &str = "qemu64";

/// A node's part in the consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Votes.
    Voter,
    /// Learns what was decided.
    #[serde(other)]
    Learner,
}

/// What the leader thinks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Its heartbeats come.
    Alive,
    /// One or more are overdue.
    Suspect,
    /// None came for long.
    Down,
    /// There is no leader to ask.
    #[serde(other)]
    Unknown,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its number, never reused.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where its daemon listens.
    pub address: String,
    /// Which life its daemon is in; 0: it never started.
    pub incarnation: u64,
    /// Its part in the consensus.
    pub role: NodeRole,
    /// It leads.
    pub leader: bool,
    /// What the leader thinks of it.
    pub health: Health,
    /// Milliseconds since its last heartbeat, as the leader counts.
    pub silent_ms: Option<u64>,
    /// `pollux` version.
    pub version: String,
    /// QEMU's version line; empty: none there.
    pub qemu: String,
    /// `tcg` or `kvm`.
    pub accelerator: String,
    /// Memory of the host in MiB.
    pub memory_mib: u64,
    /// Logical processors.
    pub processors: u32,
    /// Bridges that VMs can be attached to.
    pub bridges: Vec<String>,
    /// `uname -r`.
    pub kernel: String,
    /// `ok`, or why guests cannot be moved from here.
    pub tracking: String,
    /// What the host cannot do for the safety of its guests: what, and what to do about it.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// What its daemon has refused from others since it was started; only where one node is asked for and answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

/// Connections, calls and joins that were refused, by why, and how often. `pollux_link::Counters` says what each means.
pub type Refused = BTreeMap<String, u64>;

/// What the user wants of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// It should run.
    Running,
    /// It should not.
    Stopped,
}

/// Who has the right to run a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nobody.
    Stopped,
    /// One node; its QEMU may still be starting.
    Running,
    /// The source, while the target gathers a copy.
    Moving,
    /// The target, which has not said yet that the guest runs.
    Arriving,
}

/// What the owning node is doing with the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// There is no QEMU for it.
    None,
    /// QEMU is being started.
    Starting,
    /// The guest runs.
    Running,
    /// The guest runs, but its daemon slept or its start took long: nothing leaves until the log was asked again.
    Fenced,
    /// The guest stands still: its right to run is being asked for.
    Paused,
    /// The guest runs while its memory is copied to another node.
    Sending,
    /// The guest stands still for the switchover.
    Saving,
    /// A copy is being gathered or loaded here.
    Receiving,
    /// The guest was asked to switch itself off, or QEMU is being ended.
    Stopping,
    /// The owning node could not be asked.
    #[serde(other)]
    Unknown,
}

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicView {
    /// Its address, stable for the life of the VM.
    pub mac: String,
    /// The bridge it is attached to on every node.
    pub bridge: String,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmView {
    /// Its number, never reused.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// What the user wants of it.
    pub desired: Desired,
    /// Who has the right to run it.
    pub phase: Phase,
    /// The node that has.
    pub node: Option<String>,
    /// The other end of a move under way: the target while moving, the source while arriving.
    pub peer: Option<String>,
    /// Where it is started.
    pub home: String,
    /// The fencing number.
    pub generation: u64,
    /// What the owning node is doing with it.
    pub runtime: Runtime,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Processors.
    pub vcpus: u32,
    /// Network cards.
    pub nics: Vec<NicView>,
    /// Kernel image, a path on every node.
    pub kernel: String,
    /// Initial RAM disk; empty: none.
    pub initrd: String,
    /// Kernel command line.
    pub append: String,
    /// QEMU machine type.
    pub machine: String,
    /// QEMU CPU model.
    pub cpu: String,
    /// Started again by itself when its node's daemon ended.
    pub autostart: bool,
    /// When `phase` last changed.
    pub since: u64,
    /// When it was created.
    pub created: u64,
    /// Why it does not run, while stopped.
    pub stop_cause: Option<String>,
    /// Attempts to start it that failed in a row.
    pub failed_starts: u32,
    /// The operation under way.
    pub operation: Option<String>,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationKind {
    /// A live migration.
    Migrate,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationResult {
    /// Done.
    Succeeded,
    /// Not done; everything is as it was.
    Failed,
    /// Not done because a user said so; everything is as it was.
    Cancelled,
}

/// A long-running change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationView {
    /// 32 hexadecimal digits; any unambiguous beginning names it.
    pub id: String,
    /// What it does.
    pub kind: OperationKind,
    /// To which VM.
    pub vm: String,
    /// From which node.
    pub from: String,
    /// To which node.
    pub to: String,
    /// Longest blackout wished for, in milliseconds.
    pub blackout_ms_max: u32,
    /// Most bytes per second that copying may use, if the user gave a limit.
    #[serde(default)]
    pub bandwidth: Option<u64>,
    /// The guest may be slowed down.
    #[serde(default)]
    pub allow_throttle: bool,
    /// How far it is, as the log says, whoever else can be asked: `queued` until its nodes have room for one more move,
    /// `moving` before the switchover was committed, `arriving` after it, `ended`.
    #[serde(default)]
    pub phase: String,
    /// A user asked for it to end early.
    pub cancel: bool,
    /// When it was accepted.
    pub started: u64,
    /// When it ended.
    pub ended: Option<u64>,
    /// How it ended; `null` while it runs.
    pub result: Option<OperationResult>,
    /// Why it failed.
    pub reason: Option<String>,
    /// What it cost.
    pub report: Option<ReportView>,
    /// How far it is, as the source says; `null` when the source cannot be asked or has not begun.
    pub progress: Option<ProgressView>,
}

/// What a move cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportView {
    /// Passes over memory, the last one (paused) included.
    pub rounds: u32,
    /// Payload bytes on the wire.
    pub wire_bytes: u64,
    /// Pages sent, zero pages included.
    pub pages: u64,
    /// Pages of which only a bit was sent.
    pub zero_pages: u64,
    /// From the pause at the source to the continue at the target, in milliseconds.
    pub pause_ms: u32,
    /// From begin to end, in milliseconds.
    pub total_ms: u64,
    /// What the pause was made of.
    #[serde(default)]
    pub parts: PauseView,
    /// How much of its speed the guest was deprived of at most, in percent.
    #[serde(default)]
    pub throttle_percent: u8,
    /// How long no frame of the guest left either node, from the pause at the source to its first frame at the target, in
    /// milliseconds: what the outside saw. `null`: it has not sent any yet.
    #[serde(default)]
    pub silence_ms: Option<u32>,
}

/// What a pause was made of, in microseconds. The parts overlap: saving with sending the last pages, loading with committing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseView {
    /// Until the guest stood still and all its frames had left.
    pub stop_us: u32,
    /// Finding and sending the last pages.
    pub pages_us: u32,
    /// Saving the device state.
    pub save_us: u32,
    /// Committing the switchover.
    pub commit_us: u32,
    /// Loading the device state.
    pub load_us: u32,
    /// From loaded and committed to the guest running.
    pub resume_us: u32,
}

/// Why a node cannot take a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// What it is about, in a word: `cpu`, `qemu`, `machine`, `memory`, `network`, `files`, `tracking`, `peer`, `phase`.
    pub about: String,
    /// What stands in the way, a sentence.
    pub what: String,
}

impl Obstacle {
    /// One.
    #[must_use]
    pub fn new(about: &str, what: impl Into<String>) -> Self {
        Self { about: about.into(), what: what.into() }
    }
}

/// Whether a VM could move, and what it would cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreflightView {
    /// Which VM.
    pub vm: String,
    /// Where it runs.
    pub from: Option<String>,
    /// The node that was asked about, or all others, by name.
    pub targets: Vec<TargetView>,
}

/// Whether a VM could move to one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetView {
    /// The node.
    pub node: String,
    /// Nothing stands in the way.
    pub fits: bool,
    /// All that does.
    pub obstacles: Vec<Obstacle>,
    /// What it would cost; `null` when the node was not asked about by name, or no sample could be taken.
    pub forecast: Option<ForecastView>,
    /// Why no sample could be taken.
    pub no_forecast: Option<String>,
}

/// What a move would cost, from a sample of half a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForecastView {
    /// It will come to an end within the blackout wished for.
    pub converges: bool,
    /// Why not.
    pub why_not: Option<String>,
    /// Passes over memory, the last one (paused) included.
    pub rounds: u32,
    /// From begin to end, in milliseconds.
    pub total_ms: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// The pause, in milliseconds.
    pub blackout_ms: u64,
    /// By how many percent the guest would be slowed down.
    pub throttle_percent: u8,
    /// Guest memory in use, in bytes.
    pub memory_bytes: u64,
    /// How fast the guest writes, in bytes per second of different pages.
    pub dirty_bytes_per_s: u64,
    /// How fast its memory can be copied, in bytes per second.
    pub copy_bytes_per_s: u64,
}

/// Could a VM be moved?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preflight {
    /// To which node; without one, all are asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Longest blackout wished for, in milliseconds.
    #[serde(default = "default_blackout_ms")]
    pub blackout_ms_max: u32,
    /// Most bytes per second that copying may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// The guest may be slowed down.
    #[serde(default)]
    pub allow_throttle: bool,
}

/// How far a move is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProgressView {
    /// What it is doing: one word of the ladder `preparing`, `copying`, `switching`, `arriving`.
    pub phase: String,
    /// Which pass over memory, from 1.
    pub round: u32,
    /// Guest memory sent so far in bytes, zero pages counted in full.
    pub sent_bytes: u64,
    /// The same as it went over the wire.
    pub wire_bytes: u64,
    /// Pages that are not at the target yet.
    pub pages_left: u64,
    /// How fast the guest dirties pages, per second.
    pub dirty_pages_per_s: u64,
    /// How fast memory is sent, in MiB per second.
    pub mib_per_s: f64,
    /// The blackout if it switched over now, in milliseconds.
    pub predicted_blackout_ms: Option<u64>,
    /// Seconds until it is done at this rate; `null`: cannot say.
    pub eta_s: Option<u64>,
    /// By how many percent the guest is slowed down just now.
    #[serde(default)]
    pub throttle_percent: u8,
    /// When the source said so.
    pub updated: u64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Rises by one with each event.
    pub number: u64,
    /// When.
    pub at: u64,
    /// About which node.
    pub node: Option<String>,
    /// About which VM.
    pub vm: Option<String>,
    /// Part of which operation.
    pub operation: Option<String>,
    /// What happened, one sentence.
    pub text: String,
}

/// What happened after some event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsView {
    /// Where to go on: the number of the last event that was told, here or before.
    pub cursor: u64,
    /// Events after the one asked for that the cluster does not remember any more.
    pub missed: u64,
    /// Those it does, oldest first.
    pub events: Vec<EventView>,
}

impl EventsView {
    /// Of the events that are kept, those after number `after`; all of them when nobody says where to go on. Events are
    /// numbered without gaps, so what was dropped before the first of them is known although it is gone.
    #[must_use]
    pub fn after(kept: impl Iterator<Item = EventView>, after: Option<u64>) -> Self {
        let events: Vec<EventView> = kept.filter(|event| after.is_none_or(|after| event.number > after)).collect();
        let missed = after.zip(events.first()).map_or(0, |(after, first)| first.number - after - 1);
        let cursor = events.last().map_or(after.unwrap_or_default(), |event| event.number);
        Self { cursor, missed, events }
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What, and with which object.
    pub what: String,
    /// What to do about it.
    pub todo: String,
}

/// The cluster as a whole, as the node that answers sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Its identity.
    pub id: String,
    /// Nothing is wrong: `problems` is empty.
    pub healthy: bool,
    /// The node that answers.
    pub answered_by: String,
    /// The node that leads.
    pub leader: Option<String>,
    /// The leader's term.
    pub term: u64,
    /// A majority of the voters hears the leader: changes are possible.
    pub quorum: bool,
    /// The nodes that vote.
    pub voters: Vec<String>,
    /// How many more voters may be lost before nothing can be changed; `null` without a quorum.
    #[serde(default)]
    pub may_lose: Option<u64>,
    /// Milliseconds since the answering node was last in touch with whoever leads: without a quorum, how old all this may be.
    #[serde(default)]
    pub touched_ms: Option<u64>,
    /// How much of the log the answering node has applied.
    pub applied: u64,
    /// All nodes, by name.
    pub nodes: Vec<NodeView>,
    /// VMs that exist.
    pub vms: u64,
    /// VMs that somebody has the right to run.
    pub vms_running: u64,
    /// What is wrong, worst first.
    pub problems: Vec<Problem>,
}

/// A network card to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateNic {
    /// The bridge it is attached to on every node.
    pub bridge: String,
    /// Its address; without one the cluster makes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// A VM to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Unique: 1 to 40 of `a-z 0-9 -`, starting with a letter.
    pub name: String,
    /// Guest memory in MiB.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u64,
    /// Processors.
    #[serde(default = "default_vcpus")]
    pub vcpus: u32,
    /// Kernel image: an absolute path, the same on every node.
    pub kernel: String,
    /// Initial RAM disk: an absolute path; empty: none.
    #[serde(default)]
    pub initrd: String,
    /// Kernel command line.
    #[serde(default)]
    pub append: String,
    /// Network cards.
    #[serde(default)]
    pub nics: Vec<CreateNic>,
    /// QEMU machine type with its version.
    #[serde(default = "default_machine")]
    pub machine: String,
    /// QEMU CPU model.
    #[serde(default = "default_cpu")]
    pub cpu: String,
    /// Start it again by itself when its node's daemon ended.
    #[serde(default = "yes")]
    pub autostart: bool,
    /// Start it now.
    #[serde(default = "yes")]
    pub start: bool,
    /// Where; without it the node that is asked decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

fn default_memory_mib() -> u64 {
    MEMORY_MIB_DEFAULT
}

fn default_vcpus() -> u32 {
    VCPUS_DEFAULT
}

fn default_machine() -> String {
    MACHINE_DEFAULT.to_owned()
}

fn default_cpu() -> String {
    CPU_DEFAULT.to_owned()
}

fn yes() -> bool {
    true
}

/// Start a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartVm {
    /// On this node from now on; without it where it was last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// Stop a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// Pull the plug instead of pressing the power button.
    #[serde(default)]
    pub force: bool,
}

/// Move a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateVm {
    /// To which node.
    pub to: String,
    /// Longest blackout wished for, in milliseconds.
    #[serde(default = "default_blackout_ms")]
    pub blackout_ms_max: u32,
    /// Most bytes per second that copying may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// The guest may be slowed down if it writes faster than its memory can be copied.
    #[serde(default)]
    pub allow_throttle: bool,
}

fn default_blackout_ms() -> u32 {
    BLACKOUT_MS_DEFAULT
}

/// Give a VM back to the source of a move whose target is dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeBack {
    /// Who says that the target is dead; recorded.
    pub operator: String,
    /// The generation the operator saw; any other means that something happened since, and the request is refused.
    pub generation: u64,
}

/// Release a VM whose owner's host is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseVm {
    /// Who says that the host is off; recorded.
    pub operator: String,
    /// The generation the operator saw; any other means that something happened since, and the request is refused.
    pub generation: u64,
}

/// Remove a node for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveNode {
    /// The life of its daemon that the user saw; any other means that it was started since, and the request is refused.
    pub incarnation: u64,
    /// Its host is off for good, and what it had the right to run is to be released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<Lost>,
}

/// What an operator says of a lost host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lost {
    /// Who says so; recorded.
    pub operator: String,
    /// The VMs that the operator saw in its hands, and the generation of each. Any other means that something happened since.
    pub vms: BTreeMap<String, u64>,
}

/// A node that was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedView {
    /// What it was called.
    pub node: String,
    /// Its number, never given again.
    pub id: u64,
    /// VMs that are nobody's now, and wanted stopped.
    pub released: Vec<String>,
    /// VMs that go on at the source of the move that had just brought them there.
    pub taken_back: Vec<String>,
    /// The node that inherited its stopped VMs.
    pub heir: String,
    /// Those VMs.
    pub inherited: Vec<String>,
}

/// What a VM wrote to its serial console.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmLog {
    /// Where in all that was ever written `bytes` ends.
    pub next: u64,
    /// What was written, as the guest wrote it.
    pub bytes: Vec<u8>,
}

/// A join token to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// The name that its bearer will have.
    pub node: String,
    /// Seconds until it ends.
    pub ttl_s: u64,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// The token itself: a secret, shown once.
    pub token: String,
    /// The name that its bearer will have.
    pub node: String,
    /// When it ends.
    pub expires: u64,
}
