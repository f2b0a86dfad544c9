//! The guest moves: its mirror is sealed, if it can be, and another one goes on elsewhere; or the guest comes back. Or it ends in order.

use std::collections::BTreeSet;

use pollux_mirror::{Event, Extents, Seal, Unfit, take_over};
use pollux_wire::id::{Generation, ReplicaId};

use super::{
    Control, Time, UNIT_BYTES,
    host::Host,
    world::{Happening, World, replica, store_of},
};

/// So long a seal is waited for; then the guest moves without one.
const SEAL_MS: Time = 60;

/// Between two hosts.
pub(super) struct Moving {
    /// Whose mirror is kept until it is certain that the guest does not come back.
    source: Host,
    /// What the other one gets.
    seal: Option<Seal>,
    /// The other one cannot go on with it, and gives it back.
    back: bool,
}

impl World {
    /// A guest that is paused has asked for everything it asks for.
    pub(super) fn pause(&mut self, stop: bool) {
        let Some(host) = self.host.as_mut().filter(|host| !host.paused) else { return };
        host.paused = true;
        let (host, until) = (host.life, self.now + SEAL_MS);
        self.trace.line(self.now, format_args!("the guest is paused, to stop: {stop}"));
        self.put(1, if stop { Happening::Stop(host) } else { Happening::Seal { host, until } });
    }

    /// The guest stands still, to end or to go on elsewhere.
    pub(super) fn is_leaving(&self) -> bool {
        self.host.as_ref().is_some_and(|host| host.paused)
    }

    pub(super) fn is_served(&self) -> bool {
        self.guest.open.values().all(|open| open.parked)
    }

    /// When it has its answers, its mirror is to say that all is equal.
    pub(super) fn seal(&mut self, life: u64, until: Time) {
        if !self.is_host(life) {
            return;
        }
        if !self.is_served() {
            if self.settings.control == Some(Control::SealOpen) {
                let seal = self.made_up_seal();
                return self.hand_over(Some(seal), false);
            }
            return self.put(3, Happening::Seal { host: life, until });
        }
        let generation = Generation(self.log.generation);
        self.apply(Event::Seal { generation });
        match self.host.as_mut().and_then(|host| host.seal.take()) {
            Some(seal) => {
                self.check_seal(&seal);
                self.sealed += 1;
                // It gets lost on its way now and then.
                let told = (!self.rng.chance(200)).then_some(seal);
                self.hand_over(told, true);
            }
            None if self.now < until => self.put(3, Happening::Seal { host: life, until }),
            None => self.hand_over(None, false),
        }
    }

    fn made_up_seal(&self) -> Seal {
        let mut active = Extents::default();
        self.log.members.iter().for_each(|id| active.union(self.stores[store_of(*id)].marks().active()));
        let (generation, version) = (Generation(self.log.generation), self.log.version);
        Seal { generation, version, members: self.log.members.clone(), active }
    }

    /// What is sealed is the same, but for what was lost since.
    fn check_seal(&mut self, seal: &Seal) {
        let kept: Vec<usize> =
            seal.members.iter().map(|id| store_of(*id)).filter(|store| !self.stores[*store].lossy).collect();
        for unit in 0..self.size / UNIT_BYTES {
            let held: Vec<u64> = kept.iter().map(|store| self.stores[*store].get(unit)).collect();
            if held.windows(2).any(|pair| pair[0] != pair[1]) {
                self.violation = Some(format!("a seal, and unit {unit} differs: {held:?} (rule 14)"));
                return;
            }
        }
    }

    fn hand_over(&mut self, seal: Option<Seal>, sealed: bool) {
        let Some(mut source) = self.host.take() else { return };
        source.sessions.iter_mut().for_each(|session| *session = None);
        let life = source.life;
        let (goes, back) = (!self.rng.chance(200), self.rng.chance(250));
        // One that has requests open does not come back: its mirror would answer them.
        let open = self.settings.control == Some(Control::SealOpen);
        let (goes, back) = (goes || open, back && !open);
        self.trace.line(self.now, format_args!("sealed: {sealed}, {seal:?}; goes: {goes}, comes back: {back}"));
        self.moving = Some(Moving { source, seal, back });
        let delay = self.rng.between(1, 60);
        self.put(delay, if goes { Happening::TakeOver(life) } else { Happening::GoBack(life) });
    }

    fn is_moving(&self, life: u64) -> bool {
        self.moving.as_ref().is_some_and(|moving| moving.source.life == life)
    }

    /// The right to write goes to the other host.
    pub(super) fn take_over(&mut self, life: u64) {
        if !self.is_moving(life) {
            return;
        }
        if !self.log.works {
            return self.put(30, Happening::TakeOver(life));
        }
        self.log.generation += 1;
        self.put(1, Happening::Arrives(life));
    }

