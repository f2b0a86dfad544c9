//! Whole copies of guests, and who gives up the last of them.
//!
//! The ledger stays intact whenever a whole copy survived that could still get the right to run (DESIGN, rule 17). So no entry
//! of the log may take that right from all of them, and no core may end the last one.
//!
//! A copy is whole if it is consistent and holds everything that was ever acknowledged: the source's own machine, running or
//! paused, or a standby that has every page and the device state that fits. It survives as long as its machine and its daemon
//! do: one that ends, in whatever way, takes its copies with it (docs/adr/0004), and so does a host that cannot record that
//! the guest may act. The right can be had by whom the phase names, in a life that is current: everybody else is fenced off.
//!
//! Whatever else gives the last whole copy up must be an [`Exception`].

use pollux_state::{
    ClusterState, Command,
    id::{OpId, Owner, VmId},
    vm::{Phase, StopCause},
};

use super::{agenda::Process, daemon::LIMITS, fault::LEADERLESS_MS, guest::State, world::World};

/// When a whole copy may be given up although it survived. These are all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exception {
    /// The guest switched itself off, a user wants it stopped, or an operator declared its host lost. That the first two are
    /// true is checked elsewhere.
    Wished,
    /// The guest acted at the target, or nobody can know that it did not: the source's copy may be an older one. What lets
    /// nobody know is QEMU's end before it answered, a record on disk that the guest may act, or a host that forgot its
    /// records together with a daemon that could not say before how it was.
    MayHaveActed,
    /// The target was sent everything and said nothing for as long as a source waits, all that time with a leader to say it
    /// to, as far as the source had heard. It is cut off, or asleep, and the source has no copy any more.
    Silent,
    /// The source called the move off while it still had its copy, as far as it had heard, and the log took its word.
    CalledOff,
}

impl Exception {
    fn name(self) -> &'static str {
        match self {
            Self::Wished => "wished",
            Self::MayHaveActed => "may_have_acted",
            Self::Silent => "silent",
            Self::CalledOff => "called_off",
        }
    }
}

impl World {
    /// An entry of the log was applied to the state `before`.
    pub(super) fn check_survival(&mut self, before: &ClusterState, command: &Command) {
        let phase = |vm: &VmId| self.log.state.vms.get(vm).map(|vm| vm.phase.clone());
        let changes = before.vms.values().map(|vm| (vm.id, vm.phase.clone(), phase(&vm.id)));
        let changes: Vec<_> = changes.filter(|(_, before, after)| after.as_ref() != Some(before)).collect();
        for (vm, before, after) in changes {
            let had = self.survivors(vm, Some(&before));
            if !self.survivors(vm, after.as_ref()).is_empty() {
                continue;
            }
            if had.is_empty() {
                self.note_too_early(vm, &before, command);
                continue;
            }
            match self.exception(vm, &before, command) {
                Some(exception) => *self.oracle.given_up.entry(exception.name()).or_default() += 1,
                None => self.violate(format!(
                    "{vm}, {before}, is given up by {command:?}, although a whole copy of it survived in {had:?} (rule 17)"
                )),
            }
        }
    }

    /// Nobody has a whole copy, but one may be on its way.
    fn note_too_early(&mut self, vm: VmId, before: &Phase, command: &Command) {
        if let Phase::Moving { op, .. } = before
            && self.oracle.handed.contains_key(op)
            && self.exception(vm, before, command).is_none()
        {
            self.oracle.too_early.insert(*op, format!("{command:?}"));
        }
    }

    /// A target has every page and the device state.
    pub(super) fn check_arrival(&mut self, process: Process, vm: VmId, op: OpId) {
        let life = self.daemon(process).and_then(|daemon| daemon.life);
        let whole = life.is_some_and(|life| self.log.state.lives(life) && self.holds_whole(life, vm, Some(op)));
        if let Some(command) = self.oracle.too_early.remove(&op).filter(|_| whole) {
            self.violate(format!(
                "{vm} was given up by {command}, although a whole copy of it survived on its way to {life:?} (rule 17)"
            ));
        }
    }

    /// A core is about to end its machine.
    pub(super) fn check_last_copy(&mut self, process: Process, vm: VmId) {
        let Some(life) = self.daemon(process).and_then(|daemon| daemon.life) else { return };
        let phase = self.log.state.vms.get(&vm).map(|vm| vm.phase.clone());
        if self.survivors(vm, phase.as_ref()) == [life] {
            self.violate(format!("{life} ends the last whole copy of {vm}, which it may still get to run (rule 17)"));
        }
    }

