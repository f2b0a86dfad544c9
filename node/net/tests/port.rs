//! A port between a stand-in for QEMU and a real bridge. Needs root: each test makes a network namespace.
#![allow(missing_docs, dead_code)]

mod world;

use std::{io::Write as _, time::Duration};

use pollux_net::{AnnounceError, FRAME_BYTES_MAX, FrameError, GateError, PortEnd};
use pollux_wire::id::Generation;
use tokio::io::AsyncWriteExt as _;
use world::*;

const G1: Generation = Generation(1);
const G2: Generation = Generation(2);
const G3: Generation = Generation(3);

#[test]
fn frames_leave_only_under_the_committed_generation() {
    in_a_namespace(|| async {
        let world = World::join();
        let mut guest = Guest::start(G2);

        guest.says(1).await; // closed
        until("the first frame was refused", || guest.port.counters().refused_closed == 1).await;
        guest.port.open_gate(G1).await.unwrap();
        guest.says(2).await; // ahead of the commit
        until("the second frame was refused", || guest.port.counters().refused_ahead == 1).await;
        guest.port.open_gate(G2).await.unwrap();
        guest.says(3).await;
        assert_eq!(world.sees_number().await, 3, "no refused frame reached the bridge before this one");
        guest.port.open_gate(G3).await.unwrap();
        guest.says(4).await; // the VM has moved on
        until("the fourth frame was refused", || guest.port.counters().refused_stale == 1).await;

        let counters = guest.port.stop().await;
        assert_eq!((counters.frames_out, counters.bytes_out, counters.refused()), (1, 60, 3));
    });
}

#[test]
fn a_gate_never_reopens_below_what_it_has_seen() {
    in_a_namespace(|| async {
        let guest = Guest::start(G1);
        guest.port.open_gate(G1).await.unwrap();

        guest.port.fence(G2).await;

        assert!(matches!(guest.port.open_gate(G1).await, Err(GateError::Refused(_))));
        guest.port.open_gate(G2).await.unwrap();
    });
}

/// The barrier, against a guest that emits without pause, by the kernel's own count of what entered the bridge.
#[test]
fn after_the_gate_has_closed_nothing_leaves() {
    in_a_namespace(|| async {
        let guest = Guest::start(G1);
        let mut flood = guest.qemu.into_std().unwrap();
        flood.set_nonblocking(false).unwrap();
        let flood = std::thread::spawn(move || {
            let burst: Vec<u8> = (0..50).flat_map(|number| prefixed(&frame(WORLD, GUEST, number, 1000))).collect();
            while flood.write_all(&burst).is_ok() {}
        });

        for round in 0..20 {
            let before = guest.port.counters();
            guest.port.open_gate(G1).await.unwrap();
            until("frames flow", || guest.port.counters().frames_out > before.frames_out + 500).await;

            guest.port.close_gate().await;

            let entered = packets_received(&guest.tap).unwrap();
            let closed = guest.port.counters();
            until("the guest ran into the gate", || guest.port.counters().refused_closed > closed.refused_closed + 500)
                .await;
            assert_eq!(packets_received(&guest.tap).unwrap(), entered, "round {round}: a frame left after the barrier");
            assert_eq!(guest.port.frames_out(), entered, "round {round}: the port's count is the kernel's");
        }

        guest.port.stop().await; // which closes the socket, which ends the flood
        flood.join().unwrap();
    });
}

#[test]
fn draining_judges_everything_qemu_emitted_before_it() {
    in_a_namespace(|| async {
        let mut guest = Guest::start(G1);
        guest.port.open_gate(G1).await.unwrap();
        for number in 0..100 {
            guest.says(number).await;
        }
        guest.qemu.write_all(&prefixed(&frame(WORLD, GUEST, 100, 60))[..10]).await.unwrap();

        let drained = guest.port.drained().await.unwrap();

        assert!(drained.complete);
        assert_eq!(drained.partial_bytes, 10, "the frame that is not whole waits for its rest");
        assert_eq!((guest.port.frames_out(), guest.port.counters().frames_out), (100, 100));
        assert_eq!(packets_received(&guest.tap), Some(100));
    });
}

