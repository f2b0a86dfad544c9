//! A volume in use, over real replicas in real directories: what the guest is told, what the log hears, what is copied.
#![allow(missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use pollux_disk::{Disk, DiskError, EngineKind, Operation, Outcome, Piece, Pool, Tag, perform};
use pollux_mirror::{Failure, Limits, Part};
use pollux_volume::{
    Broken, Claim, Done, Handover, Keepers, Place, Plan, Reached, Set, SetChange, Side, StartError, Volume,
    VolumeHandle, Ways,
};
use pollux_wire::id::{Generation, Incarnation, NodeId, Owner, ReplicaId, VolumeId};
use tokio::sync::watch;

const SIZE: u64 = 32 << 20;
const PATIENCE: Duration = Duration::from_secs(20);
const R1: ReplicaId = ReplicaId(1);
const R2: ReplicaId = ReplicaId(2);
/// One that the log names and nobody can reach.
const R3: ReplicaId = ReplicaId(3);
const ME: Owner = Owner { node: NodeId(1), incarnation: Incarnation(1) };

/// Two replicas in two pools, and a log that decides at once. The way to a replica can be cut, and its pool be full.
struct World {
    dir: tempfile::TempDir,
    inner: Arc<Inner>,
}

struct Inner {
    keepers: Keepers,
    places: BTreeMap<ReplicaId, Place>,
    cut: watch::Sender<BTreeSet<ReplicaId>>,
    full: watch::Sender<BTreeSet<ReplicaId>>,
    /// How often a replica was asked for a digest.
    digests: Arc<AtomicU32>,
    /// How often a way was opened.
    opened: Mutex<BTreeMap<ReplicaId, u32>>,
    /// How many bytes more may be copied to R2, which is elsewhere; `None`: any.
    leave: watch::Sender<Option<u64>>,
    /// How often that was asked.
    asked: AtomicU32,
    set: watch::Sender<Set>,
    said: Mutex<Vec<SetChange>>,
    generation: Mutex<Generation>,
}

struct ToReplicas(Arc<Inner>, Generation);

/// A side whose way can be cut, and that can find no room.
struct Cuttable {
    side: Box<dyn Side>,
    id: ReplicaId,
    cut: watch::Receiver<BTreeSet<ReplicaId>>,
    full: watch::Receiver<BTreeSet<ReplicaId>>,
    digests: Arc<AtomicU32>,
    refused: Vec<Done>,
    told: bool,
}

impl Side for Cuttable {
    fn submit(&mut self, ask: pollux_volume::Ask) {
        if ask.part == Part::Digest {
            self.digests.fetch_add(1, Ordering::Relaxed);
        }
        if self.full.borrow().contains(&self.id) && matches!(ask.part, Part::Change { .. } | Part::Copy { .. }) {
            self.refused.push(Done { tag: ask.tag, outcome: Err(Failure::NoSpace) });
        } else {
            self.side.submit(ask);
        }
    }

    fn poll(&mut self, cx: &mut std::task::Context<'_>, done: &mut Vec<Done>) -> std::task::Poll<Result<(), Broken>> {
        if self.cut.borrow().contains(&self.id) {
            if std::mem::replace(&mut self.told, true) {
                return std::task::Poll::Pending;
            }
            return std::task::Poll::Ready(Err(Broken { why: "the way was cut".into() }));
        }
        if !self.refused.is_empty() {
            done.append(&mut self.refused);
            return std::task::Poll::Ready(Ok(()));
        }
        self.side.poll(cx, done)
    }

    fn is_far(&self) -> bool {
        self.id == R2
    }
}

