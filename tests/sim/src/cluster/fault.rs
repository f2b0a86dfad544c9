//! What goes wrong: crashes and starts of nodes, and links that break, hold or crawl. Each fault ends after a while; several
//! can be under way at once, one per node and one per pair of nodes.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use turmoil::Sim;

use super::{Control, node::Place, recorder::Recorder};
use crate::Rng;

/// Time between the beginnings of two faults, in milliseconds.
const EVERY_MS: (u64, u64) = (200, 4_000);
/// How long a fault lasts, in milliseconds.
const LAST_MS: (u64, u64) = (100, 5_000);
/// The slowest way of a datagram over a link that crawls, in milliseconds.
const CRAWL_MS: u64 = 150;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Crash(usize),
    Cut(usize, usize),
    CutOneWay(usize, usize),
    Hold(usize, usize),
    Crawl(usize, usize),
}

impl Kind {
    /// Whether both concern the same node or the same pair: then they may not overlap.
    fn clashes(self, other: Self) -> bool {
        match (self.pair(), other.pair()) {
            (Some((a, b)), Some((c, d))) => (a, b) == (c, d) || (a, b) == (d, c),
            (None, None) => self == other,
            _ => false,
        }
    }

    fn pair(self) -> Option<(usize, usize)> {
        match self {
            Self::Crash(_) => None,
            Self::Cut(a, b) | Self::CutOneWay(a, b) | Self::Hold(a, b) | Self::Crawl(a, b) => Some((a, b)),
        }
    }
}

pub(super) struct Faults {
    dice: Rng,
    next: Duration,
    /// Ordinary longest way of a datagram.
    latency: Duration,
    under_way: Vec<(Kind, Duration)>,
    recorder: Arc<Recorder>,
    pub(super) begun: u64,
    pub(super) crashes: u64,
}

impl Faults {
    pub(super) fn new(dice: Rng, latency: Duration, recorder: Arc<Recorder>) -> Self {
        Self { dice, next: Duration::ZERO, latency, under_way: Vec::new(), recorder, begun: 0, crashes: 0 }
    }

    /// Ends what has lasted, begins what is due.
    pub(super) fn act(&mut self, now: Duration, sim: &mut Sim<'_>, places: &[Arc<Place>]) {
        let (over, going): (Vec<_>, Vec<_>) = self.under_way.iter().partition(|(_, until)| *until <= now);
        self.under_way = going;
        over.into_iter().for_each(|(kind, _)| self.end(kind, sim, places));
        if now < self.next {
            return;
        }
        self.next = now + Duration::from_millis(self.dice.between(EVERY_MS.0, EVERY_MS.1));
        let kind = self.some(places.len());
        if self.under_way.iter().any(|(other, _)| kind.clashes(*other)) {
            return;
        }
        let until = now + Duration::from_millis(self.dice.between(LAST_MS.0, LAST_MS.1));
        self.under_way.push((kind, until));
        self.begin(kind, sim, places);
    }

    /// Ends everything.
    pub(super) fn stop(&mut self, sim: &mut Sim<'_>, places: &[Arc<Place>]) {
        for (kind, _) in std::mem::take(&mut self.under_way) {
            self.end(kind, sim, places);
        }
        sim.set_fail_rate(0.0);
        for (number, place) in places.iter().enumerate() {
            for other in &places[number + 1..] {
                // Links that turmoil broke by chance, too.
                sim.repair(place.name.as_str(), other.name.as_str());
            }
        }
    }

    fn some(&mut self, nodes: usize) -> Kind {
        let a = self.dice.index(nodes);
        let b = (a + 1 + self.dice.index(nodes - 1)) % nodes;
        match self.dice.below(100) {
            0..35 => Kind::Crash(a),
            35..55 => Kind::Cut(a, b),
            55..75 => Kind::CutOneWay(a, b),
            75..90 => Kind::Hold(a, b),
            _ => Kind::Crawl(a, b),
        }
    }

    fn begin(&mut self, kind: Kind, sim: &mut Sim<'_>, places: &[Arc<Place>]) {
        self.begun += 1;
        let name = |node: usize| places[node].name.as_str();
        match kind {
            Kind::Crash(node) => self.crash(sim, &places[node]),
            Kind::Cut(a, b) => sim.partition(name(a), name(b)),
            Kind::CutOneWay(a, b) => sim.partition_oneway(name(a), name(b)),
            Kind::Hold(a, b) => sim.hold(name(a), name(b)),
            Kind::Crawl(a, b) => {
                sim.set_link_max_message_latency(name(a), name(b), Duration::from_millis(CRAWL_MS));
            }
        }
        self.recorder.note(format!("fault: {kind:?}"));
    }

    fn end(&mut self, kind: Kind, sim: &mut Sim<'_>, places: &[Arc<Place>]) {
        let name = |node: usize| places[node].name.as_str();
        match kind {
            Kind::Crash(node) => sim.bounce(name(node)),
            Kind::Cut(a, b) => sim.repair(name(a), name(b)),
            Kind::CutOneWay(a, b) => sim.repair_oneway(name(a), name(b)),
            Kind::Hold(a, b) => sim.release(name(a), name(b)),
            Kind::Crawl(a, b) => sim.set_link_max_message_latency(name(a), name(b), self.latency),
        }
        self.recorder.note(format!("over: {kind:?}"));
    }

    /// The daemon's process dies, or the power of its whole host goes.
    fn crash(&mut self, sim: &mut Sim<'_>, place: &Place) {
        self.crashes += 1;
        // Before the daemon goes, so that nothing of it can still write.
        match self.dice.below(3) {
            0 => place.disk().power_loss_keeping(|_| true),
            host => {
                place.boots.fetch_add(1, Ordering::Relaxed);
                let dice = &mut self.dice;
                if host == 1 {
                    place.disk().power_loss()
                } else {
                    place.disk().power_loss_keeping(|_| dice.chance(500))
                }
            }
        }
        if self.recorder.control == Some(Control::ForgetfulDisk) {
            place.new_disk();
        }
        place.forget();
        sim.crash(place.name.as_str());
    }
}