/// Give-back: the source's QEMU is continued under a new generation. What it emitted before was not the new owner's.
#[test]
fn what_was_emitted_before_a_new_stamp_keeps_the_old_one() {
    in_a_namespace(|| async {
        let world = World::join();
        let mut guest = Guest::start(G1);
        guest.port.open_gate(G3).await.unwrap();

        guest.says(1).await;
        guest.port.runs_under(G3).await.unwrap();
        guest.says(2).await;

        assert_eq!(world.sees_number().await, 2);
        assert_eq!(guest.port.counters().refused_stale, 1);
    });
}

#[test]
fn a_frame_above_the_limit_ends_the_port_and_its_tap() {
    in_a_namespace(|| async {
        let mut guest = Guest::start(G1);
        let bytes = u32::try_from(FRAME_BYTES_MAX).unwrap() + 1;

        guest.qemu.write_u32(bytes).await.unwrap();

        let end = guest.port.ended().await;
        let expected = FrameError::Oversize { bytes: u64::from(bytes) };
        assert!(matches!(end, PortEnd::Protocol(error) if error == expected), "ended otherwise: {end}");
        assert!(!has_interface(&guest.tap));
        assert!(matches!(guest.port.open_gate(G1).await, Err(GateError::Ended(PortEnd::Protocol(_)))));
        guest.port.close_gate().await; // is as closed as can be, and says so at once
    });
}

#[test]
fn a_frame_too_short_for_ethernet_is_counted_and_skipped() {
    in_a_namespace(|| async {
        let world = World::join();
        let mut guest = Guest::start(G1);
        guest.port.open_gate(G1).await.unwrap();

        guest.qemu.write_all(&prefixed(&[1, 2, 3])).await.unwrap();
        guest.qemu.write_all(&prefixed(&[])).await.unwrap();
        guest.says(7).await;

        assert_eq!(world.sees_number().await, 7);
        assert_eq!(guest.port.counters().malformed_out, 2);
    });
}

#[test]
fn an_announcement_teaches_the_bridge_where_the_guest_is() {
    in_a_namespace(|| async {
        let world = World::join();
        let guest = Guest::start(G1);

        assert!(matches!(guest.port.announce(GUEST).await, Err(AnnounceError::Refused(_))));
        assert_eq!(learnt_port(GUEST), None, "a closed gate announces nothing");
        guest.port.open_gate(G1).await.unwrap();
        guest.port.announce(GUEST).await.unwrap();

        assert_eq!(learnt_port(GUEST), Some(guest.tap.clone()));
        for _ in 0..3 {
            let frame = world.sees().await;
            assert_eq!(frame[..14], [&[0xff; 6][..], &GUEST.0, &[0x80, 0x35]].concat());
        }
        assert_eq!(guest.port.counters().announced, 3);
    });
}

#[test]
fn an_announcement_ends_with_the_right_to_make_it() {
    in_a_namespace(|| async {
        let world = World::join();
        let guest = Guest::start(G1);
        guest.port.open_gate(G1).await.unwrap();
        guest.port.announce(GUEST).await.unwrap();

        guest.port.close_gate().await;
        let announced = guest.port.counters().announced;
        assert_eq!(announced, 1, "the second frame is 50 ms away");

        for _ in 0..announced {
            world.sees().await;
        }
        // Twice the schedule of 200 ms: whatever was still to come would have come.
        let late = tokio::time::timeout(Duration::from_millis(400), world.sees()).await;
        assert!(late.is_err(), "a frame left: {late:02x?}");
        assert_eq!(guest.port.counters().announced, announced);
    });
}

#[test]
fn the_worlds_frames_reach_the_guest_while_the_gate_is_open() {
    in_a_namespace(|| async {
        let world = World::join();
        let mut guest = Guest::start(G1);

        world.says(1, 60).await;
        until("the first frame was dropped", || guest.port.counters().dropped_in_closed == 1).await;
        guest.port.open_gate(G1).await.unwrap();
        world.says(2, 1514).await;

        let seen = guest.sees().await;
        assert_eq!((number(&seen), seen.len()), (Some(2), 1514));
    });
}

