//! The volume that keeps the variables of a VM's UEFI firmware: made with the VM, unless it is given one.

use pollux_api::{ApiError, CreateVm, Firmware};
use pollux_state::{
    ClusterState, Command, Outcome,
    id::{NodeId, PoolId},
    spec::check_name,
    vm::{Desired, Disk, VmSpec},
};

use super::{super::backend::Api, volume_named};

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
            let why =
                format!("there is a volume {name} already, with the firmware's variables of a VM that was called so");
            return Err(ApiError::conflict(why).todo(format!(
                "to go on with them use --firmware-vars {name}; to begin anew delete it first: `pollux volume delete {name}`"
            )));
        }
        let replicas = volume_named(state, first)?.replicas.values();
        let mut pools: Vec<PoolId> = replicas.map(|replica| replica.pool).collect();
        // One that takes another's place may be among them.
        pools.truncate(pollux_state::limits::REPLICAS_MAX - 1);
        Ok(Some(NewFirmware { name, pools }))
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
        let create = Command::CreateVolume { name, size: FIRMWARE_VOLUME_BYTES, pools };
        let (_, Outcome::VolumeCreated(volume)) = self.propose(create).await? else {
            return Err(ApiError::internal("an odd answer to making a volume"));
        };
        spec.disks.push(Disk::firmware(volume));
        let Err(refused) = self.propose(Command::CreateVm { spec, home, desired }).await else { return Ok(()) };
        let state = self.state().await;
        // Whether it was refused may be unknown: then it has a user, and stays.
        if let Some(it) = state.volumes.get(&volume).filter(|it| it.user.is_none())
            && let Err(error) = self.propose(Command::DeleteVolume { volume, expect: it.generation }).await
        {
            tracing::warn!(volume = it.name, error = error.message, "a volume of a VM that was refused is still there");
        }
        Err(refused)
    }
}
