//! What is told at the end: rows for machines, a table for people, and which targets are met.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use pollux_bench::{Row, Spread};

use crate::{
    case::Case,
    figures::{Comparison, Metric},
    mover::System,
};

/// What is aimed at.
struct Target {
    metric: Metric,
    case: Option<Case>,
    peer: Option<System>,
    bound: Bound,
}

#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// The ratios aimed at (DESIGN, section 9).
const TARGETS: [Target; 4] = [
    Target { metric: Metric::Blackout, case: None, peer: None, bound: Bound::AtMost(0.8) },
    rate(Case::Idle, 1.2),
    rate(Case::Dirty50, 1.2),
    rate(Case::Random, 0.9),
];

const fn rate(case: Case, least: f64) -> Target {
    Target { metric: Metric::Rate, case: Some(case), peer: Some(System::MultifdTls), bound: Bound::AtLeast(least) }
}

impl Target {
    fn is_about(&self, comparison: &Comparison) -> bool {
        self.metric == comparison.metric
            && self.case.is_none_or(|case| case == comparison.case)
            && self.peer.is_none_or(|peer| peer == comparison.peer_is)
    }
}

impl Bound {
    fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::AtLeast(least) => ratio >= least,
        }
    }

    fn words(self) -> String {
        match self {
            Self::AtMost(most) => format!("at most {most:.1}"),
            Self::AtLeast(least) => format!("at least {least:.1}"),
        }
    }
}

pub(crate) fn rows(comparisons: &[Comparison]) -> Vec<Row> {
    let row = |it: &Comparison| {
        Row::of(it.case.name(), it.metric.name(), it.pollux.median, it.peer.median, it.peer_is.name())
    };
    comparisons.iter().map(row).collect()
}

/// Medians, and in parentheses the least and the most.
pub(crate) fn table(comparisons: &[Comparison]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(["CASE", "METRIC", "POLLUX", "", "PEER", "", "RATIO", "PEER'S NAME"]);
    for it in comparisons {
        let digits = it.metric.digits();
        let (median, range) = (
            |spread: Spread| format!("{:.digits$}", spread.median),
            |spread: Spread| format!("({:.digits$} - {:.digits$})", spread.least, spread.most),
        );
        table.add_row([
            it.case.name().to_owned(),
            it.metric.name().to_owned(),
            median(it.pollux),
            range(it.pollux),
            median(it.peer),
            range(it.peer),
            format!("{:.2}", it.ratio()),
            it.peer_is.name().to_owned(),
        ]);
    }
    for column in [2, 4, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A line for each target, as far as it was measured.
pub(crate) fn verdicts(comparisons: &[Comparison]) -> Vec<String> {
    let judge = |target: &Target, it: &Comparison| {
        let (ratio, digits) = (it.ratio(), it.metric.digits());
        format!(
            "{}  {:7} {} {:.digits$}, {:.2} x the {:.digits$} of {}; {} is aimed at",
            if target.bound.holds(ratio) { "met   " } else { "MISSED" },
            it.case.name(),
            it.metric.name(),
            it.pollux.median,
            ratio,
            it.peer.median,
            it.peer_is.name(),
            target.bound.words(),
        )
    };
    let of =
        |target| comparisons.iter().filter(move |it| Target::is_about(target, it)).map(move |it| judge(target, it));
    TARGETS.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(case: Case, metric: Metric, pollux: f64, peer: f64, peer_is: System) -> Comparison {
        let spread = |median: f64| Spread { median, least: median / 2.0, most: median * 2.0 };
        Comparison { case, metric, pollux: spread(pollux), peer: spread(peer), peer_is }
    }

    fn comparisons() -> Vec<Comparison> {
        vec![
            comparison(Case::Idle, Metric::Rate, 1300.0, 1000.0, System::MultifdTls),
            comparison(Case::Idle, Metric::Blackout, 80.0, 100.0, System::PrecopyTcp),
            comparison(Case::Random, Metric::Rate, 444.44, 500.0, System::MultifdTls),
            comparison(Case::Random, Metric::Rate, 1.0, 500.0, System::PrecopyTcp),
        ]
    }

    #[test]
    fn a_row_is_about_the_medians() {
        let expected = Row::of("idle", "blackout_ms", 80.0, 100.0, "qemu-precopy-tcp");
        assert_eq!(rows(&comparisons()[1..2]), [expected]);
    }

    #[test]
    fn the_table_lines_up() {
        let text = table(&comparisons());
        let places: Vec<_> = text.lines().map(|line| line.rfind("qemu-").or_else(|| line.rfind("PEER'S"))).collect();
        assert_eq!(text.lines().count(), 5);
        assert!(places.iter().all(|place| *place == places[0]), "{text}");
    }

    #[test]
    fn a_target_is_met_at_its_bound_and_missed_beyond_it() {
        let verdicts = verdicts(&comparisons());
        assert_eq!(verdicts.len(), 3, "of TCP no rate is asked: {verdicts:?}");
        let met = |what: &str| verdicts.iter().find(|verdict| verdict.contains(what)).unwrap().starts_with("met");
        assert!(met("idle    blackout_ms") && met("idle    guest_mb_s"));
        assert!(!met("random  guest_mb_s"));
    }
}
