//! The replicas of this node, each in the hands of one session at a time.
//!
//! Made by the daemon at its start and closed at its end. A session with a replica is opened by the volume, if the guest runs here, or
//! by the task of a link ([`crate::serve`]) for another node. The newest counts: one of a newer generation, or a newer one of the same
//! owner, takes the replica from the session before, and begins when nothing of that is under way any more. The highest generation is
//! in the replica's log, on stable storage, before a session of it begins (DESIGN, rule 4).

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use pollux_disk::{CreateError, OpenError};
use pollux_mirror::Tag;
use pollux_wire::id::{Generation, ReplicaId};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{
    claim::{Claim, Opened, Place},
    keeper::{
        Keeper,
        seat::{Seat, Why, drain},
        works::Works,
    },
    log::{
        file::{self, LogError, LogFile},
        frames::Damage,
        ledger::Ledger,
    },
    refusal::{Refusal, in_words},
};

/// A replica that a session has left is closed within this.
const CLOSING_MAX: Duration = Duration::from_secs(1);
/// Between two looks whether it is.
const CLOSING_LOOK: Duration = Duration::from_millis(2);

/// See the module's text. Clones are the same.
#[derive(Debug, Clone)]
pub struct Keepers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    boot: String,
    tasks: TaskTracker,
    entries: Mutex<Entries>,
    #[cfg(test)]
    fault: Option<Fault>,
}

/// What a wrong fence would do, to see that it is noticed.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A session of an older generation begins.
    AcceptsOlder,
    /// A session goes on when one of a newer generation has begun.
    OlderGoesOn,
    /// A session begins while something of the one before is under way.
    DoesNotWait,
}

#[derive(Debug, Default)]
struct Entries {
    closed: bool,
    by_id: BTreeMap<ReplicaId, Arc<tokio::sync::Mutex<Entry>>>,
}

/// A replica. Whoever opens or ends it has this locked, and whoever waits for that has waited before.
#[derive(Debug, Default)]
struct Entry {
    /// The last session that was let in.
    seat: Option<Arc<Seat>>,
    /// The highest generation that was let in.
    fence: Generation,
    /// Between two sessions: taken from the one, and not in the hands of the next.
    between: Option<Box<Works>>,
}

/// The name that the kernel has given to this life of the host.
///
/// # Errors
/// When it does not tell.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

impl Place {
    /// Makes a replica of a volume of `size` bytes, which holds nothing and has never been written. It waits for the storage.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn make(&self, size: u64) -> Result<(), CreateError> {
        self.pool.create_with(&self.name, size, &[(file::NAME, &file::of_a_new_replica())])
    }
}

impl Keepers {
    /// None open yet. `boot`: the life of this host, [`boot_id`].
    #[must_use]
    pub fn new(boot: String) -> Self {
        let (tasks, entries) = (TaskTracker::new(), Mutex::default());
        Self {
            inner: Arc::new(Inner {
                boot,
                tasks,
                entries,
                #[cfg(test)]
                fault: None,
            }),
        }
    }

