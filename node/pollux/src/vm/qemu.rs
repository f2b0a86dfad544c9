//! Guests in QEMU: memory, machine and network cards of one VM, as its actor's worker drives them.
//!
//! [`QemuHost`] belongs to the daemon. A [`QemuGuest`] is made by `launch` and ended by `end`; the worker holds it, sessions
//! of moves borrow it. Its parts do not know each other: this is the one place that puts them in order.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use pollux_memory::{DirtyTracker, GuestMemory};
use pollux_net::{Port, PortConfig, PortHandle, Tap, nic_socket_pair, tap_name};
use pollux_qemu::{
    Accelerator, Boot, Identity, Launch, Machine, MachineEvent, NicFd, QmpError, Role, Spawner, Tracking, TrackingWish,
    kvm_usable,
};
use pollux_state::id::{Generation, MacAddr};
use pollux_vm::pages::{PAGE_BYTES, PageSet};
use tokio::sync::{Mutex, RwLock, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::host::{Guest, GuestError, GuestEvent, Host, Memory, Order};

/// Whom QEMU runs as: Debian's `nobody` and `nogroup`, who own nothing.
const NOBODY: Identity = Identity { uid: 65_534, gid: 65_534 };
/// Largest frame on a VM's network, without its header, in bytes.
const MTU_BYTES: u32 = 1_500;
/// A killed QEMU is gone within this, in milliseconds, unless the kernel cannot end it.
const END_MS_MAX: u64 = 10_000;
/// A slow answer to `stop` is asked for again after this pause, in milliseconds: slow is not dead (DESIGN, rule 16).
const SLOW_PAUSE_MS: u64 = 100;

/// Makes guests in QEMU.
pub struct QemuHost {
    spawner: Spawner,
    binary: PathBuf,
    accelerator: Accelerator,
    tasks: TaskTracker,
}

impl QemuHost {
    /// Starts the thread that starts every QEMU.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(binary: PathBuf) -> std::io::Result<Self> {
        let accelerator = if kvm_usable() { Accelerator::Kvm } else { Accelerator::Tcg };
        Ok(Self { spawner: Spawner::start()?, binary, accelerator, tasks: TaskTracker::new() })
    }
}

#[async_trait]
impl Host for QemuHost {
    async fn launch(&self, order: Order) -> Result<Arc<dyn Guest>, GuestError> {
        let spec = &order.spec;
        let bytes = spec.memory_mib << 20;
        let memory = GuestMemory::create(&spec.name, bytes).map_err(failed("its memory"))?;
        let (mut ports, mut nics) = (Vec::new(), Vec::new());
        for (nic, number) in spec.nics.iter().zip(0u8..) {
            let (ours, theirs) = nic_socket_pair().map_err(failed("a network card's socket"))?;
            let name = tap_name(order.vm, number).map_err(failed("a network card"))?;
            let tap = Tap::open(&name, &nic.bridge, MTU_BYTES).map_err(failed("a network card"))?;
            let config = PortConfig { vm: order.vm, nic: number, runs_under: order.generation };
            ports.push((nic.mac, Port::start(config, ours, tap, &self.tasks)));
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
            memory_bytes: bytes,
            memory: memory.fd().try_clone_to_owned().map_err(failed("its memory"))?,
            boot,
            nics,
            role: if order.standby { Role::Incoming } else { Role::Fresh },
            identity: rustix::process::geteuid().is_root().then_some(NOBODY),
            cgroup: None,
            tracking: TrackingWish::Optional,
        };
        let mut machine = match Machine::start(&self.spawner, launch).await {
            Ok(machine) => machine,
            Err(error) => {
                for (_, port) in ports {
                    port.stop().await;
                }
                return Err(GuestError(in_words(&error)));
            }
        };
        if order.standby {
            // QEMU has put firmware and kernel there, as for a boot; the source sends only pages that were ever written.
            if let Err(error) = memory.zero_range(0..memory.pages()) {
                machine.kill();
                machine.child().exited().await;
                for (_, port) in ports {
                    port.stop().await;
                }
                return Err(failed("the standby's memory")(error));
            }
        }
        let memory = Arc::new(memory);
        let tracker = match machine.take_tracking() {
            Ok(tracking) => Tracker::Unused(tracking),
            Err(refused) => Tracker::Refused(refused.to_string()),
        };
        let guest = Arc::new(QemuGuest {
            machine,
            memory,
            ports: RwLock::new(ports),
            tracker: Mutex::new(Tracked { tracker, epoch: 0 }),
            over: CancellationToken::new(),
        });
        let (over, watched) = (guest.over.clone(), guest.clone());
        self.tasks.spawn(over.run_until_cancelled_owned(report(watched, order.events)));
        Ok(guest)
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
                let _ = events.send(GuestEvent::Ended(exit.to_string())).await;
                return;
            }
            MachineEvent::Reset { .. } | MachineEvent::Stopped | MachineEvent::Resumed => continue,
        };
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
    ports: RwLock<Vec<(MacAddr, PortHandle)>>,
    tracker: Mutex<Tracked>,
    over: CancellationToken,
}

