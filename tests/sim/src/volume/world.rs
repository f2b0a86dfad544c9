//! Everything there is, and what happens next.

use std::{collections::BTreeSet, ops::Range};

use pollux_mirror::{EXTENT_BYTES, Event, Failure, GRAIN_BYTES, Part, RequestId, Tag};
use pollux_wire::id::ReplicaId;

use super::{
    Control, EXTENTS, REPLICAS, SHORT_BY, Settings, Time, UNIT_BYTES,
    digest::Rotten,
    guest::Guest,
    host::Host,
    moving::Moving,
    oracle::{Oracle, Stamp},
    store::{Store, units},
};
use crate::{Rng, agenda::Agenda, trace::Trace};

/// How often the mirror is told the time, and may copy more.
const TICK_MS: Time = 40;
/// How often the host tries to reach what it does not.
const RECONNECT_MS: Time = 150;

/// Something that a replica is asked, on its way.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) host: u64,
    pub(super) generation: u64,
    pub(super) session: u64,
    pub(super) store: usize,
    pub(super) tag: Tag,
    pub(super) part: Part,
    pub(super) range: Range<u64>,
    /// What is to be written, by unit.
    pub(super) data: Vec<(u64, Stamp)>,
}

/// Something that happens.
#[derive(Debug, Clone)]
pub(super) enum Happening {
    /// A part reaches its replica.
    Arrive(Asked),
    /// The record before a change is on stable storage there.
    Marked {
        life: u64,
        asked: Asked,
    },
    /// So many of its units are written.
    Write {
        life: u64,
        asked: Asked,
        done: usize,
    },
    /// An answer reaches the mirror.
    Reply {
        host: u64,
        session: u64,
        store: usize,
        tag: Tag,
        outcome: Result<(), Failure>,
        data: Vec<(u64, Stamp)>,
    },
    /// The mirror sees that the way to a replica is broken.
    Detect {
        host: u64,
        store: usize,
        session: u64,
    },
    /// A change of the set reaches the log.
    Append {
        generation: u64,
        version: u64,
        replica: ReplicaId,
        join: bool,
    },
    /// The mirror learns what the log says, whichever there is.
    Decided {
        version: u64,
        members: BTreeSet<ReplicaId>,
    },
    Tick(u64),
    Reconnect(u64),
    /// A guest begins, where a mirror can.
    Start,
    /// The guest asks for something.
    Act(u64),
    /// What was parked is asked again.
    Again {
        host: u64,
        request: RequestId,
    },
    /// A paused guest that is to move.
    Seal {
        host: u64,
        until: Time,
    },
    /// A guest that is to end.
    Stop(u64),
    /// The right to write goes to another host, whose mirror begins, and perhaps goes back.
    TakeOver(u64),
    Arrives(u64),
    GiveBack(u64),
    GoBack(u64),
    /// An operator looks whether a replica has left the set and can be removed.
    Remove {
        replica: ReplicaId,
        looks: u64,
    },
    /// The mirror learns which replicas there are.
    Replicas,
    Fault,
    Heal(Healing),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Healing {
    Store(usize),
    Link(usize),
    Room(usize),
    Disk(usize),
    Speed(usize),
    Quorum,
}

/// The log: who is in the set.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) generation: u64,
    pub(super) version: u64,
    pub(super) members: BTreeSet<ReplicaId>,
    pub(super) replicas: BTreeSet<ReplicaId>,
    pub(super) works: bool,
}

