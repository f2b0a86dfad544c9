//! Pools, volumes, and the VMs that have them.

use alloc::{format, string::String, string::ToString, vec, vec::Vec};

use super::world::*;
use crate::{
    Command, Outcome, Refusal,
    id::{Generation, OpId, PoolId, VmId, VolumeId},
    limits::{DISKS_MAX, POOLS_MAX, VOLUME_BYTES, VOLUMES_MAX},
    vm::{Desired, Disk, StopCause, VmSpec},
};

const STOP: Desired = Desired::Stopped { force: false };

#[track_caller]
fn assert_volume(refusal: &Refusal, word: &str) {
    let told = matches!(refusal, Refusal::Volume { why, .. } if why.contains(word));
    assert!(told, "{refusal} says {word:?}");
}

fn boots_from(name: &str, disks: &[VolumeId]) -> VmSpec {
    let disks = disks.iter().map(|volume| Disk::data(*volume)).collect();
    VmSpec { disks, kernel: String::new(), initrd: String::new(), append: String::new(), ..spec(name) }
}

#[test]
fn pools_are_known_by_node_and_name() {
    let mut world = World::three_nodes();
    assert_eq!(world.accept(N1, add_pool("fast")), Outcome::PoolAdded(P1));
    assert_eq!(world.last_event(), "pool n1:fast was added: /srv/fast");
    assert_eq!(world.accept(N2, add_pool("fast")), Outcome::PoolAdded(P2), "each node has its own");

    assert_eq!(world.refuse(N1, add_pool("fast")), Refusal::NameTaken("n1:fast".to_string()));
    let twice = Command::AddPool { name: "other".to_string(), path: "/srv/fast".to_string() };
    assert!(world.refuse(N1, twice).to_string().contains("it is pool n1:fast already"));
    for (name, path) in [("Fast", "/srv/x"), ("x", "srv"), ("x", ""), ("x", "/a\nb")] {
        let wrong = Command::AddPool { name: name.to_string(), path: path.to_string() };
        assert!(matches!(world.refuse(N1, wrong), Refusal::Invalid { .. }), "{name:?} {path:?}");
    }
}

#[test]
fn a_pool_goes_when_nothing_is_in_it_and_its_number_is_not_given_again() {
    let mut world = World::with_data();
    let refusal = world.refuse(N3, Command::RemovePool { pool: P1 });
    let words = "pool n1:fast cannot be removed: it holds replicas of data; move them first";
    assert!(refusal.to_string().starts_with(words), "{refusal}");

    world.accept(N3, Command::RemovePool { pool: SLOW });
    assert_eq!(world.refuse(N3, Command::RemovePool { pool: SLOW }), Refusal::NoSuchPool("pool-4".to_string()));
    assert_eq!(world.accept(N1, add_pool("slow")), Outcome::PoolAdded(PoolId(5)));
}

#[test]
fn a_cluster_has_so_many_pools_and_volumes_and_no_more() {
    let mut world = World::with_data();
    let fill = |world: &mut World, what: &dyn Fn(usize) -> Command| {
        let mut number = 0;
        loop {
            let proposal = world.proposal(N1, what(number));
            if let Err(refusal) = world.state.apply(1, &proposal).outcome.done() {
                break refusal;
            }
            number += 1;
        }
    };
    let pools = fill(&mut world, &|number| add_pool(&format!("p{number}")));
    assert!(matches!(pools, Refusal::Full { .. }), "{pools}");
    let volumes = fill(&mut world, &|number| create_volume(&format!("v{number}"), &[P1, P2, P3]));
    assert!(matches!(volumes, Refusal::Full { .. }), "{volumes}");
    assert_eq!((world.state.pools.len(), world.state.volumes.len()), (POOLS_MAX, VOLUMES_MAX));
    world.state.check().expect("sound");
}

