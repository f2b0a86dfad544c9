//! What users want of VMs, and what they cannot have.

use alloc::{
    string::{String, ToString},
    vec,
};

use super::world::*;
use crate::{
    Command, Outcome, Refusal,
    id::{Generation, MacAddr, NodeId, VmId},
    limits::{BLACKOUT_MS, NAME_MAX},
    operation::OperationResult,
    vm::{Desired, Nic, StopCause, VmSpec},
};

const STOP: Desired = Desired::Stopped { force: false };

#[test]
fn a_vm_is_created_stopped_whatever_is_wanted_of_it() {
    let mut world = World::three_nodes();
    assert_eq!(world.accept(N3, create("web", N1, Desired::Running)), Outcome::Created(WEB));
    assert_eq!(world.standing(), (Generation(0), stopped(StopCause::New)));
    assert_eq!((world.web().home, world.web().desired), (N1, Desired::Running));
    assert_eq!(world.last_event(), "VM web was created on n1");
}

#[test]
fn names_and_network_addresses_of_vms_are_their_own() {
    let mut world = World::with_web();
    assert_eq!(world.refuse(N1, create("web", N2, STOP)), Refusal::NameTaken("web".to_string()));

    let mut other = spec("db");
    other.nics = spec("web").nics;
    let refusal = world.refuse(N1, Command::CreateVm { spec: other, home: N1, desired: STOP });
    assert!(matches!(refusal, Refusal::Invalid { why, .. } if why.contains("is VM web's")));

    let homeless = world.refuse(N1, create("db", NodeId(7), STOP));
    assert_eq!(homeless, Refusal::NoSuchNode("node-7".to_string()));
}

