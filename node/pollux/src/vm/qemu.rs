//! Guests in QEMU: memory, machine and network cards of one VM, as its actor's worker drives them.
//!
//! [`QemuHost`] belongs to the daemon. A [`QemuGuest`] is made by `launch` and ended by `end`; the worker holds it, sessions
//! of moves borrow it. Its parts do not know each other: this is the one place that puts them in order.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use pollux_memory::{DirtyTracker, GuestMemory};
use pollux_net::{Counters, Fence, FenceError, Port, PortConfig, PortHandle, Tap, nic_socket_pair, tap_name};
use pollux_qemu::{
    Accelerator, Boot, Group, Groups, Identity, Launch, Machine, MachineEvent, NicFd, QmpError, Role, SpawnError,
    Spawner, Tracking, TrackingWish, kvm_usable,
};
use pollux_state::{
    id::{Generation, MacAddr, VmId},
    limits::FENCE_MS,
};
use pollux_vm::{
    Ticket,
    pages::{PAGE_BYTES, PageSet},
};
use tokio::{
    sync::{Mutex, RwLock, mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    fitness::Answers,
    host::{Guest, GuestError, GuestEvent, Host, Log, Memory, Order, ResumeError, Typed},
    turns::{Purpose, Turn, Turns},
};

/// Largest frame on a VM's network, without its header, in bytes.
const MTU_BYTES: u32 = 1_500;
/// A killed QEMU is gone within this, in milliseconds; one that the kernel cannot end is waited for, and said so as often.
const END_MS: u64 = 10_000;
/// The console of a QEMU that is gone has been read to its end within this, in milliseconds. One that has not counts as one
/// that said something.
const CONSOLE_END_MS: u64 = 2_000;

/// Makes guests in QEMU.
pub struct QemuHost {
    spawner: Spawner,
    binary: PathBuf,
    accelerator: Accelerator,
    users: Users,
    /// Or why there are none: in words.
    groups: Result<Groups, String>,
    tasks: TaskTracker,
    pub(super) answers: Answers,
    census: Arc<Census>,
}

/// The guests there are, and the frames of those that there were.
#[derive(Default)]
struct Census {
    guests: StdMutex<Vec<Weak<QemuGuest>>>,
    /// Held while a guest's network cards end, so that no frame is counted twice or not at all.
    gone: Mutex<Counters>,
}

impl Census {
    fn living(&self) -> Vec<Arc<QemuGuest>> {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.retain(|guest| guest.strong_count() > 0);
        guests.iter().filter_map(Weak::upgrade).filter(|guest| !guest.over.is_cancelled()).collect()
    }

    fn born(&self, guest: &Arc<QemuGuest>) {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(guest));
    }
}

impl QemuHost {
    /// Starts the thread that starts every QEMU. Each VM's gets a user of its own out of `users`, where the daemon is root, and a
    /// control group of its own in the one called `group`; what is left there of an earlier life ends.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(binary: PathBuf, users: Users, group: &str) -> std::io::Result<Self> {
        let accelerator = if kvm_usable() { Accelerator::Kvm } else { Accelerator::Tcg };
        let groups = Groups::open(group).map_err(|error| in_words(&error));
        Ok(Self {
            spawner: Spawner::start()?,
            binary,
            accelerator,
            users,
            groups,
            tasks: TaskTracker::new(),
            answers: Answers::default(),
            census: Arc::default(),
        })
    }

    /// In what guests are held less than they should be: a word for each, and why.
    #[must_use]
    pub fn lacks(&self) -> Vec<(&'static str, String)> {
        let mut lacks = Vec::new();
        if !rustix::process::geteuid().is_root() {
            lacks.push(("users", "VMs run as the daemon's own user; run it as root".to_owned()));
        }
        match &self.groups {
            Err(why) => {
                lacks.push(("groups", format!("VMs have no control groups, so what one forks may outlive it: {why}")))
            }
            Ok(groups) => lacks.extend(groups.unlimited().map(|why| ("limits", why.to_owned()))),
        }
        lacks
    }

    /// When every machine has ended.
    pub fn close(&self) {
        if let Ok(groups) = &self.groups {
            groups.close();
        }
    }

    /// An empty control group for a machine, once whatever was in it is gone (DESIGN, rule 18).
    async fn group(&self, order: &Order) -> Result<Option<Arc<Group>>, GuestError> {
        let Ok(groups) = &self.groups else { return Ok(None) };
        let (name, vcpus) = (format!("vm-{}", order.vm.0), order.spec.vcpus);
        let (groups, memory_bytes) = (groups.clone(), order.spec.memory_mib << 20);
        blocking(move || groups.make(&name, vcpus, memory_bytes).map_err(failed("its control group")))
            .await
            .map(|group| Some(Arc::new(group)))
    }

    /// The QEMU that runs guests.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Who executes guests' instructions here.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// How many guests there are on this node, standbys included.
    #[must_use]
    pub fn machines(&self) -> usize {
        self.census.living().len()
    }

    /// What became of all frames of guests on this node since the daemon started.
    pub async fn frames(&self) -> Counters {
        let gone = self.census.gone.lock().await;
        let mut frames = *gone;
        let guests = self.census.guests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for guest in guests.iter().filter_map(Weak::upgrade) {
            guest.ports.read().await.iter().for_each(|(_, port)| frames += port.counters());
        }
        frames
    }

    /// Tries on this host's QEMU whether its writes can be tracked.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub async fn try_tracking(&self) -> Result<(), GuestError> {
        match self.spawner.try_tracking(self.binary.clone(), self.users.of(VmId(0))).await {
            Err(SpawnError::Untracked { source, .. }) => Err(GuestError(source.to_string())),
            Err(error) => Err(GuestError(in_words(&error))),
            Ok(()) => Ok(()),
        }
    }
}

