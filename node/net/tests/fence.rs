//! The kernel's fence on a TAP, against a process that is put to sleep. Needs root: each test makes a network namespace.
#![allow(missing_docs, dead_code)]

mod world;

use std::{
    os::fd::AsFd as _,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pollux_net::{Fence, FenceError, Port, PortConfig, Tap, tap_name};
use pollux_wire::id::{Generation, VmId};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{UnixListener, UnixStream, unix},
};
use tokio_util::task::TaskTracker;
use world::*;

const G1: Generation = Generation(1);
/// The time of the fences here.
const TIME: Duration = Duration::from_millis(600);
/// Where the sleeper finds who started it, and whether it has a fence.
const SOCKET: &str = "POLLUX_TEST_SLEEPER";
const UNFENCED: &str = "POLLUX_TEST_UNFENCED";

fn tables() -> String {
    let done = Command::new("nft").args(["list", "ruleset"]).output().expect("nftables is installed");
    String::from_utf8(done.stdout).unwrap()
}

/// A port in a process of its own, which keeps its fence unlocked as long as it is awake.
struct Sleeper {
    process: Child,
    qemu: UnixStream,
    says: Lines<BufReader<unix::OwnedReadHalf>>,
    hears: unix::OwnedWriteHalf,
    _dir: tempfile::TempDir,
}

