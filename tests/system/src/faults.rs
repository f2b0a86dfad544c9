//! The fault table: every place in a move, and everything that can be done to it there.
//!
//! A cell holds the move at its place, does its fault, lets the move go on, undoes the fault, and looks: one owner, nothing
//! left behind, the guest's memory and every acknowledged request there whenever a whole copy survived, and an operation that
//! says what happened.

use std::{fs, path::PathBuf, time::Duration};

use crate::{
    World, census,
    client::Client,
    views::Operation,
    waiting::{SETTLE, until, within},
    watching::PATIENCE,
};

/// A place at which a daemon can be held in a move: see `pollux::vm::hold`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The source is about to call the target.
    Connect,
    /// The first round is sent.
    Round,
    /// The guest is paused at the source.
    Paused,
    /// Everything is sent but the word that it is everything.
    Complete,
    /// The target has everything.
    Switchover,
    /// The target has won, or is about to, and loads.
    Load,
    /// The target is about to let the guest run.
    Run,
    /// The guest runs at the target, which is about to say so.
    Arrived,
}

impl Place {
    /// All of them, in order.
    pub const ALL: [Self; 8] = [
        Self::Connect,
        Self::Round,
        Self::Paused,
        Self::Complete,
        Self::Switchover,
        Self::Load,
        Self::Run,
        Self::Arrived,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Round => "round",
            Self::Paused => "paused",
            Self::Complete => "complete",
            Self::Switchover => "switchover",
            Self::Load => "load",
            Self::Run => "run",
            Self::Arrived => "arrived",
        }
    }

    const fn number(self) -> usize {
        self as usize
    }

    /// The source is held there; otherwise the target.
    const fn at_source(self) -> bool {
        self.number() < Self::Switchover.number()
    }
}

/// Something that is done to a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The source's daemon is killed, and started again.
    SourceDaemon,
    /// The source's QEMU is killed.
    SourceQemu,
    /// The target's daemon is killed, and started again.
    TargetDaemon,
    /// The target's QEMU is killed.
    TargetQemu,
    /// The target's host is shut down in good order and booted anew.
    TargetReboots,
    /// The leader, which is neither, is killed, and started again.
    Leader,
    /// What the source sends to the target is lost.
    LinkThere,
    /// What the target sends to the source is lost.
    LinkBack,
    /// Source and target do not hear each other.
    Link,
    /// The source and the leader do not hear each other.
    SourceAndLeader,
    /// The target and the leader do not hear each other.
    TargetAndLeader,
    /// The source hears nobody.
    SourceAlone,
    /// The target hears nobody.
    TargetAlone,
    /// The source's host stops in its tracks for a minute.
    SourceSleeps,
    /// The target's host stops in its tracks for a minute.
    TargetSleeps,
    /// A user cancels the move.
    Cancel,
    /// All daemons are killed at once, and started again.
    Everything,
}

impl Fault {
    /// Those that take seconds.
    pub const QUICK: [Self; 15] = [
        Self::SourceDaemon,
        Self::SourceQemu,
        Self::TargetDaemon,
        Self::TargetQemu,
        Self::TargetReboots,
        Self::Leader,
        Self::LinkThere,
        Self::LinkBack,
        Self::Link,
        Self::SourceAndLeader,
        Self::TargetAndLeader,
        Self::SourceAlone,
        Self::TargetAlone,
        Self::Cancel,
        Self::Everything,
    ];

    /// The guest may be gone afterwards: whoever had its memory was killed.
    fn may_lose(self, place: Place) -> bool {
        match self {
            // Until the target has everything, only the source has it.
            Self::SourceDaemon | Self::SourceQemu => place.at_source(),
            // Once the guest may have acted at the target, the source's older copy must not act.
            Self::TargetDaemon => place.number() >= Place::Run.number(),
            // A daemon that ends in order says what it did not let run.
            Self::TargetQemu | Self::TargetReboots => place == Place::Arrived,
            Self::Everything => true,
            Self::Leader
            | Self::LinkThere
            | Self::LinkBack
            | Self::Link
            | Self::SourceAndLeader
            | Self::TargetAndLeader
            | Self::SourceAlone
            | Self::TargetAlone
            | Self::SourceSleeps
            | Self::TargetSleeps
            | Self::Cancel => false,
        }
    }
}

