//! One cluster in a lab of its own, and what a story does with it.

use std::{
    env,
    net::Ipv4Addr,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use pollux_lab::{Cable, Daemon, DaemonState, Host, Lab, LabConfig, LabError, LabName, leftovers};
use pollux_probe::owners::Watched;

use crate::{
    census,
    cli::{Answer, exit},
    client::Client,
    console::Console,
    events::Events,
    following::Following,
    image::Image,
    sweeper::Sweeper,
    views::{Cluster, Ended, Event, Happened, Node, Operation, Vm},
    waiting::{SETTLE, until},
    watching::{PATIENCE, Watch},
};

/// The address of VM `web`.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 10);
/// Lines of a daemon's log that a failed test shows.
const TAIL_LINES: usize = 60;
/// Guest memory in MiB.
const MEMORY: &str = "224M";

/// The cluster. When it is dropped, everything that was started is gone.
#[derive(Debug)]
pub struct World {
    lab: Lab,
    sweeper: Sweeper,
    nodes: Vec<String>,
    pollux: PathBuf,
    image: Image,
}

impl World {
    /// Brings up a cluster of nodes n1, n2, ... and waits until it is well.
    ///
    /// # Panics
    /// If `pollux` is not built, or the cluster does not come up.
    #[track_caller]
    #[must_use]
    pub fn start(nodes: u8) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let pollux = built("pollux");
        let image = Image::ready();
        // Unique among the tests that run at the same time, in whatever way they are run.
        let name = format!("t{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let name: LabName = name.parse().expect("a lab's name");
        let sweeper = Sweeper::wait_for(&pollux, &name).expect("a process can be started");
        let config = LabConfig { name, nodes, daemon: Daemon::Pollux(pollux.clone()), dir: None };
        let lab = Lab::up(&config).unwrap_or_else(|error| panic!("the lab does not come up: {error}"));
        let world =
            Self { lab, sweeper, nodes: (1..=nodes).map(|number| format!("n{number}")).collect(), pollux, image };
        world.healthy();
        world
    }

    /// The nodes' names.
    #[must_use]
    pub fn nodes(&self) -> Vec<&str> {
        self.nodes.iter().map(String::as_str).collect()
    }

    /// A place in the lab.
    ///
    /// # Panics
    /// If there is none of that name.
    #[track_caller]
    #[must_use]
    pub fn host(&self, name: &str) -> Host {
        self.lab.host(name).unwrap_or_else(|error| panic!("{error}"))
    }

    /// What the test guest boots from.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// A `pollux` that will run on a node.
    #[must_use]
    #[track_caller]
    pub fn command(&self, node: &str, words: &[&str]) -> Command {
        let mut command = self.host(node).command(&[self.pollux.as_os_str()]);
        command.args(words);
        command
    }

    /// Runs `pollux WORDS -o json` on a node, as a user there would.
    ///
    /// # Panics
    /// If it cannot be started; how it ends is the caller's to judge.
    #[track_caller]
    #[must_use]
    pub fn pollux(&self, node: &str, words: &[&str]) -> Answer {
        let asked = format!("{node}# pollux {}", words.join(" "));
        let output = self.command(node, words).args(["-o", "json"]).output();
        Answer::new(asked.clone(), &output.unwrap_or_else(|error| panic!("`{asked}` cannot be started: {error}")))
    }

    /// Creates a VM and starts it on a node, with more words for `vm create`. It may not have booted when this returns.
    ///
    /// # Panics
    /// If that is refused.
    #[track_caller]
    pub fn create(&self, name: &str, node: &str, address: Ipv4Addr, more: &[&str]) -> Client {
        let append = format!("console=ttyS0 quiet pollux.ip={address}/24 pollux.hostname={name}");
        let (kernel, initrd) = (self.image.kernel.to_string_lossy(), self.image.initrd.to_string_lossy());
        let mut words = vec!["vm", "create", name, "--node", node, "--memory", MEMORY, "--nic", "br0"];
        words.extend(["--kernel", &kernel, "--initrd", &initrd, "--append", &append]);
        words.extend(more);
        let _: Vm = self.pollux(node, &words).json();
        Client::new(self.host("lan"), address)
    }

    /// Creates VM `web` on a node and waits until its guest answers. Returns the guest and which boot it is.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn boot(&self, node: &str) -> (Client, String) {
        let client = self.create("web", node, ADDRESS, &[]);
        let boot = client.boot();
        (client, boot)
    }

    /// Begins a move and follows it, asking `via`.
    #[track_caller]
    #[must_use]
    pub fn begin_move(&self, via: &str, to: &str, more: &[&str]) -> Following {
        let mut words = vec!["vm", "migrate", "web", "--to", to, "-o", "json"];
        words.extend(more);
        Following::start(format!("{via}# pollux {}", words.join(" ")), self.command(via, &words))
    }

    /// Begins a move without following it, and returns the operation's id.
    ///
    /// # Panics
    /// If it is refused.
    #[track_caller]
    #[must_use]
    pub fn begin_detached(&self, via: &str, to: &str) -> String {
        let begun: Ended = self.pollux(via, &["vm", "migrate", "web", "--to", to, "--detach"]).json();
        begun.operation
    }

    /// An operation has ended.
    ///
    /// # Errors
    /// What there is instead.
    pub fn has_ended(&self, via: &str, operation: &str) -> Result<Operation, String> {
        let operation: Operation = self.pollux(via, &["op", "show", operation]).try_json()?;
        if operation.result.is_some() { Ok(operation) } else { Err(format!("{operation:?}")) }
    }

    /// Waits until an operation has ended, and returns how.
    ///
    /// # Panics
    /// If that takes too long.
    #[track_caller]
    #[must_use]
    pub fn ended(&self, via: &str, operation: &str) -> Operation {
        until("the operation to end", SETTLE, || self.has_ended(via, operation))
    }

    /// The first of these nodes whose daemon answers with a quorum.
    ///
    /// # Panics
    /// If none does for long.
    #[track_caller]
    #[must_use]
    pub fn somebody(&self, nodes: &[&str]) -> String {
        until("a node that answers", SETTLE, || {
            let answers = |node: &&&str| {
                let cluster: Result<Cluster, String> = self.pollux(node, &["cluster", "status"]).try_json();
                cluster.is_ok_and(|cluster| cluster.quorum)
            };
            nodes.iter().find(answers).map(|node| (*node).to_owned()).ok_or_else(|| "nobody".to_owned())
        })
    }

    /// Stops a node in its tracks: its daemon and everything it started.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn pause(&self, node: &str) {
        self.lab.pause(node, true).unwrap_or_else(|error| panic!("{node} cannot be paused: {error}"));
    }

    /// Lets a node go on.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn resume(&self, node: &str) {
        self.lab.resume(node).unwrap_or_else(|error| panic!("{node} cannot go on: {error}"));
    }

    /// Holds the guest to its word, and counts who emits, from now on.
    #[must_use]
    pub fn watch(&self, client: &Client) -> Watch {
        self.watch_with(client, PATIENCE)
    }

    /// The same with clients that wait so long for an answer before they give their connection up.
    #[must_use]
    pub fn watch_with(&self, client: &Client, patience: Duration) -> Watch {
        let watched =
            self.nodes.iter().map(|node| Watched { node: node.clone(), netns: census::netns(&self.host(node)) });
        Watch::start(client, &watched.collect::<Vec<_>>(), patience)
    }

    /// What a node says of a VM.
    ///
    /// # Panics
    /// If it says nothing.
    #[track_caller]
    #[must_use]
    pub fn vm(&self, via: &str, name: &str) -> Vm {
        self.pollux(via, &["vm", "show", name]).json()
    }

    /// What a node says of an operation.
    ///
    /// # Panics
    /// If it says nothing.
    #[track_caller]
    #[must_use]
    pub fn operation(&self, via: &str, id: &str) -> Operation {
        self.pollux(via, &["op", "show", id]).json()
    }

    /// All operations, newest first.
    ///
    /// # Panics
    /// If the node does not say.
    #[track_caller]
    #[must_use]
    pub fn operations(&self, via: &str) -> Vec<Operation> {
        self.pollux(via, &["op", "list"]).json()
    }

    /// The newest operation.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    #[must_use]
    pub fn last_operation(&self, via: &str) -> Operation {
        self.operations(via).into_iter().next().expect("there was an operation")
    }

    /// The target of this operation won the switchover, whatever came after.
    #[track_caller]
    #[must_use]
    pub fn switched_over(&self, via: &str, operation: &str) -> bool {
        let found: Happened = self.pollux(via, &["events"]).json();
        let about = |event: &Event| event.operation.as_deref() == Some(operation);
        found.events.iter().any(|event| about(event) && event.text.contains("switches over"))
    }

    /// Listens to what is decided about an operation.
    #[track_caller]
    #[must_use]
    pub fn events_of(&self, via: &str, operation: &str) -> Events {
        Events::follow(Some(operation), self.command(via, &["events", "--follow", "-o", "json"]))
    }

    /// Sits down at a VM's console, asking `via`.
    #[track_caller]
    #[must_use]
    pub fn console(&self, via: &str, name: &str, more: &[&str]) -> Console {
        Console::attach(self.command(via, &[&["vm", "console", name], more].concat()))
    }

    /// Listens to all events after one.
    #[track_caller]
    #[must_use]
    pub fn events_after(&self, via: &str, cursor: u64) -> Events {
        let after = cursor.to_string();
        Events::follow(None, self.command(via, &["events", "--follow", "--after", &after, "-o", "json"]))
    }

    /// What a node says of the cluster.
    ///
    /// # Panics
    /// If it says nothing.
    #[track_caller]
    #[must_use]
    pub fn cluster(&self, via: &str) -> Cluster {
        self.pollux(via, &["cluster", "status"]).json()
    }

    /// The node that leads.
    ///
    /// # Panics
    /// If there is none for long.
    #[track_caller]
    #[must_use]
    pub fn leader(&self, via: &str) -> String {
        until("a leader", SETTLE, || self.cluster(via).leader.ok_or_else(|| "none".to_owned()))
    }

    /// What a node says of a node.
    ///
    /// # Panics
    /// If it says nothing.
    #[track_caller]
    #[must_use]
    pub fn node(&self, via: &str, name: &str) -> Node {
        self.pollux(via, &["node", "show", name]).json()
    }

    /// Waits until every node says that the whole cluster is well.
    ///
    /// # Panics
    /// If that takes too long.
    #[track_caller]
    pub fn healthy(&self) {
        for node in self.nodes() {
            until(&format!("{node} to see a healthy cluster"), SETTLE, || {
                let cluster: Cluster = self.pollux(node, &["cluster", "status"]).try_json()?;
                let alive = cluster.nodes.iter().all(|node| node.health == "alive");
                if cluster.healthy && cluster.quorum && alive && cluster.nodes.len() == self.nodes.len() {
                    Ok(())
                } else {
                    Err(format!("{cluster:?}"))
                }
            });
        }
    }

    /// Waits until nothing is under way any more: every VM runs or is stopped, each running one has one QEMU and one TAP on
    /// the node that owns it, and there are no others anywhere. Returns `web`.
    ///
    /// # Panics
    /// If that takes too long.
    #[track_caller]
    pub fn settled(&self, via: &str) -> Vm {
        until("every VM to be in one place", SETTLE, || {
            let vms: Vec<Vm> = self.pollux(via, &["vm", "list"]).try_json()?;
            let at_rest = |vm: &Vm| match vm.phase.as_str() {
                "running" => vm.runtime == "running" && vm.desired == "running",
                "stopped" => vm.runtime == "none" && vm.desired == "stopped",
                _ => false,
            };
            if let Some(vm) = vms.iter().find(|vm| !at_rest(vm) || vm.operation.is_some()) {
                return Err(format!("{vm:?}"));
            }
            for node in &self.nodes {
                let expected = vms.iter().filter(|vm| vm.node.as_ref() == Some(node)).count();
                self.has(node, expected)?;
            }
            let web = vms.into_iter().find(|vm| vm.name == "web");
            web.ok_or_else(|| "there is no VM web".to_owned())
        })
    }

    /// So many VMs are on this node, and nothing of any other.
    ///
    /// # Errors
    /// What there is instead.
    pub fn has(&self, node: &str, vms: usize) -> Result<(), String> {
        let host = self.lab.host(node).map_err(|error| error.to_string())?;
        let qemus = census::qemus(&host).map_err(|error| error.to_string())?;
        let taps = census::taps(&host).map_err(|error| error.to_string())?;
        if (qemus.len(), taps.len()) == (vms, vms) {
            Ok(())
        } else {
            Err(format!("{node} has the QEMUs {qemus:?} and the TAPs {taps:?}, and should have {vms} of each"))
        }
    }

    /// Kills a node's daemon, without warning, and waits until nothing of it runs any more.
    ///
    /// # Panics
    /// If it did not run.
    #[track_caller]
    pub fn kill(&self, node: &str) {
        self.ends(node, |lab| lab.kill(node));
    }

    /// Tells a node's daemon to end, as a shutdown of its host does, and waits until it has.
    ///
    /// # Panics
    /// If it does not run, or does not end.
    #[track_caller]
    pub fn stop(&self, node: &str) {
        self.ends(node, |lab| lab.stop(node));
    }

    #[track_caller]
    fn ends(&self, node: &str, how: impl FnOnce(&Lab) -> Result<(), LabError>) {
        let pid = self.daemon(node);
        how(&self.lab).unwrap_or_else(|error| panic!("{node} cannot be ended: {error}"));
        // Its first thread may be gone before the others, and with them its lock and its sockets.
        until("the last thread of a daemon to end", SETTLE, || match census::threads(pid) {
            0 | 1 => Ok(()),
            threads => Err(format!("{threads} threads of {pid}")),
        });
    }

    /// Starts a node's daemon again.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn start_again(&self, node: &str) {
        self.lab.start(node).unwrap_or_else(|error| panic!("{node} cannot be started: {error}"));
    }

    /// Kills a node's daemon and starts it again, and waits until the cluster has its new life.
    ///
    /// # Panics
    /// If that takes too long.
    #[track_caller]
    pub fn restart(&self, node: &str) {
        let before = self.node(node, node).incarnation;
        self.kill(node);
        self.start_again(node);
        until(&format!("the new life of {node}"), SETTLE, || {
            let now: Node = self.pollux(node, &["node", "show", node]).try_json()?;
            if now.incarnation > before { Ok(()) } else { Err(format!("{now:?}")) }
        });
    }

    /// Kills a node's daemon and starts it again with more words for `node run`.
    ///
    /// # Panics
    /// If that takes too long.
    #[track_caller]
    pub fn run_with(&self, node: &str, words: &[&str]) {
        self.host(node).run_with(words).unwrap_or_else(|error| panic!("{node}: {error}"));
        self.restart(node);
    }

    /// The process of a node's daemon.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    #[must_use]
    pub fn daemon(&self, node: &str) -> i32 {
        match self.daemon_state(node) {
            Some(DaemonState::Running { pid }) => pid,
            other => panic!("the daemon of {node} does not run: {other:?}"),
        }
    }

    /// A node's daemon runs.
    #[must_use]
    pub fn runs(&self, node: &str) -> bool {
        matches!(self.daemon_state(node), Some(DaemonState::Running { .. }))
    }

    fn daemon_state(&self, node: &str) -> Option<DaemonState> {
        let status = self.lab.status().unwrap_or_else(|error| panic!("{error}"));
        status.nodes.iter().find(|status| status.name == node).map(|status| status.daemon)
    }

    /// Cuts cables of the cluster's network: `n1`, `n1:n2` or `n1>n2`.
    ///
    /// # Panics
    /// If that is not possible.
    #[track_caller]
    pub fn cut(&self, cable: &str) {
        let cable: Cable = cable.parse().unwrap_or_else(|error| panic!("{error}"));
        self.lab.cut(cable).unwrap_or_else(|error| panic!("the cable cannot be cut: {error}"));
    }

    /// Mends every cable.
    ///
    /// # Panics
    /// If that is not possible.
    #[track_caller]
    pub fn heal(&self) {
        self.lab.heal(None).unwrap_or_else(|error| panic!("the cables cannot be mended: {error}"));
    }

    /// Waits until a move of `web` has ended, and returns how.
    ///
    /// # Panics
    /// If that takes too long.
    #[track_caller]
    #[must_use]
    pub fn move_ended(&self, via: &str) -> Operation {
        until("the move to end", SETTLE, || {
            let all: Vec<Operation> = self.pollux(via, &["op", "list"]).try_json()?;
            let last = all.into_iter().next().ok_or("no operation")?;
            if last.result.is_some() { Ok(last) } else { Err(format!("{last:?}")) }
        })
    }

    /// Moves `web` and expects it to succeed.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn moves(&self, via: &str, to: &str) {
        self.moves_with(via, to, &[]);
    }

    /// The same, with more words for `vm migrate`.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn moves_with(&self, via: &str, to: &str, more: &[&str]) {
        let answer = self.pollux(via, &[&["vm", "migrate", "web", "--to", to], more].concat()).code(exit::OK);
        let ended: Ended = answer.value();
        assert_eq!(ended.result.as_deref(), Some("succeeded"), "{ended:?}");
        assert!(ended.report.is_some(), "a move that succeeded says what it cost: {ended:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            for node in &self.nodes {
                if let Ok(host) = self.lab.host(node) {
                    eprintln!("--- the daemon of {node} logged last:\n{}", host.log_tail(TAIL_LINES));
                }
                // Whoever runs it knows what it wrote; a daemon that is dead or paused does not answer.
                let asked = self.command(node, &["vm", "log", "web"]).output();
                if let Some(log) = asked.ok().filter(|log| log.status.success() && !log.stdout.is_empty()) {
                    let text = String::from_utf8_lossy(&log.stdout).into_owned();
                    let lines: Vec<&str> = text.lines().collect();
                    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
                    eprintln!("--- the guest wrote last, says {node}:\n{}", last.join("\n"));
                }
            }
        }
        let name = self.lab.name().clone();
        let down = Lab::down(&name);
        self.sweeper.dismiss();
        let left = leftovers(&name);
        // A second panic would hide the first.
        if thread::panicking() {
            eprintln!("--- the lab {name} went down: {down:?}; left behind: {left:?}");
        } else {
            assert!(down.is_ok(), "the lab {name} did not go down: {down:?}");
            assert!(left.is_empty(), "the lab {name} left this behind: {left:?}");
        }
    }
}

/// A program of this workspace, as it was built beside the test that runs.
fn built(program: &str) -> PathBuf {
    let test = env::current_exe().expect("a test knows its own path");
    // target/debug/deps/TEST -> target/debug/PROGRAM
    let beside = test.ancestors().skip(1).take(2).map(|directory| directory.join(program));
    let found = beside.clone().find(|path| path.is_file());
    found.unwrap_or_else(|| {
        let places: Vec<String> = beside.map(|path| path.display().to_string()).collect();
        panic!("{program} is not built (not at {}); run: cargo build -p {program}", places.join(", "))
    })
}
