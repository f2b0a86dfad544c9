//! `pollux-bench-gate`: frames through a VM's gate beside frames through a plain TAP, with the same guest.
//!
//! One network namespace with one bridge. The same guest boots on it again and again, its card once on the product's port
//! (gate and kernel's fence included, as a daemon has it), once on QEMU's own TAP, with and without its offload header; and all
//! of it with Ethernet's own MTU and with a large one.
//! Frames are counted where they pass the TAP, by the kernel and by the guest.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use nix::sched::{CloneFlags, unshare};
use pollux_bench::{Row, Spread};
use pollux_net::{Fence, MTU_DEFAULT, Port, PortConfig, PortHandle, Tap, nic_socket_pair};
use pollux_probe::guest::Guest;
use pollux_wire::id::{Generation, VmId};
use rustix::io::FdFlags;
use tokio_util::task::TaskTracker;

const BRIDGE: &str = "br0";
const TAP: &str = "px1n0";
const HOST: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 10);
const MAC: &str = "52:54:00:be:7c:11";
const TALK_PORT: u16 = 7000;
const ECHO_PORT: u16 = 7001;
const DISCARD_PORT: u16 = 7002;
const MTU: u32 = MTU_DEFAULT;
const LARGE_MTU: u32 = 9000;
const BOOT_MAX: Duration = Duration::from_secs(90);
const PATIENCE: Duration = Duration::from_secs(60);
/// Where in a flood counting begins.
const WARM_UP: Duration = Duration::from_millis(500);
const FENCE: Duration = Duration::from_secs(5);
const KEEP_EVERY: Duration = Duration::from_secs(1);
const SMALL: usize = 18;
const FULL: usize = 1472;
const LARGE: usize = 8972;
const STREAM_BYTES: usize = 32 << 10;

/// Measures the gate beside plain TAPs. Needs root: everything happens in a network namespace of its own.
#[derive(Parser)]
#[command(name = "pollux-bench-gate", version)]
struct Cli {
    /// Boots with each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Seconds that each figure is taken over.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Only that case; may be given several times.
    #[arg(long = "case", value_parser = case)]
    cases: Vec<Case>,
    /// An array of rows on standard output instead of the table.
    #[arg(long)]
    json: bool,
    /// The directory of the test guest: vmlinuz and initrd.img.
    #[arg(long, env = "GUEST", default_value = "deploy/guest/out")]
    guest: PathBuf,
    /// The QEMU that all of them run.
    #[arg(long, env = "POLLUX_QEMU", default_value = "/usr/bin/qemu-system-x86_64")]
    qemu: PathBuf,
}

/// How the guest's card reaches the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Card {
    /// Through the product's port.
    Gate,
    /// QEMU's own TAP, as it does it by itself.
    Tap,
    /// The same without the offload header, which a stream cannot carry: the guest does the same work as behind the gate.
    TapPlain,
}

impl Card {
    const ALL: [Self; 3] = [Self::Gate, Self::TapPlain, Self::Tap];

    fn name(self) -> &'static str {
        match self {
            Self::Gate => "pollux",
            Self::Tap => "qemu-tap-vnet-hdr",
            Self::TapPlain => "qemu-tap",
        }
    }
}

/// What flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    name: &'static str,
    stream: bool,
    outwards: bool,
    bytes: usize,
    mtu: u32,
}

const CASES: [Case; 10] = [
    Case { name: "udp-small-out", stream: false, outwards: true, bytes: SMALL, mtu: MTU },
    Case { name: "udp-full-out", stream: false, outwards: true, bytes: FULL, mtu: MTU },
    Case { name: "udp-small-in", stream: false, outwards: false, bytes: SMALL, mtu: MTU },
    Case { name: "udp-full-in", stream: false, outwards: false, bytes: FULL, mtu: MTU },
    Case { name: "tcp-out", stream: true, outwards: true, bytes: STREAM_BYTES, mtu: MTU },
    Case { name: "tcp-in", stream: true, outwards: false, bytes: STREAM_BYTES, mtu: MTU },
    Case { name: "udp-9000-out", stream: false, outwards: true, bytes: LARGE, mtu: LARGE_MTU },
    Case { name: "udp-9000-in", stream: false, outwards: false, bytes: LARGE, mtu: LARGE_MTU },
    Case { name: "tcp-9000-out", stream: true, outwards: true, bytes: STREAM_BYTES, mtu: LARGE_MTU },
    Case { name: "tcp-9000-in", stream: true, outwards: false, bytes: STREAM_BYTES, mtu: LARGE_MTU },
];

