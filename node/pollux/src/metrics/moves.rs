//! Moves away from this node, counted from what the log says of them: each once, whatever the daemon does meanwhile.

use std::{collections::BTreeMap, time::Duration};

use pollux_state::{
    ClusterState,
    id::{NodeId, OpId},
    operation::{MoveReport, OperationKind, OperationResult},
};

use super::{MOVE_BLACKOUT, MOVE_BYTES, MOVE_PAUSE, MOVE_ROUNDS, MOVE_TIME, MOVES_ENDED, MOVES_STARTED};

const RESULTS: [&str; 3] = ["succeeded", "failed", "cancelled"];

pub(super) fn begin() {
    ::metrics::counter!(MOVES_STARTED).absolute(0);
    ::metrics::counter!(MOVE_BYTES).absolute(0);
    RESULTS.iter().for_each(|result| ::metrics::counter!(MOVES_ENDED, "result" => *result).absolute(0));
    for histogram in [MOVE_PAUSE, MOVE_BLACKOUT, MOVE_TIME, MOVE_ROUNDS] {
        drop(::metrics::histogram!(histogram));
    }
}

/// The moves that are known, and what of each; `None` before the first look.
#[derive(Debug, Default)]
pub(crate) struct Known(Option<BTreeMap<OpId, Told>>);

/// What is known of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    ended: bool,
    /// How long the guest was silent; known only when it has sent something again, after the move has ended.
    silence_ms: Option<u32>,
}

impl Told {
    fn of(ended: Option<&OperationResult>) -> Self {
        let silence_ms = match ended {
            Some(OperationResult::Succeeded(report)) => report.silence_ms,
            Some(
                OperationResult::Failed { .. }
                | OperationResult::Cancelled
                | OperationResult::VolumeMoved(_)
                | OperationResult::Relocated,
            )
            | None => None,
        };
        Self { ended: ended.is_some(), silence_ms }
    }
}

/// A move, and how it ended if it has.
type Seen<'a> = (OpId, Option<&'a OperationResult>);

/// The moves from `node` that the cluster remembers.
pub(crate) fn from(state: &ClusterState, node: NodeId) -> impl Iterator<Item = Seen<'_>> {
    state.operations.values().filter_map(move |operation| {
        let OperationKind::Migrate { from, .. } = operation.kind else { return None };
        (from == node).then(|| (operation.id, operation.ended.as_ref().map(|(_, result)| result)))
    })
}

/// Counts what is new. What there was at the first look an earlier life has counted, or nobody.
pub(crate) fn count<'a>(known: &mut Known, moves: impl Iterator<Item = Seen<'a>>) {
    let Some(before) = known.0.take() else {
        known.0 = Some(moves.map(|(id, ended)| (id, Told::of(ended))).collect());
        return;
    };
    let now = moves.map(|(id, ended)| {
        let (seen, told) = (before.get(&id), Told::of(ended));
        if seen.is_none() {
            ::metrics::counter!(MOVES_STARTED).increment(1);
        }
        if let Some(result) = ended.filter(|_| seen.is_none_or(|seen| !seen.ended)) {
            ended_with(result);
        }
        if let Some(silence_ms) = told.silence_ms.filter(|_| seen.is_none_or(|seen| seen.silence_ms.is_none())) {
            ::metrics::histogram!(MOVE_BLACKOUT).record(Duration::from_millis(silence_ms.into()).as_secs_f64());
        }
        (id, told)
    });
    known.0 = Some(now.collect());
}

fn ended_with(result: &OperationResult) {
    let word = match result {
        OperationResult::Succeeded(report) => {
            cost(report);
            RESULTS[0]
        }
        OperationResult::VolumeMoved(_) | OperationResult::Relocated => RESULTS[0],
        OperationResult::Failed { .. } => RESULTS[1],
        OperationResult::Cancelled => RESULTS[2],
    };
    ::metrics::counter!(MOVES_ENDED, "result" => word).increment(1);
}

fn cost(report: &MoveReport) {
    ::metrics::histogram!(MOVE_PAUSE).record(Duration::from_millis(report.pause_ms.into()).as_secs_f64());
    ::metrics::histogram!(MOVE_TIME).record(Duration::from_millis(report.total_ms).as_secs_f64());
    ::metrics::histogram!(MOVE_ROUNDS).record(f64::from(report.rounds));
    ::metrics::counter!(MOVE_BYTES).increment(report.wire_bytes);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn id(number: u8) -> OpId {
        OpId([number; 16])
    }

    fn succeeded(silence_ms: Option<u32>) -> OperationResult {
        let report = MoveReport {
            silence_ms,
            rounds: 3,
            wire_bytes: 1 << 20,
            pause_ms: 41,
            total_ms: 2100,
            ..MoveReport::default()
        };
        OperationResult::Succeeded(report)
    }

    #[test]
    fn each_move_is_counted_once_and_none_of_an_earlier_life() {
        let recorder = super::super::recorder().unwrap();
        let text = ::metrics::with_local_recorder(&recorder, || {
            begin();
            let (good, bad) = (succeeded(None), OperationResult::Failed { reason: "no".into() });
            let mut known = Known::default();
            // At the first look one has ended and one is under way.
            count(&mut known, [(id(1), Some(&good)), (id(2), None)].into_iter());
            // It ends, another begins, and one came and went between two looks.
            let all = [(id(1), Some(&good)), (id(2), Some(&bad)), (id(3), None), (id(4), Some(&good))];
            count(&mut known, all.into_iter());
            count(&mut known, all.into_iter());
            // The guest of the last is heard again only after its move has ended.
            let heard = succeeded(Some(44));
            let all = [all[0], all[1], all[2], (id(4), Some(&heard))];
            count(&mut known, all.into_iter());
            count(&mut known, all.into_iter());
            // Forgotten ones are not missed.
            count(&mut known, all[2..].iter().copied());
            recorder.handle().render()
        });
        for line in [
            "pollux_moves_started_total 2",
            "pollux_moves_ended_total{result=\"succeeded\"} 1",
            "pollux_moves_ended_total{result=\"failed\"} 1",
            "pollux_moves_ended_total{result=\"cancelled\"} 0",
            "pollux_move_pause_seconds_bucket{le=\"0.05\"} 1",
            "pollux_move_pause_seconds_bucket{le=\"0.02\"} 0",
            "pollux_move_rounds_sum 3",
            "pollux_move_blackout_seconds_count 1",
            "pollux_move_blackout_seconds_bucket{le=\"0.05\"} 1",
            "pollux_move_blackout_seconds_bucket{le=\"0.02\"} 0",
            "pollux_move_sent_bytes_total 1048576",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
    }
}
