//! The replicas of a volume in use, and the ways to them: which can be reached, which are tried again, what of them is asked of
//! the log.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    task::{Context, Poll},
};

use futures::{
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt as _},
};
use pollux_disk::Piece;
use pollux_mirror::{Event, Grains, Millis, Mirror};
use pollux_wire::id::ReplicaId;
use tokio::sync::oneshot;

use super::{
    Volume,
    start::{Reached, SetChange, Ways},
};
use crate::side::{Ask, Done, Side};

/// A replica that could not be reached, or not be caught up, is tried again after this, in milliseconds, and after twice as long each
/// time until it has everything.
const AGAIN_MS: Millis = 250;
/// But at least so often, in milliseconds.
const AGAIN_MS_MAX: Millis = 5_000;

/// See the module's text.
pub(super) struct Peers {
    ways: Arc<dyn Ways>,
    all: BTreeMap<ReplicaId, Peer>,
    changes: FuturesUnordered<BoxFuture<'static, ()>>,
    /// Nobody is reached for: the guest stands still, and may go on elsewhere.
    pub(super) rests: bool,
}

/// The guest goes on here after all: ways to all that hold everything are opened anew.
pub(super) struct TakingBack {
    opening: BoxFuture<'static, Vec<(ReplicaId, Result<Reached, String>)>>,
    done: oneshot::Sender<()>,
}

#[derive(Default)]
struct Peer {
    side: Option<Box<dyn Side>>,
    opening: Option<BoxFuture<'static, Result<Reached, String>>>,
    /// The boot of its host when it was reached last.
    boot: Option<String>,
    why: Option<String>,
    /// A way was open, and neither broke nor could not be opened again.
    answers: bool,
    copied: u64,
    again_at: Millis,
    pause: Millis,
}

impl Peers {
    pub(super) fn new(ways: Arc<dyn Ways>, replicas: &BTreeSet<ReplicaId>) -> Self {
        let all = replicas.iter().map(|id| (*id, Peer::default())).collect();
        Self { ways, all, changes: FuturesUnordered::new(), rests: false }
    }

    /// A way that was open before the mirror began.
    pub(super) fn attach(&mut self, replica: ReplicaId, side: Box<dyn Side>, boot: String) {
        let peer = self.all.entry(replica).or_default();
        (peer.side, peer.boot, peer.why, peer.answers) = (Some(side), Some(boot), None, true);
    }

    pub(super) fn note(&mut self, replica: ReplicaId, why: &str) {
        self.all.entry(replica).or_default().why = Some(why.to_owned());
    }

    pub(super) fn why(&self, replica: ReplicaId) -> Option<String> {
        self.all.get(&replica)?.why.clone()
    }

    /// This is being copied to a replica.
    pub(super) fn copies(&mut self, replica: ReplicaId, pieces: &[Piece]) {
        let data = |piece: &Piece| match piece {
            Piece::Data(data) => data.len() as u64,
            Piece::Zeroes(_) => 0,
        };
        self.all.entry(replica).or_default().copied += pieces.iter().map(data).sum::<u64>();
    }

    pub(super) fn copied(&self, replica: ReplicaId) -> u64 {
        self.all.get(&replica).map_or(0, |peer| peer.copied)
    }

    /// It answered when it was last asked for anything; one that has failed is let go, and answers all the same.
    pub(super) fn is_reached(&self, replica: ReplicaId) -> bool {
        self.all.get(&replica).is_some_and(|peer| peer.side.is_some() || peer.answers)
    }

    pub(super) fn any_outside(&self, mirror: &Mirror) -> bool {
        self.all.keys().any(|id| !mirror.is_sound(*id))
    }

    /// What is copied now goes over a link.
    pub(super) fn copies_far(&self, mirror: &Mirror) -> bool {
        let far = |peer: &Peer| peer.side.as_ref().is_some_and(|side| side.is_far());
        self.all.iter().any(|(id, peer)| far(peer) && !mirror.is_sound(*id))
    }

