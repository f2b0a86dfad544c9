//! The machine's worker: carries out what the core wants done with the machine, one thing after another.
//!
//! One task per VM actor, started with it and ended by it. Jobs come in through a bounded queue in the order of the
//! core's effects; what comes of them goes back into the actor's mailbox as events. `End` overtakes a job under way, for
//! killing must not wait for a guest that does not answer; a launch alone is always seen to its end, so that nothing of it
//! can stay behind.

use std::sync::Arc;

use bytes::Bytes;
use pollux_state::id::Generation;
use pollux_vm::{Event, Ticket};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, Span};

use super::{
    actor::Mail,
    hold::{self, Place},
    host::{Guest, GuestError, GuestEvent, Host, Order, ResumeError},
};

/// Jobs that may wait. The core has at most a handful open at once.
const JOBS_MAX: usize = 16;
/// Things a machine says that may wait for the actor.
const GUEST_EVENTS_MAX: usize = 16;

/// One thing to do with the machine.
#[derive(Debug)]
pub(super) enum Job {
    /// `number`: of the machine; everything it says goes under it.
    Launch {
        number: u64,
        order: Box<Order>,
        reports: mpsc::Receiver<GuestEvent>,
    },
    /// Under this generation, by the log's answer to that question.
    Resume(Generation, Option<Ticket>),
    Pause,
    PowerButton,
    Settle,
    Announce,
    Throttle(u8),
    Load(Bytes),
    End,
}

/// The actor's end of the queue.
pub(super) struct Worker {
    /// Each with the span of what made it necessary.
    jobs: mpsc::Sender<(Job, Span)>,
    doom: CancellationToken,
    renew: mpsc::Sender<CancellationToken>,
}

struct Bench {
    host: Arc<dyn Host>,
    mail: mpsc::Sender<Mail>,
    tasks: TaskTracker,
    guest: Option<Arc<dyn Guest>>,
    /// Of the machine that was made last.
    number: u64,
    doom: CancellationToken,
}

impl Worker {
    pub(super) fn start(host: Arc<dyn Host>, mail: mpsc::Sender<Mail>, tasks: &TaskTracker) -> Self {
        let (jobs, mut queue) = mpsc::channel(JOBS_MAX);
        let (renew, mut renewed) = mpsc::channel(JOBS_MAX);
        let doom = CancellationToken::new();
        let mut bench = Bench { host, mail, tasks: tasks.clone(), guest: None, number: 0, doom: doom.clone() };
        tasks.spawn(async move {
            let mut span = Span::none();
            while let Some((job, of)) = queue.recv().await {
                span = of;
                let ending = matches!(job, Job::End);
                bench.carry_out(job).instrument(span.clone()).await;
                if ending && let Some(doom) = renewed.recv().await {
                    bench.doom = doom;
                }
            }
            // The actor is gone: so is its machine.
            bench.end().instrument(span).await;
        });
        Self { jobs, doom, renew }
    }

    /// Presses the power button, unless the machine is busy: it is pressed again anyway.
    pub(super) fn press(&self) {
        let _ = self.jobs.try_send((Job::PowerButton, Span::current()));
    }

    /// Queues a job. A full queue waits: the core never has that many open.
    pub(super) async fn queue(&mut self, job: Job) {
        if matches!(job, Job::End) {
            self.doom.cancel();
            self.doom = CancellationToken::new();
            // The worker takes the new token with the end that it follows.
            let _ = self.renew.send(self.doom.clone()).await;
        }
        // The worker ends only after this sender is dropped.
        let _ = self.jobs.send((job, Span::current())).await;
    }
}

impl Drop for Worker {
    /// The actor is gone: what still waits in the queue must not be done to its machine.
    fn drop(&mut self) {
        self.doom.cancel();
    }
}

/// The channel on which a machine reports.
pub(super) fn reports() -> (mpsc::Sender<GuestEvent>, mpsc::Receiver<GuestEvent>) {
    mpsc::channel(GUEST_EVENTS_MAX)
}

