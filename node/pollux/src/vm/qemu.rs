//! Guests in QEMU: memory, machine and network cards of one VM, as its actor's worker drives them.
//!
//! [`QemuHost`] belongs to the daemon. A [`QemuGuest`] is made by `launch` and ended by `end`; the worker holds it, sessions
//! of moves borrow it. Its parts do not know each other: this is the one place that puts them in order.

mod drives;
mod guest;
mod tracking;
mod users;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex as StdMutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use pollux_memory::GuestMemory;
use pollux_net::{Counters, Fence, Port, PortConfig, PortHandle, Tap, nic_socket_pair, tap_name};
use pollux_qemu::{
    Accelerator, Boot, Group, Groups, Launch, Machine, NicFd, Role, SpawnError, Spawner, TrackingWish, Uefi, kvm_usable,
};
use pollux_state::{
    id::{MacAddr, VmId},
    limits::FENCE_MS,
};
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

use drives::{Drives, Sockets};
use guest::QemuGuest;

use super::{
    fitness::Answers,
    host::{Disks, Guest, GuestError, Host, Order},
};

pub use users::Users;

/// Makes guests in QEMU.
pub struct QemuHost {
    spawner: Spawner,
    binary: PathBuf,
    accelerator: Accelerator,
    users: Users,
    /// Or why there are none: in words.
    groups: Result<Groups, String>,
    /// What guests can boot by beside QEMU's BIOS, or why there is none: in words.
    uefi: Result<Uefi, String>,
    tasks: TaskTracker,
    pub(super) answers: Answers,
    census: Arc<Census>,
    /// Once this node may look after volumes.
    disks: OnceLock<Arc<dyn Disks>>,
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
    /// control group of its own in the one called `group`; what is left there of an earlier life ends. The UEFI firmware is the one in
    /// the directory `firmware`, if there is one.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(binary: PathBuf, firmware: &Path, users: Users, group: &str) -> std::io::Result<Self> {
        let accelerator = if kvm_usable() { Accelerator::Kvm } else { Accelerator::Tcg };
        let groups = Groups::open(group).map_err(|error| in_words(&error));
        let uefi = Uefi::read(firmware).map_err(|error| {
            format!("there is no UEFI firmware: {}; once it is there, start this node's daemon again", in_words(&error))
        });
        Ok(Self {
            spawner: Spawner::start()?,
            binary,
            accelerator,
            users,
            groups,
            uefi,
            tasks: TaskTracker::new(),
            answers: Answers::default(),
            census: Arc::default(),
            disks: OnceLock::new(),
        })
    }

    /// From here on guests can have disks.
    pub fn use_disks(&self, disks: Arc<dyn Disks>) {
        // Set once, by the daemon's start.
        let _ = self.disks.set(disks);
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

    /// The build of the UEFI firmware that guests can boot by, or why there is none.
    ///
    /// # Errors
    /// Why, in words.
    pub fn uefi(&self) -> Result<&str, &str> {
        self.uefi.as_ref().map(Uefi::build).map_err(String::as_str)
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
        let made = match Drives::make(&order, self.disks.get().cloned(), &self.uefi).await {
            Ok((drives, sockets)) => match self.machine(&order, &memory, &mut ports, sockets, group.as_deref()).await {
                Ok(machine) => Ok((machine, drives)),
                Err(error) => {
                    drives.end().await;
                    Err(error)
                }
            },
            Err(error) => Err(error),
        };
        let (machine, drives) = match made {
            Ok(made) => made,
            Err(error) => {
                end_ports(&mut ports).await;
                end_group(group).await;
                return Err(error);
            }
        };
        let guest = QemuGuest::new(machine, memory, group, ports, drives, self.census.clone());
        self.census.born(&guest);
        let over = guest.over.clone();
        self.tasks.spawn(over.run_until_cancelled_owned(guest.clone().report(order.events)));
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
        sockets: Sockets,
        group: Option<&Group>,
    ) -> Result<Machine, GuestError> {
        let spec = &order.spec;
        let mut nics = Vec::new();
        for (nic, number) in spec.nics.iter().zip(0u8..) {
            let (ours, theirs) = nic_socket_pair().map_err(failed("a network card's socket"))?;
            let name = tap_name(order.vm, number).map_err(failed("a network card"))?;
            let tap = Tap::open(&name, &nic.bridge, nic.mtu).map_err(failed("a network card"))?;
            let fence = Fence::raise(&tap, Duration::from_millis(FENCE_MS)).await.map_err(failed("a network card"))?;
            let config = PortConfig { vm: order.vm, nic: number, runs_under: order.generation };
            ports.push((nic.mac, Port::start(config, ours, tap, Some(fence), &self.tasks)));
            let mtu = nic.told_mtu().map(u16::try_from).transpose().map_err(failed("a network card's MTU"))?;
            nics.push(NicFd { mac: nic.mac.to_string(), socket: theirs, mtu });
        }
        let boot = if spec.kernel.is_empty() {
            Boot::Disk
        } else {
            Boot::Kernel {
                kernel: PathBuf::from(&spec.kernel),
                initrd: (!spec.initrd.is_empty()).then(|| PathBuf::from(&spec.initrd)),
                append: spec.append.clone(),
            }
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
            disks: sockets.disks,
            firmware: sockets.firmware,
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
