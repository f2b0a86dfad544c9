//! The verbs of a lab.

use std::{
    fs, io,
    net::SocketAddrV4,
    ops::Deref,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::{
    cluster,
    error::LabError,
    fault::{Cable, Cut, node_number},
    groups,
    host::Host,
    lock::Lock,
    name::{self, CLIENTS, LabName, NODES_MAX, names},
    network, ownership,
    process::{self, DaemonState, Process},
    state::{Daemon, LabConfig, State},
};

/// Longest path of a lab's directory, in bytes: the path of a Unix socket in it has to fit 107.
const DIR_BYTES_MAX: usize = 90;
/// How long a killed daemon has to be gone.
const KILL_MAX: Duration = Duration::from_secs(10);
/// How long a daemon that is told to end has for it: more than its own limits add up to.
const STOP_MAX: Duration = Duration::from_secs(60);
/// How long a daemon has to stand still once it was told to. It is told so by the kernel, which does not ask it.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A lab that is up. A handle: dropping it leaves the lab as it is.
#[derive(Debug, Clone)]
pub struct Lab {
    name: LabName,
    dir: PathBuf,
}

/// A lab that goes down when this is dropped, also by a panic. For tests.
#[derive(Debug)]
pub struct LabGuard(Lab);

/// What there is of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabStatus {
    /// Its name.
    pub name: LabName,
    /// Its directory.
    pub dir: PathBuf,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
    /// Which directions of which cables are cut, such as `n1>n2`.
    pub cuts: Vec<String>,
}

/// One node of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Where its daemon listens.
    pub address: SocketAddrV4,
    /// Its network namespace.
    pub namespace: String,
    /// Its directory.
    pub dir: PathBuf,
    /// What its daemon does.
    pub daemon: DaemonState,
}

impl Lab {
    /// Makes a lab, and, of Pollux's daemons, a cluster whose nodes all see each other. A lab that cannot be made whole is
    /// taken down again before this returns.
    ///
    /// # Errors
    /// When there is one of that name already, or anything on the way fails: the error names the step.
    pub fn up(config: &LabConfig) -> Result<Self, LabError> {
        let dir = config.dir.clone().unwrap_or_else(|| config.name.place());
        let lab = Self { name: config.name.clone(), dir };
        if !(1..=NODES_MAX).contains(&config.nodes) {
            return Err(LabError::BadSize(config.nodes));
        }
        let lock = Lock::take(&lab.name)?;
        if lab.name.place().symlink_metadata().is_ok() || !network::namespaces(&lab.name).is_empty() {
            return Err(LabError::Exists(lab.name.to_string()));
        }
        // Before anything is made: what is in a directory that is refused must not be taken for the lab's.
        if let Err(error) = lab.check_dir() {
            lock.remove();
            return Err(error);
        }
        match lab.make(config) {
            Ok(()) => Ok(lab),
            Err(error) => {
                // The first error is the one to tell of; what cannot be undone here either is found by `down`.
                if let Err(also) = lab.unmake(lock) {
                    tracing::warn!(error = %also, "the half-made lab could not be taken down");
                }
                Err(error)
            }
        }
    }

