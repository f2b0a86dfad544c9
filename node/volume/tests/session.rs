//! A replica of another node, over the link between two endpoints.

mod world;

use pollux_disk::Piece;
use pollux_mirror::{Change, EXTENT_BYTES, Extents, Failure, Part};
use pollux_volume::{Ask, Refusal, Remote, RemoteError, Side as _};
use pollux_wire::id::ReplicaId;
use world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_through_a_session_is_read_through_the_next_and_marked_in_its_report() {
    let (a, b) = pair();
    let opened = Remote::open(&a.endpoint, &b.to(), &claim(1, 5)).await.unwrap();
    assert!(opened.report.active().is_empty() && opened.boot == "a boot");
    let mut side = opened.side;
    let data = pattern(8192, 3);
    ask(&mut side, write(&data, true), 4096..12288).await.unwrap();
    ask(&mut side, (Part::Flush, Vec::new()), 0..0).await.unwrap();
    assert_eq!(read(&mut side, 4096..12288).await, data);
    drop(side);

    let opened = Remote::open(&a.endpoint, &b.to(), &claim(1, 5)).await.unwrap();
    assert_eq!(opened.report.active(), &Extents::touching(&(0..1)));
    let mut side = opened.side;
    let mut expected = vec![0; 16384];
    expected[4096..12288].copy_from_slice(&data);
    assert_eq!(read(&mut side, 0..16384).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_part_passes() {
    let (a, b) = pair();
    let mut side = Remote::open(&a.endpoint, &b.to(), &claim(1, 1)).await.unwrap().side;
    let none = |part| (part, Vec::new());
    ask(&mut side, write(&pattern(65536, 1), false), 0..65536).await.unwrap();
    ask(&mut side, none(Part::Change { change: Change::Zero { punch: true }, durable: true }), 0..4096).await.unwrap();
    ask(&mut side, none(Part::Change { change: Change::Zero { punch: false }, durable: false }), 4096..8192)
        .await
        .unwrap();
    ask(&mut side, none(Part::Change { change: Change::Trim, durable: false }), 8192..16384).await.unwrap();
    let copied = vec![Piece::Zeroes(4096), Piece::Data(pattern(512, 9).into()), Piece::Zeroes(3584)];
    ask(&mut side, (Part::Copy { read: pollux_mirror::Tag(5) }, copied), 16384..24576).await.unwrap();
    let mut expected = pattern(65536, 1);
    expected[..24576].fill(0);
    expected[20480..20992].copy_from_slice(&pattern(512, 9));
    assert_eq!(read(&mut side, 0..65536).await, expected);

    let mut digests = Vec::new();
    for range in [0..4096, 4096..8192, 8192..16384, 0..16384, 16384..24576] {
        digests.push(ask(&mut side, none(Part::Digest), range).await.unwrap());
    }
    assert_eq!(digests[0], digests[1], "a hole and zeros");
    assert!(digests[1..].windows(2).all(|pair| pair[0] != pair[1]), "{digests:?}");

    ask(&mut side, none(Part::Miss(ReplicaId(8))), 0..0).await.unwrap();
    ask(&mut side, write(&pattern(512, 1), false), EXTENT_BYTES..EXTENT_BYTES + 512).await.unwrap();
    ask(&mut side, none(Part::Flush), 0..0).await.unwrap();
    ask(&mut side, none(Part::Regained(ReplicaId(8))), 0..65536).await.unwrap();
    ask(&mut side, none(Part::Settled(Extents::touching(&(0..1)))), 0..0).await.unwrap();
    let report = Remote::open(&a.endpoint, &b.to(), &claim(1, 1)).await.unwrap().report;
    assert_eq!(report.active(), &Extents::touching(&(EXTENT_BYTES..EXTENT_BYTES + 1)));
    let lacks = &report.missing()[&ReplicaId(8)];
    assert!(lacks.touches(&(65536..131072)) && lacks.touches(&(EXTENT_BYTES..EXTENT_BYTES + 1)));
    assert!(!lacks.touches(&(0..65536)), "regained");

    let mut side = Remote::open(&a.endpoint, &b.to(), &claim(1, 1)).await.unwrap().side;
    ask(&mut side, none(Part::Returned(ReplicaId(8))), 0..0).await.unwrap();
    ask(&mut side, none(Part::Welcome(Extents::default())), 0..0).await.unwrap();
    let report = Remote::open(&a.endpoint, &b.to(), &claim(1, 1)).await.unwrap().report;
    assert!(report.active().is_empty() && report.missing().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_done_fails_with_words_and_the_session_goes_on() {
    let (a, b) = pair();
    let mut side = Remote::open(&a.endpoint, &b.to(), &claim(1, 1)).await.unwrap().side;
    let failed = ask(&mut side, (Part::Read, Vec::new()), SIZE..SIZE + 512).await.unwrap_err();
    assert!(matches!(&failed, Failure::Io(why) if why.contains("no range")), "{failed}");
    let failed = ask(&mut side, write(&pattern(512, 1), false), SIZE - 256..SIZE + 256).await.unwrap_err();
    assert!(matches!(&failed, Failure::Io(why) if why.contains("no range")), "{failed}");
    assert_eq!(read(&mut side, 0..512).await, vec![0; 512]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_and_small_many_at_once_end_once_each() {
    let (a, b) = pair();
    let mut side = Remote::open(&a.endpoint, &b.to(), &claim(1, 1)).await.unwrap().side;
    let large = pattern(32 << 20, 5);
    ask(&mut side, write(&large, false), 32 * MIB..64 * MIB).await.unwrap();
    // More than may be under way at the replica: the rest waits in the stream.
    for number in 0..400_u64 {
        let (part, data) = write(&pattern(4096, u8::try_from(number % 200).unwrap()), number % 50 == 0);
        let range = number * 4096..(number + 1) * 4096;
        side.submit(Ask { tag: pollux_mirror::Tag(number), part, range, data });
    }
    let mut tags: Vec<u64> = ends(&mut side, 400).await.unwrap().iter().map(|done| done.tag.0).collect();
    tags.sort_unstable();
    assert!(tags.into_iter().eq(0..400));
    for number in [0, 17, 399_u64] {
        let expected = pattern(4096, u8::try_from(number % 200).unwrap());
        assert_eq!(read(&mut side, number * 4096..(number + 1) * 4096).await, expected);
    }
    assert!(read(&mut side, 32 * MIB..64 * MIB).await == large);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_generation_is_refused_also_in_the_middle_of_its_session() {
    let (a, b) = pair();
    let mut older = Remote::open(&a.endpoint, &b.to(), &claim(1, 5)).await.unwrap().side;
    ask(&mut older, write(&pattern(4096, 1), false), 0..4096).await.unwrap();

    // The right to write goes to the node of the replica itself.
    let mut newer = b.keepers.open(&claim(2, 6), &b.ground.place).await.unwrap().side;
    ask(&mut newer, write(&pattern(4096, 2), false), 0..4096).await.unwrap();

    for _ in 0..2 {
        let fenced = ask(&mut older, write(&pattern(4096, 3), false), 0..4096).await;
        assert_eq!(fenced, Err(Failure::Fenced));
    }
    assert_eq!(ask(&mut older, (Part::Flush, Vec::new()), 0..0).await, Err(Failure::Fenced));
    assert_eq!(read(&mut newer, 0..4096).await, pattern(4096, 2));

    let refused = Remote::open(&a.endpoint, &b.to(), &claim(1, 5)).await.unwrap_err();
    assert!(matches!(refused, RemoteError::Refused { refusal: Refusal::Fenced { .. }, .. }), "{refused}");
    // Nor does the daemon that is started next forget.
    drop(newer);
    b.keepers.close().await;
    let next = pollux_volume::Keepers::new("a boot".to_owned());
    let refused = next.open(&claim(1, 5), &b.ground.place).await.unwrap_err();
    assert!(matches!(refused, Refusal::Fenced { .. }), "{refused}");
    next.open(&claim(2, 6), &b.ground.place).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_session_of_the_same_owner_ends_the_older_one() {
    let (a, b) = pair();
    let before = claim(1, 5);
    let mut older = Remote::open(&a.endpoint, &b.to(), &claim(1, 5)).await.unwrap().side;
    let mut newer = Remote::open(&a.endpoint, &b.to(), &claim(1, 5)).await.unwrap().side;
    let why = broken(&mut older).await;
    assert!(why.contains("a newer session") && why.contains("node-2"), "{why}");
    assert_eq!(read(&mut newer, 0..512).await, vec![0; 512]);

    // One that was on its way for long.
    let refused = Remote::open(&a.endpoint, &b.to(), &before).await.unwrap_err();
    assert!(matches!(refused, RemoteError::Refused { refusal: Refusal::Overtaken { .. }, .. }), "{refused}");
    let refused = b.keepers.open(&claim(2, 5), &b.ground.place).await.unwrap_err();
    assert!(matches!(refused, Refusal::NotTheOwner { .. }), "{refused}");
    assert_eq!(read(&mut newer, 0..512).await, vec![0; 512]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_let_in_is_told_why() {
    let (a, b) = pair();
    b.service.shut("volume-3 is attached to vm-1, which runs on node-9");
    let refused = Remote::open(&a.endpoint, &b.to(), &claim(1, 5)).await.unwrap_err();
    assert_eq!(refused.to_string(), "node-2: volume-3 is attached to vm-1, which runs on node-9");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_its_way_and_with_either_end() {
    let (a, b) = pair();
    let side = Remote::open(&a.endpoint, &b.to(), &claim(1, 5)).await.unwrap().side;
    drop(side);
    eventually("the session's end at the replica", || b.last_end().is_some()).await;

    let mut side = Remote::open(&a.endpoint, &b.to(), &claim(1, 5)).await.unwrap().side;
    b.keepers.end(HERE, "the replica is being removed").await;
    assert!(broken(&mut side).await.ends_with("the replica is being removed"));

    let mut side = Remote::open(&a.endpoint, &b.to(), &claim(1, 5)).await.unwrap().side;
    side.submit(Ask { tag: pollux_mirror::Tag(1), part: Part::Flush, range: 0..0, data: Vec::new() });
    b.endpoint.close().await;
    let why = broken(&mut side).await;
    assert!(why.starts_with("replica-7 on node-2: "), "{why}");
}
