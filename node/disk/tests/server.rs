//! The NBD server before a disk that does what the test says, and a client that does too.
#![allow(missing_docs)]

mod world;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use pollux_disk::{
    nbd::{BYTES_IN_FLIGHT_MAX, End, REQUESTS_IN_FLIGHT_MAX, ServeOptions, serve},
    *,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use tokio_util::sync::CancellationToken;
use world::*;

const SIZE: u64 = 256 * MIB;

/// A disk whose operations end when the test says so.
#[derive(Clone, Default)]
struct Puppet(Arc<Mutex<Strings>>);

#[derive(Default)]
struct Strings {
    /// In the order in which they came.
    log: Vec<String>,
    pending: BTreeMap<u64, Operation>,
    done: Vec<Completion>,
    waker: Option<Waker>,
    /// A lower layer that lies: it says that a flush is done before the writes that it covers are stable.
    lies: bool,
    /// Writes that were answered, and those of them that are stable.
    answered: Vec<u64>,
    stable: Vec<u64>,
    broken: Vec<String>,
}

impl Puppet {
    fn with<T>(&self, act: impl FnOnce(&mut Strings) -> T) -> T {
        let mut strings = self.0.lock().unwrap();
        let result = act(&mut strings);
        if let Some(waker) = strings.waker.take() {
            waker.wake();
        }
        result
    }

    fn log(&self) -> Vec<String> {
        self.with(|strings| strings.log.clone())
    }

    /// Waits until so many operations have come.
    async fn has_got(&self, count: usize) {
        until(|| self.with(|strings| strings.log.len()) >= count).await;
    }

