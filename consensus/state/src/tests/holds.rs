//! Work on volumes with which no VM runs.

use super::world::*;
use crate::{
    Command, Outcome, Refusal,
    id::{Generation, Incarnation},
    vm::{Desired, StopCause},
    volume::Purpose::{Copy, Export, Import, Verify},
};

#[track_caller]
fn assert_volume(refusal: &Refusal, word: &str) {
    let told = matches!(refusal, Refusal::Volume { why, .. } if why.contains(word));
    assert!(told, "{refusal} says {word:?}");
}

#[test]
fn who_holds_a_volume_writes_to_it_until_it_lets_go() {
    let mut world = World::with_data();
    assert_eq!(world.accept(N2, hold(0, 1, Import)), Outcome::Owned(Generation(1)));
    assert_eq!((world.writer(), world.last_event()), (Some(life(N2, 1)), "n2 holds volume data: it is importing it"));
    world.accept(N2, leave(R1, 1, 1));
    assert!(matches!(world.refuse(N1, drop_hold(1)), Refusal::NotTheWriter { .. }));
    assert!(matches!(world.refuse(N2, drop_hold(0)), Refusal::VolumeGeneration { .. }));
    assert_eq!(world.accept(N2, drop_hold(1)), Outcome::Owned(Generation(2)));
    assert_eq!(world.writer(), None);
    assert!(matches!(world.refuse(N2, join_set(R1, 1, 2)), Refusal::VolumeGeneration { .. }));
    assert!(matches!(world.refuse(N2, drop_hold(2)), Refusal::NotTheWriter { .. }), "there is nothing to let go");
}

#[test]
fn nobody_holds_what_a_vm_runs_with_or_is_about_to() {
    let mut world = World::with_web_writing();
    assert_volume(&world.refuse(N2, hold(2, 1, Verify)), "run `pollux vm stop web` first");
    world.accept(N1, set_desired(Desired::Stopped { force: false }));
    assert_volume(&world.refuse(N2, hold(2, 1, Verify)), "VM web runs with it");
    world.accept(N1, release(1, FIRST_LIFE, StopCause::Operator));
    world.accept(N1, set_desired(Desired::Running));
    assert_volume(&world.refuse(N2, hold(3, 1, Verify)), "or is about to");
    world.accept(N1, set_desired(Desired::Stopped { force: false }));
    world.accept(N2, hold(3, 1, Verify));
}

#[test]
fn nobody_holds_what_is_not_made_yet() {
    let mut world = World::with_new_data();
    assert_volume(&world.refuse(N1, hold(0, 1, Import)), "not made yet");
}

#[test]
fn only_a_current_life_holds() {
    let mut world = World::with_data();
    for life in [0, 2] {
        assert!(matches!(world.refuse(N1, hold(0, life, Copy)), Refusal::NotTheWriter { .. }), "{life}");
    }
    world.accept(N1, hold(0, 1, Copy));
    assert_volume(&world.refuse(N1, hold(1, 1, Copy)), "n1 is bringing a replica of it up to date");
    let second = world.restart(N1);
    assert!(matches!(world.refuse(N1, leave(R2, 1, 1)), Refusal::NotTheWriter { .. }), "that life is over");
    world.accept(N1, hold(1, second.0, Copy));
    assert_eq!((world.data().generation, world.writer()), (Generation(2), Some(life(N1, 2))));
}

#[test]
fn the_work_of_a_dead_life_is_anybodys() {
    let mut world = World::with_data();
    world.accept(N1, hold(0, 1, Import));
    assert_volume(&world.refuse(N2, hold(1, 1, Copy)), "n1 is importing it; wait until that is over");
    world.restart(N1);
    world.accept(N2, hold(1, 1, Copy));
    assert_eq!((world.data().generation, world.writer()), (Generation(2), Some(life(N2, 1))));
    assert!(matches!(world.refuse(N1, drop_hold(2)), Refusal::NotTheWriter { .. }));
}

#[test]
fn what_can_be_gone_on_with_later_gives_way() {
    for yields in [Copy, Verify] {
        let mut world = World::with_data();
        world.accept(N1, hold(0, 1, yields));
        assert_volume(&world.refuse(N2, hold(1, 1, Verify)), "n1 is");
        let late = world.proposal(N1, leave(R2, 1, 1));
        world.accept(N2, hold(1, 1, Export));
        assert_eq!(world.writer(), Some(life(N2, 1)));
        assert!(matches!(world.apply(&late).outcome, Outcome::Refused(Refusal::VolumeGeneration { .. })));
        assert_volume(&world.refuse(N1, hold(2, 1, Import)), "n2 is exporting it");
    }
}

