//! A replica over real files, with both engines, and pools through crashes.
#![allow(missing_docs)]

mod world;

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    task::Poll,
};

use pollux_disk::*;
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use world::*;

async fn read(disk: &mut Replica, offset: u64, bytes: u32) -> Vec<u8> {
    let outcome = perform(disk, Operation::Read { offset, bytes }).await.unwrap();
    let Outcome::Read(pieces) = outcome else { panic!("{outcome:?}") };
    flat(pieces)
}

fn flat(pieces: Vec<Piece>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(&data),
            Piece::Zeroes(count) => bytes.resize(bytes.len() + count as usize, 0),
        }
    }
    bytes
}

async fn write(disk: &mut Replica, offset: u64, data: &[u8], durable: bool) -> Result<Outcome, DiskError> {
    perform(disk, Operation::Write { offset, data: data.to_vec().into(), durable }).await
}

async fn extents(disk: &mut Replica) -> Vec<Extent> {
    let bytes = disk.size();
    let outcome = perform(disk, Operation::BlockStatus { offset: 0, bytes, extents_max: 1000 }).await.unwrap();
    let Outcome::Extents(extents) = outcome else { panic!("{outcome:?}") };
    extents
}

/// Waits for as many completions as that.
async fn completions(disk: &mut Replica, count: usize) -> Vec<Completion> {
    let mut done = Vec::new();
    std::future::poll_fn(|cx| {
        while done.len() < count {
            if disk.poll(cx, &mut done).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    })
    .await;
    done
}

#[test]
fn what_was_written_is_read_again_also_after_closing() {
    with_each_engine(|kind| async move {
        let place = Place::new();
        let data = pattern(MIB, 251);
        let mut disk = place.replica(64 * MIB, kind).await;
        write(&mut disk, 512, &data, false).await.unwrap();
        assert_eq!(read(&mut disk, 512, 1 << 20).await, data);
        perform(&mut disk, Operation::Flush).await.unwrap();
        drop(disk);

        let mut disk = place.pool.open_replica("v", 64 * MIB, kind).await.unwrap();

        assert_eq!(read(&mut disk, 512, 1 << 20).await, data);
        assert_eq!(read(&mut disk, 63 * MIB, 1 << 20).await, vec![0; 1 << 20]);
    });
}

#[test]
fn the_largest_transfer_and_the_smallest_come_through() {
    with_each_engine(|kind| async move {
        let place = Place::new();
        let mut disk = place.replica(64 * MIB, kind).await;
        let data = pattern(u64::from(TRANSFER_BYTES_MAX), 253);
        write(&mut disk, 4096, &data, true).await.unwrap();
        write(&mut disk, 64 * MIB - 512, &[7; 512], true).await.unwrap();

        assert!(read(&mut disk, 4096, TRANSFER_BYTES_MAX).await == data);
        assert_eq!(read(&mut disk, 64 * MIB - 512, 512).await, [7; 512]);
    });
}

#[test]
fn what_is_not_in_memory_is_read_all_the_same() {
    with_each_engine(|kind| async move {
        let place = Place::new();
        let mut disk = place.replica(64 * MIB, kind).await;
        let data = pattern(4 * MIB, 241);
        write(&mut disk, 0, &data, true).await.unwrap();
        let file = fs::File::open(place.path("v/data")).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();

        for tag in 0..64 {
            disk.submit(Tag(tag), Operation::Read { offset: tag * 65536, bytes: 65536 });
        }

        for Completion { tag, result } in completions(&mut disk, 64).await {
            let Outcome::Read(pieces) = result.unwrap() else { panic!("a read ends in what was read") };
            let at = usize::try_from(tag.0).unwrap() * 65536;
            assert!(flat(pieces) == data[at..at + 65536]);
        }
    });
}

#[test]
fn zeros_never_become_data() {
    with_each_engine(|kind| async move {
        let place = Place::new();
        let mut disk = place.replica(64 * MIB, kind).await;
        let blocks = || fs::metadata(place.path("v/data")).unwrap().blocks();
        let empty = blocks();

        // Into holes, in all the ways there are.
        write(&mut disk, 0, &vec![0; 1 << 20], true).await.unwrap();
        let zeroes =
            Operation::WriteZeroes { offset: MIB, bytes: MIB, may_punch: true, fast_only: false, durable: true };
        perform(&mut disk, zeroes.clone()).await.unwrap();
        perform(&mut disk, Operation::Trim { offset: MIB, bytes: MIB, durable: true }).await.unwrap();
        assert_eq!(blocks(), empty);

        // Over data, which goes.
        write(&mut disk, MIB, &vec![1; 1 << 20], true).await.unwrap();
        assert!(blocks() >= empty + 2048);
        write(&mut disk, MIB, &vec![0; 1 << 20], true).await.unwrap();
        assert_eq!(blocks(), empty);
        assert_eq!(extents(&mut disk).await, [Extent { bytes: 64 * MIB, data: false }]);

        // Between data, the zeros stay out.
        let mixed = [vec![1; 8192], vec![0; 8192], vec![2; 4096]].concat();
        write(&mut disk, 0, &mixed, true).await.unwrap();
        assert_eq!(blocks(), empty + 24);
        assert_eq!(read(&mut disk, 0, 20480).await, mixed);
        let data = |bytes| Extent { bytes, data: true };
        let hole = |bytes| Extent { bytes, data: false };
        assert_eq!(extents(&mut disk).await, [data(8192), hole(8192), data(4096), hole(64 * MIB - 20480)]);
        drop(disk);

        // The file system agrees.
        let mut disk = place.pool.open_replica("v", 64 * MIB, kind).await.unwrap();
        assert_eq!(extents(&mut disk).await, [data(8192), hole(8192), data(4096), hole(64 * MIB - 20480)]);
        // And where holes are not wanted there is room.
        let kept =
            Operation::WriteZeroes { offset: MIB, bytes: MIB, may_punch: false, fast_only: false, durable: true };
        perform(&mut disk, kept).await.unwrap();
        assert!(blocks() >= empty + 2048);
        assert_eq!(read(&mut disk, MIB, 1 << 20).await, vec![0; 1 << 20]);
    });
}

/// A disk as simple as can be.
struct Model(Vec<u8>);

#[derive(Debug, Clone)]
enum Act {
    Write { sector: u64, pattern: Vec<(u16, u8)>, durable: bool },
    Zeroes { sector: u64, sectors: u64, may_punch: bool },
    Trim { sector: u64, sectors: u64 },
    Read { sector: u64, sectors: u32 },
    Flush,
    Reopen,
}

const SMALL: u64 = 2 * MIB;

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let sector = 0..SMALL / 512;
    // Runs of bytes that are alike: zeros half of the time, of lengths around those that matter.
    let run = (prop_oneof![Just(8u16), Just(1), Just(128), 1u16..200], prop_oneof![Just(0u8), 0u8..3]);
    let act = prop_oneof![
        5 => (sector.clone(), prop::collection::vec(run, 1..6), prop::bool::weighted(0.1))
            .prop_map(|(sector, pattern, durable)| Act::Write { sector, pattern, durable }),
        2 => (sector.clone(), 1..600u64, any::<bool>())
            .prop_map(|(sector, sectors, may_punch)| Act::Zeroes { sector, sectors, may_punch }),
        1 => (sector.clone(), 1..600u64).prop_map(|(sector, sectors)| Act::Trim { sector, sectors }),
        3 => (sector, 1..600u32).prop_map(|(sector, sectors)| Act::Read { sector, sectors }),
        1 => Just(Act::Flush),
        1 => Just(Act::Reopen),
    ];
    prop::collection::vec(act, 1..60)
}

