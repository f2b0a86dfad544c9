//! What every benchmark prints for machines.

use std::borrow::Cow;

use serde::Serialize;

/// One row of `--json`; every bench of the project prints this shape.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was done.
    pub case: Cow<'static, str>,
    /// What was measured of it, with its unit.
    pub metric: &'static str,
    /// The median with Pollux.
    pub pollux: f64,
    /// The median with the peer.
    pub peer: f64,
    /// Which.
    pub peer_name: &'static str,
    /// `pollux / peer`.
    pub ratio: f64,
}

impl Row {
    /// Of two medians.
    #[must_use]
    pub fn of(
        case: impl Into<Cow<'static, str>>,
        metric: &'static str,
        pollux: f64,
        peer: f64,
        peer_name: &'static str,
    ) -> Self {
        let ratio = rounded(pollux / peer);
        Self { case: case.into(), metric, pollux: rounded(pollux), peer: rounded(peer), peer_name, ratio }
    }
}

/// Three digits after the point: what is beyond is noise.
fn rounded(figure: f64) -> f64 {
    (figure * 1e3).round() / 1e3
}

/// Several figures of one kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// `None` of none.
    #[must_use]
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let (least, most) = (*figures.first()?, *figures.last()?);
        let (low, high) = (figures[(figures.len() - 1) / 2], figures[figures.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), least, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_shape_that_every_bench_prints() {
        assert_eq!(
            serde_json::to_string(&Row::of("idle", "blackout_ms", 80.0, 300.0, "qemu-precopy-tcp")).unwrap(),
            r#"{"case":"idle","metric":"blackout_ms","pollux":80.0,"peer":300.0,"peer_name":"qemu-precopy-tcp","ratio":0.267}"#
        );
    }

    #[test]
    fn the_median_is_the_middle_and_the_spread_is_what_there_was() {
        assert_eq!(Spread::of([3.0, 1.0, 9.0]), Some(Spread { median: 3.0, least: 1.0, most: 9.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 9.0, 2.0]), Some(Spread { median: 3.0, least: 1.0, most: 9.0 }));
        assert_eq!(Spread::of([]), None);
    }
}