#[async_trait]
impl Host for QemuHost {
    async fn launch(&self, order: Order) -> Result<Arc<dyn Guest>, GuestError> {
        let memory = GuestMemory::create(&order.spec.name, order.spec.memory_mib << 20);
        let memory = Arc::new(memory.map_err(failed("its memory"))?);
        let mut ports = Vec::new();
        let group = self.group(&order).await?;
        let mut machine = match self.machine(&order, &memory, &mut ports, group.as_deref()).await {
            Ok(machine) => machine,
            Err(error) => {
                end_ports(&mut ports).await;
                end_group(group).await;
                return Err(error);
            }
        };
        let tracker = match machine.take_tracking() {
            Ok(tracking) => Tracker::Unused(tracking),
            Err(refused) => Tracker::Refused(refused.to_string()),
        };
        let guest = Arc::new(QemuGuest {
            machine,
            memory,
            group,
            ports: RwLock::new(ports),
            tracker: Arc::new(Mutex::new(Tracked { tracker, turns: Turns::default() })),
            listens: StdMutex::new(false),
            census: self.census.clone(),
            resuming: Mutex::new(()),
            over: CancellationToken::new(),
        });
        self.census.born(&guest);
        let (over, watched) = (guest.over.clone(), guest.clone());
        self.tasks.spawn(over.run_until_cancelled_owned(report(watched, order.events)));
        Ok(guest)
    }
}

/// A network card's address and its port.
type NicPort = (MacAddr, PortHandle);

impl QemuHost {
    /// The machine itself. What it needed of `ports` is there also when it fails, for the caller to end.
    async fn machine(
        &self,
        order: &Order,
        memory: &Arc<GuestMemory>,
        ports: &mut Vec<NicPort>,
        group: Option<&Group>,
    ) -> Result<Machine, GuestError> {
        let spec = &order.spec;
        let mut nics = Vec::new();
        for (nic, number) in spec.nics.iter().zip(0u8..) {
            let (ours, theirs) = nic_socket_pair().map_err(failed("a network card's socket"))?;
            let name = tap_name(order.vm, number).map_err(failed("a network card"))?;
            let tap = Tap::open(&name, &nic.bridge, MTU_BYTES).map_err(failed("a network card"))?;
            let fence = Fence::raise(&tap, Duration::from_millis(FENCE_MS)).await.map_err(failed("a network card"))?;
            let config = PortConfig { vm: order.vm, nic: number, runs_under: order.generation };
            ports.push((nic.mac, Port::start(config, ours, tap, Some(fence), &self.tasks)));
            nics.push(NicFd { mac: nic.mac.to_string(), socket: theirs });
        }
        let boot = Boot::Kernel {
            kernel: PathBuf::from(&spec.kernel),
            initrd: (!spec.initrd.is_empty()).then(|| PathBuf::from(&spec.initrd)),
            append: spec.append.clone(),
        };
        let launch = Launch {
            name: spec.name.clone(),
            binary: self.binary.clone(),
            accelerator: self.accelerator,
            machine: spec.machine.clone(),
            cpu: spec.cpu.clone(),
            vcpus: spec.vcpus,
            memory_bytes: memory.bytes(),
            memory: memory.fd().try_clone_to_owned().map_err(failed("its memory"))?,
            boot,
            nics,
            role: if order.standby { Role::Incoming } else { Role::Fresh },
            identity: self.users.of(order.vm),
            cgroup: group.map(Group::procs),
            tracking: TrackingWish::Optional,
        };
        let machine = Machine::start(&self.spawner, launch).await.map_err(|error| GuestError(in_words(&error)))?;
        if order.standby {
            // QEMU has put firmware and kernel there, as for a boot; the source sends only pages that were ever written.
            if let Err(error) = empty(memory).await {
                machine.kill();
                machine.child().exited().await;
                return Err(error);
            }
        }
        Ok(machine)
    }
}