#[test]
fn it_does_what_the_simplest_disk_does() {
    let mut runner = TestRunner::deterministic();
    let stories: Vec<_> = (0..40).map(|_| acts().new_tree(&mut runner).unwrap().current()).collect();
    with_each_engine(|kind| {
        let stories = stories.clone();
        async move {
            for (number, story) in stories.into_iter().enumerate() {
                let place = Place::new();
                let mut disk = Some(place.replica(SMALL, kind).await);
                let mut model = Model(vec![0; usize::try_from(SMALL).unwrap()]);
                for act in story {
                    if matches!(act, Act::Reopen) {
                        drop(disk.take());
                        disk = Some(place.pool.open_replica("v", SMALL, kind).await.unwrap());
                    } else {
                        play(disk.as_mut().unwrap(), &mut model, act).await;
                    }
                }
                let whole = read(disk.as_mut().unwrap(), 0, u32::try_from(SMALL).unwrap()).await;
                assert!(whole == model.0, "story {number} with {kind:?}");
                drop(disk);
                assert!(fs::read(place.path("v/data")).unwrap() == model.0, "story {number} with {kind:?}");
            }
        }
    });
}

async fn play(disk: &mut Replica, model: &mut Model, act: Act) {
    let range = |sector: u64, bytes: u64| {
        let (start, end) = (sector * 512, (sector * 512 + bytes).min(SMALL));
        usize::try_from(start).unwrap()..usize::try_from(end).unwrap()
    };
    match act {
        Act::Write { sector, pattern, durable } => {
            let mut data = Vec::new();
            for (sectors, byte) in pattern {
                data.resize(data.len() + usize::from(sectors) * 512, byte);
            }
            let range = range(sector, data.len() as u64);
            data.truncate(range.len());
            write(disk, sector * 512, &data, durable).await.unwrap();
            model.0[range].copy_from_slice(&data);
        }
        Act::Zeroes { sector, sectors, may_punch } => {
            let range = range(sector, sectors * 512);
            let bytes = range.len() as u64;
            let (offset, fast_only, durable) = (sector * 512, false, false);
            perform(disk, Operation::WriteZeroes { offset, bytes, may_punch, fast_only, durable }).await.unwrap();
            model.0[range].fill(0);
        }
        Act::Trim { sector, sectors } => {
            let range = range(sector, sectors * 512);
            let bytes = range.len() as u64;
            perform(disk, Operation::Trim { offset: sector * 512, bytes, durable: false }).await.unwrap();
            let start = range.start.next_multiple_of(4096);
            let end = range.end / 4096 * 4096;
            if start < end {
                model.0[start..end].fill(0);
            }
        }
        Act::Read { sector, sectors } => {
            let range = range(sector, u64::from(sectors) * 512);
            let bytes = u32::try_from(range.len()).unwrap();
            assert!(read(disk, sector * 512, bytes).await == model.0[range]);
        }
        Act::Flush => drop(perform(disk, Operation::Flush).await.unwrap()),
        Act::Reopen => unreachable!("done elsewhere"),
    }
}

