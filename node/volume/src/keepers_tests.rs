//! Keepers over a disk whose operations end when the test says so, with a log that is a real one.

use std::{
    fs::{self, File},
    mem,
    pin::pin,
    task::{Context, Waker},
    time::Duration,
};

use pollux_disk::{Completion, Disk, EngineKind, Operation, Outcome, Pool, Tag as DiskTag};
use pollux_mirror::{Change, Extents, Failure, Part};
use pollux_wire::id::{Incarnation, NodeId, Owner, VolumeId};

use super::*;
use crate::{
    log::frames,
    side::{Ask, Broken, Done, Side},
};

const SIZE: u64 = 1 << 24;
const HERE: ReplicaId = ReplicaId(7);
const PATIENCE: Duration = Duration::from_secs(60);

/// What was asked of the disk and has not ended.
#[derive(Debug, Default)]
struct Gate {
    held: Vec<DiskTag>,
    ended: Vec<DiskTag>,
    waker: Option<Waker>,
}

type Gated = Arc<Mutex<Gate>>;

struct Held(Gated);

impl Disk for Held {
    fn size(&self) -> u64 {
        SIZE
    }

    fn fast_zeroes(&self) -> bool {
        true
    }

    fn submit(&mut self, tag: DiskTag, _: Operation) {
        self.0.lock().unwrap().held.push(tag);
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<()> {
        let mut gate = self.0.lock().unwrap();
        gate.waker = Some(cx.waker().clone());
        let before = done.len();
        done.extend(gate.ended.drain(..).map(|tag| Completion { tag, result: Ok(Outcome::Done) }));
        if done.len() > before { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Everything that is under way ends.
fn release(gate: &Gated) {
    let mut gate = gate.lock().unwrap();
    let mut held = mem::take(&mut gate.held);
    gate.ended.append(&mut held);
    if let Some(waker) = gate.waker.take() {
        waker.wake();
    }
}

struct World {
    directory: tempfile::TempDir,
    place: Place,
    keepers: Keepers,
}

impl World {
    fn new(fault: Option<Fault>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pool = Pool::open(directory.path()).unwrap();
        let place = Place { pool, name: "v".to_owned(), engine: EngineKind::Threads };
        place.make(SIZE).unwrap();
        let (tasks, entries) = (TaskTracker::new(), Mutex::default());
        let keepers = Keepers { inner: Arc::new(Inner { boot: "a boot".to_owned(), tasks, entries, fault }) };
        Self { directory, place, keepers }
    }

    /// Has the replica be open with a disk that holds what it is asked.
    async fn held(&self, divert: Option<File>) -> Gated {
        let claim = claim(1, 1);
        let replica = self.place.pool.open_replica("v", SIZE, EngineKind::Threads).await.unwrap();
        let (mut log, replayed, capacity) = LogFile::open(replica.beside()).unwrap();
        if let Some(file) = divert {
            log = log.diverted(file);
        }
        let gate = Gated::default();
        let works = Works::new(Box::new(Held(gate.clone())), Ledger::new(replayed, claim.size, capacity), log);
        self.keepers.entry(HERE).unwrap().lock().await.between = Some(Box::new(works));
        gate
    }

    async fn open(&self, claim: &Claim) -> Result<Keeper, Refusal> {
        self.keepers.open(claim, &self.place).await.map(|opened| opened.side)
    }

    fn log(&self) -> frames::Replayed {
        frames::replay(&fs::read(self.directory.path().join("v/log")).unwrap()).unwrap()
    }
}

fn claim(node: u64, generation: u64) -> Claim {
    let owner = Owner { node: NodeId(node), incarnation: Incarnation(node) };
    Claim::new(VolumeId(3), HERE, Generation(generation), owner, SIZE)
}

fn write(tag: u64) -> Ask {
    let data = vec![pollux_disk::Piece::Data(vec![1; 4096].into())];
    Ask { tag: Tag(tag), part: Part::Change { change: Change::Write, durable: false }, range: 0..4096, data }
}

/// Goes on with a session until this is so.
async fn until(keeper: &mut Keeper, mut so: impl FnMut(&[Done]) -> bool) -> Result<Vec<Done>, Broken> {
    let mut done = Vec::new();
    let waiting = poll_fn(|cx| {
        while !so(&done) {
            match keeper.poll(cx, &mut done) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                // What this has begun may be what is waited for.
                Poll::Pending if !so(&done) => return Poll::Pending,
                Poll::Pending => {}
            }
        }
        Poll::Ready(Ok(()))
    });
    tokio::time::timeout(PATIENCE, waiting).await.expect("the test hangs")?;
    Ok(done)
}

/// A session with one write that the disk has not ended.
async fn with_one_under_way(world: &World, gate: &Gated, claim: &Claim) -> Keeper {
    let mut keeper = world.open(claim).await.unwrap();
    keeper.submit(write(1));
    let reached = || !gate.lock().unwrap().held.is_empty();
    until(&mut keeper, |_| reached()).await.unwrap();
    keeper
}

impl Keepers {
    /// What a wrong one lets in, at the entry's cost.
    pub(super) fn wrongly(&self, entry: &mut Entry, claim: &Claim) -> Option<Opened<Keeper>> {
        let opened =
            |seat| Opened { side: Keeper::new(seat), report: pollux_mirror::Marks::default(), boot: String::new() };
        let seat = entry.seat.clone()?;
        match self.inner.fault? {
            Fault::AcceptsOlder if claim.generation < entry.fence => {
                let works = seat.take(Why::Fenced)?;
                let seat = Seat::new(*claim, works, self.inner.tasks.clone());
                entry.seat = Some(seat.clone());
                Some(opened(seat))
            }
            Fault::OlderGoesOn if claim.generation > entry.fence => Some(opened(seat)),
            Fault::DoesNotWait => {
                let works = seat.take(Why::Fenced)?;
                let seat = Seat::new(*claim, works, self.inner.tasks.clone());
                entry.seat = Some(seat.clone());
                Some(opened(seat))
            }
            Fault::AcceptsOlder | Fault::OlderGoesOn => None,
        }
    }
}

async fn the_older_is_refused(fault: Option<Fault>) -> Result<(), String> {
    let world = World::new(fault);
    let _newer = world.open(&claim(1, 6)).await.unwrap();
    match world.open(&claim(2, 5)).await {
        Err(Refusal::Fenced { seen: Generation(6), .. }) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

async fn the_older_is_refused_in_its_session(fault: Option<Fault>) -> Result<(), String> {
    let world = World::new(fault);
    let gate = world.held(None).await;
    let mut older = with_one_under_way(&world, &gate, &claim(1, 5)).await;
    let newer = claim(2, 6);
    let mut opening = pin!(world.open(&newer));
    let mut opened = None;
    let mut poll_opening = poll_fn(|cx| Poll::Ready(opening.as_mut().poll(cx)));
    if let Poll::Ready(keeper) = (&mut poll_opening).await {
        opened = Some(keeper);
    }
    older.submit(write(2));
    release(&gate);
    // What reaches the disk all the same ends there, and is seen by that.
    let ended = |done: &[Done]| {
        release(&gate);
        done.len() == 2
    };
    let done = until(&mut older, ended).await.map_err(|broken| broken.why)?;
    if !done.iter().all(|done| done.outcome == Err(Failure::Fenced)) {
        return Err(format!("{done:?}"));
    }
    if opened.is_none() {
        opening.await.unwrap();
    }
    Ok(())
}

async fn the_next_waits_for_what_is_under_way(fault: Option<Fault>, leaves: bool) -> Result<(), String> {
    let world = World::new(fault);
    let gate = world.held(None).await;
    let mut older = Some(with_one_under_way(&world, &gate, &claim(1, 5)).await);
    if leaves {
        older = None;
    }
    let newer = claim(1, 5);
    let mut opening = pin!(world.open(&newer));
    for _ in 0..20 {
        tokio::task::yield_now().await;
        let early = poll_fn(|cx| Poll::Ready(opening.as_mut().poll(cx).is_ready())).await;
        if early {
            return Err("it did not wait".into());
        }
    }
    release(&gate);
    let _newer = tokio::time::timeout(PATIENCE, opening).await.expect("the test hangs").unwrap();
    match older {
        None => Ok(()),
        Some(mut older) => match until(&mut older, |_| false).await {
            Err(Broken { why }) if why.contains("newer session") => Ok(()),
            other => Err(format!("{other:?}")),
        },
    }
}

#[tokio::test]
async fn an_older_generation_does_not_begin() {
    the_older_is_refused(None).await.unwrap();
    the_older_is_refused(Some(Fault::AcceptsOlder)).await.expect_err("one that accepts it is found out");
}

#[tokio::test]
async fn an_older_generation_does_not_go_on() {
    the_older_is_refused_in_its_session(None).await.unwrap();
    let found = the_older_is_refused_in_its_session(Some(Fault::OlderGoesOn)).await;
    found.expect_err("one that goes on is found out");
}

#[tokio::test]
async fn a_session_begins_when_nothing_of_the_one_before_is_under_way() {
    for leaves in [false, true] {
        the_next_waits_for_what_is_under_way(None, leaves).await.unwrap();
    }
    let found = the_next_waits_for_what_is_under_way(Some(Fault::DoesNotWait), false).await;
    found.expect_err("one that does not wait is found out");
}

#[tokio::test]
async fn who_gives_up_waiting_leaves_the_replica_to_the_next() {
    let world = World::new(None);
    let gate = world.held(None).await;
    let _older = with_one_under_way(&world, &gate, &claim(1, 5)).await;
    let impatient = claim(2, 6);
    assert!(tokio::time::timeout(Duration::from_millis(1), world.open(&impatient)).await.is_err());
    // It was here, and who is older has no right any more.
    let refused = world.open(&claim(1, 5)).await.unwrap_err();
    assert!(matches!(refused, Refusal::Fenced { seen: Generation(6), .. }), "{refused}");
    release(&gate);
    let mut next = world.open(&claim(2, 6)).await.unwrap();
    next.submit(write(9));
    let reached = || gate.lock().unwrap().held.len() == 1;
    until(&mut next, |_| reached()).await.unwrap();
}

#[tokio::test]
async fn closing_waits_for_what_is_under_way_and_leaves_the_replica_closed() {
    let world = World::new(None);
    let gate = world.held(None).await;
    drop(with_one_under_way(&world, &gate, &claim(1, 5)).await);
    let mut closing = pin!(world.keepers.close());
    for _ in 0..20 {
        tokio::task::yield_now().await;
        assert!(poll_fn(|cx| Poll::Ready(closing.as_mut().poll(cx).is_pending())).await);
    }
    release(&gate);
    tokio::time::timeout(PATIENCE, closing).await.expect("the test hangs");
    world.place.pool.delete("v").unwrap();
    let refused = world.open(&claim(1, 5)).await.unwrap_err();
    assert!(matches!(&refused, Refusal::Unavailable { why, .. } if why.contains("stopped")), "{refused}");
}

#[tokio::test]
async fn the_generation_and_the_mark_are_in_the_log_before_anything_is_done() {
    let world = World::new(None);
    let gate = world.held(None).await;
    let mut keeper = world.open(&claim(1, 5)).await.unwrap();
    assert_eq!(world.log().fence, Generation(5));
    assert!(world.log().marks.active().is_empty());
    keeper.submit(write(1));
    until(&mut keeper, |_| !gate.lock().unwrap().held.is_empty()).await.unwrap();
    assert_eq!(world.log().marks.active(), &Extents::touching(&(0..1)));
    // The next one needs no mark: it is on the disk with the poll that it is handed over with.
    release(&gate);
    until(&mut keeper, |done| done.len() == 1).await.unwrap();
    keeper.submit(write(2));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(keeper.poll(&mut cx, &mut Vec::new()).is_pending());
    assert_eq!(gate.lock().unwrap().held.len(), 1);
}

#[tokio::test]
async fn without_room_for_a_mark_nothing_is_written_and_it_is_said_so() {
    let world = World::new(None);
    let gate = world.held(Some(File::options().write(true).open("/dev/full").unwrap())).await;
    // The fence finds no room either.
    let refused = world.open(&claim(1, 5)).await.unwrap_err();
    assert!(matches!(&refused, Refusal::Unavailable { why, .. } if why == "the pool is full"), "{refused}");
    let works = world.keepers.entry(HERE).unwrap().lock().await.between.take().unwrap();
    let seat = Seat::new(claim(1, 5), works, TaskTracker::new());
    let mut keeper = Keeper::new(seat);
    keeper.submit(write(1));
    let done = until(&mut keeper, |done| done.len() == 1).await.unwrap();
    assert_eq!(done, [Done { tag: Tag(1), outcome: Err(Failure::NoSpace) }]);
    assert!(gate.lock().unwrap().held.is_empty());
}

#[tokio::test]
async fn a_log_that_cannot_be_written_ends_the_replicas_use_for_good() {
    let world = World::new(None);
    let gate = world.held(Some(File::open("/dev/null").unwrap())).await;
    let refused = world.open(&claim(1, 5)).await.unwrap_err();
    assert!(
        matches!(&refused, Refusal::Unavailable { why, .. } if why.contains("writing its log failed")),
        "{refused}"
    );
    let mark = world.directory.path().join("v/failed");
    let refused = loop {
        let refused = world.open(&claim(1, 5)).await.map(drop).unwrap_err();
        if !matches!(refused, Refusal::Unavailable { .. }) {
            break refused;
        }
        // Who writes it down has the replica still.
        tokio::task::yield_now().await;
    };
    assert!(matches!(&refused, Refusal::OutOfUse { why, .. } if why.contains("writing its log failed")), "{refused}");
    assert!(mark.exists() && gate.lock().unwrap().held.is_empty());
}

#[tokio::test]
async fn a_replica_whose_log_is_damaged_or_gone_is_not_used_and_says_why() {
    let world = World::new(None);
    drop(world.open(&claim(1, 5)).await.unwrap());
    let path = world.directory.path().join("v/log");
    let whole = fs::read(&path).unwrap();

    fs::remove_file(&path).unwrap();
    let refused = world.open(&claim(1, 5)).await.unwrap_err();
    assert_eq!(refused, Refusal::OutOfUse { replica: HERE, why: "it has no log".into() });

    let mut damaged = whole.clone();
    damaged[60] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let refused = world.open(&claim(1, 5)).await.unwrap_err();
    assert!(matches!(&refused, Refusal::OutOfUse { why, .. } if why.contains("is damaged")), "{refused}");
    // The pool tells it too, and putting the log back does not make it sound.
    fs::write(&path, &whole).unwrap();
    assert!(world.place.pool.list().unwrap()[0].failed.as_ref().unwrap().contains("is damaged"));
    let refused = world.open(&claim(1, 5)).await.unwrap_err();
    assert!(matches!(refused, Refusal::OutOfUse { .. }), "{refused}");
}
