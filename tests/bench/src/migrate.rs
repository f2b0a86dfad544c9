//! `migrate`: the same guests, moved by each system in turn.
//!
//! In turn means A B C A B C, so that whatever else the machine does hits all alike. Every move has a guest and a target of its
//! own, booted for it: nobody profits from what the one before has warmed up.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use pollux_probe::blackout::BlackoutReport;
use tokio::runtime::Handle;

use crate::{
    case::Case,
    figures::{Comparison, Metric, Moved, compare},
    mover::System,
    outside::Outside,
    stage::{GroundHandle, Stage},
    wire::Wire,
};

/// The client watches this long before a move, and again after it.
const BESIDE: Duration = Duration::from_secs(1);

/// Measures all cases; the lab is left for its owner to take down.
pub(crate) fn run(
    ground: &GroundHandle,
    runtime: &Handle,
    cases: &[Case],
    systems: &[System],
    runs: u32,
) -> Result<Vec<Comparison>> {
    eprintln!("bench: bringing up three nodes");
    let stage = Stage::set_up(ground)?;
    let mut progress = Progress::new(cases.len() * systems.len() * runs as usize);
    let mut comparisons = Vec::new();
    for case in cases {
        let mut moves = Vec::new();
        for run in 1..=runs {
            for system in systems {
                let what = format!("{:7} {run}/{runs} {:16}", case.name(), system.name());
                let moved = measure(&stage, runtime, *case, *system).with_context(|| format!("{what} failed"))?;
                progress.tell(&what, &moved, *case);
                moves.push((*system, moved));
            }
        }
        comparisons.extend(compare(*case, &moves));
    }
    Ok(comparisons)
}

/// One guest: booted, moved, checked, ended.
fn measure(stage: &Stage, runtime: &Handle, case: Case, system: System) -> Result<Moved> {
    let mut mover = system.start(stage, runtime, case)?;
    let boot = stage.booted()?.boot;
    case.prepare(|patience| stage.talk(patience))?;

    let mut outside = Outside::start(stage)?;
    thread::sleep(BESIDE);
    let quiet = outside.mark("before")?;
    ensure!(quiet.answered > 0, "the guest answers no datagrams: {quiet:?}");

    let wire = Wire::watch(&stage.source);
    let begun = Instant::now();
    let pause_ms = mover.migrate()?;
    let total = begun.elapsed();
    let traffic = wire.end()?;
    thread::sleep(BESIDE);
    let seen = outside.mark("move")?;
    drop(outside);

    credible(&seen, &boot)?;
    case.check(|patience| stage.talk(patience)).context("after the move")?;
    mover.end()?;
    Ok(Moved { total, wire_bytes: traffic.bytes, wire_busy: traffic.busy, blackout_ms: seen.longest_gap_ms, pause_ms })
}

/// It was one guest, it came through, and the gap was its own.
fn credible(seen: &BlackoutReport, boot: &str) -> Result<()> {
    ensure!(seen.boot_ids.iter().eq([boot]), "the guest that answered is another one: {seen:?}");
    ensure!(seen.duplicates == 0 && seen.counter_regressions == 0, "the guest was there twice: {seen:?}");
    ensure!(
        seen.longest_send_gap_ms * 2.0 < seen.longest_gap_ms,
        "the client stood still itself, for {} ms: too much else runs on this machine",
        seen.longest_send_gap_ms
    );
    Ok(())
}

/// How far it is, on standard error.
struct Progress {
    since: Instant,
    done: usize,
    all: usize,
}

impl Progress {
    fn new(all: usize) -> Self {
        Self { since: Instant::now(), done: 0, all }
    }

    fn tell(&mut self, what: &str, moved: &Moved, case: Case) {
        self.done += 1;
        let figures: Vec<String> = Metric::ALL
            .iter()
            .map(|metric| format!("{} {:.*}", metric.name(), metric.digits(), moved.figure(*metric, case)))
            .collect();
        let left = self.since.elapsed().as_secs_f64() / self.done as f64 * (self.all - self.done) as f64;
        let left =
            if self.done == self.all { String::new() } else { format!("; about {:.0} min left", (left / 60.0).ceil()) };
        eprintln!("bench: {what}  {} [{} of {}{left}]", figures.join("  "), self.done, self.all);
    }
}
