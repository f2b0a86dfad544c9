//! The one line of JSON in which a chapter of the demo ends, made from the instruments' reports.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{blackout::BlackoutReport, instrument::TOTAL, ledger::LedgerReport, owners::OwnersReport};

/// Every figure of the chapter `migrate`, all measured from outside the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrateSummary {
    /// Always `migrate`.
    pub chapter: String,
    /// How many moves there were.
    pub migrations: usize,
    /// The longest gap between answers to probes, over the moves.
    pub blackout_ms: Spread,
    /// TCP connections of the client that did not live.
    pub tcp_resets: u64,
    /// Acknowledged requests that the guest forgot.
    pub lost_acks: u64,
    /// Nodes that emitted the guest's frames at the same time, at most.
    pub owners_max: usize,
}

/// How figures are spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let max = *figures.last()?;
        let (low, high) = (figures[(figures.len() - 1) / 2], figures[figures.len() / 2]);
        Some(Self { median: (f64::midpoint(low, high) * 1e3).round() / 1e3, max })
    }
}

impl MigrateSummary {
    /// Makes the summary of the reports; a window whose name begins with `prefix` is a move.
    pub fn of(
        blackout: &[BlackoutReport],
        ledger: &[LedgerReport],
        owners: &[OwnersReport],
        prefix: &str,
    ) -> Result<Self> {
        let ledger = ledger.iter().find(|report| report.window == TOTAL).context("the ledger tells no total")?;
        let owners =
            owners.iter().find(|report| report.window == TOTAL).context("the owners' report tells no total")?;
        ensure!(ledger.acked > 0, "the ledger is empty: no request was acknowledged, so that none could be lost");
        ensure!(ledger.unverified == 0, "{} acknowledged values could not be read back", ledger.unverified);
        let moves = blackout.iter().filter(|report| report.window.starts_with(prefix));
        let gaps: Vec<f64> = moves.map(|report| report.longest_gap_ms).collect();
        Ok(Self {
            chapter: "migrate".to_owned(),
            migrations: gaps.len(),
            blackout_ms: Spread::of(gaps).with_context(|| format!("no window is named {prefix}..."))?,
            tcp_resets: ledger.tcp_resets,
            lost_acks: ledger.lost_acks,
            owners_max: owners.owners_max,
        })
    }
}

/// Reads reports, one JSON object a line.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let reports = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
    reports.with_context(|| format!("{} holds a line that is no such report", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports() -> (Vec<BlackoutReport>, Vec<LedgerReport>, Vec<OwnersReport>) {
        let gap = |window: &str, longest_gap_ms| BlackoutReport {
            window: window.to_owned(),
            longest_gap_ms,
            ..BlackoutReport::default()
        };
        let blackout = vec![gap("before", 900.0), gap("move-1", 20.0), gap("move-2", 31.5), gap(TOTAL, 900.0)];
        let ledger = LedgerReport { window: TOTAL.to_owned(), acked: 7, ..LedgerReport::default() };
        let owners = OwnersReport { window: TOTAL.to_owned(), owners_max: 1, ..OwnersReport::default() };
        (blackout, vec![ledger], vec![owners])
    }

    #[test]
    fn the_line_is_the_one_that_was_asked_for() {
        let (blackout, ledger, owners) = reports();
        let summary = MigrateSummary::of(&blackout, &ledger, &owners, "move-").unwrap();
        assert_eq!(
            serde_json::to_string(&summary).unwrap(),
            r#"{"chapter":"migrate","migrations":2,"blackout_ms":{"median":25.75,"max":31.5},"tcp_resets":0,"lost_acks":0,"owners_max":1}"#
        );
    }

    #[test]
    fn nothing_measured_is_no_summary() {
        let (blackout, ledger, owners) = reports();
        assert!(MigrateSummary::of(&blackout, &[], &owners, "move-").is_err());
        assert!(MigrateSummary::of(&blackout, &ledger, &[], "move-").is_err());
        assert!(MigrateSummary::of(&blackout, &ledger, &owners, "other-").is_err());
        let idle = [LedgerReport { acked: 0, ..ledger[0].clone() }];
        assert!(MigrateSummary::of(&blackout, &idle, &owners, "move-").is_err());
        let unread = [LedgerReport { unverified: 3, ..ledger[0].clone() }];
        assert!(MigrateSummary::of(&blackout, &unread, &owners, "move-").is_err());
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 9.0]), Some(Spread { median: 3.0, max: 9.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0, 9.0, 2.0]), Some(Spread { median: 3.0, max: 9.0 }));
        assert_eq!(Spread::of(vec![]), None);
    }
}