/// The guest reads nothing for a long while. It loses frames of the world's; it does not lose its own, and the daemon
/// does not grow; and once it reads again, what it gets is whole and in order.
#[test]
fn a_guest_that_does_not_read_loses_only_what_was_sent_to_it() {
    in_a_namespace(|| async {
        let world = World::join();
        let mut guest = Guest::start(G1);
        guest.port.open_gate(G1).await.unwrap();

        let mut said = 0;
        while guest.port.counters().dropped_in_full == 0 {
            world.says(said, 1514).await;
            said += 1;
            tokio::task::yield_now().await;
        }
        guest.says(1).await;
        assert_eq!(world.sees_number().await, 1, "the guest still reaches the world");

        let kept = guest.port.counters().frames_in;
        let mut last = None;
        for _ in 0..kept {
            let seen = guest.sees().await;
            let number = number(&seen).expect("a frame of the test's own");
            assert!(seen.len() == 1514 && last < Some(number), "frame {number} came after {last:?}");
            last = Some(number);
        }
        // And what the TAP held meanwhile.
        world.says(said, 60).await;
        while last < Some(said) {
            let next = number(&guest.sees().await);
            assert!(last < next, "frame {next:?} came after {last:?}");
            last = next;
        }
        assert_eq!(last, Some(said), "the guest is back");
        assert!(guest.port.stop().await.dropped_in_full > 0, "the kernel's count outlives its TAP");
    });
}

/// The largest frame of a card that carries the most, header included.
const LARGE: usize = 9_000 + 14;

#[test]
fn large_frames_pass_whole_both_ways_where_the_card_carries_them() {
    in_a_namespace(|| async {
        ip(&["link", "set", BRIDGE, "mtu", "9000"]);
        let world = World::join_with(9_000);
        let mut guest = Guest::start_with(G1, 9_000);
        guest.port.open_gate(G1).await.unwrap();

        for number in 1..=100 {
            guest.emits(number, LARGE).await;
            let out = world.sees().await;
            assert_eq!((out.len(), self::number(&out)), (LARGE, Some(number)));
            world.says(number, LARGE).await;
            let into = guest.sees().await;
            assert_eq!((into.len(), self::number(&into)), (LARGE, Some(number)));
        }

        let counters = guest.port.stop().await;
        assert_eq!((counters.frames_out, counters.bytes_out), (100, 100 * LARGE as u64));
        assert_eq!((counters.frames_in, counters.bytes_in), (100, 100 * LARGE as u64));
    });
}

/// Negative control: it is the card's MTU that lets them pass.
#[test]
fn a_large_frame_does_not_reach_a_card_of_the_default() {
    in_a_namespace(|| async {
        ip(&["link", "set", BRIDGE, "mtu", "9000"]);
        let world = World::join_with(9_000);
        let mut guest = Guest::start(G1);
        guest.port.open_gate(G1).await.unwrap();

        world.says(1, LARGE).await;
        world.says(2, 60).await;

        assert_eq!(number(&guest.sees().await), Some(2));
    });
}

#[test]
fn a_port_ends_with_its_qemu() {
    in_a_namespace(|| async {
        let guest = Guest::start(G1);

        drop(guest.qemu);

        let end = guest.port.ended().await;
        assert!(matches!(end, PortEnd::QemuClosed), "ended otherwise: {end}");
        assert!(!has_interface(&guest.tap));
    });
}

#[test]
fn a_port_ends_with_its_handle() {
    in_a_namespace(|| async {
        let guest = Guest::start(G1);
        assert!(has_interface(&guest.tap));

        drop(guest.port);
        guest.tasks.close();
        guest.tasks.wait().await;

        assert!(!has_interface(&guest.tap));
    });
}

#[test]
fn a_tap_deleted_by_someone_else_ends_the_port() {
    in_a_namespace(|| async {
        let mut guest = Guest::start(G1);
        guest.port.open_gate(G1).await.unwrap();

        ip(&["link", "delete", &guest.tap]);
        guest.says(1).await;

        let end = guest.port.ended().await;
        assert!(matches!(end, PortEnd::TapGone), "ended otherwise: {end}");
    });
}

#[test]
fn an_interface_that_is_down_loses_frames_and_nothing_else() {
    in_a_namespace(|| async {
        let world = World::join();
        let mut guest = Guest::start(G1);
        guest.port.open_gate(G1).await.unwrap();

        ip(&["link", "set", &guest.tap, "down"]);
        guest.says(1).await;
        until("the frame was lost", || guest.port.counters().lost_out == 1).await;
        ip(&["link", "set", &guest.tap, "up"]);
        guest.says(2).await;

        assert_eq!(world.sees_number().await, 2);
    });
}
