//! A flash over a disk that takes, waits or refuses as a test wants it.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard},
    task::Waker,
};

use pollux_disk::perform;

use super::*;

/// Bytes of the variables, and of what a guest writes at a time.
const BYTES: usize = 64 * 512;
const SECTOR: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Takes,
    Waits,
    Refuses,
}

#[derive(Debug)]
struct Inside {
    mood: Mood,
    content: Vec<u8>,
    /// What it took: where each write began, and its first byte; `None`: a flush.
    took: Vec<Option<(u64, u8)>>,
    waker: Option<Waker>,
}

/// The disk below.
struct Moody {
    inside: Arc<Mutex<Inside>>,
    open: Vec<(Tag, Operation)>,
}

#[derive(Clone)]
struct Below(Arc<Mutex<Inside>>);

impl Below {
    fn held(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().expect("no holder panics")
    }

    fn becomes(&self, mood: Mood) {
        let mut inside = self.held();
        inside.mood = mood;
        if let Some(waker) = inside.waker.take() {
            waker.wake();
        }
    }

    /// The writes it took.
    fn writes(&self) -> Vec<(u64, u8)> {
        self.held().took.iter().flatten().copied().collect()
    }
}

fn disk(content: Vec<u8>) -> (Moody, Below) {
    let inside = Arc::new(Mutex::new(Inside { mood: Mood::Takes, content, took: Vec::new(), waker: None }));
    (Moody { inside: Arc::clone(&inside), open: Vec::new() }, Below(inside))
}

impl Disk for Moody {
    fn size(&self) -> u64 {
        self.inside.lock().expect("no holder panics").content.len() as u64
    }