/// Memory of the guest that is compared afterwards: enough for a move to have rounds.
const FILL: &str = "FILL 24 random";
const DIRTY: &str = "DIRTY 24 5";
/// How long a link stays cut if the move does not end by that.
const CUT: Duration = Duration::from_secs(12);
/// How long a host sleeps.
const SLEEP: Duration = Duration::from_secs(60);
/// A cancelled operation has ended within this.
const CANCEL: Duration = Duration::from_secs(1);

/// A cluster in which cell after cell is played.
pub struct Table {
    world: World,
    guest: Client,
    boot: String,
}

/// Who is who in a cell.
#[derive(Debug)]
struct Roles {
    source: String,
    target: String,
    leader: String,
}

impl Table {
    /// A cluster with a guest in it.
    #[must_use]
    pub fn lay() -> Self {
        let world = World::start(3);
        let (guest, boot) = world.boot("n1");
        guest.ask(FILL);
        guest.ask(DIRTY);
        Self { world, guest, boot }
    }

    /// Plays one cell.
    ///
    /// # Panics
    /// If anything is not as it must be.
    #[track_caller]
    pub fn play(&mut self, place: Place, fault: Fault) {
        eprintln!("=== {fault:?} at {place:?}");
        let roles = self.roles();
        let before = self.world.settled(&roles.leader);
        // A client that gave up would find its connection gone, whatever the guest did; and its kernel, which doubles the time
        // between two attempts, makes the next one up to as long after the sleep as the sleep was.
        let sleeps = matches!(fault, Fault::SourceSleeps | Fault::TargetSleeps);
        let watch = self.world.watch_with(&self.guest, if sleeps { SLEEP * 4 } else { PATIENCE });
        watch.is_under_way();
        let hold = Hold::make(&self.world, if place.at_source() { &roles.source } else { &roles.target }, place);
        let begun = self.world.begin_detached(&roles.leader, &roles.target);
        hold.is_reached(&self.world, &roles.leader, &begun);

        self.strike(fault, place, &roles, &begun, hold);

        let asked = self.world.somebody(&[&roles.leader, &roles.source, &roles.target]);
        let ended = self.world.ended(&asked, &begun);
        let vm = self.world.settled(&asked);
        let boot = self.guest.boot();
        let seen = watch.finish();
        eprintln!("    {:?}: {}; on {}", ended.result, ended.reason.as_deref().unwrap_or("-"), vm.on());
        seen.one_owner();
        self.told(&ended, &before.generation, &vm.generation);
        if boot == self.boot {
            self.guest.check_memory();
            seen.nothing_lost(&boot);
            let expected = if ended.is("succeeded") { &roles.target } else { &roles.source };
            assert_eq!(vm.on(), expected, "{ended:?}");
        } else {
            assert!(fault.may_lose(place), "a whole copy survived, and the guest booted anew: {ended:?}");
            self.boot = boot;
            self.guest.ask(FILL);
            self.guest.ask(DIRTY);
        }
        self.world.healthy();
    }

    /// The leader, and the VM on one of the others.
    fn roles(&self) -> Roles {
        let leader = self.world.leader("n1");
        let vm = self.world.settled(&leader);
        let others: Vec<String> =
            self.world.nodes().into_iter().filter(|node| *node != leader).map(str::to_owned).collect();
        let source = if vm.on() == leader {
            self.world.moves(&leader, &others[0]);
            others[0].clone()
        } else {
            vm.on().to_owned()
        };
        let target = others.into_iter().find(|node| *node != source).expect("three nodes");
        Roles { source, target, leader }
    }

