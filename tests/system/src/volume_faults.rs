//! The fault table of volumes: every phase of a replica's move x what can be done to it there, under a guest that writes.
//!
//! A cell holds the move in its phase, does its fault, lets the move go on, and looks: the operation ended as it must, the guest
//! saw no error and has all that it flushed, the replicas are where they belong and equal byte for byte, and no pool holds anything
//! else.

use std::{collections::BTreeSet, fs, net::Ipv4Addr};

use crate::{
    World,
    client::Client,
    disks::{POOL, Volume},
    faults::Hold,
    views::Operation,
    waiting::{SETTLE, until},
};

/// A phase of a move, and where in it it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The new replica is made, and nothing was copied to it.
    Reaching,
    /// All was copied, and the new replica is not in the set.
    Joining,
    /// It is in the set, and is about to be compared.
    Comparing,
    /// They are equal, and the old one is kept.
    Kept,
    /// The old one has left the set, and is about to be forgotten.
    Ending,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Reaching, Self::Joining, Self::Comparing, Self::Kept, Self::Ending];

    /// The place at which the writer is held, where it has to be: see `pollux::vm::hold`.
    const fn place(self) -> Option<&'static str> {
        match self {
            Self::Reaching => Some("volume-reach"),
            Self::Joining => Some("volume-join"),
            Self::Comparing => Some("volume-compare"),
            // It is as long as somebody wished.
            Self::Kept => None,
            Self::Ending => Some("volume-end"),
        }
    }

    /// For how long the old replica is to be kept.
    const fn keep(self) -> &'static str {
        match self {
            Self::Kept => "15s",
            Self::Reaching | Self::Joining | Self::Comparing | Self::Ending => "0s",
        }
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// Nothing: the move goes on.
    Nothing,
    /// A user cancels it.
    Cancel,
    /// The daemon of the node that writes is killed, and its VM with it; and started again.
    Writer,
    /// That of the node with the replica that goes.
    Source,
    /// That of the node with the replica that comes.
    Target,
    /// That of the leader, whoever it is.
    Leader,
}

/// What the guest works on: the first 16 MiB, so often a second.
const BLOCKS: u32 = 4096;
const RATE: u32 = 100;
const SIZE: &str = "64M";

/// A cluster in which cell after cell is played.
pub struct VolumeTable {
    world: World,
    guest: Client,
    boot: String,
}

/// Where the replica that does not move is, with the VM; and from where to where the other one goes.
#[derive(Debug)]
struct Roles {
    writer: String,
    source: String,
    target: String,
}

impl VolumeTable {
    /// A cluster with a guest that has a mirrored disk and writes to it.
    #[must_use]
    pub fn lay() -> Self {
        let world = World::start(3);
        world.have_pools();
        world.make_volume("data", SIZE, &["n1", "n2"]);
        let guest = world.create("web", "n1", Ipv4Addr::new(10, 78, 0, 10), &["--volume", "data"]);
        let boot = guest.boot();
        guest.works_on_disk(BLOCKS, RATE);
        Self { world, guest, boot }
    }

    /// Plays one cell.
    ///
    /// # Panics
    /// If anything is not as it must be.
    #[track_caller]
    pub fn play(&mut self, phase: Phase, strike: Strike) {
        eprintln!("=== {strike:?} at {phase:?}");
        let roles = self.roles();
        let Roles { writer, source, target } = &roles;
        self.guest.disk_goes_on(SETTLE);
        let flushed = self.guest.flushes_disk();

        let hold = phase.place().map(|place| Hold::named(&self.world, writer, place));
        let begun = self.begin(source, target, phase.keep());
        match &hold {
            Some(hold) => hold.is_reached(&self.world, writer, &begun),
            None => self.is_kept(writer),
        }
        let killed = self.strike(strike, &roles, &begun, hold);

        let via = self.world.somebody(&[writer, source, target]);
        let ended = self.world.ended(&via, &begun);
        let there = match strike {
            Strike::Cancel => {
                assert!(ended.is("cancelled"), "{ended:?}");
                source
            }
            Strike::Nothing | Strike::Writer | Strike::Source | Strike::Target | Strike::Leader => {
                assert!(ended.is("succeeded"), "{ended:?}");
                target
            }
        };
        self.guest_is_well(killed.as_ref() == Some(writer), flushed);
        self.replicas_are(&via, &[writer, there]);
        self.world.healthy();
    }