/// Makes all of a guest's memory holes, which read as zeros and cost nothing.
async fn empty(memory: &Arc<GuestMemory>) -> Result<(), GuestError> {
    let memory = memory.clone();
    blocking(move || memory.zero_range(0..memory.pages()).map_err(failed("its memory"))).await
}

/// Does what takes the kernel as long as there is memory, away from the threads that everything else runs on.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GuestError> + Send + 'static,
) -> Result<T, GuestError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(GuestError(error.to_string())))
}

/// Ends network cards; when this returns, their TAPs are gone.
async fn end_ports(ports: &mut Vec<NicPort>) -> Counters {
    let mut frames = Counters::default();
    for (mac, port) in ports.drain(..) {
        let counters = port.stop().await;
        tracing::info!(%mac, refused = counters.refused(), ?counters, "a network card is gone");
        frames += counters;
    }
    frames
}

/// Ends whatever a machine left in its control group.
async fn end_group(group: Option<Arc<Group>>) {
    let Some(group) = group else { return };
    if let Err(error) = blocking(move || group.end().map_err(failed("its control group"))).await {
        tracing::error!(%error, "something of an ended guest is left; it is killed again before the next start");
    }
}

/// The users that QEMUs run as: one for each VM, and each in a group of the same number. They need no names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Users {
    /// The lowest number.
    pub first: u32,
    /// How many: two VMs that far apart share one.
    pub count: u32,
}

impl Default for Users {
    /// From a range in which nobody else hands numbers out: above those of containers, below the half that programs with signed
    /// numbers cannot have.
    fn default() -> Self {
        Self { first: 0x7000_0000, count: 1 << 20 }
    }
}

impl std::str::FromStr for Users {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted =
            || format!("'{text}' is no range of user numbers like 1879048192-1880096767, without 0 and 65534 to 65535");
        let (first, last) = text.split_once('-').ok_or_else(wanted)?;
        let (first, last): (u32, u32) = (first.parse().map_err(|_| wanted())?, last.parse().map_err(|_| wanted())?);
        // Root, nobody, and the two numbers that mean "none".
        let reserved = [0, 65_534, 65_535, u32::MAX];
        if first > last || reserved.iter().any(|number| (first..=last).contains(number)) {
            return Err(wanted());
        }
        Ok(Self { first, count: last - first + 1 })
    }
}

impl Users {
    /// Whom the QEMU of `vm` runs as; a daemon that is not root cannot become somebody else.
    fn of(self, vm: VmId) -> Option<Identity> {
        let offset = u32::try_from(vm.0 % u64::from(self.count)).unwrap_or_default();
        let number = self.first + offset;
        rustix::process::geteuid().is_root().then_some(Identity { uid: number, gid: number })
    }
}