impl Sleeper {
    async fn start(fenced: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sleeper");
        let listener = UnixListener::bind(&path).unwrap();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "sleeper", "--ignored", "--nocapture"]).env(SOCKET, &path);
        if !fenced {
            command.env(UNFENCED, "yes");
        }
        let stdin = Stdio::from(std::os::fd::OwnedFd::from(theirs));
        let process = command.stdin(stdin).stdout(Stdio::null()).spawn().unwrap();
        let (says, hears) = listener.accept().await.unwrap().0.into_split();
        let says = BufReader::new(says).lines();
        Self { process, qemu: UnixStream::from_std(ours).unwrap(), says, hears, _dir: dir }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), signal).unwrap();
    }

    /// Each of its threads is stopped: a signal that was sent is not one that has arrived.
    fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        threads.flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap();
            stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
        })
    }

    /// Asks it something; each question is one word and each answer one line.
    async fn ask(&mut self, word: &str) -> String {
        self.hears.write_all(format!("{word}\n").as_bytes()).await.unwrap();
        self.says.next_line().await.unwrap().expect("the sleeper lives")
    }

    async fn emits(&mut self, number: u32) {
        self.qemu.write_all(&prefixed(&frame(WORLD, GUEST, number, 60))).await.unwrap();
    }

    /// Waits until its own gate has let that many frames out.
    async fn has_written(&mut self, frames: u64) {
        let deadline = Instant::now() + PATIENCE / 2;
        while self.ask("written").await != frames.to_string() {
            assert!(Instant::now() < deadline, "the sleeper never wrote {frames} frames");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Stops it, lets its guest emit frame 2 and time pass, wakes it.
    async fn sleeps_over_a_frame(&mut self, pause: Duration) {
        self.signal(Signal::SIGSTOP);
        until("it stopped", || self.is_stopped()).await;
        self.emits(2).await;
        tokio::time::sleep(pause).await; // the kernel's clock is what is tested
        self.signal(Signal::SIGCONT);
        self.has_written(2).await;
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a test: the process that the tests here put to sleep. Its standard input is QEMU.
#[test]
#[ignore = "a part of other tests, which start it"]
fn sleeper() {
    let Ok(path) = std::env::var(SOCKET) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let qemu = std::os::unix::net::UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
        qemu.set_nonblocking(true).unwrap();
        let tap = Tap::open(&tap_name(VmId(1), 0).unwrap(), BRIDGE, MTU).unwrap();
        let fence = match std::env::var(UNFENCED) {
            Ok(_) => None,
            Err(_) => Some(Fence::raise(&tap, TIME).await.unwrap()),
        };
        let config = PortConfig { vm: VmId(1), nic: 0, runs_under: G1 };
        let port = Port::start(config, UnixStream::from_std(qemu).unwrap(), tap, fence, &TaskTracker::new());
        port.open_gate(G1).await.unwrap();
        let mut questions = 1;
        port.note(questions).unwrap();
        port.unlock(questions).unwrap();
        let (hears, mut says) = UnixStream::connect(path).await.unwrap().into_split();
        let mut hears = BufReader::new(hears).lines();
        let mut kept = Ok(());
        let mut beat = tokio::time::interval(TIME / 6);
        loop {
            let word = tokio::select! {
                word = hears.next_line() => word.unwrap(),
                _ = beat.tick() => {
                    if kept.is_ok() {
                        kept = port.keep();
                    }
                    continue;
                }
            };
            let answer = match word.as_deref() {
                Some("written") => port.counters().frames_out.to_string(),
                Some("kept") => kept.is_ok().to_string(),
                Some("ask the log") => {
                    questions += 1;
                    port.note(questions).unwrap();
                    kept = port.unlock(questions);
                    kept.is_ok().to_string()
                }
                _ => return,
            };
            says.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
    });
}

#[test]
fn a_daemon_that_slept_too_long_emits_nothing_until_it_has_asked_again() {
    in_a_namespace(|| async {
        let world = World::join();
        let mut sleeper = Sleeper::start(true).await;
        sleeper.emits(1).await;
        assert_eq!(world.sees_number().await, 1);

        sleeper.sleeps_over_a_frame(TIME * 2).await;
        until("its fence ran out", || tables().contains("counter packets 1 ")).await;
        assert_eq!(sleeper.ask("kept").await, "false", "nothing but a question opens the fence again");
        assert_eq!(sleeper.ask("ask the log").await, "true");
        sleeper.emits(3).await;

        assert_eq!(world.sees_number().await, 3, "the frame of the sleep was let out");
    });
}

#[test]
fn a_short_nap_costs_nothing() {
    in_a_namespace(|| async {
        let world = World::join();
        let mut sleeper = Sleeper::start(true).await;
        sleeper.emits(1).await;
        assert_eq!(world.sees_number().await, 1);

        sleeper.sleeps_over_a_frame(Duration::from_millis(1)).await;

        assert_eq!(world.sees_number().await, 2);
        assert_eq!(sleeper.ask("kept").await, "true");
    });
}

/// Negative control: the first story without the fence.
#[test]
fn without_the_fence_a_daemon_that_slept_emits_when_it_wakes() {
    in_a_namespace(|| async {
        let world = World::join();
        let mut sleeper = Sleeper::start(false).await;
        sleeper.emits(1).await;
        assert_eq!(world.sees_number().await, 1);

        sleeper.sleeps_over_a_frame(TIME * 2).await;

        assert_eq!(world.sees_number().await, 2, "the control itself is broken");
    });
}

#[test]
fn nothing_of_a_killed_daemons_fence_stays() {
    in_a_namespace(|| async {
        let sleeper = Sleeper::start(true).await;
        assert!(tables().contains("table netdev pollux-px1n0"));

        drop(sleeper);

        assert!(!tables().contains("pollux"), "{}", tables());
        let again = Tap::open("px1n0", BRIDGE, MTU).unwrap();
        Fence::raise(&again, TIME).await.expect("the name is free again");
    });
}

#[test]
fn whether_a_host_can_do_it_is_tried_without_a_trace() {
    in_a_namespace(|| async {
        Fence::preflight().await.expect("this host can");

        assert!(!tables().contains("pollux"));
    });
}

#[test]
fn an_answer_unlocks_once_and_only_while_it_is_young() {
    in_a_namespace(|| async {
        let tap = Tap::open("px1n0", BRIDGE, MTU).unwrap();
        let fence = Fence::raise(&tap, TIME).await.unwrap();

        assert!(matches!(fence.unlock(1), Err(FenceError::Expired { .. })), "nobody asked that");
        fence.note(1).unwrap();
        fence.note(1).expect("asking again under the same number is asking later");
        tokio::time::sleep(TIME + TIME / 4).await;
        assert!(matches!(fence.unlock(1), Err(FenceError::Expired { .. })), "that was asked too long ago");

        fence.note(2).unwrap();
        fence.note(3).unwrap();
        fence.unlock(2).unwrap();
        assert!(matches!(fence.unlock(2), Err(FenceError::Expired { .. })), "that answer was used");
        fence.keep().unwrap();
        fence.lock().unwrap();
        fence.lock().unwrap();
        assert!(matches!(fence.keep(), Err(FenceError::Expired { .. })), "what is locked cannot be kept unlocked");
        fence.unlock(3).unwrap();
    });
}

/// How long the host of the next test was suspended, in seconds. The kernel cannot be asked to suspend a test's host.
static SUSPENDED_S: AtomicU64 = AtomicU64::new(0);

#[test]
fn a_suspended_host_has_to_ask_again_though_no_timer_ran() {
    in_a_namespace(|| async {
        let world = World::join();
        let tap = Tap::open("px1n0", BRIDGE, MTU).unwrap();
        let clock = || Duration::from_secs(SUSPENDED_S.load(Ordering::Relaxed));
        let fence = Fence::raise_by(&tap, TIME * 100, clock).await.unwrap();
        fence.note(1).unwrap();
        fence.note(2).unwrap();
        fence.unlock(1).unwrap();
        fence.keep().unwrap();

        SUSPENDED_S.store(60, Ordering::Relaxed);

        assert!(matches!(fence.keep(), Err(FenceError::Expired { .. })), "what was granted is over");
        tap.send(&frame(WORLD, GUEST, 1, 60)).await.unwrap();
        assert!(matches!(fence.unlock(2), Err(FenceError::Expired { .. })), "that answer is from before");
        fence.note(3).unwrap();
        assert!(matches!(fence.unlock(2), Err(FenceError::Expired { .. })), "and stays so");
        fence.unlock(3).unwrap();
        fence.keep().unwrap();
        tap.send(&frame(WORLD, GUEST, 2, 60)).await.unwrap();
        assert_eq!(world.sees_number().await, 2);
    });
}

#[test]
fn what_is_kept_lasts_longer_than_its_time_and_what_is_not_ends() {
    in_a_namespace(|| async {
        let world = World::join();
        let tap = Tap::open("px1n0", BRIDGE, MTU).unwrap();
        let fence = Fence::raise(&tap, TIME).await.unwrap();
        tap.send(&frame(WORLD, GUEST, 1, 60)).await.unwrap(); // locked
        fence.note(1).unwrap();
        fence.unlock(1).unwrap();
        for _ in 0..8 {
            tokio::time::sleep(TIME / 4).await;
            fence.keep().unwrap();
        }
        tap.send(&frame(WORLD, GUEST, 2, 60)).await.unwrap();
        tokio::time::sleep(TIME + TIME / 4).await;
        tap.send(&frame(WORLD, GUEST, 3, 60)).await.unwrap();
        fence.note(2).unwrap();
        fence.unlock(2).unwrap();
        tap.send(&frame(WORLD, GUEST, 4, 60)).await.unwrap();

        assert_eq!((world.sees_number().await, world.sees_number().await), (2, 4));
    });
}

/// A firewall that is loaded anew begins with this.
#[test]
fn who_flushes_every_rule_of_the_host_leaves_the_fence_standing() {
    in_a_namespace(|| async {
        let tap = Tap::open("px1n0", BRIDGE, MTU).unwrap();
        let fence = Fence::raise(&tap, TIME).await.unwrap();

        let flushed = Command::new("nft").args(["flush", "ruleset"]).status().unwrap();

        assert!(flushed.success());
        assert!(tables().contains("table netdev pollux-px1n0"));
        fence.note(1).expect("it works as before");
        drop(fence);
        assert!(!tables().contains("pollux"));
    });
}

/// Not a limit of anything, but of what a second of a busy node may cost: hundreds of cards are kept once a second.
#[test]
fn keeping_a_fence_takes_well_under_a_millisecond() {
    const TIMES: u32 = 200;
    in_a_namespace(|| async {
        let tap = Tap::open("px1n0", BRIDGE, MTU).unwrap();
        let fence = Fence::raise(&tap, TIME * 10).await.unwrap();
        fence.note(1).unwrap();
        fence.unlock(1).unwrap();

        let began = Instant::now();
        for _ in 0..TIMES {
            fence.keep().unwrap();
        }
        let each = began.elapsed() / TIMES;

        println!("one keep: {each:?}");
        assert!(each < Duration::from_millis(5), "one keep took {each:?}");
    });
}
