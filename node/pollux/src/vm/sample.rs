//! What a move would meet, from a short look: how fast the guest writes, what its pages are like, what link and target take.
//!
//! Nothing of it touches a move: the guest is tracked as for one, for half a second, and some of its pages are packed, sent
//! to the target on the streams that a move would use, unpacked there and dropped. A move that begins meanwhile takes the
//! tracker, and the sample fails; it takes none from a move.

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use pollux_link::{RecvStream, SendStream, To};
use pollux_state::id::{Generation, OpId, Owner, VmId};
use pollux_vm::{
    convergence::Sample,
    event::RoundReport,
    message::{Greeting, ProbeGreeting},
    pages::{PAGE_BYTES, PageSet},
};
use pollux_wire::{
    codec,
    limits::Limit,
    method::VM_PROBE,
    page::{self, HEADER_BYTES, Header},
};
use tokio::{
    sync::{Mutex, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    host::Guest,
    outgoing::STREAMS,
    pages::{self, PIECE_PAGES, PageStream, Tally, Way},
    turns::Purpose,
};

/// When the guest's writes are looked at, in milliseconds after the beginning.
const LOOKS_MS: [u64; 2] = [100, 500];
/// Pieces of memory that are sent to see how fast that goes: 16 MiB.
const PIECES: usize = 16;
/// Opening a stream may take this long, in milliseconds.
const OPEN_MS_MAX: u64 = 2_000;
/// Sending the pieces may take this long, in milliseconds: longer on less than 40 Mbit/s.
const SEND_MS_MAX: u64 = 4_000;
/// Frames that one stream may bring.
const FRAMES_MAX: u32 = 64;
/// Streams that a node measures at once. Further ones wait, and time out.
const PROBES_MAX: usize = 8;
/// Goes before no other bulk work.
const PRIORITY: i32 = -20;

/// Room for streams that measure, on this node.
static ROOM: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(PROBES_MAX));

/// Takes a sample of a guest on its way to a node.
pub(super) async fn take(shared: &Arc<Shared>, guest: Arc<dyn Guest>, vm: VmId, to: &To) -> Result<Sample, String> {
    let asked = Instant::now();
    let read = shared.consensus.linearizable(Duration::from_millis(OPEN_MS_MAX)).await;
    read.map_err(|error| format!("the cluster does not agree on anything just now: {error}"))?;
    let commit_ms = super::millis(asked.elapsed());
    let populated = guest.populated().await.map_err(|error| error.to_string())?;
    let (dirty_pages_per_s, dirty_pages_max) = writes(&*guest, populated.len()).await?;
    let sent = send(shared, &*guest, vm, to, &populated).await?;

    let real = sent.pages.saturating_sub(sent.zero_pages);
    let real_bytes = real * PAGE_BYTES as u64;
    let per = |part: u64, whole: u64| part.saturating_mul(1000).checked_div(whole);
    Ok(Sample {
        pages: populated.len(),
        zero_permille: per(sent.zero_pages, sent.pages).unwrap_or(0),
        wire_permille: per(sent.wire_bytes, real_bytes).unwrap_or(1000),
        dirty_pages_per_s,
        dirty_pages_max,
        // Of a guest that is all zeros nothing can be learnt, and nothing need be.
        bytes_per_s: per(real_bytes.max(PAGE_BYTES as u64), sent.took_ms.max(1)).unwrap_or(0),
        commit_ms,
    })
}

/// Pages that the guest writes per second, each counted once, and how many different ones that will be at most.
async fn writes(guest: &dyn Guest, populated: u64) -> Result<(u64, u64), String> {
    let turn =
        guest.track(Purpose::Sample).await.map_err(|error| format!("the guest's memory cannot be tracked: {error}"))?;
    let mut dirty = PageSet::empty(guest.memory().pages());
    let began = Instant::now();
    let mut looks = [(0.0, 0); LOOKS_MS.len()];
    for (look, at_ms) in looks.iter_mut().zip(LOOKS_MS) {
        tokio::time::sleep_until(began + Duration::from_millis(at_ms)).await;
        let at = began.elapsed();
        guest.scan(&turn, &mut dirty).await.map_err(|error| error.to_string())?;
        *look = (at.as_secs_f64(), dirty.len());
    }
    let [first, second] = looks;
    Ok(curve(first, second, populated))
}

/// From how many different pages had been written at two moments (seconds, pages): how fast they were at the beginning, per
/// second, and how many they will be in the end.
///
/// A guest that writes at random in a working set of `w` pages has touched `w * (1 - exp(-r t / w))` of them after a time `t`
/// (coupon collecting). `w` is found by bisection; where the second look shows no bend it is all of memory.
fn curve(first: (f64, u64), second: (f64, u64), populated: u64) -> (u64, u64) {
    #[expect(clippy::cast_precision_loss, reason = "pages of a guest are far below 2^52")]
    let float = |pages: u64| pages as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is never negative")]
    let whole = |pages: f64| pages as u64;
    let ((t1, u1), (t2, u2)) = ((first.0, float(first.1)), (second.0, float(second.1)));
    if u1 < 1.0 || u2 <= u1 {
        // Nothing, or nothing new: the working set is what was seen.
        let seen = u2.max(u1);
        return (whole(seen / t1.max(f64::EPSILON)), whole(seen).max(1));
    }
    let straight = (whole(u2 / t2.max(f64::EPSILON)), populated.max(whole(u2)));
    if u2 >= 0.9 * u1 * t2 / t1 {
        return straight;
    }
    // The rate that the first look gives for a working set, and what the second would then have shown.
    let rate = |set: f64| -set * (-u1 / set).ln_1p() / t1;
    let shown = |set: f64| set * -(-rate(set) * t2 / set).exp_m1();
    let (mut least, mut most) = (u2, float(populated).max(u2 * 2.0));
    for _ in 0..60 {
        let middle = f64::midpoint(least, most);
        if shown(middle) < u2 { least = middle } else { most = middle }
    }
    (whole(rate(most)), whole(most))
}

