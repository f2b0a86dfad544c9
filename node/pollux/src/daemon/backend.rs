//! What the API's verbs do: read the applied state, or put a command to the log.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use pollux_api::{
    ApiError, ClusterView, CreateVm, ErrorKind, EventView, EventsView, LATELY_MAX, MigrateVm, NodeView, OperationView,
    Preflight, PreflightView, Problem, ReleaseVm, RemoveNode, RemovedView, Runtime, StartVm, StopVm, TakeBack,
    TokenRequest, TokenView, VmLog, VmView, WhyView, console::Start,
};
use pollux_link::Token;
use pollux_raft::{Consensus, NodeHealth, ProposeError, Verdict};
use pollux_state::{
    ClusterState, Command, Outcome, Proposal, Refusal,
    id::{MacAddr, NodeId, OpId},
    limits::NIC_MTU_DEFAULT,
    node::Node,
    operation::{MoveWishes, Operation, OperationKind},
    vm::{Desired, Disk, Nic, Phase, Vm, VmSpec},
};
use tokio::sync::watch;

use super::{
    forward::{self, Doing},
    run::Daemon,
    storage::{self, volume_named},
    views::Sight,
    why,
};
use crate::{
    api::{Backend, console::Duplex},
    metrics::{self, Proposed},
    vm::wall_ms,
};

/// How long a change may take to be agreed on, in milliseconds.
const PROPOSE_MS_MAX: u64 = 8_000;
/// How long a read waits for a quorum before the answering node's own state has to do, in milliseconds.
const READ_MS_MAX: u64 = 2_000;
/// How long a read may take to be shown to be current, in milliseconds: longer than an election.
const CURRENT_MS_MAX: u64 = 5_000;
/// Longest life of a join token, in seconds: a week.
const TOKEN_TTL_S_MAX: u64 = 7 * 24 * 3600;
/// How long the leader may take to say which nodes live, in milliseconds.
const HEALTH_MS_MAX: u64 = 1_000;

/// The daemon as the API sees it.
pub(super) struct Api(pub(super) Arc<Daemon>);

impl Api {
    fn consensus(&self) -> &Consensus {
        &self.0.consensus
    }

    /// The state, current if a quorum can be had.
    pub(super) async fn state(&self) -> Arc<ClusterState> {
        if let Err(error) = self.consensus().linearizable(Duration::from_millis(READ_MS_MAX)).await {
            tracing::debug!(%error, "answering from the state this node has");
        }
        self.applied()
    }

    pub(super) fn applied(&self) -> Arc<ClusterState> {
        self.consensus().watch().borrow().state.clone()
    }

    pub(super) async fn health(&self) -> Option<BTreeMap<NodeId, NodeHealth>> {
        let health = self.consensus().liveness(Duration::from_millis(HEALTH_MS_MAX)).await.ok()?;
        Some(health.into_iter().map(|health| (health.node, health)).collect())
    }

    pub(super) async fn propose(&self, command: Command) -> Result<(OpId, Outcome), ApiError> {
        let id = self.0.minter().mint();
        let (outcome, index) = propose(&self.0, id, command).await?;
        self.caught_up(index).await;
        Ok((id, outcome))
    }

    /// The leader answers as soon as it has applied a change; what this node shows afterwards should have it, too.
    pub(super) async fn caught_up(&self, index: u64) {
        let mut applied = self.consensus().watch();
        let there = applied.wait_for(|view| view.applied >= index);
        if tokio::time::timeout(Duration::from_millis(READ_MS_MAX), there).await.is_err() {
            tracing::warn!(index, "this node has not applied in time what the leader has");
        }
    }

    async fn doing(&self, state: &ClusterState, vm: &Vm) -> Doing {
        match vm.phase.owner() {
            Some(owner) => forward::doing(&self.0, state, owner.node, vm.id).await.unwrap_or_default(),
            None => Doing { runtime: Some(Runtime::None), ..Doing::default() },
        }
    }

