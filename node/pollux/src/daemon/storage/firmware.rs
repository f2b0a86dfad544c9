//! The volume that keeps the variables of a VM's UEFI firmware: made with the VM, unless it is given one.

use pollux_api::{ApiError, CreateVm, Firmware};
use pollux_state::{
    ClusterState, Command, Outcome,
    id::{NodeId, PoolId, ReplicaId, VolumeId},
    spec::check_name,
    vm::{Desired, Disk, VmSpec},
    volume::Volume,
};

use super::{super::backend::Api, Down, volume_named};

/// Its size, in bytes: the least that a volume has, and twice what the variables need.
const FIRMWARE_VOLUME_BYTES: u64 = 1 << 20;

/// A volume to be made for a VM.
pub(in crate::daemon) struct NewFirmware {
    name: String,
    pools: Vec<PoolId>,
}

impl Api {
    /// The volume that a VM to be needs for its firmware's variables; `None`: none, or it has one already.
    pub(in crate::daemon) fn new_firmware(
        &self,
        state: &ClusterState,
        request: &CreateVm,
        down: &Down,
    ) -> Result<Option<NewFirmware>, ApiError> {
        match (request.firmware, &request.firmware_vars) {
            (Firmware::Bios, None) => return Ok(None),
            (Firmware::Bios, Some(vars)) => {
                let why =
                    format!("VM {} would boot by a BIOS, which keeps no variables in volume {vars}", request.name);
                return Err(
                    ApiError::invalid(why).todo("ask for UEFI, too (--firmware uefi), or leave --firmware-vars away")
                );
            }
            (Firmware::Uefi, Some(_)) => return Ok(None),
            (Firmware::Uefi, None) => {}
        }
        let Some(first) = request.volumes.first().filter(|_| request.kernel.is_empty()) else {
            let why = "UEFI boots from a volume";
            let why = if request.kernel.is_empty() { why.into() } else { format!("{why}, and a kernel is given") };
            return Err(ApiError::invalid(why).todo("give --volume and no --kernel, or leave --firmware away"));
        };
        let name = format!("{}-firmware", request.name);
        let todo = "give it a volume of another name: --firmware-vars VOLUME (1 MiB is enough)";
        check_name("the volume for the firmware's variables", &name)
            .map_err(|refusal| ApiError::invalid(refusal.to_string()).todo(todo))?;
        if state.volumes.values().any(|volume| volume.name == name) {
            let why = format!("there is a volume {name} already, and one of that name would be made");
            return Err(ApiError::conflict(why).todo(format!(
                "if it has the variables of an earlier VM of this name, go on with them: --firmware-vars {name}; or give another \
                 volume, such as an empty one of 1 MiB; `pollux volume show {name}` tells more"
            )));
        }
        Ok(Some(NewFirmware { name, pools: beside(state, volume_named(state, first)?, down) }))
    }

    /// Makes a VM, and before it the volume for its firmware's variables. Of a VM that is refused nothing stays.
    pub(in crate::daemon) async fn create_with_firmware(
        &self,
        mut spec: VmSpec,
        home: NodeId,
        desired: Desired,
        firmware: Option<NewFirmware>,
    ) -> Result<(), ApiError> {
        let Some(NewFirmware { name, pools }) = firmware else {
            return self.propose(Command::CreateVm { spec, home, desired }).await.map(drop);
        };
        let create = Command::CreateVolume { name: name.clone(), size: FIRMWARE_VOLUME_BYTES, pools };
        let made = self.propose(create).await.map_err(|error| {
            // What came of it may be unknown.
            let and = format!("`pollux volume show {name}` tells whether that was made; if so, --firmware-vars {name}");
            let todo = if error.todo.is_empty() { and } else { format!("{}; {and}", error.todo) };
            error.todo(todo)
        })?;
        let (_, Outcome::VolumeCreated(volume)) = made else {
            return Err(ApiError::internal("an odd answer to making a volume"));
        };
        spec.disks.push(Disk::firmware(volume));
        let Err(refused) = self.propose(Command::CreateVm { spec, home, desired }).await else { return Ok(()) };
        let state = self.state().await;
        // Whether it was refused may be unknown: then it has a user, and stays.
        let there = state.volumes.get(&volume);
        if there.is_some_and(|it| it.user.is_some()) {
            return Err(refused);
        }
        let deleted = match there {
            Some(it) => self.propose(Command::DeleteVolume { volume, expect: it.generation }).await.map(drop),
            None => Err(ApiError::unavailable("this node's copy of the log does not have it yet")),
        };
        if let Err(error) = deleted {
            tracing::warn!(volume = name, error = error.message, "a volume of a VM that was refused is still there");
            let todo = format!("volume {name} was made for it and is still there: `pollux volume delete {name}`");
            return Err(ApiError { todo: [&*refused.todo, &*todo].join("; "), ..refused });
        }
        Err(refused)
    }
}

/// The spec of a VM that gets this volume, for who wants to know what it needs before the volume is made.
pub(in crate::daemon) fn with_firmware(spec: &VmSpec, firmware: Option<&NewFirmware>) -> VmSpec {
    let mut spec = spec.clone();
    // Nobody looks which.
    spec.disks.extend(firmware.map(|_| Disk::firmware(VolumeId(u64::MAX))));
    spec
}

/// Where a volume is that is to be wherever another one is whole: a replica that is behind or whose host is down would keep the VM waiting.
fn beside(state: &ClusterState, volume: &Volume, down: &Down) -> Vec<PoolId> {
    let of = |id: &ReplicaId| volume.replicas.get(id).map(|replica| replica.pool);
    let there = |pool: &PoolId| state.pools.get(pool).is_some_and(|pool| !down.contains(&pool.node));
    let all: Vec<PoolId> = volume.set.iter().filter_map(of).collect();
    let there: Vec<PoolId> = all.iter().copied().filter(there).collect();
    let mut pools = if there.is_empty() { all } else { there };
    // One that takes another's place may be among them.
    pools.truncate(pollux_state::limits::REPLICAS_MAX - 1);
    pools
}