#[test]
fn a_volume_has_a_size_and_one_to_three_different_pools() {
    let mut world = World::with_new_data();
    assert_eq!(world.last_event(), "volume data of 10 GiB was created in n1:fast and n2:fast");
    assert_eq!(world.set(), (0, 1, vec![R1, R2]));
    assert_eq!(world.data().authority, R1);

    assert_eq!(world.refuse(N1, create_volume("data", &[P1])), Refusal::NameTaken("data".to_string()));
    assert_eq!(world.refuse(N1, create_volume("logs", &[PoolId(9)])), Refusal::NoSuchPool("pool-9".to_string()));
    for pools in [&[][..], &[P1, P1], &[P1, P2, P3, SLOW]] {
        assert!(matches!(world.refuse(N1, create_volume("logs", pools)), Refusal::Invalid { .. }), "{pools:?}");
    }
    let (least, most) = (*VOLUME_BYTES.start(), *VOLUME_BYTES.end());
    for (size, right) in [(least - 4096, false), (most + 4096, false), (GIB + 512, false), (least, true), (most, true)]
    {
        let create = Command::CreateVolume { name: format!("v{size}"), size, pools: vec![P1] };
        assert_eq!(matches!(world.propose(N1, create), Outcome::VolumeCreated(_)), right, "{size}");
    }
}

#[test]
fn nobody_writes_to_a_volume_whose_set_is_not_made() {
    let mut world = World::with_new_data();
    world.accept(N1, made(R1));
    let spec = VmSpec { disks: vec![Disk::data(DATA)], ..spec("web") };
    world.accept(N1, Command::CreateVm { spec, home: N1, desired: Desired::Running });
    let refusal = world.refuse(N1, claim(0, FIRST_LIFE));
    assert!(refusal.to_string().contains("the replica of its volume data in n2:fast is not made yet"), "{refusal}");

    world.accept(N2, failed(R2, "the file system is read-only"));
    let refusal = world.refuse(N1, claim(0, FIRST_LIFE));
    assert!(refusal.to_string().contains("n2:fast could not be made: the file system is read-only"), "{refusal}");

    // Its node makes it after all; or the user does without.
    let mut without = world.clone();
    world.accept(N2, made(R2));
    world.accept(N1, claim(0, FIRST_LIFE));
    without.accept(N3, Command::RemoveReplica { volume: DATA, replica: R2, version: 1 });
    without.accept(N1, claim(0, FIRST_LIFE));
}

#[test]
fn how_a_replica_is_only_its_own_node_tells() {
    let mut world = World::with_new_data();
    assert_volume(&world.refuse(N2, made(R1)), "another node's");
    assert_volume(&world.refuse(N1, failed(R2, "no")), "another node's");
    assert!(matches!(world.refuse(N1, made(R3)), Refusal::NoSuchReplica { .. }));

    world.accept(N1, made(R1));
    assert_eq!(world.last_event(), "the replica of volume data in n1:fast was made");
    world.accept(N1, failed(R1, "its log is torn"));
    let told = world.state.last_event;
    world.accept(N1, failed(R1, "its log is torn"));
    assert_eq!(world.state.last_event, told, "told once");
    assert!(world.data().replicas[&R1].made, "made stays made");
    world.accept(N1, made(R1));
    assert_eq!(world.last_event(), "the replica of volume data in n1:fast is in order again");
    assert!(world.data().replicas[&R1].is_sound());
}