#[test]
fn many_under_way_at_once_end_once_each() {
    with_each_engine(|kind| async move {
        let place = Place::new();
        let mut disk = place.replica(64 * MIB, kind).await;
        // More than an engine has place for.
        for tag in 0..1000 {
            let data = vec![u8::try_from(tag % 250 + 1).unwrap(); 4096].into();
            disk.submit(Tag(tag), Operation::Write { offset: tag * 4096, data, durable: tag % 10 == 0 });
        }
        disk.submit(Tag(1000), Operation::Flush);
        let mut tags: Vec<u64> = completions(&mut disk, 1001)
            .await
            .into_iter()
            .map(|done| {
                done.result.unwrap();
                done.tag.0
            })
            .collect();
        tags.sort_unstable();
        assert!(tags.into_iter().eq(0..1001));
        assert_eq!(read(&mut disk, 999 * 4096, 4096).await, [250; 4096]);
    });
}

#[test]
fn a_full_pool_refuses_writes_keeps_what_it_took_and_goes_on_when_there_is_room() {
    for kind in ENGINES {
        on_a_small_file_system(4 * MIB, move |path| {
            run(async {
                let pool = Pool::open(path).unwrap();
                pool.create("v", 64 * MIB).unwrap();
                let mut disk = pool.open_replica("v", 64 * MIB, kind).await.unwrap();
                let mut taken = Vec::new();
                let refused = loop {
                    let offset = taken.len() as u64 * 65536;
                    match write(&mut disk, offset, &[7; 65536], true).await {
                        Ok(_) => taken.push(offset),
                        Err(error) => break error,
                    }
                    assert!(taken.len() < 100, "the pool never gets full");
                };
                assert!(matches!(refused, DiskError::NoSpace { .. }), "{refused}");
                assert!(refused.to_string().contains("the pool is full"), "{refused}");

                // Everything that was acknowledged is there, reading and making room go on.
                for offset in &taken {
                    assert_eq!(read(&mut disk, *offset, 65536).await, [7; 65536]);
                }
                perform(&mut disk, Operation::Flush).await.unwrap();
                perform(&mut disk, Operation::Trim { offset: 0, bytes: MIB, durable: true }).await.unwrap();
                write(&mut disk, taken.len() as u64 * 65536, &[8; 65536], true).await.unwrap();
                assert_eq!(read(&mut disk, MIB, 65536).await, [7; 65536]);
            });
        });
    }
}

