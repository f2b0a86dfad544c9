//! What is seen of a simulated cluster from outside, and the rules it must keep.
//!
//! Shared by everything in a run. Nodes' watchers tell it every state they apply, machines every frame that leaves them. It
//! keeps the first rule that is broken, and the last lines of what happened.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pollux_raft::View;
use pollux_state::{
    ClusterState,
    id::{Generation, NodeId, Owner, VmId},
    operation::OperationResult,
};

use super::Control;

/// Lines that a failure shows.
const TAIL_LINES: usize = 120;

/// Something that left a machine through its gate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) vm: VmId,
    pub(super) owner: Owner,
    pub(super) generation: Generation,
    pub(super) boot: u64,
    pub(super) counter: u64,
}

/// What has been seen, for the outcome of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) frames: u64,
    pub(super) boots: u64,
    pub(super) moves: u64,
    pub(super) failed: u64,
    pub(super) cancelled: u64,
}

pub(super) struct Recorder {
    /// The defect of this run, if there is one.
    pub(super) control: Option<Control>,
    print: bool,
    calm: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Simulated time, as far as the run has come.
    now: Duration,
    violation: Option<String>,
    tail: VecDeque<String>,
    trace: DefaultHasher,
    /// A digest of the state after each entry, by the entry's index: the same on every node.
    states: BTreeMap<u64, u64>,
    /// What each node's daemon has applied in this life.
    applied: BTreeMap<NodeId, u64>,
    newest: View,
    /// Who owned which generation, by the log.
    owners: BTreeMap<(VmId, Generation), Owner>,
    last: BTreeMap<VmId, (Frame, Duration)>,
    seen: Seen,
}

