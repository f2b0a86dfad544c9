//! The end in order: a seal for the mirror that goes on elsewhere (docs/adr/0017), or everything settled for the next start.

use alloc::{string::ToString as _, vec::Vec};

use pollux_wire::id::{Generation, ReplicaId};

use super::{
    Mirror,
    io::FLUSH_AGAIN_MS,
    standing::{Peer, Standing, Step},
};
use crate::{
    event::{Effect, Event},
    request::Failure,
    seal::Seal,
};

impl Mirror {
    /// Says that all members hold the same, if so. From then on nothing is asked of anybody.
    pub(super) fn seal(&mut self, generation: Generation, fx: &mut Vec<Effect>) {
        if let Some(why) = self.why_not_sealed() {
            fx.push(Effect::NotSealed { why });
            return;
        }
        self.stop_comparing();
        self.let_outsiders_go(fx);
        self.forget_all(fx);
        self.review(fx);
        assert!(self.in_flight.is_empty() && self.asked.is_empty(), "a seal is given while something is under way");
        self.finishing = None;
        self.sealed = true;
        let (version, members, active) = (self.version, self.members.clone(), self.heat.extents());
        fx.push(Effect::Sealed(Seal { generation, version, members, active }));
    }

    /// What there is that two members may hold differently, or become so.
    fn why_not_sealed(&self) -> Option<&'static str> {
        if !self.waiting.is_empty() || self.in_flight.values().any(|open| open.answer.is_none()) {
            return Some("requests are open");
        }
        // Who has it and who has not is settled when it has ended everywhere.
        if self.in_flight.values().any(|open| open.answer.as_ref().is_some_and(Result::is_err)) {
            return Some("a request that failed is not over");
        }
        let needed = self.needed();
        if self.in_flight.values().any(|open| open.is_asked_of(&needed)) {
            return Some("a change that was given up may still reach a replica");
        }
        let moves = |peer: &Standing| matches!(peer, Standing::Failing { .. } | Standing::Joining(Step::Proposed));
        let noting = !self.notes.is_empty() || !self.notes_again.is_empty();
        if self.proposed.is_some() || noting || self.peers.values().any(|peer| moves(&peer.standing)) {
            return Some("the set is changing");
        }
        let whole = |id: &ReplicaId| {
            self.peers.get(id).is_some_and(|peer| peer.standing == Standing::Member && peer.lacks.is_empty())
        };
        (!self.members.iter().all(whole)).then_some("a replica of the set lacks something")
    }

    /// Nothing more is written or copied to who is outside of the set. The notes tell whoever goes on what lacks there.
    fn let_outsiders_go(&mut self, fx: &mut Vec<Effect>) {
        let outside = |standing: &Standing| {
            matches!(
                standing,
                Standing::Noting { .. } | Standing::Catching | Standing::Joining(Step::Draining(_) | Step::Flushing(_))
            )
        };
        let going = self.peers.iter().filter(|(_, peer)| outside(&peer.standing)).map(|(id, _)| *id);
        for replica in going.collect::<Vec<_>>() {
            if let Some(peer) = self.peers.get_mut(&replica) {
                peer.standing = Standing::Out;
            }
            fx.push(Effect::Drop { replica });
            self.forget(replica, &Failure::Io("the guest ends here".to_string()), fx);
        }
    }

    /// Whatever else was asked of the members counts as failed here. When it is sealed, that is nothing that changes what they hold.
    fn forget_all(&mut self, fx: &mut Vec<Effect>) {
        let ended = Failure::Io("the guest was to go on elsewhere".to_string());
        let all: Vec<ReplicaId> = self.peers.keys().copied().collect();
        all.into_iter().for_each(|replica| self.forget(replica, &ended, fx));
    }

    /// All sessions are new ones, and what was proposed under an earlier generation may never be decided: it is proposed again,
    /// and the version tells the log whether it was.
    pub(super) fn unseal(&mut self, fx: &mut Vec<Effect>) {
        self.proposed = None;
        self.finishing = None;
        self.stop_comparing();
        self.let_outsiders_go(fx);
        let joining = |(id, peer): (&ReplicaId, &Peer)| matches!(peer.standing, Standing::Joining(_)).then_some(*id);
        for replica in self.peers.iter().filter_map(joining).collect::<Vec<_>>() {
            self.failed(replica, &Failure::Io("its session ended while it was being taken in".to_string()), fx);
        }
        self.forget_all(fx);
    }

    /// The guest is elsewhere, or will be. Only the log is listened to, and whether it comes back.
    pub(super) fn on_while_sealed(&mut self, event: Event, fx: &mut Vec<Effect>) {
        match event {
            Event::Seal { generation } => self.seal(generation, fx),
            Event::Unseal => {
                self.sealed = false;
                self.unseal(fx);
                self.go_on(fx);
            }
            Event::Request(request) => self.request(request, fx),
            Event::Decided { version, members } => self.decided(version, members, fx),
            // Of sessions that have ended, or of another mirror's.
            Event::Done { .. }
            | Event::Digest { .. }
            | Event::Lost { .. }
            | Event::Forgot { .. }
            | Event::Catch { .. } => {}
            Event::Compare { .. } => {}
            Event::Credit(_) | Event::Tick | Event::Finish | Event::Release { .. } => {}
            Event::Added { replica } => self.added(replica),
            Event::Removed { replica } => self.removed(replica, fx),
            Event::Prefer(prefer) => self.prefer = prefer,
        }
    }

    /// Nothing shall be left to copy for who starts the guest next.
    pub(super) fn finish(&mut self, fx: &mut Vec<Effect>) {
        self.stop_comparing();
        self.let_outsiders_go(fx);
        self.finishing = Some(self.now);
    }

    /// Flushes until all has settled, or it takes too long.
    pub(super) fn finish_goes_on(&mut self, fx: &mut Vec<Effect>) {
        let Some(since) = self.finishing else { return };
        let telling = !self.settling.is_empty() || !self.welcomes.is_empty() || !self.welcome_again.is_empty();
        let at_rest = self.why_not_sealed().is_none() && !telling;
        let settled = at_rest && self.heat.len() == 0;
        if settled || self.now.saturating_sub(since) >= self.limits.hold_ms {
            self.finishing = None;
            fx.push(Effect::Finished { settled });
        } else if at_rest && self.flush_may_settle(if self.flush_failed { FLUSH_AGAIN_MS } else { 0 }, 0) {
            self.own_flush(0, fx);
        }
    }
}