pub(super) struct World {
    pub(super) settings: Settings,
    /// Of the volume, in bytes.
    pub(super) size: u64,
    /// What may be copied in each tick, in bytes.
    pub(super) credit: u64,
    /// Bytes of one copy.
    pub(super) copy_bytes: u64,
    /// Longest time between two faults.
    calm_ms: Time,
    pub(super) rng: Rng,
    pub(super) now: Time,
    pub(super) agenda: Agenda<Happening>,
    pub(super) trace: Trace,
    pub(super) stores: Vec<Store>,
    pub(super) links: Vec<bool>,
    pub(super) log: Log,
    pub(super) host: Option<Host>,
    pub(super) moving: Option<Moving>,
    pub(super) hosts: u64,
    /// Counts hosts, and how often one got its guest back.
    pub(super) lives: u64,
    pub(super) sessions: u64,
    pub(super) guest: Guest,
    pub(super) oracle: Oracle,
    pub(super) calm: bool,
    pub(super) violation: Option<String>,
    pub(super) left: u64,
    pub(super) joined: u64,
    pub(super) moved: u64,
    pub(super) sealed: u64,
    pub(super) back: u64,
    pub(super) stopped: u64,
    pub(super) added: u64,
    pub(super) removed: u64,
    pub(super) compared: u64,
    pub(super) rotten: Option<Rotten>,
    /// Where the guest writes all the time, and how far all is compared meanwhile.
    pub(super) hot: Option<Range<u64>>,
    pub(super) reached: u64,
}

pub(super) fn replica(store: usize) -> ReplicaId {
    ReplicaId(store as u64 + 1)
}

pub(super) fn store_of(replica: ReplicaId) -> usize {
    usize::try_from(replica.0 - 1).expect("a replica of this volume")
}

impl World {
    pub(super) fn new(seed: u64, settings: Settings) -> Self {
        let mut rng = Rng::new(seed);
        let size = EXTENTS * EXTENT_BYTES - rng.pick(&SHORT_BY) * UNIT_BYTES;
        // Some come together between two faults, some never.
        let credit = rng.pick(&[6, 40, 200]) * GRAIN_BYTES;
        let copy_bytes = rng.pick(&[2, 16, 64]) * GRAIN_BYTES;
        let calm_ms = rng.pick(&[600, 2_000, 6_000]);
        let mut world = Self {
            size,
            credit,
            copy_bytes,
            calm_ms,
            trace: Trace::new(settings.print),
            settings,
            rng,
            now: 0,
            agenda: Agenda::new(),
            stores: (0..REPLICAS).map(|_| Store::new()).collect(),
            links: vec![true; REPLICAS],
            log: Log {
                generation: 0,
                version: 1,
                members: (0..REPLICAS).map(replica).collect(),
                replicas: (0..REPLICAS).map(replica).collect(),
                works: true,
            },
            host: None,
            moving: None,
            hosts: 0,
            lives: 0,
            sessions: 0,
            guest: Guest::default(),
            oracle: Oracle::default(),
            calm: false,
            violation: None,
            left: 0,
            joined: 0,
            moved: 0,
            sealed: 0,
            back: 0,
            stopped: 0,
            added: 0,
            removed: 0,
            compared: 0,
            rotten: None,
            hot: None,
            reached: 0,
        };
        world.put(1, Happening::Start);
        world.put(100, Happening::Fault);
        world
    }

    pub(super) fn put(&mut self, after: Time, what: Happening) {
        let tie = self.rng.bits();
        self.agenda.put(self.now + after, tie, what);
    }

    pub(super) fn is_host(&self, life: u64) -> bool {
        self.host.as_ref().is_some_and(|host| host.life == life)
    }