/// As fast as it goes, and over before anything counts as a stall.
struct Brief;

#[async_trait]
impl Way for Brief {
    async fn may_send(&self, _: u64) {}

    fn sent_bytes(&self) -> u64 {
        0
    }

    fn starved_ms_max(&self) -> u64 {
        0
    }
}

/// Sends some of the guest's pages to `to`, which drops them.
async fn send(
    shared: &Arc<Shared>,
    guest: &dyn Guest,
    vm: VmId,
    to: &To,
    populated: &PageSet,
) -> Result<RoundReport, String> {
    let pieces: BTreeSet<u64> = populated.iter().map(|page| page / PIECE_PAGES).collect();
    let step = pieces.len().div_ceil(PIECES).max(1);
    let mut set = PageSet::empty(populated.pages());
    for piece in pieces.into_iter().step_by(step) {
        let range = piece * PIECE_PAGES..((piece + 1) * PIECE_PAGES).min(populated.pages());
        range.filter(|page| populated.contains(*page)).for_each(|page| set.insert(page));
    }
    let greeting = Greeting {
        vm,
        op: OpId([0; 16]),
        generation: Generation::default(),
        from: Owner { node: shared.me.node, incarnation: shared.me.incarnation },
        index: 0,
        pages: populated.pages(),
        streams: STREAMS,
    };
    let header = codec::encode(&ProbeGreeting { pages: populated.pages() }, Limit::Control);
    let header = Bytes::from(header.map_err(|error| error.to_string())?);
    let (mut streams, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..STREAMS {
        let open =
            shared.endpoint.open(to, VM_PROBE, header.clone(), PRIORITY, Duration::from_millis(OPEN_MS_MAX)).await;
        let (send, recv) = open.map_err(|error| format!("the target cannot be reached: {error}"))?;
        streams.push(Arc::new(Mutex::new(PageStream::new(send, &greeting))));
        answers.push(recv);
    }
    let (tally, began, cancel) = (Arc::new(Tally::default()), Instant::now(), CancellationToken::new());
    let _ends = cancel.clone().drop_guard();
    let all = async {
        pages::send(&shared.tasks, &cancel, &streams, 1, set, guest.memory(), &tally, Arc::new(Brief))
            .await
            .map_err(|error| error.to_string())?;
        for stream in &streams {
            stream.lock().await.finish();
        }
        for answer in &mut answers {
            let mut done = [0];
            answer.read_exact(&mut done).await.map_err(|error| format!("the target does not take pages: {error}"))?;
        }
        Ok::<_, String>(super::millis(began.elapsed()))
    };
    let took_ms = tokio::time::timeout(Duration::from_millis(SEND_MS_MAX), all).await;
    let took_ms = took_ms.map_err(|_| format!("the target did not take 16 MiB within {} s", SEND_MS_MAX / 1000))??;
    Ok(RoundReport { took_ms, ..tally.sent() })
}

/// The target's end of one stream: unpacks as a move would, keeps nothing, and says when it has seen the end.
pub async fn drop_all(greeting: ProbeGreeting, mut send: SendStream, mut recv: RecvStream) {
    let Ok(_room) = ROOM.acquire().await else { return };
    let taking = async {
        let mut header = [0; HEADER_BYTES];
        let (mut body, mut scratch) = (Vec::new(), Vec::new());
        let mut frames = 0;
        while pages::read_or_end(&mut recv, &mut header).await? {
            frames += 1;
            if frames > FRAMES_MAX {
                return Err(format!("more than {FRAMES_MAX} frames to measure with"));
            }
            let length = Header::parse(&header).map_err(|error| error.to_string())?.body_bytes();
            body.resize(length, 0);
            recv.read_exact(&mut body).await.map_err(|error| error.to_string())?;
            page::decode(&header, &body, greeting.pages, &mut scratch).map_err(|error| error.to_string())?;
        }
        send.write_all(&[1]).await.map_err(|error| error.to_string())?;
        let _ = send.finish();
        Ok(())
    };
    match tokio::time::timeout(Duration::from_millis(SEND_MS_MAX), taking).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => tracing::debug!(why, "a stream that measures was dropped"),
        Err(_) => tracing::debug!("a stream that measures took too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest with that working set shows after so many seconds of writing at random.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test's own numbers")]
    fn shows(rate: f64, set: f64, seconds: f64) -> (f64, u64) {
        (seconds, (set * -(-rate * seconds / set).exp_m1()) as u64)
    }

    #[test]
    fn a_steady_writer_has_no_bend() {
        let (rate, most) = curve((0.1, 1_000), (0.5, 5_000), 100_000);
        assert_eq!((rate, most), (10_000, 100_000));
    }

    #[test]
    fn a_working_set_shows_in_the_bend() {
        let (rate, set) = (40_000.0, 8_000.0);
        let (found_rate, found_set) = curve(shows(rate, set, 0.1), shows(rate, set, 0.5), 100_000);
        assert!((39_000..41_000).contains(&found_rate), "{found_rate}");
        assert!((7_800..8_200).contains(&found_set), "{found_set}");
    }

    #[test]
    fn one_that_writes_the_same_few_pages_is_known_after_the_first_look() {
        assert_eq!(curve((0.1, 200), (0.5, 200), 100_000), (2_000, 200));
    }

    #[test]
    fn an_idle_guest_is_idle() {
        assert_eq!(curve((0.1, 0), (0.5, 0), 100_000), (0, 1));
    }
}
