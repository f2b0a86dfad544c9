//! Where the guest runs: the shell around the mirror.

use std::collections::{BTreeMap, BTreeSet};

use pollux_mirror::{
    Answer, Effect, Event, Failure, Grains, Kind, Limits, Marks, Mirror, Part, Plan, RequestId, Seal, Tag, reunite,
};
use pollux_wire::id::ReplicaId;

use super::{
    Control, digest,
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
    pub(super) sessions: Vec<Option<u64>>,
    /// Of each replica's host, as it was when it was asked last.
    pub(super) boots: Vec<Option<u64>>,
    /// The guest asks for nothing.
    pub(super) paused: bool,
    pub(super) seal: Option<Seal>,
    /// What was read: for a request, and to be copied.
    read: BTreeMap<RequestId, Vec<(u64, Stamp)>>,
    copies: BTreeMap<Tag, Vec<(u64, Stamp)>>,
    reads: BTreeMap<Tag, Option<RequestId>>,
    digests: BTreeSet<Tag>,
}

/// Sessions with all that can be reached.
pub(super) struct Opened {
    sessions: Vec<Option<u64>>,
    pub(super) boots: Vec<Option<u64>>,
    pub(super) reports: BTreeMap<ReplicaId, Marks>,
}

impl World {
    /// The volume's replicas.
    pub(super) fn replicas(&self) -> BTreeSet<ReplicaId> {
        self.log.replicas.clone()
    }

    /// A guest begins wherever the log gives it the right to, once a replica of the set can be reached.
    pub(super) fn start(&mut self) {
        let reached = |id: &&ReplicaId| self.links[store_of(**id)] && self.stores[store_of(**id)].up;
        let members: Vec<ReplicaId> = self.log.members.iter().filter(reached).copied().collect();
        if self.host.is_some() || !self.log.works || members.is_empty() {
            return self.put(100, Happening::Start);
        }
        self.log.generation += 1;
        let authority = members[self.rng.index(members.len())];
        let opened = self.open_all();
        let weak = self.stores[store_of(authority)].lossy;
        self.oracle.restarted(weak);
        self.guest.open.clear();
        let plan = reunite(self.size, &self.replicas(), &self.log.members, authority, &opened.reports);
        self.trace.line(self.now, format_args!("a guest starts with {authority}, weak: {weak}"));
        let prefer = if self.rng.chance(500) { vec![authority] } else { Vec::new() };
        self.begin(plan, opened, prefer);
    }

    /// With the generation that the log has now.
    pub(super) fn open_all(&mut self) -> Opened {
        let stores = self.stores.len();
        let mut opened = Opened { sessions: vec![None; stores], boots: vec![None; stores], reports: BTreeMap::new() };
        let there: Vec<usize> = self.log.replicas.iter().map(|id| store_of(*id)).collect();
        for store in there.into_iter().filter(|it| self.links[*it] && self.stores[*it].up).collect::<Vec<_>>() {
            self.sessions += 1;
            let it = &mut self.stores[store];
            (it.generation, it.session) = (self.log.generation, self.sessions);
            opened.boots[store] = Some(it.boot);
            opened.sessions[store] = Some(self.sessions);
            opened.reports.insert(replica(store), it.marks().clone());
        }
        opened
    }

    /// A mirror begins.
    pub(super) fn begin(&mut self, plan: Plan, opened: Opened, prefer: Vec<ReplicaId>) -> u64 {
        let Opened { mut sessions, boots, .. } = opened;
        self.hosts += 1;
        self.lives += 1;
        let (life, generation) = (self.lives, self.log.generation);
        for (store, session) in sessions.iter_mut().enumerate() {
            // Who is outside, or will be, has one once it catches up.
            let whole = plan.lacks.get(&replica(store)).is_some_and(Grains::is_empty);
            *session = session.filter(|_| whole && self.log.members.contains(&replica(store)));
        }
        let set = (self.log.version, self.log.members.clone());
        let limits = Limits {
            lag_ms: LAG_MS,
            hold_ms: HOLD_MS,
            hot_max: HOT_MAX,
            copies_max: COPIES_MAX,
            copy_bytes: self.copy_bytes,
        };
        self.trace.line(self.now, format_args!("mirror {life} of generation {generation}: {plan:?}"));
        let mirror = Mirror::new(self.size, limits, set, plan.lacks, &plan.active, prefer);
        let lost: Vec<usize> = (0..sessions.len()).filter(|store| sessions[*store].is_none()).collect();
        self.host = Some(Host {
            life,
            mirror,
            generation,
            sessions,
            boots,
            paused: false,
            seal: None,
            read: BTreeMap::new(),
            copies: BTreeMap::new(),
            reads: BTreeMap::new(),
            digests: BTreeSet::new(),
        });
        for replica in plan.gone {
            self.apply(Event::Removed { replica });
        }
        for store in lost {
            if self.host.as_ref().is_some_and(|host| host.mirror.is_sound(replica(store))) {
                self.apply(Event::Lost { replica: replica(store), why: "it cannot be reached".into() });
            }
        }
        self.put(1, Happening::Tick(life));
        self.put(5, Happening::Act(life));
        self.put(50, Happening::Reconnect(life));
        life
    }

