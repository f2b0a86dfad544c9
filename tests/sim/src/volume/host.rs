//! Where the guest runs: the shell around the mirror.

use std::collections::BTreeMap;

use pollux_mirror::{
    Answer, Effect, Event, Failure, Grains, Kind, Limits, Marks, Mirror, Part, RequestId, Tag, reunite,
};
use pollux_wire::id::ReplicaId;

use super::{
    Control, REPLICAS,
    oracle::Stamp,
    store::units,
    world::{Asked, Happening, World, replica, store_of},
};

const LAG_MS: u64 = 300;
const HOLD_MS: u64 = 1_500;
const HOT_MAX: usize = 4;
const COPIES_MAX: usize = 3;
pub(super) struct Host {
    pub(super) life: u64,
    pub(super) mirror: Mirror,
    pub(super) generation: u64,
    sessions: [Option<u64>; REPLICAS],
    boots: [u64; REPLICAS],
    /// What was read: for a request, and to be copied.
    read: BTreeMap<RequestId, Vec<(u64, Stamp)>>,
    copies: BTreeMap<Tag, Vec<(u64, Stamp)>>,
    reads: BTreeMap<Tag, Option<RequestId>>,
}

impl World {
    /// A guest begins wherever the log gives it the right to, once a replica of the set can be reached.
    pub(super) fn start(&mut self) {
        let reached: Vec<usize> = (0..REPLICAS).filter(|it| self.links[*it] && self.stores[*it].up).collect();
        let members: Vec<usize> =
            reached.iter().copied().filter(|it| self.log.members.contains(&replica(*it))).collect();
        if self.host.is_some() || !self.log.works || members.is_empty() {
            return self.put(100, Happening::Start);
        }
        self.log.generation += 1;
        self.hosts += 1;
        let (life, generation) = (self.hosts, self.log.generation);
        let authority = members[self.rng.index(members.len())];
        let mut sessions = [None; REPLICAS];
        let mut reports: BTreeMap<ReplicaId, Marks> = BTreeMap::new();
        let mut boots = [0; REPLICAS];
        for store in reached {
            self.sessions += 1;
            let it = &mut self.stores[store];
            (it.generation, it.session) = (generation, self.sessions);
            boots[store] = it.boot;
            sessions[store] = Some(self.sessions);
            reports.insert(replica(store), it.marks().clone());
        }
        let weak = self.stores[authority].lossy;
        self.oracle.restarted(weak);
        self.guest.open.clear();
        let all = (0..REPLICAS).map(replica).collect();
        let plan = reunite(self.size, &all, &self.log.members, replica(authority), &reports);
        for (store, session) in sessions.iter_mut().enumerate() {
            // Who is outside, or will be, has one once it catches up.
            let whole = plan.lacks.get(&replica(store)).is_some_and(Grains::is_empty);
            *session = session.filter(|_| whole && self.log.members.contains(&replica(store)));
        }
        self.trace.line(self.now, format_args!("host {life} starts with {authority}, weak: {weak}"));
        let set = (self.log.version, self.log.members.clone());
        let prefer = if self.rng.chance(500) { vec![replica(authority)] } else { Vec::new() };
        let limits = Limits {
            lag_ms: LAG_MS,
            hold_ms: HOLD_MS,
            hot_max: HOT_MAX,
            copies_max: COPIES_MAX,
            copy_bytes: self.copy_bytes,
        };
        let mirror = Mirror::new(self.size, limits, set, plan.lacks, &plan.active, prefer);
        let (read, copies, reads) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        self.host = Some(Host { life, mirror, generation, sessions, boots, read, copies, reads });
        for (store, session) in sessions.iter().enumerate() {
            if session.is_none() && self.host.as_ref().is_some_and(|host| host.mirror.is_sound(replica(store))) {
                self.apply(Event::Lost { replica: replica(store), why: "it cannot be reached".into() });
            }
        }
        self.put(1, Happening::Tick(life));
        self.put(5, Happening::Act(life));
        self.put(50, Happening::Reconnect(life));
    }

    /// The guest, and the mirror with it, end without a word.
    pub(super) fn host_dies(&mut self) {
        if self.host.take().is_some() {
            self.trace.line(self.now, format_args!("the host dies"));
            let pause = self.rng.between(20, 800);
            self.put(pause, Happening::Start);
        }
    }