impl Ways for ToReplicas {
    fn open(&self, replica: ReplicaId) -> BoxFuture<'static, Result<Reached, String>> {
        let (inner, generation) = (Arc::clone(&self.0), self.1);
        Box::pin(async move {
            if inner.cut.borrow().contains(&replica) || replica == R3 {
                return Err("the way is cut".into());
            }
            let claim = Claim::new(VolumeId(1), replica, generation, ME, SIZE);
            let opened = inner.keepers.open(&claim, &inner.places[&replica]).await.map_err(|it| it.to_string())?;
            *inner.opened.lock().unwrap().entry(replica).or_default() += 1;
            let (cut, full) = (inner.cut.subscribe(), inner.full.subscribe());
            let (side, digests) = (Box::new(opened.side), Arc::clone(&inner.digests));
            let side = Cuttable { side, id: replica, cut, full, digests, refused: Vec::new(), told: false };
            Ok(Reached { side: Box::new(side), report: opened.report, boot: opened.boot })
        })
    }

    fn change(&self, change: SetChange) -> BoxFuture<'static, ()> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            inner.said.lock().unwrap().push(change.clone());
            inner.set.send_if_modified(|set| {
                let (SetChange::Leave { version, .. } | SetChange::Join { version, .. }) = change;
                if version != set.version {
                    return false;
                }
                match change {
                    SetChange::Leave { replica, .. } => drop(set.members.remove(&replica)),
                    SetChange::Join { replica, .. } => drop(set.members.insert(replica)),
                }
                set.version += 1;
                true
            });
        })
    }

    fn may_send(&self, bytes: u64) -> BoxFuture<'static, u64> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            inner.asked.fetch_add(1, Ordering::Relaxed);
            let mut leave = inner.leave.subscribe();
            let left = *leave.wait_for(|left| *left != Some(0)).await.unwrap();
            let some = left.map_or(bytes, |left| left.min(bytes));
            inner.leave.send_modify(|left| *left = left.map(|left| left - some));
            some
        })
    }
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut places = BTreeMap::new();
        for id in [R1, R2] {
            let path = dir.path().join(id.to_string());
            std::fs::create_dir(&path).unwrap();
            let pool = Pool::open(&path).unwrap();
            let place = Place { pool, name: format!("volume-1-{id}"), engine: EngineKind::default() };
            place.make(SIZE).unwrap();
            places.insert(id, place);
        }
        let set = Set { version: 1, members: [R1, R2].into(), replicas: [R1, R2].into(), going: BTreeSet::new() };
        let inner = Inner {
            keepers: Keepers::new("boot".into()),
            places,
            cut: watch::Sender::default(),
            full: watch::Sender::default(),
            digests: Arc::default(),
            opened: Mutex::default(),
            leave: watch::Sender::default(),
            asked: AtomicU32::default(),
            set: watch::Sender::new(set),
            said: Mutex::default(),
            generation: Mutex::new(Generation(0)),
        };
        Self { dir, inner: Arc::new(inner) }
    }

    async fn try_start(&self) -> Result<(Volume, VolumeHandle), StartError> {
        self.start_after(None).await
    }

    async fn start_after(&self, handover: Option<Handover>) -> Result<(Volume, VolumeHandle), StartError> {
        let generation = {
            let mut generation = self.inner.generation.lock().unwrap();
            *generation = generation.next();
            *generation
        };
        let limits = Limits { lag_ms: 500, hold_ms: 3_000, ..Limits::default() };
        let plan =
            Plan { name: "data".into(), size: SIZE, generation, handover, authority: R1, prefer: vec![R1], limits };
        let ways = ToReplicas(Arc::clone(&self.inner), generation);
        Volume::start(plan, Arc::new(ways), self.inner.set.subscribe()).await
    }

    async fn start(&self) -> (Volume, VolumeHandle) {
        self.try_start().await.expect("it starts")
    }

    fn cut(&self, replicas: impl IntoIterator<Item = ReplicaId>) {
        self.inner.cut.send_replace(replicas.into_iter().collect());
    }

    fn fill(&self, replicas: impl IntoIterator<Item = ReplicaId>) {
        self.inner.full.send_replace(replicas.into_iter().collect());
    }

    fn opened(&self, replica: ReplicaId) -> u32 {
        self.inner.opened.lock().unwrap().get(&replica).copied().unwrap_or_default()
    }

    fn members(&self) -> BTreeSet<ReplicaId> {
        self.inner.set.borrow().members.clone()
    }

    fn bytes_of(&self, replica: ReplicaId) -> Vec<u8> {
        std::fs::read(self.data(replica)).unwrap()
    }

    fn data(&self, replica: ReplicaId) -> std::path::PathBuf {
        self.dir.path().join(replica.to_string()).join(format!("volume-1-{replica}")).join("data")
    }

    fn allocated(&self, replica: ReplicaId) -> u64 {
        use std::os::unix::fs::MetadataExt;
        Path::new(&self.data(replica)).metadata().unwrap().blocks() * 512
    }
}

async fn write(volume: &mut Volume, offset: u64, byte: u8, bytes: usize) -> Result<Outcome, DiskError> {
    let data = Bytes::from(vec![byte; bytes]);
    perform(volume, Operation::Write { offset, data, durable: false }).await
}

