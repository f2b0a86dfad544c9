use std::time::{Duration, Instant};

use bytes::Bytes;
use pollux_link::{Class, OpenError, Role, StreamError};
use pollux_wire::{fault, limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::*;

/// Byte `index` of a stream that repeats after a prime number of bytes, so that a lost or doubled block shows.
fn pattern(from: usize, size: usize) -> Bytes {
    (from..from + size).map(|index| u8::try_from(index % 251).unwrap_or(0)).collect::<Vec<_>>().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mib_go_there_and_come_back() {
    const TOTAL: usize = 64 << 20;
    const CHUNK: usize = 251 * 1024;
    let (a, b) = pair();
    let header = Bytes::from_static(b"mirror, mirror");
    let (mut send, mut recv) = a.endpoint.open(&b.to(), MIRROR, header.clone(), 0, SOON).await.unwrap();
    let mut echoed = vec![0; header.len()];
    recv.read_exact(&mut echoed).await.unwrap();
    assert_eq!(echoed, header);

    let begun = Instant::now();
    let chunk = pattern(0, CHUNK);
    let sending = async {
        let mut sent = 0;
        while sent < TOTAL {
            let size = CHUNK.min(TOTAL - sent);
            send.send(chunk.slice(..size)).await.unwrap();
            sent += size;
        }
        send.finish().unwrap();
    };
    let receiving = async {
        let mut seen = 0;
        while let Some(bytes) = recv.read_chunk(CHUNK).await.unwrap() {
            // The chunk is a whole number of periods: the pattern at any place is that at its rest.
            let at = seen % 251;
            assert!(bytes.chunks(CHUNK - 251).all(|part| {
                let at = (at + (part.as_ptr() as usize - bytes.as_ptr() as usize)) % 251;
                part == &chunk[at..at + part.len()]
            }));
            seen += bytes.len();
        }
        seen
    };
    let ((), seen) = tokio::join!(sending, receiving);
    assert_eq!(seen, TOTAL);
    println!("128 MiB in both directions in {:?}", begun.elapsed());
    let path = a.endpoint.path(b.to().node, Class::Bulk).unwrap();
    println!("{path:?}");
    assert!(path.mtu_bytes <= 6500, "ten datagrams must stay below 64 KiB: {path:?}");
}

#[tokio::test]
async fn a_session_is_an_async_stream() {
    let (a, b) = pair();
    let (mut send, mut recv) = a.endpoint.open(&b.to(), MIRROR, Bytes::new(), 1, SOON).await.unwrap();
    send.write_u64(42).await.unwrap();
    send.shutdown().await.unwrap();
    let mut rest = Vec::new();
    recv.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, 42_u64.to_be_bytes());
}

#[tokio::test]
async fn a_crash_does_not_look_like_an_end() {
    let (a, b) = pair();
    let (mut send, mut recv) = a.endpoint.open(&b.to(), MIRROR, Bytes::new(), 0, SOON).await.unwrap();
    send.write_all(b"half a").await.unwrap();
    let mut echoed = [0; 6];
    recv.read_exact(&mut echoed).await.unwrap();
    drop(send);
    // The mirror sees an error, not an end, and drops its own half in turn.
    let end = tokio::time::timeout(SOON, recv.read_chunk(100)).await.unwrap();
    assert!(matches!(end, Err(StreamError::Abandoned(_))), "{end:?}");
}

#[tokio::test]
async fn sessions_of_other_roles_or_kinds_are_refused_with_a_reason() {
    let authority = authority(1);
    let (a, b) = (start(&authority, 1, Role::Witness), start(&authority, 2, Role::Member));
    let open = async |kind| a.endpoint.open(&b.to(), kind, Bytes::new(), 0, SOON).await.map(drop).unwrap_err();
    let error = open(MEMBERS_MIRROR).await;
    assert!(matches!(&error, OpenError::Refused { fault, .. } if fault.code == fault::ROLE), "{error}");
    let error = open(63).await;
    assert!(matches!(&error, OpenError::Refused { fault, .. } if fault.code == fault::METHOD), "{error}");
    let counters = b.endpoint.counters();
    assert_eq!((counters.wrong_role, counters.unknown_method, counters.sessions_served), (1, 1, 0));
}

#[tokio::test]
async fn a_header_has_a_limit() {
    let (a, b) = pair();
    let header = Bytes::from(vec![7; limits::SESSION_HEADER_BYTES_MAX]);
    let (_send, mut recv) = a.endpoint.open(&b.to(), MIRROR, header.clone(), 0, SOON).await.unwrap();
    let mut echoed = vec![0; header.len()];
    recv.read_exact(&mut echoed).await.unwrap();
    assert_eq!(echoed, header);

    let over = Bytes::from(vec![7; limits::SESSION_HEADER_BYTES_MAX + 1]);
    let refused = a.endpoint.open(&b.to(), MIRROR, over, 0, SOON).await.map(drop);
    assert!(matches!(refused, Err(OpenError::TooLarge { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_session_stays_usable_while_bulk_floods_the_same_connection() {
    let (a, b) = pair();
    let (mut bulk, mut bulk_back) = a.endpoint.open(&b.to(), MIRROR, Bytes::new(), 0, SOON).await.unwrap();
    let mut flood = tokio::task::JoinSet::new();
    flood.spawn(async move {
        let page = Bytes::from(vec![1; 1 << 20]);
        let drain = async { while let Ok(Some(_)) = bulk_back.read_chunk(usize::MAX).await {} };
        let fill = async { while bulk.send(page.clone()).await.is_ok() {} };
        tokio::join!(drain, fill);
    });
    let (mut send, mut recv) = a.endpoint.open(&b.to(), MIRROR, Bytes::new(), 10, SOON).await.unwrap();
    let mut worst = Duration::ZERO;
    for round in 0..50_u64 {
        let begun = Instant::now();
        send.write_all(&round.to_le_bytes()).await.unwrap();
        let mut echoed = [0; 8];
        recv.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, round.to_le_bytes());
        worst = worst.max(begun.elapsed());
    }
    println!("the slowest control round trip under flood: {worst:?}");
    assert!(worst < Duration::from_secs(1), "{worst:?}");
    a.endpoint.close().await;
    flood.join_next().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_in_the_middle_of_a_transfer_is_noticed_at_once() {
    for _ in 0..10 {
        let (a, b) = pair();
        let (mut send, mut recv) = a.endpoint.open(&b.to(), MIRROR, Bytes::new(), 0, SOON).await.unwrap();
        let mut flood = tokio::task::JoinSet::new();
        flood.spawn(async move {
            let page = Bytes::from(vec![1; 1 << 20]);
            while send.send(page.clone()).await.is_ok() {}
        });
        flood.spawn(async move { while let Ok(Some(_)) = recv.read_chunk(usize::MAX).await {} });
        let path = || a.endpoint.path(b.to().node, Class::Bulk).unwrap();
        eventually("the transfer is under way", || path().received_bytes > 4 << 20).await;

        b.endpoint.close().await;
        let begun = Instant::now();
        flood.join_all().await;
        assert!(begun.elapsed() < Duration::from_secs(1), "noticed only after {:?}", begun.elapsed());
    }
}