fn case(name: &str) -> Result<Case, String> {
    CASES
        .into_iter()
        .find(|case| case.name == name)
        .ok_or_else(|| format!("{name} is no case; there are {}", CASES.map(|case| case.name).join(", ")))
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    frames_per_s: f64,
    mb_per_s: f64,
    /// Processor time that a frame took, of QEMU and of this process, which has the gate and the host's end of the flow.
    cpu_us_per_frame: f64,
}

impl Flow {
    /// What flowed in so many seconds, and the processors' seconds it took.
    fn of(frames: u64, bytes: u64, elapsed: f64, cpu: f64) -> Self {
        Self {
            frames_per_s: frames as f64 / elapsed,
            mb_per_s: bytes as f64 / 1e6 / elapsed,
            cpu_us_per_frame: cpu * 1e6 / frames.max(1) as f64,
        }
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let there = |path: PathBuf, todo: &str| {
        path.canonicalize().with_context(|| format!("there is no {}; {todo}", path.display()))
    };
    let kernel = there(cli.guest.join("vmlinuz"), "build the guest: deploy/guest/build")?;
    let initrd = there(cli.guest.join("initrd.img"), "build the guest: deploy/guest/build")?;
    // Before any other thread: they all live there. With the last of them it is gone.
    unshare(CloneFlags::CLONE_NEWNET).context("run it as root: it makes a network namespace")?;
    let address = format!("{HOST}/24");
    ip(&["link", "add", BRIDGE, "type", "bridge", "mcast_snooping", "0"])?;
    ip(&["address", "add", &address, "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    ip(&["link", "set", "lo", "up"])?;

    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let cases: Vec<Case> = CASES.into_iter().filter(|case| cli.cases.is_empty() || cli.cases.contains(case)).collect();
    let mut flows = Vec::new();
    for run in 1..=cli.runs {
        for (mtu, card) in [MTU, LARGE_MTU].into_iter().flat_map(|mtu| Card::ALL.map(|card| (mtu, card))) {
            let cases: Vec<Case> = cases.iter().filter(|case| case.mtu == mtu).copied().collect();
            if cases.is_empty() {
                continue;
            }
            eprintln!("bench: run {run} of {}, {}, an MTU of {mtu}", cli.runs, card.name());
            let machine = Machine::boot(card, mtu, &cli, &kernel, &initrd, &runtime)?;
            for case in cases {
                let flow = measure(&machine, case, Duration::from_secs(cli.seconds))?;
                let Flow { frames_per_s, mb_per_s, cpu_us_per_frame } = flow;
                eprintln!(
                    "bench:   {:14} {frames_per_s:9.0} frames/s {mb_per_s:8.1} MB/s {cpu_us_per_frame:7.1} us of processors per frame",
                    case.name
                );
                flows.push((card, case, flow));
            }
        }
    }
    let rows = rows(&cases, &flows);
    let mut out = std::io::stdout();
    if cli.json {
        writeln!(out, "{}", serde_json::to_string(&rows)?)?;
    } else {
        writeln!(out, "{:15} {:16} {:>10} {:>10} {:>6}  PEER'S NAME", "CASE", "METRIC", "POLLUX", "PEER", "RATIO")?;
        for row in &rows {
            let Row { case, metric, pollux, peer, peer_name, ratio } = row;
            writeln!(out, "{case:15} {metric:16} {pollux:>10.1} {peer:>10.1} {ratio:>6.2}  {peer_name}")?;
        }
    }
    Ok(())
}

/// A booted guest behind one kind of card. Gone when it is dropped.
struct Machine {
    qemu: Child,
    port: Option<Keeper>,
}

impl Machine {
    fn boot(
        card: Card,
        mtu: u32,
        cli: &Cli,
        kernel: &PathBuf,
        initrd: &PathBuf,
        runtime: &tokio::runtime::Runtime,
    ) -> Result<Self> {
        let mut command = Command::new(&cli.qemu);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            // Without a console the guest's program could not say that it is ready, and would end.
            "-serial",
            "null",
            "-machine",
            "pc-q35-7.2",
            "-cpu",
            "qemu64",
        ]);
        command.args(["-accel", if pollux_qemu::kvm_usable() { "kvm" } else { "tcg" }, "-smp", "1", "-m", "224M"]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
        command.args(["-append", &format!("console=ttyS0 quiet pollux.ip={GUEST}/24")]);
        let told = if mtu == MTU { String::new() } else { format!(",host_mtu={mtu}") };
        command.args(["-device", &format!("virtio-net-pci,netdev=net0,mac={MAC},romfile={told}")]);
        // What the host itself sends on it is as large as the guest takes.
        ip(&["link", "set", BRIDGE, "mtu", &mtu.to_string()])?;
        let mut inherited = None;
        let port = match card {
            Card::Gate => {
                let _entered = runtime.enter();
                let (ours, theirs) = nic_socket_pair()?;
                rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
                let number = theirs.as_fd().as_raw_fd();
                command.args(["-netdev", &format!("stream,id=net0,server=off,addr.type=fd,addr.str={number}")]);
                inherited = Some(theirs);
                let tap = Tap::open(TAP, BRIDGE, mtu)?;
                let fence = runtime.block_on(Fence::raise(&tap, FENCE))?;
                fence.note(1)?;
                fence.unlock(1)?;
                let config = PortConfig { vm: VmId(1), nic: 0, runs_under: Generation(1) };
                let port = Port::start(config, ours, tap, Some(fence), &TaskTracker::new());
                runtime.block_on(port.open_gate(Generation(1)))?;
                Some(Keeper::start(port))
            }
            Card::Tap | Card::TapPlain => {
                let header = if card == Card::Tap { "on" } else { "off" };
                let options = format!("tap,id=net0,ifname={TAP},script=no,downscript=no,vhost=off,vnet_hdr={header}");
                command.args(["-netdev", &options]);
                None
            }
        };
        let qemu = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("cannot start QEMU")?;
        drop(inherited);
        let machine = Self { qemu, port };
        if card != Card::Gate {
            let deadline = Instant::now() + PATIENCE;
            while ip(&["link", "set", TAP, "mtu", &mtu.to_string(), "master", BRIDGE, "up"]).is_err() {
                ensure!(Instant::now() < deadline, "QEMU made no TAP");
                thread::sleep(Duration::from_millis(50));
            }
        }
        Guest::wait((GUEST, TALK_PORT).into(), BOOT_MAX).context("no guest answers")?;
        Ok(machine)
    }
}

/// A port whose fence is kept unlocked, as by a daemon that is awake.
struct Keeper {
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Keeper {
    fn start(port: PortHandle) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        let keep = move || {
            while !ended.load(Ordering::Relaxed) {
                if let Err(error) = port.keep() {
                    eprintln!("bench: {error}");
                }
                thread::park_timeout(KEEP_EVERY);
            }
        };
        Self { over, thread: Some(thread::spawn(keep)) }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        self.port = None;
        // The TAP ends with its task, a moment later.
        let deadline = Instant::now() + PATIENCE;
        while counters().is_ok() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn measure(machine: &Machine, case: Case, length: Duration) -> Result<Flow> {
    if case.outwards { from_guest(machine, case, length) } else { to_guest(machine, case, length) }
}

impl Machine {
    /// Processor time taken so far, in seconds.
    fn cpu(&self) -> Result<f64> {
        let ticks = |process: &str| -> Result<u64> {
            let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
            let (_, figures) = stat.rsplit_once(')').context("no process")?;
            // Fields 14 and 15 of all, in user and in kernel mode.
            let spent: Vec<u64> =
                figures.split_whitespace().skip(11).take(2).filter_map(|it| it.parse().ok()).collect();
            Ok(spent.iter().sum())
        };
        let all = ticks("self")? + ticks(&self.qemu.id().to_string())?;
        Ok(all as f64 / rustix::param::clock_ticks_per_second() as f64)
    }
}

/// The guest sends; the kernel counts what passes the TAP.
fn from_guest(machine: &Machine, case: Case, length: Duration) -> Result<Flow> {
    let taken = Arc::new(AtomicU64::new(0));
    // Nobody reads it: what does not fit is dropped at little cost, after it was counted.
    let datagrams = UdpSocket::bind((HOST, 0))?;
    let streams = TcpListener::bind((HOST, 0))?;
    let to = if case.stream { streams.local_addr()? } else { datagrams.local_addr()? };
    if case.stream {
        let taken = taken.clone();
        thread::spawn(move || {
            let Ok((mut stream, _)) = streams.accept() else { return };
            let mut buffer = vec![0; 256 << 10];
            while let Ok(bytes @ 1..) = std::io::Read::read(&mut stream, &mut buffer) {
                taken.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        });
    }
    let seconds = (length + WARM_UP * 2).as_secs() + 1;
    let kind = if case.stream { "tcp" } else { "udp" };
    let request = format!("FLOOD {kind} {to} {} {seconds}", case.bytes);
    let asking = thread::spawn(move || ask(&request));
    thread::sleep(WARM_UP);
    let (began, before, bytes_before) = (Instant::now(), counters()?, taken.load(Ordering::Relaxed));
    let cpu = machine.cpu()?;
    thread::sleep(length);
    let (elapsed, after) = (began.elapsed().as_secs_f64(), counters()?);
    let cpu = machine.cpu()? - cpu;
    let bytes = if case.stream { taken.load(Ordering::Relaxed) - bytes_before } else { after.1 - before.1 };
    let answer = asking.join().ok().context("the conversation with the guest panicked")??;
    ensure!(answer.starts_with("OK "), "the guest answered {answer}");
    Ok(Flow::of(after.0 - before.0, bytes, elapsed, cpu))
}

/// The host sends; the guest counts what its card received.
fn to_guest(machine: &Machine, case: Case, length: Duration) -> Result<Flow> {
    let to = SocketAddr::from((GUEST, DISCARD_PORT));
    let over = Arc::new(AtomicBool::new(false));
    let ended = over.clone();
    // Asked before and after: in the middle of a flood the guest has no time for questions.
    let before = guest_counters()?;
    let (began, cpu) = (Instant::now(), machine.cpu()?);
    let sender = thread::spawn(move || -> Result<()> {
        let payload = vec![0x5a; case.bytes];
        if case.stream {
            let mut stream = TcpStream::connect(to)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            while !ended.load(Ordering::Relaxed) {
                stream.write_all(&payload)?;
            }
        } else {
            let socket = UdpSocket::bind((HOST, 0))?;
            socket.connect(to)?;
            while !ended.load(Ordering::Relaxed) {
                // A queue that is full is what a flood is about.
                let _ = socket.send(&payload);
            }
        }
        Ok(())
    });
    thread::sleep(length);
    over.store(true, Ordering::Relaxed);
    sender.join().ok().context("the sender panicked")??;
    // What waits on the way is on its way still: the time is over when the guest has come to the end of the queue.
    echoed()?;
    let (elapsed, cpu) = (began.elapsed().as_secs_f64(), machine.cpu()? - cpu);
    let after = guest_counters()?;
    Ok(Flow::of(after.0 - before.0, after.1 - before.1, elapsed, cpu))
}

/// Waits until the guest gives a datagram back, which it takes up after all that were sent before.
fn echoed() -> Result<()> {
    let socket = UdpSocket::bind((HOST, 0))?;
    socket.connect((GUEST, ECHO_PORT))?;
    socket.set_read_timeout(Some(Duration::from_millis(10)))?;
    let (deadline, mut answer) = (Instant::now() + PATIENCE, [0; 64]);
    while Instant::now() < deadline {
        let _ = socket.send(b"end");
        if socket.recv(&mut answer).is_ok() {
            return Ok(());
        }
    }
    bail!("the guest has not come to the end of the flood")
}

fn ask(request: &str) -> Result<String> {
    Ok(Guest::connect((GUEST, TALK_PORT).into(), PATIENCE)?.ask(request)?)
}

/// Frames and bytes that the guest's card has received.
fn guest_counters() -> Result<(u64, u64)> {
    let answer = ask("NET")?;
    let mut figures = answer.split_whitespace().skip(1).map(str::parse);
    match (figures.next(), figures.next()) {
        (Some(Ok(frames)), Some(Ok(bytes))) => Ok((frames, bytes)),
        _ => bail!("the guest answered NET by {answer}"),
    }
}

/// Frames and bytes that came in by the TAP.
fn counters() -> Result<(u64, u64)> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix(TAP)?.strip_prefix(':')).context("no TAP")?;
    let figures: Vec<u64> = line.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
    Ok((*figures.get(1).context("no TAP")?, figures[0]))
}

fn ip(arguments: &[&str]) -> Result<()> {
    let done = Command::new("ip").args(arguments).output().context("cannot start `ip`; install iproute2")?;
    ensure!(done.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}

/// One figure of a flow.
type Figure = fn(&Flow) -> f64;

fn rows(cases: &[Case], flows: &[(Card, Case, Flow)]) -> Vec<Row> {
    let median = |card, case: Case, metric: Figure| {
        let of = flows.iter().filter(|(by, what, _)| (*by, *what) == (card, case));
        Spread::of(of.map(|(_, _, flow)| metric(flow))).map(|spread| spread.median)
    };
    let metrics: [(&'static str, Figure); 3] = [
        ("frames_per_s", |flow| flow.frames_per_s),
        ("mb_per_s", |flow| flow.mb_per_s),
        ("cpu_us_per_frame", |flow| flow.cpu_us_per_frame),
    ];
    let mut rows = Vec::new();
    for case in cases.iter().copied() {
        for (name, metric) in metrics {
            // A stream's frames are as large as its offloads make them: only its bytes compare.
            if case.stream && name != "mb_per_s" {
                continue;
            }
            for peer in [Card::TapPlain, Card::Tap] {
                let both = median(Card::Gate, case, metric).zip(median(peer, case, metric));
                rows.extend(both.map(|(pollux, other)| Row::of(case.name, name, pollux, other, peer.name())));
            }
        }
    }
    rows
}
