//! An operator, who adds replicas and removes them.

use pollux_mirror::Event;
use pollux_wire::id::ReplicaId;

use super::{
    REPLICAS_MAX, REPLICAS_MIN,
    store::Store,
    world::{Happening, World, replica, store_of},
};

/// So often it is seen whether a replica that was released has left the set; then it is removed all the same.
const LOOKS_MAX: u64 = 20;
/// In milliseconds.
const LOOK_MS: u64 = 40;

impl World {
    /// One more replica, made and empty.
    pub(super) fn add(&mut self) {
        if self.log.replicas.len() >= REPLICAS_MAX || !self.log.works {
            return;
        }
        let added = replica(self.stores.len());
        self.stores.push(Store::new());
        self.links.push(true);
        if let Some(host) = &mut self.host {
            host.sessions.push(None);
            host.boots.push(None);
        }
        self.log.replicas.insert(added);
        self.added += 1;
        self.trace.line(self.now, format_args!("log: {added} is a replica"));
        let delay = self.rng.between(1, 40);
        self.put(delay, Happening::Replicas);
    }

    /// One is to be removed: in order, or not.
    pub(super) fn release(&mut self, store: usize) {
        let (id, in_order) = (replica(store), !self.rng.chance(300));
        if self.log.replicas.len() <= REPLICAS_MIN {
            return;
        }
        if in_order {
            self.apply(Event::Release { replica: id });
        }
        self.put(LOOK_MS, Happening::Remove { replica: id, looks: if in_order { 0 } else { LOOKS_MAX } });
    }

    pub(super) fn remove(&mut self, id: ReplicaId, looks: u64) {
        if !self.log.replicas.contains(&id) {
            return;
        }
        let is_in = self.log.members.contains(&id);
        if self.log.replicas.len() <= REPLICAS_MIN || (is_in && self.log.members.len() == 1) {
            // Not that one, after all.
            return self.apply(Event::Added { replica: id });
        }
        if !self.log.works || (is_in && looks < LOOKS_MAX) {
            return self.put(LOOK_MS, Happening::Remove { replica: id, looks: looks + 1 });
        }
        self.log.replicas.remove(&id);
        self.log.members.remove(&id);
        self.log.version += 1;
        self.removed += 1;
        let version = self.log.version;
        self.trace
            .line(self.now, format_args!("log: version {version}, {id} is no replica; it was in the set: {is_in}"));
        self.stores[store_of(id)].gone = true;
        self.stores[store_of(id)].dies();
        self.broken(store_of(id));
        let delay = self.rng.between(1, 40);
        self.put(delay, Happening::Replicas);
    }

    /// As often as the log is looked at: first the set, then who there is.
    pub(super) fn tell_replicas(&mut self) {
        let (version, members) = (self.log.version, self.log.members.clone());
        self.apply(Event::Decided { version, members });
        let Some(host) = &self.host else { return };
        let known: Vec<ReplicaId> = host.mirror.status().replicas.iter().map(|it| it.replica).collect();
        let there = self.log.replicas.clone();
        for replica in known.iter().copied().filter(|id| !there.contains(id)) {
            self.apply(Event::Removed { replica });
        }
        for replica in there.into_iter().filter(|id| !known.contains(id)) {
            self.apply(Event::Added { replica });
        }
    }
}
