//! The target's daemon is killed in the middle of a move: the VM goes on where it was, or where it had already arrived.

use pollux_system_tests::{
    World,
    waiting::{SETTLE, until},
};

/// Enough memory, and busy enough, for a move to have a middle.
const FILL: &str = "FILL 64 random";
const DIRTY: &str = "DIRTY 64 20";

/// When the target is killed: when the source says that it is in this phase, or when the log says that the target has won.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Phase(&'static str),
    Won,
}

const MOMENTS: [Moment; 5] =
    [Moment::Phase("copying"), Moment::Phase("switching"), Moment::Phase("arriving"), Moment::Won, Moment::Won];

#[test]
fn long_a_target_that_dies_leaves_the_vm_in_one_place_with_its_memory() {
    let world = World::start(3);
    let (guest, mut boot) = world.boot("n1");
    guest.ask(FILL);
    guest.ask(DIRTY);
    let watch = world.watch(&guest);

    for moment in MOMENTS {
        // Each time from n1 to n2, asking n1, which lives.
        let mut following = world.begin_move("n1", "n2", &[]);
        let reached = match moment {
            Moment::Phase(phase) => following.reaches(phase, SETTLE),
            Moment::Won => {
                assert!(following.reaches("copying", SETTLE));
                let operation = world.last_operation("n1").id;
                world.events_of("n1", &operation).hears("switches over", SETTLE)
            }
        };
        world.kill("n2");
        assert!(reached, "{moment:?} came");

        // Whatever was decided, the guest at the target is gone with its daemon, and nothing of it is left.
        until("the QEMU of the target to die with its daemon", SETTLE, || world.has("n2", 0));
        world.start_again("n2");

        let ended = world.move_ended("n1");
        let vm = world.settled("n1");
        let switched = world.switched_over("n1", &ended.id);
        let after = guest.boot();
        eprintln!("{moment:?}: {:?} {:?}, switched over: {switched}, on {}", ended.result, ended.reason, vm.on());
        if switched && after != boot {
            // It had won and may have acted there: only a fresh boot is left, at its home.
            assert_eq!(vm.on(), vm.home);
            guest.ask(FILL);
            guest.ask(DIRTY);
        } else {
            // It had not won, or gave back what had certainly not acted: the source goes on.
            assert!(ended.is("failed"), "{ended:?}");
            assert!(ended.reason.as_deref().is_some_and(|reason| !reason.is_empty()), "it says why: {ended:?}");
            assert_eq!((vm.on(), after.as_str()), ("n1", boot.as_str()), "the source lived, and so did its guest");
            guest.check_memory();
        }
        boot = after;
        if vm.on() != "n1" {
            world.moves("n2", "n1");
        }
        world.healthy();
    }

    // And a move with nobody killed still works.
    world.moves("n1", "n2");
    assert_eq!(guest.boot(), boot);
    guest.check_memory();
    watch.finish().one_owner();
}