#[test]
fn users_are_not_kept_waiting_by_what_gives_way_and_are_by_the_rest() {
    let grow = Command::GrowVolume { volume: DATA, size: 20 * GIB };
    let delete = Command::DeleteVolume { volume: DATA, expect: Generation(1) };
    for deed in [attach(1), grow, delete] {
        let mut world = World::with_data();
        world.accept(N1, create("web", N1, Desired::Stopped { force: false }));
        let mut import = world.clone();
        import.accept(N2, hold(0, 1, Import));
        assert_volume(&import.refuse(N1, deed.clone()), "n2 is importing it; wait until that is over");

        world.accept(N2, hold(0, 1, Copy));
        world.accept(N1, deed);
        let data = world.state.volumes.get(&DATA);
        assert!(data.is_none_or(|data| data.holder.is_none() && data.generation == Generation(2)));
    }
}

#[test]
fn what_is_imported_is_no_vms_and_becomes_none() {
    let mut world = World::with_web_on_data();
    assert_volume(&world.refuse(N1, hold(1, 1, Import)), "VM web has it; take it away first");
}

#[test]
fn half_of_an_import_is_no_vms() {
    let give_up = Command::DropVolume { volume: DATA, expect: Generation(1), done: false };
    let ends: [&dyn Fn(&mut World); 2] = [
        &|world| {
            world.accept(N2, give_up.clone());
            assert_eq!(world.last_event(), "n2 gave up volume data: it was importing it");
        },
        // Its daemon is started again, and another node copies meanwhile: that makes nothing whole.
        &|world| {
            world.restart(N2);
            world.accept(N1, hold(1, 1, Copy));
            world.accept(N1, drop_hold(2));
        },
    ];
    for end in ends {
        let mut world = World::with_data();
        world.accept(N1, create("web", N1, Desired::Stopped { force: false }));
        world.accept(N2, hold(0, 1, Import));
        end(&mut world);
        let generation = world.data().generation.0;
        assert_volume(&world.refuse(N1, attach(generation)), "import it again, or delete it");
        assert_volume(&world.refuse(N1, hold(generation, 1, Export)), "an import into it was never finished");

        let life = world.state.nodes[&N2].incarnation.0;
        world.accept(N2, hold(generation, life, Import));
        world.accept(N2, drop_hold(generation + 1));
        assert_eq!(world.last_event(), "n2 is done with volume data: it was importing it");
        world.accept(N1, attach(generation + 2));
    }
}

#[test]
fn a_vm_that_starts_ends_the_work_on_its_volumes() {
    let mut world = World::with_web_on_data();
    world.accept(N2, hold(1, 1, Export));
    let late = world.proposal(N2, leave(R1, 2, 1));
    world.accept(N1, set_desired(Desired::Running));
    world.accept(N1, claim(0, FIRST_LIFE));
    assert_eq!((world.data().holder, world.data().generation), (None, Generation(3)));
    assert_eq!(world.writer(), Some(life(N1, 1)));
    assert!(matches!(world.apply(&late).outcome, Outcome::Refused(Refusal::VolumeGeneration { .. })));
    assert!(matches!(world.refuse(N2, drop_hold(3)), Refusal::NotTheWriter { .. }));
}

#[test]
fn a_volume_that_loses_its_vm_is_let_go() {
    for forget in [detach(2), Command::DeleteVm { vm: WEB }] {
        let mut world = World::with_web_on_data();
        world.accept(N2, hold(1, 1, Verify));
        world.accept(N1, forget);
        assert_eq!((world.data().holder, world.data().generation, world.writer()), (None, Generation(3), None));
    }
}

#[test]
fn a_node_that_works_on_a_volume_leaves_when_it_is_done_or_lost() {
    let mut world = World::with_data();
    world.accept(N3, hold(0, 1, Export));
    let refusal = world.refuse(N1, remove(N3));
    assert!(matches!(&refusal, Refusal::NodeInUse { why, .. } if why.contains("it is exporting it")), "{refusal}");

    let mut lost = world.clone();
    lost.accept(N1, Command::RemoveNode { node: N3, after: Incarnation(1), heir: N1, lost: true });
    assert_eq!((lost.data().holder, lost.data().generation), (None, Generation(2)));

    world.accept(N3, drop_hold(1));
    world.accept(N1, remove(N3));
}