    pub(super) fn step(&mut self) {
        let Some((at, what)) = self.agenda.next() else {
            self.violation = Some("nothing is left to happen".into());
            return;
        };
        self.now = at;
        match what {
            Happening::Arrive(asked) => self.arrive(asked),
            Happening::Marked { life, asked } => self.marked(life, asked),
            Happening::Write { life, asked, done } => self.write(life, asked, done),
            Happening::Reply { host, session, store, tag, outcome, data } => {
                self.reply(host, session, store, tag, outcome, data);
            }
            Happening::Detect { host, store, session } => self.detect(host, store, session),
            Happening::Append { generation, version, replica, join } => {
                self.append(generation, version, replica, join);
            }
            Happening::Decided { version, members } => self.apply(Event::Decided { version, members }),
            Happening::Tick(host) if self.is_host(host) => {
                self.tick();
                self.put(TICK_MS, Happening::Tick(host));
            }
            Happening::Reconnect(host) if self.is_host(host) => {
                self.reconnect();
                self.put(RECONNECT_MS, Happening::Reconnect(host));
            }
            Happening::Tick(_) | Happening::Reconnect(_) => {}
            Happening::Start => self.start(),
            Happening::Act(host) => self.act(host),
            Happening::Again { host, request } => self.again(host, request),
            Happening::Seal { host, until } => self.seal(host, until),
            Happening::Stop(host) => self.stop(host),
            Happening::TakeOver(source) => self.take_over(source),
            Happening::Arrives(source) => self.arrives(source),
            Happening::GiveBack(host) => self.give_back(host),
            Happening::GoBack(source) => self.go_back(source),
            Happening::Remove { replica, looks } => self.remove(replica, looks),
            Happening::Replicas => self.tell_replicas(),
            Happening::Fault => self.fault(),
            Happening::Heal(healing) => self.heal(healing),
        }
    }

    fn delay(&mut self, store: usize) -> Time {
        // Now and then one thing takes long, and what comes after it does not.
        let late = if self.rng.chance(12) { self.rng.between(60, 260) } else { 0 };
        let slow = if self.stores[store].slow { 40 } else { 1 };
        self.rng.between(1, 6) * slow + late
    }

    /// A part reaches its replica.
    fn arrive(&mut self, asked: Asked) {
        let store = asked.store;
        let old = self.settings.control == Some(Control::AcceptOlder);
        let it = &mut self.stores[store];
        if !it.up {
            return;
        }
        if asked.generation < it.generation && !old {
            return self.answer(&asked, Err(Failure::Fenced), Vec::new());
        }
        if asked.session != it.session && !(old && asked.generation < it.generation) {
            return;
        }
        let control = self.settings.control;
        let delay = self.delay(store);
        let fails =
            matches!(asked.part, Part::Read | Part::Digest | Part::Flush | Part::Change { .. } | Part::Copy { .. })
                && self.stores[store].broken
                && self.rng.chance(500);
        if fails {
            return self.answer(&asked, Err(Failure::Io("input/output error".into())), Vec::new());
        }
        let it = &mut self.stores[store];
        match &asked.part {
            Part::Read | Part::Digest => {
                let data = units(&asked.range).map(|unit| (unit, it.get(unit))).collect();
                self.answer(&asked, Ok(()), data);
            }
            Part::Change { .. } | Part::Copy { .. } => match it.before_change(&asked.range) {
                Some(record) => {
                    let life = it.life;
                    if control == Some(Control::NoActivityLog) {
                        it.record(record, control);
                    }
                    self.put(delay, Happening::Marked { life, asked });
                }
                None => self.begin_write(asked),
            },
            Part::Flush => {
                if control != Some(Control::FlushInVain) {
                    it.flush();
                }
                self.answer(&asked, Ok(()), Vec::new());
            }
            Part::Miss(missing) => {
                let noted = it.miss(*missing).map_err(|failure| Failure::Io(failure.to_string()));
                self.answer(&asked, noted, Vec::new());
            }
            Part::Lacks(outside, lacks) => {
                let noted = it.note(*outside, lacks, control).map_err(|failure| Failure::Io(failure.to_string()));
                self.answer(&asked, noted, Vec::new());
            }
            Part::Regained(id) => {
                it.record(pollux_mirror::Record::Regained(*id, asked.range.clone()), control);
                self.answer(&asked, Ok(()), Vec::new());
            }
            Part::Returned(id) => {
                it.record(pollux_mirror::Record::Returned(*id), control);
                self.answer(&asked, Ok(()), Vec::new());
            }
            Part::Welcome(hot) => {
                it.record(pollux_mirror::Record::Welcome(hot.clone()), control);
                it.lossy = false;
                self.answer(&asked, Ok(()), Vec::new());
            }
            Part::Settled(extents) => {
                it.settle(extents);
                self.answer(&asked, Ok(()), Vec::new());
            }
        }
    }