#[test]
fn a_volume_of_its_own_generation_follows_whoever_may_write() {
    let mut world = World::with_web_on_data();
    assert_eq!((world.data().generation, world.writer()), (Generation(1), None), "attached");
    world.accept(N1, set_desired(Desired::Running));
    world.accept(N1, claim(0, FIRST_LIFE));
    assert_eq!((world.data().generation, world.writer()), (Generation(2), Some(life(N1, 1))), "started");

    let Outcome::Accepted(op) = world.accept(N3, begin_move(1, N2)) else { panic!("accepted") };
    assert_eq!((world.data().generation, world.writer()), (Generation(2), Some(life(N1, 1))), "moves");
    world.accept(N2, switchover(op, 1, FIRST_LIFE));
    assert_eq!((world.data().generation, world.writer()), (Generation(3), Some(life(N2, 1))), "switched over");
    world.accept(N2, give_back(op, 2));
    assert_eq!((world.data().generation, world.writer()), (Generation(4), Some(life(N1, 1))), "given back");

    let second = world.restart(N1);
    assert_eq!((world.data().generation, world.writer()), (Generation(4), Some(life(N1, 1))), "a life that is over");
    world.accept(N1, claim(3, second));
    assert_eq!((world.data().generation, world.writer()), (Generation(5), Some(life(N1, 2))), "started anew");
    world.accept(N1, set_desired(STOP));
    world.accept(N1, release(4, second, StopCause::Operator));
    assert_eq!((world.data().generation, world.writer()), (Generation(6), None), "stopped");

    world.accept(N3, detach(6));
    assert_eq!((world.data().generation, world.writer()), (Generation(7), None), "detached");
}

#[test]
fn a_vm_gets_and_loses_volumes_only_while_it_is_stopped() {
    let mut world = World::with_data();
    world.accept(N1, create("web", N1, Desired::Running));
    assert!(world.refuse(N3, attach(0)).to_string().contains("pollux vm stop web"), "it is about to be started");
    world.accept(N1, set_desired(STOP));
    assert_eq!(world.accept(N3, attach(0)), Outcome::Owned(Generation(1)));
    assert_eq!(world.last_event(), "VM web has volume data now");
    assert_volume(&world.refuse(N3, attach(1)), "VM web has it");

    world.accept(N1, set_desired(Desired::Running));
    assert!(world.refuse(N3, detach(1)).to_string().contains("pollux vm stop web"));
    world.accept(N1, claim(0, FIRST_LIFE));
    assert!(matches!(world.refuse(N3, detach(1)), Refusal::VolumeGeneration { .. }), "of before it ran");
    assert!(world.refuse(N3, detach(2)).to_string().contains("pollux vm stop web"));
    world.accept(N1, set_desired(STOP));
    world.accept(N1, release(1, FIRST_LIFE, StopCause::Operator));
    world.accept(N3, detach(3));
    assert_eq!((world.data().user, world.web().spec.disks.len()), (None, 0));
    assert_volume(&world.refuse(N3, detach(4)), "does not have it");
}

#[test]
fn the_volume_to_boot_from_comes_first_and_stays() {
    let mut world = World::with_data();
    let Outcome::VolumeCreated(root) = world.accept(N1, create_volume("root", &[P1])) else { panic!("created") };
    world.accept(N1, Command::CreateVm { spec: boots_from("web", &[root]), home: N1, desired: STOP });
    assert_eq!(world.state.volumes[&root].user, Some(WEB));
    let last = Command::DetachVolume { vm: WEB, volume: root, expect: Generation(1) };
    assert_volume(&world.refuse(N1, last), "boots from it");

    let volume = DATA;
    world.accept(N1, Command::AttachVolume { vm: WEB, volume, expect: Generation(0), boot: true });
    let order: Vec<VolumeId> = world.web().spec.disks.iter().map(|disk| disk.volume).collect();
    assert_eq!(order, [DATA, root]);
    world.accept(N1, Command::DetachVolume { vm: WEB, volume: root, expect: Generation(1) });
}