/// Passes on what a machine says by itself, until it has ended.
async fn report(guest: Arc<QemuGuest>, events: mpsc::Sender<GuestEvent>) {
    loop {
        let event = match guest.machine.next_event().await {
            MachineEvent::GuestShutdown { guest: true, .. } => GuestEvent::Off,
            MachineEvent::GuestShutdown { guest: false, reason } => {
                GuestEvent::Ended(format!("QEMU shut down: {reason}"))
            }
            MachineEvent::Panicked => GuestEvent::Ended("the guest's kernel panicked".into()),
            MachineEvent::ControlLost { reason } => GuestEvent::Ended(format!("QEMU cannot be driven: {reason}")),
            MachineEvent::Exited(exit) => {
                drop(guest.resuming.lock().await);
                let _ = events.send(GuestEvent::Ended(exit.to_string())).await;
                return;
            }
            MachineEvent::Reset { .. } | MachineEvent::Stopped | MachineEvent::Resumed => continue,
        };
        // What became of a resume under way is for the resume to say.
        drop(guest.resuming.lock().await);
        // An actor that is gone ends the guest.
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// A guest in QEMU.
struct QemuGuest {
    machine: Machine,
    memory: Arc<GuestMemory>,
    group: Option<Arc<Group>>,
    ports: RwLock<Vec<NicPort>>,
    tracker: Arc<Mutex<Tracked>>,
    /// Whether the guest may be typed to: it runs behind an open gate. What is typed is written under this lock, so that nothing
    /// is after a pause has begun.
    listens: StdMutex<bool>,
    census: Arc<Census>,
    /// Held while it is being resumed.
    resuming: Mutex<()>,
    over: CancellationToken,
}

/// The tracker, and whose turn with it it is.
struct Tracked {
    tracker: Tracker,
    turns: Turns,
}

/// How the guest's writes are found.
enum Tracker {
    /// They could not be: why.
    Refused(String),
    /// They have not been needed yet.
    Unused(Tracking),
    /// They are, since the first move away. It stays, for its descriptor cannot be had again; the guest pays a microsecond
    /// for the first write to each page after a scan.
    Attached(DirtyTracker),
}

impl Tracked {
    /// Begins to track, or to count anew.
    fn begin(&mut self, memory: &GuestMemory, purpose: Purpose) -> Result<Turn, GuestError> {
        let turn = self.turns.begin(purpose)?;
        let tracker = std::mem::replace(&mut self.tracker, Tracker::Refused("tracking could not be begun".into()));
        let attached = match tracker {
            Tracker::Unused(Tracking { pid, pidfd, uffd }) => {
                DirtyTracker::attach(pid, pidfd, uffd, memory).map_err(failed("tracking"))?
            }
            Tracker::Attached(mut attached) => {
                // What was written until now is all pages that exist; from here on it counts.
                let counted = attached.scan(&mut PageSet::empty(memory.pages()));
                self.tracker = Tracker::Attached(attached);
                return counted.map(|_| turn).map_err(failed("tracking"));
            }
            Tracker::Refused(why) => {
                self.tracker = Tracker::Refused(why.clone());
                return Err(GuestError(why));
            }
        };
        self.tracker = Tracker::Attached(attached);
        Ok(turn)
    }

    fn scan(&mut self, dirty: &mut PageSet) -> Result<(), GuestError> {
        match &mut self.tracker {
            Tracker::Attached(tracker) => tracker.scan(dirty).map(drop).map_err(failed("tracking")),
            Tracker::Refused(why) => Err(GuestError(why.clone())),
            Tracker::Unused(_) => Err(GuestError("tracking has not begun".into())),
        }
    }
}

/// A question as the kernel's fence knows it: any two that are open within its time differ.
fn key(question: Ticket) -> u32 {
    u32::try_from(question.0 & u64::from(u32::MAX)).unwrap_or_default()
}

impl QemuGuest {
    fn listens(&self) -> MutexGuard<'_, bool> {
        self.listens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the fence of every network card; `false`: one is locked, or its kernel refuses. While the guest is
    /// being ended there is none.
    fn each_fence(&self, what: &str, done: impl Fn(&PortHandle) -> Result<(), FenceError>) -> bool {
        let Ok(ports) = self.ports.try_read() else { return true };
        let mut all = true;
        for (mac, port) in &*ports {
            match done(port) {
                Ok(()) => {}
                Err(error @ FenceError::Expired { .. }) => {
                    tracing::debug!(vm = self.machine.name(), %mac, %error, "cannot {what}");
                    all = false;
                }
                Err(error) => {
                    tracing::error!(vm = self.machine.name(), %mac, %error, "cannot {what}");
                    all = false;
                }
            }
        }
        all
    }

    async fn open_gates(&self, generation: Generation) -> Result<(), GuestError> {
        for (_, port) in &*self.ports.read().await {
            match port.runs_under(generation).await {
                Ok(()) => port.open_gate(generation).await.map_err(failed("a network card's gate"))?,
                // A port that ended emits nothing; the guest lives on without that card.
                Err(end) => tracing::error!(vm = self.machine.name(), %end, "a network card is gone"),
            }
        }
        Ok(())
    }

    /// Closes the gate for good and ends the process; when this returns, it is no more.
    async fn shut_down(&self) {
        self.close_gate().await;
        self.machine.kill();
        // Nothing else may be begun for this VM beside a process that still exists (DESIGN, rule 18).
        while tokio::time::timeout(Duration::from_millis(END_MS), self.machine.child().exited()).await.is_err() {
            tracing::error!(vm = self.machine.name(), "a killed QEMU has not ended; the kernel holds it");
        }
    }

    /// All that was ever let out of this machine: frames, and bytes of its console. (It has no disks.)
    async fn emitted(&self) -> (u64, u64) {
        let frames = self.ports.read().await.iter().map(|(_, port)| port.counters().frames_out).sum();
        (frames, self.log().end())
    }

    /// It has not been let run: nor will it send anything.
    async fn stands_still(&self, why: GuestError) -> ResumeError {
        for (_, port) in &*self.ports.read().await {
            port.close_gate().await;
        }
        ResumeError::StandsStill(why)
    }
}

#[async_trait]
impl Guest for QemuGuest {
    fn memory(&self) -> Arc<dyn Memory> {
        self.memory.clone()
    }

    async fn resume(&self, generation: Generation) -> Result<(), ResumeError> {
        let _resuming = self.resuming.lock().await;
        let before = self.emitted().await;
        let opened = self.open_gates(generation).await;
        let told = match opened {
            Ok(()) => self.machine.cont().await,
            Err(error) => return Err(self.stands_still(error).await),
        };
        match told {
            Ok(()) => {
                *self.listens() = !self.over.is_cancelled();
                Ok(())
            }
            Err(error @ (QmpError::Rejected { .. } | QmpError::Busy { .. })) => {
                Err(self.stands_still(failed("cont")(error)).await)
            }
            Err(error @ (QmpError::Slow { .. } | QmpError::Closed { .. })) => {
                let why = failed("cont")(error);
                self.shut_down().await;
                // What it says of its end is said here.
                self.over.cancel();
                // Its guest may have executed something; if nothing of it was let out, nobody will ever know. What it wrote last
                // may still lie in its console's socket.
                let console =
                    tokio::time::timeout(Duration::from_millis(CONSOLE_END_MS), self.machine.console().ended());
                if console.await.is_ok() && self.emitted().await == before {
                    return Err(ResumeError::StandsStill(why));
                }
                Err(ResumeError::Unknown(why))
            }
        }
    }

    async fn pause(&self) -> Result<(), GuestError> {
        *self.listens() = false;
        self.machine.stop().await.map_err(failed("stop"))?;
        // QEMU sends nothing more; what it has sent belongs to before the pause (DESIGN, section 5: the cut).
        for (_, port) in &*self.ports.read().await {
            if let Err(end) = port.drained().await {
                tracing::error!(vm = self.machine.name(), %end, "a network card is gone");
            }
            port.close_gate().await;
        }
        self.machine.console().drained();
        Ok(())
    }

    fn note(&self, question: Ticket) {
        self.each_fence("note a question", |port| port.note(key(question)));
    }

    fn unlock(&self, question: Ticket) {
        self.each_fence("unlock", |port| port.unlock(key(question)));
    }

    fn keep(&self) -> bool {
        self.each_fence("keep unlocked", PortHandle::keep)
    }

    async fn close_gate(&self) {
        *self.listens() = false;
        // For good: a continue that still waits in the worker's queue must not open it again.
        for (_, port) in &*self.ports.read().await {
            port.fence(Generation(u64::MAX)).await;
        }
    }

    async fn announce(&self) {
        for (mac, port) in &*self.ports.read().await {
            if let Err(error) = port.announce(*mac).await {
                tracing::warn!(%mac, %error, "the guest's network card could not be announced");
            }
        }
    }

    async fn throttle(&self, percent: u8) -> Result<(), GuestError> {
        self.machine.throttle(percent).await.map_err(failed("its speed"))
    }

    async fn heard(&self) -> Instant {
        let heard: Vec<_> = self.ports.read().await.iter().map(|(_, port)| port.heard()).collect();
        let mut heard: FuturesUnordered<_> = heard.into_iter().collect();
        while let Some(first) = heard.next().await {
            if let Some(first) = first {
                return first;
            }
        }
        std::future::pending().await
    }

    async fn power_button(&self) -> Result<(), GuestError> {
        self.machine.powerdown().await.map_err(failed("system_powerdown"))
    }

    async fn populated(&self) -> Result<PageSet, GuestError> {
        let memory = self.memory.clone();
        blocking(move || {
            let mut set = PageSet::empty(memory.pages());
            let ranges = memory.data_ranges().map_err(failed("the memory's extents"))?;
            ranges.into_iter().for_each(|range| set.insert_range(range));
            Ok(set)
        })
        .await
    }

    async fn track(&self, purpose: Purpose) -> Result<Turn, GuestError> {
        let (mut tracked, memory) = (self.tracker.clone().lock_owned().await, self.memory.clone());
        blocking(move || tracked.begin(&memory, purpose)).await
    }

    async fn scan(&self, turn: &Turn, dirty: &mut PageSet) -> Result<(), GuestError> {
        let (mut tracked, pages) = (self.tracker.clone().lock_owned().await, self.memory.pages());
        tracked.turns.check(turn)?;
        let scanned = blocking(move || {
            let mut found = PageSet::empty(pages);
            let outcome = tracked.scan(&mut found);
            Ok((found, outcome))
        });
        let (found, outcome) = scanned.await?;
        // Also after a failure: the marks of what was found are gone.
        dirty.union_with(&found);
        outcome
    }

    async fn save(&self) -> Result<Bytes, GuestError> {
        self.machine.save_state().await.map_err(|error| GuestError(in_words(&error)))
    }

    async fn load(&self, state: Bytes) -> Result<(), GuestError> {
        self.machine.load_state(state).await.map_err(|error| GuestError(in_words(&error)))
    }

    async fn end(&self) {
        self.over.cancel();
        self.shut_down().await;
        // Its vCPUs may have groups of their own within that of the VM, which goes next.
        if let Err(error) = self.machine.throttle(0).await {
            tracing::warn!(%error, "the throttle of an ended guest");
        }
        end_group(self.group.clone()).await;
        let mut gone = self.census.gone.lock().await;
        *gone += end_ports(&mut *self.ports.write().await).await;
        drop(gone);
        // Sessions of a move may still hold the memory; its pages go now. What they read of it they cannot hand over any
        // more: they were called off before.
        if let Err(error) = empty(&self.memory).await {
            tracing::error!(vm = self.machine.name(), %error, "the memory of an ended guest could not be freed");
        }
    }

    fn log(&self) -> Log {
        let (start, bytes) = self.machine.console().placed_log();
        Log { start, bytes }
    }

    fn written(&self) -> watch::Receiver<u64> {
        self.machine.console().written()
    }

    fn type_in(&self, bytes: &[u8]) -> Typed {
        let listens = self.listens();
        if !*listens {
            return Typed::Shut;
        }
        // A console that QEMU has closed takes nothing; its machine's end is told elsewhere.
        self.machine.console().type_in(bytes).map_or(Typed::Shut, |taken| match taken {
            0 => Typed::Full,
            taken => Typed::Taken(taken),
        })
    }

    fn remember(&self, log: &Log) {
        self.machine.console().remember(log.start, &log.bytes);
    }
}

impl Memory for GuestMemory {
    fn pages(&self) -> u64 {
        Self::pages(self)
    }

    fn read(&self, page: u64, into: &mut [u8; PAGE_BYTES]) {
        self.read_page(page, into);
    }

    fn write(&self, page: u64, content: &[u8]) -> Result<(), GuestError> {
        self.put_pages(page, content).map_err(failed("the memory"))
    }

    fn zero(&self, pages: Range<u64>) -> Result<(), GuestError> {
        self.zero_range(pages).map_err(failed("the memory"))
    }
}

fn failed<E: std::error::Error>(what: &'static str) -> impl FnOnce(E) -> GuestError {
    move |error| GuestError(format!("{what}: {}", in_words(&error)))
}

/// An error with what caused it, in one line.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vm_has_a_user_of_its_own_and_none_is_anybodys() {
        let users = Users::default();
        assert!(i32::try_from(users.first + (users.count - 1)).is_ok());
        assert_eq!("1879048192-1880096767".parse(), Ok(users));
        for bad in ["", "5", "9-5", "0-10", "60000-70000", "4000000000-4294967295", "a-b", "1-2-3"] {
            assert!(bad.parse::<Users>().is_err(), "{bad} was taken");
        }
        if rustix::process::geteuid().is_root() {
            let user = |vm| users.of(VmId(vm)).map(|identity| identity.uid);
            assert_eq!(user(7), Some(users.first + 7));
            assert_ne!(user(7), user(8));
            assert_eq!(user(u64::from(users.count) + 7), user(7), "beyond the range they begin again");
        }
    }
}