    /// VMs that stand still although they may run, and such whose firmware's variables are not saved, as their nodes tell.
    async fn in_trouble(&self, state: &ClusterState, down: &storage::Down) -> Vec<Problem> {
        let owners = state.vms.values().filter(|vm| !vm.spec.disks.is_empty()).filter_map(|vm| vm.phase.owner());
        let nodes: BTreeSet<NodeId> = owners.map(|owner| owner.node).filter(|node| !down.contains(node)).collect();
        let asked = nodes.iter().map(|node| forward::troubles(&self.0, state, *node));
        let told = futures::future::join_all(asked).await;
        told.into_iter().flat_map(|told| super::problems::of_guests(state, told)).collect()
    }

    async fn vm_view(&self, state: &ClusterState, vm: &Vm) -> VmView {
        let doing = self.doing(state, vm).await;
        let status = self.consensus().status();
        Sight { state, consensus: &status, health: None }.vm(vm, doing)
    }

    pub(super) async fn named_vm(&self, name: &str) -> Result<VmView, ApiError> {
        let state = self.applied();
        Ok(self.vm_view(&state, vm_named(&state, name)?).await)
    }

    async fn operation_view(&self, state: &Arc<ClusterState>, operation: &Operation) -> OperationView {
        let progress = match operation.kind {
            OperationKind::Migrate { .. } if operation.waits() => self.mirroring(state, operation.id).await,
            // While it arrives, the source still knows how far it got.
            OperationKind::Migrate { vm, from, .. } if operation.ended.is_none() => {
                forward::doing(&self.0, state, from, vm).await.unwrap_or_default().progress
            }
            OperationKind::Migrate { .. } | OperationKind::MoveVolume { .. } => None,
        };
        let status = self.consensus().status();
        Sight { state, consensus: &status, health: None }.operation(operation, progress)
    }
}

#[async_trait]
impl Backend for Api {
    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    async fn current(&self) -> Result<(), ApiError> {
        let read = self.consensus().linearizable(Duration::from_millis(CURRENT_MS_MAX)).await;
        read.map(drop).map_err(|error| {
            let name = self.0.identity.name();
            let touched = self.age_ms().map_or_else(
                || "it has heard no leader since its daemon was started".to_owned(),
                |ms| format!("it was last in touch with a leader {} s ago", ms / 1000),
            );
            ApiError::unavailable(format!("no quorum: {name} cannot tell what is true now; {touched} ({error})"))
                .todo("add --stale to see what it knew then; `pollux cluster status` says what is missing")
        })
    }