    pub(super) fn may_send(&self, bytes: u64) -> BoxFuture<'static, u64> {
        self.ways.may_send(bytes)
    }

    /// The boots of the hosts of those that are sound, as they were reached last: one whose way is broken at this moment has lost
    /// nothing by that.
    pub(super) fn boots(&self, mirror: &Mirror) -> BTreeMap<ReplicaId, String> {
        let sound = self.all.iter().filter(|(id, _)| mirror.is_sound(**id));
        sound.filter_map(|(id, peer)| Some((*id, peer.boot.clone()?))).collect()
    }

    /// What another one knew of the boot of a host that is not reached yet.
    pub(super) fn booted(&mut self, replica: ReplicaId, boot: String) {
        self.all.entry(replica).or_default().boot.get_or_insert(boot);
    }

    pub(super) fn let_go_of_all(&mut self) {
        self.all.values_mut().for_each(|peer| (peer.side, peer.opening) = (None, None));
        self.rests = true;
    }

    pub(super) fn add(&mut self, replica: ReplicaId) {
        self.all.entry(replica).or_default();
    }

    pub(super) fn remove(&mut self, replica: ReplicaId) {
        self.all.remove(&replica);
    }

    /// Ends the session with a replica.
    pub(super) fn let_go(&mut self, replica: ReplicaId, why: &str) {
        if let Some(peer) = self.all.get_mut(&replica) {
            peer.side = None;
            peer.why.get_or_insert_with(|| why.to_owned());
        }
    }

    pub(super) fn ask(&mut self, replica: ReplicaId, ask: Ask) -> Result<(), String> {
        let side = self.all.get_mut(&replica).and_then(|peer| peer.side.as_mut());
        side.ok_or_else(|| "it cannot be reached".to_owned()).map(|side| side.submit(ask))
    }

    pub(super) fn leave(&self, replica: ReplicaId, version: u64, why: String) {
        self.changes.push(self.ways.change(SetChange::Leave { replica, version, why }));
    }

    pub(super) fn join(&self, replica: ReplicaId, version: u64) {
        self.changes.push(self.ways.change(SetChange::Join { replica, version }));
    }

    /// Tries again to reach whoever is not reached and could be of use.
    pub(super) fn tick(&mut self, mirror: &Mirror, now: Millis) {
        if self.rests {
            return;
        }
        for (id, peer) in &mut self.all {
            if peer.side.is_some() && mirror.is_sound(*id) {
                peer.pause = 0;
            }
            let of_use = mirror.is_outside(*id) || mirror.is_sound(*id);
            if of_use && peer.side.is_none() && peer.opening.is_none() && peer.again_at <= now {
                peer.opening = Some(self.ways.open(*id));
            }
        }
    }

    /// What replicas have done, and which ways broke.
    fn poll_done(&mut self, cx: &mut Context<'_>, done: &mut Vec<Done>, lost: &mut Vec<(ReplicaId, String)>) {
        for (id, peer) in &mut self.all {
            let Some(side) = &mut peer.side else { continue };
            if let Poll::Ready(Err(broken)) = side.poll(cx, done) {
                (peer.side, peer.answers) = (None, false);
                peer.why = Some(broken.to_string());
                lost.push((*id, broken.to_string()));
            }
        }
    }

    fn poll_opened(&mut self, cx: &mut Context<'_>, now: Millis) -> Option<(ReplicaId, Reached)> {
        for (id, peer) in &mut self.all {
            let Some(opening) = &mut peer.opening else { continue };
            let Poll::Ready(opened) = opening.as_mut().poll(cx) else { continue };
            peer.opening = None;
            // One that can be reached may still fail at once, as one does whose pool is full.
            peer.pause = (peer.pause * 2).clamp(AGAIN_MS, AGAIN_MS_MAX);
            peer.again_at = now + peer.pause;
            match opened {
                Ok(reached) => return Some((*id, reached)),
                Err(why) => (peer.why, peer.answers) = (Some(why), false),
            }
        }
        None
    }

    /// Whether its host was started anew since it was reached last.
    fn forgot(&mut self, replica: ReplicaId, boot: &str) -> bool {
        let peer = self.all.entry(replica).or_default();
        peer.boot.replace(boot.to_owned()).is_some_and(|before| before != boot)
    }
}

