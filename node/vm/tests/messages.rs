//! The messages of a move, byte for byte: both ends may be of different versions. A change here is a change of the
//! protocol (`pollux_wire::VERSION`).

use pollux_state::{
    id::{Generation, Incarnation, NodeId, OpId, Owner, VmId},
    operation::{MoveReport, PauseParts},
};
use pollux_vm::message::{Greeting, ProbeGreeting, StreamGreeting, ToSource, ToTarget};
use pollux_wire::{codec, limits::Limit};
use serde::{Serialize, de::DeserializeOwned};

const OP: OpId = OpId([9; 16]);

/// `value` is written as `golden` (hexadecimal), and read back from it.
fn is_written_as<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T, golden: &str) {
    let bytes = codec::encode(value, Limit::Control).expect("it is small");
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, golden, "{value:?}");
    assert_eq!(&codec::decode::<T>(&bytes, Limit::Control).expect("its own bytes"), value);
}

#[test]
fn the_greetings_are_what_they_were() {
    let from = Owner { node: NodeId(2), incarnation: Incarnation(5) };
    let greeting =
        Greeting { vm: VmId(7), op: OP, generation: Generation(4), from, index: 300, pages: 131_072, streams: 4 };
    is_written_as(
        &greeting,
        "0700000000000000090909090909090909090909090909090400000000000000020000000000000005000000000000002c0100000000000000000200000000000400",
    );
    is_written_as(
        &StreamGreeting { vm: VmId(7), op: OP, index: 300, stream: 3 },
        "0700000000000000090909090909090909090909090909092c010000000000000300",
    );
    is_written_as(&ProbeGreeting { pages: 131_072 }, "0000020000000000");
}

#[test]
fn what_a_source_says_is_what_it_was() {
    let parts = PauseParts { stop_us: 1, pages_us: 2, save_us: 3, commit_us: 4, load_us: 5, resume_us: 6 };
    let report = MoveReport {
        rounds: 2,
        wire_bytes: 1 << 20,
        pages: 300,
        zero_pages: 20,
        pause_ms: 31,
        total_ms: 1_000,
        parts,
        throttle_percent: 20,
        silence_ms: None,
    };
    let complete = ToTarget::Complete { frames: 6, state_bytes: 300_000, packed_bytes: 9_000, report };
    is_written_as(
        &complete,
        "000000000600000000000000e09304000000000028230000000000000200000000001000000000002c0100000000000014000000000000001f000000e8030000000000000100000002000000030000000400000005000000060000001400",
    );
    is_written_as(&ToTarget::Abandon { reason: "no".into() }, "0100000002000000000000006e6f");
    is_written_as(&ToTarget::RoundEnd { frames: 5 }, "020000000500000000000000");
    is_written_as(
        &ToTarget::Console { start: 65_536, bytes: b"ok\n".to_vec() },
        "03000000000001000000000003000000000000006f6b0a",
    );
}

#[test]
fn what_a_target_says_is_what_it_was() {
    is_written_as(&ToSource::Ready, "00000000");
    is_written_as(&ToSource::Refused { reason: "no".into() }, "0100000002000000000000006e6f");
    is_written_as(&ToSource::Landed { frames: 5 }, "020000000500000000000000");
}
