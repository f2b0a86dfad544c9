//! A network namespace of a test's own, with one bridge in it. It belongs to the thread that runs the test and vanishes
//! with it, whatever happens: nothing is ever given a name outside.

use std::{process::Command, time::Duration};

use nix::sched::{CloneFlags, unshare};
use pollux_net::{Port, PortConfig, PortHandle, Tap, nic_socket_pair, tap_name};
use pollux_wire::id::{Generation, MacAddr, VmId};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use tokio_util::task::TaskTracker;

pub(crate) const BRIDGE: &str = "br0";
pub(crate) const MTU: u32 = 1500;
pub(crate) const GUEST: MacAddr = MacAddr([0x52, 0x54, 0, 0xaa, 0xbb, 1]);
pub(crate) const WORLD: MacAddr = MacAddr([0x52, 0x54, 0, 0xaa, 0xbb, 2]);
/// Longer than anything here takes, so that a test that hangs ends and says where.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Set aside for local experiments: tells the test's frames from the host's own.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// Runs `story` in a new network namespace with the bridge up.
pub(crate) fn in_a_namespace<S, F>(story: S)
where
    S: FnOnce() -> F + Send + 'static,
    F: Future<Output = ()>,
{
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root: they make a network namespace");
        ip(&["link", "add", BRIDGE, "type", "bridge", "mcast_snooping", "0"]);
        ip(&["link", "set", BRIDGE, "addrgenmode", "none"]); // the host itself stays silent on it
        ip(&["link", "set", BRIDGE, "up"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(PATIENCE, story()).await.expect("the test hangs") });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the namespace of the calling thread.
pub(crate) fn ip(arguments: &[&str]) {
    let done = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    assert!(done.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Does the calling thread's namespace have this interface?
pub(crate) fn has_interface(name: &str) -> bool {
    packets_received(name).is_some()
}

/// How many frames the kernel has taken from this TAP, by its own count.
pub(crate) fn packets_received(name: &str) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}:")))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// On which of its ports the bridge has seen `mac`.
pub(crate) fn learnt_port(mac: MacAddr) -> Option<String> {
    let done = Command::new("bridge").args(["fdb", "show", "br", BRIDGE]).output().unwrap();
    let table = String::from_utf8(done.stdout).unwrap();
    let line = table.lines().find(|line| line.starts_with(&mac.to_string()) && !line.contains("permanent"))?;
    line.split_whitespace().skip_while(|word| *word != "dev").nth(1).map(str::to_owned)
}

/// A frame that carries a number.
pub(crate) fn frame(to: MacAddr, from: MacAddr, number: u32, bytes: usize) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0, &ETHERTYPE, &number.to_be_bytes()].concat();
    frame.resize(bytes.max(60), 0);
    frame
}

/// The number in a frame of the test's own.
pub(crate) fn number(frame: &[u8]) -> Option<u32> {
    (frame.get(12..14)? == ETHERTYPE).then(|| u32::from_be_bytes(frame[14..18].try_into().unwrap()))
}

/// A frame as QEMU's stream netdev sends it.
pub(crate) fn prefixed(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
}

/// Waits for a condition of the world that nothing announces.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE / 2, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "never happened: {what}");
}

/// The other end of the bridge: everybody a guest might talk to.
pub(crate) struct World {
    tap: Tap,
}

impl World {
    pub(crate) fn join() -> Self {
        Self::join_with(MTU)
    }

    pub(crate) fn join_with(mtu: u32) -> Self {
        Self { tap: Tap::open("world", BRIDGE, mtu).unwrap() }
    }

    /// The next frame, whatever it is.
    pub(crate) async fn sees(&self) -> Vec<u8> {
        let mut frame = vec![0; 65_550];
        let bytes = self.tap.recv(&mut frame).await.unwrap();
        frame.truncate(bytes);
        frame
    }

    /// The number in the next frame of the test's own.
    pub(crate) async fn sees_number(&self) -> u32 {
        loop {
            if let Some(number) = number(&self.sees().await) {
                return number;
            }
        }
    }

    pub(crate) async fn says(&self, number: u32, bytes: usize) {
        self.tap.send(&frame(GUEST, WORLD, number, bytes)).await.unwrap();
    }
}

/// A port with a stand-in for QEMU at its other end.
pub(crate) struct Guest {
    pub(crate) port: PortHandle,
    pub(crate) qemu: UnixStream,
    pub(crate) tap: String,
    pub(crate) tasks: TaskTracker,
}

impl Guest {
    /// A guest whose QEMU runs under `generation`; its gate is closed.
    pub(crate) fn start(generation: Generation) -> Self {
        Self::start_with(generation, MTU)
    }

    pub(crate) fn start_with(generation: Generation, mtu: u32) -> Self {
        let tasks = TaskTracker::new();
        let tap = tap_name(VmId(1), 0).unwrap();
        let (ours, qemus) = nic_socket_pair().unwrap();
        let config = PortConfig { vm: VmId(1), nic: 0, runs_under: generation };
        let port = Port::start(config, ours, Tap::open(&tap, BRIDGE, mtu).unwrap(), None, &tasks);
        let qemu = UnixStream::from_std(qemus.into()).unwrap();
        Self { port, qemu, tap, tasks }
    }

    pub(crate) async fn says(&mut self, number: u32) {
        self.emits(number, 60).await;
    }

    pub(crate) async fn emits(&mut self, number: u32, bytes: usize) {
        self.qemu.write_all(&prefixed(&frame(WORLD, GUEST, number, bytes))).await.unwrap();
    }

    /// The next frame handed to the guest.
    pub(crate) async fn sees(&mut self) -> Vec<u8> {
        let mut frame = vec![0; self.qemu.read_u32().await.unwrap() as usize];
        self.qemu.read_exact(&mut frame).await.unwrap();
        frame
    }
}