    /// The other host's mirror begins, as soon as it can.
    pub(super) fn arrives(&mut self, life: u64) {
        let Some(moving) = self.moving.as_ref().filter(|moving| moving.source.life == life) else { return };
        let (seal, before, back) = (moving.seal.clone(), moving.source.boots.clone(), moving.back);
        let mut opened = self.open_all();
        let forgot = |id: &&ReplicaId| {
            let store = store_of(**id);
            opened.boots[store].is_some() && opened.boots[store] != before.get(store).copied().flatten()
        };
        let forgot: BTreeSet<ReplicaId> = self.log.members.iter().filter(forgot).copied().collect();
        let authority = self.log.members.iter().copied().next().expect("a set has members");
        let set = (self.log.version, &self.log.members);
        let of = (self.size, Generation(self.log.generation));
        let plan = take_over(of, &self.replicas(), set, authority, seal.as_ref(), &forgot, &opened.reports);
        self.trace.line(self.now, format_args!("a guest arrives; forgot {forgot:?}: {plan:?}"));
        match plan {
            Err(Unfit::Unreached) => self.put(50, Happening::Arrives(life)),
            Err(Unfit::Lost) => self.host_dies(),
            Ok(plan) => {
                // Of one that is not reached the other host knows what this one did.
                for (store, boot) in opened.boots.iter_mut().enumerate() {
                    *boot = boot.or(before.get(store).copied().flatten());
                }
                let life = self.begin(plan, opened, Vec::new());
                self.moved += 1;
                if let Some(host) = self.host.as_mut().filter(|_| back) {
                    host.paused = true;
                    let stay = self.rng.between(20, 400);
                    return self.put(stay, Happening::GiveBack(life));
                }
                self.moving = None;
                self.ask_again(life);
            }
        }
    }

    /// The other host does not go on.
    pub(super) fn give_back(&mut self, life: u64) {
        if !self.is_host(life) {
            return;
        }
        if !self.log.works {
            return self.put(30, Happening::GiveBack(life));
        }
        self.host = None;
        self.log.generation += 1;
        if let Some(moving) = &self.moving {
            self.go_back(moving.source.life);
        }
    }

    /// The first mirror goes on, whatever the other one did.
    pub(super) fn go_back(&mut self, life: u64) {
        if !self.is_moving(life) {
            return;
        }
        let Some(Moving { mut source, .. }) = self.moving.take() else { return };
        self.lives += 1;
        self.back += 1;
        source.life = self.lives;
        source.generation = self.log.generation;
        source.paused = false;
        source.boots.resize(self.stores.len(), None);
        source.sessions.resize(self.stores.len(), None);
        self.host = Some(source);
        let life = self.lives;
        self.trace.line(self.now, format_args!("the guest is back, as {life}"));
        let sound = |world: &Self, store| world.host.as_ref().is_some_and(|host| host.mirror.is_sound(replica(store)));
        for store in 0..self.stores.len() {
            if sound(self, store) && self.links[store] && self.stores[store].up {
                self.open(store);
            }
        }
        self.apply(Event::Unseal);
        self.tell_replicas();
        for store in 0..self.stores.len() {
            let Some(host) = &self.host else { return };
            let boot = host.sessions[store].map(|_| self.stores[store].boot);
            let same = boot.is_some() && boot == host.boots[store];
            if !sound(self, store) || same {
                continue;
            }
            self.apply(Event::Lost { replica: replica(store), why: "it was not found as it was left".into() });
            let Some(host) = self.host.as_mut().filter(|_| boot.is_some()) else { continue };
            host.boots[store] = boot;
            if !same && sound(self, store) {
                self.apply(Event::Forgot { replica: replica(store) });
            }
        }
        self.put(1, Happening::Tick(life));
        self.put(5, Happening::Act(life));
        self.put(50, Happening::Reconnect(life));
        self.ask_again(life);
    }

    /// What has no answer goes with the guest, parked.
    fn ask_again(&mut self, host: u64) {
        self.guest.open.values_mut().for_each(|open| open.parked = true);
        let parked: Vec<_> = self.guest.open.keys().copied().collect();
        for request in parked {
            let pause = self.rng.between(5, 100);
            self.put(pause, Happening::Again { host, request });
        }
    }

    /// A guest that has its answers has ended.
    pub(super) fn stop(&mut self, host: u64) {
        if !self.is_host(host) {
            return;
        }
        if self.is_served() { self.apply(Event::Finish) } else { self.put(3, Happening::Stop(host)) }
    }

    /// Its mirror says that nothing is left to do.
    pub(super) fn finished(&mut self, settled: bool) {
        let Some(host) = &self.host else { return };
        let active = |id: &&ReplicaId| {
            let store = &self.stores[store_of(**id)];
            let asked = store.up && host.sessions[store_of(**id)] == Some(store.session);
            asked && !store.marks().active().is_empty()
        };
        if let Some(active) = self.log.members.iter().find(active).filter(|_| settled) {
            self.violation = Some(format!("all has settled, and {active} has active extents"));
        }
        self.stopped += u64::from(settled);
        self.host_dies();
    }
}
