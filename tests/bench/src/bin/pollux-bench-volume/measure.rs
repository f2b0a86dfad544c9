//! One figure: by fio through a server or on the file itself, or of the bare link.

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::runtime::Handle;

use crate::{
    case::{Case, Seen, WARM_UP_PATTERN},
    place::{Place, SIZE_BYTES, WIDE_BYTES},
    server::{Kind, Server},
    start::{address, start},
};

/// Where in a run counting begins.
const WARM_UP_S: u64 = 1;
/// Where the bare link's other end listens.
const PORT: u16 = 7701;
/// Extents that the activity log marks, in bytes.
const EXTENT_BYTES: u64 = 4 << 20;
/// What says that a write has arrived, in bytes: as long as NBD's reply.
const ANSWER_BYTES: usize = 16;

pub(crate) fn measure(place: &Place, server: Server, case: Case, seconds: u64, runtime: &Handle) -> Result<Seen> {
    place.settle(server, case)?;
    let seen = match server.kind() {
        Kind::RawLink => link(place, case, Duration::from_secs(seconds)),
        Kind::RawDisk => {
            let file = server.files(case).first().map(|file| place.data(*file)).context("a file")?;
            fio(case, seconds, "io_uring", &format!("--filename={}", file.display()))
        }
        Kind::Bare | Kind::Volume(_) | Kind::Peer | Kind::QemuMirror => {
            start(place, server, case, runtime).and_then(|()| by_nbd(place, case, seconds))
        }
    };
    let ended = place.end_servers();
    let seen = seen?;
    ended?;
    place.compare(server, case)?;
    Ok(seen)
}

fn by_nbd(place: &Place, case: Case, seconds: u64) -> Result<Seen> {
    let uri = format!("--uri=nbd+unix:///?socket={}", place.socket().display());
    if case.warms_up() {
        let each = Case { pattern: WARM_UP_PATTERN, block_bytes: 4 << 10, depth: 16, cold: true, ..case };
        fio(each, seconds, "nbd", &uri)?;
    }
    fio(case, seconds, "nbd", &uri)
}

fn fio(case: Case, seconds: u64, engine: &str, on: &str) -> Result<Seen> {
    let size = if case.wide { WIDE_BYTES } else { SIZE_BYTES };
    let mut command = Command::new("fio");
    if case.cold {
        command.arg(format!("--number_ios={}", size / EXTENT_BYTES));
    } else {
        command.args(["--time_based", &format!("--runtime={seconds}"), &format!("--ramp_time={WARM_UP_S}")]);
    }
    let output = command
        .args(["--name=bench", "--output-format=json", "--norandommap", "--allow_file_create=0"])
        // In this order: what the file is called is the engine's own word.
        .arg(format!("--ioengine={engine}"))
        .arg(on)
        .arg(format!("--size={size}"))
        .arg(format!("--rw={}", case.pattern))
        .arg(format!("--bs={}", case.block_bytes))
        .arg(format!("--iodepth={}", case.depth))
        .output()
        .context("fio does not start; run deploy/packages")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "fio failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    // It may say something before its report.
    let report: Value = serde_json::from_str(text.find('{').map_or("", |at| &text[at..])).context("fio's report")?;
    let job = &report["jobs"][0];
    ensure!(job["error"] == 0, "fio met an error: {}", job["error"]);
    let side = &job[if case.reads { "read" } else { "write" }];
    let figure = |value: &Value, what: &str| value.as_f64().with_context(|| format!("fio reported no {what}"));
    Ok(Seen {
        iops: figure(&side["iops"], "iops")?,
        mb_per_s: figure(&side["bw_bytes"], "bandwidth")? / 1e6,
        p99_us: figure(&side["clat_ns"]["percentile"]["99.000000"], "99th percentile")? / 1e3,
    })
}

/// Blocks to another node over plain TCP, as many under way as fio has, each answered when all of it is there.
fn link(place: &Place, case: Case, seconds: Duration) -> Result<Seen> {
    let there = place.node(2)?.within(|| TcpListener::bind(address(2, PORT)))?.context("listening")?;
    let block = case.block_bytes as usize;
    let answering = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = there.accept()?;
        stream.set_nodelay(true)?;
        let mut data = vec![0; block];
        while stream.read_exact(&mut data).is_ok() {
            stream.write_all(&[0; ANSWER_BYTES])?;
        }
        Ok(())
    });
    let mut stream = place.node(1)?.within(|| TcpStream::connect(address(2, PORT)))?.context("connecting")?;
    stream.set_nodelay(true)?;
    let (data, mut answer, mut asked) = (vec![1; block], [0; ANSWER_BYTES], VecDeque::new());
    let counted = Instant::now() + Duration::from_secs(WARM_UP_S);
    let until = counted + seconds;
    let mut took: Vec<Duration> = Vec::new();
    while Instant::now() < until {
        while asked.len() < case.depth as usize {
            asked.push_back(Instant::now());
            stream.write_all(&data)?;
        }
        stream.read_exact(&mut answer)?;
        let since = asked.pop_front().context("an answer without a question")?;
        if Instant::now() >= counted {
            took.push(since.elapsed());
        }
    }
    drop(stream);
    // It was cut off, which may look like an error there.
    drop(answering.join());
    took.sort_unstable();
    let p99 = *took.get(took.len() * 99 / 100).context("nothing went over the link")?;
    let per_s = took.len() as f64 / seconds.as_secs_f64();
    Ok(Seen { iops: per_s, mb_per_s: per_s * f64::from(case.block_bytes) / 1e6, p99_us: p99.as_secs_f64() * 1e6 })
}