#[test]
fn what_a_vm_boots_from_has_to_be_said() {
    let data = [DATA];
    let wrong = [
        (VmSpec { kernel: String::new(), ..spec("web") }, "kernel"),
        (VmSpec { initrd: "/initrd".to_string(), ..boots_from("web", &data) }, "initrd"),
        (VmSpec { append: "quiet".to_string(), ..boots_from("web", &data) }, "append"),
        (boots_from("web", &[DATA, DATA]), "disks"),
        (boots_from("web", &[DATA; DISKS_MAX + 1]), "disks"),
    ];
    for (spec, field) in wrong {
        let refusal = spec.validate().expect_err("it is wrong");
        assert!(matches!(&refusal, Refusal::Invalid { what, .. } if what == field), "{refusal}");
    }
    let many: Vec<VolumeId> = (1..=DISKS_MAX as u64).map(VolumeId).collect();
    boots_from("web", &many).validate().expect("right");
}

/// A VM that boots from `disk` by UEFI, whose variables are in `firmware`.
fn boots_by_uefi(name: &str, disk: VolumeId, firmware: VolumeId) -> VmSpec {
    VmSpec { disks: vec![Disk::firmware(firmware), Disk::data(disk)], ..boots_from(name, &[]) }
}

#[test]
fn uefi_needs_a_volume_to_boot_from_and_one_for_its_variables() {
    let right = boots_by_uefi("web", DATA, VolumeId(2));
    right.validate().expect("right");
    assert_eq!(right.firmware(), Some(VolumeId(2)));
    assert_eq!(
        right.data_disks().map(|disk| disk.volume).collect::<Vec<_>>(),
        [DATA],
        "the guest does not see the other"
    );
    assert_eq!(boots_from("web", &[DATA]).firmware(), None);

    let wrong = [
        (VmSpec { kernel: "/vmlinuz".to_string(), ..right.clone() }, "firmware"),
        (
            VmSpec { disks: vec![Disk::firmware(DATA), Disk::firmware(VolumeId(2)), Disk::data(VolumeId(3))], ..right },
            "firmware",
        ),
        (boots_by_uefi("web", DATA, DATA), "disks"),
        (VmSpec { disks: vec![Disk::firmware(DATA)], ..boots_from("web", &[]) }, "kernel"),
    ];
    for (spec, field) in wrong {
        let refusal = spec.validate().expect_err("it is wrong");
        assert!(matches!(&refusal, Refusal::Invalid { what, .. } if what == field), "{refusal}");
    }
}

#[test]
fn the_firmwares_variables_stay_with_the_vm_and_outlive_it() {
    let mut world = World::with_data();
    let new = |world: &mut World, name| {
        let Outcome::VolumeCreated(volume) = world.accept(N1, create_volume(name, &[P1])) else { panic!("created") };
        world.accept(
            N1,
            Command::ReplicaMade { volume, replica: *world.state.volumes[&volume].set.first().expect("one") },
        );
        volume
    };
    let (root, vars) = (new(&mut world, "root"), new(&mut world, "web-firmware"));
    let spec = boots_by_uefi("web", root, vars);
    world.accept(N1, Command::CreateVm { spec, home: N1, desired: STOP });
    assert_eq!(world.state.volumes[&vars].user, Some(WEB));

    let take = |volume| Command::DetachVolume { vm: WEB, volume, expect: Generation(1) };
    assert_volume(&world.refuse(N1, take(vars)), "free again when web is deleted");
    assert_volume(&world.refuse(N1, take(root)), "boots from it");

    // Who may run the VM may write them, and nobody else.
    world.accept(N1, Command::SetDesired { vm: WEB, desired: Desired::Running, home: None });
    world.accept(N1, claim(0, FIRST_LIFE));
    assert_eq!(world.state.volumes[&vars].generation, Generation(2));

    world.accept(N1, Command::SetDesired { vm: WEB, desired: STOP, home: None });
    world.accept(N1, release(1, FIRST_LIFE, StopCause::Operator));
    world.accept(N1, Command::DeleteVm { vm: WEB });
    assert_eq!(world.state.volumes[&vars].user, None);
}