async fn read(volume: &mut Volume, offset: u64, bytes: u32) -> Vec<u8> {
    let Outcome::Read(pieces) = perform(volume, Operation::Read { offset, bytes }).await.unwrap() else {
        panic!("a read ends in what was read")
    };
    let mut all = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => all.extend_from_slice(&data),
            Piece::Zeroes(bytes) => all.resize(all.len() + bytes as usize, 0),
        }
    }
    all
}

/// Serves nobody until `done` says so.
async fn idle(volume: &mut Volume, what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    let mut nothing = Vec::new();
    while !done() {
        assert!(since.elapsed() < PATIENCE, "{what} has not come about");
        let poll = std::future::poll_fn(|cx| volume.poll(cx, &mut nothing));
        let _ = tokio::time::timeout(Duration::from_millis(5), poll).await;
    }
}

#[tokio::test]
async fn what_is_acknowledged_is_on_every_replica_and_holes_stay_holes() {
    let world = World::new();
    let (mut volume, _handle) = world.start().await;
    write(&mut volume, 4096, 7, 8192).await.unwrap();
    write(&mut volume, 1 << 20, 0, 1 << 20).await.unwrap();
    perform(&mut volume, Operation::Flush).await.unwrap();
    assert_eq!(read(&mut volume, 4096, 8192).await, vec![7; 8192]);
    assert_eq!(read(&mut volume, 1 << 20, 512).await, vec![0; 512]);
    drop(volume);

    assert_eq!(world.bytes_of(R1), world.bytes_of(R2));
    assert_eq!(world.bytes_of(R2)[4096..12_288], vec![7; 8192]);
    assert!(world.allocated(R1) < 1 << 20 && world.allocated(R2) < 1 << 20, "zeros have become data");
}

#[tokio::test]
async fn a_replica_out_of_reach_leaves_by_an_entry_and_comes_back_with_what_it_missed() {
    let world = World::new();
    let (mut volume, handle) = world.start().await;
    write(&mut volume, 0, 1, 4096).await.unwrap();
    world.cut([R2]);
    write(&mut volume, 8 << 20, 2, 65_536).await.unwrap();
    assert_eq!(
        world.members(),
        [R1].into(),
        "a write that R2 does not have is not acknowledged while it is in the set"
    );
    assert!(matches!(&world.inner.said.lock().unwrap()[..], [SetChange::Leave { replica: R2, version: 1, .. }]));
    let before = world.allocated(R2);

    world.cut([]);
    idle(&mut volume, "R2 in the set again", || world.members() == [R1, R2].into()).await;
    write(&mut volume, 16 << 20, 3, 4096).await.unwrap();
    idle(&mut volume, "the status", || handle.status().borrow().replicas.iter().all(|it| it.sound && it.lacks == 0))
        .await;
    drop(volume);
    assert_eq!(world.bytes_of(R1), world.bytes_of(R2));
    assert!(world.allocated(R2) - before < 8 << 20, "only what differs is copied");
}

#[tokio::test]
async fn a_replica_whose_pool_is_full_leaves_is_tried_again_now_and_then_and_comes_back() {
    let world = World::new();
    let (mut volume, handle) = world.start().await;
    write(&mut volume, 0, 1, 4096).await.unwrap();
    world.fill([R2]);
    write(&mut volume, 8 << 20, 2, 65_536).await.unwrap();
    assert_eq!(world.members(), [R1].into(), "the guest goes on with the other");

    // It can be reached all the time, and fails each time.
    let (before, since) = (world.opened(R2), Instant::now());
    idle(&mut volume, "a while", || since.elapsed() > Duration::from_secs(2)).await;
    let tries = world.opened(R2) - before;
    assert!((1..=6).contains(&tries), "it was tried {tries} times in two seconds");
    let full =
        |it: &pollux_volume::ReplicaState| it.id == R2 && it.reached && it.why.as_deref() == Some("the pool is full");
    idle(&mut volume, "R2 to be in reach, and full", || handle.status().borrow().replicas.iter().any(full)).await;

    world.fill([]);
    idle(&mut volume, "R2 in the set again", || world.members() == [R1, R2].into()).await;
    drop(volume);
    assert_eq!(world.bytes_of(R1), world.bytes_of(R2));
}