    fn age_ms(&self) -> Option<u64> {
        self.consensus().touched().map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX))
    }

    async fn cluster(&self) -> Result<ClusterView, ApiError> {
        let quorum = self.consensus().linearizable(Duration::from_millis(READ_MS_MAX)).await.is_ok();
        let health = if quorum { self.health().await } else { None };
        let (state, status) = (self.applied(), self.consensus().status());
        let sight = Sight { state: &state, consensus: &status, health: health.as_ref() };
        let mut nodes: Vec<NodeView> = state.nodes.values().map(|node| sight.node(node)).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let mut problems = super::problems::of(&state, &status, &nodes, quorum);
        let down = down_in(health.as_ref());
        problems.extend(storage::problems_of(&state, &down));
        problems.extend(storage::differences_of(&state, &self.comparisons(&state, &down).await));
        problems.extend(self.in_trouble(&state, &down).await);
        Ok(ClusterView {
            id: self.0.identity.cluster().to_string(),
            healthy: problems.is_empty(),
            answered_by: self.0.identity.name().to_owned(),
            // Without a majority a node goes on naming the last one it knew.
            leader: status.leader.filter(|_| quorum).map(|leader| sight.node_name(leader)),
            term: status.term,
            quorum,
            voters: status.voters.iter().map(|voter| sight.node_name(*voter)).collect(),
            may_lose: quorum.then(|| super::problems::margin(&nodes)).flatten(),
            touched_ms: status.touched_ms,
            applied: self.consensus().watch().borrow().applied,
            vms: state.vms.len() as u64,
            vms_running: state.vms.values().filter(|vm| vm.phase.owner().is_some()).count() as u64,
            nodes,
            problems,
        })
    }

    async fn events(&self, after: Option<u64>) -> Result<EventsView, ApiError> {
        let mut state = self.applied();
        // This node may be behind the one that gave the cursor, which passes. One read tells that from a cursor of another
        // cluster, which would wait in silence until this one has had as many events. Whoever waits for news pays for none.
        if let Some(after) = after.filter(|after| *after > state.last_event)
            && self.consensus().linearizable(Duration::from_millis(READ_MS_MAX)).await.is_ok()
        {
            state = self.applied();
            if after > state.last_event {
                let why = format!("there is no event {after} to go on from: the newest is {}", state.last_event);
                return Err(ApiError::conflict(why).todo("the cursor is of another cluster; start without one"));
            }
        }
        let status = self.consensus().status();
        let sight = Sight { state: &state, consensus: &status, health: None };
        Ok(EventsView::after(state.events.iter().map(|event| sight.event(event)), after))
    }

    async fn create_token(&self, request: TokenRequest) -> Result<TokenView, ApiError> {
        pollux_state::spec::check_name("node", &request.node).map_err(|refusal| refused(&refusal))?;
        // A cluster that was founded a moment ago is about to know itself.
        let mut applied = self.consensus().watch();
        let known = applied.wait_for(|view| view.state.cluster.is_some());
        if tokio::time::timeout(Duration::from_millis(PROPOSE_MS_MAX), known).await.is_err() {
            return Err(ApiError::unavailable("this node has not heard from its cluster yet")
                .todo("`pollux cluster status` tells what is missing"));
        }
        let state = self.state().await;
        let addresses: Vec<_> = state.nodes.values().filter(|node| node.authority).map(|node| node.address).collect();
        if addresses.is_empty() {
            return Err(ApiError::conflict("no node of this cluster holds the CA's key, so nobody can be admitted"));
        }
        let identity = &self.0.identity;
        if request.ttl_s == 0 || request.ttl_s > TOKEN_TTL_S_MAX {
            let why = format!("a token lives between a second and {} days", TOKEN_TTL_S_MAX / 86_400);
            return Err(ApiError::invalid(why).todo("ask for it when the host is there to join"));
        }
        let expires = SystemTime::now() + Duration::from_secs(request.ttl_s);
        let (cluster, ca) = (identity.cluster(), identity.ca_fingerprint());
        let token = Token::create(cluster, ca, &request.node, addresses, expires)
            .map_err(|error| ApiError::invalid(error.to_string()))?;
        let (secret_hash, expires) = (token.secret_hash(), token.expires_unix_s.saturating_mul(1000));
        self.propose(Command::AddToken { secret_hash, node_name: request.node.clone(), expires }).await?;
        Ok(TokenView { token: token.to_string(), node: request.node, expires })
    }

    async fn nodes(&self) -> Result<Vec<NodeView>, ApiError> {
        let (state, health, status) = (self.applied(), self.health().await, self.consensus().status());
        let sight = Sight { state: &state, consensus: &status, health: health.as_ref() };
        let mut nodes: Vec<NodeView> = state.nodes.values().map(|node| sight.node(node)).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(nodes)
    }

    async fn node(&self, name: &str) -> Result<NodeView, ApiError> {
        let (state, health, status) = (self.applied(), self.health().await, self.consensus().status());
        let sight = Sight { state: &state, consensus: &status, health: health.as_ref() };
        let node = node_named(&state, name)?;
        let mut view = sight.node(node);
        view.refused = forward::refused(&self.0, &state, node.id).await;
        Ok(view)
    }

    async fn vms(&self) -> Result<Vec<VmView>, ApiError> {
        let state = self.applied();
        let views = state.vms.values().map(|vm| self.vm_view(&state, vm));
        let mut views: Vec<VmView> = futures::future::join_all(views).await;
        views.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(views)
    }

    async fn vm(&self, name: &str) -> Result<VmView, ApiError> {
        self.named_vm(name).await
    }

    async fn create_vm(&self, request: CreateVm) -> Result<VmView, ApiError> {
        let state = self.state().await;
        let home = match &request.node {
            Some(name) => node_named(&state, name)?.id,
            None => self.0.identity.node(),
        };
        let desired = if request.start { Desired::Running } else { Desired::Stopped { force: false } };
        let name = request.name.clone();
        let down = down_in(self.health().await.as_ref());
        let firmware = self.new_firmware(&state, &request, &down)?;
        let spec = self.spec(&state, request)?;
        let whole = storage::firmware::with_firmware(&spec, firmware.as_ref());
        // Before a volume is made for it.
        whole.validate().map_err(|refusal| refused(&refusal))?;
        if desired == Desired::Running {
            super::preflight::startable(&self.0, &state, &whole, home).await?;
        }
        self.create_with_firmware(spec, home, desired, firmware).await?;
        self.named_vm(&name).await
    }

    async fn start_vm(&self, name: &str, request: StartVm) -> Result<VmView, ApiError> {
        let state = self.state().await;
        let Vm { id: vm, spec, phase, home: at, .. } = vm_named(&state, name)?;
        let home = request.node.as_deref().map(|name| node_named(&state, name).map(|node| node.id)).transpose()?;
        if matches!(phase, Phase::Stopped { .. }) {
            super::preflight::startable(&self.0, &state, spec, home.unwrap_or(*at)).await?;
        }
        self.propose(Command::SetDesired { vm: *vm, desired: Desired::Running, home }).await?;
        self.named_vm(name).await
    }

    async fn stop_vm(&self, name: &str, request: StopVm) -> Result<VmView, ApiError> {
        let vm = vm_named(&*self.state().await, name)?.id;
        let desired = Desired::Stopped { force: request.force };
        self.propose(Command::SetDesired { vm, desired, home: None }).await?;
        self.named_vm(name).await
    }

    async fn delete_vm(&self, name: &str) -> Result<VmView, ApiError> {
        let state = self.state().await;
        let vm = vm_named(&state, name)?;
        let view = self.vm_view(&state, vm).await;
        self.propose(Command::DeleteVm { vm: vm.id }).await?;
        Ok(view)
    }

    async fn migrate_vm(&self, name: &str, request: MigrateVm) -> Result<OperationView, ApiError> {
        let state = self.state().await;
        let vm = vm_named(&state, name)?;
        let to = node_named(&state, &request.to)?;
        let wish = storage::Wish { storage: request.storage, pool: request.pool };
        let along = super::preflight::check(&self.0, &state, vm, to, &self.health().await, &wish).await?;
        let wishes = wishes((request.blackout_ms_max, request.bandwidth), (request.allow_throttle, request.warm));
        let command = Command::BeginMove { vm: vm.id, expect: vm.generation, to: to.id, wishes, along };
        let (id, _) = self.propose(command).await?;
        let state = self.applied();
        let operation = state.operations.get(&id).ok_or_else(|| {
            ApiError::unknown(format!("operation {id} was accepted, but this node has not heard of it yet"))
                .todo(format!("`pollux op show {id}` tells how it goes"))
        })?;
        Ok(self.operation_view(&state, operation).await)
    }

    async fn preflight_vm(&self, name: &str, request: Preflight) -> Result<PreflightView, ApiError> {
        let (state, health) = (self.state().await, self.health().await);
        let vm = vm_named(&state, name)?;
        let owner = Some(vm.phase.owner().map_or(vm.home, |owner| owner.node));
        let wishes = wishes((request.blackout_ms_max, request.bandwidth), (request.allow_throttle, request.warm));
        let wish = storage::Wish { storage: request.storage, pool: request.pool };
        let targets = match &request.to {
            Some(to) => {
                let to = node_named(&state, to)?;
                vec![super::preflight::target(&self.0, &state, vm, to, &health, (Some(&wishes), &wish)).await]
            }
            None => {
                let others = state.nodes.values().filter(|node| Some(node.id) != owner);
                let looks =
                    others.map(|node| super::preflight::target(&self.0, &state, vm, node, &health, (None, &wish)));
                let mut targets = futures::future::join_all(looks).await;
                targets.sort_by(|a, b| a.node.cmp(&b.node));
                targets
            }
        };
        let status = self.consensus().status();
        let sight = Sight { state: &state, consensus: &status, health: health.as_ref() };
        Ok(PreflightView { vm: vm.spec.name.clone(), from: owner.map(|node| sight.node_name(node)), targets })
    }

    async fn why_vm(&self, name: &str) -> Result<WhyView, ApiError> {
        let (state, health) = (self.state().await, self.health().await);
        let vm = vm_named(&state, name)?;
        let (nodes, held) = why::places(&self.0, &state, vm, &health).await;
        let last_move = match why::last_move(&state, vm) {
            Some(operation) => Some(self.operation_view(&state, operation).await),
            None => None,
        };
        let status = self.consensus().status();
        let sight = Sight { state: &state, consensus: &status, health: None };
        let because = why::because(&state, vm).map(|event| sight.event(event));
        let mut lately: Vec<EventView> =
            why::events(&state, vm).rev().take(LATELY_MAX).map(|event| sight.event(event)).collect();
        lately.reverse();
        let down = down_in(health.as_ref());
        let disks = vm.spec.disks.iter().filter_map(|disk| state.volumes.get(&disk.volume));
        let troubles = disks.filter_map(|volume| storage::problem_of(&state, volume, &down)).collect();
        Ok(WhyView { vm: self.vm_view(&state, vm).await, because, last_move, held, nodes, troubles, lately })
    }

    async fn take_back_vm(&self, name: &str, request: TakeBack) -> Result<VmView, ApiError> {
        let vm = vm_named(&*self.state().await, name)?.id;
        let expect = pollux_state::id::Generation(request.generation);
        self.propose(Command::TakeBack { vm, expect, operator: request.operator }).await?;
        self.named_vm(name).await
    }

    async fn release_vm(&self, name: &str, request: ReleaseVm) -> Result<VmView, ApiError> {
        self.release(name, request).await
    }

    async fn remove_node(&self, name: &str, request: RemoveNode) -> Result<RemovedView, ApiError> {
        self.remove(name, request).await
    }

    async fn vm_log(&self, name: &str, from: u64) -> Result<VmLog, ApiError> {
        let state = self.applied();
        let vm = vm_named(&state, name)?;
        let node = vm.phase.owner().map_or(vm.home, |owner| owner.node);
        let log = forward::log(&self.0, &state, node, (vm.id, from)).await.ok_or_else(|| {
            ApiError::unavailable(format!("the node that runs VM {name} does not answer"))
                .todo("`pollux node list` tells which nodes are alive")
        })?;
        Ok(VmLog { next: log.end(), bytes: log.bytes })
    }

    async fn console(&self, name: &str, start: Start) -> Result<Box<dyn Duplex>, ApiError> {
        let state = self.applied();
        super::console::open(&self.0, &state, vm_named(&state, name)?, start).await
    }

    async fn metrics(&self) -> Result<String, ApiError> {
        Ok(super::measure::render(&self.0).await)
    }

    async fn operations(&self) -> Result<Vec<OperationView>, ApiError> {
        let state = self.applied();
        let views = state.operations.values().map(|operation| self.operation_view(&state, operation));
        let mut views: Vec<OperationView> = futures::future::join_all(views).await;
        views.sort_by(|a, b| b.started.cmp(&a.started).then_with(|| a.id.cmp(&b.id)));
        Ok(views)
    }

    async fn operation(&self, id: &str) -> Result<OperationView, ApiError> {
        let state = self.applied();
        let operation = operation_named(&state, id)?;
        Ok(self.operation_view(&state, operation).await)
    }

    async fn cancel_operation(&self, id: &str) -> Result<OperationView, ApiError> {
        let op = operation_named(&*self.state().await, id)?.id;
        self.propose(Command::Cancel { op }).await?;
        let state = self.applied();
        let operation = operation_named(&state, id)?;
        Ok(self.operation_view(&state, operation).await)
    }
}