    fn fast_zeroes(&self) -> bool {
        false
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        assert!(self.open.is_empty(), "one at a time: the order is the guest's");
        self.open.push((tag, operation));
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<()> {
        let mut inside = self.inside.lock().expect("no holder panics");
        inside.waker = Some(cx.waker().clone());
        if inside.mood == Mood::Waits {
            return Poll::Pending;
        }
        let before = done.len();
        for (tag, operation) in self.open.drain(..) {
            if inside.mood == Mood::Refuses {
                done.push(Completion { tag, result: Err(DiskError::Fenced) });
                continue;
            }
            let result = match operation {
                Operation::Write { offset, data, .. } => {
                    let at = usize::try_from(offset).unwrap();
                    inside.content[at..at + data.len()].copy_from_slice(&data);
                    inside.took.push(Some((offset, data[0])));
                    Outcome::Done
                }
                Operation::Flush => {
                    inside.took.push(None);
                    Outcome::Done
                }
                Operation::Read { offset, bytes } => {
                    let at = usize::try_from(offset).unwrap();
                    Outcome::Read(vec![Piece::Data(Bytes::copy_from_slice(&inside.content[at..at + bytes as usize]))])
                }
                Operation::WriteZeroes { .. } | Operation::Trim { .. } | Operation::BlockStatus { .. } => {
                    panic!("nobody asks for that")
                }
            };
            done.push(Completion { tag, result: Ok(result) });
        }
        if done.len() > before { Poll::Ready(()) } else { Poll::Pending }
    }
}

fn flash() -> (Flash<Moody>, FlashHandle, Below) {
    let (disk, below) = disk(vec![0; BYTES]);
    let (flash, handle) = Flash::new(disk, vec![0; BYTES]);
    (flash, handle, below)
}

fn write(sector: usize, byte: u8) -> Operation {
    Operation::Write { offset: (sector * SECTOR) as u64, data: vec![byte; SECTOR].into(), durable: false }
}

/// The guest writes a sector, and how long that took it.
async fn put(flash: &mut Flash<Moody>, sector: usize, byte: u8) -> Duration {
    let began = Instant::now();
    perform(flash, write(sector, byte)).await.expect("a flash takes everything");
    began.elapsed()
}

/// Time passes while somebody serves the flash.
async fn pass(flash: &mut Flash<Moody>, time: Duration) {
    let mut nothing = Vec::new();
    let served = poll_fn(|cx| -> Poll<()> {
        let _ = flash.poll(cx, &mut nothing);
        Poll::Pending
    });
    assert!(tokio::time::timeout(time, served).await.is_err());
    assert!(nothing.is_empty(), "nobody waits");
}

const LATE: Duration = Duration::from_millis(ANSWER_MS_MAX);
const LONG: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn a_write_is_answered_when_the_disk_has_it() {
    let (mut flash, handle, below) = flash();
    assert_eq!(put(&mut flash, 3, 7).await, Duration::ZERO);
    assert_eq!(below.writes(), [(3 * 512, 7)]);
    assert!(handle.unsaved().is_none());

    // It is on stable storage when the guest has been quiet for a while, and only once.
    assert_eq!(below.held().took.len(), 1, "no flush for each byte");
    pass(&mut flash, LONG).await;
    assert_eq!(below.held().took, [Some((3 * 512, 7)), None]);
}

#[tokio::test(start_paused = true)]
async fn a_guest_waits_for_a_disk_that_does_not_answer_only_once_and_not_for_long() {
    let (mut flash, handle, below) = flash();
    below.becomes(Mood::Waits);
    let first = put(&mut flash, 0, 1).await;
    assert!((LATE..2 * LATE).contains(&first), "{first:?}");
    assert_eq!(put(&mut flash, 1, 2).await, Duration::ZERO, "it is late already");
    assert!(handle.unsaved().is_none(), "it may be over in a moment");
    assert!(!handle.clone().saved(LATE).await, "but it is not yet");

    pass(&mut flash, LONG).await;
    let (lasts, why) = handle.unsaved().expect("it is said");
    assert!(lasts >= LONG && why.contains("does not answer"), "{lasts:?} {why}");
    assert_eq!(below.writes(), []);

    below.becomes(Mood::Takes);
    pass(&mut flash, LONG).await;
    assert_eq!(below.writes(), [(0, 1), (512, 2)]);
    assert!(handle.unsaved().is_none() && handle.clone().saved(LATE).await, "it is over");
    below.becomes(Mood::Waits);
    assert!(put(&mut flash, 0, 1).await >= LATE, "the next one is waited for again");
}

#[tokio::test(start_paused = true)]
async fn what_the_disk_refuses_is_answered_at_once_and_tried_again() {
    let (mut flash, handle, below) = flash();
    below.becomes(Mood::Refuses);
    assert_eq!(put(&mut flash, 0, 1).await, Duration::ZERO);
    pass(&mut flash, LONG).await;
    assert!(handle.unsaved().expect("it is said").1.contains("runs elsewhere"));
    assert_eq!(below.writes(), []);

    below.becomes(Mood::Takes);
    pass(&mut flash, Duration::from_millis(AGAIN_MS)).await;
    assert_eq!(below.writes(), [(0, 1)]);
    assert!(handle.unsaved().is_none());
}

#[tokio::test(start_paused = true)]
async fn whatever_is_on_the_disk_is_what_the_guest_had_written_at_some_moment() {
    let (mut flash, _, below) = flash();
    below.becomes(Mood::Waits);
    let story = [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (0, 6), (2, 7), (2, 8), (0, 9)];
    let mut moments = vec![vec![0; BYTES]];
    for (sector, byte) in story {
        put(&mut flash, sector, byte).await;
        let mut next = moments.last().expect("one").clone();
        next[sector * SECTOR..(sector + 1) * SECTOR].fill(byte);
        moments.push(next);
    }
    below.becomes(Mood::Takes);
    pass(&mut flash, LONG).await;
    // Of those that follow each other in one sector only the last, and the first, which was under way.
    let took = below.writes();
    assert_eq!(took, [(0, 1), (0, 3), (512, 5), (0, 6), (1024, 8), (0, 9)]);
    let mut disk = vec![0; BYTES];
    for (offset, byte) in took {
        let at = usize::try_from(offset).unwrap();
        disk[at..at + SECTOR].fill(byte);
        assert!(moments.contains(&disk), "after {byte}: the guest never saw that");
    }
    assert_eq!(&disk, moments.last().expect("one"));
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_bounded_by_the_variables_size() {
    let (mut flash, _, below) = flash();
    below.becomes(Mood::Waits);
    for round in 0..100 {
        for sector in 0..4 {
            put(&mut flash, sector, round).await;
            assert!(flash.queue.bytes() <= BYTES + SECTOR, "{} bytes wait", flash.queue.bytes());
        }
    }
    below.becomes(Mood::Takes);
    pass(&mut flash, LONG).await;
    assert_eq!(below.held().content, flash.content);
    assert_eq!(flash.content[..4 * SECTOR], [99; 4 * SECTOR]);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_what_a_machine_has_loaded() {
    let (mut flash, handle, below) = flash();
    below.becomes(Mood::Waits);
    let whole = Operation::Write { offset: 0, data: vec![5; BYTES].into(), durable: false };
    let began = Instant::now();
    perform(&mut flash, whole).await.expect("taken");
    assert_eq!(began.elapsed(), Duration::ZERO);
    below.becomes(Mood::Takes);
    pass(&mut flash, LONG).await;
    assert_eq!(below.held().content, vec![5; BYTES]);
    assert!(handle.unsaved().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_flush_comes_after_what_was_written_and_is_not_waited_for_either() {
    let (mut flash, _, below) = flash();
    put(&mut flash, 0, 1).await;
    perform(&mut flash, Operation::Flush).await.expect("flushed");
    assert_eq!(below.held().took, [Some((0, 1)), None]);

    below.becomes(Mood::Waits);
    let began = Instant::now();
    perform(&mut flash, Operation::Flush).await.expect("not held");
    assert!((LATE..2 * LATE).contains(&began.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn what_was_written_is_read_also_before_the_disk_has_it() {
    let (mut flash, _, below) = flash();
    below.becomes(Mood::Waits);
    put(&mut flash, 2, 9).await;
    let read = perform(&mut flash, Operation::Read { offset: 1024, bytes: 512 }).await.expect("read");
    assert_eq!(read, Outcome::Read(vec![Piece::Data(vec![9; 512].into())]));
    let outside = perform(&mut flash, Operation::Read { offset: BYTES as u64, bytes: 512 }).await;
    assert!(matches!(outside, Err(DiskError::OutOfRange { .. })));
}

/// A firmware's variables begin with a 1.
fn known(bytes: &[u8]) -> bool {
    bytes.first() == Some(&1)
}

fn template() -> Bytes {
    let mut template = vec![0xff; BYTES];
    template[0] = 1;
    template.into()
}

#[tokio::test]
async fn an_empty_volume_becomes_one_of_variables_and_then_stays_as_it_is() {
    let (mut volume, below) = disk(vec![0; 2 * BYTES]);
    assert_eq!(prepare(&mut volume, &template(), known).await.expect("filled"), template());
    assert_eq!(below.held().content[..BYTES], template());
    assert_eq!(below.held().content[BYTES..], [0; BYTES], "and no byte more");

    below.held().content[600] = 42;
    let content = prepare(&mut volume, &template(), known).await.expect("as it is");
    assert_eq!((content[600], below.writes().len()), (42, 2), "nothing was written");
}

#[tokio::test]
async fn a_volume_that_was_half_filled_is_filled() {
    let mut half = vec![0; BYTES];
    half[4096..12_288].fill(0xff);
    let (mut volume, below) = disk(half);
    prepare(&mut volume, &template(), known).await.expect("filled");
    assert_eq!(below.held().content, template());
    assert_eq!(below.writes().last(), Some(&(0, 1)), "its beginning comes last");
}

#[tokio::test]
async fn a_volume_with_something_else_is_left_alone() {
    for at in [0, 1024, 4096, BYTES - 1] {
        let mut other = vec![0; BYTES];
        other[at] = 7;
        let (mut volume, below) = disk(other);
        let why = prepare(&mut volume, &template(), known).await.expect_err("not that one");
        assert!(matches!(why, PrepareError::Other), "{why}");
        assert_eq!(below.writes(), [], "{at}");
    }
    let (mut small, _) = disk(vec![0; BYTES / 2]);
    let why = prepare(&mut small, &template(), known).await.expect_err("too small").to_string();
    assert!(why.contains("16384 bytes") && why.contains("32768"), "{why}");
}