#[tokio::test]
async fn a_comparison_that_nobody_waits_for_any_more_stops() {
    let world = World::new();
    let (mut volume, handle) = world.start().await;
    let digests = || world.inner.digests.load(Ordering::Relaxed);
    let asking = async {
        // Piece by piece, from two replicas.
        handle.limit_copying(Some(1 << 20)).await;
        handle.compare(0..SIZE, R1, false).await.expect("it is in use")
    };
    let mut nothing = Vec::new();
    let seen = tokio::select! {
        seen = asking => seen,
        () = async { loop { std::future::poll_fn(|cx| volume.poll(cx, &mut nothing)).await } } => unreachable!(),
    };
    idle(&mut volume, "the first piece", || seen.borrow().reached > 0).await;
    drop(seen);
    // One may be under way; of 64 that are left more would follow.
    let (before, since) = (digests(), Instant::now());
    idle(&mut volume, "a while", || since.elapsed() > Duration::from_secs(3)).await;
    assert!(digests() - before <= 2, "{} digests that nobody wants", digests() - before);
}

#[tokio::test]
async fn without_room_in_the_last_pool_a_request_fails_as_that_and_is_answered_when_there_is_some() {
    let world = World::new();
    let (mut volume, handle) = world.start().await;
    world.fill([R1, R2]);
    let refused = write(&mut volume, 8 << 20, 2, 65_536).await;
    assert!(matches!(refused, Err(DiskError::NoSpace { offset: 0x0080_0000, bytes: 65_536 })), "{refused:?}");
    idle(&mut volume, "all but the last to leave", || world.members().len() == 1).await;
    idle(&mut volume, "it to be told", || handle.status().borrow().trouble.as_deref() == Some("the pool is full"))
        .await;

    world.fill([]);
    write(&mut volume, 8 << 20, 2, 65_536).await.unwrap();
    idle(&mut volume, "both in the set", || world.members() == [R1, R2].into()).await;
    assert_eq!(handle.status().borrow().trouble, None);
    drop(volume);
    assert_eq!(world.bytes_of(R1), world.bytes_of(R2));
}

#[tokio::test]
async fn a_volume_that_was_left_in_the_middle_starts_again_with_all_that_was_acknowledged() {
    let world = World::new();
    let (mut volume, _handle) = world.start().await;
    for number in 0..32_u64 {
        write(&mut volume, number * 65_536, u8::try_from(number).unwrap(), 4096).await.unwrap();
    }
    // Nobody says goodbye.
    volume.submit(Tag(1), Operation::Write { offset: 0, data: Bytes::from(vec![9; 4096]), durable: false });
    drop(volume);

    let (mut volume, _handle) = world.start().await;
    for number in 1..32_u64 {
        assert_eq!(read(&mut volume, number * 65_536, 4096).await, vec![u8::try_from(number).unwrap(); 4096]);
    }
    idle(&mut volume, "both in the set", || {
        let set = world.inner.set.borrow();
        set.members == [R1, R2].into() && set.version > 1
    })
    .await;
    drop(volume);
    assert_eq!(world.bytes_of(R1), world.bytes_of(R2));
}

#[tokio::test]
async fn without_any_replica_of_the_set_it_says_whom_it_misses() {
    let world = World::new();
    world.cut([R1, R2]);
    let error = world.try_start().await.map(drop).unwrap_err().to_string();
    assert!(
        error.contains("volume data") && error.contains("replica-1") && error.contains("the way is cut"),
        "{error}"
    );
}

#[tokio::test]
async fn without_any_replica_in_reach_a_request_fails_and_later_ones_go_on() {
    let world = World::new();
    let (mut volume, handle) = world.start().await;
    world.cut([R1, R2]);
    let error = write(&mut volume, 0, 1, 4096).await.unwrap_err();
    assert!(matches!(error, DiskError::Io { .. }), "{error:?}");
    assert_eq!(world.members(), [R1, R2].into(), "nobody is left behind of whom nobody could note that");
    assert!(handle.status().borrow().over.is_none());
    world.cut([]);
    let since = Instant::now();
    while write(&mut volume, 0, 1, 4096).await.is_err() {
        assert!(since.elapsed() < PATIENCE, "it goes on when the replica is there again");
    }
}

/// Polls the volume until the wish of its owner is fulfilled.
async fn beside<T>(volume: &mut Volume, wish: impl Future<Output = T>) -> T {
    let mut nothing = Vec::new();
    tokio::select! {
        met = wish => met,
        () = async { loop { std::future::poll_fn(|cx| volume.poll(cx, &mut nothing)).await } } => unreachable!(),
    }
}

