//! What a client of the local API sends: bodies, queries, names in paths; and what a daemon answers.
#![no_main]

use std::{fmt::Debug, str};

use libfuzzer_sys::fuzz_target;
use percent_encoding::percent_decode_str;
use pollux_api::{
    AddPool, AddReplica, ApiError, AttachVolume, ClusterView, CreateVm, CreateVolume, DeleteVolume, EventsView,
    ExportVolume, GrowVolume, ImportVolume, MigrateVm, MoveVolume, NodeView, OperationView, PoolView, Preflight,
    PreflightView, ReleaseVm, RemoveNode, RemovedView, StartVm, StopVm, TakeBack, TokenRequest, TokenView, VmView,
    VolumeView, WhyView,
    request::{ConsoleQuery, ReadQuery, body, segment},
};
use pollux_state::{
    id::{MacAddr, VolumeId},
    limits::NIC_MTU_DEFAULT,
    vm::{Disk, Nic, VmSpec},
};
use serde::{Serialize, de::DeserializeOwned};

fn asks<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let request = body::<T>(bytes).ok()?;
    let written = serde_json::to_vec(&request).expect("it was read");
    assert_eq!(body::<T>(&written).as_ref(), Ok(&request));
    Some(request)
}

/// Not compared: a number with a point may lose its last digit on the way.
fn says<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(answer) = serde_json::from_slice::<T>(bytes) {
        let written = serde_json::to_vec(&answer).expect("it was read");
        serde_json::from_slice::<T>(&written).expect("it was written");
    }
}

/// Also as the log will look at it: what gets through ends up on QEMU's command line.
fn creates(request: CreateVm) {
    let nic = |nic: pollux_api::CreateNic| {
        let mac = nic.mac.as_ref().map_or(Some(MacAddr([0x52, 0x54, 0, 0, 0, 1])), |text| {
            let mac = text.parse::<MacAddr>().ok()?;
            assert!(mac.to_string().eq_ignore_ascii_case(text), "{text} was read as {mac}");
            Some(mac)
        })?;
        Some(Nic { mac, bridge: nic.bridge, mtu: nic.mtu.unwrap_or(NIC_MTU_DEFAULT) })
    };
    let Some(nics) = request.nics.into_iter().map(nic).collect::<Option<Vec<_>>>() else { return };
    let spec = VmSpec {
        name: request.name,
        memory_mib: request.memory_mib,
        vcpus: request.vcpus,
        kernel: request.kernel,
        initrd: request.initrd,
        append: request.append,
        nics,
        machine: request.machine,
        cpu: request.cpu,
        autostart: request.autostart,
        disks: (1..).zip(&request.volumes).map(|(id, _)| Disk::data(VolumeId(id))).collect(),
    };
    match spec.validate() {
        Ok(()) => {
            let words = [&spec.name, &spec.kernel, &spec.initrd, &spec.append, &spec.machine, &spec.cpu];
            for word in words.into_iter().chain(spec.nics.iter().map(|nic| &nic.bridge)) {
                assert!(!word.contains(char::is_control), "{word:?} got through");
            }
        }
        Err(refusal) => assert!(!refusal.to_string().contains(char::is_control), "{refusal:?} is shown as it is"),
    }
}

fn names(text: &str) {
    let segment = segment(text);
    assert!(segment.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#.:".contains(&byte)), "{segment}");
    assert_eq!(percent_decode_str(&segment).decode_utf8().expect("it was text"), text);
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 32 {
        0 => _ = asks::<TokenRequest>(bytes),
        1 => _ = asks::<RemoveNode>(bytes),
        2 => _ = asks::<StartVm>(bytes),
        3 => _ = asks::<StopVm>(bytes),
        4 => _ = asks::<ReleaseVm>(bytes),
        5 => _ = asks::<TakeBack>(bytes),
        6 => _ = asks::<MigrateVm>(bytes),
        7 => _ = asks::<Preflight>(bytes),
        8 => says::<ApiError>(bytes),
        9 => says::<ClusterView>(bytes),
        10 => says::<EventsView>(bytes),
        11 => says::<NodeView>(bytes),
        12 => says::<RemovedView>(bytes),
        13 => says::<VmView>(bytes),
        14 => says::<OperationView>(bytes),
        15 => says::<PreflightView>(bytes),
        16 => says::<WhyView>(bytes),
        17 => says::<TokenView>(bytes),
        18 if bytes.starts_with(b"i") => _ = asks::<ImportVolume>(&bytes[1..]),
        19 if bytes.starts_with(b"e") => _ = asks::<ExportVolume>(&bytes[1..]),
        20 if bytes.starts_with(b"m") => _ = asks::<MoveVolume>(&bytes[1..]),
        18..=20 => asks::<CreateVm>(bytes).into_iter().for_each(creates),
        24 => _ = asks::<AddPool>(bytes),
        25 => _ = asks::<CreateVolume>(bytes),
        26 => _ = asks::<GrowVolume>(bytes),
        27 => _ = asks::<DeleteVolume>(bytes),
        28 => _ = asks::<AttachVolume>(bytes),
        29 => _ = asks::<AddReplica>(bytes),
        30 => says::<PoolView>(bytes),
        31 => says::<VolumeView>(bytes),
        _ => {
            let Ok(text) = str::from_utf8(bytes) else { return };
            match kind % 32 {
                21 => _ = serde_urlencoded::from_str::<ReadQuery>(text),
                22 => _ = serde_urlencoded::from_str::<ConsoleQuery>(text).map(|query| query.start()),
                _ => names(text),
            }
        }
    }
});