    /// The VM, and where its volume is.
    fn roles(&self) -> Roles {
        let volume = self.world.volume("n1", "data");
        let writer = self.world.settled("n1").on().to_owned();
        let is_at = |node: &str| volume.replicas.iter().any(|replica| replica.node == node);
        let others: Vec<&str> = self.world.nodes().into_iter().filter(|node| *node != writer).collect();
        let (there, away): (Vec<&str>, Vec<&str>) = others.into_iter().partition(|node| is_at(node));
        assert!(is_at(&writer) && there.len() == 1 && away.len() == 1, "{volume:?}");
        Roles { writer, source: there[0].to_owned(), target: away[0].to_owned() }
    }

    fn begin(&self, source: &str, target: &str, keep: &str) -> String {
        let (from, to) = (format!("{source}:{POOL}"), format!("{target}:{POOL}"));
        let words = ["volume", "move", "data", "--from", &from, "--to", &to, "--keep", keep, "--detach"];
        let begun: Operation = self.world.pollux("n1", &words).json();
        begun.id
    }

    fn is_kept(&self, via: &str) {
        until("the old replica to be kept", SETTLE, || {
            let volume: Volume = self.world.pollux(via, &["volume", "show", "data"]).try_json()?;
            let kept = volume.moving.as_ref().is_some_and(|moving| moving.phase == "kept");
            if kept { Ok(()) } else { Err(format!("{volume:?}")) }
        });
    }

    /// Who was killed, if anybody.
    fn strike(&self, strike: Strike, roles: &Roles, begun: &str, hold: Option<Hold>) -> Option<String> {
        let leader = self.world.leader(&roles.writer);
        let killed = match strike {
            Strike::Nothing | Strike::Cancel => None,
            Strike::Writer => Some(roles.writer.clone()),
            Strike::Source => Some(roles.source.clone()),
            Strike::Target => Some(roles.target.clone()),
            Strike::Leader => Some(leader),
        };
        if strike == Strike::Cancel {
            let _ = self.world.pollux(&roles.target, &["op", "cancel", begun]).code(crate::cli::exit::OK);
        }
        if let Some(node) = &killed {
            self.world.kill(node);
            until("its QEMUs to die with it", SETTLE, || self.world.has(node, 0));
        }
        // Before it is back: what it was about to do it does not do any more.
        drop(hold);
        if let Some(node) = &killed {
            self.world.start_again(node);
        }
        killed
    }

    /// It has seen no error, and has what it flushed.
    fn guest_is_well(&mut self, was_killed: bool, flushed: u64) {
        let boot = self.guest.boot();
        assert_eq!(boot != self.boot, was_killed, "the guest lives as long as its node's daemon");
        if was_killed {
            self.boot = boot;
            let found = self.guest.adopts_disk(BLOCKS);
            assert!(
                found >= flushed,
                "the blocks' numbers came to {flushed} when they were flushed, and to {found} now"
            );
            self.guest.works_on_disk(BLOCKS, RATE);
        }
        self.guest.disk_goes_on(SETTLE);
        assert_eq!(self.guest.disk_work().errors, 0);
    }

    /// In sync on exactly these nodes, equal, and nothing else is in any pool.
    fn replicas_are(&self, via: &str, nodes: &[&str]) {
        self.world.in_sync(via, "data", nodes);
        self.guest.works_on_disk(BLOCKS, 0);
        self.guest.ask("DISKFLUSH");
        self.guest.checks_disk();
        self.world.replicas_are_equal(via, "data");
        self.guest.works_on_disk(BLOCKS, RATE);
        pools_hold_nothing_else(&self.world, via, &[POOL]);
    }
}

/// In the pools called so on all nodes there are the replicas of volume `data`, and nothing else.
///
/// # Panics
/// If that is not so before long.
#[track_caller]
pub fn pools_hold_nothing_else(world: &World, via: &str, pools: &[&str]) {
    until("the pools to hold nothing but the replicas", SETTLE, || {
        let volume: Volume = world.pollux(via, &["volume", "show", "data"]).try_json()?;
        let directory = |replica| world.data_of(&volume, replica).with_file_name("");
        let wanted: BTreeSet<_> = volume.replicas.iter().map(directory).collect();
        let mut found = BTreeSet::new();
        for node in world.nodes() {
            for pool in pools {
                let entries =
                    fs::read_dir(world.pool_at(&format!("{node}:{pool}"))).map_err(|error| error.to_string())?;
                for entry in entries {
                    let path = entry.map_err(|error| error.to_string())?.path();
                    // What marks it as a pool.
                    if path.is_dir() {
                        found.insert(path);
                    }
                }
            }
        }
        if found == wanted { Ok(()) } else { Err(format!("{found:?} instead of {wanted:?}")) }
    });
}