/// What, and how to break it.
type Breakage = (&'static str, fn(&mut VmSpec));

#[test]
fn a_specification_is_refused_for_each_field_that_is_wrong() {
    let breakages: [Breakage; 29] = [
        ("name", |spec| spec.name = String::new()),
        ("name", |spec| spec.name = "9lives".to_string()),
        ("name", |spec| spec.name = "Web".to_string()),
        ("name", |spec| spec.name = "a".repeat(NAME_MAX + 1)),
        ("memory", |spec| spec.memory_mib = 31),
        ("memory", |spec| spec.memory_mib = 1_048_577),
        ("vcpus", |spec| spec.vcpus = 0),
        ("vcpus", |spec| spec.vcpus = 65),
        ("kernel", |spec| spec.kernel = String::new()),
        ("kernel", |spec| spec.kernel = "vmlinuz".to_string()),
        ("kernel", |spec| spec.kernel = "/a\0b".to_string()),
        ("kernel", |spec| spec.kernel = "/".repeat(4097)),
        ("initrd", |spec| spec.initrd = "initrd".to_string()),
        ("append", |spec| spec.append = "x".repeat(2049)),
        ("append", |spec| spec.append = "a\nb".to_string()),
        ("machine", |spec| spec.machine = String::new()),
        ("machine", |spec| spec.machine = "pc,accel=kvm".to_string()),
        ("machine", |spec| spec.machine = "q".repeat(41)),
        ("cpu", |spec| spec.cpu = "-device".to_string()),
        ("cpu", |spec| spec.cpu = "qemu64 -s".to_string()),
        ("nics", |spec| spec.nics = vec![spec.nics[0].clone(); 2]),
        ("nics", |spec| spec.nics[0].mac = MacAddr([0; 6])),
        ("nics", |spec| spec.nics[0].mac = MacAddr([0xff; 6])),
        ("nics", |spec| spec.nics[0].bridge = String::new()),
        ("nics", |spec| spec.nics[0].bridge = "a/b".to_string()),
        ("nics", |spec| spec.nics[0].bridge = "sixteen-letters-".to_string()),
        ("nics", |spec| {
            let card = |last| Nic { mac: MacAddr([2, 0, 0, 0, 0, last]), ..spec.nics[0].clone() };
            spec.nics = (0..9).map(card).collect();
        }),
        ("mtu", |spec| spec.nics[0].mtu = 1279),
        ("mtu", |spec| spec.nics[0].mtu = 9001),
    ];
    let mut world = World::three_nodes();
    for (number, (field, breakage)) in breakages.into_iter().enumerate() {
        let mut spec = spec("web");
        breakage(&mut spec);
        let refusal = world.refuse(N1, Command::CreateVm { spec, home: N1, desired: STOP });
        assert!(matches!(&refusal, Refusal::Invalid { what, .. } if what == field), "{number}: {field}: {refusal}");
    }
    assert_eq!(world.accept(N1, create("web", N1, STOP)), Outcome::Created(WEB));
}

#[test]
fn a_vm_gets_another_home_only_while_it_is_stopped() {
    let mut world = World::with_web();
    let on = |home| Command::SetDesired { vm: WEB, desired: Desired::Running, home: Some(home) };
    world.accept(N3, on(N2));
    assert_eq!(world.web().home, N2);
    assert_eq!(world.last_event(), "VM web is wanted running on n2");
    assert_eq!(world.refuse(N3, on(NodeId(8))), Refusal::NoSuchNode("node-8".to_string()));

    world.accept(N2, claim(0, FIRST_LIFE));
    let refusal = world.refuse(N3, on(N1));
    assert!(matches!(&refusal, Refusal::WrongPhase { .. }));
    assert_eq!(refusal.standing(), Some((Generation(1), &running(life(N2, 1)))));
    // Its own home is no other.
    world.accept(N3, on(N2));
}

#[test]
fn a_wish_that_is_no_news_is_no_event() {
    let mut world = World::with_web();
    let events = world.state.last_event;
    world.accept(N2, set_desired(Desired::Running));
    assert_eq!(world.state.last_event, events);
    world.accept(N2, set_desired(Desired::Stopped { force: true }));
    assert_eq!(world.last_event(), "VM web is wanted stopped at once");
}

#[test]
fn a_vm_is_deleted_only_when_it_is_stopped_and_wanted_so() {
    let mut world = World::with_web();
    let delete = Command::DeleteVm { vm: WEB };
    assert!(matches!(world.refuse(N1, delete.clone()), Refusal::WrongPhase { .. }), "it is about to start");
    world.accept(N1, claim(0, FIRST_LIFE));
    world.accept(N1, set_desired(STOP));
    assert!(matches!(world.refuse(N1, delete.clone()), Refusal::WrongPhase { .. }), "it still runs");
    world.accept(N1, release(1, FIRST_LIFE, StopCause::Operator));
    world.accept(N3, delete.clone());
    assert!(world.state.vms.is_empty());
    assert_eq!(world.refuse(N3, delete), Refusal::NoSuchVm("vm-1".to_string()));

    // Its id is gone with it, for ever.
    assert_eq!(world.accept(N1, create("web", N1, STOP)), Outcome::Created(VmId(2)));
}

#[test]
fn a_cancelled_move_ends_when_the_source_aborts_it() {
    let (mut world, op) = World::with_web_moving();
    world.accept(N3, Command::Cancel { op });
    assert_eq!(world.result(op), None);
    assert_eq!(world.last_event(), "a user cancelled the move of VM web to n2");
    world.accept(N3, Command::Cancel { op });

    world.accept(N1, abort_move(op, 1));
    assert_eq!(world.result(op), Some(&OperationResult::Cancelled));
    assert_eq!(world.refuse(N3, Command::Cancel { op }), Refusal::Ended(op));
    assert_eq!(world.refuse(N3, Command::Cancel { op: op_id(999) }), Refusal::NoSuchOperation(op_id(999)));
}

#[test]
fn a_cancellation_does_not_undo_a_switchover_that_was_first() {
    let (mut world, op) = World::with_web_moving();
    world.accept(N3, Command::Cancel { op });
    world.accept(N2, switchover(op, 1, FIRST_LIFE));
    assert!(matches!(world.refuse(N1, abort_move(op, 1)), Refusal::Generation { .. }));
    world.accept(N2, arrived(op, 2));
    assert_eq!(world.result(op), Some(&OperationResult::Succeeded(report())));
}

#[test]
fn a_blackout_nobody_can_keep_or_want_is_refused() {
    let mut world = World::with_web_running();
    for (ms, right) in [(BLACKOUT_MS.start() - 1, false), (BLACKOUT_MS.end() + 1, false), (*BLACKOUT_MS.end(), true)] {
        let command = Command::BeginMove { vm: WEB, expect: Generation(1), to: N2, wishes: wishes(ms), along: vec![] };
        let outcome = world.propose(N1, command);
        assert_eq!(matches!(outcome, Outcome::Accepted(_)), right, "{ms}: {outcome:?}");
    }
}