    /// It goes on only while the process lives and nobody has opened a newer session.
    fn goes_on(&self, life: u64, asked: &Asked) -> bool {
        let it = &self.stores[asked.store];
        let old = self.settings.control == Some(Control::AcceptOlder);
        it.up && it.life == life && (it.session == asked.session || old)
    }

    fn marked(&mut self, life: u64, asked: Asked) {
        if !self.goes_on(life, &asked) {
            return;
        }
        let control = self.settings.control;
        let it = &mut self.stores[asked.store];
        if let Some(record) = it.before_change(&asked.range) {
            it.record(record, control);
        }
        it.sync_log();
        self.begin_write(asked);
    }

    fn begin_write(&mut self, asked: Asked) {
        let control = self.settings.control;
        let it = &mut self.stores[asked.store];
        it.changes(&asked.range, control);
        let life = it.life;
        let delay = self.delay(asked.store);
        self.put(delay, Happening::Write { life, asked, done: 0 });
    }

    /// A unit at a time, so that an end can come between any two.
    fn write(&mut self, life: u64, asked: Asked, done: usize) {
        if !self.goes_on(life, &asked) {
            return;
        }
        let full = self.stores[asked.store].full;
        let it = &mut self.stores[asked.store];
        if let Some((unit, stamp)) = asked.data.get(done) {
            if full && it.get(*unit) == 0 {
                return self.answer(&asked, Err(Failure::NoSpace), Vec::new());
            }
            if self.stores[asked.store].broken && self.rng.chance(50) {
                return self.answer(&asked, Err(Failure::Io("input/output error".into())), Vec::new());
            }
            self.stores[asked.store].put(*unit, *stamp);
            let delay = self.rng.below(2);
            return self.put(delay, Happening::Write { life, asked, done: done + 1 });
        }
        if matches!(asked.part, Part::Change { durable: true, .. })
            && self.settings.control != Some(Control::FlushInVain)
        {
            it.sync_units(units(&asked.range));
        }
        self.answer(&asked, Ok(()), Vec::new());
    }

    fn answer(&mut self, asked: &Asked, outcome: Result<(), Failure>, data: Vec<(u64, Stamp)>) {
        let (host, session, store, tag) = (asked.host, asked.session, asked.store, asked.tag);
        if !self.links[store] {
            return;
        }
        let delay = self.delay(store);
        self.put(delay, Happening::Reply { host, session, store, tag, outcome, data });
    }

    fn append(&mut self, generation: u64, version: u64, replica: ReplicaId, join: bool) {
        if !self.log.works {
            // Whoever proposes repeats it.
            return self.put(30, Happening::Append { generation, version, replica, join });
        }
        if generation != self.log.generation || version != self.log.version || !self.log.replicas.contains(&replica) {
            return self.tell_decision();
        }
        self.log.version += 1;
        if join {
            self.log.members.insert(replica);
            self.joined += u64::from(!self.calm);
        } else if self.log.members.len() > 1 || !self.log.members.contains(&replica) {
            self.left += u64::from(self.log.members.remove(&replica));
        } else {
            self.violation = Some(format!("{replica}, the last of the set, was to leave it"));
        }
        let Log { version, members, .. } = &self.log;
        self.trace.line(self.now, format_args!("log: version {version}: {members:?}"));
        self.tell_decision();
    }

    pub(super) fn tell_decision(&mut self) {
        let (version, members) = (self.log.version, self.log.members.clone());
        let delay = self.rng.between(1, 20);
        self.put(delay, Happening::Decided { version, members });
    }

