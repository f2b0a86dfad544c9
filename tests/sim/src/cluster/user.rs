//! The user: has one VM, moves it round and round, cancels now and then, asks again when no answer comes.
//!
//! Asks through any node whose daemon runs, and believes what that node says. Every acknowledgement is kept, for the end.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pollux_state::{
    Applied, Command, Proposal,
    id::{NodeId, OpId},
    operation::MoveWishes,
    vm::{Desired, Phase, VmSpec},
};

use super::{node::Place, recorder::Recorder};
use crate::Rng;

/// How often a proposal whose outcome is unknown is made again, at most.
const TRIES_MAX: u32 = 4;
/// A user does something this often, in milliseconds.
const DEED_MS: (u64, u64) = (100, 1_500);

pub(super) struct User {
    dice: Rng,
    next: Duration,
    /// What was asked and not answered, with the number of tries.
    open: BTreeMap<OpId, u32>,
    /// What the cluster said it did.
    pub(super) acknowledged: BTreeMap<OpId, Applied>,
    recorder: Arc<Recorder>,
}

impl User {
    pub(super) fn new(dice: Rng, recorder: Arc<Recorder>) -> Self {
        Self { dice, next: Duration::ZERO, open: BTreeMap::new(), acknowledged: BTreeMap::new(), recorder }
    }

    /// Asks for `command` through `place`.
    pub(super) fn ask(&mut self, place: &Place, command: Command) -> OpId {
        let id = OpId(self.dice.bytes());
        let proposal = Proposal { id, by: place.id, at: 1_000, command };
        self.recorder.note(format!("the user asks {} for {:?}", place.name, proposal.command));
        self.open.insert(id, 1);
        // A daemon that is not there is asked in vain.
        place.ask(proposal);
        id
    }

    /// Reads the answers.
    pub(super) fn listen(&mut self, places: &[Arc<Place>]) {
        for place in places {
            for (proposal, result) in place.answers() {
                match result {
                    Ok(applied) => {
                        self.recorder.note(format!("the user hears {:?}", applied.outcome));
                        self.open.remove(&proposal.id);
                        let first = self.acknowledged.entry(proposal.id).or_insert_with(|| applied.clone());
                        if *first != applied {
                            self.recorder.violation(format!("{} was answered twice: {applied:?}", proposal.id));
                        }
                    }
                    Err(why) => {
                        self.recorder.note(format!("the user hears nothing: {why}"));
                        self.ask_again(places, proposal);
                    }
                }
            }
        }
    }

    /// The same proposal, through the same node: it speaks for that one.
    fn ask_again(&mut self, places: &[Arc<Place>], proposal: Proposal) {
        let Some(tries) = self.open.get_mut(&proposal.id) else { return };
        *tries += 1;
        let place = places.iter().find(|place| place.id == proposal.by);
        if *tries > TRIES_MAX || !place.is_some_and(|place| place.ask(proposal.clone())) {
            self.open.remove(&proposal.id);
        }
    }

    /// Does something, when it is time.
    pub(super) fn act(&mut self, now: Duration, places: &[Arc<Place>]) {
        if now < self.next {
            return;
        }
        self.next = now + Duration::from_millis(self.dice.between(DEED_MS.0, DEED_MS.1));
        let place = &places[self.dice.index(places.len())];
        let Some(daemon) = place.daemon() else { return };
        let state = daemon.consensus.watch().borrow().state.clone();
        let Some(vm) = state.vms.values().next() else { return };
        let command = match (&vm.phase, self.dice.below(100)) {
            (Phase::Running { owner }, 0..90) => {
                let others: Vec<NodeId> = state.nodes.keys().copied().filter(|node| *node != owner.node).collect();
                let to = self.dice.pick(&others);
                Command::BeginMove {
                    vm: vm.id,
                    expect: vm.generation,
                    to,
                    wishes: MoveWishes { blackout_ms_max: 200, bandwidth: None, throttle: false, warm: false },
                    along: Vec::new(),
                }
            }
            (Phase::Moving { op, .. } | Phase::Arriving { op, .. }, 0..20) => Command::Cancel { op: *op },
            _ => return,
        };
        self.ask(place, command);
    }
}

/// What the user wants.
pub(super) fn create(home: NodeId) -> Command {
    let spec = VmSpec {
        name: "castor".into(),
        memory_mib: 64,
        vcpus: 1,
        kernel: "/boot/vmlinuz".into(),
        initrd: String::new(),
        append: String::new(),
        nics: Vec::new(),
        machine: "pc-q35-7.2".into(),
        cpu: "qemu64".into(),
        autostart: true,
        disks: Vec::new(),
    };
    Command::CreateVm { spec, home, desired: Desired::Running }
}
