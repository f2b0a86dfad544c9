//! A target that has too little memory: known beforehand where the host knows it, and otherwise a failed move that the guest
//! does not notice.

use pollux_system_tests::{World, census::MemoryLimit, cli::exit, waiting::SETTLE};

#[test]
fn a_target_whose_memory_gives_out_in_the_middle_leaves_the_vm_where_it_was() {
    let world = World::start(3);
    let (guest, boot) = world.boot("n1");
    guest.ask("FILL 96 random");
    let watch = world.watch(&guest);
    // The host has plenty, as far as preflight can see; its daemon and QEMU may not use it.
    let limit = MemoryLimit::of(&world.daemon("n2"), 64 << 20).expect("a control group for memory");
    let answer = world.begin_move("n1", "n2", &[]).ends(SETTLE * 2).code(exit::FAILED);
    let reason = answer.complaint().error;
    assert!(reason.contains("target") || reason.contains("connection"), "it says where it failed: {reason}");
    drop(limit);

    if !world.runs("n2") {
        world.start_again("n2");
    }
    world.healthy();
    assert_eq!(world.settled("n1").on(), "n1");
    guest.check_memory();
    watch.finish().nothing_lost(&boot);
    world.moves("n1", "n2");
    assert_eq!(guest.boot(), boot);
}