    fn strike(&self, fault: Fault, place: Place, roles: &Roles, begun: &str, hold: Hold) {
        let world = &self.world;
        let Roles { source, target, leader } = roles;
        match fault {
            Fault::SourceDaemon => self.dies(source, hold, !place.at_source()),
            Fault::TargetDaemon => self.dies(target, hold, place.at_source()),
            Fault::TargetReboots => self.reboots(target, hold),
            Fault::Leader => self.dies(leader, hold, false),
            Fault::SourceQemu => self.loses_qemu(source, hold),
            Fault::TargetQemu if place == Place::Connect => {
                // The standby may still be being made.
                until("the standby", SETTLE, || world.has(target, 1));
                self.loses_qemu(target, hold);
            }
            Fault::TargetQemu => self.loses_qemu(target, hold),
            Fault::LinkThere => self.is_cut(&format!("{source}>{target}"), leader, begun, hold),
            Fault::LinkBack => self.is_cut(&format!("{target}>{source}"), leader, begun, hold),
            Fault::Link => self.is_cut(&format!("{source}:{target}"), leader, begun, hold),
            Fault::SourceAndLeader => self.is_cut(&format!("{source}:{leader}"), target, begun, hold),
            Fault::TargetAndLeader => self.is_cut(&format!("{target}:{leader}"), source, begun, hold),
            Fault::SourceAlone => self.is_cut(source, leader, begun, hold),
            Fault::TargetAlone => self.is_cut(target, leader, begun, hold),
            Fault::SourceSleeps => self.sleeps(source, leader, begun, hold),
            Fault::TargetSleeps => self.sleeps(target, leader, begun, hold),
            Fault::Cancel => self.is_cancelled(place, leader, begun, hold),
            Fault::Everything => {
                let nodes = world.nodes();
                nodes.iter().for_each(|node| world.kill(node));
                drop(hold);
                nodes.iter().for_each(|node| until("all to be gone", SETTLE, || world.has(node, 0)));
                nodes.iter().for_each(|node| world.start_again(node));
            }
        }
    }

    /// `held_elsewhere`: the other side of the move is what stands still, and goes on only when this one is back: whoever acts first
    /// then must not lose the guest.
    fn dies(&self, node: &str, hold: Hold, held_elsewhere: bool) {
        self.world.kill(node);
        let held = Some(hold).filter(|_| held_elsewhere);
        until("its QEMUs to die with it", SETTLE, || self.world.has(node, 0));
        self.world.start_again(node);
        drop(held);
    }

    /// What stood still stands still until the host is back: its next life knows nothing that this one did not leave with the cluster.
    fn reboots(&self, node: &str, hold: Hold) {
        self.world.stop(node);
        until("its QEMUs to end with it", SETTLE, || self.world.has(node, 0));
        self.forget_boot(node);
        self.world.start_again(node);
        drop(hold);
    }

    /// What is known of standbys in `node`'s directory was written before its host booted.
    fn forget_boot(&self, node: &str) {
        let host = self.world.host(node);
        let marks = host.dir().expect("a node has a directory").join("standby");
        for mark in fs::read_dir(&marks).expect("marks can be listed").map(|mark| mark.expect("a mark").path()) {
            let text = fs::read_to_string(&mark).expect("a mark can be read");
            let (operation, _) = text.split_once(' ').expect("an operation and a boot");
            fs::write(&mark, format!("{operation} another-boot\n")).expect("a mark can be written");
        }
    }