/// The tracker, and which use of it is the current one: a late scan of an earlier move would take marks away.
struct Tracked {
    tracker: Tracker,
    epoch: u64,
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

impl Tracker {
    fn scan(&mut self, dirty: &mut PageSet) -> Result<(), GuestError> {
        match self {
            Self::Attached(tracker) => tracker.scan(dirty).map(drop).map_err(failed("tracking")),
            Self::Refused(why) => Err(GuestError(why.clone())),
            Self::Unused(_) => Err(GuestError("tracking has not begun".into())),
        }
    }
}

#[async_trait]
impl Guest for QemuGuest {
    fn memory(&self) -> Arc<dyn Memory> {
        self.memory.clone()
    }

    async fn resume(&self, generation: Generation) -> Result<(), GuestError> {
        let ports = self.ports.read().await;
        for (_, port) in &*ports {
            match port.runs_under(generation).await {
                Ok(()) => port.open_gate(generation).await.map_err(failed("a network card's gate"))?,
                // A port that ended emits nothing; the guest lives on without that card.
                Err(end) => tracing::error!(vm = self.machine.name(), %end, "a network card is gone"),
            }
        }
        patient(|| self.machine.cont()).await.map_err(failed("cont"))
    }

    async fn pause(&self) -> Result<(), GuestError> {
        patient(|| self.machine.stop()).await.map_err(failed("stop"))?;
        // QEMU sends nothing more; what it has sent belongs to before the pause (DESIGN, section 5: the cut).
        for (_, port) in &*self.ports.read().await {
            if let Err(end) = port.drained().await {
                tracing::error!(vm = self.machine.name(), %end, "a network card is gone");
            }
            port.close_gate().await;
        }
        Ok(())
    }

    async fn close_gate(&self) {
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

    async fn power_button(&self) -> Result<(), GuestError> {
        self.machine.powerdown().await.map_err(failed("system_powerdown"))
    }

    async fn track(&self) -> Result<u64, GuestError> {
        let mut tracking = self.tracker.lock().await;
        tracking.epoch += 1;
        let epoch = tracking.epoch;
        let tracker = &mut tracking.tracker;
        match std::mem::replace(tracker, Tracker::Refused("tracking could not be begun".into())) {
            Tracker::Unused(Tracking { pid, pidfd, uffd }) => {
                let attached = DirtyTracker::attach(pid, pidfd, uffd, &self.memory).map_err(failed("tracking"))?;
                *tracker = Tracker::Attached(attached);
                Ok(epoch)
            }
            Tracker::Attached(attached) => {
                *tracker = Tracker::Attached(attached);
                // What was written until now is all pages that exist; from here on it counts.
                tracker.scan(&mut PageSet::empty(self.memory.pages())).map(|()| epoch)
            }
            Tracker::Refused(why) => {
                *tracker = Tracker::Refused(why.clone());
                Err(GuestError(why))
            }
        }
    }

    async fn scan(&self, epoch: u64, dirty: &mut PageSet) -> Result<(), GuestError> {
        let mut tracking = self.tracker.lock().await;
        if tracking.epoch != epoch {
            return Err(GuestError("another move tracks this guest now".into()));
        }
        tracking.tracker.scan(dirty)
    }

    async fn untrack(&self) {
        // Nothing to undo: see `Tracker::Attached`.
    }

    async fn save(&self) -> Result<Bytes, GuestError> {
        self.machine.save_state().await.map_err(|error| GuestError(in_words(&error)))
    }

    async fn load(&self, state: Bytes) -> Result<(), GuestError> {
        self.machine.load_state(state).await.map_err(|error| GuestError(in_words(&error)))
    }

    async fn end(&self) {
        self.over.cancel();
        self.close_gate().await;
        self.machine.kill();
        let gone = tokio::time::timeout(Duration::from_millis(END_MS_MAX), self.machine.child().exited());
        if gone.await.is_err() {
            tracing::error!(vm = self.machine.name(), "a killed QEMU has not ended; the kernel holds it");
        }
        for (_, port) in self.ports.write().await.drain(..) {
            let counters = port.stop().await;
            tracing::debug!(vm = self.machine.name(), ?counters, "a network card is gone");
        }
    }

    fn log(&self) -> (u64, Vec<u8>) {
        self.machine.console().placed_log()
    }
}

impl Memory for GuestMemory {
    fn pages(&self) -> u64 {
        Self::pages(self)
    }

    fn populated(&self) -> Result<PageSet, GuestError> {
        let mut set = PageSet::empty(Self::pages(self));
        let ranges = self.data_ranges().map_err(failed("the memory's extents"))?;
        ranges.into_iter().for_each(|range| set.insert_range(range));
        Ok(set)
    }

    fn read(&self, page: u64, into: &mut [u8; PAGE_BYTES]) {
        self.read_page(page, into);
    }

    fn write(&self, page: u64, bytes: &[u8; PAGE_BYTES]) {
        self.write_page(page, bytes);
    }

    fn zero(&self, page: u64) -> Result<(), GuestError> {
        self.zero_page(page).map_err(failed("the memory"))
    }
}

/// Repeats a command whose answer is slow in coming: a guest that is slow to stop is not dead, and nobody kills it for that.
async fn patient<F: Future<Output = Result<(), QmpError>>>(command: impl Fn() -> F) -> Result<(), QmpError> {
    loop {
        match command().await {
            Err(QmpError::Slow { .. }) => tokio::time::sleep(Duration::from_millis(SLOW_PAUSE_MS)).await,
            done => return done,
        }
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