    /// The guest, and the mirror with it, end without a word.
    pub(super) fn host_dies(&mut self) {
        let moving = self.moving.take().is_some();
        if self.host.take().is_some() || moving {
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
        self.scrub();
        // Whoever has everything has lost nothing.
        let Some(host) = &self.host else { return };
        let status = host.mirror.status();
        for it in status.replicas {
            let (number, store) = (store_of(it.replica), &mut self.stores[store_of(it.replica)]);
            if it.sound && it.lacks == 0 && host.sessions[number].is_some() && host.boots[number] == Some(store.boot) {
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
        let generation = host.generation;
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
                    return self.put(1, Happening::Decided { version: version + 1, members });
                }
                let delay = self.rng.between(1, 60);
                self.put(delay, Happening::Append { generation, version, replica, join: false });
            }
            Effect::Join { replica, version } => {
                let delay = self.rng.between(1, 60);
                self.put(delay, Happening::Append { generation, version, replica, join: true });
            }
            Effect::Behind { .. } | Effect::NotSealed { .. } => {}
            Effect::Sealed(seal) => host.seal = Some(seal),
            Effect::Finished { settled } => self.finished(settled),
            Effect::Compared { range, outcome } => self.compared(range.end, &outcome),
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
            Part::Digest => {
                host.digests.insert(tag);
                Vec::new()
            }
            Part::Flush
            | Part::Miss(_)
            | Part::Regained(_)
            | Part::Returned(_)
            | Part::Welcome(_)
            | Part::Settled(_)
            | Part::Lacks(..) => Vec::new(),
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
        if host.digests.remove(&tag) && outcome.is_ok() {
            let in_vain = self.settings.control == Some(Control::DigestInVain);
            let digest = digest::of(if in_vain { &[] } else { &data });
            return self.apply(Event::Digest { tag, digest });
        }
        if let Some(of) = host.reads.remove(&tag) {
            match of {
                Some(request) => drop(host.read.insert(request, data)),
                None => drop(host.copies.insert(tag, data)),
            }
        }
        self.apply(Event::Done { tag, outcome });
    }

    /// Opens a session with whom there is none, and has who is outside of the set catch up.
    pub(super) fn reconnect(&mut self) {
        for store in 0..self.stores.len() {
            let Some(host) = &self.host else { return };
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
            let forgot = self.open(store);
            if let Some(host) = &mut self.host {
                host.boots[store] = Some(self.stores[store].boot);
            }
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

    /// Opens one session. Whether the host of the replica was started anew since the last one.
    pub(super) fn open(&mut self, store: usize) -> bool {
        let Some(host) = &mut self.host else { return false };
        self.sessions += 1;
        let it = &mut self.stores[store];
        (it.generation, it.session) = (host.generation, self.sessions);
        host.sessions[store] = Some(self.sessions);
        host.boots[store] != Some(it.boot)
    }

    fn catch_up(&mut self, store: usize) -> bool {
        let Some(host) = &self.host else { return false };
        let reached = |id: &ReplicaId| host.mirror.is_sound(*id) && host.sessions[store_of(*id)].is_some();
        if !self.log.members.iter().any(reached) {
            return false;
        }
        // The mirror knows the rest: what it began with, and what was written since.
        let lacks = Grains::from(self.stores[store].marks().active());
        self.apply(Event::Catch { replica: replica(store), lacks });
        true
    }
}