#[tokio::test]
async fn a_volume_that_is_handed_over_copies_nothing_and_nobody_leaves_its_set() {
    let world = World::new();
    let (mut volume, handle) = world.start().await;
    write(&mut volume, 0, 1, 65_536).await.unwrap();
    let handover = beside(&mut volume, handle.hand_over()).await.expect("it is in use");
    assert!(handover.seal.is_some(), "nothing is under way");

    // It goes on here after all, and is handed over again. What the log decides meanwhile is not lost.
    world.inner.set.send_modify(|set| set.replicas.extend([R3]));
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(20) {
        let mut nothing = Vec::new();
        let polled = std::future::poll_fn(|cx| volume.poll(cx, &mut nothing));
        let _ = tokio::time::timeout(Duration::from_millis(5), polled).await;
    }
    assert!(beside(&mut volume, handle.take_back()).await);
    idle(&mut volume, "the third replica", || handle.status().borrow().replicas.iter().any(|it| it.id == R3)).await;
    world.inner.set.send_modify(|set| set.replicas.retain(|id| *id != R3));
    idle(&mut volume, "the two", || !handle.status().borrow().replicas.iter().any(|it| it.id == R3)).await;
    write(&mut volume, 65_536, 2, 4096).await.unwrap();
    let handover = beside(&mut volume, handle.hand_over()).await.expect("it is in use");

    let (mut next, status) = world.start_after(Some(handover)).await.expect("it starts");
    assert_eq!(read(&mut next, 65_536, 4096).await, vec![2; 4096]);
    write(&mut next, 0, 3, 4096).await.unwrap();
    assert!(status.status().borrow().replicas.iter().all(|it| it.sound && it.lacks == 0));
    assert!(world.inner.said.lock().unwrap().is_empty(), "nothing had to be said about the set");
    drop((volume, next));
    assert_eq!(world.bytes_of(R1), world.bytes_of(R2));
    assert_eq!(world.bytes_of(R1)[..4096], vec![3; 4096]);
}

#[tokio::test]
async fn what_a_disk_made_of_a_replica_is_found_repaired_and_found_to_be_equal() {
    let world = World::new();
    let (mut volume, handle) = world.start().await;
    write(&mut volume, 0, 1, 65_536).await.unwrap();
    perform(&mut volume, Operation::Flush).await.unwrap();
    let compared = beside(&mut volume, handle.compare_fully(0..SIZE, (R1, false), 3, |_| ())).await.expect("in use");
    assert_eq!((compared.reached, compared.differs.len(), compared.left_out_bytes()), (SIZE, 0, 0));

    std::fs::File::options().write(true).open(world.data(R2)).unwrap().write_all_at(&[9; 16], 32_768).unwrap();
    let found = beside(&mut volume, handle.compare_fully(0..SIZE, (R1, false), 3, |_| ())).await.expect("in use");
    assert_eq!(found.differs.keys().collect::<Vec<_>>(), [&R2]);
    assert!(found.differs[&R2].places[0].contains(&32_768), "{found:?}");
    let mut told = 0;
    beside(&mut volume, handle.compare_fully(0..SIZE, (R1, true), 3, |_| told += 1)).await.expect("in use");
    assert!(told > 1, "it is told how far it is");
    let found = beside(&mut volume, handle.compare_fully(0..SIZE, (R1, false), 3, |_| ())).await.expect("in use");
    assert!(found.differs.is_empty(), "{found:?}");
    drop(volume);
    assert_eq!(world.bytes_of(R1), world.bytes_of(R2));
}

#[tokio::test]
async fn who_waits_for_a_comparison_is_told_when_nobody_goes_on_with_it() {
    let world = World::new();
    let (mut volume, handle) = world.start().await;
    write(&mut volume, 0, 1, 65_536).await.unwrap();
    // Begun before the guest stands still.
    let seen = beside(&mut volume, handle.compare(0..SIZE, R1, false)).await.expect("in use");
    beside(&mut volume, handle.hand_over()).await.expect("in use");
    assert!(seen.has_changed().is_err() && !seen.borrow().over);
    // And while it does.
    let refused = beside(&mut volume, handle.compare_fully(0..SIZE, (R1, false), 3, |_| ()));
    assert_eq!(tokio::time::timeout(PATIENCE, refused).await.expect("it is told"), None);
    assert!(beside(&mut volume, handle.take_back()).await);
    let compared = beside(&mut volume, handle.compare_fully(0..SIZE, (R1, false), 3, |_| ())).await;
    assert!(compared.is_some_and(|found| found.differs.is_empty()), "the guest goes on here after all");
}

