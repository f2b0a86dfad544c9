//! A guest's disks: for each a drive that its QEMU is served, and the volume in it while this node has the right to write.
//!
//! Made with the machine. A machine that boots needs its volumes from the start; a standby gets them when it is let run, and so does a
//! guest whose right went elsewhere and came back: under each generation a volume is brought into use anew (DESIGN, rule 4). They
//! end with the machine. The variables of a UEFI firmware are on a volume like the others, behind a [`Flash`].

use std::{
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pollux_disk::{
    Disk,
    nbd::{End, ServeOptions, serve},
};
use pollux_qemu::{DiskFd, FirmwareFd, Uefi, are_variables};
use pollux_state::{
    id::{Generation, VmId, VolumeId},
    vm::DiskRole,
};
use pollux_volume::{Drive, DriveHandle, Flash, FlashHandle, Handover, VolumeHandle, prepare};
use pollux_wire::{codec, limits::Limit};
use tokio::{
    net,
    sync::{Mutex, oneshot},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    super::host::{Disks, GuestError, Order},
    failed, in_words,
};

/// How long it may take to put on stable storage what a guest that has ended has written.
const FINISH_MAX: Duration = Duration::from_secs(3);
/// The same before the log hears that the guest is off. Short: if this host dies in between, the log takes that for a death, and starts
/// the guest again. What is not done in that time costs whoever uses the volumes next a little copying.
const SETTLE_MAX: Duration = Duration::from_secs(1);

/// See the module's text.
pub(super) struct Drives {
    vm: VmId,
    disks: Option<Arc<dyn Disks>>,
    drives: Vec<(VolumeId, DriveHandle)>,
    /// Which of them has the firmware's variables, and how they are.
    firmware: Option<(usize, FlashHandle)>,
    /// The generation under which the volumes are in use. Held while they are being brought into use.
    under: Mutex<Option<Generation>>,
    /// The volumes in use.
    volumes: StdMutex<Vec<VolumeHandle>>,
    /// What who had the volumes last said of them, if the guest lives; in the drives' order.
    handovers: StdMutex<Option<Vec<Handover>>>,
    /// They were handed over by this machine, and have not been taken back.
    away: AtomicBool,
    served: TaskTracker,
    stop: CancellationToken,
}

impl Drives {
    /// The drives of a machine, and QEMU's ends of them.
    pub(super) async fn make(
        order: &Order,
        disks: Option<Arc<dyn Disks>>,
        uefi: &Result<Uefi, String>,
    ) -> Result<(Self, Sockets), GuestError> {
        let mut made = Self {
            vm: order.vm,
            disks,
            drives: Vec::new(),
            firmware: None,
            under: Mutex::new(None),
            volumes: StdMutex::default(),
            handovers: StdMutex::default(),
            away: AtomicBool::new(false),
            served: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let mut theirs = Sockets::default();
        let mut prepared = None;
        for disk in &order.spec.disks {
            let size = made.disks()?.size(disk.volume)?;
            let (drive, handle) = Drive::empty(size);
            let (ours, socket) = UnixStream::pair().map_err(failed("a disk's socket"))?;
            ours.set_nonblocking(true).map_err(failed("a disk's socket"))?;
            let ours = net::UnixStream::from_std(ours).map_err(failed("a disk's socket"))?;
            let serial = disk.volume.to_string();
            let stop = made.stop.clone();
            let served = Served { ours, stop, vm: order.spec.name.clone(), volume: serial.clone() };
            match disk.role {
                DiskRole::Data => {
                    made.served.spawn(async move { served.disk(drive).await });
                    theirs.disks.push(DiskFd { serial, socket: socket.into() });
                }
                DiskRole::Firmware => {
                    let uefi = uefi.as_ref().map_err(|why| GuestError(why.clone()))?;
                    let code = uefi.code().map_err(failed("its firmware"))?;
                    theirs.firmware = Some(FirmwareFd { code, variables: socket.into() });
                    let (told, ready) = oneshot::channel();
                    prepared = Some((made.drives.len(), ready));
                    let (variables, standby) = (uefi.variables(), order.standby);
                    made.served.spawn(async move { served.firmware(drive, variables, standby, told).await });
                }
            }
            made.drives.push((disk.volume, handle));
        }
        if let Err(error) = made.begin(order, prepared).await {
            drop(theirs);
            made.end().await;
            return Err(error);
        }
        Ok((made, theirs))
    }

    /// Has what a machine needs before its QEMU starts.
    async fn begin(&mut self, order: &Order, prepared: Option<(usize, Prepared)>) -> Result<(), GuestError> {
        if !order.standby {
            self.open(order.generation).await?;
        }
        if let Some((at, ready)) = prepared {
            let gone = |_| Err("it is not served any more".to_owned());
            let volume = self.drives.get(at).map(|(volume, _)| self.name_of(*volume)).unwrap_or_default();
            let handle = ready.await.unwrap_or_else(gone);
            self.firmware = Some((at, handle.map_err(|why| GuestError(format!("{volume}: {why}")))?));
        }
        Ok(())
    }

    fn name_of(&self, volume: VolumeId) -> String {
        let named = self.disks.as_ref().and_then(|disks| disks.name(volume));
        named.map_or_else(|| volume.to_string(), |name| format!("volume {name}"))
    }

    fn disks(&self) -> Result<&Arc<dyn Disks>, GuestError> {
        self.disks.as_ref().ok_or_else(|| GuestError("this node has no volumes".into()))
    }

    /// Brings the volumes into use under `generation`, unless they are.
    pub(super) async fn open(&self, generation: Generation) -> Result<(), GuestError> {
        let mut under = self.under.lock().await;
        if self.drives.is_empty() {
            return Ok(());
        }
        if *under == Some(generation) {
            // The move that they were handed over for is off, and the right never went.
            if self.away.load(Ordering::Acquire) {
                let volumes = locked(&self.volumes).clone();
                let taken = futures::future::join_all(volumes.iter().map(VolumeHandle::take_back)).await;
                if !taken.into_iter().all(|taken| taken) {
                    return Err(GuestError("a disk is not in use any more".into()));
                }
                self.away.store(false, Ordering::Release);
            }
            return Ok(());
        }
        // Until all are there none is: those that were put in are put in again.
        *under = None;
        let (disks, handovers) = (self.disks()?, locked(&self.handovers).clone());
        let opening = self.drives.iter().enumerate().map(|(at, (volume, _))| {
            let handover = handovers.as_ref().map(|all| all.get(at).cloned().unwrap_or_default());
            disks.open(self.vm, generation, *volume, handover)
        });
        let opened = futures::future::try_join_all(opening).await?;
        let mut handles = Vec::new();
        for ((volume, drive), (opened, handle)) in self.drives.iter().zip(opened) {
            if !drive.put(opened).await {
                return Err(GuestError(format!("{volume}: QEMU has let go of it")));
            }
            handles.push(handle);
        }
        *locked(&self.volumes) = handles;
        self.away.store(false, Ordering::Release);
        *under = Some(generation);
        Ok(())
    }

    /// Puts on stable storage what the guest has written so far, as far as that can be done within `most`.
    pub(super) async fn flush(&self, most: Duration) {
        let volumes = locked(&self.volumes).clone();
        let all = futures::future::join_all(volumes.iter().map(VolumeHandle::flush));
        // What is left is for QEMU to flush, and for the guest to wait for.
        let _ = tokio::time::timeout(most, all).await;
    }

    /// The guest is off: there shall be nothing to copy for whoever uses its volumes next. Variables that are not saved are waited for
    /// longer, for they would be lost.
    pub(super) async fn settle(&self) {
        if let Some((at, variables)) = &self.firmware
            && !variables.clone().saved(FINISH_MAX).await
        {
            let volume = self.drives.get(*at).map(|(volume, _)| self.name_of(*volume));
            tracing::error!(
                volume,
                "what its firmware wrote last could not be saved before the guest ended, and is lost"
            );
        }
        let volumes = locked(&self.volumes).clone();
        futures::future::join_all(volumes.iter().map(|volume| volume.finish(SETTLE_MAX))).await;
    }

    /// The guest stands still and may go on elsewhere: what has to be known of its volumes there, packed in front of its device state.
    pub(super) async fn hand_over(&self, state: Bytes) -> Result<Bytes, GuestError> {
        let volumes = locked(&self.volumes).clone();
        if !volumes.is_empty() {
            self.away.store(true, Ordering::Release);
        }
        let said = futures::future::join_all(volumes.iter().map(VolumeHandle::hand_over)).await;
        let said: Option<Vec<Handover>> = said.into_iter().collect();
        let said = said.ok_or_else(|| GuestError("a disk is not in use any more".into()))?;
        *locked(&self.handovers) = Some(said.clone());
        let head = codec::encode(&said, Limit::State).map_err(failed("what its disks leave"))?;
        let mut packed = BytesMut::with_capacity(4 + head.len() + state.len());
        packed.put_u32(u32::try_from(head.len()).map_err(failed("what its disks leave"))?);
        packed.extend_from_slice(&head);
        packed.extend_from_slice(&state);
        Ok(packed.freeze())
    }

    /// Takes that from in front of a device state.
    pub(super) fn receive(&self, mut packed: Bytes) -> Result<Bytes, GuestError> {
        let short = || GuestError("the device state is cut off".into());
        let bytes = packed.try_get_u32().map_err(|_| short())? as usize;
        if packed.len() < bytes {
            return Err(short());
        }
        let head = packed.split_to(bytes);
        let said: Vec<Handover> = codec::decode(&head, Limit::State).map_err(failed("what its disks left"))?;
        *locked(&self.handovers) = Some(said);
        Ok(packed)
    }

    /// How many requests to change something they ever took.
    pub(super) fn changes(&self) -> u64 {
        self.drives.iter().map(|(_, drive)| drive.changes()).sum()
    }

    /// Which volumes do not do what they are asked, and why, for people.
    pub(super) fn troubles(&self) -> Vec<(VolumeId, String)> {
        let volumes = locked(&self.volumes);
        let troubles = volumes.iter().zip(self.drives.iter().enumerate()).filter_map(|(handle, (at, (volume, _)))| {
            let status = handle.status();
            let status = status.borrow();
            let why = status.over.map(str::to_owned).or_else(|| status.trouble.clone())?;
            // A guest does not wait for that one.
            (!self.is_firmware(at)).then_some((*volume, why))
        });
        troubles.collect()
    }

    /// What the guest's firmware has written and is in this node's memory only: to which volume, for how long, and why.
    pub(super) fn unsaved(&self) -> Option<(VolumeId, Duration, String)> {
        let (at, handle) = self.firmware.as_ref()?;
        let (lasts, why) = handle.unsaved()?;
        self.drives.get(*at).map(|(volume, _)| (*volume, lasts, why))
    }

    fn is_firmware(&self, at: usize) -> bool {
        self.firmware.as_ref().is_some_and(|(firmware, _)| *firmware == at)
    }

    /// Which volume the guest's disk number `at` is.
    pub(super) fn volume(&self, at: usize) -> Option<VolumeId> {
        let mut disks = self.drives.iter().enumerate().filter(|(number, _)| !self.is_firmware(*number));
        disks.nth(at).map(|(_, (volume, _))| *volume)
    }

    /// Ends them; when this returns no volume is in use by this machine.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        self.served.close();
        self.served.wait().await;
    }
}

/// Tells when the variables of a firmware are there, or why they cannot be.
type Prepared = oneshot::Receiver<Result<FlashHandle, String>>;

/// QEMU's ends of a machine's drives.
#[derive(Default)]
pub(super) struct Sockets {
    pub(super) disks: Vec<DiskFd>,
    pub(super) firmware: Option<FirmwareFd>,
}

/// A drive's end of its connection with QEMU.
struct Served {
    ours: net::UnixStream,
    stop: CancellationToken,
    vm: String,
    volume: String,
}

impl Served {
    async fn disk(self, mut drive: Drive) {
        let (vm, volume) = (self.vm.clone(), self.volume.clone());
        self.serve(&mut drive).await;
        if !drive.finish(FINISH_MAX).await {
            tracing::warn!(vm, volume, "not everything is on stable storage; the next start copies a little");
        }
    }

    /// Serves the variables of a firmware that begin as `template`. A machine that boots is told of them once they are there.
    async fn firmware(
        self,
        mut drive: Drive,
        template: Bytes,
        standby: bool,
        told: oneshot::Sender<Result<FlashHandle, String>>,
    ) {
        let content = if standby {
            // It forgets them when it loads its state.
            template.to_vec()
        } else {
            if !drive.filled().await {
                return;
            }
            match prepare(&mut drive, &template, are_variables).await {
                Ok(content) => content,
                // Who made the machine gives it up.
                Err(error) => return drop(told.send(Err(in_words(&error)))),
            }
        };
        let (mut flash, handle) = Flash::new(drive, content);
        // One that does not wait any more lets go of QEMU's end, too.
        let _ = told.send(Ok(handle));
        let (vm, volume) = (self.vm.clone(), self.volume.clone());
        self.serve(&mut flash).await;
        if !flash.finish(FINISH_MAX).await {
            tracing::warn!(vm, volume, "not all of its firmware's variables are on stable storage");
        }
    }

    async fn serve(self, disk: &mut impl Disk) {
        let Self { ours, stop, vm, volume } = self;
        let options = ServeOptions { name: String::new(), read_only: false };
        match serve(ours, disk, &options, &stop).await {
            End::Left | End::Closed | End::Stopped => tracing::debug!(vm, volume, "a disk has ended"),
            end @ (End::Broken(_) | End::Socket(_)) => {
                tracing::error!(vm, volume, error = %end, "a disk cannot be served any more");
            }
        }
    }
}

fn locked<T>(of: &StdMutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