#[test]
fn a_replica_has_one_opener_and_its_lock_ends_with_its_last_write() {
    with_each_engine(|kind| async move {
        let place = Place::new();
        let mut disk = place.replica(64 * MIB, kind).await;
        let again = place.pool.open_replica("v", 64 * MIB, kind).await;
        assert!(matches!(again, Err(OpenError::Busy { .. })), "{again:?}");
        assert!(matches!(place.pool.delete("v"), Err(DeleteError::Open(OpenError::Busy { .. }))));
        assert!(matches!(place.pool.grow("v", 128 * MIB), Err(GrowError::Open(OpenError::Busy { .. }))));

        // Dropped with writes under way: whoever gets it next sees all of them or none.
        for tag in 0..16 {
            let data = vec![9; 1 << 20].into();
            disk.submit(Tag(tag), Operation::Write { offset: tag * MIB, data, durable: false });
        }
        let mut done = Vec::new();
        let started = std::future::poll_fn(|cx| Poll::Ready(disk.poll(cx, &mut done)));
        let _ = started.await;
        drop(disk);

        let mut next = loop {
            match place.pool.open_replica("v", 64 * MIB, kind).await {
                Ok(disk) => break disk,
                Err(OpenError::Busy { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
        let before = read(&mut next, 0, 16 << 20).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(read(&mut next, 0, 16 << 20).await == before, "a write landed after the lock was free");
    });
}

#[test]
fn a_replica_grows_while_nobody_has_it_open_and_never_shrinks() {
    let place = Place::new();
    place.pool.create("v", MIB).unwrap();
    place.pool.grow("v", 2 * MIB).unwrap();
    place.pool.grow("v", 2 * MIB).unwrap();
    assert_eq!(fs::metadata(place.path("v/data")).unwrap().len(), 2 * MIB);
    for to in [MIB, 2 * MIB + 512, VOLUME_BYTES_MAX + 4096] {
        assert!(matches!(place.pool.grow("v", to), Err(GrowError::BadSize { .. })), "{to}");
    }
    run(async {
        let wrong = place.pool.open_replica("v", MIB, EngineKind::Best).await.unwrap_err();
        assert!(matches!(wrong, OpenError::WrongSize { found, .. } if found == 2 * MIB), "{wrong}");
    });
}

#[test]
fn what_is_no_replica_is_not_opened() {
    let place = Place::new();
    let open = |name: &'static str| {
        run(async { place.pool.open_replica(name, MIB, EngineKind::Best).await.map(drop).unwrap_err() })
    };
    for name in ["", ".", "..", "../v", "a/b", ".new.v"] {
        assert!(matches!(open(name), OpenError::NotThere { .. }), "{name:?}");
    }
    assert!(matches!(open("absent"), OpenError::NotThere { .. }));

    fs::create_dir(place.path("empty")).unwrap();
    fs::write(place.path("file"), "").unwrap();
    place.pool.create("real", MIB).unwrap();
    symlink(place.path("real"), place.path("link")).unwrap();
    fs::create_dir(place.path("linked-data")).unwrap();
    symlink(place.path("real/data"), place.path("linked-data/data")).unwrap();
    fs::create_dir(place.path("hard")).unwrap();
    fs::hard_link(place.path("real/data"), place.path("hard/data")).unwrap();
    fs::create_dir_all(place.path("directory/data")).unwrap();
    fs::create_dir(place.path("pipe")).unwrap();
    nix::unistd::mkfifo(&place.path("pipe/data"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(place.path("odd")).unwrap();
    fs::write(place.path("odd/data"), "odd").unwrap();
    for name in ["empty", "file", "link", "linked-data", "hard", "directory", "pipe", "odd"] {
        let error = open(name);
        assert!(matches!(error, OpenError::NotAReplica { .. }), "{name}: {error:?}");
    }
    let link = place.path("to-the-pool");
    symlink(place.directory.path(), &link).unwrap();
    assert!(matches!(Pool::open(&link), Err(PoolError::NoDirectory { .. })));
    assert!(matches!(Pool::open(&place.path("file")), Err(PoolError::NoDirectory { .. })));
}

#[test]
fn one_that_is_out_of_use_says_so_and_can_still_be_deleted() {
    let place = Place::new();
    place.pool.create("v", MIB).unwrap();
    fs::write(place.path("v/failed"), "syncing failed: EIO").unwrap();

    run(async {
        let error = place.pool.open_replica("v", MIB, EngineKind::Best).await.unwrap_err();
        assert!(matches!(&error, OpenError::Failed { reason, .. } if reason.contains("EIO")), "{error}");
    });

    assert_eq!(place.pool.list().unwrap()[0].failed.as_deref(), Some("syncing failed: EIO"));
    place.pool.delete("v").unwrap();
    assert_eq!(place.pool.list().unwrap(), []);
}

#[test]
fn a_pool_tells_what_it_has() {
    let place = Place::new();
    place.pool.create("b", 2 * MIB).unwrap();
    place.pool.create("a", MIB).unwrap();
    fs::write(place.path("a/data"), vec![1; 1 << 20]).unwrap();
    fs::create_dir(place.path(".new.c")).unwrap();
    fs::write(place.path("lost"), "").unwrap();

    let found = place.pool.list().unwrap();

    assert_eq!(found.iter().map(|it| (it.name.as_str(), it.size)).collect::<Vec<_>>(), [("a", MIB), ("b", 2 * MIB)]);
    assert!(found[0].allocated >= MIB && found[1].allocated < MIB, "{found:?}");
    let usage = place.pool.usage().unwrap();
    assert!(usage.free > 0 && usage.free <= usage.capacity, "{usage:?}");
}

#[test]
fn bad_names_and_sizes_make_nothing() {
    let place = Place::new();
    for name in ["", ".", "a/b", ".hidden", "white space", &"x".repeat(101)] {
        assert!(matches!(place.pool.create(name, MIB), Err(CreateError::BadName { .. })), "{name:?}");
    }
    for size in [0, 512, MIB + 1, VOLUME_BYTES_MAX + 4096, u64::MAX] {
        assert!(matches!(place.pool.create("v", size), Err(CreateError::BadSize { .. })), "{size}");
    }
    place.pool.create("v", MIB).unwrap();
    assert!(matches!(place.pool.create("v", MIB), Err(CreateError::Exists { .. })));
    assert_eq!(fs::read_dir(place.directory.path()).unwrap().count(), 1);
}
