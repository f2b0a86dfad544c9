//! Jobs done by a few threads of this process: where there is no io_uring.
//!
//! Three lanes, so that nothing waits for what it does not depend on. A file takes one write at a time anyway, so one thread
//! does all that changes the file; one does the syncs, which take longest; a few do the reads that find nothing in memory. Threads
//! start with the first job of their kind, and end with the engine, after the jobs they have taken.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::{DataFile, Engine, Finished, Job, Work, blocking};

/// Reads at a time.
const READERS: usize = 4;
/// Ends of writes that are told together while more writes wait: who is woken for each of them spends more on waking than on writing.
const WRITES_TOLD_TOGETHER: usize = 8;
/// How long the first of them waits for the others at most.
const TOLD_AFTER: Duration = Duration::from_micros(100);

/// See the module's text.
pub(crate) struct Threads {
    file: Arc<DataFile>,
    ended: Arc<Mutex<Ended>>,
    changes: Lane,
    reads: Lane,
    syncs: Lane,
}

/// What has ended since the last poll. Bounded by what was pushed.
#[derive(Default)]
struct Ended {
    finished: Vec<Finished>,
    waker: Option<Waker>,
}

struct Lane {
    name: &'static str,
    pushed: Vec<Job>,
    queue: Arc<Queue>,
    threads: usize,
    threads_max: usize,
    told_together: usize,
}

#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    /// With each its file: a thread without a job keeps nobody from the replica.
    jobs: VecDeque<(Arc<DataFile>, Job)>,
    idle: usize,
    over: bool,
}

impl Threads {
    pub(crate) fn new(file: Arc<DataFile>) -> Self {
        Self {
            file,
            ended: Arc::default(),
            changes: Lane::new("disk-write", 1, WRITES_TOLD_TOGETHER),
            reads: Lane::new("disk-read", READERS, 1),
            syncs: Lane::new("disk-sync", 1, 1),
        }
    }
}

impl Engine for Threads {
    fn push(&mut self, job: Job) {
        let lane = match job.work {
            Work::Read { .. } => &mut self.reads,
            Work::Write { .. } | Work::Punch { .. } | Work::Zero { .. } => &mut self.changes,
            Work::Sync => &mut self.syncs,
        };
        lane.pushed.push(job);
    }

    fn poll(&mut self, cx: &mut Context<'_>, finished: &mut Vec<Finished>) -> Poll<()> {
        for lane in [&mut self.reads, &mut self.changes, &mut self.syncs] {
            lane.start(&self.file, &self.ended, finished);
        }
        let mut ended = lock(&self.ended);
        finished.append(&mut ended.finished);
        if finished.is_empty() {
            if !ended.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                ended.waker = Some(cx.waker().clone());
            }
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

impl Lane {
    fn new(name: &'static str, threads_max: usize, told_together: usize) -> Self {
        Self { name, pushed: Vec::new(), queue: Arc::default(), threads: 0, threads_max, told_together }
    }

    /// Gives what was pushed to the lane's threads.
    fn start(&mut self, file: &Arc<DataFile>, ended: &Arc<Mutex<Ended>>, finished: &mut Vec<Finished>) {
        if self.pushed.is_empty() {
            return;
        }
        let jobs = self.pushed.len();
        let (waiting, idle) = {
            let mut state = lock(&self.queue.state);
            state.jobs.extend(self.pushed.drain(..).map(|job| (Arc::clone(file), job)));
            (state.jobs.len(), state.idle)
        };
        for _ in 0..jobs.min(idle) {
            self.queue.changed.notify_one();
        }
        let wanted = waiting.saturating_sub(idle).min(self.threads_max - self.threads);
        for _ in 0..wanted {
            let (ended, queue) = (Arc::clone(ended), Arc::clone(&self.queue));
            let together = self.told_together;
            let spawned =
                std::thread::Builder::new().name(self.name.to_owned()).spawn(move || work(&ended, &queue, together));
            match spawned {
                Ok(_) => self.threads += 1,
                Err(error) if self.threads == 0 => {
                    tracing::error!(%error, "no thread for the storage's work can be started");
                    let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::AGAIN);
                    finished.extend(lock(&self.queue.state).jobs.drain(..).map(|(_, job)| refuse(job, errno)));
                }
                // Those there are do it, later.
                Err(_) => break,
            }
        }
    }
}

fn refuse(job: Job, errno: rustix::io::Errno) -> Finished {
    let buffer = match job.work {
        Work::Read { buffer, .. } => Some(buffer),
        Work::Write { .. } | Work::Punch { .. } | Work::Zero { .. } | Work::Sync => None,
    };
    Finished { id: job.id, result: Err(errno), buffer }
}

/// A thread of a lane.
fn work(ended: &Mutex<Ended>, queue: &Queue, together: usize) {
    // Ends that nobody was woken for, and since when there are any.
    let (mut untold, mut since) = (0, Instant::now());
    let mut state = lock(&queue.state);
    loop {
        if let Some((file, job)) = state.jobs.pop_front() {
            drop(state);
            let finished = blocking::perform(&file.data, job);
            // Before its end is told: who hears of the last one may give the replica to somebody else.
            drop(file);
            state = lock(&queue.state);
            if untold == 0 {
                since = Instant::now();
            }
            untold += 1;
            let tell = state.jobs.is_empty() || untold >= together || since.elapsed() >= TOLD_AFTER;
            let waker = {
                let mut ended = lock(ended);
                ended.finished.push(finished);
                if tell { ended.waker.take() } else { None }
            };
            if tell {
                untold = 0;
            }
            if let Some(waker) = waker {
                drop(state);
                waker.wake();
                state = lock(&queue.state);
            }
        } else if state.over {
            return;
        } else {
            state.idle += 1;
            state = queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        lock(&self.queue.state).over = true;
        self.queue.changed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