/// Puts a command to the log as this node's, and tells from which place in it on its effect is there.
pub(super) async fn propose(daemon: &Daemon, id: OpId, command: Command) -> Result<(Outcome, u64), ApiError> {
    let proposal = Proposal { id, by: daemon.identity.node(), at: wall_ms(), command };
    let asked = tokio::time::Instant::now();
    let answer = daemon.consensus.propose(proposal, Duration::from_millis(PROPOSE_MS_MAX)).await;
    metrics::proposed(
        asked.elapsed(),
        match &answer {
            Ok(applied) if matches!(applied.outcome, Outcome::Refused(_)) => Proposed::Refused,
            Ok(_) => Proposed::Applied,
            Err(_) => Proposed::Unknown,
        },
    );
    let applied = answer.map_err(|error| not_proposed(&error))?;
    let outcome = applied.outcome.done().map_err(|refusal| refused(&refusal))?;
    Ok((outcome, applied.index))
}

/// The longest blackout and the most bytes per second; whether the guest may be slowed down, and is to stand still.
fn wishes((blackout_ms_max, bandwidth): (u32, Option<u64>), (throttle, warm): (bool, bool)) -> MoveWishes {
    MoveWishes { blackout_ms_max, bandwidth, throttle, warm }
}

impl Api {
    fn spec(&self, state: &ClusterState, request: CreateVm) -> Result<VmSpec, ApiError> {
        let disks = request.volumes.iter().map(|name| Ok(Disk::data(volume_named(state, name)?.id)));
        let firmware = request.firmware_vars.iter().map(|name| Ok(Disk::firmware(volume_named(state, name)?.id)));
        let nics = request.nics.into_iter().map(|nic| {
            let mac = match nic.mac {
                Some(mac) => mac.parse::<MacAddr>().map_err(|_| {
                    ApiError::invalid(format!("{mac} is not an Ethernet address, such as 52:54:00:12:34:56"))
                })?,
                None => {
                    // QEMU's range, locally administered; the cluster refuses one that is taken.
                    let mut tail = [0; 3];
                    self.0.minter().fill(&mut tail);
                    MacAddr([0x52, 0x54, 0x00, tail[0], tail[1], tail[2]])
                }
            };
            Ok(Nic { mac, bridge: nic.bridge, mtu: nic.mtu.unwrap_or(NIC_MTU_DEFAULT) })
        });
        Ok(VmSpec {
            name: request.name,
            memory_mib: request.memory_mib,
            vcpus: request.vcpus,
            kernel: request.kernel,
            initrd: request.initrd,
            append: request.append,
            nics: nics.collect::<Result<_, ApiError>>()?,
            machine: request.machine,
            cpu: request.cpu,
            autostart: request.autostart,
            disks: disks.chain(firmware).collect::<Result<_, ApiError>>()?,
        })
    }
}