    fn loses_qemu(&self, node: &str, hold: Hold) {
        let qemus = census::qemus(&self.world.host(node)).expect("its processes can be listed");
        assert_eq!(qemus.len(), 1, "one QEMU on {node}");
        for qemu in qemus {
            let process = nix::unistd::Pid::from_raw(qemu);
            nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).expect("it can be killed");
        }
        drop(hold);
    }

    /// Cut until the move has ended by it, or for a while; `via` hears a majority.
    fn is_cut(&self, cable: &str, via: &str, begun: &str, hold: Hold) {
        self.world.cut(cable);
        drop(hold);
        // Not ending by it is right, too: nobody can know what became of the other side.
        let _ = within(CUT, || self.world.has_ended(via, begun));
        self.world.heal();
    }

    fn sleeps(&self, node: &str, via: &str, begun: &str, hold: Hold) {
        self.world.pause(node);
        drop(hold);
        let began = std::time::Instant::now();
        let _ = within(SLEEP, || self.world.has_ended(via, begun));
        // The whole minute, for that is what it is about: it wakes up long after others have decided.
        std::thread::sleep(SLEEP.saturating_sub(began.elapsed()));
        self.world.resume(node);
    }

    fn is_cancelled(&self, place: Place, via: &str, begun: &str, hold: Hold) {
        if place.number() >= Place::Load.number() {
            // The switchover is under way when the target begins to load.
            until("the switchover", SETTLE, || {
                if self.world.switched_over(via, begun) { Ok(()) } else { Err("not yet".to_owned()) }
            });
        }
        let answer = self.world.pollux(via, &["op", "cancel", begun, "--detach"]);
        if answer.code == crate::cli::exit::OK {
            let within_limit = within(CANCEL, || self.world.has_ended(via, begun));
            assert!(within_limit.is_ok(), "cancelled at {place:?}, and not ended within {CANCEL:?}: {within_limit:?}");
        } else {
            // Only a switchover that was committed cannot be taken back.
            assert!(place.number() >= Place::Switchover.number(), "{answer:?}");
            answer.refused(crate::cli::exit::CONFLICT, &["cannot be cancelled"]);
        }
        drop(hold);
    }

    /// The operation says what happened.
    fn told(&self, ended: &Operation, before: &u64, after: &u64) {
        match ended.result.as_deref() {
            Some("succeeded") => {
                assert!(ended.report.is_some(), "{ended:?}");
                assert!(after > before, "the right to run went over: {ended:?}");
            }
            Some("failed") => {
                assert!(ended.reason.as_deref().is_some_and(|reason| !reason.is_empty()), "{ended:?}");
            }
            Some("cancelled") => assert_eq!(after, before, "nothing changed hands: {ended:?}"),
            other => panic!("{other:?}: {ended:?}"),
        }
    }
}

/// A hold at one place of one node. Dropped, the move goes on.
#[derive(Debug)]
pub struct Hold {
    file: PathBuf,
    reached: PathBuf,
}

impl Hold {
    /// Holds the next move that comes there.
    ///
    /// # Panics
    /// If the node has no directory.
    #[track_caller]
    #[must_use]
    pub fn make(world: &World, node: &str, place: Place) -> Self {
        Self::named(world, node, place.name())
    }

    /// The same at a place by its name.
    ///
    /// # Panics
    /// If the node has no directory.
    #[track_caller]
    #[must_use]
    pub fn named(world: &World, node: &str, place: &str) -> Self {
        let host = world.host(node);
        let dir = host.dir().expect("a node has a directory").join("holds");
        fs::create_dir_all(&dir).expect("a directory can be made");
        let (file, reached) = (dir.join(place), dir.join(format!("{place}.reached")));
        // One of an earlier cell, if there is any.
        let _ = fs::remove_file(&reached);
        fs::write(&file, "").expect("a file can be made");
        Self { file, reached }
    }

    /// Waits until the move has come there.
    ///
    /// # Panics
    /// If it does not for long.
    #[track_caller]
    pub fn is_reached(&self, world: &World, via: &str, begun: &str) {
        until(&format!("the move to come to {}", self.file.display()), SETTLE, || {
            if self.reached.exists() {
                return Ok(());
            }
            Err(format!("{:?}", world.operation(via, begun)))
        });
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // A daemon that was killed holds nothing.
        let _ = fs::remove_file(&self.file);
    }
}