    /// The way to a store, or the store, is gone: that is seen a while later.
    pub(super) fn broken(&mut self, store: usize) {
        let Some(host) = &self.host else { return };
        if let Some(session) = host.sessions[store] {
            let (life, delay) = (host.life, self.rng.between(20, 200));
            self.put(delay, Happening::Detect { host: life, store, session });
        }
    }

    pub(super) fn detect(&mut self, host: u64, store: usize, session: u64) {
        if let Some(it) = self.host.as_mut().filter(|it| it.life == host)
            && it.sessions[store] == Some(session)
        {
            it.sessions[store] = None;
            self.apply(Event::Lost { replica: replica(store), why: "the connection is gone".into() });
        }
    }

    pub(super) fn tick(&mut self) {
        self.apply(Event::Tick);
        self.apply(Event::Credit(self.credit));
        // Whoever has everything has lost nothing.
        let Some(host) = &self.host else { return };
        let status = host.mirror.status();
        for it in status.replicas {
            let (number, store) = (store_of(it.replica), &mut self.stores[store_of(it.replica)]);
            if it.sound && it.lacks == 0 && host.sessions[number].is_some() && host.boots[number] == store.boot {
                store.lossy = false;
            }
        }
    }

    /// Applies an event, and does what it wants done.
    pub(super) fn apply(&mut self, event: Event) {
        let now = self.now;
        let Some(host) = &mut self.host else { return };
        if !matches!(event, Event::Tick | Event::Credit(_)) {
            self.trace.line(now, format_args!("> {event:?}"));
        }
        let effects = host.mirror.on(now, event);
        for effect in effects {
            self.trace.line(now, format_args!("< {effect:?}"));
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let Some(host) = &mut self.host else { return };
        let (life, generation) = (host.life, host.generation);
        match effect {
            Effect::Ask { replica, tag, of, part, range } => self.ask(replica, tag, of, part, range),
            Effect::Answer { request, answer } => {
                let data = host.read.remove(&request).unwrap_or_default();
                self.check_answer(request, &answer);
                self.answered(request, &answer, &data);
            }
            Effect::Drop { replica } => host.sessions[store_of(replica)] = None,
            Effect::Leave { replica, version, .. } => {
                if self.settings.control == Some(Control::LeaveWithoutEntry) {
                    let members = self.log.members.iter().copied().filter(|it| *it != replica).collect();
                    return self.put(1, Happening::Decided { host: life, version: version + 1, members });
                }
                let delay = self.rng.between(1, 60);
                self.put(delay, Happening::Append { host: life, generation, version, replica, join: false });
            }
            Effect::Join { replica, version } => {
                let delay = self.rng.between(1, 60);
                self.put(delay, Happening::Append { host: life, generation, version, replica, join: true });
            }
            Effect::Behind { .. } => {}
            Effect::Over { why } => {
                self.trace.line(self.now, format_args!("over: {why}"));
                self.host_dies();
            }
        }
    }

    /// What the guest is told is true of every replica of the set that the log knows (DESIGN, rule 12).
    fn check_answer(&mut self, request: RequestId, answer: &Answer) {
        let Some(open) = self.guest.open.get(&request) else { return };
        let Kind::Change { .. } = open.kind else { return };
        if answer.is_err() || !self.is_current() {
            return;
        }
        for member in &self.log.members {
            let store = &self.stores[store_of(*member)];
            // One that has lost power meanwhile has what it has.
            let has = store.lossy || units(&open.range).all(|unit| store.get(unit) == open.stamp);
            if !has {
                let what = format!("{request:?} is acknowledged, and {member} of the set does not have it (rule 12)");
                self.violation = Some(what);
            }
        }
    }

    fn is_current(&self) -> bool {
        self.host.as_ref().is_some_and(|host| host.generation == self.log.generation)
    }

    fn ask(&mut self, id: ReplicaId, tag: Tag, of: Option<RequestId>, part: Part, range: std::ops::Range<u64>) {
        let Some(host) = &mut self.host else { return };
        let store = store_of(id);
        let (life, generation) = (host.life, host.generation);
        let Some(session) = host.sessions[store] else {
            let outcome = Err(Failure::Io("there is no connection".into()));
            return self.put(1, Happening::Reply { host: life, session: 0, store, tag, outcome, data: Vec::new() });
        };
        let data = match &part {
            Part::Change { .. } => {
                let stamp = of.and_then(|of| self.guest.open.get(&of)).map_or(0, |open| open.stamp);
                units(&range).map(|unit| (unit, stamp)).collect()
            }
            Part::Copy { read } => host.copies.remove(read).unwrap_or_default(),
            Part::Read => {
                host.reads.insert(tag, of);
                Vec::new()
            }
            Part::Flush
            | Part::Miss(_)
            | Part::Regained(_)
            | Part::Returned(_)
            | Part::Welcome(_)
            | Part::Settled(_) => Vec::new(),
        };
        let early = self.settings.control == Some(Control::AcknowledgeEarly)
            && matches!(part, Part::Change { .. })
            && self.rng.chance(300);
        if early {
            self.put(1, Happening::Reply { host: life, session, store, tag, outcome: Ok(()), data: Vec::new() });
        }
        if self.links[store] {
            // In any order.
            let delay = self.rng.between(1, 12);
            self.put(
                delay,
                Happening::Arrive(Asked { host: life, generation, session, store, tag, part, range, data }),
            );
        }
    }

    pub(super) fn reply(
        &mut self,
        life: u64,
        session: u64,
        store: usize,
        tag: Tag,
        outcome: Result<(), Failure>,
        data: Vec<(u64, Stamp)>,
    ) {
        let Some(host) = self.host.as_mut().filter(|host| host.life == life) else { return };
        // Of a session that has ended nothing is heard.
        if session != 0 && host.sessions[store] != Some(session) {
            return;
        }
        if let Some(of) = host.reads.remove(&tag) {
            match of {
                Some(request) => drop(host.read.insert(request, data)),
                None => drop(host.copies.insert(tag, data)),
            }
        }
        self.apply(Event::Done { tag, outcome });
    }

    pub(super) fn decided(&mut self, life: u64, version: u64, members: std::collections::BTreeSet<ReplicaId>) {
        if self.is_host(life) {
            self.apply(Event::Decided { version, members });
        }
    }

    /// Opens a session with whom there is none, and has who is outside of the set catch up.
    pub(super) fn reconnect(&mut self) {
        for store in 0..REPLICAS {
            let Some(host) = &mut self.host else { return };
            if host.sessions[store].is_some() || !self.links[store] || !self.stores[store].up {
                continue;
            }
            let (generation, id) = (host.generation, replica(store));
            if self.stores[store].generation > generation {
                continue;
            }
            let outside = host.mirror.is_outside(id);
            if !outside && !host.mirror.is_sound(id) {
                continue;
            }
            self.sessions += 1;
            let session = self.sessions;
            let it = &mut self.stores[store];
            (it.generation, it.session) = (generation, session);
            let forgot = std::mem::replace(&mut host.boots[store], it.boot) != it.boot;
            host.sessions[store] = Some(session);
            if forgot {
                self.apply(Event::Forgot { replica: id });
            }
            if outside
                && !self.catch_up(store)
                && let Some(host) = &mut self.host
            {
                host.sessions[store] = None;
            }
        }
    }

    fn catch_up(&mut self, store: usize) -> bool {
        let Some(host) = &self.host else { return false };
        let reached = |it: &usize| self.links[*it] && self.stores[*it].up && host.sessions[*it].is_some();
        let members: Vec<usize> = (0..REPLICAS)
            .filter(|it| host.mirror.is_sound(replica(*it)) && self.log.members.contains(&replica(*it)) && reached(it))
            .collect();
        let Some(authority) = members.first().copied() else { return false };
        let mut reports: BTreeMap<ReplicaId, Marks> =
            members.iter().map(|it| (replica(*it), self.stores[*it].marks().clone())).collect();
        reports.insert(replica(store), self.stores[store].marks().clone());
        let all = (0..REPLICAS).map(replica).collect();
        let sound = members.iter().map(|it| replica(*it)).collect();
        let mut plan = reunite(self.size, &all, &sound, replica(authority), &reports);
        let lacks: Grains = plan.lacks.remove(&replica(store)).unwrap_or_default();
        for member in members {
            self.stores[member].miss(replica(store), Some(lacks.clone()));
        }
        self.apply(Event::Catch { replica: replica(store), lacks });
        true
    }
}
