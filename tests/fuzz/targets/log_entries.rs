//! What is in the log and in snapshots, as another node or the disk gives it: read, applied, and the state stays whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pollux_state::{ClusterState, Proposal, invariant};
use pollux_wire::{
    codec::{decode, encode},
    limits::Limit,
};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    if kind % 4 == 0 {
        let _ = decode::<ClusterState>(bytes, Limit::State);
        return;
    }
    // Several entries, each after its length, applied in order.
    let (mut state, mut rest, mut index) = (ClusterState::default(), bytes, 0);
    while let Some((length, after)) = rest.split_first() {
        let entry = &after[..usize::from(*length).min(after.len())];
        rest = &after[entry.len()..];
        if let Ok(proposal) = decode::<Proposal>(entry, Limit::Consensus) {
            assert_eq!(encode(&proposal, Limit::Consensus).expect("it was as long before"), entry);
            index += 1;
            let before = state.clone();
            let applied = state.apply(index, &proposal);
            invariant::check(&before, &state, &proposal, &applied.outcome).expect("the step is allowed");
            state.check().expect("the state is sound");
        }
    }
});