impl Bench {
    async fn carry_out(&mut self, job: Job) {
        match job {
            // An end follows, or the actor is gone.
            Job::Launch { .. } if self.doom.is_cancelled() => {}
            Job::Launch { number, order, reports } => self.launch(number, *order, reports).await,
            Job::End => {
                self.end().await;
                self.tell(Mail::GuestGone).await;
                self.tell(Mail::Event(Event::Gone)).await;
            }
            job @ (Job::Resume(..)
            | Job::Pause
            | Job::PowerButton
            | Job::Settle
            | Job::Announce
            | Job::Throttle(_)
            | Job::Load(_)) => {
                let Some(guest) = self.guest.clone() else { return };
                let doom = self.doom.clone();
                if matches!(job, Job::Pause) {
                    doom.run_until_cancelled(guest.before_pause()).await;
                    self.tell(Mail::Pausing(Instant::now())).await;
                }
                tokio::select! {
                    biased;
                    () = doom.cancelled() => {}
                    event = drive(guest, job) => if let Some(event) = event { self.tell(self.of_machine(event)).await },
                }
            }
        }
    }

    async fn launch(&mut self, number: u64, order: Order, mut reports: mpsc::Receiver<GuestEvent>) {
        self.end().await;
        self.number = number;
        let event = match self.host.launch(order).await {
            Ok(guest) => {
                self.guest = Some(guest.clone());
                let mail = self.mail.clone();
                let doom = self.doom.clone();
                self.tasks.spawn(async move {
                    loop {
                        let said = tokio::select! {
                            biased;
                            () = doom.cancelled() => return,
                            said = reports.recv() => said,
                        };
                        let event = match said {
                            Some(GuestEvent::Off) => Event::GuestOff,
                            Some(GuestEvent::Ended(why)) => Event::MachineEnded(why),
                            None => return,
                        };
                        // Nothing of a doomed machine may reach the actor after its end.
                        tokio::select! {
                            biased;
                            () = doom.cancelled() => return,
                            sent = mail.send(Mail::Machine { number, event }) => if sent.is_err() { return },
                        }
                    }
                });
                self.tell(Mail::Guest(guest)).await;
                Event::MachineReady
            }
            Err(error) => Event::MachineFailed(error.to_string()),
        };
        self.tell(self.of_machine(event)).await;
    }

    /// What is said of the machine made last. Of one that has been replaced meanwhile the actor does not want to hear.
    fn of_machine(&self, event: Event) -> Mail {
        Mail::Machine { number: self.number, event }
    }

    async fn end(&mut self) {
        if let Some(guest) = self.guest.take() {
            guest.end().await;
        }
    }

    async fn tell(&self, mail: Mail) {
        // An actor that is gone needs no telling.
        let _ = self.mail.send(mail).await;
    }
}

async fn held_load(guest: &dyn Guest, state: Bytes) -> Result<(), GuestError> {
    hold::at(Place::Load).await;
    guest.load(state).await
}

async fn drive(guest: Arc<dyn Guest>, job: Job) -> Option<Event> {
    // A machine that does not do what it is told is as good as ended: the core gives its right to run up in good order.
    let ended =
        |what: &str, error: GuestError| Some(Event::MachineEnded(format!("could not {what} the guest: {error}")));
    match job {
        Job::Resume(generation, proof) => {
            // First the kernel's fence, which decides by itself whether the answer is still young enough. Behind it the gate is
            // closed.
            if let Some(proof) = proof {
                guest.unlock(proof);
            }
            match guest.resume(generation).await {
                Ok(()) => Some(Event::Resumed),
                Err(ResumeError::StandsStill(why)) => Some(Event::NotResumed(why.to_string())),
                Err(ResumeError::Unknown(why)) => {
                    Some(Event::ResumeUnknown(format!("could not continue the guest: {why}")))
                }
            }
        }
        Job::Pause => match guest.pause().await {
            Ok(()) => Some(Event::Paused),
            Err(error) => ended("pause", error),
        },
        Job::PowerButton => {
            if let Err(error) = guest.power_button().await {
                tracing::warn!(%error, "the power button could not be pressed");
            }
            None
        }
        Job::Settle => {
            guest.settle().await;
            Some(Event::Settled)
        }
        Job::Announce => {
            guest.announce().await;
            None
        }
        Job::Throttle(percent) => {
            let set = guest.throttle(percent).await;
            set.err().map(|error| Event::NotThrottled(error.to_string()))
        }
        Job::Load(state) => match held_load(&*guest, state).await {
            Ok(()) => Some(Event::Loaded),
            Err(error) => Some(Event::LoadFailed(error.to_string())),
        },
        Job::Launch { .. } | Job::End => None,
    }
}