pub(super) fn vm_named<'a>(state: &'a ClusterState, name: &str) -> Result<&'a Vm, ApiError> {
    let names = || state.vms.values().map(|vm| vm.spec.name.as_str());
    state.vms.values().find(|vm| vm.spec.name == name).ok_or_else(|| no_such("VM", name, names(), "pollux vm list"))
}

pub(super) fn node_named<'a>(state: &'a ClusterState, name: &str) -> Result<&'a Node, ApiError> {
    let names = || state.nodes.values().map(|node| node.name.as_str());
    state
        .nodes
        .values()
        .find(|node| node.name == name)
        .ok_or_else(|| no_such("node", name, names(), "pollux node list"))
}

/// The nodes among these that cannot be expected to answer.
pub(super) fn down_in(health: Option<&BTreeMap<NodeId, NodeHealth>>) -> storage::Down {
    let down = health.into_iter().flat_map(BTreeMap::values).filter(|health| health.verdict == Verdict::Down);
    down.map(|health| health.node).collect()
}

fn operation_named<'a>(state: &'a ClusterState, id: &str) -> Result<&'a Operation, ApiError> {
    let mut found = state.operations.values().filter(|operation| operation.id.to_string().starts_with(id));
    match (found.next(), found.next()) {
        (Some(operation), None) => Ok(operation),
        (Some(_), Some(_)) => Err(ApiError::invalid(format!("several operations begin with {id}"))
            .todo("give more of the id; `pollux op list` shows them")),
        (None, _) => Err(ApiError::not_found(format!("there is no operation {id}"))
            .todo("`pollux op list` shows those the cluster remembers")),
    }
}