    /// Begins a session with the replica at `place`, when what an older one has under way is over. Dropping the future leaves the
    /// replica without a session.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn open(&self, claim: &Claim, place: &Place) -> Result<Opened<Keeper>, Refusal> {
        let entry = self.entry(claim.replica)?;
        let mut entry = entry.lock().await;
        #[cfg(test)]
        if let Some(opened) = self.wrongly(&mut entry, claim) {
            return Ok(opened);
        }
        entry.judge(claim)?;
        let why = why_for(claim, entry.fence);
        // Before anything is waited for: who gives up waiting has been seen all the same.
        entry.fence = claim.generation;
        entry.empty(&why).await;
        if entry.between.as_ref().is_none_or(|works| works.failed().is_some() || works.size() != claim.size) {
            // The file is closed first.
            entry.between = None;
            entry.between = Some(Box::new(open_works(claim, place).await?));
        }
        let seen = entry.between.as_ref().map_or(Generation(0), |works| works.fence());
        if seen > claim.generation {
            entry.fence = seen;
            entry.between = None;
            return Err(fenced(claim, seen));
        }
        if seen < claim.generation {
            entry.raise(claim).await?;
        }
        let Some(works) = entry.between.take() else { return Err(unavailable(claim, "it was closed meanwhile")) };
        let report = works.marks().clone();
        let seat = Seat::new(*claim, works, self.inner.tasks.clone());
        entry.seat = Some(Arc::clone(&seat));
        Ok(Opened { side: Keeper::new(seat), report, boot: self.inner.boot.clone() })
    }

    /// Ends the session with a replica, if there is one, and waits until the replica is closed. The session is told `why`.
    pub async fn end(&self, replica: ReplicaId, why: &str) {
        let entry = self.entries().by_id.get(&replica).cloned();
        if let Some(entry) = entry {
            let mut entry = entry.lock().await;
            entry.empty(&Why::Ended(why.to_owned())).await;
            entry.between = None;
        }
    }

    /// Ends all, and waits until everything is closed; nothing is opened from here on.
    pub async fn close(&self) {
        let all: Vec<ReplicaId> = {
            let mut entries = self.entries();
            entries.closed = true;
            entries.by_id.keys().copied().collect()
        };
        for replica in all {
            self.end(replica, "the daemon of its node is being stopped").await;
        }
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    fn entry(&self, replica: ReplicaId) -> Result<Arc<tokio::sync::Mutex<Entry>>, Refusal> {
        let mut entries = self.entries();
        if entries.closed {
            return Err(Refusal::Unavailable { replica, why: "the daemon of its node is being stopped".into() });
        }
        Ok(Arc::clone(entries.by_id.entry(replica).or_default()))
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Whether the claim is newer than whatever was let in before.
    fn judge(&self, claim: &Claim) -> Result<(), Refusal> {
        let replica = claim.replica;
        if claim.generation < self.fence {
            return Err(fenced(claim, self.fence));
        }
        let Some(last) = self.seat.as_ref().map(|seat| seat.claim) else { return Ok(()) };
        if last.generation != claim.generation {
            return Ok(());
        }
        if last.owner != claim.owner {
            return Err(Refusal::NotTheOwner { replica, generation: last.generation, owner: last.owner });
        }
        if last.session > claim.session { Err(Refusal::Overtaken { replica }) } else { Ok(()) }
    }

    /// Takes the works from whoever has them, and waits until nothing is under way.
    async fn empty(&mut self, why: &Why) {
        if let Some(works) = self.seat.as_ref().and_then(|seat| seat.take(why.clone())) {
            self.between = Some(works);
        }
        if let Some(works) = &mut self.between {
            drain(works).await;
        }
    }

    /// Writes the claim's generation down.
    async fn raise(&mut self, claim: &Claim) -> Result<(), Refusal> {
        const ONLY: Tag = Tag(0);
        let Some(works) = &mut self.between else { return Ok(()) };
        works.raise(claim.generation, ONLY);
        let mut done = Vec::new();
        poll_fn(|cx| {
            works.poll(cx, &mut done);
            if works.is_idle() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let outcome = done.pop().map(|done| done.outcome);
        match outcome {
            Some(Ok(_)) => Ok(()),
            Some(Err(failure)) => Err(unavailable(claim, &failure.to_string())),
            None => Err(unavailable(claim, "its log did not say whether it has its generation")),
        }
    }
}

/// How the session before the claim's ends.
fn why_for(claim: &Claim, fence: Generation) -> Why {
    if claim.generation > fence {
        Why::Fenced
    } else {
        Why::Ended(format!("a newer session with {} has begun", claim.replica))
    }
}

async fn open_works(claim: &Claim, place: &Place) -> Result<Works, Refusal> {
    let until = Instant::now() + CLOSING_MAX;
    let replica = loop {
        match place.pool.open_replica(&place.name, claim.size, place.engine).await {
            // A session that has just left is still closing it: its threads let go of the file one after the other, and nobody is
            // told when the kernel has the lock back.
            Err(OpenError::Busy { .. }) if Instant::now() < until => tokio::time::sleep(CLOSING_LOOK).await,
            opened => break opened,
        }
    };
    let replica = replica.map_err(|error| not_opened(claim, &error))?;
    let beside = replica.beside();
    let opened = tokio::task::spawn_blocking(move || {
        LogFile::open(beside.clone()).inspect_err(|error| {
            // As it is written down it is told also to who lists the pool.
            if is_for_good(error)
                && let Err(error) = beside.mark_failed(&in_words(error))
            {
                tracing::error!(%error, "that a replica's log is damaged could not be written down");
            }
        })
    });
    match opened.await {
        Ok(Ok((log, replayed, capacity))) => {
            Ok(Works::new(Box::new(replica), Ledger::new(replayed, claim.size, capacity), log))
        }
        Ok(Err(error @ (LogError::NotThere | LogError::Damaged(_)))) => {
            Err(Refusal::OutOfUse { replica: claim.replica, why: in_words(&error) })
        }
        Ok(Err(error @ LogError::Io(_))) => Err(unavailable(claim, &in_words(&error))),
        Err(error) => Err(unavailable(claim, &error.to_string())),
    }
}

/// No other build of Pollux would read the log either.
fn is_for_good(error: &LogError) -> bool {
    match error {
        LogError::Damaged(damage) => !matches!(damage, Damage::Version { .. } | Damage::Meaning { .. }),
        LogError::NotThere | LogError::Io(_) => false,
    }
}

fn not_opened(claim: &Claim, error: &OpenError) -> Refusal {
    let (replica, why) = (claim.replica, in_words(error));
    match error {
        OpenError::NotThere { .. }
        | OpenError::NotAReplica { .. }
        | OpenError::WrongSize { .. }
        | OpenError::Failed { .. } => Refusal::OutOfUse { replica, why },
        OpenError::Busy { .. } | OpenError::Kernel { .. } => Refusal::Unavailable { replica, why },
    }
}

fn fenced(claim: &Claim, seen: Generation) -> Refusal {
    Refusal::Fenced { replica: claim.replica, generation: claim.generation, seen }
}

fn unavailable(claim: &Claim, why: &str) -> Refusal {
    Refusal::Unavailable { replica: claim.replica, why: why.to_owned() }
}

#[cfg(test)]
#[path = "keepers_tests.rs"]
mod tests;