impl Volume {
    pub(super) fn take_done(&mut self, cx: &mut Context<'_>) -> bool {
        let (mut done, mut lost) = (std::mem::take(&mut self.heard), Vec::new());
        self.peers.poll_done(cx, &mut done, &mut lost);
        let moved = !done.is_empty() || !lost.is_empty();
        for done in done.drain(..) {
            self.part_done(done);
        }
        self.heard = done;
        for (replica, why) in lost {
            tracing::warn!(volume = self.name, %replica, why, "the way to a replica is broken");
            self.apply(Event::Lost { replica, why });
        }
        moved
    }

    pub(super) fn take_back(&mut self, done: oneshot::Sender<()>) {
        let sound: Vec<ReplicaId> = self.peers.all.keys().copied().filter(|id| self.mirror.is_sound(*id)).collect();
        let open = |id: ReplicaId| {
            let opening = self.peers.ways.open(id);
            async move { (id, opening.await) }
        };
        let opening = Box::pin(futures::future::join_all(sound.into_iter().map(open)));
        self.peers.let_go_of_all();
        self.taking_back = Some(TakingBack { opening, done });
    }

    pub(super) fn take_back_goes_on(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(taking) = &mut self.taking_back else { return false };
        let Poll::Ready(opened) = taking.opening.as_mut().poll(cx) else { return false };
        let Some(TakingBack { done, .. }) = self.taking_back.take() else { return false };
        self.peers.rests = false;
        let (mut lost, mut forgot) = (Vec::new(), Vec::new());
        for (replica, opened) in opened {
            match opened {
                Ok(Reached { side, boot, .. }) => {
                    if self.peers.forgot(replica, &boot) {
                        forgot.push(replica);
                        lost.push((replica, "its host was started anew".to_owned()));
                    }
                    self.peers.attach(replica, side, boot);
                }
                Err(why) => lost.push((replica, why)),
            }
        }
        self.apply(Event::Unseal);
        // What was decided meanwhile, and who was to go.
        self.released.clear();
        if let Some(set) = self.latest.clone() {
            self.decided(set);
        }
        for (replica, why) in lost {
            self.apply(Event::Lost { replica, why });
        }
        for replica in forgot {
            if self.mirror.is_sound(replica) {
                self.apply(Event::Forgot { replica });
            }
        }
        // Whoever does not wait any more need not know.
        let _ = done.send(());
        true
    }

    /// Ways that have opened, and answers of the log.
    pub(super) fn take_ways(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        // What the log has made of a change is seen in the set.
        while let Poll::Ready(Some(())) = self.peers.changes.poll_next_unpin(cx) {
            moved = true;
        }
        let now = self.now();
        while let Some((replica, Reached { side, report, boot })) = self.peers.poll_opened(cx, now) {
            moved = true;
            let outside = self.mirror.is_outside(replica);
            if !outside && !self.mirror.is_sound(replica) {
                continue;
            }
            let forgot = self.peers.forgot(replica, &boot);
            self.peers.attach(replica, side, boot);
            if forgot {
                self.apply(Event::Forgot { replica });
            }
            if outside && self.mirror.is_outside(replica) {
                // The rest the mirror knows.
                let mut lacks = Grains::from(report.active());
                lacks.clip(self.size);
                tracing::info!(volume = self.name, %replica, lacks = lacks.bytes(), "a replica catches up");
                self.apply(Event::Catch { replica, lacks });
            }
        }
        moved
    }
}