    /// A core proposes something.
    pub(super) fn note_abort(&mut self, process: Process, command: &Command) {
        let Command::AbortMove { vm, op, .. } = command else { return };
        let mourned = self.machine(process, *vm).filter(|machine| machine.acted).map(|machine| machine.mourned);
        match mourned {
            Some(false) => self.oracle.called_off.insert(*op),
            Some(true) => self.oracle.called_off.remove(op),
            None => false,
        };
    }

    /// Who holds a whole copy and has the right to run it in `phase`, or could get it.
    fn survivors(&self, vm: VmId, phase: Option<&Phase>) -> Vec<Owner> {
        let candidates = match phase {
            Some(Phase::Running { owner }) => vec![(*owner, None)],
            Some(Phase::Moving { op, from, to } | Phase::Arriving { op, from, to }) => {
                vec![(*from, None), (*to, Some(*op))]
            }
            Some(Phase::Stopped { .. }) | None => vec![],
        };
        let fit =
            |(owner, by): &(Owner, Option<OpId>)| self.log.state.lives(*owner) && self.holds_whole(*owner, vm, *by);
        candidates.into_iter().filter(fit).map(|(owner, _)| owner).collect()
    }

    /// `by`: the move by which it came there, if that is not over.
    fn holds_whole(&self, owner: Owner, vm: VmId, by: Option<OpId>) -> bool {
        let daemon = self.nodes[self.node_of(owner.node)].daemon.as_ref();
        let daemon = daemon.filter(|daemon| daemon.life == Some(owner) && !daemon.leaving);
        let Some(part) = daemon.and_then(|daemon| daemon.parts.get(&vm)) else { return false };
        let Some(machine) = part.machine.as_ref().filter(|machine| !machine.doomed && !machine.unfit) else {
            return false;
        };
        if by.is_some_and(|op| part.admitted.is_none_or(|(admitted, ..)| admitted != op)) {
            return false;
        }
        let own = machine.acted && matches!(machine.state, State::Still | State::Runs);
        let received = part.device == Some(machine.guest.digest());
        let arrived = machine.standby && !machine.acted && machine.state == State::Still && received;
        let (counted, acknowledged) = (machine.counted(), self.oracle.ledger.get(&vm));
        let current = acknowledged.is_none_or(|it| (counted.boot, counted.counter) >= (it.boot, it.counter));
        (own || arrived) && current
    }

    fn exception(&self, vm: VmId, before: &Phase, command: &Command) -> Option<Exception> {
        match (command, before) {
            (Command::ReleaseLost { .. } | Command::TakeBack { .. }, _)
            | (Command::Release { cause: StopCause::Operator | StopCause::GuestPowerOff, .. }, _) => {
                Some(Exception::Wished)
            }
            (Command::Release { .. } | Command::Arrived { .. }, Phase::Arriving { to, .. }) => {
                self.may_have_acted(*to, vm).then_some(Exception::MayHaveActed)
            }
            (Command::AbortMove { .. }, Phase::Moving { op, .. }) if self.oracle.called_off.contains(op) => {
                Some(Exception::CalledOff)
            }
            (Command::AbortMove { .. } | Command::Claim { .. } | Command::Release { .. }, Phase::Moving { op, .. }) => {
                let handed = self.oracle.handed.get(op)?;
                let waited = self.log.up_ms(self.now) - handed + LEADERLESS_MS;
                (waited >= LIMITS.decide_ms).then_some(Exception::Silent)
            }
            _ => None,
        }
    }

    /// As far as anybody can know, once this life of the target lets the VM go.
    fn may_have_acted(&self, target: Owner, vm: VmId) -> bool {
        let host = &self.nodes[self.node_of(target.node)];
        let daemon = host.daemon.as_ref().filter(|daemon| daemon.life == Some(target));
        if let Some(machine) = daemon.and_then(|daemon| daemon.parts.get(&vm)?.machine.as_ref()) {
            return machine.acted || machine.unknown;
        }
        let forgot = |record: &super::world::Record| record.boot != host.boot && !record.in_order;
        host.records.get(&vm).is_some_and(|record| record.committed_to_run || forgot(record))
    }
}