#[test]
fn a_vm_has_so_many_volumes_and_no_more() {
    let mut world = World::with_data();
    world.accept(N1, create("web", N1, STOP));
    for number in 0..DISKS_MAX {
        let name = format!("v{number}");
        let Outcome::VolumeCreated(volume) = world.accept(N1, create_volume(&name, &[P1])) else { panic!("created") };
        world.accept(N1, Command::AttachVolume { vm: WEB, volume, expect: Generation(0), boot: false });
    }
    assert!(world.refuse(N1, attach(0)).to_string().contains("no VM has more"));
}

#[test]
fn a_volume_is_one_vms() {
    let mut world = World::with_web_on_data();
    let db = |disks: &[VolumeId]| Command::CreateVm { spec: boots_from("db", disks), home: N1, desired: STOP };
    assert_volume(&world.refuse(N1, db(&[DATA])), "VM web has it; take it away first: `pollux volume detach data`");
    assert_eq!(world.refuse(N1, db(&[VolumeId(9)])), Refusal::NoSuchVolume("volume-9".to_string()));

    world.accept(N1, Command::DeleteVm { vm: WEB });
    assert_eq!((world.data().user, world.data().generation), (None, Generation(2)), "it outlives its VM");
    assert_eq!(world.accept(N1, db(&[DATA])), Outcome::Created(VmId(2)));
}

#[test]
fn a_volume_is_deleted_when_it_is_nobodys_and_as_the_user_saw_it() {
    let mut world = World::with_web_on_data();
    let delete = |expect| Command::DeleteVolume { volume: DATA, expect: Generation(expect) };
    assert_volume(&world.refuse(N1, delete(1)), "VM web has it");
    let late = world.proposal(N1, delete(0));
    world.accept(N1, detach(1));
    assert!(matches!(world.apply(&late).outcome, Outcome::Refused(Refusal::VolumeGeneration { .. })));
    assert_eq!(world.accept(N1, delete(2)), Outcome::Done);
    assert_eq!(world.last_event(), "volume data was deleted");

    assert_eq!(world.accept(N1, create_volume("data", &[P1])), Outcome::VolumeCreated(VolumeId(2)));
    let replicas: Vec<_> = world.state.volumes[&VolumeId(2)].replicas.keys().copied().collect();
    assert_eq!(replicas, [R3], "no number is given again");
    assert_eq!(world.refuse(N1, made(R1)), Refusal::NoSuchVolume("volume-1".to_string()));
}

#[test]
fn a_volume_grows_while_nobody_writes() {
    let mut world = World::with_web_writing();
    let grow = |size| Command::GrowVolume { volume: DATA, size };
    assert_volume(&world.refuse(N1, grow(20 * GIB)), "VM web runs with it");
    world.accept(N1, set_desired(STOP));
    assert_volume(&world.refuse(N1, grow(20 * GIB)), "run `pollux vm stop web` first");
    world.accept(N1, release(1, FIRST_LIFE, StopCause::Operator));
    for size in [10 * GIB, 5 * GIB] {
        assert_volume(&world.refuse(N1, grow(size)), "a volume only grows");
    }
    assert!(matches!(world.refuse(N1, grow(20 * GIB + 1)), Refusal::Invalid { .. }));
    world.accept(N1, grow(20 * GIB));
    assert_eq!((world.data().size, world.last_event()), (20 * GIB, "volume data has 20 GiB now"));
}

#[test]
fn a_move_of_a_vm_does_not_speak_for_a_volume() {
    let mut world = World::with_web_writing();
    let silence = Command::HeardAgain { op: OpId([1; 16]), silence_ms: 5 };
    assert!(matches!(world.refuse(N1, silence), Refusal::NoSuchOperation(_)));
    let Outcome::Accepted(op) = world.accept(N1, move_data(P3, 1)) else { panic!("accepted") };
    let silence = Command::HeardAgain { op, silence_ms: 5 };
    assert!(world.refuse(N1, silence).to_string().contains("no guest falls silent while a volume moves"));
}