pub(super) fn no_such<'a>(what: &str, name: &str, names: impl Iterator<Item = &'a str>, list: &str) -> ApiError {
    let near = names.filter(|known| distance(known, name) <= 2).min_by_key(|known| distance(known, name));
    let todo = match near {
        Some(near) => format!("did you mean {near}? `{list}` shows those there are"),
        None => format!("`{list}` shows those there are"),
    };
    ApiError::not_found(format!("there is no {what} called {name}")).todo(todo)
}

/// Edit distance (Levenshtein): how many letters two names differ by.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

pub(super) fn refused(refusal: &Refusal) -> ApiError {
    let kind = match refusal {
        Refusal::NoSuchNode(_)
        | Refusal::NoSuchVm(_)
        | Refusal::NoSuchOperation(_)
        | Refusal::NoSuchPool(_)
        | Refusal::NoSuchVolume(_)
        | Refusal::NoSuchReplica { .. } => ErrorKind::NotFound,
        Refusal::Invalid { .. } => ErrorKind::Invalid,
        Refusal::Founding(_)
        | Refusal::NameTaken(_)
        | Refusal::Token(_)
        | Refusal::Generation { .. }
        | Refusal::NotYours { .. }
        | Refusal::StaleIncarnation { .. }
        | Refusal::AnotherLife { .. }
        | Refusal::WrongPhase { .. }
        | Refusal::Full { .. }
        | Refusal::Ended(_)
        | Refusal::Removed(_)
        | Refusal::NodeInUse { .. }
        | Refusal::PoolInUse { .. }
        | Refusal::VolumeGeneration { .. }
        | Refusal::VolumeVersion { .. }
        | Refusal::NotTheWriter { .. }
        | Refusal::Volume { .. } => ErrorKind::Conflict,
    };
    ApiError::new(kind, refusal.to_string())
}

fn not_proposed(error: &ProposeError) -> ApiError {
    if let ProposeError::Refused { why, .. } = error {
        ApiError::conflict(why)
    } else if error.is_unknown() {
        ApiError::unknown(format!("it is not known whether the change was made: {error}"))
            .todo("look before trying again: `pollux vm show`, `pollux volume show`, `pollux op list`")
    } else {
        ApiError::unavailable(format!("the change was not made: {error}"))
            .todo("`pollux cluster status` tells what is missing")
    }
}

/// Something that is wrong, and what to do.
pub(super) fn problem(what: impl Into<String>, todo: impl Into<String>) -> Problem {
    Problem { what: what.into(), todo: todo.into() }
}
