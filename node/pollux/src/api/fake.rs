//! A daemon without a cluster, for the tests of the API and of the command line: VMs in a map, moves that a test advances.

pub(crate) mod storage;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::SinkExt;
use pollux_api::{
    ApiError, ClusterView, CreateVm, Desired, DiskView, EventView, EventsView, Firmware, Health, MigrateVm, NicView,
    NodeRole, NodeView, Obstacle, OperationKind, OperationResult, OperationView, Phase, PoolView, Preflight,
    PreflightView, ReleaseVm, RemoveNode, RemovedView, Runtime, StartVm, StopVm, TakeBack, TargetView, TokenRequest,
    TokenView, TransferView, VerificationView, VmLog, VmView, VolumeView, WhyView,
    console::{Heard, News, Start},
};
use pollux_state::limits::NIC_MTU_DEFAULT;
use tokio::{io::AsyncReadExt, sync::watch};
use tokio_util::{codec::FramedWrite, sync::CancellationToken, task::TaskTracker};

use super::{
    Backend,
    client::Client,
    console::{self, Duplex},
    server,
};

/// The id of the one operation there can be.
pub(crate) const OPERATION: &str = "0123456789abcdef0123456789abcdef";

/// What the fake holds.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) vms: BTreeMap<String, VmView>,
    pub(crate) pools: BTreeMap<String, PoolView>,
    pub(crate) volumes: BTreeMap<String, VolumeView>,
    /// The one import or export there can be.
    pub(crate) transfer: Option<TransferView>,
    /// The one comparison there can be.
    pub(crate) verification: Option<VerificationView>,
    pub(crate) operation: Option<OperationView>,
    pub(crate) log: Vec<u8>,
    pub(crate) events: Vec<EventView>,
    /// Every change is answered with this, if it is there.
    pub(crate) refuse: Option<ApiError>,
    /// There is no quorum.
    pub(crate) blind: bool,
    /// No change is ever answered.
    pub(crate) hang: bool,
    /// A guest that does not react to its power button, and nodes that make no replicas.
    pub(crate) deaf: bool,
}

/// The fake itself.
pub(crate) struct Fake {
    held: Mutex<Held>,
    changed: watch::Sender<u64>,
    tasks: TaskTracker,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { held: Mutex::default(), changed: watch::Sender::new(0), tasks: TaskTracker::new() })
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Change what it holds, and say so.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Held)) {
        change(&mut self.held());
        self.changed.send_modify(|count| *count += 1);
    }

    /// Waits until somebody waits for a change: what a test does next is then noticed and not just found.
    pub(crate) async fn somebody_waits(&self) {
        while self.changed.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
    }

    async fn may_change(&self) -> Result<(), ApiError> {
        let (refuse, hang) = {
            let held = self.held();
            (held.refuse.clone(), held.hang)
        };
        if hang {
            std::future::pending::<()>().await;
        }
        refuse.map_or(Ok(()), Err)
    }

    fn on_vm(&self, name: &str, change: impl FnOnce(&mut VmView)) -> Result<VmView, ApiError> {
        let mut found = Err(no_vm(name));
        self.change(|held| {
            if let Some(vm) = held.vms.get_mut(name) {
                change(vm);
                found = Ok(vm.clone());
            }
        });
        found
    }
}

fn no_vm(name: &str) -> ApiError {
    ApiError::not_found(format!("there is no VM {name}"))
}

/// A fake, served on a socket in a directory of its own. Ends with the test.
pub(crate) struct Served {
    pub(crate) fake: Arc<Fake>,
    pub(crate) client: Client,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    dir: tempfile::TempDir,
}

