//! Model machines behind the product's own traits: what the VM actors drive instead of QEMU.
//!
//! Made by [`Machines`], which belongs to one life of a daemon. A machine's guest beats in a task of its own, from launch to
//! end, whenever it is not paused. Every order takes a little time, as it does with QEMU, and so can be overtaken.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use pollux::vm::{
    host::{Guest, GuestError, Host, Log, Memory, Order, ResumeError, Typed},
    turns::{Purpose, Turn, Turns},
};
use pollux_state::id::{Generation, Owner, VmId};
use pollux_vm::pages::PageSet;
use tokio::{sync::watch, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Control,
    guest::{Program, Stamps},
    recorder::{Frame, Recorder},
};
use crate::Rng;

/// A guest does something this often, in milliseconds.
const BEAT_MS: (u64, u64) = (3, 12);
/// How long orders take, in milliseconds.
const LAUNCH_MS: (u64, u64) = (20, 120);
const LOAD_MS: (u64, u64) = (8, 22);
const SAVE_MS: (u64, u64) = (3, 10);
const ORDER_MS: (u64, u64) = (1, 4);
/// Launches and loads that fail while there are faults, of a thousand.
const FAILING_PERMILLE: u64 = 50;

/// Makes machines for one life of a daemon.
pub(super) struct Machines {
    me: Owner,
    recorder: Arc<Recorder>,
    tasks: TaskTracker,
    dice: Mutex<Rng>,
}

impl Machines {
    pub(super) fn new(me: Owner, recorder: Arc<Recorder>, tasks: TaskTracker, seed: u64) -> Self {
        Self { me, recorder, tasks, dice: Mutex::new(Rng::new(seed)) }
    }

    fn new_dice(&self) -> Rng {
        Rng::new(self.dice.lock().unwrap_or_else(PoisonError::into_inner).bits())
    }
}

#[async_trait]
impl Host for Machines {
    async fn launch(&self, order: Order) -> Result<Arc<dyn Guest>, GuestError> {
        let mut dice = self.new_dice();
        sleep(some(&mut dice, LAUNCH_MS)).await;
        if !self.recorder.calm() && dice.chance(FAILING_PERMILLE) {
            return Err(GuestError("the machine does not start".into()));
        }
        let boot = if order.standby { 0 } else { self.recorder.new_boot() };
        let memory = Arc::new(Stamps::new(self.recorder.clone()));
        let program = Mutex::new(Program::new(memory.clone(), boot, Rng::new(dice.bits())));
        let machine = Arc::new(Machine {
            vm: order.vm,
            me: self.me,
            recorder: self.recorder.clone(),
            memory,
            dice: Mutex::new(Rng::new(dice.bits())),
            program,
            runs: AtomicBool::new(false),
            gate: Mutex::new(None),
            shut: AtomicBool::new(false),
            turns: Mutex::default(),
            over: CancellationToken::new(),
        });
        self.tasks.spawn(machine.over.clone().run_until_cancelled_owned(beat(machine.clone(), dice)));
        Ok(machine)
    }
}

struct Machine {
    vm: VmId,
    me: Owner,
    recorder: Arc<Recorder>,
    memory: Arc<Stamps>,
    dice: Mutex<Rng>,
    program: Mutex<Program>,
    runs: AtomicBool,
    gate: Mutex<Option<Generation>>,
    /// The gate was closed for good.
    shut: AtomicBool,
    /// Which use of the tracker is the current one.
    turns: Mutex<Turns>,
    over: CancellationToken,
}

async fn beat(machine: Arc<Machine>, mut dice: Rng) {
    loop {
        sleep(some(&mut dice, BEAT_MS)).await;
        if !machine.runs.load(Ordering::Acquire) {
            continue;
        }
        let (boot, counter) = {
            let mut program = machine.program();
            program.beat();
            (program.boot, program.counter)
        };
        let gate = *machine.gate();
        if let Some(generation) = gate {
            machine.recorder.frame(Frame { vm: machine.vm, owner: machine.me, generation, boot, counter });
        }
    }
}