    /// The lab `name` that was made earlier, perhaps by another process.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(name: &LabName) -> Result<Self, LabError> {
        let missing =
            || LabError::NotUp { name: name.to_string(), labs: names().iter().map(LabName::to_string).collect() };
        let dir = fs::canonicalize(name.place()).map_err(|_| missing())?;
        State::load(&dir)?.ok_or_else(missing)?;
        Ok(Self { name: name.clone(), dir })
    }

    /// Ends everything of the lab `name` that there is, in whatever state it is; nothing, if there is nothing.
    ///
    /// # Errors
    /// When something of it does not end. Calling this again goes on from there.
    pub fn down(name: &LabName) -> Result<(), LabError> {
        let dir = fs::canonicalize(name.place()).unwrap_or_else(|_| name.place());
        Self { name: name.clone(), dir }.unmake(Lock::take(name)?)
    }

    /// Has the lab go down when the result is dropped.
    #[must_use]
    pub fn guard(self) -> LabGuard {
        LabGuard(self)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A place in it: a node, or `lan` for clients.
    ///
    /// # Errors
    /// When it has no such place.
    pub fn host(&self, name: &str) -> Result<Host, LabError> {
        let state = self.state()?;
        let nodes: Vec<String> = state.nodes.iter().map(|node| name::node(node.number)).collect();
        if name == CLIENTS || nodes.iter().any(|node| node == name) {
            return Ok(self.place(name, &state.daemon));
        }
        let hosts = nodes.into_iter().chain([CLIENTS.to_owned()]).collect();
        Err(LabError::NoHost { lab: self.name.to_string(), host: name.to_owned(), hosts })
    }

    /// Cuts cables of the cluster network. The guests' network stays whole. Cutting what is cut changes nothing.
    ///
    /// # Errors
    /// When there is no such node, or the kernel refuses.
    pub fn cut(&self, cable: Cable) -> Result<LabStatus, LabError> {
        self.rewire(|state| {
            let more = cable.cuts(state.size())?;
            state.cuts.extend(more);
            Ok(())
        })
    }

    /// Mends cables, or all of them. Mending what is whole changes nothing.
    ///
    /// # Errors
    /// When there is no such node, or the kernel refuses.
    pub fn heal(&self, cable: Option<Cable>) -> Result<LabStatus, LabError> {
        self.rewire(|state| {
            let mended = cable.map(|cable| cable.cuts(state.size())).transpose()?;
            state.cuts.retain(|cut| mended.as_ref().is_some_and(|mended| !mended.contains(cut)));
            Ok(())
        })
    }

    /// Kills the daemon of `node` with no warning, and waits until it is gone. What becomes of its guests is its affair.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub fn kill(&self, node: &str) -> Result<(), LabError> {
        self.end(node, Signal::KILL, KILL_MAX)
    }

    /// Tells the daemon of `node` to end, as an orderly shutdown of its host does, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub fn stop(&self, node: &str) -> Result<(), LabError> {
        self.end(node, Signal::TERM, STOP_MAX)
    }

    fn end(&self, node: &str, signal: Signal, within: Duration) -> Result<(), LabError> {
        let _lock = Lock::take(&self.name)?;
        let process = self.running(node)?;
        process.signal(signal);
        if process.wait(Instant::now() + within) { Ok(()) } else { Err(LabError::Stubborn(vec![process.pid])) }
    }

    /// Pauses the daemon of `node`, and with `with_vms` everything it started: a host that has stopped in its tracks.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, node: &str, with_vms: bool) -> Result<(), LabError> {
        let _lock = Lock::take(&self.name)?;
        let daemon = self.running(node)?;
        daemon.signal(Signal::STOP);
        // First the daemon has stopped, so that it starts no more of them meanwhile.
        daemon.wait_paused(Instant::now() + PAUSE_MAX);
        for child in process::descendants(daemon.pid).into_iter().filter(|_| with_vms) {
            child.signal(Signal::STOP);
        }
        Ok(())
    }

    /// Lets the daemon of `node`, and everything it started, go on after [`Lab::pause`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self, node: &str) -> Result<(), LabError> {
        let _lock = Lock::take(&self.name)?;
        let daemon = self.running(node)?;
        for child in process::descendants(daemon.pid) {
            child.signal(Signal::CONT);
        }
        daemon.signal(Signal::CONT);
        Ok(())
    }

    /// Starts the daemon of `node` again; returns when it answers. Whether it finds its cluster is another question, see
    /// [`Lab::wait_alive`].
    ///
    /// # Errors
    /// When it runs already, or ends, or does not answer.
    pub fn start(&self, node: &str) -> Result<(), LabError> {
        let _lock = Lock::take(&self.name)?;
        let mut state = self.state()?;
        let host = self.host(node)?;
        let number = self.number(node)?;
        if let Some(process) = state.node(number)?.process.filter(|process| process.is_alive()) {
            return Err(LabError::Running { node: node.to_owned(), pid: process.pid });
        }
        let process = self.launch(&mut state, &host, number)?;
        cluster::wait_ready(&host, process)
    }

    /// Waits until `witness` says that all of `nodes` are alive.
    ///
    /// # Errors
    /// When that has not come about `within` that time: the error says what it saw instead.
    pub fn wait_alive(&self, witness: &str, nodes: &[&str], within: Duration) -> Result<(), LabError> {
        let nodes: Vec<String> = nodes.iter().map(|node| (*node).to_owned()).collect();
        cluster::wait_alive(&self.host(witness)?, &nodes, within)
    }

    /// What there is.
    ///
    /// # Errors
    /// When it has gone down meanwhile.
    pub fn status(&self) -> Result<LabStatus, LabError> {
        Ok(self.describe(&self.state()?))
    }

    fn describe(&self, state: &State) -> LabStatus {
        let nodes = state.nodes.iter().map(|node| {
            let name = name::node(node.number);
            NodeStatus {
                address: name::address(node.number),
                namespace: self.name.namespace(&name),
                dir: self.dir.join(&name),
                daemon: node.process.map_or(DaemonState::Stopped, Process::daemon_state),
                name,
            }
        });
        let cuts = state.cuts.iter().map(|cut| cut.written()).collect();
        LabStatus { name: self.name.clone(), dir: self.dir.clone(), nodes: nodes.collect(), cuts }
    }

    fn make(&self, config: &LabConfig) -> Result<(), LabError> {
        let mut state = State::new(config);
        if let Daemon::Pollux(binary) = &mut state.daemon {
            // Daemons run in directories of their own, where a relative path would mean another file.
            *binary = fs::canonicalize(&*binary).map_err(LabError::io(format!("finding {}", binary.display())))?;
        }
        self.make_dir(&state)?;
        network::make(&self.name, config.nodes)?;
        let hosts: Vec<Host> =
            state.nodes.iter().map(|node| self.place(&name::node(node.number), &state.daemon)).collect();
        let forms_a_cluster = matches!(config.daemon, Daemon::Pollux(_));
        for (host, number) in hosts.iter().zip(1..) {
            if forms_a_cluster && number == 1 {
                cluster::found(host, number)?;
            } else if forms_a_cluster {
                cluster::join(host, number, &hosts[0])?;
            }
            let process = self.launch(&mut state, host, number)?;
            cluster::wait_ready(host, process)?;
        }
        if forms_a_cluster {
            cluster::wait_formed(&hosts[0], hosts.len())?;
        }
        Ok(())
    }

    fn check_dir(&self) -> Result<(), LabError> {
        let bad = |why| LabError::BadDir { dir: self.dir.clone(), why };
        if !self.dir.is_absolute() || self.dir.as_os_str().len() > DIR_BYTES_MAX {
            return Err(bad("must be an absolute path of at most 90 bytes, so that sockets fit in it; name another"));
        }
        match fs::read_dir(&self.dir).map(|mut entries| entries.next().is_none()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(bad("is not empty; name another, or one that is not there")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(_) => Err(bad("cannot be read as a directory; name another")),
        }
    }

    /// The directory, with the state in it from the first moment on, and the way to find it by the lab's name.
    fn make_dir(&self, state: &State) -> Result<(), LabError> {
        let failed = || LabError::io(format!("making {}", self.dir.display()));
        fs::create_dir_all(&self.dir).map_err(failed())?;
        if self.dir != self.name.place() {
            symlink(&self.dir, self.name.place()).map_err(failed())?;
        }
        for node in &state.nodes {
            fs::create_dir(self.dir.join(name::node(node.number))).map_err(failed())?;
        }
        state.save(&self.dir)
    }

    fn unmake(&self, lock: Lock) -> Result<(), LabError> {
        // State that cannot be read is no reason to leave the rest.
        let state = State::load(&self.dir).ok().flatten();
        let daemons: Vec<Process> = state
            .iter()
            .flat_map(|state| &state.nodes)
            .filter_map(|node| node.process)
            .filter(|it| it.is_alive())
            .collect();
        ownership::end_processes(&self.name, &daemons)?;
        network::remove(&self.name)?;
        groups::remove(&self.name);
        State::remove_files(&self.dir)?;
        if self.name.place().is_symlink() {
            fs::remove_file(self.name.place()).map_err(LabError::io("removing the link to the lab's directory"))?;
        }
        lock.remove();
        Ok(())
    }

    fn rewire(&self, change: impl FnOnce(&mut State) -> Result<(), LabError>) -> Result<LabStatus, LabError> {
        let _lock = Lock::take(&self.name)?;
        let mut state = self.state()?;
        let before = state.cuts.clone();
        change(&mut state)?;
        // Only the nodes that something changes for; the others keep even their counters.
        let mut changed: Vec<u8> = before.symmetric_difference(&state.cuts).map(|Cut { to, .. }| *to).collect();
        changed.sort_unstable();
        changed.dedup();
        for number in changed {
            network::apply_cuts(&self.name, number, state.cuts.iter())?;
        }
        state.save(&self.dir)?;
        Ok(self.describe(&state))
    }

    /// Starts a daemon and remembers which process it is.
    fn launch(&self, state: &mut State, host: &Host, number: u8) -> Result<Process, LabError> {
        let process = cluster::start(host)?;
        state.node(number)?.process = Some(process);
        state.save(&self.dir)?;
        Ok(process)
    }

    fn running(&self, node: &str) -> Result<Process, LabError> {
        let number = self.number(node)?;
        let process = self.state()?.node(number)?.process.filter(|process| process.is_alive());
        process.ok_or_else(|| LabError::NotRunning { node: node.to_owned() })
    }

    fn number(&self, node: &str) -> Result<u8, LabError> {
        let hosts = || self.state().map(|state| state.nodes.iter().map(|node| name::node(node.number)).collect());
        match node_number(node) {
            Some(number) => Ok(number),
            None => Err(LabError::NoHost { lab: self.name.to_string(), host: node.to_owned(), hosts: hosts()? }),
        }
    }

    fn place(&self, name: &str, daemon: &Daemon) -> Host {
        let dir = (name != CLIENTS).then(|| self.dir.join(name));
        Host { lab: self.name.clone(), name: name.to_owned(), dir, daemon: daemon.clone() }
    }

    fn state(&self) -> Result<State, LabError> {
        State::load(&self.dir)?.ok_or_else(|| LabError::NotUp { name: self.name.to_string(), labs: Vec::new() })
    }
}

impl Deref for LabGuard {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl Drop for LabGuard {
    fn drop(&mut self) {
        if let Err(error) = Lab::down(&self.0.name) {
            tracing::error!(lab = %self.0.name, %error, "the lab did not go down");
        }
    }
}