impl Served {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (fake, stop, tasks) = (Fake::new(), CancellationToken::new(), TaskTracker::new());
        let socket = dir.path().join("api.sock");
        let client = Client::new(&socket);
        let (backend, token) = (Arc::clone(&fake), stop.clone());
        tasks.spawn(async move { server::serve(backend, &socket, token).await });
        let served = Self { fake, client, stop, tasks, dir };
        while !served.socket().exists() {
            tokio::task::yield_now().await;
        }
        served
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Stop serving, as the daemon does when it ends.
    pub(crate) async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A node that is well.
pub(crate) fn node() -> NodeView {
    NodeView {
        id: 1,
        name: "n1".into(),
        address: "192.0.2.11:7700".into(),
        incarnation: 1,
        role: NodeRole::Voter,
        leader: false,
        health: Health::Alive,
        silent_ms: Some(100),
        version: "0.1.0".into(),
        qemu: "QEMU emulator version 10.0.2".into(),
        accelerator: "tcg".into(),
        memory_mib: 8192,
        uefi: String::new(),
        processors: 4,
        bridges: vec!["br0".into()],
        kernel: "6.12.0".into(),
        tracking: "ok".into(),
        lacks: Vec::new(),
        refused: None,
    }
}

/// What it takes to make a VM.
pub(crate) fn web() -> CreateVm {
    serde_json::from_str(r#"{"name":"web","kernel":"/boot/vmlinuz","nics":[{"bridge":"br0"}]}"#).unwrap()
}

#[async_trait]
impl Backend for Fake {
    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    async fn current(&self) -> Result<(), ApiError> {
        if self.held().blind { Err(ApiError::unavailable("no quorum")) } else { Ok(()) }
    }

    fn age_ms(&self) -> Option<u64> {
        self.held().blind.then_some(14_000)
    }

    async fn cluster(&self) -> Result<ClusterView, ApiError> {
        Err(ApiError::internal("the fake has no cluster"))
    }

    async fn events(&self, after: Option<u64>) -> Result<EventsView, ApiError> {
        Ok(EventsView::after(self.held().events.iter().cloned(), after))
    }

    async fn create_token(&self, request: TokenRequest) -> Result<TokenView, ApiError> {
        self.may_change().await?;
        Ok(TokenView { token: "pollux1.secret".into(), node: request.node, expires: request.ttl_s * 1000 })
    }

    async fn nodes(&self) -> Result<Vec<NodeView>, ApiError> {
        Ok(Vec::new())
    }

    async fn node(&self, name: &str) -> Result<NodeView, ApiError> {
        Err(ApiError::not_found(format!("there is no node {name}")))
    }

    async fn vms(&self) -> Result<Vec<VmView>, ApiError> {
        Ok(self.held().vms.values().cloned().collect())
    }

    async fn vm(&self, name: &str) -> Result<VmView, ApiError> {
        self.held().vms.get(name).cloned().ok_or_else(|| no_vm(name))
    }

    async fn create_vm(&self, request: CreateVm) -> Result<VmView, ApiError> {
        self.may_change().await?;
        let nics = request.nics.into_iter().map(|nic| NicView {
            mac: nic.mac.unwrap_or_default(),
            bridge: nic.bridge,
            mtu: nic.mtu.unwrap_or(NIC_MTU_DEFAULT),
        });
        let vm = VmView {
            id: 1,
            name: request.name,
            desired: if request.start { Desired::Running } else { Desired::Stopped },
            phase: Phase::Stopped,
            node: None,
            peer: None,
            home: request.node.unwrap_or_else(|| "n1".into()),
            generation: 0,
            runtime: Runtime::None,
            trouble: None,
            unsaved: None,
            memory_mib: request.memory_mib,
            vcpus: request.vcpus,
            nics: nics.collect(),
            disks: request
                .volumes
                .into_iter()
                .zip(0..)
                .map(|(volume, at)| DiskView {
                    volume,
                    size_bytes: 10 << 30,
                    boot: at == 0 && request.kernel.is_empty(),
                })
                .collect(),
            firmware: match request.firmware {
                Firmware::Bios => None,
                Firmware::Uefi => Some(request.firmware_vars.unwrap_or_else(|| "web-firmware".into())),
            },
            kernel: request.kernel,
            initrd: request.initrd,
            append: request.append,
            machine: request.machine,
            cpu: request.cpu,
            autostart: request.autostart,
            since: 0,
            created: 0,
            stop_cause: Some("never started".into()),
            failed_starts: 0,
            operation: None,
        };
        self.change(|held| {
            held.vms.insert(vm.name.clone(), vm.clone());
        });
        Ok(vm)
    }

    async fn start_vm(&self, name: &str, request: StartVm) -> Result<VmView, ApiError> {
        self.may_change().await?;
        self.on_vm(name, |vm| {
            vm.home = request.node.unwrap_or_else(|| vm.home.clone());
            vm.desired = Desired::Running;
            vm.phase = Phase::Running;
            vm.node = Some(vm.home.clone());
            vm.runtime = Runtime::Running;
            vm.generation += 1;
        })
    }

    async fn stop_vm(&self, name: &str, request: StopVm) -> Result<VmView, ApiError> {
        self.may_change().await?;
        let ends = request.force || !self.held().deaf;
        self.on_vm(name, |vm| {
            vm.desired = Desired::Stopped;
            if ends {
                vm.phase = Phase::Stopped;
                vm.node = None;
                vm.runtime = Runtime::None;
                vm.generation += 1;
            }
        })
    }

    async fn delete_vm(&self, name: &str) -> Result<VmView, ApiError> {
        self.may_change().await?;
        let gone = self.held().vms.remove(name);
        gone.ok_or_else(|| no_vm(name))
    }

    async fn migrate_vm(&self, name: &str, request: MigrateVm) -> Result<OperationView, ApiError> {
        self.may_change().await?;
        let vm = self.vm(name).await?;
        let operation = OperationView {
            id: OPERATION.into(),
            kind: OperationKind::Migrate,
            vm: vm.name,
            from: vm.home,
            to: request.to,
            blackout_ms_max: request.blackout_ms_max,
            bandwidth: request.bandwidth,
            allow_throttle: request.allow_throttle,
            phase: "moving".into(),
            cancel: false,
            started: 0,
            ended: None,
            result: None,
            reason: None,
            report: None,
            progress: None,
            copy: None,
        };
        self.change(|held| held.operation = Some(operation.clone()));
        Ok(operation)
    }

    async fn preflight_vm(&self, name: &str, request: Preflight) -> Result<PreflightView, ApiError> {
        let vm = self.vm(name).await?;
        let targets = request.to.into_iter().map(|node| {
            let obstacles =
                if self.held().vms.len() > 1 { vec![Obstacle::new("memory", "it is full")] } else { Vec::new() };
            let fits = obstacles.is_empty();
            TargetView { node, fits, obstacles, forecast: None, no_forecast: None, disks: Vec::new() }
        });
        Ok(PreflightView { vm: vm.name, from: vm.node, targets: targets.collect() })
    }

    async fn why_vm(&self, name: &str) -> Result<WhyView, ApiError> {
        let vm = self.vm(name).await?;
        Ok(WhyView {
            vm,
            because: None,
            last_move: None,
            held: None,
            nodes: Vec::new(),
            troubles: Vec::new(),
            lately: Vec::new(),
        })
    }

    async fn take_back_vm(&self, name: &str, request: TakeBack) -> Result<VmView, ApiError> {
        self.may_change().await?;
        let now = self.vm(name).await?;
        if now.generation != request.generation {
            return Err(ApiError::conflict(format!(
                "VM {name} is at {}, not at {}",
                now.generation, request.generation
            )));
        }
        self.on_vm(name, |vm| {
            vm.phase = Phase::Running;
            vm.node = vm.peer.take();
            vm.generation += 1;
        })
    }

    async fn release_vm(&self, name: &str, request: ReleaseVm) -> Result<VmView, ApiError> {
        self.may_change().await?;
        let now = self.vm(name).await?;
        if now.generation != request.generation {
            return Err(ApiError::conflict(format!("VM {name} is at {}", now.generation)));
        }
        self.on_vm(name, |vm| {
            vm.phase = Phase::Stopped;
            vm.desired = Desired::Stopped;
            vm.node = None;
            vm.generation += 1;
            vm.stop_cause = Some(format!("its host was lost: {} says so", request.operator));
        })
    }

    async fn remove_node(&self, name: &str, _: RemoveNode) -> Result<RemovedView, ApiError> {
        self.may_change().await?;
        Ok(RemovedView { node: name.into(), id: 3, heir: "n1".into(), ..RemovedView::default() })
    }

    async fn vm_log(&self, name: &str, from: u64) -> Result<VmLog, ApiError> {
        self.vm(name).await?;
        let held = self.held();
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let bytes = held.log.get(from..).unwrap_or(&held.log).to_vec();
        Ok(VmLog { next: held.log.len() as u64, bytes })
    }

    /// A guest that answers in capitals.
    async fn console(&self, name: &str, start: Start) -> Result<Box<dyn Duplex>, ApiError> {
        self.vm(name).await?;
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let from = match start {
            Start::Last(bytes) => 1000 - bytes,
            Start::At(place) => place,
        };
        self.tasks.spawn(async move {
            let (mut typed, output) = tokio::io::split(&mut theirs);
            let mut output = FramedWrite::new(output, console::codec());
            let mut said = Heard::News(News::Attached { node: "n1".into(), others: 0 });
            let (mut at, mut buffer) = (from, [0; 64]);
            while output.send(said.encode().unwrap()).await.is_ok() {
                let Ok(count @ 1..) = typed.read(&mut buffer).await else { return };
                let bytes = Bytes::from(buffer[..count].to_ascii_uppercase());
                said = Heard::Output { at, bytes };
                at += count as u64;
            }
        });
        Ok(Box::new(ours))
    }

    async fn metrics(&self) -> Result<String, ApiError> {
        Ok("# TYPE pollux_up gauge\npollux_up 1\n".into())
    }

    async fn operations(&self) -> Result<Vec<OperationView>, ApiError> {
        Ok(self.held().operation.iter().cloned().collect())
    }

    async fn operation(&self, id: &str) -> Result<OperationView, ApiError> {
        let found = self.held().operation.clone().filter(|operation| operation.id.starts_with(id));
        found.ok_or_else(|| ApiError::not_found(format!("there is no operation {id}")))
    }

    async fn cancel_operation(&self, id: &str) -> Result<OperationView, ApiError> {
        self.may_change().await?;
        self.operation(id).await?;
        self.change(|held| {
            if let Some(operation) = &mut held.operation {
                operation.cancel = true;
                operation.result = Some(OperationResult::Cancelled);
                operation.ended = Some(1);
            }
        });
        self.operation(id).await
    }
}