fn some(dice: &mut Rng, (least, most): (u64, u64)) -> Duration {
    Duration::from_millis(dice.between(least, most))
}

impl Machine {
    fn program(&self) -> MutexGuard<'_, Program> {
        self.program.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gate(&self) -> MutexGuard<'_, Option<Generation>> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn takes(&self, bounds: (u64, u64)) {
        let time = some(&mut self.dice.lock().unwrap_or_else(PoisonError::into_inner), bounds);
        sleep(time).await;
    }

    fn fails(&self) -> bool {
        let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
        !self.recorder.calm() && dice.chance(FAILING_PERMILLE)
    }
}

#[async_trait]
impl Guest for Machine {
    fn memory(&self) -> Arc<dyn Memory> {
        self.memory.clone()
    }

    async fn resume(&self, generation: Generation) -> Result<(), ResumeError> {
        if self.shut.load(Ordering::Acquire) || self.fails() {
            return Err(ResumeError::StandsStill(GuestError("the gate does not open".into())));
        }
        *self.gate() = Some(generation);
        self.takes(ORDER_MS).await;
        if self.program().boot == 0 {
            self.recorder.violation(format!("a standby of {} runs that was never loaded", self.vm));
        }
        self.runs.store(true, Ordering::Release);
        Ok(())
    }

    async fn pause(&self) -> Result<(), GuestError> {
        self.takes(ORDER_MS).await;
        if self.recorder.control == Some(Control::PauseInVain) {
            return Ok(());
        }
        self.runs.store(false, Ordering::Release);
        *self.gate() = None;
        Ok(())
    }

    async fn close_gate(&self) {
        self.shut.store(true, Ordering::Release);
        *self.gate() = None;
    }

    async fn announce(&self) {}

    async fn throttle(&self, _: u8) -> Result<(), GuestError> {
        Ok(())
    }

    async fn heard(&self) -> tokio::time::Instant {
        tokio::time::Instant::now()
    }

    async fn power_button(&self) -> Result<(), GuestError> {
        Ok(())
    }

    async fn populated(&self) -> Result<PageSet, GuestError> {
        Ok(self.memory.populated())
    }

    async fn track(&self, purpose: Purpose) -> Result<Turn, GuestError> {
        self.takes(ORDER_MS).await;
        let turn = self.turns().begin(purpose)?;
        self.program().track();
        Ok(turn)
    }

    async fn scan(&self, turn: &Turn, dirty: &mut PageSet) -> Result<(), GuestError> {
        self.turns().check(turn)?;
        let forgetful = self.recorder.control == Some(Control::ForgetOnePage);
        if self.program().scan(dirty, forgetful) { Ok(()) } else { Err(GuestError("nobody tracks this guest".into())) }
    }

    async fn save(&self) -> Result<Bytes, GuestError> {
        self.takes(SAVE_MS).await;
        if self.runs.load(Ordering::Acquire) {
            self.recorder.violation(format!("{} was saved while it ran", self.vm));
        }
        Ok(self.program().save())
    }

    async fn load(&self, state: Bytes) -> Result<(), GuestError> {
        self.takes(LOAD_MS).await;
        if self.fails() {
            return Err(GuestError("the device state does not load".into()));
        }
        self.program().load(&state).map_err(|why| {
            self.recorder.violation(why.clone());
            GuestError(why)
        })
    }

    async fn end(&self) {
        self.runs.store(false, Ordering::Release);
        *self.gate() = None;
        self.over.cancel();
    }

    fn log(&self) -> Log {
        Log::default()
    }

    fn written(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }

    fn type_in(&self, _: &[u8]) -> Typed {
        Typed::Shut
    }

    fn remember(&self, _: &Log) {}
}