impl Recorder {
    pub(super) fn new(print: bool, control: Option<Control>) -> Self {
        Self { control, print, calm: AtomicBool::new(false), inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on nothing fails by itself.
    pub(super) fn calm_down(&self) {
        self.calm.store(true, Ordering::Release);
    }

    pub(super) fn calm(&self) -> bool {
        self.calm.load(Ordering::Acquire)
    }

    pub(super) fn set_now(&self, now: Duration) {
        self.lock().now = now;
    }

    pub(super) fn note(&self, line: String) {
        self.lock().note(self.print, line);
    }

    pub(super) fn violation(&self, what: String) {
        let mut inner = self.lock();
        inner.note(self.print, format!("BROKEN: {what}"));
        inner.violation.get_or_insert(what);
    }

    pub(super) fn broken(&self) -> Option<String> {
        self.lock().violation.clone()
    }

    pub(super) fn tail(&self) -> Vec<String> {
        self.lock().tail.iter().cloned().collect()
    }

    /// Of the order in which decisions were made: the same for histories that are the same.
    pub(super) fn trace_hash(&self) -> u64 {
        self.lock().trace.finish()
    }

    pub(super) fn entries(&self) -> u64 {
        self.lock().newest.applied
    }

    pub(super) fn seen(&self) -> Seen {
        let inner = self.lock();
        let mut seen = inner.seen.clone();
        for operation in inner.newest.state.operations.values() {
            match &operation.ended {
                Some((
                    _,
                    OperationResult::Succeeded(_) | OperationResult::VolumeMoved(_) | OperationResult::Relocated,
                )) => seen.moves += 1,
                Some((_, OperationResult::Failed { .. })) => seen.failed += 1,
                Some((_, OperationResult::Cancelled)) => seen.cancelled += 1,
                None => {}
            }
        }
        seen
    }

    /// The newest state that any node has applied.
    pub(super) fn newest(&self) -> View {
        self.lock().newest.clone()
    }

    /// The last frame of a VM, and how long ago it was.
    pub(super) fn last_frame(&self, vm: VmId) -> Option<(Frame, Duration)> {
        let inner = self.lock();
        inner.last.get(&vm).map(|(frame, at)| (*frame, inner.now.saturating_sub(*at)))
    }

    /// A guest starts from nothing.
    pub(super) fn new_boot(&self) -> u64 {
        let mut inner = self.lock();
        inner.seen.boots += 1;
        inner.seen.boots
    }

    /// A node's daemon starts, and applies what it has from the beginning.
    pub(super) fn begin_life(&self, node: NodeId) {
        self.lock().applied.remove(&node);
    }

    /// A node has applied that much.
    pub(super) fn applied(&self, node: NodeId, view: &View) {
        if view.applied == 0 {
            return;
        }
        let mut inner = self.lock();
        if let Err(what) = inner.applied(self.print, node, view) {
            inner.note(self.print, format!("BROKEN: {what}"));
            inner.violation.get_or_insert(what);
        }
    }

    /// A frame left a machine.
    pub(super) fn frame(&self, frame: Frame) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        let mut inner = self.lock();
        inner.seen.frames += 1;
        if let Err(what) = inner.judge(&frame) {
            inner.note(self.print, format!("BROKEN: {what}"));
            inner.violation.get_or_insert(what);
        }
        inner.last.insert(frame.vm, (frame, at));
    }
}

impl Inner {
    fn note(&mut self, print: bool, line: String) {
        let at = turmoil::sim_elapsed().unwrap_or(self.now);
        let line = format!("{:>9.3} {line}", at.as_secs_f64());
        if print {
            println!("{line}");
        }
        if self.tail.len() >= TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    fn applied(&mut self, print: bool, node: NodeId, view: &View) -> Result<(), String> {
        let View { applied, state } = view;
        if self.applied.insert(node, *applied).is_some_and(|before| before > *applied) {
            return Err(format!("{node} went back to entry {applied}"));
        }
        let digest = digest(state);
        if *self.states.entry(*applied).or_insert(digest) != digest {
            return Err(format!("{node} has another state than others at entry {applied}"));
        }
        state.check().map_err(|violation| format!("entry {applied}: {violation}"))?;
        if *applied > self.newest.applied {
            let before = std::mem::replace(&mut self.newest, view.clone());
            self.step(print, &before.state, view)?;
        }
        Ok(())
    }

    /// What must hold from one state to a later one, whatever lay between.
    fn step(&mut self, print: bool, before: &Arc<ClusterState>, view: &View) -> Result<(), String> {
        let View { applied, state } = view;
        for (id, node) in &before.nodes {
            if state.nodes.get(id).is_some_and(|after| after.incarnation < node.incarnation) {
                return Err(format!("entry {applied}: {id} went back to an earlier life"));
            }
        }
        for (id, vm) in &state.vms {
            let old = before.vms.get(id);
            let (was, is) = (old.map(|old| (old.generation, old.phase.owner())), (vm.generation, vm.phase.owner()));
            if was.is_some_and(|was| was.0 > is.0) {
                return Err(format!("entry {applied}: the generation of {id} went back"));
            }
            // A generation has one owner for ever (rule 1).
            if let Some(owner) = is.1
                && *self.owners.entry((*id, is.0)).or_insert(owner) != owner
            {
                return Err(format!("entry {applied}: {id} has a second owner at {}", is.0));
            }
            if old.map(|old| &old.phase) != Some(&vm.phase) {
                let line = format!("{id} {} {}", vm.generation, vm.phase);
                line.hash(&mut self.trace);
                self.note(print, format!("entry {applied}: {line}"));
            }
        }
        Ok(())
    }

    fn judge(&self, frame: &Frame) -> Result<(), String> {
        let Frame { vm, owner, generation, boot, counter } = *frame;
        if let Some(owns) = self.owners.get(&(vm, generation))
            && *owns != owner
        {
            return Err(format!("rule 1: {owner} lets frames of {vm} out at {generation}, which is {owns}'s"));
        }
        let Some((last, _)) = self.last.get(&vm) else { return Ok(()) };
        if generation < last.generation || (generation == last.generation && owner != last.owner) {
            return Err(format!(
                "rule 1: {owner} lets frames of {vm} out at {generation} after {} did at {}",
                last.owner, last.generation
            ));
        }
        if boot < last.boot || (boot == last.boot && counter <= last.counter) {
            return Err(format!(
                "memory went back: {vm} in {owner} counts {counter} of boot {boot} after {} of boot {}",
                last.counter, last.boot
            ));
        }
        Ok(())
    }
}

fn digest(state: &ClusterState) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{state:?}").hash(&mut hasher);
    hasher.finish()
}
