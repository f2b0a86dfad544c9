//! `storage-move`: the disk of a guest that writes to it, moved to another node by each system in turn while the guest runs on.
//!
//! The disk is large and holds data in a quarter of it, in pieces with holes between them. The guest rewrites blocks at its beginning all
//! the while, and tells what its writes took. Every move has a guest, an image and a target of its own. In turn means A B A B, so
//! that whatever else the machine does hits all alike.

mod figures;
mod image;
mod pollux;
mod qemu;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use tokio::runtime::Handle;

pub(crate) use self::figures::{Comparison, Moved, rows, table, verdicts};
use crate::{
    stage::{GroundHandle, Stage},
    wire::Wire,
};

/// The guest writes, flushes and reads back so many blocks of 4 KiB.
const BLOCKS: u64 = 7_680;
const _: () = assert!((BLOCKS << 12) + (1 << 20) < image::FIRST_BYTES, "they lie where the image holds nothing");
/// The guest writes for so long before a move begins.
const BEFORE: Duration = Duration::from_secs(1);
/// Longest wait for an answer of the guest's.
const ANSWER_MAX: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

/// What is moved, and how often.
#[derive(Debug, Clone, Args)]
pub(crate) struct Wish {
    /// Moves with each.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// The disk's size, in MiB; a quarter of it holds data.
    #[arg(long, default_value_t = 8192, value_parser = clap::value_parser!(u64).range(128..=1_048_576))]
    size: u64,
    /// What the guest does to it, in requests per second.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rate: u64,
    /// The cables between the nodes carry so many 10^6 bits per second at most, in each direction [default: as many as they can].
    #[arg(long, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    link_mbit: Option<u32>,
    /// Only this system, to profile it; may be given several times.
    #[arg(long = "system", value_enum)]
    systems: Vec<System>,
}

/// A system that moves disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum System {
    /// Pollux: `volume move`.
    Pollux,
    /// QEMU's `blockdev-mirror` to a `qemu-nbd` over plain TCP, as it comes: in the background.
    QemuMirror,
    /// The same with `copy-mode=write-blocking`: what is written meanwhile goes to both at once, as with Pollux.
    QemuMirrorBlocking,
}

impl System {
    const ALL: [Self; 3] = [Self::Pollux, Self::QemuMirror, Self::QemuMirrorBlocking];
    const PEERS: [Self; 2] = [Self::QemuMirror, Self::QemuMirrorBlocking];

    fn name(self) -> &'static str {
        match self {
            Self::Pollux => "pollux",
            Self::QemuMirror => "qemu-mirror",
            Self::QemuMirrorBlocking => "qemu-mirror-blocking",
        }
    }
}

/// A guest with its disk.
trait Guest {
    /// Moves the disk from source to target: from the wish to the answer that it is done. How long it took until both held the same.
    fn move_disk(&mut self) -> Result<Duration>;

    /// Ends the guest, and removes what there is of its disk.
    fn end(self: Box<Self>) -> Result<()>;
}

/// Measures; the lab is left for its owner to take down.
pub(crate) fn run(ground: &GroundHandle, runtime: &Handle, wish: &Wish) -> Result<Vec<Comparison>> {
    eprintln!("bench: bringing up three nodes");
    let stage = Stage::set_up(ground)?;
    if let Some(mbit) = wish.link_mbit {
        [&stage.source, &stage.target].into_iter().try_for_each(|node| pollux_bench::slow_down(node, mbit))?;
    }
    let image = stage.files.join("image");
    image::make(&image, wish.size * MIB).context("cannot make the image")?;
    pollux::make_pools(&stage)?;
    let systems = if wish.systems.is_empty() { System::ALL.to_vec() } else { wish.systems.clone() };
    let mut moves = Vec::new();
    for run in 1..=wish.runs {
        for system in &systems {
            let what = format!("{run}/{} {:20}", wish.runs, system.name());
            let guest: Box<dyn Guest + '_> = match system {
                System::Pollux => Box::new(pollux::Vm::start(&stage, &image)?),
                System::QemuMirror => Box::new(qemu::Vm::start(&stage, runtime, &image, "background")?),
                System::QemuMirrorBlocking => Box::new(qemu::Vm::start(&stage, runtime, &image, "write-blocking")?),
            };
            let moved = measure(&stage, guest, wish).with_context(|| format!("{what} failed"))?;
            eprintln!("bench: {what} {moved}");
            moves.push((*system, moved));
        }
    }
    Ok(figures::compare(&moves))
}

/// One guest: booted, its disk moved and checked, ended.
fn measure(stage: &Stage, mut guest: Box<dyn Guest + '_>, wish: &Wish) -> Result<Moved> {
    stage.booted()?;
    ask(stage, &format!("DISK /dev/vda {BLOCKS} {}", wish.rate))?;
    thread::sleep(BEFORE);
    let idle = Worked::of(&ask(stage, "DISK")?)?;
    ensure!(idle.writes > 0, "the guest writes nothing: {idle:?}");
    // What writes take is counted anew.
    ask(stage, &format!("DISK /dev/vda {BLOCKS} {}", wish.rate))?;

    let wire = Wire::watch(&stage.source);
    let begun = Instant::now();
    let equal = guest.move_disk()?;
    let total = begun.elapsed();
    let worked = Worked::of(&ask(stage, "DISK")?)?;
    let traffic = wire.end()?;

    ensure!(worked.errors == 0 && worked.writes > idle.writes, "the guest could not write: {worked:?}");
    ask(stage, &format!("DISK /dev/vda {BLOCKS} 0"))?;
    ask(stage, "DISKCHECK").context("after the move")?;
    guest.end()?;
    Ok(Moved {
        total,
        equal,
        wire_bytes: traffic.bytes,
        idle_p99_us: idle.p99_us,
        p99_us: worked.p99_us,
        longest_ms: worked.longest_ms,
    })
}

fn ask(stage: &Stage, request: &str) -> Result<String> {
    let answer = stage.talk(ANSWER_MAX)?.ask(request);
    let answer = answer.with_context(|| format!("the guest did not answer {request}"))?;
    ensure!(answer.starts_with("OK"), "the guest answered {request} by {answer:?}");
    Ok(answer)
}

/// What the guest says of its work.
#[derive(Debug, Clone, Copy)]
struct Worked {
    writes: u64,
    errors: u64,
    longest_ms: u64,
    p99_us: u64,
}

impl Worked {
    fn of(told: &str) -> Result<Self> {
        let words: Vec<&str> = told.split_whitespace().collect();
        let number = |name: &str| {
            let at = words.iter().position(|word| *word == name).with_context(|| format!("no {name} in {told:?}"))?;
            words.get(at + 1).and_then(|word| word.parse().ok()).with_context(|| format!("no number in {told:?}"))
        };
        let (writes, errors) = (number("writes")?, number("errors")?);
        Ok(Self { writes, errors, longest_ms: number("longest_ms")?, p99_us: number("p99_us")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_says_is_read_by_name() {
        let told = "OK writes 7 reads 2 flushes 1 errors 0 longest_ms 12 p99_us 345";
        let worked = Worked::of(told).unwrap();
        assert_eq!((worked.writes, worked.errors, worked.longest_ms, worked.p99_us), (7, 0, 12, 345));
        assert!(Worked::of("OK writes 7").is_err());
    }
}