    /// Ends the operation at `offset`.
    fn ends(&self, at: u64, result: Result<Outcome, DiskError>) {
        self.with(|strings| {
            let tag = *strings.pending.iter().find(|(_, pending)| offset(pending) == at).expect("it has come").0;
            strings.pending.remove(&tag);
            strings.done.push(Completion { tag: Tag(tag), result });
        });
    }
}

fn offset(operation: &Operation) -> u64 {
    match operation {
        Operation::Read { offset, .. }
        | Operation::Write { offset, .. }
        | Operation::WriteZeroes { offset, .. }
        | Operation::Trim { offset, .. }
        | Operation::BlockStatus { offset, .. } => *offset,
        Operation::Flush => u64::MAX,
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

impl Disk for Puppet {
    fn size(&self) -> u64 {
        SIZE
    }

    fn fast_zeroes(&self) -> bool {
        true
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        self.with(|strings| {
            let word = match &operation {
                Operation::Read { offset, .. } => format!("read {offset}"),
                Operation::Write { offset, durable, .. } => format!("write {offset} {durable}"),
                Operation::WriteZeroes { offset, .. } => format!("zeroes {offset}"),
                Operation::Trim { offset, .. } => format!("trim {offset}"),
                Operation::Flush => "flush".to_owned(),
                Operation::BlockStatus { offset, .. } => format!("status {offset}"),
            };
            strings.log.push(word);
            let before = strings.pending.insert(tag.0, operation);
            assert!(before.is_none(), "{tag:?} is under way twice");
        });
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<()> {
        let mut strings = self.0.lock().unwrap();
        done.append(&mut strings.done);
        if done.is_empty() {
            strings.waker = Some(cx.waker().clone());
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

/// Serves `disk` to the client of `story`; returns how the serving ended.
async fn serving<D: Disk, F: Future<Output = ()>>(
    mut disk: D,
    story: impl FnOnce(Client, CancellationToken) -> F,
) -> End {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stop = CancellationToken::new();
    let options = ServeOptions { name: "web-0".to_owned(), read_only: false };
    let told = stop.clone();
    let (end, ()) = tokio::join!(serve(ours, &mut disk, &options, &stop), async {
        story(Client::greet(theirs).await, told).await;
    });
    end
}

fn io_error() -> DiskError {
    DiskError::Io { doing: "reading", offset: 0, bytes: 512, source: rustix::io::Errno::IO }
}

fn data(byte: u8, bytes: u32) -> Result<Outcome, DiskError> {
    Ok(Outcome::Read(vec![Piece::Data(vec![byte; bytes as usize].into())]))
}

#[test]
fn answers_come_in_the_order_in_which_the_disk_ends_things() {
    run(async {
        let puppet = Puppet::default();
        let end = serving(puppet.clone(), async |mut client, _| {
            client.asks(READ, 0, 1, 0, 512).await;
            client.writes(FUA, 2, 4096, &[7; 512]).await;
            client.asks(READ, 0, 3, 8192, 1024).await;
            puppet.has_got(3).await;
            assert_eq!(puppet.log(), ["read 0", "write 4096 true", "read 8192"]);

            puppet.ends(8192, data(3, 1024));
            assert_eq!(client.hears().await, Answer { cookie: 3, error: 0, data: vec![3; 1024] });
            puppet.ends(4096, Ok(Outcome::Done));
            assert_eq!(client.hears_of(2).await, 0);
            puppet.ends(0, data(1, 512));
            assert_eq!(client.hears().await, Answer { cookie: 1, error: 0, data: vec![1; 512] });
            client.asks(DISCONNECT, 0, 0, 0, 0).await;
        })
        .await;
        assert!(matches!(end, End::Left), "{end}");
    });
}

#[test]
fn each_error_has_its_number_and_none_ends_the_connection() {
    run(async {
        let puppet = Puppet::default();
        serving(puppet.clone(), async |mut client, _| {
            let errors = [
                (DiskError::NoSpace { offset: 0, bytes: 512 }, 28),
                (io_error(), 5),
                (DiskError::Failed { source: rustix::io::Errno::IO }, 5),
                (DiskError::Fenced, 1),
                (DiskError::NotFast, 95),
                (DiskError::Closed, 108),
            ];
            for (cookie, (error, number)) in errors.into_iter().enumerate() {
                client.writes(0, cookie as u64, 0, &[1; 512]).await;
                puppet.has_got(cookie + 1).await;
                puppet.ends(0, Err(error));
                assert_eq!(client.hears_of(cookie as u64).await, number);
            }
            // Badly asked: a write beyond the end, whose data is skipped; half a sector; an unknown command.
            client.writes(0, 90, SIZE, &[1; 4096]).await;
            assert_eq!(client.hears_of(90).await, 28);
            client.asks(READ, 0, 91, 0, 100).await;
            assert_eq!(client.hears_of(91).await, 22);
            client.asks(77, 0, 92, 0, 512).await;
            assert_eq!(client.hears_of(92).await, 22);
            client.asks(READ, 0, 93, 0, 512).await;
            puppet.has_got(7).await;
            puppet.ends(0, data(5, 512));
            assert_eq!(client.hears().await.data, [5; 512]);
            client.asks(DISCONNECT, 0, 0, 0, 0).await;
        })
        .await;
    });
}

#[test]
fn no_more_is_under_way_than_the_limits() {
    run(async {
        let puppet = Puppet::default();
        serving(puppet.clone(), async |mut client, _| {
            for cookie in 0..REQUESTS_IN_FLIGHT_MAX as u64 + 10 {
                client.asks(READ, 0, cookie, cookie * 512, 512).await;
            }
            puppet.has_got(REQUESTS_IN_FLIGHT_MAX).await;
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            assert_eq!(puppet.log().len(), REQUESTS_IN_FLIGHT_MAX);

            // One ends, one more is taken.
            puppet.ends(0, data(0, 512));
            client.hears().await;
            puppet.has_got(REQUESTS_IN_FLIGHT_MAX + 1).await;
            for at in 1..REQUESTS_IN_FLIGHT_MAX as u64 + 10 {
                puppet.has_got(usize::try_from(at).unwrap() + 1).await;
                puppet.ends(at * 512, data(0, 512));
                client.hears().await;
            }

            // By bytes: the largest reads.
            let fit = BYTES_IN_FLIGHT_MAX / TRANSFER_BYTES_MAX as usize;
            let before = puppet.log().len();
            for cookie in 0..fit as u64 + 2 {
                client.asks(READ, 0, cookie, cookie * 512, TRANSFER_BYTES_MAX).await;
            }
            puppet.has_got(before + fit).await;
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            assert_eq!(puppet.log().len(), before + fit);
            for at in 0..fit as u64 + 2 {
                puppet.has_got(before + usize::try_from(at).unwrap() + 1).await;
                let zeroes = Outcome::Read(vec![Piece::Zeroes(TRANSFER_BYTES_MAX)]);
                puppet.ends(at * 512, Ok(zeroes));
                assert_eq!(client.hears().await.data.len(), TRANSFER_BYTES_MAX as usize);
            }
            client.asks(DISCONNECT, 0, 0, 0, 0).await;
        })
        .await;
    });
}

#[test]
fn what_is_under_way_is_answered_before_the_end() {
    run(async {
        let puppet = Puppet::default();
        let end = serving(puppet.clone(), async |mut client, stop| {
            client.writes(0, 1, 0, &[1; 512]).await;
            puppet.has_got(1).await;
            stop.cancel();
            client.writes(0, 2, 512, &[1; 512]).await;
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!(puppet.log().len(), 1, "nothing new is taken");
            puppet.ends(0, Ok(Outcome::Done));
            assert_eq!(client.hears_of(1).await, 0);
            // Nothing more comes: the end, or a reset for what was not read.
            let mut rest = Vec::new();
            let _ = client.stream.read_to_end(&mut rest).await;
            assert!(rest.is_empty());
        })
        .await;
        assert!(matches!(end, End::Stopped), "{end}");

        // Goodbye with something under way.
        let puppet = Puppet::default();
        let end = serving(puppet.clone(), async |mut client, _| {
            client.writes(0, 1, 0, &[1; 512]).await;
            client.asks(DISCONNECT, 0, 0, 0, 0).await;
            puppet.has_got(1).await;
            puppet.ends(0, Ok(Outcome::Done));
            assert_eq!(client.hears_of(1).await, 0);
        })
        .await;
        assert!(matches!(end, End::Left), "{end}");

        // Gone without a word: the disk is not left with anything under way.
        let puppet = Puppet::default();
        let end = serving(puppet.clone(), async |mut client, _| {
            client.writes(0, 1, 0, &[1; 512]).await;
            puppet.has_got(1).await;
            drop(client);
            puppet.ends(0, Ok(Outcome::Done));
        })
        .await;
        assert!(matches!(end, End::Closed), "{end}");
        assert!(puppet.with(|strings| strings.pending.is_empty()));
    });
}

#[test]
fn nonsense_ends_the_connection_and_says_why() {
    run(async {
        let end = serving(Puppet::default(), async |mut client, _| {
            client.stream.write_all(&[0x42; 64]).await.unwrap();
            let mut rest = Vec::new();
            let _ = client.stream.read_to_end(&mut rest).await;
        })
        .await;
        assert!(matches!(&end, End::Broken(_)), "{end}");
    });
}

/// A disk over the puppet's strings that keeps the promise of a flush, or does not, and a client that knows what it was told.
struct Cached {
    puppet: Puppet,
    cache: Vec<u64>,
}

impl Disk for Cached {
    fn size(&self) -> u64 {
        SIZE
    }

    fn fast_zeroes(&self) -> bool {
        true
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        let cache = &mut self.cache;
        self.puppet.with(|strings| {
            match &operation {
                Operation::Write { offset, durable, .. } => {
                    cache.push(*offset);
                    if *durable && !strings.lies {
                        strings.stable.push(*offset);
                    }
                }
                Operation::Flush if !strings.lies => strings.stable.append(cache),
                Operation::Flush
                | Operation::Read { .. }
                | Operation::WriteZeroes { .. }
                | Operation::Trim { .. }
                | Operation::BlockStatus { .. } => {}
            }
            strings.done.push(Completion { tag, result: Ok(Outcome::Done) });
        });
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<()> {
        self.puppet.poll(cx, done)
    }
}

/// Writes and flushes in a stream without waiting; what was answered before a flush was sent must be stable when that is answered.
async fn promises_broken(lies: bool) -> usize {
    let puppet = Puppet::default();
    puppet.with(|strings| strings.lies = lies);
    let disk = Cached { puppet: puppet.clone(), cache: Vec::new() };
    serving(disk, async |mut client, _| {
        for round in 0..50u64 {
            for write in 0..4 {
                client
                    .writes(if write == 3 { FUA } else { 0 }, round * 10 + write, (round * 4 + write) * 512, &[1; 512])
                    .await;
            }
            for write in 0..4 {
                assert_eq!(client.hears_of(round * 10 + write).await, 0);
                puppet.with(|strings| strings.answered.push((round * 4 + write) * 512));
                if write == 3 {
                    puppet.with(|strings| strings.check("a durable write", &[(round * 4 + 3) * 512]));
                }
            }
            let covered = puppet.with(|strings| strings.answered.clone());
            client.asks(FLUSH, 0, 1_000_000 + round, 0, 0).await;
            assert_eq!(client.hears_of(1_000_000 + round).await, 0);
            puppet.with(|strings| strings.check("a flush", &covered));
        }
        client.asks(DISCONNECT, 0, 0, 0, 0).await;
    })
    .await;
    puppet.with(|strings| strings.broken.len())
}

impl Strings {
    fn check(&mut self, what: &str, covered: &[u64]) {
        if let Some(missing) = covered.iter().find(|offset| !self.stable.contains(offset)) {
            self.broken.push(format!("{what} was answered, and the write at {missing} is not stable"));
        }
    }
}

#[test]
fn a_flush_that_answers_before_the_write_it_covers_is_caught() {
    run(async {
        assert_eq!(promises_broken(false).await, 0);
        assert_eq!(promises_broken(true).await, 100, "the check notices nothing");
    });
}

#[test]
fn a_read_only_export_refuses_writes() {
    run(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let options = ServeOptions { name: String::new(), read_only: true };
        let (mut puppet, stop) = (Puppet::default(), CancellationToken::new());
        let (_, ()) = tokio::join!(serve(ours, &mut puppet, &options, &stop), async {
            let mut client = Client::greet(theirs).await;
            client.writes(0, 1, 0, &[1; 512]).await;
            assert_eq!(client.hears_of(1).await, 1);
            for (cookie, command) in [(2, TRIM), (3, ZEROES)] {
                client.asks(command, 0, cookie, 0, 4096).await;
                assert_eq!(client.hears_of(cookie).await, 1);
            }
            // Not agreed on: no structured replies, no context.
            client.asks(STATUS, 0, 4, 0, 4096).await;
            assert_eq!(client.hears_of(4).await, 22);
            client.asks(DISCONNECT, 0, 0, 0, 0).await;
        });
    });
}
