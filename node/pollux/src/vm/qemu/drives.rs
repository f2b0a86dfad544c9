//! A guest's disks: for each a drive that its QEMU is served, and the volume in it while this node has the right to write.
//!
//! Made with the machine. A machine that boots needs its volumes from the start; a standby gets them when it is let run, and so does a
//! guest whose right went elsewhere and came back: under each generation a volume is brought into use anew (DESIGN, rule 4). They
//! end with the machine.

use std::{
    os::unix::net::UnixStream,
    sync::{Arc, Mutex as StdMutex, PoisonError},
};

use pollux_disk::nbd::{End, ServeOptions, serve};
use pollux_qemu::DiskFd;
use pollux_state::id::{Generation, VmId, VolumeId};
use pollux_volume::{Drive, DriveHandle, VolumeHandle};
use tokio::{net, sync::Mutex};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    super::host::{Disks, GuestError, Order},
    failed,
};

/// See the module's text.
pub(super) struct Drives {
    vm: VmId,
    disks: Option<Arc<dyn Disks>>,
    drives: Vec<(VolumeId, DriveHandle)>,
    /// The generation under which the volumes are in use. Held while they are being brought into use.
    under: Mutex<Option<Generation>>,
    /// The volumes in use.
    volumes: StdMutex<Vec<VolumeHandle>>,
    served: TaskTracker,
    stop: CancellationToken,
}

impl Drives {
    /// The drives of a machine, and QEMU's ends of them.
    pub(super) async fn make(order: &Order, disks: Option<Arc<dyn Disks>>) -> Result<(Self, Vec<DiskFd>), GuestError> {
        let mut made = Self {
            vm: order.vm,
            disks,
            drives: Vec::new(),
            under: Mutex::new(None),
            volumes: StdMutex::default(),
            served: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let mut theirs = Vec::new();
        for disk in &order.spec.disks {
            let size = made.disks()?.size(disk.volume)?;
            let (mut drive, handle) = Drive::empty(size);
            let (ours, socket) = UnixStream::pair().map_err(failed("a disk's socket"))?;
            ours.set_nonblocking(true).map_err(failed("a disk's socket"))?;
            let ours = net::UnixStream::from_std(ours).map_err(failed("a disk's socket"))?;
            let serial = disk.volume.to_string();
            let (stop, name, vm) = (made.stop.clone(), serial.clone(), order.spec.name.clone());
            made.served.spawn(async move {
                let options = ServeOptions { name: String::new(), read_only: false };
                match serve(ours, &mut drive, &options, &stop).await {
                    End::Left | End::Closed | End::Stopped => tracing::debug!(vm, volume = name, "a disk has ended"),
                    end @ (End::Broken(_) | End::Socket(_)) => {
                        tracing::error!(vm, volume = name, error = %end, "a disk cannot be served any more");
                    }
                }
            });
            theirs.push(DiskFd { serial, socket: socket.into() });
            made.drives.push((disk.volume, handle));
        }
        if !order.standby {
            made.open(order.generation).await?;
        }
        Ok((made, theirs))
    }

    fn disks(&self) -> Result<&Arc<dyn Disks>, GuestError> {
        self.disks.as_ref().ok_or_else(|| GuestError("this node has no volumes".into()))
    }

    /// Brings the volumes into use under `generation`, unless they are.
    pub(super) async fn open(&self, generation: Generation) -> Result<(), GuestError> {
        let mut under = self.under.lock().await;
        if self.drives.is_empty() || *under == Some(generation) {
            return Ok(());
        }
        // Until all are there none is: those that were put in are put in again.
        *under = None;
        let disks = self.disks()?;
        let opening = self.drives.iter().map(|(volume, _)| disks.open(self.vm, generation, *volume));
        let opened = futures::future::try_join_all(opening).await?;
        let mut handles = Vec::new();
        for ((volume, drive), (opened, handle)) in self.drives.iter().zip(opened) {
            if !drive.put(opened).await {
                return Err(GuestError(format!("{volume}: QEMU has let go of it")));
            }
            handles.push(handle);
        }
        *self.volumes.lock().unwrap_or_else(PoisonError::into_inner) = handles;
        *under = Some(generation);
        Ok(())
    }

    /// How many requests to change something they ever took.
    pub(super) fn changes(&self) -> u64 {
        self.drives.iter().map(|(_, drive)| drive.changes()).sum()
    }

    /// What is wrong with the disks, for people.
    pub(super) fn trouble(&self) -> Option<String> {
        let volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let troubles = volumes.iter().zip(&self.drives).filter_map(|(handle, (volume, _))| {
            let status = handle.status();
            let status = status.borrow();
            let why = status.over.map(str::to_owned).or_else(|| status.trouble.clone())?;
            Some(format!("{volume}: {why}"))
        });
        troubles.reduce(|all, one| format!("{all}; {one}"))
    }

    /// Ends them; when this returns no volume is in use by this machine.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        self.served.close();
        self.served.wait().await;
    }
}