    fn fault(&mut self) {
        if self.calm {
            return;
        }
        let next = self.rng.between(20, self.calm_ms);
        self.put(next, Happening::Fault);
        let there: Vec<ReplicaId> = self.log.replicas.iter().copied().collect();
        let store = store_of(self.rng.pick(&there));
        let while_ms = self.rng.between(20, 2_000);
        let kind = self.rng.below(16);
        self.trace.line(self.now, format_args!("fault {kind} of store {store} for {while_ms} ms"));
        match kind {
            0 | 1 if self.stores[store].up => {
                self.stores[store].dies();
                self.broken(store);
                self.put(while_ms, Happening::Heal(Healing::Store(store)));
            }
            2 | 3 if self.stores[store].up => {
                let rng = &mut self.rng;
                self.stores[store].loses_power(rng);
                self.broken(store);
                self.put(while_ms, Happening::Heal(Healing::Store(store)));
            }
            4 | 5 if self.links[store] => {
                self.links[store] = false;
                self.broken(store);
                self.put(while_ms, Happening::Heal(Healing::Link(store)));
            }
            6 => self.host_dies(),
            7 => {
                self.stores[store].full = true;
                self.put(while_ms, Happening::Heal(Healing::Room(store)));
            }
            8 => {
                self.stores[store].slow = true;
                self.put(while_ms, Happening::Heal(Healing::Speed(store)));
            }
            9 if self.rng.chance(300) => {
                // Everything at once.
                self.host_dies();
                for store in 0..self.stores.len() {
                    if self.stores[store].up {
                        let rng = &mut self.rng;
                        self.stores[store].loses_power(rng);
                        self.put(while_ms, Happening::Heal(Healing::Store(store)));
                    }
                }
            }
            9 => {
                self.log.works = false;
                self.put(while_ms, Happening::Heal(Healing::Quorum));
            }
            10 | 11 => self.pause(false),
            12 if self.rng.chance(300) => self.pause(true),
            13 => {
                self.stores[store].broken = true;
                self.put(while_ms, Happening::Heal(Healing::Disk(store)));
            }
            14 => self.add(),
            15 => self.release(store),
            _ => {}
        }
    }

    fn heal(&mut self, healing: Healing) {
        match healing {
            Healing::Store(store) if !self.stores[store].up && !self.stores[store].gone => self.stores[store].starts(),
            Healing::Store(_) => {}
            Healing::Link(store) => self.links[store] = true,
            Healing::Room(store) => self.stores[store].full = false,
            Healing::Disk(store) => self.stores[store].broken = false,
            Healing::Speed(store) => self.stores[store].slow = false,
            Healing::Quorum => self.log.works = true,
        }
    }

    /// What two replicas of the set hold differently on stable storage lies in an extent that is active on one of them, by its log as
    /// it is on stable storage: whatever ends now, that is what is compared afterwards (DESIGN, rule 14).
    pub(super) fn check_marks(&mut self) {
        if self.rotten.is_some() {
            return;
        }
        let members: Vec<usize> = self.log.members.iter().map(|id| store_of(*id)).collect();
        let marks: Vec<_> = members.iter().map(|store| self.stores[*store].durable_marks()).collect();
        let active = |unit: u64| {
            let extent = u32::try_from(unit * UNIT_BYTES / EXTENT_BYTES).expect("there are few");
            marks.iter().any(|marks| marks.active().contains(extent))
        };
        for unit in 0..self.size / UNIT_BYTES {
            let mut held = members.iter().map(|store| self.stores[*store].get_stable(unit));
            let first = held.next();
            if held.any(|it| Some(it) != first) && !active(unit) {
                let held: Vec<u64> = members.iter().map(|store| self.stores[*store].get_stable(unit)).collect();
                let what = format!(
                    "unit {unit} differs on stable storage of {members:?}, {held:?}, and is not active (rule 14)"
                );
                self.violation = Some(what);
                return;
            }
        }
    }

    /// No further faults; those there are end.
    pub(super) fn calm_down(&mut self) {
        self.calm = true;
        for store in 0..self.stores.len() {
            for healing in [Healing::Store, Healing::Link, Healing::Room, Healing::Disk, Healing::Speed] {
                self.heal(healing(store));
            }
        }
        self.heal(Healing::Quorum);
    }
}