#[tokio::test]
async fn a_replica_comes_and_another_goes_while_the_guest_asks_all_the_time() {
    let world = World::new();
    world.inner.set.send_modify(|set| (set.members, set.replicas) = ([R1].into(), [R1].into()));
    let (mut volume, handle) = world.start().await;
    let mut number = 0_u64;
    let mut busy = async |volume: &mut Volume, what: &str, done: &dyn Fn() -> bool| {
        let since = Instant::now();
        while !done() {
            assert!(since.elapsed() < PATIENCE, "{what} has not come about");
            number += 1;
            write(volume, number % 64 * 65_536, u8::try_from(number % 250).unwrap(), 4096).await.unwrap();
        }
    };
    busy(&mut volume, "work", &|| handle.status().borrow().replicas.len() == 1).await;
    world.inner.set.send_modify(|set| set.replicas = [R1, R2].into());
    busy(&mut volume, "R2 in the set", &|| world.members() == [R1, R2].into()).await;
    world.inner.set.send_modify(|set| set.going = [R1].into());
    busy(&mut volume, "R1 out of it", &|| world.members() == [R2].into()).await;
    world.inner.set.send_modify(|set| (set.replicas, set.going) = ([R2].into(), BTreeSet::new()));
    busy(&mut volume, "R1 forgotten", &|| handle.status().borrow().replicas.iter().all(|it| it.id == R2)).await;
    assert_eq!(read(&mut volume, number % 64 * 65_536, 4096).await, vec![u8::try_from(number % 250).unwrap(); 4096]);
}

#[tokio::test]
async fn a_volume_that_ends_in_order_leaves_nothing_to_copy() {
    let world = World::new();
    let (mut volume, _handle) = world.start().await;
    write(&mut volume, 0, 1, 65_536).await.unwrap();
    assert!(volume.finish(PATIENCE).await);
    drop(volume);
    let (mut volume, _handle) = world.start().await;
    write(&mut volume, 8 << 20, 2, 4096).await.unwrap();
    assert!(world.inner.said.lock().unwrap().is_empty(), "nobody had to leave the set");
}

#[tokio::test]
async fn one_whose_guest_is_off_leaves_nothing_to_copy_to_whoever_takes_it_over_and_is_still_one() {
    let world = World::new();
    let (mut volume, handle) = world.start().await;
    write(&mut volume, 0, 1, 65_536).await.unwrap();
    assert!(beside(&mut volume, handle.finish(PATIENCE)).await);
    let (mut other, handle) = world.start().await;
    write(&mut other, 8 << 20, 2, 4096).await.unwrap();
    assert!(world.inner.said.lock().unwrap().is_empty(), "nobody had to leave the set");

    // What comes after that counts again.
    assert!(beside(&mut other, handle.finish(PATIENCE)).await);
    write(&mut other, 0, 3, 65_536).await.unwrap();
    assert!(other.finish(PATIENCE).await);
    drop(other);
    let (mut next, _handle) = world.start().await;
    write(&mut next, 8 << 20, 4, 4096).await.unwrap();
    assert!(world.inner.said.lock().unwrap().is_empty(), "nobody had to leave the set");
}

#[tokio::test]
async fn a_replica_elsewhere_is_copied_to_as_its_node_gives_leave_and_the_guest_needs_none() {
    let world = World::new();
    let (mut volume, handle) = world.start().await;
    world.cut([R2]);
    for piece in 0..8 {
        write(&mut volume, piece << 20, 3, 1 << 20).await.unwrap();
    }
    assert_eq!(world.members(), [R1].into());
    assert_eq!(world.inner.asked.load(Ordering::Relaxed), 0, "nobody is there to copy to");

    let lacks = || handle.status().borrow().replicas.iter().find(|it| it.id == R2).map_or(0, |it| it.lacks);
    world.inner.leave.send_replace(Some(2 << 20));
    world.cut([]);
    idle(&mut volume, "what leave was given for", || world.inner.leave.borrow().is_some_and(|left| left == 0)).await;
    for piece in 16..24 {
        write(&mut volume, piece << 20, 4, 1 << 20).await.unwrap();
    }
    idle(&mut volume, "a status", || lacks() > 0).await;
    assert!(world.members() == [R1].into() && lacks() >= 5 << 20, "it lacks {} bytes", lacks());

    world.inner.leave.send_replace(None);
    idle(&mut volume, "R2", || world.members() == [R1, R2].into()).await;
}
